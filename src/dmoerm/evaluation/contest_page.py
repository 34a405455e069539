"""The page of a contest: agreement of every row test by test, noise, then what it picks and what fools it. Nothing is computed here.

A contest has many rows, so a plot draws each model once: of a model that is read in several ways (`double-layer/mlp`, `double-layer/mean`)
the reading that differences are taken to, else the first. Tables have every row.
"""

from collections.abc import Iterator, Sequence

from dmoerm.evaluation.best_of_n_page import study_sections
from dmoerm.evaluation.bootstrap import FEW_PROMPTS
from dmoerm.evaluation.contest_report import ContestReport, ContestRow
from dmoerm.evaluation.metrics import Difference, Estimate
from dmoerm.evaluation.pool_study import PoolStudy
from dmoerm.evaluation.probe_page import probe_sections
from dmoerm.evaluation.report import page_html
from dmoerm.evaluation.sections import Bar, Bars, Cell, Curve, Heat, Measured, Section, Series, Table, section_html, text_html

__all__ = ["contest_html", "contest_parts", "model_of"]

_READINGS = frozenset(("mlp", "mean", "wco", "uwo"))
"""What stands behind the stroke where one model is read in several ways."""


def contest_html(report: ContestReport, *, subtitle: str = "") -> str:
    """The page as text; its parts are those of `contest_parts`."""
    body = ""
    for title, sections in contest_parts(report):
        inside = "\n".join(section_html(section, level=3) for section in sections)
        body += f'<div class="chapter"><h2>{text_html(title)}</h2>{inside}</div>\n'
    return page_html("Baselines", subtitle, body)


def contest_parts(report: ContestReport) -> list[tuple[str, list[Section]]]:
    """Headings with what stands under each: a part a test; of the first training seed selection and probes; what it was made with."""
    tests = dict.fromkeys(row.test for row in report.rows)
    parts = [(f"Agreement on {test}", [*_agreement(report, test), *_noise(report, test)]) for test in tests]
    if report.pools:
        seed, study = next(iter(report.pools.items()))
        drawn = _drawn([row.name for row in study.best_of_n], report.reference)
        parts.append((f"Selection and the RL frontier, training seed {seed}", [*study_sections(study, drawn=drawn), *_over_seeds(report)]))
    if report.probes:
        seed, probes = next(iter(report.probes.items()))
        detailed = [model for model in probes.models if model == report.reference] or probes.models[:1]
        parts.append((f"Hacking probes, training seed {seed}", probe_sections(probes, detailed=detailed, folded=True)))
    return [*parts, ("What it was made with", list(_provenance(report)))]


def model_of(row: str) -> str:
    """The model that a row is a reading of: `double-layer` of `double-layer/mlp`; other names as they are."""
    model, _, reading = row.rpartition("/")
    return model if reading in _READINGS and model else row


def _drawn(names: Sequence[str], reference: str) -> list[str]:
    """Each model once, in the order of the rows."""
    once: dict[str, str] = {}
    for name in names:
        once.setdefault(model_of(name), name)
    if reference in names:
        once[model_of(reference)] = reference
    return list(once.values())


# --- agreement ----------------------------------------------------------------------------------------------------------------------------


def _agreement(report: ContestReport, test: str) -> Iterator[Section]:
    overall = [row for row in report.rows if row.test == test and row.category is None]
    first = overall[0].agreement
    ties = f"; {first.n_human_ties:,} pairs that people tied are left out" if first.n_human_ties else ""
    few = f" Fewer than {FEW_PROMPTS} prompts: intervals are too narrow." if first.n_prompts < FEW_PROMPTS else ""
    caption = (
        f"Share of pairs in which the row prefers what people prefer, mean over training seeds; bars start at 0.5, which is chance. "
        f"{first.n_pairs:,} pairs of {first.n_prompts:,} prompts{ties}. {_whiskers(report)}{few}"
    )
    bars = [Bar(row.model, row.agreement.value, (row.agreement.low, row.agreement.high), row.model == report.reference) for row in overall]
    yield Bars(f"Agreement of every row: {test}", tuple(bars), 0.5, "agreement", caption)
    yield _figures(report, overall)
    categories = [row.category for row in report.rows if row.test == test and row.model == overall[0].model and row.category is not None]
    if categories:
        yield _by_category(report, test, categories, [row.model for row in overall])


def _figures(report: ContestReport, rows: Sequence[ContestRow]) -> Table:
    seeds = max(len(row.by_seed) for row in rows)
    columns = (
        "model",
        "agreement",
        *(("by training seed",) if seeds > 1 else ()),
        "length-balanced",
        f"minus {report.reference}",
        "failed",
    )
    cells = [
        (
            row.model,
            _measured(row.agreement),
            *((",\N{NO-BREAK SPACE}".join(f"{value:.3f}" for value in row.by_seed),) if seeds > 1 else ()),
            row.length_balanced,
            _measured(row.difference),
            row.agreement.n_failed,
        )
        for row in rows
    ]
    caption = (
        f"Length-balanced: pairs with a longer and with a shorter winner weigh the same. Minus {report.reference}: the same prompts are "
        "drawn for both, so this interval is about the difference. Failed pairs count as wrong."
    )
    return Table(f"All figures: {rows[0].test}", columns, tuple(cells), caption)


def _by_category(report: ContestReport, test: str, categories: Sequence[str], models: Sequence[str]) -> Heat:
    counts = [report.row(models[0], test, category).agreement for category in categories]
    heads = [
        f"{category or '(no category)'}{'*' if found.n_prompts < FEW_PROMPTS else ''} ({found.n_pairs:,} pairs)"
        for category, found in zip(categories, counts, strict=True)
    ]
    rows = [(model, tuple(_interval(report.row(model, test, category).agreement) for category in categories)) for model in models]
    few = any(found.n_prompts < FEW_PROMPTS for found in counts)
    caption = f"* fewer than {FEW_PROMPTS} prompts: the interval is too narrow." if few else ""
    return Heat(f"Agreement by category: {test}", tuple(heads), tuple(rows), caption)


# --- noise --------------------------------------------------------------------------------------------------------------------------------


def _noise(report: ContestReport, test: str) -> Iterator[Section]:
    rows = {(row.model, row.share): row for row in report.noise if row.test == test}
    if not rows:
        return
    models, shares = list(dict.fromkeys(model for model, _ in rows)), sorted({share for _, share in rows})
    of_model = {model: [rows[model, share] for share in shares if (model, share) in rows] for model in models}
    # Pairs that change sides may leave the agreement as it is; where none does, the interval has no width.
    learning = [model for model in models if any(row.change and row.change.low < row.change.high for row in of_model[model])] or models
    series = [
        Series(model, tuple(100.0 * row.share for row in of_model[model]), tuple(row.agreement.value for row in of_model[model]))
        for model in _drawn(learning, report.reference)
    ]
    caption = (
        "Nothing of the test is flipped. One line a model; what no flip changes, such as a rule, is not drawn. The table below has every "
        "row, with intervals."
    )
    yield Curve(f"Training preferences flipped: {test}", "preferences flipped, %", "agreement", tuple(series), caption)
    columns = ["model"]
    cells: list[list[Cell]] = [[model] for model in models]
    for share in shares:
        columns += [f"{100 * share:g} % flipped", *([f"change at {100 * share:g} %"] if share else [])]
        for model, line in zip(models, cells, strict=True):
            row = rows.get((model, share))
            line.append(None if row is None else _measured(row.agreement))
            if share:
                line.append(None if row is None else _measured(row.change))
    seeds = "; ".join(f"{100 * share:g} %: {max(row.seeds for row in rows.values() if row.share == share)}" for share in shares)
    caption = f"Change: to the same model without flips, the same training seeds on both sides. Training seeds at {seeds}."
    yield Table(f"Agreement and change under flips: {test}", tuple(columns), tuple(map(tuple, cells)), caption)
    beside = [
        (model, *(_measured(rows[model, share].difference) if (model, share) in rows else None for share in shares))
        for model in models
        if any(row.difference for row in of_model[model])
    ]
    if beside:
        heads = ("model", *(f"{100 * share:g} % flipped" for share in shares))
        caption = f"Below 0: worse than {report.reference} that learned from the same flipped preferences. Paired by prompt."
        yield Table(f"Minus {report.reference} under the same flips: {test}", heads, tuple(beside), caption)


# --- selection ----------------------------------------------------------------------------------------------------------------------------


def _over_seeds(report: ContestReport) -> list[Section]:
    """Gold at the peak and at the end, of all training seeds."""
    studies = list(report.pools.values())
    if len(studies) == 1:
        return []
    columns = ("reward", "gold at the peak", "gold at the end", "frontier, at the peak", "frontier, at the end")
    rows = tuple(
        (row.name, *_spread(studies, row.name, frontier=False), *_spread(studies, row.name, frontier=True)) for row in studies[0].best_of_n
    )
    caption = f"Mean over {len(studies)} training seeds, and in brackets the lowest and the highest of them: no interval over prompts."
    return [Table("Selection over training seeds", columns, rows, caption)]


def _spread(studies: Sequence[PoolStudy], name: str, *, frontier: bool) -> list[Cell]:
    found = [row for study in studies for row in (study.frontier if frontier else study.best_of_n) if row.name == name]
    if len(found) < len(studies):
        return [None, None]
    columns = ([row.peak.gold.value for row in found], [row.points[-1].gold.value for row in found])
    return [Measured(sum(values) / len(values), min(values), max(values)) for values in columns]


# --- made with ----------------------------------------------------------------------------------------------------------------------------


def _provenance(report: ContestReport) -> Iterator[Section]:
    if report.seconds:
        caption = "To train it once and to score all texts. What was trained before for another contender is not paid again."
        yield Table("Seconds", ("contender", "seconds"), tuple((name, round(took)) for name, took in report.seconds.items()), caption)
    draws = f"bootstrap over prompts, {report.resampling.samples:,} samples, seed {report.resampling.seed}, {_percent(report)}"
    rows = [("dmoerm", report.version), ("differences are to", report.reference), ("intervals", draws)]
    rows += [(str(key), str(value)) for key, value in report.meta.items()]
    yield Table("Made with", ("what", "value"), tuple(rows))


def _whiskers(report: ContestReport) -> str:
    return f"Whiskers: {_percent(report)} intervals over prompts; they know nothing of other training seeds."


def _percent(report: ContestReport) -> str:
    return f"{100 * report.resampling.confidence:g} %"


def _interval(found: Estimate | Difference) -> Measured:
    return Measured(found.value, found.low, found.high)


def _measured(found: Estimate | Difference | None) -> Cell:
    return None if found is None else _interval(found)
