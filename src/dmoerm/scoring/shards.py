"""A file of any size as shards: some rows at a time, cut at the same places in every run over the same bytes.

The file is read twice. The survey counts its rows, hashes them and looks for ids that come twice, before any model is loaded; it keeps
eight bytes a row. The second reading hands out shards and ends with an error where the file is no longer the one that was surveyed.
"""

import hashlib
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dmoerm.data.jsonl import MAX_LISTED, BadRow, Row, scan_rows
from dmoerm.errors import ConfigError, DataError
from dmoerm.modeling.reward_model import ScoreRequest
from dmoerm.scoring.requests import read_request, row_id

__all__ = ["SHARD_RESPONSES", "InputRow", "Shard", "Survey", "read_shards", "survey"]

SHARD_RESPONSES = 512
"""Responses of a shard, the last row's surplus not counted: enough for batches of like lengths, little enough to lose when stopped."""


@dataclass(frozen=True, slots=True)
class InputRow:
    """One input row: what to score, or why it cannot be read."""

    id: str | int
    request: ScoreRequest | str

    @property
    def output_rows(self) -> int:
        """Rows that it becomes: one a response, one where it cannot be read."""
        return len(self.request.responses) if isinstance(self.request, ScoreRequest) else 1


@dataclass(frozen=True, slots=True)
class Shard:
    """Consecutive rows of the input.

    Attributes:
        index: its place among the shards, from 0.
        place: file and physical lines, for messages.
        rows: at least one.
    """

    index: int
    place: str
    rows: tuple[InputRow, ...]

    @property
    def output_rows(self) -> int:
        """Rows that it becomes."""
        return sum(row.output_rows for row in self.rows)


@dataclass(frozen=True, slots=True)
class Survey:
    """What a file holds.

    Attributes:
        name: without its folder; ids of rows that have none are made of it.
        rows: bad ones counted, blank lines not.
        bytes: size on disk.
        sha256: hex, over rows with their physical lines.
    """

    name: str
    rows: int
    bytes: int
    sha256: str


def survey(source: Path) -> Survey:
    """Read a whole file once.

    Raises:
        DataError: it cannot be read to its end, is no JSON lines file, or two rows have one id.
    """
    digest, seen = hashlib.sha256(), array("Q")
    for row in scan_rows(source):
        _add(digest, row)
        seen.append(_short_hash(_id(row, source)))
    hashes = np.sort(np.frombuffer(seen, dtype=np.uint64))
    twice = {int(value) for value in hashes[1:][hashes[1:] == hashes[:-1]]}
    if twice:
        _refuse_repeated(source, twice)
    return Survey(source.name, len(seen), source.stat().st_size, digest.hexdigest())


def read_shards(source: Path, known: Survey, *, category: str | None = None, shard_responses: int = SHARD_RESPONSES) -> Iterator[Shard]:
    """The shards of a file in order.

    Args:
        source: the file.
        known: its survey.
        category: judge every row by this category.
        shard_responses: a shard ends with the row that brings it to this many.

    Raises:
        ConfigError: the file has changed since the survey.
    """
    digest, rows, size, index, first = hashlib.sha256(), list[InputRow](), 0, 0, 0
    last = 0
    for row in scan_rows(source):
        _add(digest, row)
        first, last = first if rows else row.line, row.line
        rows.append(_input(row, source, category))
        size += rows[-1].output_rows
        if size >= shard_responses:
            yield Shard(index, f"{source.name}:{first}-{last}", tuple(rows))
            rows, size, index = [], 0, index + 1
    if rows:
        yield Shard(index, f"{source.name}:{first}-{last}", tuple(rows))
    if digest.hexdigest() != known.sha256:
        raise ConfigError(f"{source} has changed while it was read. Begin again with overwrite (--overwrite).")


def _input(row: Row | BadRow, source: Path, category: str | None) -> InputRow:
    if isinstance(row, BadRow):
        return InputRow(_id(row, source), f"{source.name}:{row.line}: {row.reason}")
    try:
        return InputRow(_id(row, source), read_request(row, source, category))
    except DataError as error:
        return InputRow(_id(row, source), f"{source.name}:{row.line}: {error}")


def _id(row: Row | BadRow, source: Path) -> str | int:
    return f"{source.name}:{row.line}" if isinstance(row, BadRow) else row_id(row, source)


def _add(digest: "hashlib._Hash", row: Row | BadRow) -> None:
    digest.update(b"%d:%s\n" % (row.line, row.raw.rstrip(b"\r\n")))


def _short_hash(id: str | int) -> int:
    return int.from_bytes(hashlib.blake2b(json.dumps(id).encode(), digest_size=8).digest(), "little")


def _refuse_repeated(source: Path, twice: set[int]) -> None:
    """Name the rows whose id came before; nothing where only short hashes were equal."""
    first: dict[str | int, int] = {}
    repeated: list[str] = []
    for row in scan_rows(source):
        id = _id(row, source)
        if _short_hash(id) in twice and first.setdefault(id, row.line) != row.line:
            repeated.append(f"{source}:{row.line}: id {json.dumps(id, ensure_ascii=False)} is that of line {first[id]} already.")
        if len(repeated) == MAX_LISTED:
            repeated.append(f"Only the first {MAX_LISTED} are listed.")
            break
    if repeated:
        advice = "A reward is found by its id: give each row its own, or leave ids out, and rows are named by file and line."
        raise DataError("\n".join([*repeated, advice]))
