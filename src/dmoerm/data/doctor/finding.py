"""What the doctor says: findings with a severity, and the report that holds them. Nothing is computed here."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from dmoerm.data.doctor.page import page_text
from dmoerm.data.doctor.share import Share

__all__ = ["EXAMPLES", "SEVERITIES", "Cell", "DoctorReport", "FileSummary", "Finding", "NotChecked", "Severity", "Table", "first_places"]

Severity = Literal["problem", "warning", "note", "fine"]
SEVERITIES: tuple[Severity, ...] = ("problem", "warning", "note", "fine")
"""problem: the data are wrong, or the result would be. warning: look at it before training. note: good to know. fine: looked at."""

EXAMPLES = 3
"""Places named in one finding."""

Cell = str | int | float | Share | None


@dataclass(frozen=True, slots=True)
class Table:
    """Figures behind a finding; every row has one cell a column, the first is its name."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        check: its name, for machines; stable.
        title: its name, for people.
        severity: see `SEVERITIES`.
        summary: what was found, in one line.
        advice: what to do, in one line; "" where there is nothing to do.
        count: how many; None where the check is no count.
        total: of how many.
        share: the estimate behind it, with its interval; None where the figure is a plain count of what is in the files.
        examples: up to `EXAMPLES` places, "file:line", with a word on what is there.
        table: figures by kind, file or category.
    """

    check: str
    title: str
    severity: Severity
    summary: str
    advice: str = ""
    count: int | None = None
    total: int | None = None
    share: Share | None = None
    examples: tuple[str, ...] = ()
    table: Table | None = None


@dataclass(frozen=True, slots=True)
class NotChecked:
    """A check that the data give nothing for, and why."""

    check: str
    title: str
    reason: str


@dataclass(frozen=True, slots=True)
class FileSummary:
    """One file: `used` comparisons of `rows` rows; `tied` of them have no preference, `refused` rows could not be read.

    `left_out` counts, by reason, the rows that can be read but hold no comparison.

    `name` is how places name it: the last part of the path, or all of it where two files have the same.
    """

    path: str
    name: str
    role: str
    format: str
    rows: int
    used: int
    tied: int
    refused: int
    left_out: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """Everything the doctor found.

    Attributes:
        files: in the order given.
        comparisons: usable comparisons in all of them.
        prompts: distinct prompts.
        pairs: strictly ranked pairs.
        findings: most serious first, else in the order of the checks.
        not_checked: checks without anything to look at.
    """

    files: tuple[FileSummary, ...]
    comparisons: int
    prompts: int
    pairs: int
    findings: tuple[Finding, ...]
    not_checked: tuple[NotChecked, ...] = field(default=())

    def of_severity(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity."""
        return tuple(finding for finding in self.findings if finding.severity == severity)

    def finding(self, check: str) -> Finding | None:
        """The finding of a check; None where it was not made."""
        return next((finding for finding in self.findings if finding.check == check), None)

    def as_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON knows."""
        return {"counts": {severity: len(self.of_severity(severity)) for severity in SEVERITIES}, **asdict(self)}

    def as_text(self, width: int = 80, *, colour: bool = False) -> str:
        """For a terminal of `width` columns."""
        return page_text(self, width, colour=colour)


def first_places(places: Iterable[str | Sequence[str]], joined_by: str = " and ") -> tuple[str, ...]:
    """The first few places; a group of places (a pair of twins) becomes one text."""
    found: list[str] = []
    for place in places:
        found.append(place if isinstance(place, str) else joined_by.join(place))
        if len(found) == EXAMPLES:
            break
    return tuple(found)
