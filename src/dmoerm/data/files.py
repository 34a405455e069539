"""The rows of whatever a recipe names as data: JSON lines, a JSON array, Parquet, CSV, a data set of the Hub. The suffix decides."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dmoerm.data.hub import hub_files
from dmoerm.data.jsonl import BadRow, Row, scan_rows
from dmoerm.data.tables import scan_csv, scan_json, scan_parquet
from dmoerm.locations import is_hub

__all__ = ["scan_file"]


def scan_file(path: Path) -> Iterator[Row | BadRow]:
    """Good and bad rows in order; the files of a Hub data set follow each other as one.

    Raises:
        DataError: it cannot be opened, or is not what its suffix says.
        DmoermError: an optional package is missing.
    """
    name = path.name.lower()
    if is_hub(path):
        yield from _scan_hub(path)
    elif name.endswith(".parquet"):
        yield from scan_parquet(path)
    elif name.endswith((".json", ".json.gz")):
        yield from scan_json(path)
    elif name.endswith(".csv"):
        yield from scan_csv(path)
    else:
        yield from scan_rows(path)


def _scan_hub(path: Path) -> Iterator[Row | BadRow]:
    before = 0
    for name, local in hub_files(path).files:
        last = 0
        for row in scan_file(local):
            last = row.line
            place = row.place if row.place.startswith("row") else f"line {row.where}"
            # Numbers go on over the files, since ids are made of them; the place is that inside the file.
            yield replace(row, line=before + row.line, place=f"{name} {place}")
        before += last
