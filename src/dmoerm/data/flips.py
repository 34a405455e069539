"""Noise on purpose: a share of the training preferences turned round, to see how a model bears it.

Of n comparisons with a preference, floor(share · n + 1/2) are turned: a pair's winner loses, a ranking of more responses is read from the
other end, ties stay ties. Which ones depends on the seed, the order of the comparisons and nothing else, and a larger share only adds to a
smaller one. Capability labels stay as they are: they come from another source than the preference.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from dmoerm.errors import ConfigError
from dmoerm.records import Comparison

__all__ = ["flip_preferences"]


def flip_preferences(comparisons: Sequence[Comparison], share: float, seed: int) -> list[Comparison]:
    """The comparisons in their order, a share of them with the preference turned round.

    Args:
        comparisons: those that people tied in full are passed over and do not count.
        share: 0 to 1, of the comparisons with a preference.
        seed: another seed, other comparisons.

    Raises:
        ConfigError: a share outside 0 to 1.
    """
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"a share of {share} of the preferences cannot be flipped; expected 0 to 1")
    preferred = [place for place, comparison in enumerate(comparisons) if comparison.has_preference]
    random.Random(f"flips {seed}").shuffle(preferred)
    turned = set(preferred[: math.floor(share * len(preferred) + 0.5)])
    return [_turned(comparison) if place in turned else comparison for place, comparison in enumerate(comparisons)]


def _turned(comparison: Comparison) -> Comparison:
    ends = min(comparison.ranks) + max(comparison.ranks)
    return replace(comparison, ranks=tuple(ends - rank for rank in comparison.ranks))
