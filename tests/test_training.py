"""The losses, heads, aggregator and calibration, on numbers worked by hand or with a known answer."""

import math

import numpy as np
import pytest
import torch

from dmoerm.errors import ConfigError, TrainingError
from dmoerm.modeling.inner import AGGREGATIONS, InnerModel, aggregate
from dmoerm.records import CapabilityLabel
from dmoerm.training.losses import pairwise_loss, ranking_loss
from dmoerm.training.phase1 import _chosen, fit_head, task_items
from dmoerm.training.phase2 import expert_items
from dmoerm.training.phase3 import AggregatorSettings, VectorSet, calibrate, fit_aggregator, fit_temperature, set_statistics
from dmoerm.training.trainer import EpochResult, Item, best_epoch, run_phase


def test_pairwise_loss_is_ln2_when_rewards_are_equal():
    assert pairwise_loss(torch.tensor([3.0]), torch.tensor([3.0])).item() == pytest.approx(math.log(2))


def test_ranking_loss_averages_each_experts_labels_and_adds_the_experts():
    rewards_BK = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    # Expert 0: two pairs of one comparison, weight a half each; expert 1: one pair.
    loss = ranking_loss(
        rewards_BK, torch.tensor([0, 0, 2]), torch.tensor([1, 2, 0]), torch.tensor([0, 0, 1]), torch.tensor([0.5, 0.5, 1.0])
    )
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2)))


def test_a_margin_asks_for_that_much_lead():
    # σ(3 − 1) with a lead of 3 and a margin of 1 is σ(2); without a margin it is σ(3).
    rewards_BK = torch.tensor([[3.0], [0.0]])
    pair = torch.tensor([0]), torch.tensor([1]), torch.tensor([0]), torch.ones(1)
    assert ranking_loss(rewards_BK, *pair, torch.tensor([1.0])).item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert ranking_loss(rewards_BK, *pair).item() == pytest.approx(math.log(1 + math.exp(-3)))


def test_margins_follow_their_comparisons_and_missing_ones_are_zero():
    items = task_items([((0, 1), [(0, 1)]), ((2, 3), []), ((4, 5), [(1, 0)])], [0.5, 2.0, None])
    assert [(item.rows, item.margin) for item in items] == [((0, 1), 0.5), ((4, 5), 0.0)]


def test_a_label_of_which_the_judge_was_not_sure_also_pulls_the_other_way():
    labels = [CapabilityLabel("logic", 1, 0, 0.8), CapabilityLabel("depth", 0, 1), CapabilityLabel("unknown", 0, 1)]
    (item,) = expert_items([((5, 6), labels)], ("depth", "logic"), task_member=False)
    assert item.pairs == ((1, 0, 1), (0, 1, 1), (0, 1, 0))
    assert item.weights() == pytest.approx([0.8, 0.2, 1.0])
    # Margins of 2 for depth and of 1 for logic: 0.8 · −log σ(1) + 0.2 · −log σ(−1), and −log σ(2).
    rewards_BK = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    better, worse, member = (torch.tensor(column) for column in zip(*item.pairs, strict=True))
    loss = ranking_loss(rewards_BK, better, worse, member, torch.tensor(item.weights()))
    assert loss.item() == pytest.approx(0.8 * math.log(1 + math.exp(-1)) + 0.2 * math.log(1 + math.exp(1)) + math.log(1 + math.exp(-2)))
    # Where agreement is measured, and where everybody is sure, it counts like any other.
    (hard,) = expert_items([((5, 6), labels)], ("depth", "logic"), task_member=True, soft=False)
    assert (hard.pairs, hard.weights()) == (((1, 0, 2), (0, 1, 1)), [1.0, 1.0])


def test_soft_labels_of_several_pairs_share_the_weight_of_their_comparison():
    labels = [CapabilityLabel("logic", 0, 1, 0.75), CapabilityLabel("logic", 1, 2)]
    (item,) = expert_items([((0, 1, 2), labels)], ("logic",), task_member=False)
    assert item.pairs == ((0, 1, 0), (1, 0, 0), (1, 2, 0))
    assert item.weights() == pytest.approx([0.375, 0.125, 0.5])


def test_an_expert_without_a_label_gets_no_gradient():
    rewards_BK = torch.zeros(2, 2, requires_grad=True)
    ranking_loss(rewards_BK, torch.tensor([0]), torch.tensor([1]), torch.tensor([0]), torch.ones(1)).backward()
    assert rewards_BK.grad is not None
    assert rewards_BK.grad[:, 1].tolist() == [0.0, 0.0]
    assert rewards_BK.grad[:, 0].tolist() == pytest.approx([-0.5, 0.5])


def test_ranking_loss_of_no_pair_is_refused():
    none = torch.zeros(0, dtype=torch.long)
    with pytest.raises(ValueError, match="at least one pair"):
        ranking_loss(torch.zeros(2, 1), none, none, none, torch.zeros(0))


def test_every_comparison_weighs_one_for_each_member():
    assert Item((0, 1, 2), ((0, 1, 0), (0, 2, 0), (1, 2, 3))).weights() == [0.5, 0.5, 1.0]
    assert Item((0, 1, 2), ((0, 1, 3), (0, 2, 0), (1, 2, 3))).members() == (0, 3)


def preferences(direction_D, count, *, noise=0.0, member=0):
    generator = torch.Generator().manual_seed(5)
    vectors = {row: torch.randn(len(direction_D), generator=generator) for row in range(2 * count)}
    items = []
    for pair in range(count):
        first, second = 2 * pair, 2 * pair + 1
        margin = (vectors[first] - vectors[second]) @ direction_D + noise * torch.randn((), generator=generator)
        items.append(Item((first, second) if margin > 0 else (second, first), ((0, 1, member),)))
    return vectors, items


@pytest.mark.parametrize("count", [20, 400])  # fewer pairs than features, and more
def test_a_fitted_head_points_where_the_preferences_point(count):
    direction_D = torch.nn.functional.normalize(torch.arange(1.0, 41.0), dim=0)
    vectors, items = preferences(direction_D, count)
    least = 0.3 if count < 40 else 0.9
    assert torch.cosine_similarity(fit_head(vectors, items), direction_D, dim=0) > least


def test_a_fitted_head_stays_near_its_prior_where_labels_say_little():
    prior_D = torch.nn.functional.normalize(torch.ones(40), dim=0)
    vectors, items = preferences(prior_D, 30, noise=0.3, member=2)
    assert torch.cosine_similarity(fit_head(vectors, items, member=2, prior_D=prior_D), prior_D, dim=0) > 0.95


def test_a_cautious_fit_leaves_its_prior_only_where_the_labels_say_so():
    prior_D, other_D = torch.eye(40)[:2]
    few_vectors, few = preferences(other_D, 24, noise=1.5)
    many_vectors, many = preferences(other_D, 400)
    bold_D, cautious_D = (fit_head(few_vectors, few, prior_D=prior_D, cautious=cautious) for cautious in (False, True))
    turned = fit_head(many_vectors, many, prior_D=prior_D, cautious=True)
    assert abs(cautious_D[1:].norm() / cautious_D.norm()) < abs(bold_D[1:].norm() / bold_D.norm())
    assert torch.cosine_similarity(turned, other_D, dim=0) > 0.9


def test_the_cautious_strength_is_the_first_within_a_standard_error_of_the_best():
    losses_NS = np.array([[0.9, 0.70, 0.60], [0.9, 0.50, 0.60], [0.9, 0.75, 0.65], [0.9, 0.71, 0.77]])
    # Above the third, the best: the second by 0.01, with a standard error of 0.045; the first by 0.245, with one of 0.035.
    assert (_chosen(losses_NS, cautious=False), _chosen(losses_NS, cautious=True)) == (2, 1)


def test_the_best_epoch_has_the_lowest_held_out_loss_weighted_by_pairs():
    folds = [
        [EpochResult(0, {}, 0.7, 0.5, 30), EpochResult(1, {}, 0.5, 0.5, 30), EpochResult(2, {}, 0.6, 0.5, 30)],
        [EpochResult(0, {}, 0.7, 0.5, 10), EpochResult(1, {}, 0.9, 0.5, 10), EpochResult(2, {}, 0.5, 0.5, 10)],
    ]
    assert best_epoch(folds) == 2  # 0.7, 0.6, 0.575
    assert best_epoch([folds[0]]) == 1
    assert best_epoch([folds[0]], least=2) == 2


def test_a_phase_without_comparisons_is_refused():
    with pytest.raises(TrainingError, match="no comparison to learn from"):
        run_phase(None, [], [], None)  # type: ignore[arg-type]


def test_wco_is_the_worst_member_and_uwo_the_mean_less_penalty_times_variance():
    raw = aggregate(torch.tensor([[1.0, 3.0]]), 0.5)
    assert (raw["mean"].item(), raw["wco"].item(), raw["uwo"].item()) == (2.0, 1.0, 1.5)  # variance with ddof 0 is 1
    assert aggregate(torch.tensor([[1.0, 3.0]]), 0.0)["uwo"].item() == 2.0


def test_temperature_makes_the_stated_odds_come_true():
    # Of margins of size 2, three in four point the right way: the fitted odds must be 3 to 1, so 2 / t = ln 3.
    margin_P = torch.tensor([2.0] * 75 + [-2.0] * 25)
    assert fit_temperature(margin_P, torch.ones(100)) == pytest.approx(2 / math.log(3), rel=1e-3)


def test_temperature_is_large_where_margins_point_the_wrong_way():
    assert fit_temperature(torch.tensor([-1.0, -1.0, 0.5]), torch.ones(3)) == 100.0


def vector_set(rows=120, members=2, width=4, *, informative=1):
    """Pairs of rows; member `informative` alone knows which is better, the others are noise."""
    generator = torch.Generator().manual_seed(2)
    vectors_BKD = torch.randn(rows, members, width, generator=generator)
    scalars_BK = vectors_BKD.sum(-1)
    chosen, rejected = [], []
    for first in range(0, rows, 2):
        better = scalars_BK[first, informative] > scalars_BK[first + 1, informative]
        chosen.append(first if better else first + 1)
        rejected.append(first + 1 if better else first)
    count = rows // 2
    data = VectorSet(
        scalars_BK / scalars_BK.std(0),
        vectors_BKD.flatten(1),
        torch.tensor(chosen),
        torch.tensor(rejected),
        torch.ones(count),
        torch.arange(count),
        torch.arange(count) % 3,
    )
    return data, vectors_BKD


def settings(**changes):
    values = {"learning_rate": 0.02, "weight_decay": 1.0, "epochs": 60, "members": 3, "units": 4, "seed": 0, "uwo_penalty": 0.5}
    return AggregatorSettings(**{**values, **changes})


def test_the_aggregator_starts_as_the_mean_of_the_members():
    data, _ = vector_set()
    aggregator, report = fit_aggregator(data, settings(epochs=0), {"mean": data.scalars_BK.mean(1)})
    assert torch.allclose(aggregator(data.scalars_BK, data.vectors_BV)[:, 0], data.scalars_BK.mean(1), atol=1e-6)
    assert report.accuracy == report.mean_accuracy


def test_the_aggregator_learns_which_member_to_trust():
    data, _ = vector_set()
    aggregator, report = fit_aggregator(data, settings(), {"mean": data.scalars_BK.mean(1)})
    assert report.accuracy > report.mean_accuracy
    assert report.steps > 0
    weights_K = aggregator.weights_SK[0]
    assert weights_K[1] > weights_K[0]


def test_bootstrap_copies_differ_even_where_the_held_out_folds_stop_at_once():
    data, _ = vector_set()
    swapped = VectorSet(data.scalars_BK, data.vectors_BV, data.rejected_P, data.chosen_P, data.weight_P, data.comparison_P, data.fold_P)
    aggregator, _ = fit_aggregator(swapped, settings(learning_rate=1e-4), {"mean": data.scalars_BK.mean(1)})
    assert aggregator(data.scalars_BK, data.vectors_BV)[:, 1:].std(1).min() > 0


def test_calibrated_rewards_have_mean_zero_and_the_fitted_temperature():
    data, vectors_BKD = vector_set()
    inner = InnerModel("talk", ("logic", "tone"), 4, units=4, copies=4)
    with torch.no_grad():
        inner.heads_KD.fill_(1.0)
    set_statistics(inner, vectors_BKD)
    aggregator, report = fit_aggregator(data, settings(), {"mean": data.scalars_BK.mean(1)})
    inner.aggregator.load_state_dict(aggregator.state_dict())
    full = {name: report.temperature.get(name, 1.0) for name in AGGREGATIONS}
    calibrate(inner, type(report)(report.steps, report.loss, report.accuracy, report.mean_accuracy, full), vectors_BKD, uwo_penalty=0.5)
    for name in ("mlp", "mean"):
        with torch.no_grad():
            judged = inner.judge(vectors_BKD, aggregation=name)
            raw = inner.raw_rewards(vectors_BKD, uwo_penalty=0.5)[name]
        raw = raw[:, 0] if name == "mlp" else raw
        assert judged.reward_B.mean().item() == pytest.approx(0.0, abs=1e-5)
        assert judged.reward_B.std().item() == pytest.approx(raw.std().item() / full[name], rel=1e-4)
        assert judged.members_BK.mean(0).abs().max() < 1e-5


def test_the_task_aggregation_needs_the_task_model_as_a_member():
    inner = InnerModel("talk", ("logic", "tone"), 4, units=4, copies=2)
    with pytest.raises(ConfigError, match="'task' is not available for category 'talk'"):
        inner.judge(torch.zeros(1, 2, 4), aggregation="task")
