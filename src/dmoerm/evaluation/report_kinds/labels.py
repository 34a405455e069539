"""What capability labels are worth: `dmoerm label report`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmoerm.data.doctor.share import Share
from dmoerm.evaluation.label_page import format_sections, label_sections
from dmoerm.evaluation.report_kinds.kind import Chapter, Headline, Made, ReportKind, Run, few_prompts, parsed, several_parts
from dmoerm.evaluation.sections import Cell, Measured, Section, Table
from dmoerm.labeling.agreement import LabelReport
from dmoerm.labeling.draws import Figure
from dmoerm.labeling.formats import FormatComparison

__all__ = ["LABELS"]


@dataclass(frozen=True, slots=True)
class _Labels:
    report: LabelReport
    formats: FormatComparison | None


def _read(document: Mapping[str, Any]) -> _Labels:
    formats = document.get("formats")
    return _Labels(parsed(LabelReport, document), None if formats is None else parsed(FormatComparison, formats))


def _chapter(runs: Sequence[Run]) -> Chapter:
    return Chapter(
        headlines=tuple(headline for run in runs for headline in _headlines(run)),
        warnings=tuple(warning for run in runs for warning in _warnings(run, several=len(runs) > 1)),
        made=tuple(_made(run) for run in runs),
        parts=several_parts(runs, _together(runs), _sections),
    )


def _sections(run: Run) -> list[Section]:
    return [*label_sections(run.found.report), *(format_sections(run.found.formats) if run.found.formats else ())]


def _headlines(run: Run) -> Iterator[Headline]:
    for judge in run.found.report.judges:
        row = judge.all_capabilities or judge.overall
        if row is None:
            continue
        for what, share, things in (
            ("Verdicts that hold in both orders", row.consistency, "questions"),
            ("Labels that repeat the judge's overall verdict", row.follows_overall, "labels"),
            ("Labels that go with the ranks", row.people, "labels"),
        ):
            if share is not None:
                on = f"{share.n:,} {things}, {share.n_prompts:,} prompts"
                yield Headline(what, judge.judge, Measured(share.value, share.low, share.high), on)


def _warnings(run: Run, *, several: bool) -> Iterator[str]:
    report: LabelReport = run.found.report
    name = f"Labels ({run.name})" if several else "Labels"
    yield from few_prompts(name, report.prompts)
    for finding in report.findings():
        if finding.severity in ("problem", "warning"):
            yield f"{name}: {finding.title[:1].lower()}{finding.title[1:]}: {finding.summary}."


def _together(runs: Sequence[Run]) -> list[Section]:
    columns = ("result", "judge", "pairs", "prompts", "same verdict", "kept", "follow overall", "with the ranks", "bias b", "noise e")
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        for judge in run.found.report.judges:
            row = judge.all_capabilities or judge.overall
            if row is not None:
                figures = (row.consistency, row.kept, row.follows_overall, row.people, row.position.bias, row.position.noise)
                rows.append((run.name, judge.judge, judge.pairs, judge.prompts, *map(_measured, figures)))
    return [
        Table("Labels of all judges", columns, tuple(rows), "All capabilities together. The words are those of each result's own tables.")
    ]


def _made(run: Run) -> Made:
    report: LabelReport = run.found.report
    intervals = f"95 %, {report.samples:,} draws"
    return Made(run.name, report.version, str(report.seed), intervals)


def _measured(found: Share | Figure | None) -> Cell:
    return None if found is None else Measured(found.value, found.low, found.high)


LABELS = ReportKind("Capability labels", "dmoerm label report --json", _chapter, _read)
