"""Rewards beside human ranks, pair by pair: what every agreement metric is computed from.

A `Scored` is a comparison with one reward a response. A `PairTable` lists all its pairs as numpy arrays. A response that could not be
scored (None) makes each of its pairs a failure: such a pair counts as wrong, is never dropped and never becomes a reward of 0.
Nothing here computes a metric; see `metrics`.

P pairs.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dmoerm.errors import DataError
from dmoerm.records import Comparison, prompt_hash

__all__ = ["PairTable", "Scored", "require_same_pairs"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Scored:
    """One comparison and what a model gave its responses.

    Attributes:
        comparison: the responses and their human ranks.
        rewards: one a response, higher is better; None where the response could not be scored.

    Raises:
        DataError: the number of rewards differs from that of the responses, or a reward is not finite.
    """

    comparison: Comparison
    rewards: tuple[float | None, ...]

    def __post_init__(self) -> None:
        where = f"{self.comparison.source or 'comparison'} (id {self.comparison.id!r})"
        n_responses = len(self.comparison.responses)
        if len(self.rewards) != n_responses:
            raise DataError(f"{where}: {len(self.rewards)} rewards for {n_responses} responses; expected one each, None for a failed one.")
        for number, reward in enumerate(self.rewards, start=1):
            if reward is not None and not math.isfinite(reward):
                raise DataError(
                    f"{where}: the reward of response {number} is {reward}; expected a finite number. Give a failed response None."
                )


@dataclass(frozen=True, slots=True)
class PairTable:
    """All pairs of responses of some comparisons, sorted by comparison id, so that results do not depend on the order of the input.

    Attributes:
        comparison_ids: ids of all comparisons tabulated, sorted.
        prompt_hashes: hashes of all their prompts, sorted.
        comparison_P: comparison of each pair, an index into `comparison_ids`.
        prompt_P: its prompt, an index into `prompt_hashes`.
        category_P: its category, "" where unknown.
        chosen_P: index of the preferred response (of the first one where people tied).
        rejected_P: index of the other one.
        human_tie_P: True where people ranked both alike; such a pair has no right order.
        failed_P: True where a reward is missing.
        margin_P: reward of chosen − reward of rejected; NaN where failed.
        longer_P: 1 where the chosen response has more characters, −1 where it has fewer, 0 where they are equal.
    """

    comparison_ids: tuple[str, ...]
    prompt_hashes: tuple[str, ...]
    comparison_P: IntArray
    prompt_P: IntArray
    category_P: NDArray[np.str_]
    chosen_P: IntArray
    rejected_P: IntArray
    human_tie_P: BoolArray
    failed_P: BoolArray
    margin_P: FloatArray
    longer_P: IntArray

    @classmethod
    def of(cls, scored: "Sequence[Scored] | PairTable") -> "PairTable":
        """Tabulate every pair; a table is returned as it is.

        Raises:
            DataError: nothing is given, or two comparisons have one id.
        """
        if isinstance(scored, PairTable):
            return scored
        if not scored:
            raise DataError("No scored comparisons were given, and a metric of nothing has no value; expected at least one.")
        ordered = sorted(scored, key=lambda item: item.comparison.id)
        for before, after in itertools.pairwise(ordered):
            if before.comparison.id == after.comparison.id:
                raise DataError(f"Two scored comparisons have the id {after.comparison.id!r}; expected each one once. Remove the repeat.")
        hashes = [prompt_hash(item.comparison.prompt) for item in ordered]
        prompt_hashes, prompt_of = np.unique(np.array(hashes, dtype=np.str_), return_inverse=True)
        rows = [row for number, item in enumerate(ordered) for row in _rows(item, number, int(prompt_of[number]))]
        comparison, prompt, category, chosen, rejected, tie, margin, longer = zip(*rows, strict=True)
        margin_P = np.array(margin, dtype=np.float64)
        return cls(
            comparison_ids=tuple(item.comparison.id for item in ordered),
            prompt_hashes=tuple(prompt_hashes.tolist()),
            comparison_P=np.array(comparison, dtype=np.int64),
            prompt_P=np.array(prompt, dtype=np.int64),
            category_P=np.array(category, dtype=np.str_),
            chosen_P=np.array(chosen, dtype=np.int64),
            rejected_P=np.array(rejected, dtype=np.int64),
            human_tie_P=np.array(tie, dtype=np.bool_),
            failed_P=np.isnan(margin_P),
            margin_P=margin_P,
            longer_P=np.array(longer, dtype=np.int64),
        )

    def select(self, keep_P: BoolArray) -> "PairTable":
        """The rows where `keep_P` is True."""
        return replace(self, **{name: getattr(self, name)[keep_P] for name in self.__slots__ if name.endswith("_P")})

    def ranked(self) -> "PairTable":
        """The strictly ranked pairs.

        Raises:
            DataError: there is none.
        """
        table = self.select(~self.human_tie_P)
        if len(table) == 0:
            raise DataError(f"No strictly ranked pair among {len(self)} (the ranks tie all responses); agreement needs at least one.")
        return table

    def __len__(self) -> int:
        return len(self.margin_P)

    @property
    def correct_P(self) -> FloatArray:
        """1 where the preferred response has the higher reward, 0.5 where rewards tie, 0 where it has the lower one or one is missing."""
        return np.where(self.failed_P, 0.0, 0.5 + 0.5 * np.sign(np.nan_to_num(self.margin_P)))


_Row = tuple[int, int, str, int, int, bool, float, int]


def _rows(scored: Scored, number: int, prompt: int) -> list[_Row]:
    comparison = scored.comparison
    lengths = [len(response) for response in comparison.responses]
    rows = []
    for first, second in itertools.combinations(range(len(comparison.responses)), 2):
        chosen, rejected = (first, second) if comparison.ranks[first] <= comparison.ranks[second] else (second, first)
        margin = _margin(scored.rewards[chosen], scored.rewards[rejected])
        longer = (lengths[chosen] > lengths[rejected]) - (lengths[chosen] < lengths[rejected])
        tie = comparison.ranks[first] == comparison.ranks[second]
        rows.append((number, prompt, comparison.category or "", chosen, rejected, tie, margin, longer))
    return rows


def _margin(chosen: float | None, rejected: float | None) -> float:
    return math.nan if chosen is None or rejected is None else float(chosen) - float(rejected)


def require_same_pairs(first: PairTable, second: PairTable, what: str) -> None:
    """Refuse to pair two models that did not score the same comparisons.

    Args:
        first: pairs of one model.
        second: pairs of the other.
        what: the calculation, for the message.

    Raises:
        DataError: the ids, prompts or ranks differ.
    """
    apart = set(first.comparison_ids) ^ set(second.comparison_ids)
    if apart:
        raise DataError(
            f"{what}: the models scored different comparisons ({len(apart)} ids are in one only, such as {min(apart)!r}). "
            "Score the same file with both, and give a failed response None instead of leaving it out."
        )
    columns = ("comparison_P", "prompt_P", "chosen_P", "rejected_P", "human_tie_P", "longer_P")
    same = first.prompt_hashes == second.prompt_hashes and len(first) == len(second)
    if not same or not all(np.array_equal(getattr(first, name), getattr(second, name)) for name in columns):
        raise DataError(f"{what}: comparisons of one id differ in prompt, responses or ranks. Score the same file with both models.")
