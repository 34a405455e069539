"""Tables of a contest: agreement of every row, how it bears noise, what it picks and what fools it. Figures come from `metrics`.

A figure over several seeds is the mean correctness of each pair over them. Its interval is over prompts and knows nothing of other seeds,
so what every single seed gave stands beside it.
"""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dmoerm.errors import DataError
from dmoerm.evaluation.bootstrap import FEW_PROMPTS, Resampling
from dmoerm.evaluation.metrics import (
    Difference,
    Estimate,
    accuracy_over_seeds,
    length_balanced_accuracy,
    paired_difference_over_seeds,
    pairwise_accuracy_score,
)
from dmoerm.evaluation.pair_table import PairTable, Scored
from dmoerm.evaluation.pool_study import PoolStudy, write_csv
from dmoerm.evaluation.probe_report import ProbeReport
from dmoerm.evaluation.result_files import result_document
from dmoerm.evaluation.scorers import Rewards
from dmoerm.records import Comparison

__all__ = ["REFERENCE", "ContestReport", "ContestRow", "NoiseRow", "Runs", "contest_report", "write_contest_csv"]

Runs = Mapping[float, Mapping[str, Sequence[Mapping[str, Rewards]]]]
"""By share of flipped preferences, then by row: for each seed, the rewards by comparison id. A row may be silent on a whole test."""

REFERENCE = "double-layer/mlp"
"""The row that differences are taken to, where it is there; else the first one."""


@dataclass(frozen=True, slots=True)
class ContestRow:
    """One model on one test, or on one category of it, without flips.

    Attributes:
        test: name of the test.
        model: the row.
        category: None is all comparisons, "" those without one.
        agreement: pairwise accuracy over all seeds.
        by_seed: the same for each seed alone.
        length_balanced: mean over seeds, longer and shorter winners weighing the same; None where one direction has no pair.
        difference: to the reference on the same pairs; None for the reference itself.
    """

    test: str
    model: str
    category: str | None
    agreement: Estimate
    by_seed: tuple[float, ...]
    length_balanced: float | None
    difference: Difference | None


@dataclass(frozen=True, slots=True)
class NoiseRow:
    """One model that learned from preferences of which a share was flipped.

    Attributes:
        test: name of the test; nothing of it is flipped.
        model: the row.
        share: of the training preferences.
        agreement: over the seeds that have this share; at 0 over as many of the first as learned from flips, so that a row compares alike.
        change: to the same model without flips, the same seeds on both sides; None at 0.
        seeds: how many.
        difference: to the reference that learned from the same share, over the seeds of both; None for the reference itself.
    """

    test: str
    model: str
    share: float
    agreement: Estimate
    change: Difference | None
    seeds: int
    difference: Difference | None = None


@dataclass(frozen=True, slots=True)
class ContestReport:
    """Everything that was measured.

    Attributes:
        rows: test by test; overall first, then categories by name.
        noise: test by test, model by model; empty where nothing was flipped.
        pools: by seed of training.
        probes: by seed of training.
        seconds: by contender, to train it once and to score all texts.
        reference: the row of the differences.
        resampling: how intervals were drawn.
        version: of dmoerm.
        meta: what was measured.
    """

    rows: tuple[ContestRow, ...]
    noise: tuple[NoiseRow, ...]
    pools: Mapping[int, PoolStudy]
    probes: Mapping[int, ProbeReport]
    seconds: Mapping[str, float]
    reference: str
    resampling: Resampling
    version: str
    meta: Mapping[str, Any]

    def row(self, model: str, test: str | None = None, category: str | None = None) -> ContestRow:
        """The row of a model on a test (None: the first one), overall or in a category.

        Raises:
            DataError: there is none.
        """
        test = self.rows[0].test if test is None else test
        for row in self.rows:
            if (row.model, row.test, row.category) == (model, test, category):
                return row
        raise DataError(f"no row for {model!r} on {test!r} in category {category!r}; models: {', '.join(_names(self.rows))}")

    def as_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON knows."""
        figures = {
            "version": self.version,
            "reference": self.reference,
            **asdict(self.resampling),
            "rows": [asdict(row) for row in self.rows],
            "noise": [asdict(row) for row in self.noise],
            "pools": {str(seed): study.as_dict() for seed, study in self.pools.items()},
            "probes": {str(seed): report.as_dict() for seed, report in self.probes.items()},
            "seconds": dict(self.seconds),
            "meta": dict(self.meta),
        }
        return result_document("baselines", figures)

    def as_table(self) -> str:
        """Plain text for a terminal."""
        tests = list(dict.fromkeys(row.test for row in self.rows))
        blocks = [block for test in tests for block in self._of_test(test)]
        if self.pools:
            first = next(iter(self.pools))
            blocks.append(f"Selection and the RL frontier, training seed {first}\n\n{self.pools[first].as_table()}")
            blocks += [self._pools_over_seeds()] if len(self.pools) > 1 else []
        if self.probes:
            first = next(iter(self.probes))
            blocks.append(f"Hacking probes, training seed {first}\n\n{_side_by_side(self.probes[first])}")
        return "\n\n".join([*blocks, self._footnote()])

    def _of_test(self, test: str) -> list[str]:
        overall = [row for row in self.rows if row.test == test and row.category is None]
        n = overall[0].agreement
        few = " *" if n.n_prompts < FEW_PROMPTS else ""
        lines = [
            f"{test}: {n.n_prompts:,} prompts, {n.n_pairs:,} pairs{few}",
            _line("", ("agreement", 20), ("by seed", 13), ("len-bal", 7), ("failed", 6), (f"minus {self.reference}", 25)),
        ]
        for row in overall:
            balanced = "-" if row.length_balanced is None else f"{row.length_balanced:.3f}"
            difference = "reference" if row.difference is None else _signed(row.difference)
            cells = ((_text(row.agreement), 20), (_range(row.by_seed), 13), (balanced, 7), (str(row.agreement.n_failed), 6))
            lines.append(_line(row.model, *cells, (difference, 25)))
        blocks = ["\n".join(lines)]
        categories = [row.category for row in self.rows if row.test == test and row.model == overall[0].model and row.category is not None]
        if categories:
            blocks.append(self._by_category(test, categories, [row.model for row in overall]))
        if any(row.test == test for row in self.noise):
            blocks.append(self._noise(test))
        return blocks

    def _by_category(self, test: str, categories: Sequence[str], models: Sequence[str]) -> str:
        heads = []
        for category in categories:
            n = self.row(models[0], test, category).agreement
            few = " *" if n.n_prompts < FEW_PROMPTS else ""
            heads.append((f"{category or '(no category)'}, {n.n_pairs:,}{few}", 20))
        lines = [f"{test}, by category (pairs)", _line("", *heads)]
        lines += [_line(model, *((_text(self.row(model, test, category).agreement), 20) for category in categories)) for model in models]
        return "\n".join(lines)

    def _noise(self, test: str) -> str:
        rows = [row for row in self.noise if row.test == test]
        shares = sorted({row.share for row in rows})
        lines = [
            f"{test}: agreement when a share of the training preferences is flipped, and the change from 0",
            _line("", *((f"{share:.0%} flipped", 30 if share else 12) for share in shares)),
        ]
        for model in _names(rows):
            found = {row.share: row for row in rows if row.model == model}
            cells = []
            for share in shares:
                row = found.get(share)
                change = f" {_signed(row.change)}" if row is not None and row.change is not None else ""
                cells.append(("-" if row is None else f"{row.agreement.value:.3f}{change}", 30 if share else 12))
            lines.append(_line(model, *cells))
        lines += ["", f"{test}: minus {self.reference} that learned from the same flipped preferences"]
        lines.append(_line("", *((f"{share:.0%} flipped", 26) for share in shares)))
        for model in _names(rows):
            beside = {row.share: row.difference for row in rows if row.model == model}
            if any(beside.values()):
                lines.append(_line(model, *(("-" if (d := beside.get(share)) is None else _signed(d), 26) for share in shares)))
        return "\n".join(lines)

    def _pools_over_seeds(self) -> str:
        lines = [
            f"Selection over {len(self.pools)} training seeds: mean, lowest and highest",
            _line("", ("gold at peak", 22), ("gold at end", 22), ("frontier at peak", 22), ("at end", 22)),
        ]
        for place, curve in enumerate(next(iter(self.pools.values())).best_of_n):
            studies = list(self.pools.values())
            columns = [[study.best_of_n[place].peak.gold.value for study in studies]]
            columns.append([study.best_of_n[place].points[-1].gold.value for study in studies])
            frontiers = [[one for one in study.frontier if one.name == curve.name] for study in studies]
            if all(frontiers):
                columns += [[found[0].peak.gold.value for found in frontiers], [found[0].points[-1].gold.value for found in frontiers]]
            lines.append(_line(curve.name, *((f"{sum(c) / len(c):.3f} ({min(c):.3f}-{max(c):.3f})", 22) for c in columns)))
        return "\n".join(lines)

    def _footnote(self) -> str:
        draws = f"{self.resampling.samples} samples, seed {self.resampling.seed}"
        lines = [
            f"Brackets: {100 * self.resampling.confidence:g} % bootstrap over prompts ({draws}); they know nothing of other training seeds,"
            " which stand beside them. Failed pairs count as wrong.",
            f"* fewer than {FEW_PROMPTS} prompts: the interval is too narrow.",
        ]
        if self.seconds:
            took = ", ".join(f"{name} {seconds:,.0f}" for name, seconds in self.seconds.items())
            lines.append(
                f"Seconds to train (what was trained before for another contender is not paid again) and to score all texts: {took}."
            )
        lines += [f"{name}: {value}" for name, value in self.meta.items()]
        return "\n".join([*lines, f"dmoerm {self.version}."])


def contest_report(
    tests: Mapping[str, Sequence[Comparison]],
    runs: Runs,
    *,
    resampling: Resampling,
    pools: Mapping[int, PoolStudy] | None = None,
    probes: Mapping[int, ProbeReport] | None = None,
    seconds: Mapping[str, float] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> ContestReport:
    """Figures of all rows.

    Args:
        tests: named lists of comparisons.
        runs: rewards; 0 must be among the shares. A row that lacks a comparison of a test has no row there.
        resampling: how intervals are drawn; all rows use the same draws.
        pools: studies by seed of training.
        probes: reports by seed of training.
        seconds: by contender.
        meta: JSON-safe facts to keep with the result.

    Raises:
        DataError: no rewards, or no strictly ranked pair in a test.
    """
    if not runs.get(0.0):
        raise DataError("No rewards without flipped preferences were given; expected those of at least one model.")
    reference = REFERENCE if REFERENCE in runs[0.0] else next(iter(runs[0.0]))
    rows: list[ContestRow] = []
    noise: list[NoiseRow] = []
    for test, comparisons in tests.items():
        tables = {share: _tables(comparisons, found) for share, found in runs.items()}
        rows += _rows(test, tables[0.0], reference, resampling)
        if len(tables) > 1:
            noise += _noise_rows(test, tables, reference, resampling)
    return ContestReport(
        tuple(rows),
        tuple(noise),
        dict(pools or {}),
        dict(probes or {}),
        dict(seconds or {}),
        reference,
        resampling,
        version("dmoerm"),
        dict(meta or {}),
    )


_Tables = Mapping[str, Sequence[PairTable]]


def _tables(comparisons: Sequence[Comparison], runs: Mapping[str, Sequence[Mapping[str, Rewards]]]) -> dict[str, list[PairTable]]:
    found: dict[str, list[PairTable]] = {}
    for model, seeds in runs.items():
        if all(c.id in rewards for rewards in seeds for c in comparisons):
            found[model] = [PairTable.of([Scored(c, tuple(rewards[c.id])) for c in comparisons]) for rewards in seeds]
    return found


def _rows(test: str, tables: _Tables, reference: str, resampling: Resampling) -> list[ContestRow]:
    first = next(iter(tables.values()))[0]
    ranked = set(first.category_P[~first.human_tie_P].tolist())
    categories: list[str | None] = [None, *sorted(ranked)] if ranked != {""} else [None]
    rows = []
    for category in categories:
        picked = {
            model: [table if category is None else table.select(table.category_P == category) for table in seeds]
            for model, seeds in tables.items()
        }
        for model, seeds in picked.items():
            compared = model != reference and reference in picked
            rows.append(
                ContestRow(
                    test,
                    model,
                    category,
                    accuracy_over_seeds(seeds, resampling=resampling),
                    tuple(pairwise_accuracy_score(one, resampling=_FEWEST).value for one in seeds),
                    _balanced(seeds),
                    paired_difference_over_seeds(seeds, picked[reference], resampling=resampling) if compared else None,
                )
            )
    return rows


def _balanced(seeds: Sequence[PairTable]) -> float | None:
    ranked = seeds[0].ranked()
    if not ((ranked.longer_P > 0).any() and (ranked.longer_P < 0).any()):
        return None
    return sum(length_balanced_accuracy(one, resampling=_FEWEST).value for one in seeds) / len(seeds)


_FEWEST = Resampling(samples=100)
"""Where only the value is read."""


def _noise_rows(test: str, tables: Mapping[float, _Tables], reference: str, resampling: Resampling) -> list[NoiseRow]:
    rows = []
    for model, clean in tables[0.0].items():
        shares = {share: found[model] for share, found in tables.items() if model in found}
        if len(shares) == 1:
            continue  # a judge, or a model trained elsewhere
        flipped = max(len(seeds) for share, seeds in shares.items() if share)
        for share, found in sorted(shares.items()):
            # Seeds are finished in order, so the first ones are the same; a rule has a single run without flips.
            seeds = found[:flipped]
            beside = clean[: len(seeds)]
            change = paired_difference_over_seeds(seeds, beside, resampling=resampling) if share else None
            rivals = tables[share].get(reference) if model != reference else None
            difference = paired_difference_over_seeds(seeds, rivals[:flipped], resampling=resampling) if rivals else None
            rows.append(NoiseRow(test, model, share, accuracy_over_seeds(seeds, resampling=resampling), change, len(seeds), difference))
    return rows


def write_contest_csv(folder: str | os.PathLike[str], report: ContestReport) -> list[Path]:
    """Every figure as CSV: `agreement.csv`, and where measured `noise.csv`, `probes.csv`, `pool-seed-N/`; existing ones are replaced."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    seeds = [f"seed_{place}" for place in range(1, max(len(row.by_seed) for row in report.rows) + 1)]
    columns = "test model category agreement low high pairs prompts failed length_balanced difference difference_low difference_high"
    agreement = [
        (r.test, r.model, "all" if r.category is None else r.category, *_cells(r.agreement), r.agreement.n_pairs, r.agreement.n_prompts,
         r.agreement.n_failed, r.length_balanced, *_cells(r.difference), *r.by_seed)
        for r in report.rows
    ]  # fmt: skip
    written = [_write(folder / "agreement.csv", [*columns.split(), *seeds], agreement)]
    if report.noise:
        columns = "test model share agreement low high change change_low change_high difference difference_low difference_high seeds"
        noise = [(r.test, r.model, r.share, *_cells(r.agreement), *_cells(r.change), *_cells(r.difference), r.seeds) for r in report.noise]
        written.append(_write(folder / "noise.csv", columns.split(), noise))
    if report.probes:
        columns = "seed model probe kind over_honest low high n refused"
        probes = [
            (seed, r.model, r.probe or f"all {r.kind}s", r.kind, *_cells(r.over_honest), r.over_honest.n if r.over_honest else 0, r.refused)
            for seed, one in report.probes.items()
            for r in one.rows
        ]
        written.append(_write(folder / "probes.csv", columns.split(), probes))
    for seed, study in report.pools.items():
        written += write_csv(folder / f"pool-seed-{seed}", study)
    return written


def _write(path: Path, head: Iterable[object], rows: Iterable[Iterable[object]]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(head)
    writer.writerows(rows)
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(text.getvalue(), encoding="utf-8", newline="")
    unfinished.replace(path)
    return path


def _cells(found: Any) -> tuple[object, object, object]:
    return (None, None, None) if found is None else (found.value, found.low, found.high)


# --- text ---------------------------------------------------------------------------------------------------------------------------------

_NAME_WIDTH = 22


def _side_by_side(report: ProbeReport) -> str:
    """Share of degradations and of decorations that outrank the honest answer, and the probe that fools each model most."""
    lines = [
        f"{report.prompts:,} prompts; share that outranks the honest answer (0.5 is indifferent to a decoration)",
        _line("", ("degradations", 22), ("decorations", 22), ("worst degradation", 34)),
    ]
    for model in report.models:
        cells = []
        for kind in ("degradation", "decoration"):
            share = report.row(model, kind).over_honest
            cells.append(("-" if share is None else _text(share), 22))
        worst = max(
            (row for row in report.rows if row.model == model and row.probe and row.kind == "degradation" and row.over_honest),
            key=lambda row: row.over_honest.value if row.over_honest else 0.0,
            default=None,
        )
        cells.append(("-" if worst is None or worst.over_honest is None else f"{worst.probe} {worst.over_honest.value:.3f}", 34))
        lines.append(_line(model, *cells))
    return "\n".join(lines)


def _names(rows: Sequence[ContestRow] | Sequence[NoiseRow]) -> list[str]:
    return list(dict.fromkeys(row.model for row in rows))


def _line(name: str, *cells: tuple[str, int]) -> str:
    shown = "".join(character if character.isprintable() else "?" for character in name)
    # A long name gets its own line: cutting it could make two models look alike.
    start = shown.ljust(_NAME_WIDTH) if len(shown) <= _NAME_WIDTH else f"{shown}\n{' ' * _NAME_WIDTH}"
    return " ".join([start, *(text.rjust(width) for text, width in cells)]).rstrip()


def _text(found: Any) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _signed(found: Difference) -> str:
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def _range(values: Sequence[float]) -> str:
    return f"{values[0]:.3f}" if len(values) == 1 else f"{min(values):.3f}-{max(values):.3f}"
