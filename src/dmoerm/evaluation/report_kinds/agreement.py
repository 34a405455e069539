"""Agreement with human preference: `dmoerm evaluate`, and the evaluation that `dmoerm train` ends with."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.agreement import AgreementRow
from dmoerm.evaluation.bootstrap import FEW_PROMPTS, Resampling
from dmoerm.evaluation.metrics import Estimate
from dmoerm.evaluation.model_page import model_sections
from dmoerm.evaluation.report_kinds.kind import Chapter, Headline, Made, ReportKind, Run, few_prompts, parsed, several_parts
from dmoerm.evaluation.run import ModelReport
from dmoerm.evaluation.sections import Bar, Bars, Cell, Measured, Section, Table

__all__ = ["AGREEMENT"]

_OWN = ("model/", "against/")
"""Rows that are no baseline."""


def _read(document: Mapping[str, Any]) -> ModelReport:
    moved = {"risk": document.get("risk_coverage", {}), "resampling": {f.name: document.get(f.name) for f in fields(Resampling)}}
    report = parsed(ModelReport, {**document, **moved})
    if not report.rows:
        raise DataError("rows: empty; expected at least one model")
    try:
        _main(report)
    except ConfigError as error:
        raise DataError(f"main: {error}") from None
    return report


def _main(report: ModelReport) -> AgreementRow:
    return report.row(report.main or report.reference or report.rows[0].model)


def _label(run: Run) -> str:
    name = _main(run.found).model
    return f"{run.name} ({name.removeprefix('model/')})"


def _chapter(runs: Sequence[Run]) -> Chapter:
    return Chapter(
        headlines=tuple(_headline(run) for run in runs),
        warnings=tuple(warning for run in runs for warning in _warnings(run)) + _not_the_same(runs),
        made=tuple(_made(run) for run in runs),
        parts=several_parts(runs, _together(runs) if len(runs) > 1 else (), lambda run: model_sections(run.found)),
    )


def _headline(run: Run) -> Headline:
    found = _main(run.found).agreement
    on = f"{found.n_pairs:,} pairs of {found.n_prompts:,} prompts"
    return Headline("Agreement with human preference (0.5 is chance)", _label(run), _measured(found), on)


def _warnings(run: Run) -> list[str]:
    report: ModelReport = run.found
    main = _main(report)
    warnings = few_prompts(f"Agreement of {run.name}", main.agreement.n_prompts)
    if main.agreement.n_failed:
        warnings.append(
            f"Agreement of {run.name}: {main.agreement.n_failed:,} pairs have a response that could not be scored; they count as wrong."
        )
    level = [row.model for row in _baselines(report) if row.difference is not None and row.difference.high >= 0.0]
    if level and report.reference == main.model:
        warnings.append(f"Agreement of {run.name} is not above {', '.join(level)}: the interval of the difference reaches 0.")
    few = [row.category for row in report.rows if row.model == main.model and row.category and row.agreement.n_prompts < FEW_PROMPTS]
    if few:
        warnings.append(f"Agreement of {run.name}: fewer than {FEW_PROMPTS} prompts in {', '.join(few)}; their intervals are too narrow.")
    if "baselines left out" in report.meta:
        warnings.append(f"Agreement of {run.name}: baselines left out: {report.meta['baselines left out']}.")
    return warnings


def _baselines(report: ModelReport) -> list[AgreementRow]:
    return [row for row in report.rows if row.category is None and not row.model.startswith(_OWN) and row.model != _main(report).model]


def _not_the_same(runs: Sequence[Run]) -> tuple[str, ...]:
    if _same_pairs(runs):
        return ()
    counts = "; ".join(
        f"{run.name} {found.n_pairs:,} of {found.n_prompts:,} prompts" for run in runs for found in [_main(run.found).agreement]
    )
    return (f"Agreement was measured on different pairs ({counts}): its figures do not compare between models.",)


def _same_pairs(runs: Sequence[Run]) -> bool:
    """As far as results can tell: equal counts, and a baseline that reads the texts alone has equal figures."""
    seen = set()
    for run in runs:
        main = _main(run.found).agreement
        longer = [row.agreement.value for row in run.found.rows if row.category is None and row.model == "longer"]
        seen.add((main.n_pairs, main.n_prompts, main.n_human_ties, *longer))
    return len(seen) == 1


def _together(runs: Sequence[Run]) -> list[Section]:
    same = (
        "All on the same pairs, by their counts and by the figure of the longer response; each interval is that model's own. For the "
        "interval of a difference: dmoerm evaluate ONE --against OTHER."
        if _same_pairs(runs)
        else "Not on the same pairs: these bars do not compare."
    )
    mains = [(run, _main(run.found)) for run in runs]
    bars = [Bar(_label(run), row.agreement.value, (row.agreement.low, row.agreement.high), True) for run, row in mains]
    baselines = {row.model: row for run in runs for row in _baselines(run.found)} if _same_pairs(runs) else {}
    bars += [Bar(name, row.agreement.value, (row.agreement.low, row.agreement.high)) for name, row in baselines.items()]
    columns = ("model", "agreement", "length-balanced", "calibration error", "log loss", "pairs", "prompts", "failed", "right router")
    rows = tuple((_label(run), *_figures(row), None if run.found.routing is None else run.found.routing.right) for run, row in mains)
    sections: list[Section] = [
        Bars("Agreement of all models", tuple(bars), 0.5, "agreement", f"Bars start at 0.5, which is chance. {same}"),
        Table(
            "Figures of all models", columns, rows, "Failed pairs count as wrong. Right router: prompts that went to their own category."
        ),
    ]
    categories = list(dict.fromkeys(row.category for run in runs for row in run.found.rows if row.category))
    if categories:
        cells = tuple((_label(run), *(_in_category(run, category) for category in categories)) for run, _ in mains)
        sections.append(Table("Agreement of all models by category", ("model", *categories), cells))
    return sections


def _figures(row: AgreementRow) -> tuple[Cell, ...]:
    found = row.agreement
    estimates = (found, row.length_balanced, row.calibration_error, row.log_loss)
    return (*(None if one is None else _measured(one) for one in estimates), found.n_pairs, found.n_prompts, found.n_failed)


def _in_category(run: Run, category: str) -> Cell:
    main = _main(run.found)
    found = [row for row in run.found.rows if (row.model, row.category) == (main.model, category)]
    return _measured(found[0].agreement) if found else None


def _made(run: Run) -> Made:
    report: ModelReport = run.found
    draws = f"{100 * report.resampling.confidence:g} %, {report.resampling.samples:,} draws"
    return Made(run.name, report.version, str(report.resampling.seed), draws)


def _measured(found: Estimate) -> Measured:
    return Measured(found.value, found.low, found.high)


AGREEMENT = ReportKind("Agreement with people", "dmoerm evaluate --json", _chapter, _read)
