"""Agreement of rewards with human preference, with intervals over prompts.

All functions are pure and take `Scored` comparisons (or a `PairTable` of them). What they share:

- A pair is right when the preferred response has the higher reward; equal rewards count one half and are reported.
- A pair with a response that could not be scored is wrong and reported; it is never dropped and never given a reward of 0.
- A pair that people tied has no right order: it is left out of agreement and reported (`tie_aware_accuracy` is the one that uses it).
- Each comparison weighs the same by default, its pairs sharing the weight: a list of four responses has six pairs that are far from
  independent and must not count six times a plain pair. `weighting="pair"` counts pairs instead.
- Intervals resample prompts (`bootstrap`). A metric of nothing raises `DataError`.

P pairs, G prompts, S bootstrap samples, R runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.bootstrap import Resampling, bootstrap_interval
from dmoerm.evaluation.pair_table import PairTable, Scored, require_same_pairs

__all__ = [
    "Difference",
    "Estimate",
    "RiskCoverage",
    "Scored",
    "Scorings",
    "Weighting",
    "accuracy_over_seeds",
    "best_tie_threshold",
    "calibration_error",
    "calibration_floor",
    "length_balanced_accuracy",
    "log_loss",
    "paired_difference",
    "paired_difference_over_seeds",
    "pairwise_accuracy_score",
    "risk_coverage",
    "tie_aware_accuracy",
]

FloatArray = NDArray[np.float64]
Scorings = Sequence[Scored] | PairTable
Weighting = Literal["comparison", "pair"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with what it rests on.

    Attributes:
        value: the figure.
        low: lower end of its interval over prompts.
        high: upper end.
        n_pairs: pairs it was computed from.
        n_prompts: distinct prompts of those pairs.
        n_failed: strictly ranked pairs with a missing reward (wrong in an accuracy, absent from calibration and log loss).
        n_reward_ties: pairs used whose rewards are equal.
        n_human_ties: pairs that people tied.
    """

    value: float
    low: float
    high: float
    n_pairs: int
    n_prompts: int
    n_failed: int
    n_reward_ties: int
    n_human_ties: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Agreement of one model minus that of another on the same pairs; `n_failed` counts pairs on which either failed."""

    value: float
    low: float
    high: float
    n_pairs: int
    n_prompts: int
    n_failed: int


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """How often a model errs on the cases it is surest of.

    Attributes:
        coverage: share of cases kept, rising to 1.
        risk: share of wrong ones among those kept.
        area: mean risk over all coverages; an uncertainty that says nothing gives the overall risk, a useful one less.
    """

    coverage: tuple[float, ...]
    risk: tuple[float, ...]
    area: float


def pairwise_accuracy_score(scored: Scorings, *, weighting: Weighting = "comparison", resampling: Resampling | None = None) -> Estimate:
    """Share of strictly ranked pairs in which the preferred response has the higher reward.

    Args:
        scored: comparisons with rewards.
        weighting: "comparison": each comparison weighs the same; "pair": each pair does.
        resampling: how the interval is made.

    Returns:
        Estimate in 0 to 1, higher is better; 0.5 is chance.

    Raises:
        DataError: no strictly ranked pair.
    """
    table = PairTable.of(scored)
    ranked = table.ranked()
    return _weighted_mean(ranked.correct_P, ranked, table, weighting, resampling)


def accuracy_over_seeds(runs: Sequence[Scorings], *, weighting: Weighting = "comparison", resampling: Resampling | None = None) -> Estimate:
    """Agreement averaged, pair by pair, over runs that differ in their seed.

    Args:
        runs: one list of scored comparisons a run, all of the same comparisons.
        weighting: as in `pairwise_accuracy_score`.
        resampling: how the interval is made.

    Returns:
        Estimate in 0 to 1. Its interval speaks of other prompts, not of other seeds. A pair is counted as failed, or as a reward tie,
        when it is so in any run.

    Raises:
        DataError: no run, no strictly ranked pair, or runs over different comparisons.
    """
    tables = _same_tables(runs)
    merged = _merged(tables)
    return _weighted_mean(_mean_correct(tables), merged.ranked(), merged, weighting, resampling)


def paired_difference(
    scored: Scorings, reference: Scorings, *, weighting: Weighting = "comparison", resampling: Resampling | None = None
) -> Difference:
    """Agreement of one model minus that of a reference, with an interval over prompts drawn for both together.

    Args:
        scored: comparisons with the rewards of the model.
        reference: the same comparisons with the rewards of the reference, in any order.
        weighting: as in `pairwise_accuracy_score`.
        resampling: how the interval is made.

    Returns:
        Difference in −1 to 1; above 0 the model is better. An interval without 0 is a difference that other prompts would likely show.

    Raises:
        DataError: no strictly ranked pair, or different comparisons.
    """
    return paired_difference_over_seeds([scored], [reference], weighting=weighting, resampling=resampling)


def paired_difference_over_seeds(
    runs: Sequence[Scorings],
    reference_runs: Sequence[Scorings],
    *,
    weighting: Weighting = "comparison",
    resampling: Resampling | None = None,
) -> Difference:
    """As `paired_difference`, each side being the mean correctness of a pair over runs that differ in their seed.

    Args:
        runs: one list of scored comparisons a run.
        reference_runs: the same for the reference; the number of runs may differ.
        weighting: as in `pairwise_accuracy_score`.
        resampling: how the interval is made. It resamples prompts, not seeds.

    Returns:
        Difference in −1 to 1.

    Raises:
        DataError: no run, no strictly ranked pair, or different comparisons.
    """
    ours, theirs = _same_tables(runs), _same_tables(reference_runs)
    require_same_pairs(ours[0], theirs[0], "Paired difference")
    gain_P = _mean_correct(ours) - _mean_correct(theirs)
    merged = _merged([*ours, *theirs])
    result = _weighted_mean(gain_P, merged.ranked(), merged, weighting, resampling)
    return Difference(result.value, result.low, result.high, result.n_pairs, result.n_prompts, result.n_failed)


def length_balanced_accuracy(scored: Scorings, *, weighting: Weighting = "comparison", resampling: Resampling | None = None) -> Estimate:
    """Agreement over pairs whose preferred response is longer and over those where it is shorter, each half weighing the same.

    In public preference sets the longer response is preferred in most pairs, so that length alone agrees well. Here a scorer that
    reads only length gets 0.5: it has one half right and the other wrong. Pairs of equal length (in characters) are left out.

    Args:
        scored: comparisons with rewards.
        weighting: within each half, as in `pairwise_accuracy_score`.
        resampling: how the interval is made.

    Returns:
        Estimate in 0 to 1, higher is better.

    Raises:
        DataError: no strictly ranked pair, or one of the two halves is empty.
    """
    table = PairTable.of(scored)
    ranked = table.ranked()
    used = ranked.select(ranked.longer_P != 0)
    n_longer, n_shorter = int((used.longer_P > 0).sum()), int((used.longer_P < 0).sum())
    if not (n_longer and n_shorter):
        raise DataError(
            f"Length-balanced agreement needs both kinds of pairs; the preferred response is longer in {n_longer}, shorter in {n_shorter}."
        )
    columns = []
    for sign in (1, -1):
        half = used.longer_P == sign
        weight_P = np.zeros(len(used))
        weight_P[half] = _weights(used.select(half), weighting)
        columns += [weight_P * used.correct_P, weight_P]
    sums_GC = _sums_by_prompt(used, columns)

    def statistic(totals_SC: FloatArray) -> FloatArray:
        return 0.5 * totals_SC[:, 0] / totals_SC[:, 1] + 0.5 * totals_SC[:, 2] / totals_SC[:, 3]

    value = float(statistic(sums_GC.sum(axis=0, keepdims=True))[0])
    return _estimate(value, bootstrap_interval(sums_GC, statistic, resampling), used, table)


def calibration_error(
    scored: Scorings, *, n_bins: int = 10, weighting: Weighting = "comparison", resampling: Resampling | None = None
) -> Estimate:
    """Expected calibration error of sigmoid(margin) over strictly ranked pairs with both rewards.

    The naive way, binning p = sigmoid(chosen − rejected), is wrong: the outcome is then 1 in every bin because the label chose the
    orientation, and a perfect model that says 0.7 and is right in 70 % of pairs would get an error of 0.3. Here each pair enters in both
    orientations, (p, 1) and (1 − p, 0). Those are mirror images, so it is enough to bin the confidence max(p, 1 − p) against whether
    the model's own choice is right, which is what is done. Bins hold about equally many pairs; equal confidences share a bin.

    Binned errors of small samples are too large even for a perfect model: read it beside `calibration_floor`.

    Args:
        scored: comparisons with rewards; margins are log-odds.
        n_bins: at most so many bins, at least 1.
        weighting: as in `pairwise_accuracy_score`.
        resampling: how the interval is made. The bins stay; the interval is recentred, since resampling adds to absolute gaps.

    Returns:
        Estimate in 0 to 0.5 or, for confident and wrong models, up to 1; lower is better. `n_pairs` excludes failed pairs.

    Raises:
        DataError: no strictly ranked pair with both rewards.
        ConfigError: `n_bins` is below 1.

    Source: Guo et al. (2017), arXiv 1706.04599; equal-mass bins as in Nixon et al. (2019), arXiv 1904.01685.
    """
    table, used = _with_rewards(scored)
    bins_P, confidence_P = _confidence_bins(used, n_bins)
    weight_P = _weights(used, weighting)
    gap_P = weight_P * (used.correct_P - confidence_P)
    columns = [np.where(bins_P == number, gap_P, 0.0) for number in range(int(bins_P.max()) + 1)]
    sums_GC = _sums_by_prompt(used, [*columns, weight_P])

    def statistic(totals_SC: FloatArray) -> FloatArray:
        error_S: FloatArray = np.abs(totals_SC[:, :-1]).sum(axis=1) / totals_SC[:, -1]
        return error_S

    value = float(statistic(sums_GC.sum(axis=0, keepdims=True))[0])
    low, high = bootstrap_interval(sums_GC, statistic, resampling, recentre=True)
    return _estimate(value, (max(0.0, low), min(1.0, high)), used, table)


def calibration_floor(scored: Scorings, *, n_bins: int = 10, weighting: Weighting = "comparison") -> float:
    """What `calibration_error` would be on average, were these very probabilities exactly right: its noise floor.

    A bin's gap is then a sum of independent centred errors of variance p(1 − p), about normal, and the mean of the absolute value of a
    normal variable is sqrt(2/pi) of its standard deviation. Pairs that share a prompt are taken as independent, so the true floor is
    somewhat higher where comparisons have many responses.

    Returns:
        In the unit of the calibration error, 0 to 1.

    Raises:
        DataError: no strictly ranked pair with both rewards.
        ConfigError: `n_bins` is below 1.
    """
    _, used = _with_rewards(scored)
    bins_P, confidence_P = _confidence_bins(used, n_bins)
    weight_P = _weights(used, weighting)
    # A reward tie has confidence 1/2 and counts 1/2 for certain: it adds no noise.
    variance_P = np.where(used.margin_P == 0.0, 0.0, weight_P**2 * confidence_P * (1.0 - confidence_P))
    deviations = np.sqrt(np.bincount(bins_P, weights=variance_P))
    return float(np.sqrt(2.0 / np.pi) * deviations.sum() / weight_P.sum())


def log_loss(scored: Scorings, *, weighting: Weighting = "comparison", resampling: Resampling | None = None) -> Estimate:
    """Mean of −log sigmoid(margin) over strictly ranked pairs with both rewards.

    A failed pair states no probability, so it cannot enter; it is counted in `n_failed`.

    Returns:
        Estimate in nats a pair, >= 0, lower is better; ln 2 (0.693) for a model that says nothing.

    Raises:
        DataError: no strictly ranked pair with both rewards.
    """
    table, used = _with_rewards(scored)
    return _weighted_mean(np.logaddexp(0.0, -used.margin_P), used, table, weighting, resampling)


def tie_aware_accuracy(
    scored: Scorings, threshold: float, *, weighting: Weighting = "comparison", resampling: Resampling | None = None
) -> Estimate:
    """Share of all pairs judged right when a margin within the threshold means "tied".

    A pair that people tied is right when |margin| <= threshold; a ranked one when margin > threshold; a failed one never.

    Args:
        scored: comparisons with rewards, human ties included.
        threshold: >= 0, reward units, found on other data (`best_tie_threshold` on the calibration split): tuned on these very
            comparisons it would flatter the model.
        weighting: as in `pairwise_accuracy_score`, over all pairs.
        resampling: how the interval is made.

    Returns:
        Estimate in 0 to 1, higher is better; `n_pairs` includes human ties.

    Raises:
        DataError: no pairs.
        ConfigError: the threshold is negative or not finite.

    Source: Deutsch et al. (2023), "Ties Matter", arXiv 2305.14324.
    """
    if not (np.isfinite(threshold) and threshold >= 0.0):
        raise ConfigError(f"threshold: {threshold}; expected a finite number >= 0, in reward units.")
    table = PairTable.of(scored)
    margin_P = np.nan_to_num(table.margin_P)
    right_P = np.where(table.human_tie_P, np.abs(margin_P) <= threshold, margin_P > threshold) & ~table.failed_P
    return _weighted_mean(right_P.astype(np.float64), table, table, weighting, resampling)


def best_tie_threshold(scored: Scorings, *, weighting: Weighting = "comparison") -> float:
    """The threshold with the highest tie-aware accuracy on these comparisons, for use on others; the smallest of equal ones.

    Returns:
        Reward units, >= 0; 0 when nothing is gained by calling ties.

    Raises:
        DataError: no pair with both rewards.
    """
    table = PairTable.of(scored)
    weight_P = _weights(table, weighting)[~table.failed_P]
    used = table.select(~table.failed_P)
    if len(used) == 0:
        raise DataError(f"All {len(table)} pairs failed to be scored; a tie threshold needs at least one with both rewards.")
    # Raising the threshold past |margin| wins a human tie, and loses a ranked pair that had been right.
    gain_P = weight_P * np.where(used.human_tie_P, 1.0, np.where(used.margin_P > 0.0, -1.0, 0.0))
    size_P = np.abs(used.margin_P)
    candidates, group_P = np.unique(np.append(size_P, 0.0), return_inverse=True)
    gains = np.cumsum(np.bincount(group_P[:-1], weights=gain_P, minlength=len(candidates)))
    return float(candidates[int(np.argmax(gains))])


def risk_coverage(correct: ArrayLike, uncertainty: ArrayLike) -> RiskCoverage:
    """Error rate among the surest cases, from the very surest to all of them.

    Args:
        correct: 1 right, 0 wrong, 0.5 tied, shape (P,), as `PairTable.correct_P`.
        uncertainty: shape (P,), higher is less sure. Cases of equal uncertainty enter together, so that their order cannot matter.

    Returns:
        One point for each distinct uncertainty.

    Raises:
        DataError: nothing given, shapes differ, or an uncertainty is not a number.

    Source: El-Yaniv & Wiener (2010), JMLR 11; area as in Geifman et al. (2019), arXiv 1805.08206.
    """
    correct_P, uncertainty_P = np.asarray(correct, dtype=np.float64), np.asarray(uncertainty, dtype=np.float64)
    if correct_P.ndim != 1 or correct_P.shape != uncertainty_P.shape or len(correct_P) == 0:
        raise DataError(
            f"risk_coverage got shapes {correct_P.shape} and {uncertainty_P.shape}; expected two vectors of one length, at least 1."
        )
    if np.isnan(correct_P).any() or np.isnan(uncertainty_P).any():
        raise DataError("risk_coverage got NaN; expected numbers. Leave failed cases out and report their count.")
    _, group_P = np.unique(uncertainty_P, return_inverse=True)
    size = np.bincount(group_P)
    kept = np.cumsum(size)
    risk = np.cumsum(np.bincount(group_P, weights=1.0 - correct_P)) / kept
    return RiskCoverage(tuple((kept / kept[-1]).tolist()), tuple(risk.tolist()), float((risk * size).sum() / kept[-1]))


def _with_rewards(scored: Scorings) -> tuple[PairTable, PairTable]:
    table = PairTable.of(scored)
    ranked = table.ranked()
    used = ranked.select(~ranked.failed_P)
    if len(used) == 0:
        raise DataError(f"All {len(ranked)} strictly ranked pairs failed to be scored; calibration and log loss need at least one.")
    return table, used


def _confidence_bins(table: PairTable, n_bins: int) -> tuple[NDArray[np.int64], FloatArray]:
    if n_bins < 1:
        raise ConfigError(f"n_bins: {n_bins}; expected at least 1.")
    confidence_P = 1.0 / (1.0 + np.exp(-np.abs(table.margin_P)))
    edges = np.unique(np.quantile(confidence_P, np.linspace(0.0, 1.0, n_bins + 1)[1:-1]))
    return np.searchsorted(edges, confidence_P, side="left").astype(np.int64), confidence_P


def _weights(table: PairTable, weighting: Weighting) -> FloatArray:
    if weighting == "pair":
        return np.ones(len(table))
    if weighting != "comparison":
        raise ConfigError(f"weighting: {weighting!r}; expected 'comparison' or 'pair'.")
    _, group_P, count = np.unique(table.comparison_P, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / count[group_P], dtype=np.float64)


def _sums_by_prompt(table: PairTable, columns: Sequence[FloatArray]) -> FloatArray:
    prompts, group_P = np.unique(table.prompt_P, return_inverse=True)
    return np.stack([np.bincount(group_P, weights=column, minlength=len(prompts)) for column in columns], axis=1)


def _weighted_mean(value_P: FloatArray, used: PairTable, whole: PairTable, weighting: Weighting, resampling: Resampling | None) -> Estimate:
    weight_P = _weights(used, weighting)
    sums_GC = _sums_by_prompt(used, [weight_P * value_P, weight_P])

    def statistic(totals_SC: FloatArray) -> FloatArray:
        mean_S: FloatArray = totals_SC[:, 0] / totals_SC[:, 1]
        return mean_S

    value = float(statistic(sums_GC.sum(axis=0, keepdims=True))[0])
    return _estimate(value, bootstrap_interval(sums_GC, statistic, resampling), used, whole)


def _estimate(value: float, interval: tuple[float, float], used: PairTable, whole: PairTable) -> Estimate:
    return Estimate(
        value=value,
        low=interval[0],
        high=interval[1],
        n_pairs=len(used),
        n_prompts=len(np.unique(used.prompt_P)),
        n_failed=int((whole.failed_P & ~whole.human_tie_P).sum()),
        n_reward_ties=int((used.margin_P == 0.0).sum()),
        n_human_ties=int(whole.human_tie_P.sum()),
    )


def _same_tables(runs: Sequence[Scorings]) -> list[PairTable]:
    if len(runs) == 0:
        raise DataError("No runs were given; expected at least one list of scored comparisons.")
    tables = [PairTable.of(run) for run in runs]
    for table in tables[1:]:
        require_same_pairs(tables[0], table, "Averaging over seeds")
    return tables


def _mean_correct(tables: Sequence[PairTable]) -> FloatArray:
    mean_P: FloatArray = np.mean([table.ranked().correct_P for table in tables], axis=0)
    return mean_P


def _merged(tables: Sequence[PairTable]) -> PairTable:
    # For counting only: failed where any run failed, else tied where any run tied.
    failed_P = np.any([table.failed_P for table in tables], axis=0)
    tied_P = np.any([table.margin_P == 0.0 for table in tables], axis=0)
    margin_P = np.where(failed_P, np.nan, np.where(tied_P, 0.0, 1.0))
    return replace(tables[0], failed_P=failed_P, margin_P=margin_P)
