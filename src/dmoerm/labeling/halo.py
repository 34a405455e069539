"""Halo: capabilities that repeat the judge's own overall verdict, or one another.

An expert learns beyond overall only where the label of its capability differs from the overall one. Which figures are too high is decided
as in the doctor (`dmoerm.data.doctor.labels`), which sees the kept labels alone.

P pairs of responses.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from dmoerm.data.doctor.labels import ENOUGH_LABELS, REPEATED, SAME_BEYOND_OVERALL
from dmoerm.data.doctor.share import Share, share_of
from dmoerm.labeling.columns import Questions
from dmoerm.labeling.draws import Figure, IntArray
from dmoerm.records import OVERALL

__all__ = ["CapabilityPair", "capability_pairs", "cohen_kappa"]


@dataclass(frozen=True, slots=True)
class CapabilityPair:
    """Two capabilities of a category (or one and `OVERALL`) on the pairs where both have a label.

    Attributes:
        category: "" where unknown.
        one: a capability, or `OVERALL`.
        other: another one.
        agree: the share of equal labels; None without a common pair.
        beyond_people: kappa of "with the ranks" or "against them", so without what both owe to the better response; None without
            ranks, or where neither label ever goes against them.
        beyond_overall: kappa of "with the judge's overall verdict" or "against it"; None likewise, and for `OVERALL` itself.
        ranked: pairs with both labels and people's preference.
    """

    category: str
    one: str
    other: str
    agree: Share | None
    beyond_people: float | None
    beyond_overall: float | None
    ranked: int

    @property
    def correlation(self) -> Figure | None:
        """Phi of the two labels, -1 to 1, with its interval; also their kappa.

        Which response is called the first is arbitrary, so each pair counts together with its mirror image. Both of its names are then
        equally frequent, and both coefficients are twice the agreement minus 1.
        """
        share = self.agree
        if share is None:
            return None
        value, low, high = (2.0 * end - 1.0 for end in (share.value, share.low, share.high))
        return Figure(value, low, high, share.n, share.n_prompts)

    @property
    def same(self) -> bool:
        """Do two capabilities say the same, also where they go against people's ranks (without ranks, against the overall verdict)?"""
        if OVERALL in (self.one, self.other) or self.agree is None or self.agree.n < ENOUGH_LABELS or self.agree.value < REPEATED:
            return False
        beyond = self.beyond_people if self.ranked else self.beyond_overall
        return beyond is None or beyond >= SAME_BEYOND_OVERALL


def capability_pairs(questions: Questions) -> Iterator[CapabilityPair]:
    """Every two names of each category, `OVERALL` first."""
    for category in np.unique(questions.category_Q).tolist():
        of_category = questions.where(questions.category_Q == category)
        names = sorted(np.unique(of_category.capability_Q).tolist(), key=lambda name: (name != OVERALL, name))
        _, pair_Q = np.unique(of_category.pair_Q, return_inverse=True)
        size = int(pair_Q.max()) + 1
        prompt_P, people_P, overall_P = (np.zeros(size, dtype=np.int64) for _ in range(3))
        prompt_P[pair_Q], people_P[pair_Q], overall_P[pair_Q] = of_category.prompt_Q, of_category.people_Q, of_category.overall_Q
        labels = {}
        for name in names:
            asked = of_category.capability_Q == name
            labels[name] = np.zeros(size, dtype=np.int64)
            labels[name][pair_Q[asked]] = of_category.label_Q[asked]
        for one, other in combinations(names, 2):
            yield _compared(category, one, other, (labels[one], labels[other]), (people_P, overall_P), prompt_P)


def _compared(
    category: str, one: str, other: str, labels: tuple[IntArray, IntArray], references: tuple[IntArray, IntArray], prompt_P: IntArray
) -> CapabilityPair:
    both_P = (labels[0] != 0) & (labels[1] != 0)
    a, b, people, overall = (column_P[both_P] for column_P in (*labels, *references))
    return CapabilityPair(
        category,
        one,
        other,
        share_of(a == b, prompt_P[both_P]),
        cohen_kappa((a * people)[people != 0], (b * people)[people != 0]),
        None if one == OVERALL else cohen_kappa((a * overall)[overall != 0], (b * overall)[overall != 0]),
        int((people != 0).sum()),
    )


def cohen_kappa(one: IntArray, other: IntArray) -> float | None:
    """Agreement of two columns of 1 and -1 beyond chance, at most 1; None where chance alone would make them agree, or nothing is there.

    Source: Cohen (Educational and Psychological Measurement, 1960).
    """
    if not len(one):
        return None
    share_one, share_other = float(np.mean(one == 1)), float(np.mean(other == 1))
    chance = share_one * share_other + (1.0 - share_one) * (1.0 - share_other)
    return None if np.isclose(chance, 1.0) else (float(np.mean(one == other)) - chance) / (1.0 - chance)
