"""The sections of a report page about labels: what they are worth in sentences, then the figures. Nothing is computed here."""

from collections.abc import Sequence

from dmoerm.data.doctor.share import Share
from dmoerm.evaluation.sections import Bar, Bars, Cell, Measured, Section, Table, Text
from dmoerm.labeling.agreement import JudgeReport, LabelReport, LabelRow, OrderComparison
from dmoerm.labeling.draws import Figure
from dmoerm.labeling.findings import row_name
from dmoerm.labeling.formats import FormatComparison, FormatRow
from dmoerm.labeling.judges import JudgesAgreement
from dmoerm.records import OVERALL

__all__ = ["format_sections", "label_sections"]

_HEADS = {"problem": "Problem", "warning": "Warning", "note": "Note", "fine": "Fine"}


def label_sections(report: LabelReport) -> list[Section]:
    """The verdict, what to do, each judge's figures, agreement among judges, and what the numbers were made with."""
    findings = report.findings()
    said = tuple(f"{_HEADS[finding.severity]}. {finding.title}: {finding.summary}." for finding in findings)
    advice = tuple(f"{finding.title}: {finding.advice}" for finding in findings if finding.advice)
    sections: list[Section] = [Text("What the labels are worth", said)]
    if advice:
        sections.append(Text("What to do", advice))
    for judge in report.judges:
        sections += _judge(judge, f" ({judge.judge})" if len(report.judges) > 1 else "")
    if report.several is not None:
        sections += _several(report.several)
    return [*sections, _provenance(report)]


def format_sections(found: FormatComparison) -> list[Section]:
    """One capability a call against all in one call: bars of the difference in halo, and every figure."""
    rows = [row for row in (found.capabilities, found.overall, *found.rows) if row is not None]
    bars = [
        Bar(
            _format_name(row),
            row.follows_difference.value,
            (row.follows_difference.low, row.follows_difference.high),
            row.capability is None,
        )
        for row in rows
        if row.follows_difference is not None
    ]
    sections: list[Section] = []
    if bars:
        caption = (
            "Share of labels that are the judge's own overall label: all capabilities in one call, minus one capability a call. "
            "To the right: asking everything at once adds halo. Whiskers: 95 % over prompts, the same prompts drawn for both."
        )
        sections.append(Bars("Halo that the format adds", tuple(bars), 0.0, "difference", caption))
    columns = (
        "capability",
        "questions",
        "equal labels",
        "follow: one a call",
        "all in one",
        "difference",
        "steady: one a call",
        "all in one",
        "difference",
    )
    cells = tuple(
        (
            _format_name(row),
            row.questions,
            *map(_measured, (row.same, row.one_follows, row.many_follows, row.follows_difference)),
            *map(_measured, (row.one_consistency, row.many_consistency, row.consistency_difference)),
        )
        for row in rows
    )
    caption = (
        "Equal labels: where both formats keep one. Steady: the same verdict in both presentation orders. Differences: all in one minus "
        "one a call."
    )
    return [*sections, Table("One capability a call, or all in one", columns, cells, caption)]


def _judge(judge: JudgeReport, suffix: str) -> list[Section]:
    totals = [row for row in (judge.overall, judge.all_capabilities) if row is not None]
    if not totals:
        return []
    rows = [*totals, *judge.capabilities]
    sections: list[Section] = []
    steady = [_bar(row, row.consistency) for row in rows if row.consistency is not None]
    if steady:
        caption = (
            "Share of questions with the same verdict in both presentation orders, no difference included. Only these can become labels; "
            "whiskers: 95 % intervals over prompts."
        )
        sections.append(Bars(f"Verdicts that hold in both orders{suffix}", tuple(steady), 0.0, "share", caption))
    halo = [_bar(row, row.follows_overall) for row in rows if row.follows_overall is not None]
    if halo:
        caption = (
            "Share of labels that are the judge's own overall label on the same pair. Near 1 a capability is the overall preference under "
            "another name; what an expert learns beyond it are the labels that differ, counted in the table below."
        )
        sections.append(Bars(f"Labels that repeat the overall verdict{suffix}", tuple(halo), 0.0, "share", caption))
    if judge.steadiness is not None:
        sections.append(_steadiness(judge.steadiness, suffix))
    sections += [_counts(judge, suffix), _places(rows, suffix)]
    if any(row.people is not None or row.longer is not None for row in rows):
        sections.append(_people(rows, suffix))
    return [*sections, *_matrices(judge, suffix)]


def _steadiness(found: OrderComparison, suffix: str) -> Table:
    rows = (
        ("same verdict", *map(_measured, (found.capabilities, found.overall, found.consistency_difference))),
        ("same, where both name a response", *map(_measured, (found.capabilities_named, found.overall_named, found.named_difference))),
        ("alpha of the orders", *map(_measured, (found.capabilities_alpha, found.overall_alpha, found.alpha_difference))),
    )
    caption = (
        f"On the {found.pairs:,} pairs whose overall question was answered in both orders; differences are paired by prompt. A judge that "
        "may say no difference wavers between that and a response; the second line leaves such pairs out, and with them the closest ones."
    )
    return Table(f"Capabilities and the whole, in both orders{suffix}", ("", "capabilities", "overall", "difference"), rows, caption)


def _counts(judge: JudgeReport, suffix: str) -> Table:
    columns = (
        "question",
        "asked",
        "unanswered",
        "labels",
        "kept",
        "ties",
        "same verdict",
        "follow overall",
        "against it",
        "without overall",
    )
    rows = tuple(
        (
            _name(row),
            row.outcomes.asked,
            row.outcomes.incomplete,
            row.outcomes.labels,
            *map(_measured, (row.kept, row.ties, row.consistency, row.follows_overall)),
            None if row.capability == OVERALL else row.against_overall,
            None if row.capability == OVERALL else row.beside_overall,
        )
        for row in judge.questions
    )
    caption = (
        "A label is kept where both orders name the same response. Against it: labels that differ from the judge's overall label; without "
        "overall: labels on pairs where it has none. These two are what a capability adds."
    )
    return Table(f"Labels by category and capability{suffix}", columns, rows, caption)


def _places(rows: Sequence[LabelRow], suffix: str) -> Table:
    columns = (
        "capability",
        "answered twice",
        "change sides",
        "of these to the first",
        "bias b",
        "noise e",
        "slips among labels",
        "alpha of orders",
    )
    cells = tuple(
        (
            _name(row),
            row.outcomes.complete,
            *map(_measured, (row.position.changed, row.position.to_first)),
            *map(_measured, (row.position.bias, row.position.noise, row.position.slips, row.order_alpha)),
        )
        for row in rows
    )
    caption = (
        "Change sides: each order names another response. b: the judge names the response shown first (below 0: second) whatever it says; "
        "e: else it errs, independently in each order; slips: labels that would then be wrong in both orders. b needs no assumption, e and "
        "the slips do; an opinion that is wrong in both orders shows in neither. Alpha: Krippendorff's, the two orders as two judges."
    )
    return Table(f"Position and noise{suffix}", columns, cells, caption)


def _people(rows: Sequence[LabelRow], suffix: str) -> Table:
    columns = (
        "capability",
        "with the ranks",
        "length-balanced",
        "noise against ranks",
        "settled against ranks",
        "to the longer",
        "ranks to the longer",
    )
    cells = tuple(
        (
            _name(row),
            *map(_measured, (row.people, row.people_balanced)),
            *map(_measured, (row.position.noise_against_people, row.position.settled_against_people)),
            *map(_measured, (row.longer, row.people_longer)),
        )
        for row in rows
    )
    caption = (
        "With the ranks: labels that are the preference of the data. Length-balanced: pairs whose preferred response is longer and those "
        "where it is shorter weigh the same, so length alone gets one half. Settled: where the judge holds another opinion in both orders. "
        "A capability need not go with the ranks, which are about the whole response."
    )
    return Table(f"Labels, ranks and length{suffix}", columns, cells, caption)


def _matrices(judge: JudgeReport, suffix: str) -> list[Section]:
    found: list[Section] = []
    for category in dict.fromkeys(pair.category for pair in judge.twins):
        pairs = [pair for pair in judge.twins if pair.category == category]
        names = list(dict.fromkeys(name for pair in pairs for name in (pair.one, pair.other)))
        found_of = {key: _measured(pair.correlation) for pair in pairs for key in ((pair.one, pair.other), (pair.other, pair.one))}
        rows: list[tuple[Cell, ...]] = [
            (_spaced(name), *(None if name == other else found_of[name, other] for other in names)) for name in names
        ]
        same = [f"{pair.one} and {pair.other}" for pair in pairs if pair.same]
        caption = (
            "Correlation of two names' labels on the pairs where both have one: 1 is the same, 0 has nothing in common, -1 the opposite."
        )
        caption += f" They repeat one another: {'; '.join(same)}." if same else ""
        title = f"Halo within {category}" if category else "Halo among capabilities"
        found.append(Table(f"{title}{suffix}", ("", *map(_spaced, names)), tuple(rows), caption))
    return found


def _several(found: JudgesAgreement) -> list[Section]:
    figures = [
        ("all capabilities", found.capabilities),
        (OVERALL, found.overall),
        *((_spaced(row.capability), row.alpha) for row in found.rows),
    ]
    bars = [Bar(name, alpha.value, (alpha.low, alpha.high), name == OVERALL) for name, alpha in figures if alpha is not None]
    difference = found.difference
    told = (
        f" Capabilities minus overall, on the same pairs: {difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]."
        if difference
        else ""
    )
    caption = f"Krippendorff's alpha on {found.items:,} pairs: 1 is full agreement, 0 what chance alone gives.{told}"
    sections: list[Section] = [Bars("Agreement among judges", tuple(bars), 0.0, "alpha", caption)] if bars else []
    rows = tuple((pair.one, pair.other, _measured(pair.capabilities), _measured(pair.overall)) for pair in found.pairs)
    return [*sections, Table("Two judges each", ("one", "other", "same answer on capabilities", "same answer overall"), rows)]


def _provenance(report: LabelReport) -> Table:
    rows = (
        ("dmoerm", report.version),
        ("judged pairs", report.pairs),
        ("prompts", report.prompts),
        ("labels that an expert needs", report.minimum_labels),
        ("intervals", f"95 % over prompts: Wilson at the effective number of prompts for shares, else {report.samples:,} draws"),
        ("seed", str(report.seed)),
    )
    return Table("Made with", ("what", "value"), rows)


def _name(row: LabelRow) -> str:
    # With spaces a long name can wrap on a telephone.
    return _spaced(": ".join(row_name(row).split("/", 1)) if row.category else row_name(row))


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _bar(row: LabelRow, share: Share | None) -> Bar:
    assert share is not None
    return Bar(_name(row), share.value, (share.low, share.high), row.capability in (None, OVERALL))


def _format_name(row: FormatRow) -> str:
    return _spaced(row.capability or "all capabilities")


def _measured(found: Share | Figure | None) -> Cell:
    return None if found is None else Measured(found.value, found.low, found.high)
