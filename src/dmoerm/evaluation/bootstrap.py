"""Percentile bootstrap over prompts.

Pairs of one prompt are not independent, so prompts are drawn, each with all its pairs. Every metric here is a function of sums over
prompts: a draw is then a vector of counts times a matrix of sums, and thousands of draws are one matrix product.

The interval says how the figure would move with other prompts; it knows nothing of other training seeds, and it is too narrow below
about 30 prompts (with all pairs right, it has no width at all). Reports mark such figures.

G prompts, C sums a prompt, S bootstrap samples.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmoerm.errors import ConfigError, DataError

__all__ = ["FEW_PROMPTS", "Resampling", "bootstrap_interval", "resampled_sums"]

FloatArray = NDArray[np.float64]

FEW_PROMPTS = 30
"""Below this number of prompts a percentile interval is known to be too narrow."""

_CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True)
class Resampling:
    """How intervals are made.

    Attributes:
        seed: of the draws; the same seed and data give the same interval.
        samples: number of draws, at least 100.
        confidence: mass of the interval, between 0 and 1.

    Raises:
        ConfigError: a value is out of range.
    """

    seed: int = 0
    samples: int = 2000
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.samples < 100:
            raise ConfigError(f"bootstrap samples: {self.samples}; expected at least 100 (2000 is usual).")
        if not 0.0 < self.confidence < 1.0:
            raise ConfigError(f"confidence: {self.confidence}; expected a number between 0 and 1, such as 0.95.")


def bootstrap_interval(
    sums_GC: FloatArray, statistic: Callable[[FloatArray], FloatArray], resampling: Resampling | None = None, *, recentre: bool = False
) -> tuple[float, float]:
    """Percentile interval of a statistic of sums over prompts.

    Args:
        sums_GC: what each prompt adds to each sum, shape (G, C).
        statistic: from summed columns, shape (S, C), to values, shape (S,). NaN where a draw leaves the statistic undefined (none of its
            prompts has a needed pair); such draws are left out.
        resampling: seed, number of draws and confidence.
        recentre: shift the interval by the bias that the draws show. For statistics such as the calibration error, a sum of absolute
            values that grows with resampling noise and would else lie outside its own interval.

    Returns:
        Lower and upper end, in the unit of the statistic.

    Raises:
        DataError: there is no prompt, or the statistic is undefined in every draw.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    resampling = resampling or Resampling()
    n_prompts = len(sums_GC)
    if n_prompts == 0:
        raise DataError("No prompts to resample; expected at least one.")
    draws_S = np.concatenate([_evaluate(statistic, totals_SC) for totals_SC in _resampled_sums(sums_GC, resampling)])
    defined = draws_S[~np.isnan(draws_S)]
    if len(defined) == 0:
        raise DataError(
            f"The statistic is undefined in all {resampling.samples} bootstrap samples of {n_prompts} prompts; give more prompts."
        )
    tail = (1.0 - resampling.confidence) / 2.0
    low, high = np.quantile(defined, [tail, 1.0 - tail])
    bias = float(defined.mean() - _evaluate(statistic, sums_GC.sum(axis=0, keepdims=True))[0]) if recentre else 0.0
    return float(low) - bias, float(high) - bias


def resampled_sums(sums_GC: FloatArray, resampling: Resampling) -> FloatArray:
    """The sums of every draw, shape (S, C), for statistics that need more than one column of results; each draw holds G prompts.

    Raises:
        DataError: there is no prompt.
    """
    if len(sums_GC) == 0:
        raise DataError("No prompts to resample; expected at least one.")
    return np.concatenate(_resampled_sums(sums_GC, resampling))


def _evaluate(statistic: Callable[[FloatArray], FloatArray], totals_SC: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return statistic(totals_SC)


def _resampled_sums(sums_GC: FloatArray, resampling: Resampling) -> list[FloatArray]:
    # In chunks of draws, since the counts of all of them at once would take samples * prompts * 8 bytes.
    rng = np.random.default_rng(resampling.seed)
    n_prompts, left, chunks = len(sums_GC), resampling.samples, []
    while left > 0:
        size = min(left, max(1, _CELLS_AT_ONCE // n_prompts))
        drawn_SG = rng.integers(0, n_prompts, size=(size, n_prompts)) + np.arange(size)[:, None] * n_prompts
        counts_SG = np.bincount(drawn_SG.ravel(), minlength=size * n_prompts).reshape(size, n_prompts)
        chunks.append(counts_SG @ sums_GC)
        left -= size
    return chunks
