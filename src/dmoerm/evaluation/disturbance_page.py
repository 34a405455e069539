"""The sections of a page about multi-task disturbance: what was found, the matrix, differences, training sets. Nothing is computed here."""

from dmoerm.evaluation.bootstrap import FEW_PROMPTS
from dmoerm.evaluation.disturbance import PAIRS, DisturbanceCell, DisturbanceStudy, OuterLayer
from dmoerm.evaluation.metrics import Difference, Estimate
from dmoerm.evaluation.sections import Bar, Bars, Cell, Heat, Measured, Section, Table, Text

__all__ = ["disturbance_sections"]


def disturbance_sections(study: DisturbanceStudy) -> list[Section]:
    """What was found in words, what the outer layer buys, the matrix, its differences to alone, training sets, and provenance."""
    return [
        Text("What was found", _lead(study)),
        _outer_layer(study),
        _matrix(study),
        _differences(study),
        _sets(study),
        _provenance(study),
    ]


def _lead(study: DisturbanceStudy) -> tuple[str, ...]:
    found = study.pooled
    verdict = "the interval leaves open which is better"
    if found.low > 0 or found.high < 0:
        verdict = "training on all categories disturbs" if found.low > 0 else "training on all categories helps"
    seeds = len(study.seeds)
    points = f"{100 * found.value:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}]".replace("-", "\N{MINUS SIGN}")
    return (
        f"Agreement of reward models that learnt the category of the test comparison alone, minus that of the one that learnt all "
        f"{len(study.categories)}: {points}; {verdict}. "
        f"{found.n_pairs:,} pairs of {found.n_prompts:,} prompts, {seeds} training seed{'' if seeds == 1 else 's'}.",
        f"{study.alike()} That is what an outer layer can buy at best, with every prompt sent to its own category.",
    )


def _outer_layer(study: DisturbanceStudy) -> Bars:
    bars = [
        Bar(_bar_name(part), part.difference.value, (part.difference.low, part.difference.high), part.category is None)
        for part in study.outer_layer
    ]
    caption = (
        "Agreement of the model of the category alone minus that of the model on all categories, or of those on pairs with each other "
        "category in turn. Above 0, others disturb; below 0, they help."
    )
    return Bars("What the outer layer buys", tuple(bars), 0.0, "difference", f"{caption} {_whiskers(study)}")


def _bar_name(part: OuterLayer) -> str:
    return f"{part.category or 'pooled'}, alone minus {'pairs' if part.against == PAIRS else 'all'}"


def _matrix(study: DisturbanceStudy) -> Heat:
    rows = [(row.name, tuple(_measured(study.cell(row.name, name).agreement) for name in study.categories)) for row in study.rows]
    few = any(study.cell(name, name).agreement.n_prompts < FEW_PROMPTS for name in study.categories)
    note = f" * fewer than {FEW_PROMPTS} prompts: the interval is too narrow." if few else ""
    caption = f"Share of pairs in which the model prefers what people prefer; 0.5 is chance. {_whiskers(study)}{note}"
    return Heat("Agreement: trained on (rows), tested on (columns)", _heads(study), tuple(rows), caption)


def _differences(study: DisturbanceStudy) -> Table:
    rows = [(row.name, *(_difference(study.cell(row.name, name)) for name in study.categories)) for row in study.rows]
    caption = (
        f"Paired: the same prompts are drawn for both. With {len(study.cells)} cells, some intervals exclude 0 by chance. A dash is the "
        "model of that category alone."
    )
    return Table("Minus the model of the column's category alone", ("trained on", *_heads(study)), tuple(rows), caption)


def _sets(study: DisturbanceStudy) -> Table:
    rows = [(row.name, row.comparisons, row.steps, row.passes) for row in study.rows if row.comparisons is not None]
    caption = (
        f"{study.alike()} Passes: how often each comparison was seen. The first head is fitted on each comparison once, without steps."
    )
    return Table("Training sets", ("trained on", "comparisons", "steps", "passes"), tuple(rows), caption)


def _provenance(study: DisturbanceStudy) -> Table:
    draws = f"bootstrap over prompts, {study.resampling.samples:,} samples, seed {study.resampling.seed}, {_percent(study)}"
    rows = [("dmoerm", study.version), ("training seeds", ", ".join(map(str, study.seeds))), ("intervals", draws), ("equal", study.equal)]
    rows += [("left out", f"{name}: {why}") for name, why in study.left_out.items()]
    rows += [(str(key), str(value)) for key, value in study.meta.items()]
    return Table("Made with", ("what", "value"), tuple(rows))


def _heads(study: DisturbanceStudy) -> tuple[str, ...]:
    counts = [study.cell(name, name).agreement for name in study.categories]
    return tuple(
        f"{name}{'*' if found.n_prompts < FEW_PROMPTS else ''} ({found.n_pairs:,} pairs)"
        for name, found in zip(study.categories, counts, strict=True)
    )


def _whiskers(study: DisturbanceStudy) -> str:
    return f"Intervals: {_percent(study)} over prompts; they know nothing of other training seeds."


def _percent(study: DisturbanceStudy) -> str:
    return f"{100 * study.resampling.confidence:g} %"


def _difference(cell: DisturbanceCell) -> Cell:
    return _measured(cell.difference) if cell.difference is not None else None


def _measured(found: Estimate | Difference) -> Measured:
    return Measured(found.value, found.low, found.high)
