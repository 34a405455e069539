"""How alike two reward models order the responses to a prompt: rank correlation within prompts, with intervals over prompts.

Every figure speaks of one model beside a reference (the teacher). Prompts whose responses the reference rewards all alike say nothing and
are left out; a prompt that the other model rewards all alike counts as a correlation of 0, for it has found no order.

N responses.
Source: Kendall's τ_b and Spearman's ρ with ties (Kendall, Rank Correlation Methods, 1948).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmoerm.errors import DataError
from dmoerm.evaluation.bootstrap import Resampling, bootstrap_interval

__all__ = ["Figure", "RankAgreement", "kendall_difference", "kendall_tau", "rank_agreement", "spearman_rho"]

Scores = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its interval over prompts."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, slots=True)
class RankAgreement:
    """One model beside the reference.

    Attributes:
        n_prompts: prompts that count.
        n_pairs: pairs of responses that the reference tells apart.
        failures: responses that one of the two could not score; they are left out.
        kendall: τ_b within a prompt, averaged over prompts, −1 to 1.
        spearman: ρ, likewise.
        agreement: share of the pairs that both order alike; a tie of the other model counts half.
        margin_r2: share of the variance of the reference's rewards within prompts that the model's rewards explain as they are: 1 is
            equal margins, 0 no better than none, negative worse.
    """

    n_prompts: int
    n_pairs: int
    failures: int
    kendall: Figure
    spearman: Figure
    agreement: Figure
    margin_r2: Figure

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float:
    """τ_b of two lists of scores, −1 to 1; 0 where one of them has one value only."""
    signs_a, signs_b = _signs(a), _signs(b)
    return _cosine(signs_a.ravel(), signs_b.ravel())


def spearman_rho(a: Sequence[float], b: Sequence[float]) -> float:
    """ρ of two lists of scores, tied ones at their mean rank, −1 to 1; 0 where one of them has one value only."""
    return _cosine(_signs(a).sum(1), _signs(b).sum(1))  # the sum of signs is the rank, centred and doubled


def rank_agreement(reference: Sequence[Scores], other: Sequence[Scores], resampling: Resampling | None = None) -> RankAgreement:
    """Compare two models on the same prompts.

    Args:
        reference: the teacher's rewards by prompt; None where a response could not be scored.
        other: the other model's, in the same order.
        resampling: of the intervals.

    Raises:
        DataError: no prompt counts.
    """
    rows, failures = [], 0
    for known, found in zip(reference, other, strict=True):
        pairs = _both(known, found)
        failures += len(known) - len(pairs)
        if len({a for a, _ in pairs}) > 1:
            rows.append(_of_prompt([a for a, _ in pairs], [b for _, b in pairs]))
    if not rows:
        raise DataError("no held-out prompt has two responses that the teacher tells apart, so nothing can be compared")
    sums = np.array(rows, dtype=np.float64)

    def figure(top: int, bottom: int, turned: bool = False) -> Figure:
        def statistic(totals: NDArray[np.float64]) -> NDArray[np.float64]:
            share: NDArray[np.float64] = totals[:, top] / totals[:, bottom]
            return 1.0 - share if turned else share

        return Figure(float(statistic(sums.sum(0, keepdims=True))[0]), *bootstrap_interval(sums, statistic, resampling))

    return RankAgreement(
        n_prompts=len(rows),
        n_pairs=int(sums[:, 4].sum()),
        failures=failures,
        kendall=figure(0, 2),
        spearman=figure(1, 2),
        agreement=figure(3, 4),
        margin_r2=figure(5, 6, turned=True),
    )


def kendall_difference(
    reference: Sequence[Scores], first: Sequence[Scores], second: Sequence[Scores], resampling: Resampling | None = None
) -> Figure:
    """τ_b of `first` less that of `second`, averaged over the prompts that count for both; paired, so the interval is of the difference.

    Raises:
        DataError: no prompt counts.
    """
    rows = []
    for known, *found in zip(reference, first, second, strict=True):
        both = [_both(known, scores) for scores in found]
        if all(len({a for a, _ in pairs}) > 1 for pairs in both):
            ahead, behind = (kendall_tau([a for a, _ in pairs], [b for _, b in pairs]) for pairs in both)
            rows.append([ahead - behind, 1.0])
    if not rows:
        raise DataError("no held-out prompt has two responses that the teacher tells apart, so nothing can be compared")
    sums = np.array(rows, dtype=np.float64)

    def mean(totals: NDArray[np.float64]) -> NDArray[np.float64]:
        quotient: NDArray[np.float64] = totals[:, 0] / totals[:, 1]
        return quotient

    return Figure(float(mean(sums.sum(0, keepdims=True))[0]), *bootstrap_interval(sums, mean, resampling))


def _of_prompt(known: list[float], found: list[float]) -> list[float]:
    """τ, ρ, 1 (a prompt), pairs ordered alike, pairs, squared error of centred rewards, squared centred rewards of the reference."""
    upper = np.triu_indices(len(known), 1)
    signs_a, signs_b = _signs(known)[upper], _signs(found)[upper]
    told = signs_a != 0
    alike = (signs_a[told] == signs_b[told]).sum() + 0.5 * (signs_b[told] == 0).sum()
    centred_a, centred_b = (np.array(values) - np.mean(values) for values in (known, found))
    # Over n - 1, as in training: a prompt with many responses is one prompt.
    error, variance = (float((values**2).sum()) / (len(known) - 1) for values in (centred_a - centred_b, centred_a))
    return [kendall_tau(known, found), spearman_rho(known, found), 1.0, float(alike), float(told.sum()), error, variance]


def _both(known: Scores, found: Scores) -> list[tuple[float, float]]:
    return [(a, b) for a, b in zip(known, found, strict=True) if a is not None and b is not None]


def _signs(values: Sequence[float]) -> NDArray[np.float64]:
    """1 where response i has more than response j, −1 where less, shape (N, N)."""
    array = np.asarray(values, dtype=np.float64)
    signs: NDArray[np.float64] = np.sign(array[:, None] - array[None, :])
    return signs


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    length = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / length if length > 0 else 0.0
