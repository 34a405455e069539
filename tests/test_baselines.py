import math

import pytest

from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.baselines import BASELINES, AuthorPrior, BagOfWords, Chance, LongerResponse, RandomDraws, score_baselines
from dmoerm.evaluation.metrics import Scored, log_loss, pairwise_accuracy_score
from dmoerm.records import Comparison, Message


def comparison(id: str, *responses: str, ranks: tuple[int, ...] | None = None, authors: tuple[str | None, ...] = ()) -> Comparison:
    order = ranks or tuple(range(1, len(responses) + 1))
    return Comparison(id, (Message("user", f"prompt of {id}"),), responses, order, authors=authors)


def good_and_bad(n: int, start: int = 0) -> list[Comparison]:
    """The winner says "thanks"; winners are longer and shorter in turn."""
    made = []
    for i in range(start, start + n):
        words = f"topic{i % 3} " * (1 + i % 2 * 3)
        made.append(comparison(f"c{i}", f"thanks {words}", f"whatever {words if i % 4 > 1 else 'topic ' * 2}"))
    return made


TRAINING = [
    comparison("t1", "a kind answer", "a rude one", authors=("alpha", "beta")),
    comparison("t2", "kind again, and long", "rude", authors=("alpha", None)),
    comparison("t3", "fine", "kind", "rude and long", ranks=(1, 1, 2), authors=("beta", "alpha", "beta")),
]


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_gives_one_finite_reward_a_response(name):
    baseline = BASELINES[name]().fit(TRAINING)
    for unseen in (comparison("x", "kind", "rude", "?!", authors=("alpha", "gamma", None)), comparison("y", "", "日本語の答え")):
        rewards = baseline.score(unseen)
        assert len(rewards) == len(unseen.responses)
        assert all(isinstance(reward, float) and math.isfinite(reward) for reward in rewards)
        assert baseline.score(unseen) == rewards


def test_chance_agrees_exactly_half_and_says_nothing():
    data = [Scored(item, Chance().score(item)) for item in good_and_bad(20)]
    assert pairwise_accuracy_score(data).value == 0.5
    assert log_loss(data).value == pytest.approx(math.log(2.0))


def test_random_draws_depend_on_seed_and_comparison_only():
    first, second = good_and_bad(2)
    scorer = RandomDraws(seed=3)
    assert scorer.score(first) == RandomDraws(seed=3).fit(TRAINING).score(first)
    assert scorer.score(first) != scorer.score(second)
    assert scorer.score(first) != RandomDraws(seed=4).score(first)


def test_random_draws_agree_about_half():
    # Standard deviation of the share is 0.5 / sqrt(2000) = 0.011; four of them.
    scorer = RandomDraws()
    assert pairwise_accuracy_score([Scored(item, scorer.score(item)) for item in good_and_bad(2000)]).value == pytest.approx(0.5, abs=0.045)


def test_the_longer_response_wins_even_where_training_prefers_the_shorter():
    short_wins = [comparison(f"s{i}", "x", "xxxxxxxx" * 100) for i in range(10)]
    short, long = LongerResponse().fit(short_wins).score(comparison("q", "ab", "abc"))
    assert long > short


def test_the_weight_of_length_is_the_log_odds_of_a_thousand_characters():
    # The response with 1000 characters more wins 300 of 400 times: odds 3 to 1.
    long, short = "x" * 1000, ""
    pairs = [comparison(f"l{i}", long, short) for i in range(300)] + [comparison(f"s{i}", short, long) for i in range(100)]
    assert LongerResponse().fit(pairs).weight_per_thousand_characters == pytest.approx(math.log(3.0), abs=0.03)


def test_bag_of_words_finds_the_word_that_wins():
    baseline = BagOfWords().fit(good_and_bad(40))
    held_out = [Scored(item, baseline.score(item)) for item in good_and_bad(20, start=40)]
    assert pairwise_accuracy_score(held_out).value == 1.0


def test_bag_of_words_gives_unseen_words_nothing():
    assert BagOfWords().fit(good_and_bad(20)).score(comparison("q", "zebra", "")) == (0.0, 0.0)


def test_bag_of_words_learns_a_single_pair():
    kind, rude = BagOfWords().fit(TRAINING[:1]).score(comparison("q", "kind", "rude"))
    assert kind > rude


def test_bag_of_words_chooses_strong_regularisation_where_words_say_nothing():
    noise = [
        comparison(f"n{i}", f"w{i * 7 % 11} w{i % 5}", f"w{i * 3 % 11} w{i % 7}", ranks=(1, 2) if i % 2 else (2, 1)) for i in range(60)
    ]
    assert BagOfWords().fit(noise).strength == min(BagOfWords.strengths)
    assert BagOfWords().fit(good_and_bad(60)).strength == max(BagOfWords.strengths)


def test_bag_of_words_needs_words_and_a_fit():
    with pytest.raises(DataError, match="no word in the responses of 1 training comparisons"):
        BagOfWords().fit([comparison("a", "?!", "...")])
    with pytest.raises(DataError, match="call fit before score"):
        BagOfWords().score(TRAINING[0])


def test_author_prior_is_the_logit_of_the_smoothed_win_rate():
    pairs = [comparison(f"w{i}", "x", "y", authors=("alpha", "beta")) for i in range(3)] + [
        comparison("l", "x", "y", authors=("beta", "alpha"))
    ]
    # alpha: (3 + 1) / (1 + 1) = 2; beta: 1/2; the mean of ln 2 and -ln 2 is 0.
    scored = AuthorPrior().fit(pairs).score(comparison("q", "", "", "", "", authors=("alpha", "beta", "gamma", None)))
    assert scored == pytest.approx((math.log(2.0), -math.log(2.0), 0.0, 0.0))


def test_author_prior_without_authors_knows_nothing():
    assert AuthorPrior().fit([comparison("a", "x", "y")]).score(comparison("q", "x", "y")) == (0.0, 0.0)
    with pytest.raises(DataError, match="call fit before score"):
        AuthorPrior().score(TRAINING[0])


@pytest.mark.parametrize("name", ["longer", "bag_of_words", "author_prior"])
def test_training_without_a_ranked_pair_is_refused(name):
    with pytest.raises(DataError, match="No strictly ranked pair in 1 training comparisons"):
        BASELINES[name]().fit([comparison("tie", "x", "y", ranks=(1, 1))])


def test_all_baselines_are_scored_in_the_given_order():
    held_out = [comparison("h2", "kind", "rude"), comparison("h1", "rude", "kind", ranks=(2, 1))]
    result = score_baselines(TRAINING, held_out)
    assert list(result) == ["random", "longer", "bag_of_words", "author_prior"]
    assert [item.comparison.id for item in result["longer"]] == ["h2", "h1"]
    assert pairwise_accuracy_score(result["bag_of_words"]).value == 1.0


def test_without_training_data_only_those_that_need_none_are_scored():
    assert list(score_baselines([], TRAINING)) == ["random", "longer"]
    with pytest.raises(ConfigError, match="'author_prior' learns from training comparisons and none were given"):
        score_baselines([], TRAINING, ["author_prior"])


def test_unknown_names_and_shared_prompts_are_refused():
    with pytest.raises(ConfigError, match="baseline 'oracle' is unknown; expected one of random, longer"):
        score_baselines(TRAINING, good_and_bad(2), ["oracle"])
    with pytest.raises(DataError, match="1 prompts are in the training and in the scored comparisons"):
        score_baselines(TRAINING, TRAINING[:1])
