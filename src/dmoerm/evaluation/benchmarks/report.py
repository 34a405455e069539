"""The result of one model on one benchmark, as a table and as JSON. Nothing is computed here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dmoerm.errors import ConfigError
from dmoerm.evaluation.batch_invariance import BatchInvariance
from dmoerm.evaluation.benchmarks.figures import Measured
from dmoerm.evaluation.bootstrap import FEW_PROMPTS, Resampling

__all__ = ["BenchmarkReport"]


@dataclass(frozen=True, slots=True)
class BenchmarkReport:
    """Figures of a model on a benchmark, and what they rest on.

    Attributes:
        benchmark: its name in `BENCHMARKS`.
        title: its name in print.
        model: name of the scorer.
        rows: overall first; then sections and subsets.
        longest: the same figures where the longer response wins, by name.
        random: the same figures for random rewards, averaged over draws, by name.
        invariance: whether rewards depend on the batch.
        sources: every file or `hub:` name that was read, with the commit where it came from the Hub.
        skipped_rows: rows that could not be used.
        left_out: rows that are none of the benchmark's items, by reason.
        missing: subsets of the benchmark without a single row; where there is one, the overall figure is over the rest.
        repeated: items that repeat an earlier one word for word.
        rule: how it is scored.
        citation: paper and code of the rule.
        resampling: of the intervals.
        version: of this package.
    """

    benchmark: str
    title: str
    model: str
    rows: tuple[Measured, ...]
    longest: Mapping[str, float]
    random: Mapping[str, float]
    invariance: BatchInvariance
    sources: Mapping[str, str | None]
    skipped_rows: int
    left_out: Mapping[str, int]
    missing: tuple[str, ...]
    repeated: int
    rule: str
    citation: str
    resampling: Resampling = field(default_factory=Resampling)
    version: str = ""

    @property
    def n_failed(self) -> int:
        """Items with a response that could not be scored."""
        return max(row.n_failed for row in self.rows)

    def row(self, name: str = "overall") -> Measured:
        """The figure of that name.

        Raises:
            ConfigError: there is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise ConfigError(f"{self.title} has no figure {name!r}; there are {', '.join(row.name for row in self.rows)}.")

    def as_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON knows."""
        found = asdict(self)
        resampling = found.pop("resampling")
        rows = [{**asdict(row), "longest": self.longest.get(row.name), "random": self.random.get(row.name)} for row in self.rows]
        del found["longest"], found["random"]
        return {**found, **resampling, "rows": rows, "invariance": {**found["invariance"], "holds": self.invariance.holds}}

    def as_table(self) -> str:
        """Plain text for a terminal."""
        names = {row.name: f"{'  ' * row.level}{row.name}" for row in self.rows}
        width = max(len(name) for name in names.values())
        lines = [f"{self.title}: {self.model}", f"{'':{width}}   value  interval               n  failed  ties  longest  random"]
        lines += [self._line(row, names[row.name], width) for row in self.rows]
        return "\n".join([*lines, "", *self._notes(), "", self.invariance.as_text()])

    def _line(self, row: Measured, name: str, width: int) -> str:
        few = "*" if row.n_prompts < FEW_PROMPTS else " "
        interval = f"[{row.low:.3f}, {row.high:.3f}]{few}"
        return (
            f"{name:{width}}  {row.value:6.3f}  {interval:17} {row.n_items:6,} {row.n_failed:7,} {row.n_ties:5,} "
            f"{_figure(self.longest.get(row.name)):>8} {_figure(self.random.get(row.name)):>7}"
        )

    def _notes(self) -> list[str]:
        draws = f"{self.resampling.samples:,} samples, seed {self.resampling.seed}"
        lines = [
            f"Rule: {self.rule}.",
            f"Intervals: {100 * self.resampling.confidence:g} % bootstrap over prompts ({draws}). A failed response earns nothing.",
            "ties: items in which a right and a wrong response got one reward. longest, random: what these score.",
        ]
        if any(row.n_prompts < FEW_PROMPTS for row in self.rows):
            lines.append(f"* fewer than {FEW_PROMPTS} prompts: the interval is too narrow.")
        if self.missing:
            lines.append(f"PARTIAL: no rows of {', '.join(self.missing)}. Means are over the rest and compare with no published figure.")
        if self.skipped_rows:
            lines.append(f"{self.skipped_rows:,} rows could not be used and were skipped.")
        if self.repeated:
            lines.append(f"{self.repeated:,} items repeat an earlier one word for word.")
        lines += [f"Left out: {count:,} rows ({reason})." for reason, count in self.left_out.items()]
        files = ", ".join(f"{name} at {commit}" if commit else name for name, commit in self.sources.items())
        return [*lines, f"Data: {files}. dmoerm {self.version}.", f"Source: {self.citation}."]


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
