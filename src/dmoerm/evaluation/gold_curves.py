"""Gold and proxy against KL: the mean curve, its peak, the fall after it, the fit, each with an interval over prompts.

A curve comes from best-of-n (its setting is n) or from the KL-regularised optimum (its setting is β). d = √KL, and the gold gain over the
unoptimised policy is fitted as

    best-of-n   R(d) = d (α − β d)
    RL          R(d) = d (α − β log d)

after Gao, Schulman & Hilton 2022 (arXiv 2210.10760): α is how fast gold rises at first, β how soon it turns. Points are weighted by
the inverse variance of their mean gain. Neighbouring points share their prompts, so the uncertainty of α and β comes from refitting draws
of prompts, never from the residuals. The forms were found for sampled language models; `misfit` says how well they describe a finite pool.

All curves of one call are drawn on the same prompts, so their differences are paired.

G prompts, N settings, S bootstrap draws, U members of a pool.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dmoerm.errors import DataError
from dmoerm.evaluation.bootstrap import Resampling, resampled_sums
from dmoerm.evaluation.scorers import Rewards

__all__ = [
    "Fit",
    "Form",
    "GoldCurve",
    "Interval",
    "Point",
    "PromptCurves",
    "fit_gain",
    "fit_weights",
    "gold_curves",
    "standardised_rewards",
]

FloatArray = NDArray[np.float64]

Form = Literal["best_of_n", "rl"]

_NO_KL = 1e-12
"""Nats that are rounding."""

_ROUNDING = 1e-12
"""Of gold scores, as a share of the largest."""

_FARTHEST_D = 1000.0
"""√nats; a fitted peak beyond is no peak."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with the ends of its interval over prompts."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class PromptCurves:
    """What one reward picks on every prompt, under every setting; the first setting is the policy as it is.

    Attributes:
        settings_N: n, or β (infinite for the policy as it is, 0 for the single best response).
        kl_GN: nats.
        gold_GN: expected gold score.
        proxy_GN: expected reward, standardised; NaN where no response to the prompt has a reward.
    """

    settings_N: FloatArray
    kl_GN: FloatArray
    gold_GN: FloatArray
    proxy_GN: FloatArray


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of a curve: means over prompts.

    Attributes:
        setting: n, or β.
        kl: nats.
        proxy: mean standardised reward; None where there is none.
        gold: mean gold score with its interval.
    """

    setting: float
    kl: float
    proxy: float | None
    gold: Interval


@dataclass(frozen=True, slots=True)
class Fit:
    """R(d) = d (α − β d) or d (α − β log d).

    Attributes:
        form: which of them.
        alpha: gain a √nat at first.
        beta: how it turns.
        misfit: root mean square of the residuals, units of gold.
        peak_kl: where the fitted gain is highest, nats; None where it never turns. May lie beyond the data.
    """

    form: Form
    alpha: Interval
    beta: Interval
    misfit: float
    peak_kl: float | None


@dataclass(frozen=True, slots=True)
class GoldCurve:
    """One row of a study.

    Attributes:
        name: of the reward.
        points: the curve.
        peak: the point with the highest mean gold; the first of equal ones.
        peak_setting: n (or β) there, with the interval of where the peaks of the draws are.
        peak_kl: the same of KL.
        fall: gold at the last point minus gold at `peak`, that point held fixed in every draw; 0 where the peak is the last point.
        turns: share of the draws whose last point is below their peak.
        gain: gold at `peak` minus gold of the policy as it is.
        peak_difference: gold at the own peak minus that of the reference at its peak (both held fixed); None for the reference.
        end_difference: gold at the last point minus that of the reference; None for the reference.
        fit: None where there are fewer than two points with KL above 0.
        responses: members of all pools.
        failed: of them without a reward.
    """

    name: str
    points: tuple[Point, ...]
    peak: Point
    peak_setting: Interval
    peak_kl: Interval
    fall: Interval
    turns: float
    gain: Interval
    peak_difference: Interval | None
    end_difference: Interval | None
    fit: Fit | None
    responses: int
    failed: int


def gold_curves(
    curves: Mapping[str, PromptCurves],
    form: Form,
    *,
    reference: str,
    resampling: Resampling,
    counts: Mapping[str, tuple[int, int]] | None = None,
) -> list[GoldCurve]:
    """Mean curves with their figures.

    Args:
        curves: by name, all on the same prompts.
        form: what is fitted.
        reference: the row that the differences are taken to.
        resampling: how intervals are drawn.
        counts: by name, responses and how many of them have no reward.

    Raises:
        DataError: no curves or prompts, or curves over different numbers of prompts.
    """
    sizes = {len(found.gold_GN) for found in curves.values()}
    if len(sizes) != 1:
        raise DataError(
            f"gold curves: {len(curves)} curves over {sorted(sizes)} prompts; expected at least one, all over the same prompts."
        )
    (prompts,) = sizes
    stacked_GC = np.concatenate([part for found in curves.values() for part in (found.gold_GN, found.kl_GN)], axis=1)
    drawn_SC = resampled_sums(stacked_GC, resampling) / max(prompts, 1)
    rows, first = [], 0
    for name, found in curves.items():
        size = len(found.settings_N)
        rows.append(_Row(name, found, drawn_SC[:, first : first + size], drawn_SC[:, first + size : first + 2 * size], resampling))
        first += 2 * size
    base = next(row for row in rows if row.name == reference)
    return [row.summary(form, base, (counts or {}).get(row.name, (0, 0))) for row in rows]


class _Row:
    """A curve with its draws."""

    def __init__(self, name: str, curves: PromptCurves, gold_SN: FloatArray, kl_SN: FloatArray, resampling: Resampling) -> None:
        self.name = name
        self._curves, self._gold_SN, self._kl_SN = curves, gold_SN, kl_SN
        self._gold_N, self._kl_N = curves.gold_GN.mean(axis=0), curves.kl_GN.mean(axis=0)
        self._proxy_N = _mean_of_known(curves.proxy_GN)
        self._tail = (1.0 - resampling.confidence) / 2.0
        self._slack = _ROUNDING * float(np.abs(curves.gold_GN).max())
        self._peak = int(_first_highest(self._gold_N[None], self._slack)[0])

    def summary(self, form: Form, base: "_Row", counts: tuple[int, int]) -> GoldCurve:
        peaks_S = _first_highest(self._gold_SN, self._slack)
        points = tuple(
            Point(float(setting), float(self._kl_N[index]), _known(self._proxy_N[index]), self._gold_at(index))
            for index, setting in enumerate(self._curves.settings_N)
        )
        settings_N = self._curves.settings_N
        kl_at_peak_S = np.take_along_axis(self._kl_SN, peaks_S[:, None], axis=1)[:, 0]
        return GoldCurve(
            name=self.name,
            points=points,
            peak=points[self._peak],
            peak_setting=self._of_settings(float(settings_N[self._peak]), settings_N[peaks_S]),
            peak_kl=self._of(float(self._kl_N[self._peak]), kl_at_peak_S),
            fall=self._change(self._peak, len(points) - 1),
            turns=float(np.mean(self._gold_SN[:, -1] < self._gold_SN.max(axis=1) - self._slack)),
            gain=self._change(0, self._peak),
            peak_difference=None if base is self else self._minus(base, self._peak, base._peak),
            end_difference=None if base is self else self._minus(base, -1, -1),
            fit=self._fit(form),
            responses=counts[0],
            failed=counts[1],
        )

    def _gold_at(self, index: int) -> Interval:
        return self._of(float(self._gold_N[index]), self._gold_SN[:, index])

    def _change(self, start: int, end: int) -> Interval:
        return self._of(float(self._gold_N[end] - self._gold_N[start]), self._gold_SN[:, end] - self._gold_SN[:, start])

    def _minus(self, other: "_Row", own: int, its: int) -> Interval:
        return self._of(float(self._gold_N[own] - other._gold_N[its]), self._gold_SN[:, own] - other._gold_SN[:, its])

    def _of(self, value: float, draws_S: FloatArray) -> Interval:
        low, high = np.quantile(draws_S, [self._tail, 1.0 - self._tail])
        return Interval(value, float(low), float(high))

    def _of_settings(self, value: float, draws_S: FloatArray) -> Interval:
        # One that was drawn: between two n lies none, and an infinite β cannot be interpolated.
        low, high = (float(np.sort(draws_S)[round(share * (len(draws_S) - 1))]) for share in (self._tail, 1.0 - self._tail))
        return Interval(value, low, high)

    def _fit(self, form: Form) -> Fit | None:
        gain_GN = self._curves.gold_GN - self._curves.gold_GN[:, :1]
        variance_N = gain_GN.var(axis=0, ddof=1) / len(gain_GN) if len(gain_GN) > 1 else np.zeros(gain_GN.shape[1])
        weight_N = fit_weights(self._kl_N, np.where(variance_N > self._slack**2, variance_N, 0.0))
        gain_N = self._gold_N - self._gold_N[0]
        alpha, beta = (float(found[0]) for found in fit_gain(self._kl_N[None], gain_N[None], weight_N, form))
        if math.isnan(alpha):
            return None
        alpha_S, beta_S = fit_gain(self._kl_SN, self._gold_SN - self._gold_SN[:, :1], weight_N, form)
        defined_S = ~np.isnan(alpha_S)
        used_N = weight_N > 0
        terms_N2 = _fit_terms(self._kl_N, form)
        misfit = math.sqrt(float(np.mean((gain_N - terms_N2 @ [alpha, beta])[used_N] ** 2)))
        if not defined_S.any():
            return None
        return Fit(
            form=form,
            alpha=self._of(alpha, alpha_S[defined_S]),
            beta=self._of(beta, beta_S[defined_S]),
            misfit=misfit,
            peak_kl=_fitted_peak(alpha, beta, form),
        )


def fit_weights(kl_N: FloatArray, variance_N: FloatArray) -> FloatArray:
    """The inverse variance of each mean gain; all the same where one is 0, and nothing for a KL of 0, where the gain is 0 by definition."""
    used_N = kl_N > _NO_KL
    if not (variance_N[used_N] > 0).all():
        return used_N.astype(np.float64)
    with np.errstate(divide="ignore"):
        return np.where(used_N, 1.0 / variance_N, 0.0)


def fit_gain(kl_SN: FloatArray, gain_SN: FloatArray, weight_N: FloatArray, form: Form) -> tuple[FloatArray, FloatArray]:
    """Weighted least squares of gold gains, one curve a row.

    Args:
        kl_SN: nats.
        gain_SN: gold minus that of the policy as it is.
        weight_N: of the points, as from `fit_weights`.
        form: which of the two.

    Returns:
        α and β of every row, shape (S,); NaN where fewer than two different KL above 0 carry weight.
    """
    terms_SN2 = _fit_terms(kl_SN, form)
    weighted_SN2 = terms_SN2 * (weight_N / max(float(weight_N.max()), 1e-300))[:, None]
    square_S22 = np.einsum("snp,snq->spq", weighted_SN2, terms_SN2)
    right_S2 = np.einsum("snp,sn->sp", weighted_SN2, gain_SN)
    a_S, b_S, c_S = square_S22[:, 0, 0], square_S22[:, 0, 1], square_S22[:, 1, 1]
    determinant_S = a_S * c_S - b_S**2
    fits_S = determinant_S > 1e-10 * a_S * c_S
    safe_S = np.where(fits_S, determinant_S, 1.0)
    alpha_S = (c_S * right_S2[:, 0] - b_S * right_S2[:, 1]) / safe_S
    beta_S = (a_S * right_S2[:, 1] - b_S * right_S2[:, 0]) / safe_S
    return np.where(fits_S, alpha_S, math.nan), np.where(fits_S, beta_S, math.nan)


def _fit_terms(kl_SN: FloatArray, form: Form) -> FloatArray:
    d_SN = np.sqrt(np.maximum(kl_SN, 0.0))
    turn_SN = d_SN if form == "best_of_n" else np.log(np.where(d_SN > 0, d_SN, 1.0))
    return np.stack([d_SN, -d_SN * turn_SN], axis=-1)


def standardised_rewards(rewards: Sequence[Rewards]) -> list[FloatArray]:
    """Rewards on one scale for all prompts, for curves to be looked at: 0 is the mean of the prompt's responses, 1 the standard deviation
    within a prompt (root of the mean variance over prompts). NaN where a response has none. An increasing map within each prompt.
    """
    found = [np.array([math.nan if reward is None else reward for reward in one], dtype=np.float64) for one in rewards]
    centred = [values_U - np.mean(values_U[~np.isnan(values_U)]) if not np.isnan(values_U).all() else values_U for values_U in found]
    variances = [float(np.mean(values_U[~np.isnan(values_U)] ** 2)) for values_U in centred if not np.isnan(values_U).all()]
    scale = math.sqrt(float(np.mean(variances))) if variances else 0.0
    return [values_U / (scale or 1.0) for values_U in centred]


def _fitted_peak(alpha: float, beta: float, form: Form) -> float | None:
    if alpha <= 0 or beta <= 0:
        return None
    d = alpha / (2.0 * beta) if form == "best_of_n" else math.exp(min(alpha / beta - 1.0, math.log(_FARTHEST_D) + 1.0))
    return d * d if d <= _FARTHEST_D else None


def _mean_of_known(values_GN: FloatArray) -> FloatArray:
    known_GN = ~np.isnan(values_GN)
    with np.errstate(invalid="ignore", divide="ignore"):
        means_N: FloatArray = np.where(known_GN, values_GN, 0.0).sum(axis=0) / known_GN.sum(axis=0)
    return means_N


def _first_highest(gold_SN: FloatArray, slack: float) -> NDArray[np.intp]:
    """The first of the points that are the highest but for rounding, shape (S,)."""
    first_S: NDArray[np.intp] = np.argmax(gold_SN >= gold_SN.max(axis=1, keepdims=True) - slack, axis=1)
    return first_S


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
