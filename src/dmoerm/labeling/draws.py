"""Intervals of figures that are no plain share: differences, ratios of ratios, alpha.

A Bayesian bootstrap over prompts: each draw gives every prompt, with all that belongs to it, an exponential weight. Unlike a draw with
replacement it never leaves a group empty, so it serves the small groups that labels come in. Plain shares take
`dmoerm.data.doctor.share`, which needs no draws.

Q questions, G prompts, C sums, S draws.

Source: Rubin, The Bayesian Bootstrap (Annals of Statistics 9, 1981).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Draws", "Figure", "FloatArray", "IntArray", "figure", "share_difference"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with its 95 % interval over prompts; from `n` things of `n_prompts` prompts."""

    value: float
    low: float
    high: float
    n: int
    n_prompts: int

    def apart_from(self, value: float) -> bool:
        """Is `value` outside the interval?"""
        return value < self.low or value > self.high


@dataclass(frozen=True, slots=True)
class Draws:
    """How intervals are drawn: the same seed and data give the same interval.

    Attributes:
        seed: of the weights.
        samples: number of draws.
    """

    seed: int = 0
    samples: int = 1000

    def sums(self, columns_QC: ArrayLike, prompts_Q: ArrayLike) -> FloatArray:
        """Weighted sums of the columns, shape (S, C): one weight a prompt and draw, 1 on average."""
        columns = np.asarray(columns_QC, dtype=np.float64)
        _, prompt_Q = np.unique(np.asarray(prompts_Q), return_inverse=True)
        sums_GC = np.stack([np.bincount(prompt_Q, weights=column) for column in columns.T], axis=1)
        rng, left, chunks = np.random.default_rng(self.seed), self.samples, []
        while left > 0:
            size = min(left, max(1, _CELLS_AT_ONCE // len(sums_GC)))
            chunks.append(rng.standard_exponential((size, len(sums_GC)), dtype=np.float32).astype(np.float64) @ sums_GC)
            left -= size
        return np.concatenate(chunks)


def figure(value: float, draws_S: FloatArray, prompts_Q: ArrayLike) -> Figure | None:
    """The figure with the percentile interval of its draws; None where it is undefined, or comes from one prompt and has no interval.

    Args:
        value: the figure, NaN where undefined.
        draws_S: the same of each draw; NaN where undefined, such draws are left out.
        prompts_Q: the prompt of each thing that it comes from.
    """
    prompts = np.asarray(prompts_Q)
    defined_S = draws_S[~np.isnan(draws_S)]
    n_prompts = len(np.unique(prompts))
    if np.isnan(value) or not len(defined_S) or n_prompts < 2:
        return None
    low, high = np.quantile(defined_S, [0.025, 0.975])
    # A prior in the draws may keep them off an end that the data reach.
    return Figure(float(value), min(float(low), value), max(float(high), value), len(prompts), n_prompts)


def share_difference(
    one_Q: ArrayLike, one_prompts_Q: ArrayLike, other_Q: ArrayLike, other_prompts_Q: ArrayLike, draws: Draws
) -> Figure | None:
    """A share of hits minus another, paired: a prompt has the same weight in both. None where one of them is of nothing."""
    one, other = np.asarray(one_Q, dtype=np.float64), np.asarray(other_Q, dtype=np.float64)
    if not len(one) or not len(other):
        return None
    columns = np.zeros((len(one) + len(other), 4))
    columns[: len(one), 0], columns[: len(one), 1] = one, 1.0
    columns[len(one) :, 2], columns[len(one) :, 3] = other, 1.0
    prompts = np.concatenate([np.asarray(one_prompts_Q), np.asarray(other_prompts_Q)])
    sums = draws.sums(columns, prompts)
    return figure(float(one.mean() - other.mean()), sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3], prompts)
