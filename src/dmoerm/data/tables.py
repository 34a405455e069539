"""Rows of files that are no JSON lines: Parquet, one JSON array, CSV.

Strings come out as the file holds them: nothing is guessed to be a date, a number or a missing value. Cells of a CSV file are all
strings. A row that cannot be used is a bad row like one of broken JSON; a file that cannot be read on stops the reading.
Parquet and CSV are streamed; a JSON array is held in memory.
"""

import csv
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dmoerm.data.jsonl import BadRow, Row, open_bytes, scan_rows
from dmoerm.data.strict_json import check_value, parse_object
from dmoerm.errors import DataError, missing_extra

__all__ = ["scan_csv", "scan_json", "scan_parquet"]

_BATCH_ROWS = 256
_LONGEST_CELL = 2**31 - 1
"""Characters. The csv module's own limit of 131,072 is below the longest conversations of public data sets."""


def scan_parquet(path: Path) -> Iterator[Row | BadRow]:
    """Rows of a Parquet file, named "row N".

    Raises:
        DataError: the file is missing, damaged or no Parquet file, or two columns have one name.
        DmoermError: pyarrow is not installed.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise missing_extra("pyarrow", "parquet")
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise DataError(f'{path}: two columns are named "{twice}"; expected each name once.')
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for index in range(batch.num_rows):
                    number += 1
                    yield _row(number, lambda batch=batch, index=index: batch.slice(index, 1).to_pylist()[0])  # type: ignore[misc]
    except FileNotFoundError:
        raise _no_file(path) from None
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file, or damaged after row {number} ({error}). Copy or download it again.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read after row {number} ({error}).") from error


def scan_json(path: Path) -> Iterator[Row | BadRow]:
    """Rows of a `.json` file: the objects of one array, named "row N", or JSON lines.

    Raises:
        DataError: the file is missing or neither of the two.
    """
    try:
        with open_bytes(path) as stream:
            content = stream.read().removeprefix(b"\xef\xbb\xbf")
    except FileNotFoundError:
        raise _no_file(path) from None
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    if not content.lstrip().startswith(b"["):
        yield from scan_rows(path)
        return
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: byte 0x{content[error.start]:02x} at byte offset {error.start} ({error.reason}).") from None
    for number, item in enumerate(_items(path, text), 1):
        yield _row(number, lambda item=item: parse_object(item.encode("utf-8")))  # type: ignore[misc]


def scan_csv(path: Path) -> Iterator[Row | BadRow]:
    """Rows of a CSV file with a line of column names, named by the line on which they begin.

    Raises:
        DataError: the file is missing, not CSV, or a column name is empty or comes twice.
    """
    limit = csv.field_size_limit(_LONGEST_CELL)
    begin = 1
    try:
        # Bytes that are not UTF-8 become lone surrogates, which `check_value` finds: one bad row, and the rest can be read.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            cells = csv.reader(file, strict=True)
            names = next(cells, [])
            if len(set(names)) < len(names) or "" in names:
                raise DataError(f"{path}:1: a column has no name, or the name of another one; expected a first line with each name once.")
            begin = cells.line_num + 1
            for values in cells:
                if values:
                    yield _row(begin, lambda values=values: _record(names, values), place=str(begin))  # type: ignore[misc]
                begin = cells.line_num + 1
    except FileNotFoundError:
        raise _no_file(path) from None
    except csv.Error as error:
        raise DataError(f"{path}:{begin}: not valid CSV ({error}). Quote cells with commas, quotes or line breaks.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    finally:
        csv.field_size_limit(limit)


def _row(number: int, read: Callable[[], dict[str, Any]], place: str | None = None) -> Row | BadRow:
    place = f"row {number}" if place is None else place
    try:
        data = read()
        check_value(data)
    except UnicodeDecodeError as error:
        return BadRow(number, f"a string is not UTF-8 ({error.reason}).", repr(error.object).encode(), place)
    except DataError as error:
        return BadRow(number, str(error), place=place)
    return Row(number, data, place=place)


def _record(names: list[str], values: list[str]) -> dict[str, Any]:
    if len(values) != len(names):
        raise DataError(f"{len(values)} cells for {len(names)} columns. Quote cells with commas.")
    return dict(zip(names, values, strict=True))


def _items(path: Path, text: str) -> Iterator[str]:
    """The texts of the items of one JSON array, found by a lenient parser; a strict one reads them."""
    decoder, blanks = json.JSONDecoder(), " \t\r\n"
    position, number = text.index("[") + 1, 0

    def skip(start: int) -> int:
        while start < len(text) and text[start] in blanks:
            start += 1
        return start

    position = skip(position)
    while text[position : position + 1] != "]":
        number += 1
        try:
            _, end = decoder.raw_decode(text, position)
        except (json.JSONDecodeError, RecursionError) as error:
            line = text.count("\n", 0, getattr(error, "pos", position)) + 1
            reason = getattr(error, "msg", "nested too deep")
            raise DataError(f"{path}:{line}: not valid JSON in row {number} ({reason}). Nothing after it can be read.") from None
        yield text[position:end]
        position = skip(end)
        if text[position : position + 1] == ",":
            position = skip(position + 1)
        elif text[position : position + 1] != "]":
            line = text.count("\n", 0, position) + 1
            raise DataError(f"{path}:{line}: the array is not closed after row {number}; expected a comma or ]. Copy the file again.")


def _no_file(path: Path) -> DataError:
    return DataError(f"{path}: no such file. Check the path; relative ones start at {Path.cwd()}.")
