"""Public benchmarks: `dmoerm evaluate --benchmark`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from dmoerm.errors import DataError
from dmoerm.evaluation.benchmarks.figures import Measured as Row
from dmoerm.evaluation.benchmarks.report import BenchmarkReport
from dmoerm.evaluation.bootstrap import Resampling
from dmoerm.evaluation.report_kinds.kind import Chapter, Headline, Made, ReportKind, Run, few_prompts, owned, parsed, several_parts
from dmoerm.evaluation.sections import Bar, Bars, Cell, Measured, Section, Table, Text

__all__ = ["BENCHMARKING"]

_INDENT = 3 * "\N{NO-BREAK SPACE}"


def _read(document: Mapping[str, Any]) -> list[BenchmarkReport]:
    listed = document.get("benchmarks")
    if not isinstance(listed, list) or not listed:
        raise DataError("benchmarks: is missing or empty; expected a list of results")
    return [_one(number, value) for number, value in enumerate(listed, start=1)]


def _one(number: int, value: Any) -> BenchmarkReport:
    if not isinstance(value, dict) or not isinstance(value.get("rows"), list) or not all(isinstance(row, dict) for row in value["rows"]):
        raise DataError(f"benchmarks, number {number}: rows: is missing; expected a list of figures")
    beside = {name: {row.get("name"): row[name] for row in value["rows"] if row.get(name) is not None} for name in ("longest", "random")}
    moved = {**beside, "resampling": {f.name: value.get(f.name) for f in fields(Resampling)}}
    try:
        report = parsed(BenchmarkReport, {**value, **moved})
    except DataError as error:
        raise DataError(f"benchmarks, number {number}: {error}") from None
    if not report.rows:
        raise DataError(f"benchmarks, number {number}: rows: is empty")
    return report


def _chapter(runs: Sequence[Run]) -> Chapter:
    found = [(run, report) for run in runs for report in run.found]
    return Chapter(
        headlines=tuple(_headline(owned(report.model, run, runs), report) for run, report in found),
        warnings=tuple(warning for run, report in found for warning in _warnings(owned(report.model, run, runs), report)),
        made=tuple(_made(run) for run in runs),
        parts=several_parts(runs, _together(found, runs), lambda run: [section for one in run.found for section in _sections(one)]),
    )


def _headline(model: str, report: BenchmarkReport) -> Headline:
    row = report.rows[0]
    return Headline(f"{report.title}, {row.name}", model, _measured(row), f"{row.n_items:,} items of {row.n_prompts:,} prompts")


def _warnings(model: str, report: BenchmarkReport) -> Iterator[str]:
    name = f"{report.title} of {model}"
    yield from few_prompts(name, report.rows[0].n_prompts)
    if report.missing:
        yield f"{name}: no rows of {', '.join(report.missing)}; means are over the rest and compare with no published figure."
    if report.n_failed:
        yield f"{name}: {report.n_failed:,} items have a response that could not be scored; it earns nothing."
    if report.skipped_rows:
        yield f"{name}: {report.skipped_rows:,} rows could not be used and were skipped."
    if not report.invariance.holds:
        yield f"{name}: rewards depend on how inputs are batched ({report.invariance.changed_rankings:,} rankings changed)."
    if report.repeated:
        yield f"{name}: {report.repeated:,} items repeat an earlier one word for word."


def _sections(report: BenchmarkReport) -> list[Section]:
    top = [row for row in report.rows if row.level <= 1]
    bars = tuple(Bar(row.name, row.value, (row.low, row.high), row.level == 0) for row in top)
    caption = f"{report.model}. Rule: {report.rule}. Whiskers: {_percent(report)} intervals over prompts."
    columns = ("figure", "value", "longest", "random", "items", "prompts", "failed", "ties")
    cells: tuple[tuple[Cell, ...], ...] = tuple(
        (
            f"{_INDENT * row.level}{row.name}",
            _measured(row),
            report.longest.get(row.name),
            report.random.get(row.name),
            row.n_items,
            row.n_prompts,
            row.n_failed,
            row.n_ties,
        )
        for row in report.rows
    )
    files = ", ".join(f"{name} at {commit}" if commit else name for name, commit in report.sources.items())
    left_out = tuple(f"Left out: {count:,} rows ({reason})." for reason, count in report.left_out.items())
    return [
        Bars(report.title, bars, 0.0, "value", caption),
        Table(
            f"{report.title}: all figures",
            columns,
            cells,
            "Longest, random: what the longer response and random rewards score. Ties: items in which a right and a wrong response got one "
            "reward. A failed response earns nothing.",
        ),
        Text(
            f"{report.title}: what it rests on", (f"Data: {files}.", report.invariance.as_text(), f"Source: {report.citation}.", *left_out)
        ),
    ]


def _together(found: Sequence[tuple[Run, BenchmarkReport]], runs: Sequence[Run]) -> list[Section]:
    sections: list[Section] = []
    for benchmark in dict.fromkeys(report.benchmark for _, report in found):
        of_it = [(run, report) for run, report in found if report.benchmark == benchmark]
        names = list(dict.fromkeys(row.name for _, report in of_it for row in report.rows if row.level <= 1))
        rows: list[tuple[Cell, ...]] = []
        for run, report in of_it:
            by_name = {row.name: _measured(row) for row in report.rows}
            rows.append((owned(report.model, run, runs), *(by_name.get(name) for name in names), report.rows[0].n_items))
        title = of_it[0][1].title
        sections.append(Table(f"{title} of all models", ("model", *names, "items"), tuple(rows)))
    return sections


def _made(run: Run) -> Made:
    report: BenchmarkReport = run.found[0]
    draws = f"{_percent(report)}, {report.resampling.samples:,} draws"
    return Made(run.name, report.version, str(report.resampling.seed), draws)


def _percent(report: BenchmarkReport) -> str:
    return f"{100 * report.resampling.confidence:g} %"


def _measured(row: Row) -> Measured:
    return Measured(row.value, row.low, row.high)


BENCHMARKING = ReportKind("Public benchmarks", "dmoerm evaluate --benchmark --json", _chapter, _read)
