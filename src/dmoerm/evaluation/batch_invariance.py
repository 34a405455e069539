"""Does a reward depend on what else is in the batch? A drawn sample of prompts is scored again, alone and in another company.

Padding, kernels that depend on shapes, and low precision make rewards move with the batch; in public tools this has moved benchmark
figures. Responses to one prompt stay together here, because a model may cut a long prompt to make room for the longest of them.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.scorers import Candidates, Rewards, Scorer

__all__ = ["BatchInvariance", "check_batch_invariance"]


@dataclass(frozen=True, slots=True)
class BatchInvariance:
    """What scoring again has changed.

    Attributes:
        prompts: prompts scored again, drawn with `seed`.
        responses: their responses.
        largest_difference: of a reward from the one it had, reward units; None where no response got both.
        changed_rankings: pairs of responses to one prompt whose first margin was above the tolerance and whose order is now another.
        rankings: pairs with such a margin, counted once for each way of scoring again.
        changed_failures: responses that were scored once and failed once.
        tolerance: reward units.
        seed: of the draw.
    """

    prompts: int
    responses: int
    largest_difference: float | None
    changed_rankings: int
    rankings: int
    changed_failures: int
    tolerance: float
    seed: int

    @property
    def holds(self) -> bool:
        """Nothing has moved beyond the tolerance."""
        within = self.largest_difference is None or self.largest_difference <= self.tolerance
        return within and self.changed_rankings == 0 and self.changed_failures == 0

    def as_text(self) -> str:
        """Two lines for a report."""
        largest = "none to compare" if self.largest_difference is None else f"{self.largest_difference:.1e}"
        lines = [
            f"Batch invariance: {'holds' if self.holds else 'DOES NOT HOLD'}. {self.prompts:,} prompts scored again, alone and in another "
            f"order (seed {self.seed}).",
            f"Largest difference {largest} (tolerance {self.tolerance:g}); {self.changed_rankings:,} of {self.rankings:,} rankings with a "
            f"wider margin changed{f'; {self.changed_failures:,} failures came or went' if self.changed_failures else ''}.",
        ]
        if not self.holds:
            lines.append("Figures of this model depend on how its inputs are batched: try float32, or one prompt a batch.")
        return "\n".join(lines)


def check_batch_invariance(
    scorer: Scorer,
    candidates: Sequence[Candidates],
    rewards: Sequence[Rewards],
    *,
    seed: int = 0,
    prompts: int = 24,
    tolerance: float = 1e-3,
) -> BatchInvariance:
    """Score a sample again: each prompt alone, then all of the sample in one call and in another order.

    Args:
        scorer: what gave the rewards.
        candidates: all prompts with their responses.
        rewards: what they got in the run that is checked.
        seed: of the draw.
        prompts: size of the sample, at most.
        tolerance: reward units. In float32 differences near 1e-6 are usual.

    Raises:
        ConfigError: the sample is empty, or the tolerance is negative.
        DataError: there is no prompt.
    """
    if prompts < 1 or not tolerance >= 0.0:
        raise ConfigError(f"batch invariance: {prompts} prompts, tolerance {tolerance}; expected at least 1 prompt and a tolerance >= 0.")
    if not candidates:
        raise DataError("No prompts to score again; expected at least one.")
    drawn = sorted(random.Random(seed).sample(range(len(candidates)), min(prompts, len(candidates))))
    chosen = [candidates[number] for number in drawn]
    before = [rewards[number] for number in drawn]
    alone = [scorer.score([one])[0] for one in chosen]
    turned = scorer.score(chosen[::-1])[::-1]
    again = [(first, second) for others in (alone, turned) for first, second in zip(before, others, strict=True)]
    scored = [(old, new) for first, second in again for old, new in zip(first, second, strict=True)]
    margins = [pair for first, second in again for pair in _margins(first, second) if abs(pair[0]) > tolerance]
    return BatchInvariance(
        prompts=len(chosen),
        responses=sum(len(one.responses) for one in chosen),
        largest_difference=max((abs(old - new) for old, new in scored if old is not None and new is not None), default=None),
        changed_rankings=sum(_sign(old) != _sign(new) for old, new in margins),
        rankings=len(margins),
        changed_failures=sum((old is None) != (new is None) for old, new in scored),
        tolerance=tolerance,
        seed=seed,
    )


def _margins(first: Rewards, second: Rewards) -> list[tuple[float, float]]:
    """Margin before and after, of every pair of responses that has both."""
    known = [(old, new) for old, new in zip(first, second, strict=True) if old is not None and new is not None]
    return [(one[0] - other[0], one[1] - other[1]) for one, other in itertools.combinations(known, 2)]


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
