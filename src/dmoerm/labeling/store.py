"""Where answers are kept: one SQLite file, the raw bytes of every reply before anything is read from them.

An attempt is written down before its request is sent and again when its reply is there, so a run that was killed knows which requests
may have been billed without an answer, and a full disk stops a run before the next request and not after it. One thread writes; whatever
waits is committed together, so hundreds of answers a second need few disk flushes. The rollback journal with synchronous=FULL keeps
every committed answer through a crash; write-ahead logging is not used (it had a corruption race until SQLite 3.51.3, and network file
systems break it).

One run at a time: the file is locked, and the second run is told who holds it. Reading (status, report, export) needs no lock.
"""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import queue
import re
import secrets
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from dmoerm.errors import LabelError
from dmoerm.labeling.judge import Exchange
from dmoerm.labeling.questions import VERDICTS, AnyQuestion
from dmoerm.labeling.replies import PARSER_VERSION, Outcome, Reading, Usage

__all__ = ["Answer", "Store", "StoredReply", "network_file_system", "salvage"]

_Result = TypeVar("_Result")
_Connection = sqlite3.Connection

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE store (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE settings (id TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE questions (
    key TEXT PRIMARY KEY, item TEXT NOT NULL, criteria TEXT NOT NULL, settings TEXT NOT NULL REFERENCES settings (id),
    comparison TEXT NOT NULL, asked TEXT NOT NULL
);
CREATE INDEX questions_item ON questions (item);
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL REFERENCES questions (key), started REAL NOT NULL, seconds REAL, outcome TEXT NOT NULL,
    status INTEGER, body BLOB, detail TEXT NOT NULL DEFAULT '', request_id TEXT, input_tokens INTEGER, output_tokens INTEGER,
    origin TEXT NOT NULL DEFAULT 'endpoint', parser INTEGER
);
CREATE INDEX attempts_key ON attempts (key);
CREATE TABLE verdicts (
    key TEXT NOT NULL REFERENCES questions (key), name TEXT NOT NULL, verdict TEXT NOT NULL, preference_a REAL, attempt INTEGER NOT NULL,
    PRIMARY KEY (key, name)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """The verdict on one point of one question, in terms of what was shown, and the judge's own probability of A where it gave one."""

    verdict: str
    preference_A: float | None


@dataclass(frozen=True, slots=True)
class StoredReply:
    """A reply that can be read again."""

    attempt: int
    key: str
    asked: tuple[str, ...]
    answers: tuple[str, ...]
    body: bytes


class Store:
    """The answers of one file. A run opens it for writing; everything else reads."""

    def __init__(self, path: Path, *, write: bool) -> None:
        """Open, and make the file where it is missing and `write` is set.

        Raises:
            LabelError: another run holds it, the file is damaged, of a newer version, or missing where it is only to be read.
        """
        self.path = path
        self._lock: IO[str] | None = None
        self._writer: _Writer | None = None
        self._known_settings: set[str] = set()
        if not write and not path.is_file():
            raise LabelError(f"{path}: there are no answers yet. Run dmoerm label first")
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(path)
        try:
            self._connection = _opened(path, write=write)
            if write:
                self._writer = _Writer(self._connection, path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Store":
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Write what waits, and let go of the file. A store that is closed stays closed."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        connection = self.__dict__.pop("_connection", None)
        if connection is not None:
            connection.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()  # which unlocks; the file stays, as deleting it would race with the next run

    # --- writing ---------------------------------------------------------------------------------------------------------------------

    async def begin(self, question: AnyQuestion, settings: Mapping[str, Any], *, origin: str = "endpoint") -> int:
        """Write down that a question is about to be sent; returns the number of the attempt once that is on disk."""
        row = (question.key, question.item, question.criteria, question.settings, question.about, _asked_text(question))
        started = time.time()

        def write(connection: _Connection) -> int:
            if question.settings not in self._known_settings:  # in the thread that writes; should this fail, it writes nothing ever after
                connection.execute(
                    "INSERT OR IGNORE INTO settings VALUES (?, ?)", (question.settings, json.dumps(settings, sort_keys=True))
                )
                self._known_settings.add(question.settings)
            connection.execute("INSERT OR IGNORE INTO questions VALUES (?, ?, ?, ?, ?, ?)", row)
            cursor = connection.execute(
                "INSERT INTO attempts (key, started, outcome, origin) VALUES (?, ?, ?, ?)",
                (question.key, started, Outcome.UNDER_WAY, origin),
            )
            return int(cursor.lastrowid or 0)

        return await self._submitted(write)

    async def finish(self, attempt: int, exchange: Exchange, seconds: float) -> None:
        """Write down what came back, unread; returns once it is on disk."""
        row = (exchange.outcome, exchange.status, exchange.body, exchange.detail, exchange.request_id, seconds, attempt)
        statement = "UPDATE attempts SET outcome = ?, status = ?, body = ?, detail = ?, request_id = ?, seconds = ? WHERE id = ?"
        await self._submitted(lambda connection: connection.execute(statement, row))

    async def withdraw(self, attempt: int) -> None:
        """Take back that a question is about to be sent; it was not."""
        await self._submitted(lambda connection: connection.execute("DELETE FROM attempts WHERE id = ?", (attempt,)))

    def settle(self, attempt: int, key: str, reading: Reading) -> None:
        """Write down what a reply says. Not waited for: it can be read again from the stored bytes."""
        self._written().put(lambda connection: _settle(connection, attempt, key, reading), None)

    def settle_now(self, readings: Iterable[tuple[int, str, Reading]]) -> None:
        """The same for many replies, outside a run; returns once they are on disk."""
        done = threading.Event()
        failure: list[BaseException] = []

        def write(connection: _Connection) -> None:
            for attempt, key, reading in readings:
                _settle(connection, attempt, key, reading)

        def finished(error: BaseException | None, _: Any) -> None:
            failure.extend([error] if error else [])
            done.set()

        self._written().put(write, finished)
        done.wait()
        if failure:
            raise failure[0]

    async def _submitted(self, write: Callable[[_Connection], _Result]) -> _Result:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Result] = loop.create_future()

        def finished(error: BaseException | None, result: Any) -> None:
            # The run may have been cancelled while the disk was busy.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_resolve, future, error, result)

        self._written().put(write, finished)
        return await future

    def _written(self) -> "_Writer":
        assert self._writer is not None, "the store is open for reading only, or closed"
        return self._writer

    # --- reading ---------------------------------------------------------------------------------------------------------------------

    def secret(self) -> bytes:
        """From which the fences of the questions are derived."""
        return bytes(self._all("SELECT value FROM store WHERE name = 'secret'")[0][0])

    def answers(self, settings: str | None = None) -> dict[str, dict[str, Answer]]:
        """By key of the question, the verdict on each of its points; with `settings` only answers given under them."""
        found: dict[str, dict[str, Answer]] = {}
        rows = self._all(
            "SELECT v.key, v.name, v.verdict, v.preference_a FROM verdicts v JOIN questions q ON q.key = v.key "
            "WHERE ?1 IS NULL OR q.settings = ?1",
            (settings,),
        )
        for key, name, verdict, preference in rows:
            found.setdefault(key, {})[name] = Answer(verdict, preference)
        return found

    def failures(self) -> dict[str, list[str]]:
        """By key of an unanswered question, the outcomes of its attempts, oldest first."""
        found: dict[str, list[str]] = {}
        rows = self._all(
            "SELECT key, outcome FROM attempts WHERE key NOT IN (SELECT key FROM verdicts) AND outcome != ? ORDER BY id", (Outcome.UNREAD,)
        )
        for key, outcome in rows:
            found.setdefault(key, []).append(outcome)
        return found

    def unread(self) -> list[StoredReply]:
        """Replies that nobody has read, as after a crash between the two."""
        return self._replies("a.outcome = ?", (Outcome.UNREAD,))

    def replies(self) -> Iterator[StoredReply]:
        """Every reply with status 200, newest last; a thousand in memory at a time."""
        last = 0
        while page := self._replies("a.status = 200 AND a.body IS NOT NULL AND a.id > ?", (last,), "LIMIT 1000"):
            yield from page
            last = page[-1].attempt

    def _replies(self, condition: str, values: tuple[Any, ...], limit: str = "") -> list[StoredReply]:
        rows = self._all(
            "SELECT a.id, a.key, q.asked, a.body FROM attempts a JOIN questions q ON q.key = a.key "
            f"WHERE {condition} ORDER BY a.id {limit}",
            values,
        )
        return [StoredReply(attempt, key, *_asked_of(asked), bytes(body)) for attempt, key, asked, body in rows]

    def counted(self) -> Usage:
        """Tokens that the endpoint has counted, over all attempts and settings."""
        rows = self._all("SELECT total(input_tokens), total(output_tokens) FROM attempts WHERE origin = 'endpoint'")
        return Usage(int(rows[0][0]), int(rows[0][1]))

    def uncounted(self, outcomes: Iterable[str]) -> dict[str, int]:
        """By key, attempts at the endpoint with one of these outcomes whose tokens it did not count."""
        rows = self._all(
            "SELECT key, outcome, count(*) FROM attempts WHERE origin = 'endpoint' AND input_tokens IS NULL GROUP BY key, outcome"
        )
        found: dict[str, int] = {}
        among = frozenset(outcomes)
        for key, outcome, attempts in rows:
            if outcome in among:
                found[key] = found.get(key, 0) + attempts
        return found

    def settings(self) -> dict[str, dict[str, Any]]:
        """By fingerprint, what the questions of one run share."""
        return {key: json.loads(value) for key, value in self._all("SELECT id, value FROM settings")}

    def answered_items(self) -> dict[str, list[tuple[str, str]]]:
        """By item, the (settings, criteria) under which it has an answer, oldest first."""
        found: dict[str, list[tuple[str, str]]] = {}
        rows = self._all("SELECT item, settings, criteria FROM questions WHERE key IN (SELECT key FROM verdicts) ORDER BY rowid")
        for item, settings, criteria in rows:
            found.setdefault(item, []).append((settings, criteria))
        return found

    def _all(self, statement: str, values: tuple[Any, ...] = ()) -> list[Any]:
        if self._writer is None:
            return self._connection.execute(statement, values).fetchall()
        done = threading.Event()
        answer: list[Any] = []

        def finished(error: BaseException | None, result: Any) -> None:
            answer.extend((error, result))
            done.set()

        self._writer.put(lambda connection: connection.execute(statement, values).fetchall(), finished)
        done.wait()
        if answer[0] is not None:
            raise answer[0]
        return list(answer[1])


def _asked_text(question: AnyQuestion) -> str:
    """The points as JSON: a list of names, or, where other answers than verdicts are offered, an object with those of each."""
    names = question.names
    return json.dumps(names if question.answers == VERDICTS else dict.fromkeys(names, question.answers))


def _asked_of(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the points, and what may be said on each."""
    points = json.loads(text)
    return tuple(points), tuple(next(iter(points.values()))) if isinstance(points, dict) else VERDICTS


def _settle(connection: _Connection, attempt: int, key: str, reading: Reading) -> None:
    usage = reading.usage
    connection.execute(
        "UPDATE attempts SET outcome = ?, detail = ?, input_tokens = ?, output_tokens = ?, parser = ? WHERE id = ?",
        (
            reading.outcome,
            reading.detail,
            None if usage is None else usage.input_tokens,
            None if usage is None else usage.output_tokens,
            PARSER_VERSION,
            attempt,
        ),
    )
    if reading.outcome == Outcome.ANSWERED:
        connection.execute("DELETE FROM verdicts WHERE key = ?", (key,))
    else:
        connection.execute("DELETE FROM verdicts WHERE key = ? AND attempt = ?", (key, attempt))
    for name, verdict in reading.verdicts.items():
        connection.execute("INSERT INTO verdicts VALUES (?, ?, ?, ?, ?)", (key, name, verdict, reading.preference_A.get(name), attempt))


def _resolve(future: "asyncio.Future[Any]", error: BaseException | None, result: Any) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


_Finished = Callable[[BaseException | None, Any], None]


class _Writer:
    """The thread that writes: takes all that waits, commits it together, and then says so to everybody."""

    def __init__(self, connection: _Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._waiting: queue.SimpleQueue[tuple[Callable[[_Connection], Any], _Finished | None] | None] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self.commits = 0
        self._thread = threading.Thread(target=self._run, name="dmoerm-label-store", daemon=True)
        self._thread.start()

    def put(self, write: Callable[[_Connection], Any], finished: _Finished | None) -> None:
        self._waiting.put((write, finished))

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        closing = False
        while not closing:
            batch = [self._waiting.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < 1000:
                    batch.append(self._waiting.get_nowait())
            closing = None in batch
            self._commit([entry for entry in batch if entry is not None])

    def _commit(self, batch: list[tuple[Callable[[_Connection], Any], _Finished | None]]) -> None:
        if not batch:
            return
        results: list[Any] = []
        error = self._failure
        if error is None:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                results = [write(self._connection) for write, _ in batch]
                self._connection.execute("COMMIT")
                self.commits += 1
            except Exception as problem:  # whatever it is, those who wait must hear of it
                error = self._failure = LabelError(f"{self._path}: {_store_problem(problem)}")
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
        for index, (_, finished) in enumerate(batch):
            if finished is not None:
                finished(error, None if error is not None else results[index])


def _store_problem(problem: BaseException) -> str:
    full = "full" in str(problem) or getattr(problem, "errno", None) == errno.ENOSPC
    if full:
        return "the disk is full: answers cannot be stored, so no further question is sent. Free some space and run the same command again"
    return f"the store cannot be written ({problem}), so no further question is sent. What was stored is kept"


def _opened(path: Path, *, write: bool) -> _Connection:
    if sqlite3.sqlite_version_info < (3, 24):
        raise LabelError(f"SQLite {sqlite3.sqlite_version} is too old; expected 3.24 or newer")
    # For reading, too, as read and write: after a crash the first one to open the file takes back what was half written.
    uri = f"file:{_quoted(path)}?mode={'rwc' if write else 'rw'}"
    connection = sqlite3.connect(uri, uri=True, timeout=30.0, isolation_level=None, check_same_thread=False)
    try:
        problems = [row[0] for row in connection.execute("PRAGMA quick_check(3)")]
        if problems != ["ok"]:
            raise sqlite3.DatabaseError("; ".join(map(str, problems)))
        if write:
            connection.execute("PRAGMA journal_mode = TRUNCATE")
            connection.execute("PRAGMA synchronous = FULL")
        else:
            connection.execute("PRAGMA query_only = ON")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        # A run that was killed while it made the file leaves an empty one.
        if version == 0 and not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            if not write:
                raise LabelError(f"{path}: there are no answers yet. Run dmoerm label first")
            _create(connection)
            version = SCHEMA_VERSION
    except LabelError:
        connection.close()
        raise
    except sqlite3.DatabaseError as error:
        connection.close()
        if isinstance(error, sqlite3.OperationalError):
            raise LabelError(f"{path}: cannot be opened ({error})") from error
        raise LabelError(
            f"{path}: damaged ({error}). Nothing was changed. dmoerm label salvage keeps it as {path.name}.bad and starts a new store with "
            "every answer that can still be read"
        ) from error
    if version != SCHEMA_VERSION:
        connection.close()
        raise LabelError(f"{path}: made by another version of dmoerm (store version {version}; this one reads {SCHEMA_VERSION})")
    return connection


def _create(connection: _Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for statement in filter(str.strip, _SCHEMA.split(";")):
        connection.execute(statement)
    connection.execute("INSERT INTO store VALUES ('secret', ?)", (secrets.token_bytes(16),))
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _quoted(path: Path) -> str:
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _lock(path: Path) -> IO[str]:
    lock = path.with_name(path.name + ".lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        holder = lock.read().strip() or "another run"
        lock.close()
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise LabelError(f"{path}: in use by {holder}. Wait for it, or stop it; dmoerm label status can be asked meanwhile") from error
        raise LabelError(f"{path}: this file system offers no locks ({error}); put labeling.store on a local disk") from error
    lock.seek(0)
    lock.truncate()
    lock.write(f"process {os.getpid()} on {socket.gethostname()}")
    lock.flush()
    return lock


def network_file_system(path: Path, mounts: str | None = None) -> str | None:
    """The type of the network file system that a path lies on, or None.

    Args:
        path: a file that need not exist; links are followed.
        mounts: what is mounted, in the form of /proc/mounts; None reads that file. Where there is none (not Linux), nothing is known.
    """
    if mounts is None:
        listed = Path("/proc/mounts")
        mounts = listed.read_text(encoding="utf-8", errors="replace") if listed.exists() else ""
    depth, found = -1, ""
    target = path.resolve()
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) > 2:
            # Blanks and the like stand there as three octal digits.
            point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[1]))
            # Of two file systems at one place the later one lies on top.
            if (target == point or point in target.parents) and len(point.parts) >= depth:
                depth, found = len(point.parts), fields[2]
    return found if found.removeprefix("fuse.").startswith(_NETWORKED) else None


_NETWORKED = ("nfs", "cifs", "smb", "sshfs", "9p", "lustre", "gpfs", "ceph", "beegfs", "gluster", "afs", "s3fs", "gcsfuse", "rclone")


def salvage(path: Path) -> dict[str, int]:
    """Keep a damaged store as NAME.bad, and start a new one with every row that can still be read; returns rows by table.

    The new store is made beside the old one, which keeps its place until the new one is whole.

    Raises:
        LabelError: there is no such file, a run holds it, or the new one cannot be written.
    """
    if not path.is_file():
        raise LabelError(f"{path}: there is no such store")
    with contextlib.closing(_lock(path)):
        unfinished = path.with_name(path.name + ".salvaged")
        unfinished.unlink(missing_ok=True)
        try:
            counts = _salvaged(path, unfinished)
        except (sqlite3.Error, OSError) as error:
            unfinished.unlink(missing_ok=True)
            raise LabelError(f"{unfinished}: cannot be written ({error}). Nothing was changed") from error
        bad = next(candidate for number in range(1000) if not (candidate := _numbered(path, number)).exists())
        os.replace(path, bad)
        with contextlib.suppress(FileNotFoundError):
            os.replace(_journal(path), _journal(bad))
        os.replace(unfinished, path)
    return counts


def _salvaged(path: Path, target: Path) -> dict[str, int]:
    connection = sqlite3.connect(target, isolation_level=None)
    try:
        _create(connection)
        connection.execute("BEGIN IMMEDIATE")
        with _readable(path) as source:
            counts = {table: _copy(source, connection, table) for table in ("store", "settings", "questions", "attempts", "verdicts")}
        # Verdicts can be read again from the replies; those without a question would never be found.
        connection.execute("DELETE FROM verdicts WHERE key NOT IN (SELECT key FROM questions)")
        connection.execute("COMMIT")
    finally:
        connection.close()
    return counts


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[_Connection]:
    """A damaged store opened for reading. Where a crash left a journal it is applied, but to a copy."""
    copy = path.with_name(path.name + ".copy")
    broken_off = _journal(path).is_file() and _journal(path).stat().st_size > 0
    if broken_off:
        shutil.copyfile(path, copy)
        shutil.copyfile(_journal(path), _journal(copy))
    source = sqlite3.connect(f"file:{_quoted(copy)}?mode=rw" if broken_off else f"file:{_quoted(path)}?mode=ro", uri=True)
    source.text_factory = lambda raw: raw.decode("utf-8", "replace")
    try:
        with contextlib.suppress(sqlite3.Error):
            source.execute("PRAGMA writable_schema = ON")  # else nothing at all is read of a file that has lost its end
        yield source
    finally:
        source.close()
        copy.unlink(missing_ok=True)
        _journal(copy).unlink(missing_ok=True)


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.bad{number or ''}")


def _journal(path: Path) -> Path:
    return path.with_name(path.name + "-journal")


def _copy(source: _Connection, target: _Connection, table: str) -> int:
    """Copy what can be read of one table, from both ends, as a damaged page ends a scan."""
    order = "key" if table == "verdicts" else "rowid"  # by which its pages are ordered
    conflict = "REPLACE" if table == "store" else "IGNORE"  # the new store has a secret already; what is damaged may lack a value
    places = ", ".join("?" * len(target.execute(f"SELECT * FROM {table} LIMIT 0").description))
    for direction in ("ASC", "DESC"):
        for row in _until_damaged(source, f"SELECT * FROM {table} ORDER BY {order} {direction}"):
            target.execute(f"INSERT OR {conflict} INTO {table} VALUES ({places})", row)
    return int(target.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def _until_damaged(source: _Connection, statement: str) -> Iterator[tuple[Any, ...]]:
    with contextlib.suppress(sqlite3.Error):
        yield from source.execute(statement)
