"""A share with a 95 % interval that knows that pairs of one prompt are not independent.

A Wilson interval at the effective number of draws: the n at which a plain binomial would vary as much as this share does over prompts.
It has a width at 0 and 1 as well, where a bootstrap has none, and costs one pass; the doctor needs hundreds of them.

Sources: Wilson (1927) for the interval; Cochran, Sampling Techniques (1977), chapter 6, for the variance of a ratio over clusters;
Korn & Graubard (Survey Methodology, 1998) for the effective sample size in a binomial interval.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Share", "share_of"]

_Z = 1.959963984540054
"""The normal quantile of a 95 % interval."""


@dataclass(frozen=True, slots=True)
class Share:
    """A share of `n` things (pairs, labels …) that come from `n_prompts` prompts, with its 95 % interval; all three between 0 and 1."""

    value: float
    low: float
    high: float
    n: int
    n_prompts: int

    def away_from_half(self, distance: float) -> bool:
        """Is the whole interval above one half, or below it, and the share itself at least `distance` away?"""
        return (self.low > 0.5 or self.high < 0.5) and abs(self.value - 0.5) >= distance


def share_of(hits: ArrayLike, prompts: ArrayLike) -> Share | None:
    """The share of hits.

    Args:
        hits: 1 or True for a hit, 0 for none, 0.5 for half a one (a tie), one a thing.
        prompts: the prompt of each, as whole numbers.

    Returns:
        None where there is nothing to count.
    """
    hit_P = np.asarray(hits, dtype=np.float64)
    if not len(hit_P):
        return None
    _, prompt_P = np.unique(np.asarray(prompts), return_inverse=True)
    size_G: NDArray[np.float64] = np.bincount(prompt_P).astype(np.float64)
    value = float(hit_P.mean())
    drawn = _effective_size(value, np.bincount(prompt_P, weights=hit_P) - value * size_G, len(hit_P))
    low, high = _wilson(value, drawn)
    return Share(value, low, high, len(hit_P), len(size_G))


def _effective_size(value: float, residual_G: NDArray[np.float64], n: int) -> float:
    groups = len(residual_G)
    if groups == 1:
        return 1.0
    variance = float((residual_G**2).sum()) / n**2 * groups / (groups - 1)
    if variance == 0.0:  # every prompt has the same share, as with 0 and 1: each prompt counts as one draw
        return float(groups)
    return min(float(n), max(1.0, value * (1.0 - value) / variance))


def _wilson(value: float, n: float) -> tuple[float, float]:
    denominator = 1.0 + _Z**2 / n
    centre = (value + _Z**2 / (2.0 * n)) / denominator
    half = _Z / denominator * (value * (1.0 - value) / n + _Z**2 / (4.0 * n**2)) ** 0.5
    # Rounding may leave 0 and 1 a hair inside their interval.
    return max(0.0, min(centre - half, value)), min(1.0, max(centre + half, value))
