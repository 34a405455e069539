"""Agreement of several models with human preference on the same comparisons: one result, as a table and as JSON.

Every model gets one row overall and one for each category of the comparisons. The numbers come from `metrics`; nothing is computed here.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np

from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.bootstrap import FEW_PROMPTS, Resampling
from dmoerm.evaluation.metrics import (
    Difference,
    Estimate,
    calibration_error,
    calibration_floor,
    length_balanced_accuracy,
    log_loss,
    paired_difference,
    pairwise_accuracy_score,
)
from dmoerm.evaluation.pair_table import PairTable, Scored, require_same_pairs

__all__ = ["AgreementReport", "AgreementRow", "evaluate_agreement"]


@dataclass(frozen=True, slots=True)
class AgreementRow:
    """One model on one group of comparisons.

    Attributes:
        model: its name.
        category: the group; None is all comparisons, "" those without a category.
        agreement: pairwise accuracy.
        length_balanced: the same over both directions of length alike; None where one direction has no pair.
        calibration_error: None where every pair failed.
        calibration_floor: what the calibration error of a perfect model would be at this size.
        log_loss: nats a pair; None where every pair failed.
        difference: agreement minus that of the reference; None for the reference itself and where there is none.
    """

    model: str
    category: str | None
    agreement: Estimate
    length_balanced: Estimate | None
    calibration_error: Estimate | None
    calibration_floor: float | None
    log_loss: Estimate | None
    difference: Difference | None


@dataclass(frozen=True, slots=True)
class AgreementReport:
    """Rows of all models and groups, and what they were made with.

    Attributes:
        rows: overall first, then categories by name; models in the order given.
        reference: the model that differences are taken to, or None.
        resampling: seed, samples and confidence of the intervals.
        version: of this package.
        meta: what the caller wants kept beside the numbers: recipe hash, commit, file names.
        skipped_categories: categories in which people tied every pair, so that there is nothing to agree with.
    """

    rows: tuple[AgreementRow, ...]
    reference: str | None
    resampling: Resampling
    version: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    skipped_categories: tuple[str, ...] = ()

    def row(self, model: str, category: str | None = None) -> AgreementRow:
        """The row of a model, overall or in a category.

        Raises:
            ConfigError: there is none.
        """
        for row in self.rows:
            if (row.model, row.category) == (model, category):
                return row
        known = ", ".join(dict.fromkeys(row.model for row in self.rows))
        raise ConfigError(f"No row for model {model!r} in category {category!r}; the models are {known}.")

    def as_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON knows; a figure that does not exist is None."""
        return {
            "version": self.version,
            "reference": self.reference,
            **asdict(self.resampling),
            "weighting": "comparison",
            "skipped_categories": list(self.skipped_categories),
            "rows": [asdict(row) for row in self.rows],
            "meta": dict(self.meta),
        }

    def as_table(self) -> str:
        """Plain text for a terminal, at most 100 columns where category names are short."""
        blocks = [_block([row for row in self.rows if row.category == group], self.reference) for group in self._groups()]
        return "\n\n".join([*blocks, self._footnote()])

    def _groups(self) -> list[str | None]:
        return list(dict.fromkeys(row.category for row in self.rows))

    def _footnote(self) -> str:
        percent = f"{100 * self.resampling.confidence:g} %"
        draws = f"{self.resampling.samples} samples, seed {self.resampling.seed}"
        lines = [
            f"Brackets: {percent} bootstrap over prompts ({draws}). dmoerm {self.version}.",
            "len-bal: agreement, longer and shorter winners weighing the same. loss: nats a pair.",
            "calib: calibration error / what chance alone would give. Failed pairs count as wrong.",
        ]
        if any(row.agreement.n_prompts < FEW_PROMPTS for row in self.rows):
            lines.append(f"* fewer than {FEW_PROMPTS} prompts: the interval is too narrow.")
        if self.skipped_categories:
            lines.append(f"Without a ranked pair, left out: {', '.join(_name(name) for name in self.skipped_categories)}.")
        lines += [f"{_printable(key)}: {_printable(value)}" for key, value in self.meta.items()]
        return "\n".join(lines)


def evaluate_agreement(
    models: Mapping[str, Sequence[Scored]],
    reference: str | None = None,
    seed: int = 0,
    samples: int = 2000,
    confidence: float = 0.95,
    meta: Mapping[str, Any] | None = None,
) -> AgreementReport:
    """Measure models beside each other.

    Args:
        models: name to scored comparisons; all of the same comparisons, in any order. Baselines are models too.
        reference: the model to take differences to; None leaves them out.
        seed: of the bootstrap. All rows use the same draws where they have the same prompts.
        samples: bootstrap draws, at least 100.
        confidence: mass of the intervals, such as 0.95.
        meta: JSON-safe facts to keep with the result, such as the recipe hash.

    Returns:
        Rows overall and by `Comparison.category` (no category rows where none is set).

    Raises:
        DataError: no model, no strictly ranked pair, or models over different comparisons.
        ConfigError: an unknown reference, a bad bootstrap option, or `meta` that JSON cannot hold.
    """
    _check_arguments(models, reference, meta)
    resampling = Resampling(seed=seed, samples=samples, confidence=confidence)
    tables = {name: PairTable.of(scored) for name, scored in models.items()}
    first_name, first = next(iter(tables.items()))
    for name, table in tables.items():
        require_same_pairs(first, table, f"Agreement of {first_name!r} and {name!r}")
    rows = _rows(tables, None, reference, resampling)
    categories, skipped = _categories(first)
    for category in categories:
        keep_P = first.category_P == category
        rows += _rows({name: table.select(keep_P) for name, table in tables.items()}, category, reference, resampling)
    return AgreementReport(tuple(rows), reference, resampling, version("dmoerm"), dict(meta or {}), skipped)


def _check_arguments(models: Mapping[str, Sequence[Scored]], reference: str | None, meta: Mapping[str, Any] | None) -> None:
    if not models:
        raise DataError("No models were given to evaluate_agreement; expected at least one.")
    if reference is not None and reference not in models:
        raise ConfigError(f"reference {reference!r} is not among the models; expected one of {', '.join(models)}.")
    try:
        json.dumps(dict(meta or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"meta cannot be written as JSON ({error}); expected strings, finite numbers, lists and mappings.") from error


def _categories(table: PairTable) -> tuple[list[str], tuple[str, ...]]:
    present = sorted(set(table.category_P.tolist()))
    if present == [""]:
        return [], ()
    ranked = set(table.category_P[~table.human_tie_P].tolist())
    return [name for name in present if name in ranked], tuple(name for name in present if name not in ranked)


def _rows(tables: Mapping[str, PairTable], category: str | None, reference: str | None, resampling: Resampling) -> list[AgreementRow]:
    return [_row(name, table, category, tables[reference] if reference else None, resampling) for name, table in tables.items()]


def _row(name: str, table: PairTable, category: str | None, reference: PairTable | None, resampling: Resampling) -> AgreementRow:
    ranked = table.ranked()
    both_lengths = bool((ranked.longer_P > 0).any() and (ranked.longer_P < 0).any())
    some_rewards = not bool(np.all(ranked.failed_P))
    return AgreementRow(
        model=name,
        category=category,
        agreement=pairwise_accuracy_score(table, resampling=resampling),
        length_balanced=length_balanced_accuracy(table, resampling=resampling) if both_lengths else None,
        calibration_error=calibration_error(table, resampling=resampling) if some_rewards else None,
        calibration_floor=calibration_floor(table) if some_rewards else None,
        log_loss=log_loss(table, resampling=resampling) if some_rewards else None,
        difference=None if reference is None or reference is table else paired_difference(table, reference, resampling=resampling),
    )


_NAME_WIDTH = 20
_Column = tuple[str, int, Callable[[AgreementRow], str]]


def _columns(reference: str | None) -> list[_Column]:
    columns: list[_Column] = [
        ("agreement", 20, lambda row: _with_interval(row.agreement)),
        ("len-bal", 7, lambda row: "-" if row.length_balanced is None else f"{row.length_balanced.value:.3f}"),
        (
            "calib",
            11,
            lambda row: "-" if row.calibration_error is None else f"{row.calibration_error.value:.3f}/{row.calibration_floor:.3f}",
        ),
        ("loss", 6, lambda row: "-" if row.log_loss is None else _loss(row.log_loss.value)),
        ("failed", 6, lambda row: str(row.agreement.n_failed)),
    ]
    if reference is not None:
        columns.append(("minus reference", 23, lambda row: "reference" if row.difference is None else _signed(row.difference)))
    return columns


def _block(rows: Sequence[AgreementRow], reference: str | None) -> str:
    columns = _columns(reference)
    header = " ".join([" " * _NAME_WIDTH, *(title.rjust(width) for title, width, _ in columns)])
    lines = [_heading(rows[0]), header]
    for row in rows:
        name = _printable(row.model)
        if len(name) > _NAME_WIDTH:
            # A long name gets its own line: cutting it could make two models look alike.
            lines.append(name)
            name = ""
        lines.append(" ".join([name.ljust(_NAME_WIDTH), *(cell(row).rjust(width) for _, width, cell in columns)]))
    return "\n".join(line.rstrip() for line in lines)


def _heading(row: AgreementRow) -> str:
    counts = f"{_count(row.agreement.n_prompts, 'prompt')}, {_count(row.agreement.n_pairs, 'pair')}"
    ties = f", {row.agreement.n_human_ties:,} tied by people left out" if row.agreement.n_human_ties else ""
    few = " *" if row.agreement.n_prompts < FEW_PROMPTS else ""
    return f"{'All' if row.category is None else _name(row.category)}: {counts}{ties}{few}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _name(category: str) -> str:
    return _printable(category) or "(no category)"


def _printable(value: object) -> str:
    # Names come from data files; control characters could steer a terminal.
    return "".join(character if character.isprintable() else "?" for character in str(value))


def _with_interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _signed(difference: Difference) -> str:
    return f"{difference.value:+.3f} [{difference.low:+.3f},{difference.high:+.3f}]"


def _loss(value: float) -> str:
    return f"{value:.3f}" if value < 100 else ">=100"
