"""Verdicts on hand-made rewards."""

import math

import pytest

from dmoerm.errors import DataError
from dmoerm.records import Reward
from dmoerm.scoring.verdict import letter, verdict, verdict_text


def reward(value, uncertainty=0.3, *, truncated=False, **capabilities):
    return Reward(value, "chitchat", 0.8, capabilities, 0.0, uncertainty, truncated)


def test_the_highest_reward_wins_and_the_margin_is_to_the_next():
    found = verdict([reward(0.1), reward(1.1), reward(-2.0)])
    assert (found.winner, found.second) == (1, 0)
    assert found.margin == pytest.approx(1.0)
    assert found.probability == pytest.approx(1 / (1 + math.exp(-1.0)))
    assert found.clear


def test_the_uncertainty_of_a_margin_is_the_root_of_the_summed_squares():
    found = verdict([reward(0.4, 0.3), reward(0.0, 0.4)])
    assert found.margin_uncertainty == pytest.approx(0.5)
    assert not found.clear


def test_equal_rewards_are_a_tie_and_not_clear():
    found = verdict([reward(1.0, 0.0), reward(1.0, 0.0)])
    assert (found.winner, found.margin, found.probability, found.clear) == (0, 0.0, 0.5, False)
    assert "A and B are tied." in verdict_text([reward(1.0), reward(1.0)])


def test_a_single_response_has_nothing_to_compare_with():
    found = verdict([reward(1.0)])
    assert (found.second, found.margin) == (None, 0.0)
    assert "nothing to compare" in verdict_text([reward(1.0)])


def test_no_response_is_refused():
    with pytest.raises(DataError, match="at least one"):
        verdict([])


def test_a_huge_margin_is_drawn_and_called_99_percent_or_more():
    assert "preferred in 99% or more" in verdict_text([reward(4000.0), reward(0.0)], width=200)


def test_a_margin_within_the_uncertainty_is_said_to_be_no_clear_win():
    assert "within the uncertainty (0.50): no clear winner" in verdict_text([reward(0.4, 0.3), reward(0.0, 0.4)], width=200)


def test_an_uncertainty_of_zero_is_called_missing_rather_than_sure():
    assert "no uncertainty to set beside" in verdict_text([reward(0.4, 0.0), reward(0.0, 0.0)], width=200)


def test_bars_grow_from_the_middle_by_the_share_of_the_largest_value():
    text = verdict_text([reward(1.0, logic=2.0, empathy=-1.0), reward(0.0, logic=-2.0)], width=40)
    assert f" A {' ' * 14}|{'#' * 14}  +2.00" in text
    assert f" B {'#' * 14}|{' ' * 14}  -2.00" in text
    assert f" A {' ' * 7}{'#' * 7}|{' ' * 14}  -1.00" in text


@pytest.mark.parametrize("width", [10, 40, 57, 100])
def test_no_line_is_wider_than_asked_but_forty_columns_are_needed(width):
    text = verdict_text([reward(0.1, truncated=True, depth_of_knowledge=0.2), reward(-0.1, depth_of_knowledge=-9.0)], width=width)
    assert max(map(len, text.splitlines())) <= max(40, width)
    assert "(cut to fit)" in text


def test_letters_end_where_the_alphabet_does():
    assert [letter(index) for index in (0, 25, 26)] == ["A", "Z", "27"]


def test_the_dict_of_a_verdict_holds_every_reward():
    rewards = [reward(1.0, logic=0.5), reward(0.0, logic=-0.5)]
    found = verdict(rewards).as_dict(rewards)
    assert [result["capabilities"] for result in found["results"]] == [{"logic": 0.5}, {"logic": -0.5}]
