"""Agreement among several judges or annotators who answered the same questions.

A judge's answer to a question is its label, or "no difference" where it says so in both orders; an answer that changes with the order is
missing. A judge that never saw both orders (people, as a rule) counts by the one answer it gave.

U units: one item on one capability. J judges.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from dmoerm.data.doctor.share import Share, share_of
from dmoerm.labeling.alpha import alpha_difference, alpha_figure, value_counts
from dmoerm.labeling.columns import MISSING, Questions
from dmoerm.labeling.draws import Draws, Figure, IntArray
from dmoerm.records import OVERALL

__all__ = ["AlphaRow", "JudgePair", "JudgesAgreement", "judges_agreement"]

MOST_PAIRS = 45
"""Pairs of judges listed: those with most questions in common."""


@dataclass(frozen=True, slots=True)
class AlphaRow:
    """Alpha on one capability, all categories together; its `n` are the items that two judges or more answered."""

    capability: str
    alpha: Figure | None


@dataclass(frozen=True, slots=True)
class JudgePair:
    """How often two judges give the same answer, on capabilities and overall."""

    one: str
    other: str
    capabilities: Share | None
    overall: Share | None


@dataclass(frozen=True, slots=True)
class JudgesAgreement:
    """Agreement among judges.

    Attributes:
        judges: their names.
        items: distinct pairs of responses that two judges or more answered something about.
        rows: alpha by capability.
        capabilities: alpha over all capability questions.
        overall: alpha over overall questions.
        difference: capabilities minus overall, on the items where two judges or more answered the overall question; paired by prompt.
        pairs: agreement of two judges each.
    """

    judges: tuple[str, ...]
    items: int
    rows: tuple[AlphaRow, ...]
    capabilities: Figure | None
    overall: Figure | None
    difference: Figure | None
    pairs: tuple[JudgePair, ...]


@dataclass(frozen=True, slots=True)
class _Answers:
    """Answers by unit and judge, `MISSING` where there is none."""

    value_UJ: IntArray
    item_U: IntArray
    prompt_U: IntArray
    capability_U: NDArray[np.str_]

    def where(self, keep_U: NDArray[np.bool_]) -> "_Answers":
        return _Answers(self.value_UJ[keep_U], self.item_U[keep_U], self.prompt_U[keep_U], self.capability_U[keep_U])

    def alpha(self, draws: Draws) -> Figure | None:
        return alpha_figure(value_counts(self.value_UJ), self.prompt_U, draws)


def judges_agreement(questions: Questions, judges: Sequence[str], draws: Draws) -> JudgesAgreement | None:
    """Alpha and pairwise agreement; None where no two judges answered the same question."""
    if len(judges) < 2 or not len(questions):
        return None
    answers = _answers(questions, judges)
    shared = answers.where((answers.value_UJ != MISSING).sum(axis=1) >= 2)
    if not len(shared.item_U):
        return None
    about_overall = shared.capability_U == OVERALL
    capabilities, overall = shared.where(~about_overall), shared.where(about_overall)
    same_items = capabilities.where(np.isin(capabilities.item_U, overall.item_U))
    names = np.unique(capabilities.capability_U).tolist()
    return JudgesAgreement(
        tuple(judges),
        len(np.unique(shared.item_U)),
        tuple(AlphaRow(name, capabilities.where(capabilities.capability_U == name).alpha(draws)) for name in names),
        capabilities.alpha(draws),
        overall.alpha(draws),
        alpha_difference(value_counts(same_items.value_UJ), same_items.prompt_U, value_counts(overall.value_UJ), overall.prompt_U, draws),
        _judge_pairs(judges, capabilities, overall),
    )


def _answers(questions: Questions, judges: Sequence[str]) -> _Answers:
    value_Q = np.where(questions.same_Q, questions.first_Q, MISSING)
    column_Q = np.zeros(len(questions), dtype=np.int64)
    for number, judge in enumerate(judges):
        own = questions.judge_Q == judge
        column_Q[own] = number
        if not questions.complete_Q[own].any():
            single = np.where(questions.first_Q != MISSING, questions.first_Q, questions.second_Q)
            value_Q[own] = single[own]
    value_Q = np.where(value_Q == MISSING, MISSING, value_Q * questions.sign_Q)
    names, name_Q = np.unique(questions.capability_Q, return_inverse=True)
    unit_Q, first_of_U, inverse_Q = np.unique(questions.item_Q * len(names) + name_Q, return_index=True, return_inverse=True)
    # Of a judge's several answers to one question the first counts.
    cell, first_of_cell = np.unique(inverse_Q * len(judges) + column_Q, return_index=True)
    value_UJ = np.full((len(unit_Q), len(judges)), MISSING, dtype=np.int64)
    value_UJ.flat[cell] = value_Q[first_of_cell]
    return _Answers(value_UJ, questions.item_Q[first_of_U], questions.prompt_Q[first_of_U], questions.capability_Q[first_of_U])


def _judge_pairs(judges: Sequence[str], capabilities: _Answers, overall: _Answers) -> tuple[JudgePair, ...]:
    found = []
    given_on_capabilities, given_overall = capabilities.value_UJ != MISSING, overall.value_UJ != MISSING
    common = given_on_capabilities.T.astype(np.int64) @ given_on_capabilities + given_overall.T.astype(np.int64) @ given_overall
    numbers = sorted(combinations(range(len(judges)), 2), key=lambda pair: -int(common[pair]))
    for one, other in numbers[:MOST_PAIRS]:
        if common[one, other]:
            found.append(JudgePair(judges[one], judges[other], _same(capabilities, one, other), _same(overall, one, other)))
    return tuple(found)


def _same(answers: _Answers, one: int, other: int) -> Share | None:
    a, b = answers.value_UJ[:, one], answers.value_UJ[:, other]
    both = (a != MISSING) & (b != MISSING)
    return share_of((a == b)[both], answers.prompt_U[both])
