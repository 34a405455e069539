"""Multi-task disturbance: does a model judge a category worse for having learnt other categories as well?

From rewards to figures; nothing is trained here. Rows are models, by what they were trained on; columns are categories of the test. A cell
is the agreement on that category's test comparisons, and its paired difference to the model that learnt that category alone: below 0, the
other categories have disturbed it. What the outer layer buys is the opposite difference, alone minus all, over all test comparisons, each
judged by the model of its own category: what sending every prompt to its own model gains over one model for all, were every prompt sent
rightly. Against pairs it is the same with every other category in turn as the partner.

Equal steps do not make the models differ in one thing only: see docs/disturbance.md for what `--equal` and `--sizes-equal` hold fixed.

Source: the claim is that of arXiv 2403.01197: training on several tasks at once disturbs a reward model, splitting repairs it.
"""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from dmoerm.errors import DataError
from dmoerm.evaluation.bootstrap import FEW_PROMPTS, Resampling
from dmoerm.evaluation.metrics import Difference, Estimate, accuracy_over_seeds, paired_difference_over_seeds
from dmoerm.evaluation.pair_table import Scored
from dmoerm.evaluation.result_files import result_document

__all__ = ["DisturbanceCell", "DisturbanceStudy", "OuterLayer", "Trained", "study_disturbance", "write_csv"]

Runs = Sequence[Sequence[Scored]]
"""One list of scored test comparisons a seed."""

PAIRS = "pairs"
"""What stands for all pairs of categories in `OuterLayer.against`."""


@dataclass(frozen=True, slots=True)
class Trained:
    """One row of the matrix: a model, or a baseline.

    Attributes:
        name: of the mixture, or of the baseline.
        categories: that it learnt; empty for a baseline.
        comparisons: distinct training comparisons; None for a baseline, as the next two.
        steps: of the optimizer.
        passes: over the comparisons.
    """

    name: str
    categories: tuple[str, ...]
    comparisons: int | None = None
    steps: int | None = None
    passes: float | None = None


@dataclass(frozen=True, slots=True)
class DisturbanceCell:
    """One model on one category.

    Attributes:
        trained_on: name of the row.
        category: of the test comparisons.
        agreement: over all seeds.
        by_seed: agreement under each seed.
        difference: agreement minus that of the model of this category alone; None for that model itself.
    """

    trained_on: str
    category: str
    agreement: Estimate
    by_seed: tuple[float, ...]
    difference: Difference | None


@dataclass(frozen=True, slots=True)
class OuterLayer:
    """What a model of its own category buys.

    Attributes:
        against: `all categories`, or `pairs`: the mean over all partners.
        category: of the test comparisons; None is all of them, each comparison weighing the same.
        difference: agreement of the model of the category alone minus that of the other.
    """

    against: str
    category: str | None
    difference: Difference


@dataclass(frozen=True, slots=True)
class DisturbanceStudy:
    """The matrix, what the outer layer buys, and what they were made with.

    Attributes:
        categories: columns.
        rows: models alone, in pairs, all; then baselines.
        cells: row by row.
        outer_layer: pooled first, then by category.
        seeds: of training.
        equal: what the models have alike: `steps` or `epochs`.
        size: training comparisons that every model was given; None: all that there are.
        left_out: categories without a row, and why.
        resampling: of the intervals.
        version: of this package.
        meta: what the caller wants kept beside the numbers.
    """

    categories: tuple[str, ...]
    rows: tuple[Trained, ...]
    cells: tuple[DisturbanceCell, ...]
    outer_layer: tuple[OuterLayer, ...]
    seeds: tuple[int, ...]
    equal: Literal["steps", "epochs"]
    size: int | None
    left_out: Mapping[str, str]
    resampling: Resampling
    version: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    def cell(self, trained_on: str, category: str) -> DisturbanceCell:
        """One cell of the matrix.

        Raises:
            DataError: there is none.
        """
        for found in self.cells:
            if (found.trained_on, found.category) == (trained_on, category):
                return found
        names = ", ".join(row.name for row in self.rows)
        raise DataError(f"no cell {trained_on!r}, {category!r}; rows: {names}; columns: {', '.join(self.categories)}")

    @property
    def pooled(self) -> Difference:
        """Alone minus all categories, over all test comparisons."""
        return next(part.difference for part in self.outer_layer if part.category is None and part.against != PAIRS)

    def as_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON knows."""
        return result_document("disturbance", asdict(self))

    def as_table(self) -> str:
        """Plain text for a terminal: the matrix, each category with its intervals, what the outer layer buys."""
        blocks = [self._matrix(), *map(self._block, self.categories), self._outer_layer(), self._footnote()]
        return "\n\n".join(blocks)

    def _matrix(self) -> str:
        width = max(len(row.name) for row in self.rows)
        wide = [max(8, len(name)) for name in self.categories]
        lines = [
            "Agreement by category (columns) of models trained on (rows); + and -: the interval of the difference to alone excludes 0",
            " ".join([" " * width, *(name.rjust(size) for name, size in zip(self.categories, wide, strict=True))]),
        ]
        for row in self.rows:
            found = [self.cell(row.name, name) for name in self.categories]
            cells = [f"{cell.agreement.value:.3f}{_sign(cell.difference)}".rjust(size) for cell, size in zip(found, wide, strict=True)]
            lines.append(" ".join([row.name.ljust(width), *cells]))
        return "\n".join(line.rstrip() for line in lines)

    def _block(self, category: str) -> str:
        width = max(len(row.name) for row in self.rows)
        first = self.cell(category, category).agreement
        few = " *" if first.n_prompts < FEW_PROMPTS else ""
        ties = f", {first.n_human_ties:,} tied by people left out" if first.n_human_ties else ""
        failed = f", {first.n_failed:,} failed and counted as wrong" if first.n_failed else ""
        titles = " ".join(["agreement".rjust(20), "minus alone".rjust(23), "train".rjust(7), "steps".rjust(6), "passes".rjust(7)])
        lines = [f"{category}: {first.n_prompts:,} prompts, {first.n_pairs:,} pairs{ties}{failed}{few}", f"{' ' * width} {titles}"]
        for row in self.rows:
            found = self.cell(row.name, category)
            difference = "alone" if found.difference is None else _signed(found.difference)
            cells = [_with_interval(found.agreement).rjust(20), difference.rjust(23), *_budget(row)]
            lines.append(" ".join([row.name.ljust(width), *cells]))
        return "\n".join(line.rstrip() for line in lines)

    def _outer_layer(self) -> str:
        lines = ["What the outer layer buys: a model of its own category minus"]
        for part in self.outer_layer:
            of = "all test comparisons" if part.category is None else part.category
            counts = f"{part.difference.n_pairs:,} pairs of {part.difference.n_prompts:,} prompts"
            lines.append(f"  {part.against.ljust(14)} {of.ljust(24)} {_signed(part.difference)}  {counts}")
        return "\n".join(lines)

    def _footnote(self) -> str:
        percent = f"{100 * self.resampling.confidence:g} %"
        seeds = ", ".join(map(str, self.seeds))
        lines = [
            f"Brackets: {percent} bootstrap over prompts ({self.resampling.samples} samples, seed {self.resampling.seed}). "
            f"dmoerm {self.version}.",
            f"Mean over training seeds: {seeds}.",
            self.alike(),
            f"With {len(self.cells)} cells, some intervals exclude 0 by chance: read the pooled line first.",
        ]
        if any(self.cell(name, name).agreement.n_prompts < FEW_PROMPTS for name in self.categories):
            lines.append(f"* fewer than {FEW_PROMPTS} prompts: the interval is too narrow.")
        lines += [f"Left out: {name} ({why})." for name, why in self.left_out.items()]
        return "\n".join([*lines, *(f"{key}: {value}" for key, value in self.meta.items())])

    def alike(self) -> str:
        """What all models have alike and what not, in a sentence."""
        if self.size is not None:
            return f"Every model: {self.size:,} training comparisons, the same steps; in a mixture, fewer of each category."
        if self.equal == "steps":
            return "Every model: the same steps; a smaller set is passed over more often."
        return "Every model: the same passes; a larger set takes more steps."


def study_disturbance(
    rows: Sequence[Trained],
    scored: Mapping[str, Runs],
    *,
    seeds: Sequence[int],
    equal: Literal["steps", "epochs"] = "steps",
    size: int | None = None,
    left_out: Mapping[str, str] | None = None,
    resampling: Resampling | None = None,
    meta: Mapping[str, Any] | None = None,
) -> DisturbanceStudy:
    """Measure every row on every category.

    Args:
        rows: models and baselines; the models of one category alone give the columns.
        scored: by the name of a row, its scored test comparisons for each seed; a baseline may have one list. Every comparison has a
            category that is a column.
        seeds: of training.
        equal: what the models have alike, for the reader.
        size: training comparisons of each model, where all have the same.
        left_out: categories without a row, and why.
        resampling: how intervals are made.
        meta: JSON-safe facts to keep with the result.

    Raises:
        DataError: a column without a strictly ranked pair, rows over different comparisons, or a comparison outside the columns.
    """
    resampling = resampling or Resampling()
    categories = tuple(row.name for row in rows if row.categories == (row.name,))
    of_category = {row.name: _by_category(scored[row.name], categories) for row in rows}
    cells = []
    for row in rows:
        for category in categories:
            runs, alone = of_category[row.name][category], of_category[category][category]
            difference = None if row.name == category else paired_difference_over_seeds(runs, alone, resampling=resampling)
            by_seed = tuple(accuracy_over_seeds([run]).value for run in runs)
            cells.append(DisturbanceCell(row.name, category, accuracy_over_seeds(runs, resampling=resampling), by_seed, difference))
    everything = next(row.name for row in rows if set(row.categories) == set(categories))
    rivals = [(everything, {name: [everything] for name in categories})]
    pairs = [row for row in rows if len(row.categories) == 2 and row.name != everything]
    partners = {name: [row.name for row in pairs if name in row.categories] for name in categories}
    if all(partners.values()):
        rivals.append((PAIRS, partners))
    outer = [
        OuterLayer(against, category, _alone_minus(of_category, names, categories if category is None else (category,), resampling))
        for category in (None, *categories)
        for against, names in rivals
    ]
    return DisturbanceStudy(
        categories, tuple(rows), tuple(cells), tuple(outer), tuple(seeds), equal, size, dict(left_out or {}), resampling,
        version("dmoerm"), dict(meta or {}),
    )  # fmt: skip


def write_csv(folder: str | os.PathLike[str], study: DisturbanceStudy) -> list[Path]:
    """`disturbance.csv`, one line a cell, and `outer_layer.csv`; existing ones are replaced."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    row_of = {row.name: row for row in study.rows}
    cells = [
        [cell.trained_on, cell.category, *_figures(cell.agreement), *_figures(cell.difference), cell.agreement.n_pairs,
         cell.agreement.n_prompts, cell.agreement.n_failed, row.comparisons, row.steps, row.passes]
        for cell in study.cells
        for row in [row_of[cell.trained_on]]
    ]  # fmt: skip
    head = ["trained_on", "category", "agreement", "low", "high", "minus_alone", "minus_alone_low", "minus_alone_high", "n_pairs"]
    outer = [
        [part.against, part.category or "", *_figures(part.difference), part.difference.n_pairs, part.difference.n_prompts]
        for part in study.outer_layer
    ]
    return [
        _write(folder / "disturbance.csv", [*head, "n_prompts", "n_failed", "train_comparisons", "steps", "passes"], cells),
        _write(folder / "outer_layer.csv", ["against", "category", "alone_minus", "low", "high", "n_pairs", "n_prompts"], outer),
    ]


def _write(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(text.getvalue(), encoding="utf-8", newline="")
    unfinished.replace(path)
    return path


def _figures(found: Estimate | Difference | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if found is None else (found.value, found.low, found.high)


def _by_category(runs: Runs, categories: Sequence[str]) -> dict[str, list[list[Scored]]]:
    for item in runs[0]:
        if item.comparison.category not in categories:
            raise DataError(f"test comparison {item.comparison.id!r} has category {item.comparison.category!r}; expected a column")
    return {name: [[item for item in run if item.comparison.category == name] for run in runs] for name in categories}


def _alone_minus(
    of_category: Mapping[str, Mapping[str, Runs]],
    rivals: Mapping[str, Sequence[str]],
    categories: Sequence[str],
    resampling: Resampling,
) -> Difference:
    """Every test comparison under the model of its own category, minus the mean over its rivals; seeds and rivals are averaged."""
    seeds = range(len(of_category[categories[0]][categories[0]]))
    turns = range(len(rivals[categories[0]]))  # every category has as many partners as any other
    ours = [[item for name in categories for item in of_category[name][name][seed]] for seed in seeds]
    theirs = [[item for name in categories for item in of_category[rivals[name][turn]][name][seed]] for turn in turns for seed in seeds]
    return paired_difference_over_seeds(ours, theirs, resampling=resampling)


def _sign(difference: Difference | None) -> str:
    return " " if difference is None or difference.low <= 0 <= difference.high else "+" if difference.low > 0 else "-"


def _budget(row: Trained) -> list[str]:
    if row.comparisons is None or row.passes is None:
        return ["-".rjust(7), "-".rjust(6), "-".rjust(7)]
    return [f"{row.comparisons:,}".rjust(7), f"{row.steps:,}".rjust(6), f"{row.passes:.1f}".rjust(7)]


def _with_interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _signed(difference: Difference) -> str:
    return f"{difference.value:+.3f} [{difference.low:+.3f},{difference.high:+.3f}]"
