"""From what items earned to figures with intervals: means of cells, and weighted means of those.

A `Credit` is what one item (or several together) earned in one cell. A `Figure` is a weighted sum of cells and of other figures, so every
published formula that is made of averages can be written down as data, and one bootstrap over prompts serves them all.

G prompts, C cells, S bootstrap samples.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmoerm.errors import DataError
from dmoerm.evaluation.bootstrap import Resampling, bootstrap_interval

__all__ = ["Credit", "Figure", "Measured", "figure_values", "mean_of", "measure"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Credit:
    """What was earned in a cell.

    Attributes:
        cell: its name.
        value: usually 0 to 1.
        items: the numbers of the items that it comes from.
        unit: what the bootstrap draws as one; credits of one unit come and go together.
        weight: in the mean of the cell.
    """

    cell: str
    value: float
    items: tuple[int, ...]
    unit: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Figure:
    """A weighted mean of cells and other figures.

    Attributes:
        name: as printed.
        parts: weight and cell or figure.
        level: 0 overall, 1 section, 2 subset.
        normalised: divide by the weights of the parts that are there. Where False the weighted sum stands as it is, and a part that is
            not there adds nothing.
    """

    name: str
    parts: tuple[tuple[float, "str | Figure"], ...]
    level: int = 0
    normalised: bool = True

    def cells(self) -> Iterator[str]:
        """The cells below it; one may come more than once."""
        for _, part in self.parts:
            if isinstance(part, str):
                yield part
            else:
                yield from part.cells()


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure with what it rests on.

    Attributes:
        name: of the figure.
        level: of the figure.
        value: of the figure.
        low: lower end of its interval over prompts.
        high: upper end.
        n_items: items that it rests on.
        n_prompts: prompts that the bootstrap drew from.
        n_failed: items among them with a response that could not be scored.
        n_ties: items among them in which a right and a wrong response got the same reward.
    """

    name: str
    level: int
    value: float
    low: float
    high: float
    n_items: int
    n_prompts: int
    n_failed: int
    n_ties: int


def mean_of(name: str, parts: Sequence["str | Figure"], level: int = 0) -> Figure:
    """The unweighted mean."""
    return Figure(name, tuple((1.0, part) for part in parts), level)


def measure(
    figures: Sequence[Figure], credits: Sequence[Credit], failed: Sequence[bool], tied: Sequence[bool], resampling: Resampling
) -> list[Measured]:
    """Value, interval and counts of every figure that has a cell with a credit.

    Args:
        figures: in the order of the report.
        credits: of all items.
        failed: whether a response of the item could not be scored, one an item.
        tied: whether a right and a wrong response of the item got the same reward, one an item.
        resampling: seed, draws and confidence. For each figure only the prompts that it rests on are drawn from.

    Raises:
        DataError: there is no credit.
    """
    if not credits:
        raise DataError("Nothing was scored, and a benchmark of nothing has no figures; expected at least one item.")
    return [row for figure in figures if (row := _measured(figure, credits, failed, tied, resampling)) is not None]


def figure_values(figures: Sequence[Figure], credits: Sequence[Credit]) -> dict[str, float]:
    """The values alone, by name of the figure."""
    means = _means(credits)
    found = {figure.name: _value(figure, means) for figure in figures}
    return {name: float(value[0]) for name, value in found.items() if value is not None}


def _measured(
    figure: Figure, credits: Sequence[Credit], failed: Sequence[bool], tied: Sequence[bool], resampling: Resampling
) -> Measured | None:
    wanted = set(figure.cells())
    used = [credit for credit in credits if credit.cell in wanted]
    value = _value(figure, _means(used))
    if value is None:
        return None
    units = {unit: number for number, unit in enumerate(dict.fromkeys(credit.unit for credit in used))}
    cells = {cell: number for number, cell in enumerate(dict.fromkeys(credit.cell for credit in used))}
    sums_GC = np.zeros((len(units), 2 * len(cells)))
    for credit in used:
        sums_GC[units[credit.unit], cells[credit.cell]] += credit.weight * credit.value
        sums_GC[units[credit.unit], len(cells) + cells[credit.cell]] += credit.weight

    def statistic(totals_SC: FloatArray) -> FloatArray:
        means = {cell: totals_SC[:, number] / totals_SC[:, len(cells) + number] for cell, number in cells.items()}
        drawn_S = _value(figure, means)
        assert drawn_S is not None, "the same cells as above"
        return drawn_S

    low, high = bootstrap_interval(sums_GC, statistic, resampling)
    items = set(itertools.chain.from_iterable(credit.items for credit in used))
    return Measured(
        name=figure.name,
        level=figure.level,
        value=float(value[0]),
        low=low,
        high=high,
        n_items=len(items),
        n_prompts=len(units),
        n_failed=sum(failed[number] for number in items),
        n_ties=sum(tied[number] for number in items),
    )


def _means(credits: Sequence[Credit]) -> dict[str, FloatArray]:
    sums: dict[str, list[float]] = {}
    for credit in credits:
        total = sums.setdefault(credit.cell, [0.0, 0.0])
        total[0] += credit.weight * credit.value
        total[1] += credit.weight
    return {cell: np.array([value / weight]) for cell, (value, weight) in sums.items()}


def _value(figure: Figure, means: Mapping[str, FloatArray]) -> FloatArray | None:
    """The figure in every draw; None where none of its cells is there. A cell that is empty in a draw counts as not there in it."""
    found = []
    for weight, part in figure.parts:
        value = means.get(part) if isinstance(part, str) else _value(part, means)
        if value is not None:
            found.append((weight, value))
    if not found:
        return None
    there = [weight * ~np.isnan(value) for weight, value in found]
    total: FloatArray = np.sum([weight * np.nan_to_num(value) for weight, value in found], axis=0)
    with np.errstate(invalid="ignore"):
        return total / np.sum(there, axis=0) if figure.normalised else total
