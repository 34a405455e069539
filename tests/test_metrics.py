import math
from collections.abc import Sequence

import numpy as np
import pytest

from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.bootstrap import Resampling, bootstrap_interval
from dmoerm.evaluation.metrics import (
    Scored,
    accuracy_over_seeds,
    best_tie_threshold,
    calibration_error,
    calibration_floor,
    length_balanced_accuracy,
    log_loss,
    paired_difference,
    paired_difference_over_seeds,
    pairwise_accuracy_score,
    risk_coverage,
    tie_aware_accuracy,
)
from dmoerm.evaluation.pair_table import PairTable
from dmoerm.records import Comparison, Message

QUICK = Resampling(seed=1, samples=200)


def scored(id: str, rewards: Sequence[float | None], ranks: Sequence[int] | None = None, prompt: str | None = None, lengths=None) -> Scored:
    texts = tuple("x" * length for length in (lengths or [5] * len(rewards)))
    message = Message("user", prompt or f"prompt of {id}")
    return Scored(Comparison(id, (message,), texts, tuple(ranks or range(1, len(rewards) + 1))), tuple(rewards))


def margins(*values: float | None, prompt: str | None = None, start: int = 0) -> list[Scored]:
    """One pair a value; the first response is the preferred one."""
    return [
        scored(f"c{start + i:04d}", (None, 0.0) if value is None else (value, 0.0), prompt=prompt or f"p{start + i}")
        for i, value in enumerate(values)
    ]


def test_accuracy_counts_a_right_pair_1_a_wrong_one_0_and_equal_rewards_one_half():
    result = pairwise_accuracy_score(margins(2.0, -1.0, 0.0), resampling=QUICK)
    assert result.value == pytest.approx(0.5)
    assert (result.n_pairs, result.n_prompts, result.n_reward_ties) == (3, 3, 1)


def test_a_failed_response_makes_its_pairs_wrong_and_counted_not_dropped():
    result = pairwise_accuracy_score(margins(1.0, None), resampling=QUICK)
    assert (result.value, result.n_pairs, result.n_failed, result.n_reward_ties) == (0.5, 2, 1, 0)


def test_only_pairs_with_the_failed_response_fail():
    # Ranks 1 < 2 < 3; the second failed: pairs (1,2) and (2,3) are wrong, (1,3) is right.
    result = pairwise_accuracy_score([scored("a", (1.0, None, 0.0))], resampling=QUICK)
    assert result.value == pytest.approx(1 / 3)
    assert result.n_failed == 2


def test_human_ties_are_left_out_and_counted():
    result = pairwise_accuracy_score([*margins(1.0), scored("tie", (3.0, 0.0), ranks=(1, 1))], resampling=QUICK)
    assert (result.value, result.n_pairs, result.n_human_ties) == (1.0, 1, 1)


def test_each_comparison_weighs_the_same_unless_pairs_are_asked_for():
    data = [scored("list", (3.0, 2.0, 1.0)), scored("pair", (0.0, 1.0))]
    assert pairwise_accuracy_score(data, resampling=QUICK).value == pytest.approx(0.5)
    assert pairwise_accuracy_score(data, weighting="pair", resampling=QUICK).value == pytest.approx(0.75)


def test_swapping_the_responses_changes_nothing():
    plain = [scored("a", (1.0, 0.0), (1, 2)), scored("b", (0.0, 4.0), (1, 2))]
    swapped = [scored("a", (0.0, 1.0), (2, 1)), scored("b", (4.0, 0.0), (2, 1))]
    for metric in (pairwise_accuracy_score, calibration_error, log_loss):
        assert metric(plain, resampling=QUICK) == metric(swapped, resampling=QUICK)


def test_the_order_of_the_comparisons_changes_nothing():
    data = margins(*np.random.default_rng(0).normal(0.5, 1.0, 40).tolist())
    assert pairwise_accuracy_score(data, resampling=QUICK) == pairwise_accuracy_score(data[::-1], resampling=QUICK)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    data = margins(*np.random.default_rng(0).normal(0.5, 1.0, 60).tolist())
    first, again, other = (log_loss(data, resampling=Resampling(seed, 300)) for seed in (3, 3, 4))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)


def test_interval_draws_prompts_with_all_their_pairs():
    # Two prompts of 50 pairs, one all right, one all wrong: drawing pairs would give about 0.4 to 0.6, drawing prompts gives 0 to 1.
    data = margins(*[1.0] * 50, prompt="right") + margins(*[-1.0] * 50, prompt="wrong", start=50)
    result = pairwise_accuracy_score(data, resampling=QUICK)
    assert (result.value, result.low, result.high, result.n_prompts) == (0.5, 0.0, 1.0, 2)


def test_interval_agrees_with_the_normal_approximation_on_independent_pairs():
    # 240 of 400 right: 0.6 +- 1.96 * sqrt(0.6 * 0.4 / 400) = 0.6 +- 0.048.
    result = pairwise_accuracy_score(margins(*[1.0] * 240, *[-1.0] * 160))
    assert result.low == pytest.approx(0.552, abs=0.006)
    assert result.high == pytest.approx(0.648, abs=0.006)


def test_bootstrap_equals_resampling_one_draw_at_a_time():
    sums_GC = np.array([[1.0, 2.0], [0.0, 1.0], [3.0, 3.0]])
    rng = np.random.default_rng(7)
    draws = [sums_GC[indices].sum(axis=0) for indices in rng.integers(0, 3, size=(500, 3))]
    expected = np.quantile([draw[0] / draw[1] for draw in draws], [0.05, 0.95])
    found = bootstrap_interval(sums_GC, lambda totals: totals[:, 0] / totals[:, 1], Resampling(seed=7, samples=500, confidence=0.9))
    assert found == pytest.approx(tuple(expected))


def test_bad_bootstrap_options_are_refused():
    with pytest.raises(ConfigError, match="samples: 10; expected at least 100"):
        Resampling(samples=10)
    with pytest.raises(ConfigError, match=r"confidence: 95; expected a number between 0 and 1"):
        Resampling(confidence=95)


def test_a_model_differs_from_itself_by_nothing():
    data = margins(1.0, -1.0, 2.0)
    result = paired_difference(data, data[::-1], resampling=QUICK)
    assert (result.value, result.low, result.high) == (0.0, 0.0, 0.0)


def test_paired_difference_is_the_difference_of_the_accuracies():
    # 3 of 4 right against 1 of 4 right, where a failed pair is wrong.
    result = paired_difference(margins(1.0, 1.0, 1.0, -1.0), margins(1.0, -1.0, None, -1.0), resampling=QUICK)
    assert result.value == pytest.approx(0.5)
    assert (result.n_pairs, result.n_prompts, result.n_failed) == (4, 4, 1)


def test_pairing_makes_the_interval_narrow_where_models_err_on_the_same_prompts():
    # 100 pairs of which both models get the same 50 wrong, and the first gets 5 more right: the interval must exclude 0.
    ours, theirs = margins(*[1.0] * 55, *[-1.0] * 45), margins(*[1.0] * 50, *[-1.0] * 50)
    result = paired_difference(ours, theirs)
    assert result.value == pytest.approx(0.05)
    assert 0.0 < result.low < result.high < 0.11


def test_seeds_are_averaged_pair_by_pair_before_pairing():
    runs = [margins(1.0, 1.0), margins(1.0, -1.0)]
    assert accuracy_over_seeds(runs, resampling=QUICK).value == pytest.approx(0.75)
    result = paired_difference_over_seeds(runs, [margins(-1.0, 1.0)], resampling=QUICK)
    # Pair 1: 1 - 0, pair 2: 0.5 - 1; each prompt alone gives the ends of the interval.
    assert (result.value, result.low, result.high) == pytest.approx((0.25, -0.5, 1.0))


def test_models_that_scored_different_comparisons_are_not_paired():
    with pytest.raises(DataError, match=r"different comparisons \(1 ids are in one only, such as 'c0001'\)"):
        paired_difference(margins(1.0, 1.0), margins(1.0))
    with pytest.raises(DataError, match="differ in prompt, responses or ranks"):
        paired_difference([scored("a", (1.0, 0.0), (1, 2))], [scored("a", (1.0, 0.0), (2, 1))])
    with pytest.raises(DataError, match="differ in prompt, responses or ranks"):
        paired_difference([scored("a", (1.0, 0.0))], [scored("a", (1.0, 0.0), prompt="another")])


def test_length_balanced_accuracy_is_the_mean_of_both_halves():
    # Winner longer: 2 of 3 right. Winner shorter: 1 of 1 right. Equal length: left out. 0.5 * 2/3 + 0.5 * 1 = 5/6.
    longer = [scored(f"l{i}", (reward, 0.0), lengths=(9, 3)) for i, reward in enumerate((1.0, 1.0, -1.0))]
    rest = [scored("s", (1.0, 0.0), lengths=(3, 9)), scored("e", (-1.0, 0.0), lengths=(4, 4))]
    result = length_balanced_accuracy([*longer, *rest], resampling=QUICK)
    assert result.value == pytest.approx(5 / 6)
    assert result.n_pairs == 4


def test_a_scorer_of_length_alone_gets_exactly_one_half_when_length_is_balanced():
    data = [scored(f"c{i}", (float(long), float(short)), lengths=(long, short)) for i, (long, short) in enumerate([(9, 3)] * 7 + [(3, 9)])]
    assert pairwise_accuracy_score(data, resampling=QUICK).value == pytest.approx(7 / 8)
    result = length_balanced_accuracy(data, resampling=QUICK)
    assert (result.value, result.low, result.high) == (0.5, 0.5, 0.5)


def test_length_balance_without_one_of_the_halves_is_refused():
    with pytest.raises(DataError, match="longer in 1, shorter in 0"):
        length_balanced_accuracy([scored("a", (1.0, 0.0), lengths=(9, 3))])


def test_a_model_that_says_70_percent_and_is_right_in_70_percent_has_no_calibration_error():
    # Oriented by the label, the outcome would be 1 everywhere and this error 0.3.
    logit = math.log(0.7 / 0.3)
    result = calibration_error(margins(*[logit] * 7, *[-logit] * 3), resampling=QUICK)
    assert result.value == pytest.approx(0.0, abs=1e-12)


def test_calibration_error_averages_the_gaps_of_the_bins():
    # Confidence 0.75, right in half: gap 0.25. Confidence 0.9, always right: gap 0.1. Mean 0.175.
    low, high = math.log(3.0), math.log(9.0)
    result = calibration_error(margins(low, -low, high, high), n_bins=2, resampling=QUICK)
    assert result.value == pytest.approx(0.175)
    assert result.low <= result.value <= result.high


def test_calibration_error_equals_that_of_both_orientations():
    rng = np.random.default_rng(5)
    margin_P = rng.normal(0.3, 1.5, 301)
    found = calibration_error(margins(*margin_P.tolist()), n_bins=4, resampling=QUICK).value
    p = 1.0 / (1.0 + np.exp(-np.concatenate([margin_P, -margin_P])))
    outcome = np.repeat([1.0, 0.0], len(margin_P))
    upper = np.quantile(np.maximum(p, 1.0 - p), [0.25, 0.5, 0.75])
    bins = np.digitize(p, np.concatenate([1.0 - upper[::-1], [0.5], upper]))
    gaps = [abs((outcome - p)[bins == number].sum()) for number in range(8)]
    assert found == pytest.approx(sum(gaps) / len(p), abs=0.004)  # a value on an edge may change its bin


def test_equal_confidences_share_a_bin_whatever_their_order():
    # Split over ten bins by position, these would show gaps of pure noise.
    data = margins(*[math.log(3.0)] * 30, *[-math.log(3.0)] * 10)
    assert calibration_error(data, n_bins=10, resampling=QUICK).value == pytest.approx(0.0, abs=1e-12)


def test_calibration_floor_is_the_mean_error_of_a_perfect_model():
    rng = np.random.default_rng(2)
    size_P = np.abs(rng.normal(0.0, 1.5, 300))
    right = [rng.random(300) < 1.0 / (1.0 + np.exp(-size_P)) for _ in range(40)]
    errors = [calibration_error(margins(*np.where(r, size_P, -size_P).tolist()), resampling=Resampling(samples=100)).value for r in right]
    assert calibration_floor(margins(*size_P.tolist())) == pytest.approx(float(np.mean(errors)), rel=0.12)


def test_log_loss_is_ln2_for_equal_rewards_and_minus_log_p_else():
    assert log_loss(margins(0.0, 0.0), resampling=QUICK).value == pytest.approx(math.log(2.0))
    # -ln 0.75 and -ln 0.25.
    expected = (-math.log(0.75) - math.log(0.25)) / 2.0
    assert log_loss(margins(math.log(3.0), -math.log(3.0)), resampling=QUICK).value == pytest.approx(expected)
    assert log_loss(margins(-2000.0), resampling=QUICK).value == pytest.approx(2000.0)


def test_failed_pairs_state_no_probability_and_are_counted_beside_log_loss():
    result = log_loss(margins(0.0, None), resampling=QUICK)
    assert (result.n_pairs, result.n_failed) == (1, 1)
    for metric in (log_loss, calibration_error, calibration_floor):
        with pytest.raises(DataError, match="All 2 strictly ranked pairs failed to be scored"):
            metric(margins(None, None))


def test_tie_aware_accuracy_rewards_a_small_margin_on_a_human_tie():
    ties = [scored("t1", (0.1, 0.0), (1, 1)), scored("t2", (0.0, 2.0), (1, 1)), scored("t3", (None, 0.0), (1, 1))]
    # Threshold 0.5: t1 right, t2 wrong, t3 failed; ranked margins 1.0 right, 0.2 called a tie, -3.0 wrong: 2 of 6.
    result = tie_aware_accuracy([*ties, *margins(1.0, 0.2, -3.0)], 0.5, resampling=QUICK)
    assert result.value == pytest.approx(2 / 6)
    assert (result.n_pairs, result.n_human_ties) == (6, 3)


def test_best_tie_threshold_wins_more_ties_than_it_loses_pairs():
    ties = [scored(f"t{i}", (margin, 0.0), (1, 1)) for i, margin in enumerate((0.1, 0.25, 0.3, 5.0))]
    # Raising it to 0.3 wins three ties and loses the pair of margin 0.2; going on to 5.0 would lose two more for one.
    assert best_tie_threshold([*ties, *margins(0.2, 1.0, 2.0)]) == pytest.approx(0.3)
    assert best_tie_threshold(margins(0.2, 1.0)) == 0.0
    with pytest.raises(ConfigError, match="threshold: -1"):
        tie_aware_accuracy(ties, -1.0)


def test_risk_coverage_by_hand():
    curve = risk_coverage([1, 0, 1, 1], [1.0, 4.0, 2.0, 3.0])
    assert curve.coverage == (0.25, 0.5, 0.75, 1.0)
    assert curve.risk == (0.0, 0.0, 0.0, 0.25)
    assert curve.area == pytest.approx(0.0625)


def test_cases_of_equal_uncertainty_enter_together():
    curve = risk_coverage([1, 0, 1, 0], [2.0, 2.0, 2.0, 2.0])
    assert (curve.coverage, curve.risk, curve.area) == ((1.0,), (0.5,), 0.5)


def test_risk_coverage_refuses_what_it_cannot_order():
    with pytest.raises(DataError, match=r"shapes \(2,\) and \(1,\)"):
        risk_coverage([1, 0], [1.0])
    with pytest.raises(DataError, match="got NaN"):
        risk_coverage([1, 0], [1.0, math.nan])
    with pytest.raises(DataError, match="at least 1"):
        risk_coverage([], [])


@pytest.mark.parametrize("metric", [pairwise_accuracy_score, length_balanced_accuracy, calibration_error, calibration_floor, log_loss])
def test_a_metric_of_nothing_raises(metric):
    with pytest.raises(DataError, match="metric of nothing"):
        metric([])
    with pytest.raises(DataError, match="No strictly ranked pair among 1"):
        metric([scored("tie", (1.0, 0.0), ranks=(1, 1))])


def test_averaging_no_runs_raises():
    with pytest.raises(DataError, match="No runs"):
        accuracy_over_seeds([])


def test_rewards_must_be_finite_and_one_a_response():
    with pytest.raises(DataError, match=r"id 'a'.*reward of response 2 is nan.*Give a failed response None"):
        scored("a", (1.0, math.nan))
    with pytest.raises(DataError, match="1 rewards for 2 responses"):
        Scored(scored("a", (1.0, 0.0)).comparison, (1.0,))


def test_an_id_that_comes_twice_is_refused():
    with pytest.raises(DataError, match="Two scored comparisons have the id 'a'"):
        PairTable.of([scored("a", (1.0, 0.0)), scored("a", (1.0, 0.0))])


def test_an_unknown_weighting_is_refused():
    with pytest.raises(ConfigError, match="weighting: 'prompt'; expected 'comparison' or 'pair'"):
        pairwise_accuracy_score(margins(1.0), weighting="prompt")  # type: ignore[arg-type]
