from collections import Counter

import pytest

from dmoerm.data.splits import fold_indices, overlapping_prompts, split_by_prompt, split_of
from dmoerm.errors import ConfigError
from dmoerm.records import Comparison, Message, prompt_hash


def prompt(text):
    return (Message("user", text),)


def comparison(text, id="x"):
    return Comparison(id=id, prompt=prompt(text), responses=("a", "b"), ranks=(1, 2))


MANY = [comparison(f"prompt {number}", str(number)) for number in range(2000)]


def test_the_fold_of_a_prompt_never_changes():
    # Computed apart: SHA-256 of "fold\n7\n<prompt hash>", first 8 bytes, big endian, modulo 5.
    assert [split_of(prompt(text), 5, 7) for text in ("a", "b", "c", "d")] == [3, 4, 4, 2]


def test_the_same_prompt_lands_on_the_same_side_whatever_stands_beside_it():
    rest, test = split_by_prompt(MANY, 0.3, seed=1)
    again = [comparison(f"prompt {number}", "other") for number in range(0, 2000, 7)]
    rest_again, test_again = split_by_prompt(again, 0.3, seed=1)
    assert not overlapping_prompts(rest, test_again)
    assert not overlapping_prompts(test, rest_again)


def test_both_parts_keep_the_order_and_together_are_everything():
    rest, test = split_by_prompt(MANY, 0.3, seed=1)
    assert sorted(rest + test, key=lambda one: int(one.id)) == MANY
    assert [int(one.id) for one in test] == sorted(int(one.id) for one in test)


def test_sizes_are_right_on_average():
    # 2000 prompts: the standard deviation of a fold's size is sqrt(2000 * 0.2 * 0.8) = 18, of the test part sqrt(2000 * 0.3 * 0.7) = 20.5.
    sizes = Counter(fold_indices(MANY, 5, seed=0))
    assert all(abs(sizes[fold] - 400) < 4 * 18 for fold in range(5))
    assert abs(len(split_by_prompt(MANY, 0.3, seed=0)[1]) - 600) < 4 * 20.5


def test_splits_of_different_seed_or_purpose_are_independent():
    _, test = split_by_prompt(MANY, 0.5, seed=0)
    for other in (split_by_prompt(test, 0.5, seed=1), split_by_prompt(test, 0.5, seed=0, purpose="phase 3")):
        # About half of about 1000; the same split again would keep all of them.
        assert abs(len(other[1]) - len(test) / 2) < 4 * 16
    assert split_by_prompt(test, 0.5, seed=0)[1] == test


def test_a_larger_fraction_only_adds_to_the_test_part():
    small, large = (split_by_prompt(MANY, fraction, seed=3)[1] for fraction in (0.1, 0.2))
    assert {one.id for one in small} < {one.id for one in large}


def test_the_ends_of_the_fraction_take_nothing_and_everything():
    assert split_by_prompt(MANY, 0.0, seed=0) == (MANY, [])
    assert split_by_prompt(MANY, 1.0, seed=0) == ([], MANY)


def test_roles_and_every_turn_count_as_part_of_the_prompt():
    a = Comparison("a", (Message("user", "x"),), ("1", "2"), (1, 2))
    b = Comparison("b", (Message("system", "x"),), ("1", "2"), (1, 2))
    assert overlapping_prompts([a], [b]) == []


def test_overlapping_prompts_are_named_once_by_their_hash():
    found = overlapping_prompts([comparison("a"), comparison("b")], [comparison("c"), comparison("b"), comparison("a"), comparison("b")])
    assert found == [prompt_hash(prompt("b")), prompt_hash(prompt("a"))]


def test_impossible_folds_and_fractions_are_refused():
    with pytest.raises(ConfigError, match="folds is 0; expected at least 1"):
        split_of(prompt("a"), 0, 0)
    with pytest.raises(ConfigError, match=r"test_fraction is 1\.5; expected 0 to 1"):
        split_by_prompt(MANY, 1.5, seed=0)
