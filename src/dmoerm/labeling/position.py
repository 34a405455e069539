"""Position bias and noise of a judge, from verdicts in both presentation orders; no other truth is needed.

The model. One response is better. With probability b the judge names the one shown first, whatever it says; otherwise it names the better
one, but the wrong one with probability e, independently in each order. With p = b + (1 - b)(1 - e), the chance that it names the first
shown where that is the better one, and q = b + (1 - b)e where it is the worse one, two orders come out as

    first shown twice      f = p q
    second shown twice     s = (1 - p)(1 - q) = (1 - b)² e (1 - e)
    one response twice     1 - f - s, whichever of the two is the better one

so that f - s = p + q - 1 = b, and e(1 - e) = s / (1 - b)², of which e is the root below one half. Two free shares, two unknowns: both are
identified, and these are their maximum-likelihood values. A judge that leans to the second place has b < 0: mirror f and s.

What rests on what:

- b needs no model: f - s is, by counting, how much more often than half the first place is named, times two. Noise does not move it.
- e needs the independence of the two orders, and one e for all pairs. Over pairs of unlike difficulty e(1 - e) is their mean. A wrong
  opinion that the judge holds in both orders is no noise: only people's ranks show it.
- Pairs with "no difference" in either order are an outcome of their own and left out here; nothing changes as long as they come
  independently of the order.

With people's ranks: a verdict names people's choice with probability |b|/2 + (1 - |b|)(1 - h), which gives h, its noise against people.
Of that, e is noise between orders, and d in h = e + d(1 - 2e) the share of pairs on which its settled opinion is not theirs.

A label is kept where both orders name one response. Some of these are slips in both: w / (w + r) of them, with w = q (1 - p) and
r = p (1 - q).

Intervals: draws over prompts (`draws`), with about half a pair more of each outcome (the Jeffreys prior), so that an outcome that was
never seen still leaves a width.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmoerm.data.doctor.share import Share, share_of
from dmoerm.labeling.draws import Draws, Figure, FloatArray, IntArray, figure

__all__ = ["PositionBias", "bias_and_noise", "label_slips", "position_bias"]

ENOUGH_PAIRS = 5
"""Pairs with two named responses below which neither bias nor noise is given."""


@dataclass(frozen=True, slots=True)
class PositionBias:
    """What two orders say about a judge; None where there is too little to say it from.

    Attributes:
        changed: share of the pairs with two named responses that name another one in each order.
        to_first: of those, the share that name the response shown first both times; one half where position plays no part.
            Neither of these two rests on the model.
        bias: b, from -1 (the second shown always) over 0 to 1 (the first shown always).
        noise: e, from 0 to 0.5, which is guessing.
        slips: the share of the kept labels that are slips in both orders, 0 to 0.5.
        noise_against_people: h, from 0 to 1.
        settled_against_people: d, from 0 to 1.
    """

    changed: Share | None
    to_first: Share | None
    bias: Figure | None
    noise: Figure | None
    slips: Figure | None
    noise_against_people: Figure | None
    settled_against_people: Figure | None


def bias_and_noise(to_first: ArrayLike, to_second: ArrayLike, settled: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """The bias b and the noise e from counts (or shares) of the three outcomes.

    Args:
        to_first: pairs that name the first shown twice.
        to_second: pairs that name the second shown twice.
        settled: pairs that name one response twice.

    Returns:
        b in -1 to 1, and e in 0 to 0.5; NaN where there is no pair, and e also where position decides all.
    """
    first, second, same = (np.asarray(counts, dtype=np.float64) for counts in (to_first, to_second, settled))
    with np.errstate(invalid="ignore", divide="ignore"):
        n = first + second + same
        bias = (first - second) / n
        product = np.minimum(first, second) / n / (1.0 - np.abs(bias)) ** 2
        # More changes than guessing would make can only be chance, or orders that are not independent.
        noise = 0.5 * (1.0 - np.sqrt(np.maximum(0.0, 1.0 - 4.0 * product)))
    return bias, noise


def label_slips(bias: ArrayLike, noise: ArrayLike) -> FloatArray:
    """The share of the kept labels that both orders got wrong; NaN where position decides all and no label is kept."""
    size, e = np.abs(np.asarray(bias, dtype=np.float64)), np.asarray(noise, dtype=np.float64)
    wrong, right = e * (size + (1.0 - size) * e), (1.0 - e) * (size + (1.0 - size) * (1.0 - e))
    slips: FloatArray = wrong / (wrong + right)
    return slips


def position_bias(first_Q: IntArray, second_Q: IntArray, people_Q: IntArray, prompts_Q: IntArray, draws: Draws) -> PositionBias:
    """Bias and noise from pairs that were judged in both orders.

    Args:
        first_Q: verdicts with the pair's first response shown first; 1, -1 or 0.
        second_Q: verdicts with its second response shown first.
        people_Q: what people prefer; 1, -1, and 0 where they tie or nobody asked them.
        prompts_Q: the prompt of each, as whole numbers.
        draws: how intervals are drawn.
    """
    named_Q = (first_Q != 0) & (second_Q != 0)
    first, second, people, prompts = first_Q[named_Q], second_Q[named_Q], people_Q[named_Q], prompts_Q[named_Q]
    changed = first != second
    outcomes = np.stack([(first == 1) & changed, (first == -1) & changed, ~changed], axis=1)
    ranked = people != 0
    right = ~changed & (first == people)
    against_outcomes = np.column_stack([outcomes[:, :2], right, ~changed & ~right])[ranked]
    return PositionBias(
        share_of(changed, prompts),
        share_of(first[changed] == 1, prompts[changed]),
        *_estimates(outcomes, prompts, draws),
        *_against_people(against_outcomes, prompts[ranked], draws),
    )


def _estimates(outcomes: NDArray[np.bool_], prompts: IntArray, draws: Draws) -> tuple[Figure | None, Figure | None, Figure | None]:
    if len(outcomes) < ENOUGH_PAIRS:
        return None, None, None
    sums, drawn = outcomes.sum(axis=0), _drawn(outcomes, prompts, draws)
    (bias, noise), (bias_S, noise_S) = bias_and_noise(*sums), bias_and_noise(*drawn.T)
    _, unbiased_S = bias_and_noise((drawn[:, 0] + drawn[:, 1]) / 2.0, (drawn[:, 0] + drawn[:, 1]) / 2.0, drawn[:, 2])
    found = figure(float(bias), bias_S, prompts)
    return (
        found,
        _widened(figure(float(noise), noise_S, prompts), found, unbiased_S),
        figure(float(label_slips(bias, noise)), label_slips(bias_S, noise_S), prompts),
    )


def _against_people(outcomes: NDArray[np.bool_], prompts: IntArray, draws: Draws) -> tuple[Figure | None, Figure | None]:
    """The noise against people and the settled part of it; the third outcome is twice people's choice, the fourth twice the other."""
    if len(outcomes) < ENOUGH_PAIRS:
        return None, None
    sums, drawn = outcomes.sum(axis=0).astype(np.float64), _drawn(outcomes, prompts, draws)
    (bias, against, settled), (bias_S, against_S, settled_S) = _people_figures(sums), _people_figures(drawn)
    unbiased_S = (drawn[:, 0] / 2.0 + drawn[:, 1] / 2.0 + drawn[:, 3]) / drawn.sum(axis=1)
    found = _widened(figure(float(against), against_S, prompts), figure(float(bias), bias_S, prompts), unbiased_S)
    return found, figure(float(settled), settled_S, prompts)


def _people_figures(sums: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    first, second, right, wrong = np.moveaxis(sums, -1, 0)
    bias, noise = bias_and_noise(first, second, right + wrong)
    size = np.abs(bias)
    with np.errstate(invalid="ignore", divide="ignore"):
        named = (first / 2.0 + second / 2.0 + right) / sums.sum(axis=-1)
        # To twelve places: where there is no noise, rounding would leave some.
        against = np.round(1.0 - (named - size / 2.0) / (1.0 - size), 12)
        settled = np.where(noise < 0.5, (against - noise) / (1.0 - 2.0 * noise), np.nan)
    return bias, np.clip(against, 0.0, 1.0), np.clip(settled, 0.0, 1.0)


def _widened(noise: Figure | None, bias: Figure | None, unbiased_S: FloatArray) -> Figure | None:
    """Where the judge may have no bias at all, its interval also reaches as far as that of a judge without one.

    By chance one place is always named more often; what is laid to that bias is missing in the noise.
    """
    if noise is None or bias is None or bias.apart_from(0.0):
        return noise
    return replace(noise, high=max(noise.high, float(np.nanquantile(unbiased_S, 0.975))))


def _drawn(outcomes: NDArray[np.bool_], prompts: IntArray, draws: Draws) -> FloatArray:
    prior = np.random.default_rng(draws.seed + 1).standard_gamma(0.5, (draws.samples, outcomes.shape[1]))
    return draws.sums(outcomes, prompts) + prior
