"""The model beside what it has to beat and what it is made of: `dmoerm baselines`, and the evidence of docs/results.md.

Pools and probes stand inside the document, by training seed; each is read as the result of its own verb. The chapter speaks of the model
that differences are taken to.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from dmoerm.errors import DataError
from dmoerm.evaluation.bootstrap import FEW_PROMPTS, Resampling
from dmoerm.evaluation.contest_page import contest_parts, model_of
from dmoerm.evaluation.contest_report import ContestReport, ContestRow
from dmoerm.evaluation.metrics import Estimate
from dmoerm.evaluation.report_kinds.best_of_n import pool_headlines, pool_warnings, read_study
from dmoerm.evaluation.report_kinds.kind import Chapter, Headline, Made, Part, ReportKind, Run, few_prompts, owned, parsed
from dmoerm.evaluation.report_kinds.probes import probe_headlines, probe_warnings, read_probes
from dmoerm.evaluation.sections import Heat, Measured, Section

__all__ = ["BASELINES"]

_RIVAL = "single"
"""What the double layer has to beat first; its row has a headline."""


def _read(document: Mapping[str, Any]) -> ContestReport:
    resampling = {field.name: document.get(field.name) for field in fields(Resampling)}
    report = parsed(ContestReport, {**document, "pools": {}, "probes": {}, "resampling": resampling})
    pools = {seed: _inside(f"pools.{seed}", read_study, one) for seed, one in _by_seed(document, "pools")}
    probes = {seed: _inside(f"probes.{seed}", read_probes, one) for seed, one in _by_seed(document, "probes")}
    known = {"kind", *(field.name for field in (*fields(ContestReport), *fields(Resampling)))}
    facts = {key: value for key, value in document.items() if key not in known and isinstance(value, str)}  # of a driver of its own
    report = replace(report, pools=pools, probes=probes, meta={**facts, **report.meta})
    _check(report)
    return report


def _by_seed(document: Mapping[str, Any], key: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    found = document.get(key)
    if not isinstance(found, dict):
        raise DataError(f"{key}: {'is missing' if found is None else 'expected an object'}")
    for seed, one in found.items():
        if not (seed.isascii() and seed.isdigit() and isinstance(one, dict)):
            raise DataError(f"{key}.{seed}: expected a training seed, and an object under it")
        yield int(seed), one


def _inside(where: str, read: Any, document: Mapping[str, Any]) -> Any:
    try:
        return read(document)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _check(report: ContestReport) -> None:
    if not report.rows or not all(row.by_seed for row in report.rows):
        raise DataError("rows: none, or one without the agreement of any seed")
    if report.reference not in {row.model for row in report.rows}:
        raise DataError(f"reference: no row is of {report.reference!r}")
    for test in _tests(report):
        of_test = [row for row in report.rows if row.test == test]
        for model in dict.fromkeys(row.model for row in of_test):
            for category in dict.fromkeys((None, *(row.category for row in of_test))):
                report.row(model, test, category)


def _tests(report: ContestReport) -> list[str]:
    return list(dict.fromkeys(row.test for row in report.rows))


def _overall(report: ContestReport, test: str) -> list[ContestRow]:
    return [row for row in report.rows if row.test == test and row.category is None]


def _main(report: ContestReport, test: str) -> ContestRow | None:
    return next((row for row in _overall(report, test) if row.model == report.reference), None)


def _chapter(runs: Sequence[Run]) -> Chapter:
    return Chapter(
        headlines=tuple(headline for run in runs for headline in _headlines(run, runs)),
        warnings=tuple(warning for run in runs for warning in _warnings(run, runs)),
        made=tuple(_made(run) for run in runs),
        parts=tuple(_parts(runs)),
    )


def _parts(runs: Sequence[Run]) -> Iterator[Part]:
    if len(runs) > 1:
        yield Part("Side by side", tuple(_together(runs)))
    for run in runs:
        for title, sections in contest_parts(run.found):
            yield Part(title if len(runs) == 1 else f"{run.name}: {title}", tuple(sections))


def _headlines(run: Run, runs: Sequence[Run]) -> Iterator[Headline]:
    report: ContestReport = run.found
    of = owned(report.reference, run, runs)
    for test in _tests(report):
        main = _main(report, test)
        if main is None:
            continue
        found = main.agreement
        on = f"{found.n_pairs:,} pairs of {found.n_prompts:,} prompts, {_seeds(len(main.by_seed))}"
        yield Headline(f"Agreement on {test} (0.5 is chance)", of, Measured(found.value, found.low, found.high), on)
        for row in _overall(report, test):
            if row.model == _RIVAL and row.difference is not None:
                ahead = Measured(-row.difference.value, -row.difference.high, -row.difference.low)
                yield Headline(f"Agreement on {test} minus that of a single model", of, ahead, on)
    for study in list(report.pools.values())[:1]:
        for curve in study.best_of_n:
            if curve.name == report.reference:
                yield from pool_headlines(study, curve, of)
    for probes in list(report.probes.values())[:1]:
        if report.reference in probes.models:
            yield from probe_headlines(probes, report.reference, of)


def _seeds(count: int) -> str:
    return f"{count} training seed{'' if count == 1 else 's'}"


def _warnings(run: Run, runs: Sequence[Run]) -> Iterator[str]:
    report: ContestReport = run.found
    name = "Baselines" if len(runs) == 1 else f"Baselines ({run.name})"
    pending = str(report.meta.get("pending", "0 of 0"))
    if not pending.startswith("0 "):
        yield f"{name}: {pending} are not trained yet; figures are of what is."
    if max(len(row.by_seed) for row in report.rows) == 1:
        yield f"{name}: one training seed; part of every difference may be that of two trainings."
    for test in _tests(report):
        yield from _warnings_of(report, test, f"{name}, {test}")
    for study in list(report.pools.values())[:1]:
        yield from pool_warnings(study, [row for row in study.best_of_n if row.name == report.reference], f"{name}, selection")
    for probes in list(report.probes.values())[:1]:
        if report.reference in probes.models:
            yield from probe_warnings(probes, report.reference, f"{name}, probes of {report.reference}")


def _warnings_of(report: ContestReport, test: str, name: str) -> Iterator[str]:
    rows = _overall(report, test)
    yield from few_prompts(name, rows[0].agreement.n_prompts)
    few = [row.category for row in report.rows if (row.test, row.model) == (test, rows[0].model) and row.agreement.n_prompts < FEW_PROMPTS]
    if any(few):
        named = ", ".join(filter(None, few))
        yield f"{name}: fewer than {FEW_PROMPTS} prompts in {named}; their intervals are too narrow."
    failed = [f"{row.model} {row.agreement.n_failed:,}" for row in rows if row.agreement.n_failed]
    if failed:
        yield f"{name}: pairs that failed and count as wrong: {', '.join(failed)}."
    own = model_of(report.reference)
    level = [row.model for row in rows if model_of(row.model) != own and row.difference is not None and row.difference.high >= 0.0]
    if level:
        yield f"{name}: {report.reference} is not above {', '.join(level)}; the interval of the difference reaches 0."


def _together(runs: Sequence[Run]) -> list[Section]:
    """One table: columns of one test stand beside each other."""
    tests = dict.fromkeys(test for run in runs for test in _tests(run.found))
    columns = [(test, run, _agreements(run.found, test)) for test in tests for run in runs if test in _tests(run.found)]
    heads = [f"{test}, {run.name} ({next(iter(found.values())).n_pairs:,} pairs)" for test, run, found in columns]
    rows = [
        (model, tuple(Measured(one.value, one.low, one.high) if (one := found.get(model)) else None for _, _, found in columns))
        for model in dict.fromkeys(model for _, _, found in columns for model in found)
    ]
    caption = "Results compare where their tests are the same. A dash: no such row."
    return [Heat("Agreement of every row, all results", tuple(heads), tuple(rows), caption)]


def _agreements(report: ContestReport, test: str) -> dict[str, Estimate]:
    return {row.model: row.agreement for row in _overall(report, test)}


def _made(run: Run) -> Made:
    report: ContestReport = run.found
    draws = f"{100 * report.resampling.confidence:g} %, {report.resampling.samples:,} draws"
    return Made(run.name, report.version, str(report.resampling.seed), draws)


BASELINES = ReportKind("Beside what it has to beat", "dmoerm baselines --json", _chapter, _read)
