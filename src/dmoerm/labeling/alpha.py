"""Krippendorff's alpha: agreement of any number of judges beyond chance, with answers missing here and there.

Alpha is 1 for full agreement, 0 for what chance alone would give, and below 0 for agreement that is worse. Values are nominal: "the first
one", "the second one" and "no difference" are equally far from each other.

Which response of a pair is called the first is arbitrary, but alpha is not indifferent to it: where files put the better one first, nearly
all values are 1, chance alone explains much, and alpha is low however well the judges agree. So `alpha_figure` and `alpha_difference` take
each unit together with its mirror image, in which the two responses have changed names.

U units (one pair of responses on one capability), V values, S draws.

Source: Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C; Content Analysis (2004), chapter 11.
"""

import numpy as np
from numpy.typing import ArrayLike

from dmoerm.labeling.draws import Draws, Figure, FloatArray, IntArray, figure

__all__ = ["alpha_difference", "alpha_figure", "krippendorff_alpha", "value_counts"]


def krippendorff_alpha(counts_UV: ArrayLike) -> float:
    """Alpha for nominal values.

    Args:
        counts_UV: how many judges gave unit u the value v. Units with fewer than two values are left out, as there is nothing to compare.

    Returns:
        At most 1; NaN where fewer than two values are left, or all are the same, so that there is no disagreement to expect.
    """
    return float(_alpha(_unit_sums(np.asarray(counts_UV, dtype=np.float64)).sum(axis=0)))


def alpha_figure(counts_UV: ArrayLike, prompts_U: IntArray, draws: Draws) -> Figure | None:
    """Alpha of units and mirror images, with an interval over prompts; None where undefined.

    Args:
        counts_UV: from `value_counts`. Units with fewer than two values are left out; `n` of the figure are the others.
        prompts_U: the prompt of each.
        draws: how intervals are drawn.
    """
    counts, prompts = _comparable(counts_UV, prompts_U)
    if not len(counts):
        return None
    sums = _mirrored_sums(counts)
    return figure(float(_alpha(sums.sum(axis=0))), _alpha(draws.sums(sums, prompts)), prompts)


def alpha_difference(
    one_UV: ArrayLike, one_prompts_U: IntArray, other_UV: ArrayLike, other_prompts_U: IntArray, draws: Draws
) -> Figure | None:
    """Alpha of one set of units minus alpha of another; their prompts are weighted alike in each draw."""
    one, one_prompts = _comparable(one_UV, one_prompts_U)
    other, other_prompts = _comparable(other_UV, other_prompts_U)
    if not len(one) or not len(other):
        return None
    one_sums, other_sums = _mirrored_sums(one), _mirrored_sums(other)
    width, prompts = one_sums.shape[1], np.concatenate([one_prompts, other_prompts])
    columns = np.zeros((len(prompts), width + other_sums.shape[1]))
    columns[: len(one), :width], columns[len(one) :, width:] = one_sums, other_sums
    drawn = draws.sums(columns, prompts)
    value = _alpha(one_sums.sum(axis=0)) - _alpha(other_sums.sum(axis=0))
    return figure(float(value), _alpha(drawn[:, :width]) - _alpha(drawn[:, width:]), prompts)


def value_counts(values_UJ: ArrayLike) -> FloatArray:
    """How many judges said 1, 0 and -1, shape (U, 3); anything else is a missing answer."""
    given = np.asarray(values_UJ)
    return np.stack([(given == value).sum(axis=1) for value in (1, 0, -1)], axis=1).astype(np.float64)


def _comparable(counts_UV: ArrayLike, prompts_U: IntArray) -> tuple[FloatArray, IntArray]:
    counts = np.asarray(counts_UV, dtype=np.float64)
    keep = counts.sum(axis=1) >= 2
    return counts[keep], np.asarray(prompts_U)[keep]


def _unit_sums(counts_UV: FloatArray) -> FloatArray:
    """What a unit adds: its pairs of equal values over (m - 1), m being its values, and how often each value occurs in it."""
    m_U = counts_UV.sum(axis=1)
    keep_U = m_U >= 2
    counts, m = counts_UV[keep_U], m_U[keep_U]
    same = (counts * (counts - 1.0)).sum(axis=1) / (m - 1.0)
    return np.column_stack([same, counts])


def _mirrored_sums(counts_UV: FloatArray) -> FloatArray:
    return _unit_sums(counts_UV) + _unit_sums(counts_UV[:, ::-1])


def _alpha(sums: FloatArray) -> FloatArray:
    """Alpha from sums over units: 1 - observed disagreement / expected disagreement, written without either."""
    same, totals = sums[..., 0], sums[..., 1:]
    n = totals.sum(axis=-1)
    by_chance = (totals * (totals - 1.0)).sum(axis=-1)
    expected = n * (n - 1.0) - by_chance
    with np.errstate(invalid="ignore", divide="ignore"):
        alpha: FloatArray = np.where(expected > 1e-9, ((n - 1.0) * same - by_chance) / expected, np.nan)
    return alpha
