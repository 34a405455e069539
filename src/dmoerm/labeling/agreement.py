"""What labels are worth: does the judge agree with itself, with people, with other judges, and does a capability say more than overall?

`label_report` computes every figure; `findings` puts them into words. Intervals are 95 % and resample prompts. A question is one pair on
one capability (or overall) before one judge; it is complete when answered in both presentation orders.

Q questions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmoerm.data.doctor.share import Share, share_of
from dmoerm.labeling.alpha import alpha_difference, alpha_figure, value_counts
from dmoerm.labeling.columns import Questions, questions_of
from dmoerm.labeling.draws import Draws, Figure, FloatArray, figure, share_difference
from dmoerm.labeling.halo import CapabilityPair, capability_pairs
from dmoerm.labeling.judged import JudgedPair
from dmoerm.labeling.judges import JudgesAgreement, judges_agreement
from dmoerm.labeling.position import PositionBias, position_bias
from dmoerm.recipe import ExpertOptions
from dmoerm.records import OVERALL

if TYPE_CHECKING:
    from dmoerm.data.doctor.finding import Finding

__all__ = ["JudgeReport", "LabelReport", "LabelRow", "OrderComparison", "Outcomes", "label_report"]

MINIMUM_LABELS: int = ExpertOptions.model_fields["minimum_labels"].default
MOST_JUDGES = 8
"""Judges that get figures of their own; more than these (annotators, mostly) are taken together."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of the questions.

    Attributes:
        asked: all of them, the sum of the others.
        incomplete: an answer is missing.
        first: label for the pair's first response.
        second: label for the second one.
        tied: no difference, in both orders.
        to_first_shown: another response in each order, each time the one shown first.
        to_second_shown: another response in each order, each time the one shown second.
        half_tied: no difference in one order, a response in the other.
    """

    asked: int
    incomplete: int
    first: int
    second: int
    tied: int
    to_first_shown: int
    to_second_shown: int
    half_tied: int

    @property
    def complete(self) -> int:
        """Answered in both orders."""
        return self.asked - self.incomplete

    @property
    def labels(self) -> int:
        """Kept: both orders name the same response."""
        return self.first + self.second


@dataclass(frozen=True, slots=True)
class LabelRow:
    """The figures of some questions; None where there is nothing to compute them from.

    Attributes:
        category: "" where it is unknown; None for all categories together.
        capability: its name, or `OVERALL`; None for all capabilities together.
        outcomes: counts.
        consistency: share of the complete ones with the same verdict in both orders, no difference included.
        ties: share of their single verdicts that say "no difference".
        kept: labels a question asked.
        order_alpha: Krippendorff's alpha of the two orders, as if they were two judges.
        position: bias towards a place, and noise.
        people: share of the labels that are people's preference; pairs that people tied are left out.
        people_balanced: the same where the response that people prefer is the longer one and where it is the shorter one, each half
            weighing the same, so that a judge of length alone gets one half.
        longer: share of the labels that go to the longer response, in characters.
        people_longer: the same of people's preferences, on the pairs that have both.
        follows_overall: share of the labels that are the judge's own overall label; None for overall itself.
        against_overall: number of labels that are not: what an expert learns beyond overall.
        beside_overall: number of labels on pairs without an overall label of the judge.
    """

    category: str | None
    capability: str | None
    outcomes: Outcomes
    consistency: Share | None
    ties: Share | None
    kept: Share | None
    order_alpha: Figure | None
    position: PositionBias
    people: Share | None
    people_balanced: Figure | None
    longer: Share | None
    people_longer: Share | None
    follows_overall: Share | None
    against_overall: int
    beside_overall: int


@dataclass(frozen=True, slots=True)
class OrderComparison:
    """Are capabilities judged more steadily than the whole response? On the pairs whose overall question is complete.

    Attributes:
        pairs: how many these are.
        capabilities: order consistency of their capability questions.
        overall: of their overall questions.
        consistency_difference: the former minus the latter, paired by prompt.
        capabilities_named: of the capability questions that name a response in both orders, the share that name the same one. A judge
            that may say "no difference" wavers between that and a response, on capabilities above all; this leaves such pairs out.
        overall_named: of the overall questions likewise.
        named_difference: the former minus the latter, paired by prompt.
        capabilities_alpha: Krippendorff's alpha of the two orders.
        overall_alpha: likewise.
        alpha_difference: the former minus the latter, paired by prompt.
    """

    pairs: int
    capabilities: Share | None
    overall: Share | None
    consistency_difference: Figure | None
    capabilities_named: Share | None
    overall_named: Share | None
    named_difference: Figure | None
    capabilities_alpha: Figure | None
    overall_alpha: Figure | None
    alpha_difference: Figure | None


@dataclass(frozen=True, slots=True)
class JudgeReport:
    """The figures of one judge.

    Attributes:
        judge: its name.
        pairs: pairs it was shown.
        prompts: their prompts.
        questions: one row a category and capability, overall first in each category.
        capabilities: one row a capability, all categories together.
        all_capabilities: all capability questions in one row; None where there are none.
        overall: all overall questions in one row; None likewise.
        steadiness: capabilities against overall; None where one of them was not asked.
        twins: every two capabilities of each category, and each with overall.
        few: (category, capability) with fewer labels than an expert needs; `OVERALL` needs none.
    """

    judge: str
    pairs: int
    prompts: int
    questions: tuple[LabelRow, ...]
    capabilities: tuple[LabelRow, ...]
    all_capabilities: LabelRow | None
    overall: LabelRow | None
    steadiness: OrderComparison | None
    twins: tuple[CapabilityPair, ...]
    few: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class LabelReport:
    """What label files or a label store are worth.

    Attributes:
        pairs: judged pairs, each judge's own.
        prompts: distinct prompts.
        judges: one report each; where there are more than `MOST_JUDGES`, one of all together.
        several: agreement among judges; None where no two of them answered the same question.
        minimum_labels: below this a capability gets no expert.
        seed: of the draws behind intervals.
        samples: number of these draws.
        version: of dmoerm.
    """

    pairs: int
    prompts: int
    judges: tuple[JudgeReport, ...]
    several: JudgesAgreement | None
    minimum_labels: int
    seed: int
    samples: int
    version: str

    def findings(self) -> "tuple[Finding, ...]":
        """What the figures mean, in words, most serious first."""
        from dmoerm.labeling.findings import label_findings

        return label_findings(self)

    def as_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON knows."""
        return {**asdict(self), "findings": [asdict(finding) for finding in self.findings()]}

    def as_text(self, width: int = 80, *, colour: bool = False) -> str:
        """For a terminal of `width` columns."""
        from dmoerm.labeling.findings import findings_text

        return findings_text(self, width, colour=colour)


def label_report(pairs: Sequence[JudgedPair], *, minimum_labels: int = MINIMUM_LABELS, seed: int = 0, samples: int = 1000) -> LabelReport:
    """Every figure about the labels of some judges.

    Args:
        pairs: of one or more judges, each named in its pairs; none is no error and gives an empty report.
        minimum_labels: below this a capability gets no expert; `experts.minimum_labels` of the recipe.
        seed: of the draws behind those intervals that are drawn.
        samples: number of these draws.
    """
    draws = Draws(seed, samples)
    questions = questions_of(pairs)
    judges = list(dict.fromkeys(pair.judge for pair in pairs))
    if len(judges) > MOST_JUDGES:
        reports = [_judge_report(f"all {len(judges)} judges", pairs, questions, minimum_labels, draws)]
    else:
        reports = [
            _judge_report(
                judge, [pair for pair in pairs if pair.judge == judge], questions.where(questions.judge_Q == judge), minimum_labels, draws
            )
            for judge in judges
        ]
    return LabelReport(
        len(pairs),
        len({pair.prompt for pair in pairs}),
        tuple(reports),
        judges_agreement(questions, judges, draws),
        minimum_labels,
        seed,
        samples,
        version("dmoerm"),
    )


def _judge_report(judge: str, pairs: Sequence[JudgedPair], questions: Questions, minimum_labels: int, draws: Draws) -> JudgeReport:
    about_overall = questions.about_overall_Q
    by_question = []
    for category in np.unique(questions.category_Q).tolist():
        of_category = questions.where(questions.category_Q == category)
        by_question += [_row(category, name, of_category.where(of_category.capability_Q == name), draws) for name in _names(of_category)]
    capabilities, overall = questions.where(~about_overall), questions.where(about_overall)
    names = np.unique(capabilities.capability_Q).tolist()
    return JudgeReport(
        judge,
        len(pairs),
        len({pair.prompt for pair in pairs}),
        tuple(by_question),
        tuple(_row(None, name, capabilities.where(capabilities.capability_Q == name), draws) for name in names),
        _row(None, None, capabilities, draws) if len(capabilities) else None,
        _row(None, OVERALL, overall, draws) if len(overall) else None,
        _steadiness(capabilities, overall, draws) if len(capabilities) and len(overall) else None,
        tuple(capability_pairs(questions)) if len(questions) else (),
        tuple(
            (row.category or "", row.capability or "")
            for row in by_question
            if row.capability != OVERALL and row.outcomes.labels < minimum_labels
        ),
    )


def _names(questions: Questions) -> Iterable[str]:
    return sorted(np.unique(questions.capability_Q).tolist(), key=lambda name: (name != OVERALL, name))


def _row(category: str | None, capability: str | None, questions: Questions, draws: Draws) -> LabelRow:
    complete = questions.where(questions.complete_Q)
    label, prompt = complete.label_Q, complete.prompt_Q
    kept, people, longer, overall = label != 0, complete.people_Q, complete.longer_Q, complete.overall_Q
    ranked, unequal = kept & (people != 0), kept & (longer != 0)
    followed = kept & (overall != 0) & ~complete.about_overall_Q
    return LabelRow(
        category,
        capability,
        _outcomes(questions),
        share_of(complete.same_Q, prompt),
        share_of(((complete.first_Q == 0) * 0.5 + (complete.second_Q == 0) * 0.5), prompt),
        share_of(questions.label_Q != 0, questions.prompt_Q),
        alpha_figure(_order_values(complete), prompt, draws),
        position_bias(complete.first_Q, complete.second_Q, people, prompt, draws),
        share_of((label == people)[ranked], prompt[ranked]),
        _balanced((label == people)[ranked & unequal], (people == longer)[ranked & unequal], prompt[ranked & unequal], draws),
        share_of((label == longer)[unequal], prompt[unequal]),
        share_of((people == longer)[ranked & unequal], prompt[ranked & unequal]),
        share_of((label == overall)[followed], prompt[followed]),
        int((label != overall)[followed].sum()),
        0 if capability == OVERALL else int((kept & (overall == 0)).sum()),
    )


def _outcomes(questions: Questions) -> Outcomes:
    complete = questions.where(questions.complete_Q)
    first, second = complete.first_Q, complete.second_Q
    counted = (
        first * second == 1,
        (first == 0) & (second == 0),
        (first == 1) & (second == -1),
        (first == -1) & (second == 1),
        (first == 0) != (second == 0),
    )
    same, *others = counted
    return Outcomes(
        len(questions),
        len(questions) - len(complete),
        int((same & (first == 1)).sum()),
        int((same & (first == -1)).sum()),
        *(int(found.sum()) for found in others),
    )


def _order_values(questions: Questions) -> FloatArray:
    return value_counts(np.stack([questions.first_Q, questions.second_Q], axis=1))


def _balanced(right: NDArray[np.bool_], people_longer: NDArray[np.bool_], prompts: NDArray[np.int64], draws: Draws) -> Figure | None:
    """Agreement over two halves that weigh the same; None where one of them is empty."""
    if not people_longer.any() or people_longer.all():
        return None

    def mean_of_halves(sums: FloatArray) -> FloatArray:
        halves: FloatArray = (sums[..., 0] / sums[..., 1] + sums[..., 2] / sums[..., 3]) / 2.0
        return halves

    columns = np.stack([right & people_longer, people_longer, right & ~people_longer, ~people_longer], axis=1).astype(np.float64)
    return figure(float(mean_of_halves(columns.sum(axis=0))), mean_of_halves(draws.sums(columns, prompts)), prompts)


def _steadiness(capabilities: Questions, overall: Questions, draws: Draws) -> OrderComparison:
    whole = overall.where(overall.complete_Q)
    parts = capabilities.where(capabilities.complete_Q & np.isin(capabilities.pair_Q, whole.pair_Q))
    whole_values, part_values = _order_values(whole), _order_values(parts)
    whole_named, part_named = (found.where((found.first_Q != 0) & (found.second_Q != 0)) for found in (whole, parts))
    return OrderComparison(
        len(whole),
        share_of(parts.same_Q, parts.prompt_Q),
        share_of(whole.same_Q, whole.prompt_Q),
        share_difference(parts.same_Q, parts.prompt_Q, whole.same_Q, whole.prompt_Q, draws),
        share_of(part_named.same_Q, part_named.prompt_Q),
        share_of(whole_named.same_Q, whole_named.prompt_Q),
        share_difference(part_named.same_Q, part_named.prompt_Q, whole_named.same_Q, whole_named.prompt_Q, draws),
        alpha_figure(part_values, parts.prompt_Q, draws),
        alpha_figure(whole_values, whole.prompt_Q, draws),
        alpha_difference(part_values, parts.prompt_Q, whole_values, whole.prompt_Q, draws),
    )
