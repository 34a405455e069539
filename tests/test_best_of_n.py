"""Selection on pools: estimators against brute force, the RL frontier against numerical optimisation, fits, the reader, the verb."""

import csv
import itertools
import json
import math
import re

import numpy as np
import pytest
from make_artifact_fixture import FIXTURES

from dmoerm.cli import main as cli
from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.best_of_n import best_of_n_curves, kl_bound, n_grid, random_curves, selection_kl, selection_probabilities
from dmoerm.evaluation.best_of_n_page import study_sections
from dmoerm.evaluation.bootstrap import Resampling
from dmoerm.evaluation.frontier import Tilt, frontier_curves, kl_targets
from dmoerm.evaluation.gold_curves import PromptCurves, fit_gain, fit_weights, gold_curves, standardised_rewards
from dmoerm.evaluation.pool_study import author_rewards, regime_of, study_pools, with_gold
from dmoerm.evaluation.pools import Pool, RecordedRewards, keep_rewards, parse_filter, read_pools
from dmoerm.evaluation.report import report_html
from dmoerm.records import Message

FEW = Resampling(samples=200)
POOLS = {
    "all different": [0.3, -1.0, 2.0, 0.9],
    "a tie at the top": [1.0, 2.0, 2.0, -3.0],
    "a tie below": [1.0, 1.0, 5.0, 1.0],
    "all equal": [4.0, 4.0, 4.0],
    "one failed": [1.0, None, 0.5, 0.5],
    "two failed": [None, 2.0, None],
    "all failed": [None, None, None],
}


def key(reward):
    return -math.inf if reward is None else reward


def by_brute_force(rewards, draws, size):
    """Over all draws, the best one; where several draws tie, each is picked alike."""
    picked = np.zeros(size)
    for draw in draws:
        best = max(key(rewards[place]) for place in draw)
        tied = [place for place in draw if key(rewards[place]) == best]
        for place in tied:
            picked[place] += 1 / len(tied) / len(draws)
    return picked


# --- best-of-n --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rewards", POOLS.values(), ids=POOLS)
def test_a_finite_pool_is_picked_from_as_over_all_sequences(rewards):
    n_N = np.array([1, 2, 3, 5])
    found = selection_probabilities(rewards, n_N, "finite")
    for column, n in enumerate(n_N):
        draws = list(itertools.product(range(len(rewards)), repeat=int(n)))
        assert found[:, column] == pytest.approx(by_brute_force(rewards, draws, len(rewards)), abs=1e-12)


@pytest.mark.parametrize("rewards", POOLS.values(), ids=POOLS)
def test_samples_are_picked_from_as_over_all_subsets(rewards):
    n_N = np.arange(1, len(rewards) + 1)
    found = selection_probabilities(rewards, n_N, "samples")
    for column, n in enumerate(n_N):
        draws = list(itertools.combinations(range(len(rewards)), int(n)))
        assert found[:, column] == pytest.approx(by_brute_force(rewards, draws, len(rewards)), abs=1e-12)


def test_the_probabilities_are_those_worked_out_by_hand():
    # Of 16 sequences of two: one of failures only, three more without a 2, twelve with one.
    assert selection_probabilities([1.0, 2.0, 2.0, None], np.array([2]), "finite")[:, 0] == pytest.approx([3 / 16, 6 / 16, 6 / 16, 1 / 16])
    # Of 6 subsets of two, only {1, failed} has no 2.
    assert selection_probabilities([1.0, 2.0, 2.0, None], np.array([2]), "samples")[:, 0] == pytest.approx([1 / 6, 5 / 12, 5 / 12, 0])
    assert selection_kl(np.array([[0.5], [0.5], [0.0], [0.0]])) == pytest.approx([math.log(2)])
    assert kl_bound(np.array([1, 4])) == pytest.approx([0, math.log(4) - 0.75])


def test_the_estimate_over_subsets_is_unbiased():
    # A policy of three responses; the mean of the estimate over all samples of four from it is what best-of-n of the policy is.
    rewards, gold, n_N = [0.0, 1.0, 2.0], [3.0, -1.0, 0.5], np.array([1, 2, 3, 4])
    exact = np.array(gold) @ selection_probabilities(rewards, n_N, "finite")
    estimates = [
        np.array([gold[place] for place in sample]) @ selection_probabilities([rewards[place] for place in sample], n_N, "samples")
        for sample in itertools.product(range(3), repeat=4)
    ]
    assert np.mean(estimates, axis=0) == pytest.approx(exact, abs=1e-12)


def test_thousands_of_samples_neither_overflow_nor_lose_mass():
    rewards = [float(number % 997) for number in range(5000)]
    found = selection_probabilities(rewards, np.array([1, 50, 2500, 5000]), "samples")
    assert found.sum(axis=0) == pytest.approx(np.ones(4), abs=1e-9)
    assert found[996, 3] == pytest.approx(1 / 5)  # five of them have the highest reward


def test_the_kl_of_a_finite_pool_is_below_the_bound_and_near_it_in_a_large_one():
    n_N = np.array([1, 2, 4, 16, 300])
    for size in (3, 50):
        assert (selection_kl(selection_probabilities(list(map(float, range(size))), n_N, "finite")) <= kl_bound(n_N) + 1e-12).all()
    large = selection_kl(selection_probabilities(list(map(float, range(20_000))), n_N[:4], "finite"))
    assert large == pytest.approx(kl_bound(n_N[:4]), abs=1e-3)


@pytest.mark.parametrize("map_reward", [lambda r: 100 * r + 7, lambda r: math.exp(r), lambda r: r**3], ids=["scale", "exp", "cube"])
def test_best_of_n_knows_the_order_of_rewards_alone(map_reward):
    rewards, gold, n_N = POOLS["a tie at the top"], [1.0, 2.0, 3.0, 4.0], np.array([1, 2, 7])
    before = best_of_n_curves([rewards], [gold], n_N, "finite")
    after = best_of_n_curves([[map_reward(one) for one in rewards]], [gold], n_N, "finite")
    assert after.gold_GN == pytest.approx(before.gold_GN)
    assert after.kl_GN == pytest.approx(before.kl_GN)


@pytest.mark.parametrize("regime", ["finite", "samples"])
def test_random_is_the_mean_over_all_orders(regime):
    gold, n_N = [1.0, 5.0, 2.0, 2.5], np.array([1, 2, 4])
    orders = [best_of_n_curves([list(order)], [gold], n_N, regime) for order in itertools.permutations([0.0, 1.0, 2.0, 3.0])]
    found = random_curves([gold], n_N, regime)
    assert found.gold_GN[0] == pytest.approx(np.mean([one.gold_GN[0] for one in orders], axis=0))
    assert found.kl_GN[0] == pytest.approx(np.mean([one.kl_GN[0] for one in orders], axis=0))


def test_the_grid_begins_at_1_doubles_in_two_steps_and_ends_at_the_largest():
    assert n_grid([57, 56], "finite", 20).tolist() == [1, 2, 3, 4, 6, 8, 12, 16, 20]
    assert n_grid([57, 56], "finite")[-1] == 8 * 57
    assert n_grid([57, 56], "samples")[-1] == 56
    with pytest.raises(ConfigError, match="max_n: 57; the smallest pool has 56 samples"):
        n_grid([57, 56], "samples", 57)
    with pytest.raises(ConfigError, match="max_n: 0; expected at least 1"):
        n_grid([57], "finite", 0)


def test_the_proxy_is_standardised_within_prompts_and_a_prompt_without_rewards_has_none():
    # Deviations -1, 1 and -3, 3: variances 1 and 9, so one unit is the root of 5.
    found = standardised_rewards([[10.0, 12.0], [0.0, None, 6.0], [None, None]])
    assert found[0] == pytest.approx([-1 / math.sqrt(5), 1 / math.sqrt(5)])
    assert found[1] == pytest.approx([-3 / math.sqrt(5), math.nan, 3 / math.sqrt(5)], nan_ok=True)
    assert np.isnan(found[2]).all()
    curves = best_of_n_curves([[10.0, 12.0], [None, None]], [[0.0, 1.0], [0.0, 1.0]], np.array([1, 2]), "finite")
    assert curves.proxy_GN == pytest.approx(np.array([[0.0, 0.5], [math.nan, math.nan]]), nan_ok=True)
    assert curves.gold_GN == pytest.approx(np.array([[0.5, 0.75], [0.5, 0.5]]))


# --- the frontier -----------------------------------------------------------------------------------------------------------------------


def numerical_optimum(rewards, beta, steps=3000, rate=0.05):
    """Mirror ascent on mean reward minus beta times KL, one prompt: no use of the closed form."""
    rewards = np.array(rewards)
    policy = np.ones(len(rewards)) / len(rewards)
    for _ in range(steps):
        slope = rewards - beta * (np.log(policy * len(rewards)) + 1)
        policy = policy * np.exp(rate * (slope - slope.max()))
        policy /= policy.sum()
    return policy


@pytest.mark.parametrize("beta", [0.3, 1.0, 5.0])
def test_the_optimum_is_what_numerical_optimisation_finds(beta):
    rewards = [[0.2, 1.5, -0.7], [0.0, 0.1, 0.1]]
    found = Tilt.of(rewards).policy(1 / beta)
    for row, one in zip(found, rewards, strict=True):
        assert row == pytest.approx(numerical_optimum(one, beta), abs=1e-6)


def test_no_policy_of_the_simplex_has_a_higher_reward_at_that_kl():
    rewards, targets = [[0.0, 1.0, 3.0]], np.array([0.1, 0.4, 0.8])
    curves = frontier_curves(rewards, rewards, targets)
    steps = np.linspace(0, 1, 301)
    grid = np.array([(a, b, 1 - a - b) for a in steps for b in steps if a + b <= 1 + 1e-12]).clip(0, 1)
    kl = np.sum(np.where(grid > 0, grid * np.log(np.where(grid > 0, grid, 1) * 3), 0), axis=1)
    for column, target in enumerate(targets, 1):
        best = (grid[kl <= target] @ rewards[0]).max()
        assert best <= curves.gold_GN[0, column] + 1e-9
        assert best == pytest.approx(curves.gold_GN[0, column], abs=0.02)


def test_one_beta_for_all_prompts_beats_the_same_kl_spent_otherwise():
    # Two prompts of two responses; a policy is the probability of the better one on each.
    rewards, target = [[0.0, 1.0], [0.0, 4.0]], 0.3
    curves = frontier_curves(rewards, rewards, np.array([target]))
    p = np.linspace(0.5, 1, 2001)[:-1]
    kl = p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))
    allowed = (kl[:, None] + kl[None, :]) / 2 <= target
    best = np.where(allowed, (p[:, None] * 1 + p[None, :] * 4) / 2, -1).max()
    assert best == pytest.approx(curves.gold_GN[:, 1].mean(), abs=1e-3)
    assert curves.kl_GN[1, 1] > curves.kl_GN[0, 1]  # the prompt whose rewards lie farther apart moves more


def test_the_ends_of_the_frontier_are_the_pool_and_the_best_response_with_ties_shared():
    rewards, gold = (
        [POOLS["a tie at the top"], POOLS["all failed"], POOLS["one failed"]],
        [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 6.0], [0.0, 8.0, 1.0, 3.0]],
    )
    curves = frontier_curves(rewards, gold, np.array([0.3]))
    assert curves.gold_GN[:, 0] == pytest.approx([2.5, 3.0, 3.0])
    assert curves.kl_GN[:, 0] == pytest.approx([0, 0, 0])
    assert curves.gold_GN[:, -1] == pytest.approx([2.5, 3.0, 0.0])
    assert curves.kl_GN[:, -1] == pytest.approx([math.log(2), 0, math.log(4)])
    assert curves.settings_N[0] == math.inf
    assert curves.settings_N[-1] == 0


def test_the_kl_that_was_asked_for_is_reached_and_what_cannot_be_is_left_out():
    rng = np.random.default_rng(0)
    rewards = [rng.normal(size=size).tolist() for size in (5, 9, 9)]
    targets = kl_targets([5, 9, 9])
    curves = frontier_curves(rewards, rewards, targets)
    assert curves.kl_GN.mean(axis=0)[1:-1] == pytest.approx(targets, abs=1e-8)
    assert (np.diff(curves.gold_GN.mean(axis=0)) > 0).all()  # the reward itself rises along its frontier
    tied = frontier_curves([[1.0, 1.0, 0.0]], [[1.0, 2.0, 3.0]], np.array([0.1, 0.5]))
    assert tied.kl_GN[0] == pytest.approx([0, 0.1, math.log(1.5)], abs=1e-8)
    failed = frontier_curves([[1.0, None, 0.0]], [[1.0, 2.0, 3.0]], np.array([0.1, 0.5]))
    assert failed.kl_GN[0] == pytest.approx([0, 0.5, math.log(3)], abs=1e-8)
    constant = frontier_curves([[1.0, 1.0]], [[1.0, 2.0]], np.array([0.1]))
    assert constant.kl_GN[0] == pytest.approx([0, 0])


@pytest.mark.parametrize(("scale", "shifts"), [(1e6, (0, 0)), (1e-6, (0, 0)), (3.0, (1e4, -50.0))])
def test_the_unit_of_a_reward_and_a_shift_within_prompts_change_no_frontier(scale, shifts):
    rewards, gold = [[0.0, 1.0, 3.0], [2.0, 1.0, -1.0]], [[1.0, 5.0, 2.0], [0.0, 1.0, 2.0]]
    moved = [[scale * one + shift for one in group] for group, shift in zip(rewards, shifts, strict=True)]
    targets = np.array([0.1, 0.5, 0.9])
    before, after = (frontier_curves(one, gold, targets) for one in (rewards, moved))
    assert after.gold_GN == pytest.approx(before.gold_GN, abs=1e-7)


# --- fits and figures -------------------------------------------------------------------------------------------------------------------


def synthetic(form, alpha, beta, seed, prompts=60, noise=0.5):
    """Prompts whose own α and β lie around the true ones, with noise on top; gain 0 at the start."""
    rng = np.random.default_rng(seed)
    d_N = np.linspace(0.0, 2.0, 12)
    turn_N = d_N if form == "best_of_n" else np.log(np.where(d_N > 0, d_N, 1))
    own_G = alpha + noise * rng.normal(size=(prompts, 1)), beta + noise * rng.normal(size=(prompts, 1))
    gold_GN = 3.0 + d_N * (own_G[0] - own_G[1] * turn_N) + noise * d_N * rng.normal(size=(prompts, 12))
    kl_GN = np.tile(d_N**2, (prompts, 1))
    return PromptCurves(np.arange(1.0, 13.0), kl_GN, gold_GN, np.full_like(gold_GN, math.nan))


@pytest.mark.parametrize("form", ["best_of_n", "rl"])
def test_a_fit_without_noise_gives_back_its_parameters(form):
    found = gold_curves({"one": synthetic(form, 1.2, 0.4, 0, noise=0)}, form, reference="one", resampling=FEW)[0].fit
    assert (found.alpha.value, found.beta.value) == pytest.approx((1.2, 0.4))
    assert found.misfit == pytest.approx(0, abs=1e-9)
    peak = 1.5 if form == "best_of_n" else math.exp(2)  # α/(2β), and exp(α/β − 1)
    assert found.peak_kl == pytest.approx(peak**2)


@pytest.mark.parametrize("form", ["best_of_n", "rl"])
def test_intervals_of_a_fit_hold_the_true_parameters_about_as_often_as_they_say(form):
    held = []
    for seed in range(60):
        fit = gold_curves({"one": synthetic(form, 1.2, 0.4, seed)}, form, reference="one", resampling=FEW)[0].fit
        held += [fit.alpha.low <= 1.2 <= fit.alpha.high, fit.beta.low <= 0.4 <= fit.beta.high]
    assert np.mean(held) >= 0.85  # 0.95 stated; percentile intervals over 60 prompts are a little narrow


def test_a_fit_weighs_points_by_their_variance_and_needs_two_different_kl():
    kl_N, exact_N = np.array([0.0, 1.0, 4.0]), np.array([0.0, 1.0, 0.0])  # d = 1, 2: α = 2, β = 1
    weights = fit_weights(kl_N, np.array([0.0, 0.25, 0.5]))
    assert weights == pytest.approx([0.0, 4.0, 2.0])
    assert fit_weights(kl_N, np.array([0.0, 0.0, 0.5])).tolist() == [0, 1, 1]
    alpha, beta = fit_gain(kl_N[None], exact_N[None], weights, "best_of_n")
    assert (alpha[0], beta[0]) == pytest.approx((2.0, 1.0))
    assert np.isnan(fit_gain(np.array([[0.0, 1.0]]), np.array([[0.0, 1.0]]), np.array([0.0, 1.0]), "best_of_n")[0]).all()


def test_peak_fall_and_differences_are_those_of_the_mean_curves():
    settings, kl = np.array([1.0, 2.0, 4.0]), np.array([[0.0, 0.2, 0.6]] * 2)
    none = np.full((2, 3), math.nan)
    up_and_down = PromptCurves(settings, kl, np.array([[1.0, 3.0, 2.0], [1.0, 5.0, 3.0]]), none)
    rising = PromptCurves(settings, kl, np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]), none)
    first, second = gold_curves({"a": up_and_down, "b": rising}, "best_of_n", reference="a", resampling=FEW)
    assert (first.peak.setting, first.peak.kl, first.peak.gold.value) == (2.0, pytest.approx(0.2), 4.0)
    assert (first.fall.value, first.fall.low, first.fall.high) == (-1.5, -2.0, -1.0)  # draws of two prompts: -1, -1.5 or -2
    assert (first.turns, second.turns, second.fall.value) == (1.0, 0.0, 0.0)
    assert (first.gain.value, second.gain.value) == (3.0, 2.0)
    assert first.end_difference is None
    assert (second.peak_difference.value, second.end_difference.value) == (-1.0, 0.5)
    assert first.points[0].proxy is None
    with pytest.raises(DataError, match=r"over \[1, 2\] prompts; expected at least one, all over the same"):
        gold_curves({"a": rising, "b": PromptCurves(settings, kl[:1], none[:1], none[:1])}, "rl", reference="a", resampling=FEW)


# --- pools ------------------------------------------------------------------------------------------------------------------------------


def row(number, scores=(0.1, 0.9, 0.4), authors=("x", "y", "z"), **more):
    texts = ("tell me about the river", "good clear true river", "")
    responses = [
        {"text": f"{text}{' stone' * number if text else ''}", "gold": score, "model": author}
        for text, score, author in zip(texts, scores, authors, strict=True)
    ]
    return {"prompt_id": f"p{number}", "fold": number % 2, "prompt": f"explain the number {number}", "responses": responses, **more}


def write(path, rows):
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def test_a_pool_is_read_with_its_empty_response_authors_and_null_gold(tmp_path):
    (pool,) = read_pools(write(tmp_path / "pool.jsonl", [row(3, scores=(0.1, None, 2), category="qa")]))
    assert pool.id == "p3"
    assert pool.prompt == (Message("user", "explain the number 3"),)
    assert pool.responses[2] == ""
    assert pool.gold == (0.1, None, 2.0)
    assert pool.authors == ("x", "y", "z")
    assert pool.category == "qa"
    assert pool.source.endswith("pool.jsonl:1")


def test_the_files_of_llm_optimization_are_read(tmp_path):
    rows = [
        {"instruction": "Add.", "input": "1 + 1", "answers": ["2", "3"], "gold_scores": [1.5, -2]},
        {"instruction": "Say hello.", "input": "", "answers": ["hello", ""]},
    ]
    path = tmp_path / "bon.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    first, second = read_pools(path)
    assert first.prompt == (Message("user", "Add.\n1 + 1"),)
    assert (first.responses, first.gold, first.authors) == (("2", "3"), (1.5, -2.0), (None, None))
    assert second.prompt == (Message("user", "Say hello."),)
    assert second.gold == (None, None)


def without(data, *keys):
    return {name: value for name, value in data.items() if name not in keys}


FAULTS = {
    "no responses": (without(row(1), "responses"), r'pool\.jsonl:1: "responses" is missing'),
    "one response": ({"prompt": "a", "responses": [{"text": "b", "gold": 1}]}, r"1: 1 responses; expected at least 2"),
    "some without gold": (
        {"prompt": "a", "responses": [{"text": "b", "gold": 1}, {"text": "c"}]},
        r'1: "responses", item 2: "gold" is missing',
    ),
    "gold is text": ({"prompt": "a", "responses": [{"text": "b", "gold": "1"}, {"text": "c", "gold": 1}]}, r'item 1: "gold" is a string'),
    "misspelt": ({"prompt": "a", "responses": [{"text": "b", "golds": 1}, {"text": "c", "golds": 1}]}, r'did you mean "gold"'),
    "text is a number": ({"prompt": "a", "responses": [{"text": 1}, {"text": "c"}]}, r'item 1: "text" is a number; expected a string'),
    "no list": ({"prompt": "a", "responses": "b"}, r'"responses" is a string; expected a list'),
    "empty prompt": ({"prompt": " ", "responses": [{"text": "b"}, {"text": "c"}]}, r'"prompt" is empty'),
    "too few scores": (
        {"instruction": "a", "answers": ["b", "c"], "gold_scores": [1]},
        r'"gold_scores" has 1 items for 2 responses',
    ),
}


@pytest.mark.parametrize(("data", "message"), FAULTS.values(), ids=FAULTS)
def test_a_row_that_is_no_pool_is_refused_by_line_and_field(tmp_path, data, message):
    with pytest.raises(DataError, match=message):
        read_pools(write(tmp_path / "pool.jsonl", [data]))


def test_a_gold_column_that_was_named_must_be_there(tmp_path):
    path = write(tmp_path / "pool.jsonl", [row(1)])
    with pytest.raises(DataError, match=r'1: "responses", item 1: "human" is missing'):
        read_pools(path, gold_column="human")
    answers = write(tmp_path / "answers.jsonl", [{"instruction": "a", "answers": ["b", "c"]}])
    with pytest.raises(DataError, match=r'1: "human" is missing'):
        read_pools(answers, gold_column="human")


def test_rows_are_chosen_by_their_keys_and_the_first_are_taken(tmp_path):
    path = write(tmp_path / "pool.jsonl", [row(number) for number in range(6)])
    assert [pool.id for pool in read_pools(path, only=parse_filter(["fold=1"]))] == ["p1", "p3", "p5"]
    assert [pool.id for pool in read_pools(path, only=parse_filter(["prompt_id=p4", "prompt_id=p0"]))] == ["p0", "p4"]
    assert [pool.id for pool in read_pools(path, only=parse_filter(["fold=0"]), limit=2)] == ["p0", "p2"]
    with pytest.raises(DataError, match=r"no row with fold=7\. fold has 0, 1\."):
        read_pools(path, only=parse_filter(["fold=7"]))
    with pytest.raises(DataError, match='"flod", by which rows are chosen, is missing; did you mean fold'):
        read_pools(path, only=parse_filter(["flod=1"]))
    with pytest.raises(ConfigError, match="--only fold: expected KEY=VALUE"):
        parse_filter(["fold"])
    with pytest.raises(ConfigError, match="limit: 0; expected at least 1"):
        read_pools(path, limit=0)


def test_a_prompt_that_comes_twice_and_an_empty_file_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"pool\.jsonl:2: the prompt is that of .*pool\.jsonl:1\. Put all responses"):
        read_pools(write(tmp_path / "pool.jsonl", [row(1), row(1)]))
    with pytest.raises(DataError, match="no rows; expected pools"):
        read_pools(write(tmp_path / "empty.jsonl", []))


def test_kept_rewards_come_back_and_only_for_what_was_scored(tmp_path):
    pools = read_pools(write(tmp_path / "pool.jsonl", [row(1), row(2)]))
    path = tmp_path / "mine.rewards.jsonl"
    keep_rewards(path, pools, [[1.0, None, 0.25], [0.1, 0.2, 0.3]])
    recorded = RecordedRewards(path)
    assert recorded.name == "mine"
    assert recorded.score([pools[1].candidates, pools[0].candidates]) == [[0.1, 0.2, 0.3], [1.0, None, 0.25]]
    (other,) = read_pools(write(tmp_path / "other.jsonl", [row(3)]))
    with pytest.raises(DataError, match=r"holds no rewards for this prompt .*explain the number 3"):
        recorded.score([other.candidates])
    with pytest.raises(ConfigError, match=r"expected a name that ends in \.rewards\.jsonl"):
        keep_rewards(tmp_path / "mine.json", pools, [])


# --- the study --------------------------------------------------------------------------------------------------------------------------


def pool_of(number, gold, authors=None, lengths=None):
    texts = tuple("x" * length for length in (lengths or range(1, len(gold) + 1)))
    return Pool(f"p{number}", (Message("user", f"prompt {number}"),), texts, tuple(gold), tuple(authors or (None,) * len(gold)))


def test_the_best_author_is_judged_on_other_prompts():
    pools = [pool_of(0, (1.0, 0.0), ("a", "b")), pool_of(1, (0.2, 0.6, 0.5), ("a", "b", "c")), pool_of(2, (0.0, 0.4), ("a", "b"))]
    found = author_rewards(pools)
    assert found[0] == pytest.approx([0.1, 0.5])
    assert found[1][:2] == pytest.approx([0.5, 0.2])
    assert found[1][2] is None  # c answers nowhere else
    assert found[2] == pytest.approx([0.6, 0.3])
    elsewhere = [pool_of(7, (3.0, 4.0), ("a", "c")), pool_of(0, (9.0, 9.0), ("a", "b"))]
    assert author_rewards(pools, elsewhere)[1] == [3.0, None, 4.0]  # prompt 0 is tested, so nothing is learned from it
    assert author_rewards([pool_of(0, (1.0, 0.0), ("a", "a"))]) is None


def test_authors_tell_a_finite_pool_from_samples():
    assert regime_of([pool_of(0, (1, 2), ("a", "b"))]) == "finite"
    assert regime_of([pool_of(0, (1, 2), ("a", "a")), pool_of(1, (1, 2), ("b", "b"))]) == "samples"
    assert regime_of([pool_of(0, (1, 2))]) == "samples"


def study(count=40, seed=0, **more):
    """A reward that follows gold, and falls for length: the longest response is bad."""
    rng = np.random.default_rng(seed)
    pools, good, fooled = [], [], []
    for number in range(count):
        lengths = rng.permutation(np.arange(1, 13))
        gold = rng.normal(size=12) - 3.0 * (lengths == 12)
        pools.append(pool_of(number, gold.tolist(), [f"m{place}" for place in range(12)], lengths.tolist()))
        good.append((gold + 0.3 * rng.normal(size=12)).tolist())
        fooled.append((gold + 0.3 * rng.normal(size=12) + 8.0 * (lengths == 12)).tolist())
    return study_pools(pools, {"fooled": fooled, "good": good}, resampling=FEW, **more)


def test_a_fooled_reward_rises_turns_and_falls_and_the_rows_beside_it_are_there():
    found = study()
    assert found.regime == "finite"
    assert (found.prompts, found.responses, found.reference) == (40, 480, "fooled")
    rows = {one.name: one for one in found.best_of_n}
    assert list(rows) == ["fooled", "good", "longest", "best author", "random", "gold"]
    assert rows["fooled"].fall.high < 0
    assert rows["fooled"].turns > 0.9
    assert rows["fooled"].fit.beta.low > 0
    assert rows["good"].end_difference.low > 0
    assert rows["good"].fall.value > -0.1
    assert rows["longest"].points[-1].gold.value < found.start.value
    random = rows["random"]
    assert [point.gold.value for point in random.points] == pytest.approx([found.start.value] * len(random.points))
    assert random.points[-1].kl == pytest.approx(rows["gold"].points[-1].kl)
    assert (random.peak.setting, random.turns, random.fall.value) == (1, 0, pytest.approx(0))  # a level line neither peaks nor falls
    for one in found.best_of_n:
        assert all(point.gold.value <= top.gold.value + 1e-9 for point, top in zip(one.points, rows["gold"].points, strict=True))
    assert [one.name for one in found.frontier] == ["fooled", "good", "longest", "best author", "gold"]
    assert found.frontier[0].fall.high < 0


def test_perfect_rl_has_at_least_the_proxy_of_best_of_n_at_its_kl():
    found = study()
    for name in ("fooled", "good", "gold"):
        frontier = next(one for one in found.frontier if one.name == name)
        kl, proxy = [point.kl for point in frontier.points], [point.proxy for point in frontier.points]
        for point in next(one for one in found.best_of_n if one.name == name).points[1:-3]:
            above = next(place for place, value in enumerate(kl) if value >= point.kl)
            assert proxy[above] >= point.proxy - 1e-9


def test_samples_have_no_frontier_and_the_bound_as_kl():
    found = study(regime="samples")
    assert found.frontier == ()
    assert [point.setting for point in found.best_of_n[0].points] == [1, 2, 3, 4, 6, 8, 12]
    assert found.best_of_n[0].points[-1].kl == pytest.approx(math.log(12) - 11 / 12)
    assert "upper bound log n - (n - 1)/n" in found.as_table()


def test_failures_and_missing_gold_are_counted_never_scored_as_0():
    pools = [pool_of(0, (1.0, None, 3.0)), pool_of(1, (None, 2.0)), pool_of(2, (1.0, 2.0))]
    found = study_pools(pools, {"one": [[None, 9.0, 1.0], [1.0, 1.0], [2.0, 1.0]]}, regime="finite", resampling=FEW)
    assert (found.prompts, found.responses, found.without_gold, found.short_pools) == (2, 4, 2, 1)
    first = found.best_of_n[0]
    assert (first.responses, first.failed) == (4, 1)
    assert first.points[-1].gold.value == pytest.approx(2.0, abs=1e-3)  # 3 on the first prompt, 1 on the third
    table = found.as_table()
    assert "2 responses without a gold score left out, 1 prompts with them" in table


def test_what_cannot_be_studied_is_refused():
    pools = [pool_of(0, (1.0, 2.0))]
    with pytest.raises(DataError, match="not one for each response of these pools"):
        study_pools(pools, {"one": [[1.0]]})
    with pytest.raises(ConfigError, match="a model is named 'gold', which is a row of its own"):
        study_pools(pools, {"gold": [[1.0, 2.0]]})
    with pytest.raises(DataError, match="No response has a gold score"):
        study_pools([pool_of(0, (None, None))], {"one": [[1.0, 2.0]]})
    with pytest.raises(DataError, match="No prompt has two responses with a gold score"):
        study_pools([pool_of(0, (None, 1.0))], {"one": [[1.0, 2.0]]})
    assert with_gold(pools, [[None, 5.0]])[0].gold == (None, 5.0)


def test_the_same_pools_and_seed_give_the_same_study_as_json_and_table():
    assert study().as_dict() == study().as_dict()
    document = json.dumps(study().as_dict(), allow_nan=False)
    assert json.loads(document)["frontier"][0]["points"][0]["setting"] is None  # an infinite beta
    table = study().as_table()
    assert not re.search(r"\bnan\b", table)
    assert re.search(r"(?m)^fooled +-?\d\.\d{3} \[", table)
    assert re.search(r"(?m)^good +at the peaks [+-]", table)


def test_the_page_shows_curves_figures_fits_and_what_they_were_made_with():
    sections = study_sections(study())
    titles = [section.title for section in sections]
    assert titles[:5] == [
        "What is measured",
        "Gold under best-of-n",
        "Proxy and gold under best-of-n",
        "Best-of-n: peak and fall",
        "Best-of-n: fit",
    ]
    assert "Gold along the exact RL frontier" in titles
    assert titles[-1] == "Made with"
    page = report_html("Best-of-n", sections)
    assert not re.search(r"\bnan\b", page)
    assert "best author" in page


# --- the verb ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pool_file(tmp_path):
    rng = np.random.default_rng(3)
    return write(tmp_path / "pool.jsonl", [row(number, scores=rng.uniform(size=3).tolist()) for number in range(8)])


def call(capsys, *words):
    code = cli.main(["best-of-n", *map(str, words), "--bootstrap-samples", "100", "-q"])
    return code, capsys.readouterr()


def test_the_verb_prints_writes_and_reuses_kept_rewards(pool_file, tmp_path, capsys):
    model, backbone = FIXTURES / "artifact_v2" / "model", FIXTURES / "artifact_v2" / "backbone"
    kept = tmp_path / "kept"
    words = ("longest", pool_file, "--backbone", backbone, "--aggregation", "mlp", "mean", "--keep", kept, "--only", "fold=0", "--json")
    code, shown = call(capsys, model, *words, "--html", tmp_path / "page.html", "--csv", tmp_path / "csv")
    assert code == cli.DONE
    found = json.loads(shown.out)
    assert [one["name"] for one in found["best_of_n"]] == ["model/mlp", "model/mean", "longest", "best author", "random", "gold"]
    assert (found["prompts"], found["responses"], found["regime"]) == (4, 12, "finite")
    assert found["best_of_n"][0]["failed"] == 4  # the empty responses
    assert found["best_of_n"][2]["failed"] == 0
    assert "Gold under best-of-n" in (tmp_path / "page.html").read_text(encoding="utf-8")
    with (tmp_path / "csv" / "frontier.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["reward", "beta", "kl", "proxy", "gold", "gold_low", "gold_high"]
    assert (tmp_path / "csv" / "best_of_n.csv").is_file()
    again = call(capsys, kept / "model-mlp.rewards.jsonl", pool_file, "--only", "fold=0", "--json")[1]
    before, after = (
        [(p["setting"], p["kl"], p["proxy"], p["gold"]["value"]) for p in one["best_of_n"][0]["points"]]
        for one in (found, json.loads(again.out))
    )
    assert np.array(after) == pytest.approx(np.array(before))


def test_a_gold_model_scores_the_pool_instead_of_the_file(pool_file, capsys):
    code, shown = call(capsys, "longest", pool_file, "--gold", "longest", "--samples", "--max-n", "3")
    assert code == cli.DONE
    assert "8 prompts (fewer than 30: intervals are too narrow), 24 responses" in shown.out
    by_name = {line.split()[0]: line.split()[1:] for line in shown.out.splitlines() if line.startswith(("longest", "gold "))}
    assert by_name["longest"] == by_name["gold"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-n", "9", "--samples"], "max_n: 9; the smallest pool has 3 samples"),
        (["--gold-column", "human"], '"human" is missing'),
        (["--only", "fold"], "expected KEY=VALUE"),
        (["--device", "quantum", "--gold", "somewhere/else"], "--device quantum: not usable here"),
    ],
)
def test_the_verb_says_what_is_wrong(pool_file, capsys, words, message):
    code, shown = call(capsys, "longest", pool_file, *words)
    assert code == cli.FAILED
    assert message in shown.err


def test_a_pool_without_gold_is_refused_before_a_model_is_opened(tmp_path, capsys):
    path = write(tmp_path / "pool.jsonl", [{"prompt": "a", "responses": [{"text": "b"}, {"text": "c"}]}])
    code, shown = call(capsys, tmp_path / "no-such-model", path)
    assert code == cli.FAILED
    assert "no response has a gold score. Name their key (--gold-column), or a gold model (--gold)" in shown.err
