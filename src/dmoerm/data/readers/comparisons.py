"""Preference files to comparisons: a dict of formats, and the choice among them by the keys of the first rows."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dmoerm.data.jsonl import Row, map_rows, scan_rows
from dmoerm.data.readers import judgements, native, pairs, trl
from dmoerm.data.readers.fields import explain_missing
from dmoerm.errors import ConfigError, DataError
from dmoerm.records import Comparison

__all__ = ["FORMATS", "Format", "ReadResult", "read_comparisons"]

_SNIFFED_ROWS = 20


@dataclass(frozen=True, slots=True)
class Format:
    """One file format: the keys by which it is known and the function that reads a row."""

    required: tuple[str, ...]
    read_row: Callable[[Row, Path], Comparison]


# Where two formats fit a row, the earlier one is taken: judged rows are TRL rows with one key more.
FORMATS: dict[str, Format] = {
    "native": Format(native.REQUIRED, native.read_row),
    "pairs": Format(pairs.REQUIRED, pairs.read_row),
    "judgements": Format(judgements.REQUIRED, judgements.read_row),
    "trl": Format(trl.REQUIRED, trl.read_row),
}


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What a preference file held.

    Attributes:
        comparisons: in the order of the file.
        format: the name of the format it was read with (for a file without a usable row, the first of `FORMATS`).
        rows: good rows and bad ones.
        rejected: bad rows that were skipped.
        rejected_path: where they were written, or None.
    """

    comparisons: list[Comparison]
    format: str
    rows: int
    rejected: int
    rejected_path: Path | None = None


def read_comparisons(
    path: str | os.PathLike[str],
    format: str = "auto",
    bad_rows: str = "stop",
    rejected_dir: str | os.PathLike[str] | None = None,
) -> ReadResult:
    """Read a `.jsonl` or `.jsonl.gz` file of preferences.

    Args:
        path: the file.
        format: a name of `FORMATS`, or "auto" for the one whose keys most of the first rows have.
        bad_rows: "stop" raises an error that lists the first bad rows, "skip" leaves them out and counts them.
        rejected_dir: folder for `<stem>.rejected.jsonl` with the skipped rows; None writes nothing.

    Raises:
        ConfigError: no such format or policy.
        DataError: the file cannot be read or fits no format; with "stop" also for bad rows. An id used twice makes a bad row.
    """
    path = Path(path)
    if format != "auto" and format not in FORMATS:
        raise ConfigError(f"format is {format!r}; expected auto, {', '.join(FORMATS)}.")
    name = _detect(path) if format == "auto" else format
    lines: dict[str, int] = {}

    def convert(row: Row) -> Comparison:
        comparison = FORMATS[name].read_row(row, path)
        first = lines.setdefault(comparison.id, row.line)
        if first != row.line:
            raise DataError(f'"id" {comparison.id!r} is already used in line {first}; expected each id once.')
        return comparison

    mapped = map_rows(path, convert, bad_rows, rejected_dir)
    return ReadResult(mapped.items, name, mapped.rows, mapped.rejected, mapped.rejected_path)


def _detect(path: Path) -> str:
    """The format that fits most of the first rows; where there is no good row to look at, the first format will do."""
    rows = list(islice((row for row in scan_rows(path) if isinstance(row, Row)), _SNIFFED_ROWS))
    if not rows:
        return next(iter(FORMATS))
    fits = Counter(filter(None, map(_first_fit, rows)))
    if fits:
        return fits.most_common(1)[0][0]
    first = rows[0]
    tried = []
    for name, format in FORMATS.items():
        tried.append(f"  {name}: {explain_missing(first.data, format.required)}")
    found = ", ".join(f'"{key}"' for key in first.data) or "none"
    raise DataError(f"{path}:{first.line}: fits no known format. Its keys: {found}. Tried:\n" + "\n".join(tried))


def _first_fit(row: Row) -> str | None:
    return next((name for name, format in FORMATS.items() if all(key in row.data for key in format.required)), None)
