r"""Our own strict reader and writer of JSON lines, plain or gzip.

Libraries in common use repair what they read: texts that look like dates are rewritten, a Unicode line separator splits a row, row
numbers are relative to a block. Here a row is what stands between two b"\n", its number is the physical line, and a string comes out
byte for byte as it went in. A row is refused, never repaired (strict_json.py says for what). A file that is not JSON lines at all
(UTF-16, HTML, Parquet, one big array, a broken gzip) stops the reading whatever the policy for bad rows is.
"""

import gzip
import json
import os
import secrets
import zlib
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Generic, Literal, NoReturn, TypeVar, cast

from dmoerm.data.strict_json import parse_object
from dmoerm.errors import ConfigError, DataError

__all__ = [
    "BadRow",
    "BadRows",
    "MappedRows",
    "Row",
    "bad_rows_policy",
    "map_rows",
    "open_bytes",
    "read_rows",
    "scan_rows",
    "write_rows",
]

BadRowsPolicy = Literal["stop", "skip"]
MAX_LISTED = 20
"""Bad rows named in one message: enough to see the pattern."""

T = TypeVar("T")

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a file: its physical line or its number (from 1), the parsed data and the bytes it was parsed from.

    `place` is what follows "path:" in messages, where that is not the line.
    """

    line: int
    data: dict[str, Any]
    raw: bytes = field(default=b"", repr=False, compare=False)
    place: str = field(default="", repr=False, compare=False)

    @property
    def where(self) -> str:
        """What follows "path:" in messages."""
        return self.place or str(self.line)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that cannot be used and the reason, which reads on from "path:line: "; `place` as in `Row`."""

    line: int
    reason: str
    raw: bytes = field(default=b"", repr=False, compare=False)
    place: str = field(default="", repr=False, compare=False)

    @property
    def where(self) -> str:
        """What follows "path:" in messages."""
        return self.place or str(self.line)


@dataclass(frozen=True, slots=True)
class MappedRows(Generic[T]):
    """What `map_rows` made of a file.

    Attributes:
        items: one result a good row, in the order of the file.
        rows: good rows and bad ones; blank lines are no rows.
        rejected: bad rows that were skipped.
        rejected_path: where they were written, or None.
    """

    items: list[T]
    rows: int
    rejected: int
    rejected_path: Path | None = None


def bad_rows_policy(value: str) -> BadRowsPolicy:
    """Check a policy for bad rows.

    Raises:
        ConfigError: neither "stop" nor "skip".
    """
    if value == "stop":
        return "stop"
    if value == "skip":
        return "skip"
    raise ConfigError(f'bad_rows is {value!r}; expected "stop" or "skip".')


class BadRows:
    """Collects the bad rows of one file and does what the policy says, at the end of the file.

    With "stop" the reader goes on only to name up to `MAX_LISTED` bad rows in one error. With "skip" they are counted and, where
    `rejected_dir` is given, written to `<stem>.rejected.jsonl` in it: one object a row with `line`, `reason` and the `text` as it was.
    """

    def __init__(self, path: Path, bad_rows: str = "stop", rejected_dir: str | os.PathLike[str] | None = None) -> None:
        self.path = path
        self.policy = bad_rows_policy(bad_rows)
        self.rows: list[BadRow] = []
        self.rejected_path = None if rejected_dir is None else Path(rejected_dir) / f"{_stem(path)}.rejected.jsonl"

    def add(self, row: BadRow) -> None:
        """Note one bad row.

        Raises:
            DataError: the policy is "stop" and the message is full.
        """
        self.rows.append(row)
        if self.policy == "stop" and len(self.rows) == MAX_LISTED:
            self._stop(f"Only the first {MAX_LISTED} bad rows are listed.")

    def finish(self) -> Path | None:
        """End of the file: write the skipped rows, and say where they are (None: nowhere).

        Raises:
            DataError: the policy is "stop" and there are bad rows.
        """
        if not self.rows:
            return None
        if self.policy == "stop":
            self._stop()
        if self.rejected_path is not None:
            write_rows(
                self.rejected_path,
                (
                    {"line": row.place or row.line, "reason": row.reason, "text": row.raw.decode("utf-8", "backslashreplace")}
                    for row in self.rows
                ),
            )
        return self.rejected_path

    def _stop(self, more: str = "") -> NoReturn:
        listed = [f"{self.path}:{row.where}: {row.reason}" for row in self.rows]
        advice = " ".join(filter(None, [more, 'Fix them, or skip bad rows (bad_rows="skip", on the command line --bad-rows skip).']))
        raise DataError("\n".join([*listed, advice]))


def read_rows(
    path: str | os.PathLike[str], bad_rows: str = "stop", rejected_dir: str | os.PathLike[str] | None = None
) -> Generator[Row, None, None]:
    """The rows of a `.jsonl` or `.jsonl.gz` file, one at a time.

    Args:
        path: the file. An empty one gives no rows and is no error.
        bad_rows: "stop" raises, "skip" leaves bad rows out.
        rejected_dir: folder for `<stem>.rejected.jsonl` with the skipped rows; None writes nothing.

    Raises:
        DataError: the file cannot be read or is not JSON lines; with "stop" also for bad rows. No row after the first bad one is given.
    """
    path = Path(path)
    bad = BadRows(path, bad_rows, rejected_dir)
    for row in scan_rows(path):
        if isinstance(row, BadRow):
            bad.add(row)
        elif bad.policy == "skip" or not bad.rows:
            yield row
    bad.finish()


def map_rows(
    path: str | os.PathLike[str],
    convert: Callable[[Row], T],
    bad_rows: str = "stop",
    rejected_dir: str | os.PathLike[str] | None = None,
    scan: Callable[[Path], Iterable[Row | BadRow]] | None = None,
) -> MappedRows[T]:
    """Read a whole file through `convert`; a row that it refuses with a `DataError` is a bad row like one of broken JSON.

    Args:
        path: the file.
        convert: makes one item of a row. The message of its `DataError` reads on from "path:line: ".
        bad_rows: "stop" raises, "skip" leaves bad rows out.
        rejected_dir: folder for the skipped rows; None writes nothing.
        scan: gives the rows of a file; None is `scan_rows`, for JSON lines.

    Raises:
        DataError: as `read_rows`.
    """
    path = Path(path)
    bad = BadRows(path, bad_rows, rejected_dir)
    items: list[T] = []
    count = 0
    for row in (scan or scan_rows)(path):
        count += 1
        if isinstance(row, BadRow):
            bad.add(row)
            continue
        try:
            items.append(convert(row))
        except DataError as error:
            # Rows of tables come without the bytes they were made from.
            raw = row.raw or json.dumps(row.data, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace")
            bad.add(BadRow(row.line, str(error), raw, row.place))
    rejected_path = bad.finish()
    return MappedRows(items, count, len(bad.rows), rejected_path)


def scan_rows(path: str | os.PathLike[str]) -> Generator[Row | BadRow, None, None]:
    """Good and bad rows of a file in order, blank lines left out.

    Raises:
        DataError: the file cannot be opened or decompressed, or is no JSON lines file at all.
    """
    path = Path(path)
    line, offset, looked = 0, 0, False
    try:
        with open_bytes(path) as stream:
            # A binary file splits on b"\n" alone; text mode and str.splitlines would also split on others.
            for raw in stream:
                line += 1
                content = raw.removeprefix(_BOM) if line == 1 else raw
                if content.strip():
                    if not looked:
                        _refuse_other_formats(path, content, offset + len(raw) - len(content))
                        looked = True
                    yield _parse(line, content, offset + len(raw) - len(content))
                offset += len(raw)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Check the path; relative ones start at {Path.cwd()}.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip after line {line} ({error}). Copy or download the file again.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error


def write_rows(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> int:
    """Write objects as JSON lines, gzip where the name ends in `.gz`; the file appears whole or not at all.

    Args:
        path: the file to make or to replace; missing folders are made.
        rows: what `json.dumps` takes. The same rows give the same bytes.

    Returns:
        The number of rows written.

    Raises:
        DataError: a row holds NaN, Infinity, an unpaired surrogate or something that JSON has no word for.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that the replacement is one step; opened plainly, so that the usual file rights apply.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    count = 0
    try:
        with temporary.open("xb") as raw:
            with _compressed(raw) if path.suffix == ".gz" else nullcontext(raw) as stream:
                for row in rows:
                    count += 1
                    stream.write(_encode(path, count, row))
            raw.flush()
            os.fsync(raw.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _compressed(raw: IO[bytes]) -> gzip.GzipFile:
    # No name and no time in the header, so that equal rows give equal bytes.
    return gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)


def _encode(path: Path, number: int, row: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(dict(row), ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: row {number} cannot be written as JSON ({error}).") from error


def open_bytes(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked where its name ends in `.gz`."""
    return cast("IO[bytes]", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".jsonl").replace(":", "-")  # a colon stands in names of Hub data sets only


def _refuse_other_formats(path: Path, first: bytes, offset: int) -> None:
    """Look at the first line that is not blank."""
    head = first.lstrip()
    if first.startswith(b"\x1f\x8b"):
        guess = "looks like gzip; give it the suffix .gz"
    elif first.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in first[:4]:
        guess = "looks like UTF-16 or UTF-32; save it as UTF-8"
    elif first.startswith(b"PAR1"):
        guess = "looks like Parquet; give it the suffix .parquet (data to learn from), or convert it to JSON lines"
    elif head.startswith(b"<"):
        guess = "looks like HTML, perhaps an error page saved by a download; fetch the file again"
    elif head.startswith(b"["):
        guess = "looks like one JSON array; give it the suffix .json (data to learn from), or write one object a line"
    elif head.rstrip() == b"{":
        guess = "looks like indented JSON; write one object a line instead"
    else:
        return
    offset += len(first) - len(head)
    raise DataError(f"{path}: not JSON lines: byte 0x{head[0]:02x} at byte offset {offset}; the file {guess}.")


def _parse(line: int, content: bytes, offset: int) -> Row | BadRow:
    try:
        return Row(line, parse_object(content, offset), content)
    except DataError as error:
        return BadRow(line, str(error), content)
