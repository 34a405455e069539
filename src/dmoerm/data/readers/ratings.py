"""Ratings to ranks and labels: of two responses the one with the higher rating is better, equal or missing ratings say nothing.

Pure functions; what a rating means, and which numbers it may be, is the business of the reader.
"""

import itertools
from collections.abc import Mapping, Sequence

from dmoerm.records import CapabilityLabel

__all__ = ["labels_by_rating", "ranks_by_score"]


def ranks_by_score(scores: Sequence[float]) -> tuple[int, ...]:
    """Ranks without gaps, 1 for the highest score; equal scores share a rank."""
    order = sorted(set(scores), reverse=True)
    return tuple(order.index(score) + 1 for score in scores)


def labels_by_rating(ratings: Mapping[str, Sequence[float | None]]) -> list[CapabilityLabel]:
    """One label for every two responses with different known ratings, for each aspect.

    Args:
        ratings: by the name of the aspect, one rating a response; higher is better, None is unknown.
    """
    labels = []
    for aspect, values in ratings.items():
        for first, second in itertools.combinations(range(len(values)), 2):
            a, b = values[first], values[second]
            if a is not None and b is not None and a != b:
                labels.append(CapabilityLabel(aspect, *((first, second) if a > b else (second, first))))
    return labels
