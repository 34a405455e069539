"""Categories apart, in pairs and together: `dmoerm disturbance`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dmoerm.errors import DataError
from dmoerm.evaluation.bootstrap import FEW_PROMPTS
from dmoerm.evaluation.disturbance import PAIRS, DisturbanceStudy
from dmoerm.evaluation.disturbance_page import disturbance_sections
from dmoerm.evaluation.metrics import Difference
from dmoerm.evaluation.report_kinds.kind import Chapter, Headline, Made, ReportKind, Run, few_prompts, parsed, several_parts
from dmoerm.evaluation.sections import Bar, Bars, Cell, Measured, Section, Table

__all__ = ["DISTURBANCE"]


def _read(document: Mapping[str, Any]) -> DisturbanceStudy:
    study = parsed(DisturbanceStudy, document)
    if not study.categories or not study.seeds:
        raise DataError(f"{'seeds' if study.categories else 'categories'}: empty")
    for row in study.rows:
        for category in study.categories:
            study.cell(row.name, category)
    for category in study.categories:
        study.cell(category, category)
    if not any(part.category is None and part.against != PAIRS for part in study.outer_layer):
        raise DataError("outer_layer: lacks the difference to all categories over all test comparisons")
    return study


def _chapter(runs: Sequence[Run]) -> Chapter:
    return Chapter(
        headlines=tuple(_headline(run) for run in runs),
        warnings=tuple(warning for run in runs for warning in _warnings(run, runs)),
        made=tuple(_made(run) for run in runs),
        parts=several_parts(runs, _together(runs) if len(runs) > 1 else (), lambda run: disturbance_sections(run.found)),
    )


def _headline(run: Run) -> Headline:
    study: DisturbanceStudy = run.found
    seeds = f"{len(study.seeds)} training seed{'' if len(study.seeds) == 1 else 's'}"
    on = f"{study.pooled.n_pairs:,} pairs of {study.pooled.n_prompts:,} prompts, {seeds}"
    what = "Agreement of models of one category minus that of a model of all (above 0, categories disturb each other)"
    return Headline(what, run.name, _measured(study.pooled), on)


def _warnings(run: Run, runs: Sequence[Run]) -> Iterator[str]:
    study: DisturbanceStudy = run.found
    name = "Disturbance" if len(runs) == 1 else f"Disturbance ({run.name})"
    yield from few_prompts(name, study.pooled.n_prompts)
    few = [category for category in study.categories if study.cell(category, category).agreement.n_prompts < FEW_PROMPTS]
    if few:
        yield f"{name}: fewer than {FEW_PROMPTS} prompts in {', '.join(few)}; their intervals are too narrow."
    if len(study.seeds) == 1:
        yield f"{name}: one training seed; part of every difference may be that of two trainings."
    for row in study.rows:
        failed = sum(study.cell(row.name, category).agreement.n_failed for category in study.categories)
        if failed:
            yield f"{name}: {failed:,} pairs failed under {row.name}; they count as wrong."
    for category, why in study.left_out.items():
        yield f"{name}: {category} is left out ({why})."
    if study.pooled.low <= 0:
        what = "training on all categories helps" if study.pooled.high < 0 else "the interval of alone minus all holds 0"
        yield f"{name}: no disturbance is shown; {what}."


def _together(runs: Sequence[Run]) -> list[Section]:
    bars = [Bar(run.name, run.found.pooled.value, (run.found.pooled.low, run.found.pooled.high)) for run in runs]
    columns = ("result", "training seeds", "all have alike", "alone minus all", "alone minus pairs", "pairs", "prompts")
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        study: DisturbanceStudy = run.found
        alike = study.equal if study.size is None else f"{study.size:,} comparisons, steps"
        figures = (_measured(study.pooled), _against_pairs(study), study.pooled.n_pairs, study.pooled.n_prompts)
        rows.append((run.name, ", ".join(map(str, study.seeds)), alike, *figures))
    categories = list(dict.fromkeys(category for run in runs for category in run.found.categories))
    by_category = tuple((run.name, *(_in_category(run.found, category) for category in categories)) for run in runs)
    caption = "Results compare where their test comparisons are the same. Above 0, other categories disturb; below 0, they help."
    return [
        Bars("What the outer layer buys, all results", tuple(bars), 0.0, "difference", f"Alone minus all categories, pooled. {caption}"),
        Table("Disturbance of all results", columns, tuple(rows), caption),
        Table("Alone minus all categories, by category", ("result", *categories), by_category, "A dash: not a column of that result."),
    ]


def _against_pairs(study: DisturbanceStudy) -> Cell:
    found = [part.difference for part in study.outer_layer if part.category is None and part.against == PAIRS]
    return _measured(found[0]) if found else None


def _in_category(study: DisturbanceStudy, category: str) -> Cell:
    found = [part.difference for part in study.outer_layer if part.category == category and part.against != PAIRS]
    return _measured(found[0]) if found else None


def _made(run: Run) -> Made:
    study: DisturbanceStudy = run.found
    draws = f"{100 * study.resampling.confidence:g} %, {study.resampling.samples:,} draws"
    return Made(run.name, study.version, str(study.resampling.seed), draws)


def _measured(found: Difference) -> Measured:
    return Measured(found.value, found.low, found.high)


DISTURBANCE = ReportKind("Categories apart and together", "dmoerm disturbance --json", _chapter, _read)
