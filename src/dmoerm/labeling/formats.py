"""One capability a call against all capabilities in one call: how much of the halo does the format of the question cause?

Both sets of verdicts are on the same questions (same prompt, responses and capability); what only one of them asked is left out. Each
format is measured on the labels that it keeps, since these would train the experts; differences are paired by prompt, one call minus
many, so a positive difference in "follows overall" is halo that asking everything at once adds.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmoerm.data.doctor.finding import Finding, Severity, Table
from dmoerm.data.doctor.share import Share, share_of
from dmoerm.data.doctor.wording import counted, share_text
from dmoerm.labeling.columns import Questions, questions_of
from dmoerm.labeling.draws import Draws, Figure, share_difference
from dmoerm.labeling.judged import JudgedPair
from dmoerm.labeling.wording import signed_percent_text
from dmoerm.records import OVERALL

__all__ = ["FormatComparison", "FormatRow", "compare_formats"]


@dataclass(frozen=True, slots=True)
class FormatRow:
    """Two formats on one capability.

    Attributes:
        capability: its name, or `OVERALL`; None for all capabilities together.
        questions: that both formats asked.
        same: share of equal labels where both formats keep one.
        one_follows: share of the labels that are the judge's own overall label, one capability a call.
        many_follows: the same, all in one call.
        follows_difference: many minus one.
        one_consistency: share of complete questions with the same verdict in both orders, one capability a call.
        many_consistency: the same, all in one call.
        consistency_difference: many minus one.
    """

    capability: str | None
    questions: int
    same: Share | None
    one_follows: Share | None
    many_follows: Share | None
    follows_difference: Figure | None
    one_consistency: Share | None
    many_consistency: Share | None
    consistency_difference: Figure | None


@dataclass(frozen=True, slots=True)
class FormatComparison:
    """Two formats on the same questions: all capabilities together, each by itself, and overall. None where nothing is shared."""

    items: int
    capabilities: FormatRow | None
    overall: FormatRow | None
    rows: tuple[FormatRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON knows."""
        return asdict(self)

    def as_text(self, width: int = 80, *, colour: bool = False) -> str:
        """For a terminal of `width` columns."""
        from dmoerm.labeling.findings import page_of

        return page_of("One capability a call, or all in one", (_finding(self),), width, colour=colour)


def compare_formats(one: Sequence[JudgedPair], many: Sequence[JudgedPair], *, seed: int = 0, samples: int = 1000) -> FormatComparison:
    """Compare verdicts that were asked one capability a call with verdicts on all of them from one call.

    Args:
        one: pairs judged with one capability a call.
        many: the same pairs judged with all capabilities in one call. Pairs are matched by prompt and texts, in whichever order.
        seed: of the draws behind the intervals of differences.
        samples: number of these draws.
    """
    draws = Draws(seed, samples)
    both = questions_of([*one, *many])
    asked_one, asked_many = _matched(both, len(one))
    about_overall = asked_one.about_overall_Q
    capabilities = np.unique(asked_one.capability_Q[~about_overall]).tolist()

    def row(name: str | None, keep: NDArray[np.bool_]) -> FormatRow:
        return _row(name, asked_one.where(keep), asked_many.where(keep), draws)

    return FormatComparison(
        len(np.unique(asked_one.item_Q)),
        row(None, ~about_overall) if (~about_overall).any() else None,
        row(OVERALL, about_overall) if about_overall.any() else None,
        tuple(row(name, asked_one.capability_Q == name) for name in capabilities),
    )


def _matched(both: Questions, n_one: int) -> tuple[Questions, Questions]:
    """The questions that stand in both, in the same order; of a question asked twice the first counts."""
    _, name_Q = np.unique(both.capability_Q, return_inverse=True)
    key_Q = both.item_Q * (int(name_Q.max(initial=0)) + 1) + name_Q
    from_one = both.pair_Q < n_one
    _, one_U, many_U = np.intersect1d(key_Q[from_one], key_Q[~from_one], return_indices=True)
    return both.where(np.flatnonzero(from_one)[one_U]), both.where(np.flatnonzero(~from_one)[many_U])


def _row(name: str | None, one: Questions, many: Questions, draws: Draws) -> FormatRow:
    kept = (one.label_Q != 0) & (many.label_Q != 0)
    same = one.label_Q * one.sign_Q == many.label_Q * many.sign_Q
    one_follows, many_follows = _following(one), _following(many)
    one_complete, many_complete = one.where(one.complete_Q), many.where(many.complete_Q)
    one_same, many_same = (one_complete.same_Q, one_complete.prompt_Q), (many_complete.same_Q, many_complete.prompt_Q)
    return FormatRow(
        name,
        len(one),
        share_of(same[kept], one.prompt_Q[kept]),
        share_of(*one_follows),
        share_of(*many_follows),
        share_difference(*many_follows, *one_follows, draws),
        share_of(*one_same),
        share_of(*many_same),
        share_difference(*many_same, *one_same, draws),
    )


def _following(questions: Questions) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    known = (questions.label_Q != 0) & (questions.overall_Q != 0) & ~questions.about_overall_Q
    return (questions.label_Q == questions.overall_Q)[known], questions.prompt_Q[known]


def _finding(found: FormatComparison) -> Finding:
    rows = [row for row in (found.capabilities, found.overall) if row is not None]
    if not rows:
        return Finding(
            "formats", "Nothing to compare", "note", "the two sets share no question: expected the same prompts, responses and names"
        )
    halo = found.capabilities.follows_difference if found.capabilities else None
    adds, takes = halo is not None and halo.low > 0.0, halo is not None and halo.high < 0.0
    severity: Severity = "note" if adds or takes else "fine"
    told = [f"{row.capability or 'all capabilities'}: equal labels in {share_text(row.same)} of {row.same.n:,}" for row in rows if row.same]
    if found.capabilities and found.capabilities.one_follows and found.capabilities.many_follows and halo:
        one, many = found.capabilities.one_follows, found.capabilities.many_follows
        difference = f"{signed_percent_text(halo)} points"
        told.insert(0, f"labels follow overall: one a call {share_text(one)}, all in one {share_text(many)}, difference {difference}")
    return Finding(
        "formats",
        "Asking everything in one call adds halo"
        if adds
        else "Asking one capability a call adds halo"
        if takes
        else "The format of the call makes no clear difference to the halo",
        severity,
        f"{counted(found.items, 'pair')}; {'; '.join(told)}",
        "Ask one capability a call where the labels are for experts." if adds else "",
        table=Table(
            (
                "capability",
                "equal labels",
                "follow: one a call",
                "all in one",
                "difference",
                "steady: one a call",
                "in one",
                "change",
            ),
            tuple(
                (
                    row.capability or "all capabilities",
                    row.same,
                    row.one_follows,
                    row.many_follows,
                    signed_percent_text(row.follows_difference),
                    row.one_consistency,
                    row.many_consistency,
                    signed_percent_text(row.consistency_difference),
                )
                for row in (*rows, *found.rows)
            ),
        ),
    )
