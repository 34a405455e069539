"""Noise in the training preferences: how many are turned, which ones, and what stays."""

import pytest

from dmoerm.data.flips import flip_preferences
from dmoerm.errors import ConfigError
from dmoerm.records import CapabilityLabel, Comparison, Message


def comparison(number, ranks):
    labels = (CapabilityLabel("logic", 0, 1),)
    return Comparison(f"c{number}", (Message("user", f"prompt {number}"),), tuple("abc")[: len(ranks)], ranks, labels=labels)


ALL = [comparison(number, (1, 2)) for number in range(30)] + [comparison(number, (1, 1)) for number in range(30, 40)]


def turned(flipped):
    return {after.id for before, after in zip(ALL, flipped, strict=True) if before.ranks != after.ranks}


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.1, 3), (0.25, 8), (0.4, 12), (1.0, 30)])
def test_the_count_is_exact_over_comparisons_with_a_preference(share, count):
    # 0.25 of 30 is 7.5, and a half goes up; the ten ties do not count.
    assert len(turned(flip_preferences(ALL, share, 0))) == count


def test_the_seed_decides_which_and_a_larger_share_only_adds():
    small, large = (turned(flip_preferences(ALL, share, 3)) for share in (0.1, 0.4))
    assert small < large
    assert small == turned(flip_preferences(ALL, 0.1, 3))
    assert small != turned(flip_preferences(ALL, 0.1, 4))


def test_a_ranking_is_read_from_the_other_end_and_labels_stay():
    before = [comparison(0, (1, 2, 2)), comparison(1, (3, 1, 2)), comparison(2, (2, 2))]
    after = flip_preferences(before, 1.0, 0)
    assert [c.ranks for c in after] == [(2, 1, 1), (1, 3, 2), (2, 2)]
    assert [c.labels for c in after] == [c.labels for c in before]
    assert [c.id for c in after] == ["c0", "c1", "c2"]


def test_a_share_beyond_one_is_refused():
    with pytest.raises(ConfigError, match=r"a share of 1\.2 .* expected 0 to 1"):
        flip_preferences(ALL, 1.2, 0)
