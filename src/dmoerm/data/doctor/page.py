"""A doctor's report as a page for a terminal: the verdict first, then what is wrong, most serious first. Nothing is computed here.

Readable from 40 columns on: a table that does not fit becomes a list. Words, not signs or colours, carry the meaning.
"""

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dmoerm.data.doctor.share import Share
from dmoerm.data.doctor.wording import counted, share_text

if TYPE_CHECKING:
    from dmoerm.data.doctor.finding import Cell, DoctorReport, FileSummary, Finding, Table

__all__ = ["HEADINGS", "NARROWEST", "WIDEST", "brief_text", "finding_lines", "page_text", "painted", "printable", "verdict", "wrapped"]

HEADINGS = (("problem", "PROBLEMS", "31;1"), ("warning", "WARNINGS", "33;1"), ("note", "NOTES", "36;1"))
NARROWEST, WIDEST = 40, 110


def verdict(report: "DoctorReport") -> str:
    """The line that sums it up: "2 problems, 3 warnings in 12,480 comparisons"."""
    found = [counted(len(report.of_severity(severity)), severity) for severity in ("problem", "warning") if report.of_severity(severity)]
    return f"{', '.join(found) or 'No problems, no warnings'} in {counted(report.comparisons, 'comparison')}"


def brief_text(report: "DoctorReport", command: str) -> str:
    """The verdict, one line a problem, and where to read on."""
    lines = [f"  {finding.title}: {finding.summary}" for finding in report.of_severity("problem")]
    return "\n".join(printable(line) for line in [f"Data: {verdict(report)}", *lines, f"  The full report: {command}"])


def page_text(report: "DoctorReport", width: int, *, colour: bool) -> str:
    """The whole page, no line wider than `width` but for words that are."""
    width = max(NARROWEST, min(width, WIDEST))
    blocks = [[painted(line, "1", colour) for line in wrapped(verdict(report), width, "")], list(_files(report.files, width))]
    blocks.append(wrapped(f"{counted(report.prompts, 'prompt')}, {counted(report.pairs, 'ranked pair')}.", width, ""))
    for severity, heading, paint in HEADINGS:
        findings = [finding for finding in report.findings if finding.severity == severity]
        if findings:
            blocks.append([painted(heading, paint, colour)])
            blocks += [list(finding_lines(finding, width, colour=colour)) for finding in findings]
    blocks += [lines for lines in (_fine(report, width, colour=colour), _not_checked(report, width, colour=colour)) if lines]
    return "\n\n".join("\n".join(block) for block in blocks)


def _files(files: Sequence["FileSummary"], width: int) -> Iterator[str]:
    rows = []
    for file in files:
        refused = f"{file.refused:,}" if file.refused else "-"
        rows.append((_tail(file.name, 40), file.role, file.format, f"{file.used:,}", f"{file.tied:,}" if file.tied else "-", refused))
    yield from _grid(("file", "as", "format", "comparisons", "tied", "unreadable"), rows, width, "")


def finding_lines(finding: "Finding", width: int, *, colour: bool) -> Iterator[str]:
    """A finding with its table, places and advice."""
    yield from (f"  {painted(line, '1', colour)}" for line in wrapped(finding.title, width - 2, ""))
    yield from wrapped(finding.summary, width, "    ")
    if finding.table is not None:
        yield from _table(finding.table, width)
    for example in finding.examples:
        yield from wrapped(f"- {example}", width, "      ", "  ")
    if finding.advice:
        yield from wrapped(f"To do: {finding.advice}", width, "    ", "  ")


def _fine(report: "DoctorReport", width: int, *, colour: bool) -> list[str]:
    titles = [finding.title[0].lower() + finding.title[1:] for finding in report.of_severity("fine")]
    return [painted("FINE", "32;1", colour), *wrapped(f"{'; '.join(titles)}.", width, "  ")] if titles else []


def _not_checked(report: "DoctorReport", width: int, *, colour: bool) -> list[str]:
    lines = [line for item in report.not_checked for line in wrapped(f"{item.title}: {item.reason}", width, "  ", "  ")]
    return [painted("NOT CHECKED", "1", colour), *lines] if lines else []


def _table(table: "Table", width: int) -> Iterator[str]:
    yield from _grid(table.columns, [tuple(map(_cell, row)) for row in table.rows], width, "      ")


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]], width: int, indent: str) -> Iterator[str]:
    """Columns where they fit, the first to the left, the others to the right; else a line or more for each row."""
    lines = [[printable(cell) for cell in line] for line in (head, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    if len(indent) + sum(widths) + 2 * (len(widths) - 1) <= width:
        textual = [column == 0 or not any(line[column][:1].isdigit() for line in lines[1:]) for column in range(len(head))]
        for line in lines:
            cells = (cell.ljust(size) if left else cell.rjust(size) for cell, size, left in zip(line, widths, textual, strict=True))
            yield f"{indent}{'  '.join(cells)}".rstrip()
        return
    for first, *others in lines[1:]:
        named = [f"{name} {cell}" for name, cell in zip(lines[0][1:], others, strict=True) if cell not in ("", "-")]
        yield from wrapped(f"{first}: {', '.join(named)}", width, indent, "  ")


def _cell(cell: "Cell") -> str:
    if cell is None:
        return "-"
    if isinstance(cell, Share):
        return share_text(cell)
    if isinstance(cell, str):
        return cell
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.2f}"


def wrapped(text: str, width: int, indent: str, hanging: str = "") -> list[str]:
    """The lines of a paragraph."""
    return textwrap.wrap(
        printable(text), width, initial_indent=indent, subsequent_indent=indent + hanging, break_long_words=False, break_on_hyphens=False
    )


def _tail(path: str, length: int) -> str:
    return path if len(path) <= length else f"…{path[1 - length :]}"


def printable(text: str) -> str:
    """The text without control characters."""
    # Names and words come from data files; control characters could steer a terminal.
    return "".join(character if character.isprintable() else "?" for character in text)


def painted(text: str, paint: str, colour: bool) -> str:
    """The text in a colour, where there are colours."""
    return f"\x1b[{paint}m{text}\x1b[0m" if colour else text
