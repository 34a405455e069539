"""The unfinished output of a bulk run: a folder with one file a shard, written whole or not at all, and a note of what they were made from.

    run.json                what the parts depend on: input, model, settings; once all are there, how many rows they hold
    part-00000000.jsonl     output rows of the first shard; `.gz` where the output is compressed
    lock                    held by the process that writes

A part that is there is done: which shards are still to do is read off the folder, so nothing else can be out of date after a kill. Gzip
members stand one behind the other, so the merged output is the parts' bytes in order in both cases.
"""

import errno
import fcntl
import gzip
import json
import os
import re
import secrets
import shutil
import socket
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from dmoerm.errors import ConfigError
from dmoerm.modeling.model_folder import sha256_of
from dmoerm.scoring.scorer import ScoredShard
from dmoerm.scoring.shards import Shard

__all__ = ["PartFolder", "Totals", "refuse_taken"]

_RUN, _LOCK = "run.json", "lock"
_OURS = re.compile(r"part-\d{8,}\.jsonl(\.gz)?|run\.json|lock|.*\.[0-9a-f]{8}\.tmp")
_START_ANEW = "Begin again with overwrite (--overwrite)."


@dataclass(frozen=True, slots=True)
class Totals:
    """What a run gave: input rows, output rows with a reward, output rows with an error."""

    rows: int
    responses: int
    failed: int


def refuse_taken(folder: Path, target: Path, *, resume: bool, overwrite: bool) -> None:
    """Look before anything is read or loaded.

    Args:
        folder: of the parts.
        target: the output; equal to `folder` where the parts are the output.
        resume: an unfinished run may be there.
        overwrite: anything of ours may be there.

    Raises:
        ConfigError: the output is there already, an unfinished run is there and neither flag is given, or the folder is not ours.
    """
    foreign = sorted(path.name for path in folder.iterdir() if not _OURS.fullmatch(path.name)) if folder.is_dir() else []
    if foreign or (folder.exists() and not folder.is_dir()):
        held = f"it holds {foreign[0]}" if foreign else "it is no folder"
        raise ConfigError(f"{folder} is not the parts of a run: {held}. Nothing was written. Name another output")
    begun = (folder / _RUN).exists()
    note = _read(folder) if begun else {}
    whole = bool(note.get("finished"))
    if not overwrite and (whole if target == folder else target.exists() and not (resume and (whole or note.get("replaces_output")))):
        raise ConfigError(f"{target} exists already; nothing was written. Name another output, or pass overwrite (--overwrite)")
    if begun and not resume and not overwrite:
        raise ConfigError(
            f"{folder} is an unfinished run; nothing was written. Go on with resume (--resume), or begin again with overwrite (--overwrite)"
        )


class PartFolder:
    """The parts of one run, locked against a second one. Use `open`, and `close` in the end."""

    def __init__(self, path: Path, settings: dict[str, Any], lock: IO[str], *, compressed: bool, replaces: bool) -> None:
        self.path = path
        self._settings = settings
        self._replaces = replaces
        self._lock = lock
        self._suffix = ".jsonl.gz" if compressed else ".jsonl"

    @staticmethod
    def open(path: Path, settings: dict[str, Any], *, compressed: bool, overwrite: bool, replaces: bool) -> "PartFolder":
        """Begin a folder, or go on with the one that is there.

        Args:
            path: the folder.
            settings: what the parts depend on, as JSON.
            compressed: parts are gzip.
            overwrite: begin again, whatever is there.
            replaces: an output is there that this run was told to replace; a run that goes on was told so when it began.

        Raises:
            ConfigError: the parts that are there were made from something else (the message names what), or another run writes them.
        """
        path.mkdir(parents=True, exist_ok=True)
        parts = PartFolder(path, settings, _locked(path), compressed=compressed, replaces=replaces)
        try:
            if overwrite:
                parts._clear()
            if (path / _RUN).exists():
                note = _read(path)
                _require_equal(path, note, settings)
                parts._replaces = bool(note.get("replaces_output"))
            else:
                parts._clear()
                parts._note()
        except BaseException:
            parts.close()
            raise
        return parts

    def close(self) -> None:
        """Let go of the lock; what is done stays."""
        self._lock.close()

    def done(self, shard: Shard) -> ScoredShard | None:
        """What an earlier run made of a shard, None where that is not there, or not whole."""
        path = self._part(shard.index)
        try:
            content = path.read_bytes()
            lines = gzip.decompress(content) if path.suffix == ".gz" else content
        except (OSError, EOFError, zlib.error):
            return None
        if lines.count(b"\n") != shard.output_rows or not lines.endswith(b"\n"):
            return None
        # A quote inside a JSON string stands behind a backslash, so this can only be the key.
        failed = lines.count(b', "error": "')
        return ScoredShard(shard.index, b"", len(shard.rows), shard.output_rows - failed, failed)

    def add(self, scored: ScoredShard) -> None:
        """Write the part of a shard."""
        path = self._part(scored.index)
        _write(path, gzip.compress(scored.lines, mtime=0) if path.suffix == ".gz" else scored.lines)

    def finish(self, shards: int, totals: Totals) -> None:
        """The parts are the output: note that all of them are there."""
        for unfinished in self.path.glob("*.tmp"):
            unfinished.unlink()
        assert all(self._part(index).exists() for index in range(shards))
        self._note({**asdict(totals), "parts": shards})

    def merge(self, target: Path, shards: int, totals: Totals) -> None:
        """Make one file of all parts, which appears whole, and remove the folder."""
        merged = _temporary(self.path / "merged")
        with merged.open("wb") as out:
            for index in range(shards):
                with self._part(index).open("rb") as part:
                    shutil.copyfileobj(part, out)
            out.flush()
            os.fsync(out.fileno())
        self._note({**asdict(totals), "output_sha256": sha256_of(merged)})  # first, so that after a kill the output is known as this run's
        merged.replace(target)
        _sync(target.parent)
        self.remove()

    def merged(self, target: Path) -> Totals | None:
        """What the output holds, where an earlier run was killed after the merge and before it had cleared up.

        Returns:
            None where the output is the one that is still to be replaced.

        Raises:
            ConfigError: the output is neither.
        """
        found = _read(self.path).get("finished") or {}
        if found and found.pop("output_sha256") == sha256_of(target):
            return Totals(**found)
        if not self._replaces:
            raise ConfigError(
                f"{target} exists already and is not what {self.path} holds. Name another output, or pass overwrite (--overwrite)"
            )
        return None

    def remove(self) -> None:
        """Delete the folder; the note goes last, so that what is left after a kill is known as ours."""
        self._clear()
        (self.path / _LOCK).unlink()
        self.path.rmdir()

    def _clear(self) -> None:
        for path in self.path.iterdir():
            if path.name not in (_RUN, _LOCK):
                path.unlink()
        (self.path / _RUN).unlink(missing_ok=True)

    def _part(self, index: int) -> Path:
        return self.path / f"part-{index:08d}{self._suffix}"

    def _note(self, finished: dict[str, Any] | None = None) -> None:
        note = {**self._settings, "replaces_output": self._replaces, "finished": finished}
        _write(self.path / _RUN, (json.dumps(note, indent=2) + "\n").encode())


def _read(folder: Path) -> dict[str, Any]:
    try:
        note = json.loads((folder / _RUN).read_text(encoding="utf-8"))
        if not isinstance(note, dict):
            raise TypeError("it is no object")
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{folder / _RUN} cannot be read ({error!r}). Delete {folder}, and begin again.") from error
    return note


def _require_equal(folder: Path, note: dict[str, Any], settings: dict[str, Any]) -> None:
    def shown(value: Any) -> str:
        return value[:12] if isinstance(value, str) and len(value) == 64 else json.dumps(value)

    other = [f"{name} (then {shown(note.get(name))}, now {shown(now)})" for name, now in settings.items() if note.get(name) != now]
    if other:
        raise ConfigError(f"{folder} was begun with another {', another '.join(other)}. {_START_ANEW}")


def _write(path: Path, content: bytes) -> None:
    temporary = _temporary(path)
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync(path.parent)


def _temporary(path: Path) -> Path:
    # Each its own, for file systems without locks, where a second run cannot be kept away.
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")


def _sync(folder: Path) -> None:
    """Make a rename durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _locked(folder: Path) -> IO[str]:
    lock = (folder / _LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        holder = lock.read().strip() or "another run"
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            lock.close()
            raise ConfigError(f"{folder}: in use by {holder}. Wait for it, or stop it") from error
        return lock  # a file system without locks: two runs at once do the work twice, and write the same
    lock.seek(0)
    lock.truncate()
    lock.write(f"process {os.getpid()} on {socket.gethostname()}")
    lock.flush()
    return lock
