"""A file of prompts and responses to a file of rewards: streamed, in order, and safe to stop.

One output row a response, in the order of the input:

    {"id", "response_index", "reward", "category", "category_probability", "capabilities", "capability_spread", "uncertainty", "truncated"}
    {"id", "response_index" | null, "error"}      what could not be scored, and why; null where the whole row could not be read

Finished chunks go to `<output>.partial`, and `<output>.partial.json` says how far it is, for which model and from which input. The output
appears under its name only when it is whole. `resume` goes on where that file ends, and refuses another model, another setting or an
input that has changed. A row never waits for more than a chunk, so memory does not grow with the file.
"""

import gzip
import hashlib
import json
import math
import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dmoerm.data.jsonl import BadRow, Row, scan_rows
from dmoerm.errors import ConfigError, DataError
from dmoerm.modeling.inner import Aggregation
from dmoerm.modeling.reward_model import RewardModel, ScoreRequest
from dmoerm.records import Reward, ScoreFailure
from dmoerm.scoring.requests import read_request, row_id
from dmoerm.taxonomy import GENERAL

__all__ = ["BulkResult", "model_identity", "require_aggregation", "score_file"]

CHUNK_RESPONSES = 512
"""Responses read before they are scored: enough for batches of like lengths, little enough to lose when stopped."""


@dataclass(frozen=True, slots=True)
class BulkResult:
    """What became of a file.

    Attributes:
        path: the output.
        rows: input rows.
        responses: output rows with a reward.
        failed: output rows with an error.
        resumed_rows: input rows of them that an earlier run had done.
        seconds: of this run.
    """

    path: Path
    rows: int
    responses: int
    failed: int
    resumed_rows: int
    seconds: float


def score_file(
    model: RewardModel,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    aggregation: Aggregation | None = None,
    category: str | None = None,
    batch_tokens: int = 16384,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> BulkResult:
    """Score every response of a file.

    Args:
        model: the model.
        source: `.jsonl` or `.jsonl.gz`; see `scoring.requests` for the rows.
        target: the file to write, gzip where its name ends in `.gz`.
        aggregation: None is the model's own default.
        category: judge every row by this category's inner model and skip the router.
        batch_tokens: token budget of a batch, padding counted.
        resume: go on with an unfinished run; where there is none, begin.
        overwrite: replace the output, and forget an unfinished run.
        progress: called with (input rows done, all of them or None) after each chunk.

    Raises:
        ConfigError: the output or an unfinished run is there and neither `resume` nor `overwrite` is given, the unfinished run is of
            another model, setting or input, or the model has no such category or aggregation.
        DataError: the input cannot be read at all. A single bad row is an error row of the output instead.
    """
    source, target = Path(source), Path(target)
    require_aggregation(model, aggregation or model.aggregation)
    _require_category(model, category)
    if batch_tokens < 1:
        raise ConfigError(f"batch_tokens is {batch_tokens}; expected at least 1, for example 16384")
    if source.resolve() == target.resolve():
        raise ConfigError(f"{source} is input and output at once; name another output")
    settings = {"version": 1, "model": model_identity(model), "aggregation": aggregation or model.aggregation, "category": category}
    total = _count_lines(source)  # first, so that a missing input leaves no trace of an output
    part = _Part.open(target, settings, resume=resume, overwrite=overwrite)
    begin, resumed = time.monotonic(), part.rows
    progress(part.rows, total)
    try:
        for chunk in _chunks(source, part, category):
            part.append(_score(model, chunk, part.aggregation, batch_tokens))
            progress(part.rows, total)
    except DataError:  # the input is no JSON lines file at all
        part.discard_if_empty()
        raise
    part.finish()
    return BulkResult(target, part.rows, part.responses, part.failed, resumed, time.monotonic() - begin)


def require_aggregation(model: RewardModel, aggregation: str) -> None:
    """Refuse an aggregation that some category of the model does not have, before anything is scored.

    Raises:
        ConfigError: "task" where the task model is not a member everywhere.
    """
    without = [name for name, inner in model.inner.items() if not inner.with_task_member]
    if aggregation == "task" and without:
        raise ConfigError(
            f"aggregation task: the task model is no member of {', '.join(without)}. Choose mlp, mean, wco or uwo, "
            "or train with experts.with_task_model: true"
        )


def model_identity(model: RewardModel) -> str:
    """Hex SHA-256 over everything that decides a reward: rendering, backbone, router, adapters, aggregators and calibration.

    The shared backbone counts by its name, revision and saved hash rather than by its bytes: loading has compared those already.
    """
    digest = hashlib.sha256()
    facts = (model.renderer.fingerprint(), model.backbone.name, model.backbone.revision, model.backbone.pooling, model.uwo_penalty)
    digest.update(json.dumps(facts).encode())
    modules: list[tuple[str, torch.nn.Module]] = [
        ("router", model.router),
        *sorted(model.inner.items()),
        *sorted(model.own_backbones.items()),
    ]
    state = [(f"{name}.{key}", tensor) for name, module in modules for key, tensor in module.state_dict().items()]
    state += [(key, tensor) for key, tensor in model.backbone.state_dict().items() if ".task." in key or ".experts." in key]
    for key, tensor in state:
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _require_category(model: RewardModel, category: str | None) -> None:
    known = dict.fromkeys((*model.taxonomy.category_names, *model.inner, GENERAL))
    if category is not None and category not in known:
        raise ConfigError(f"category {category!r} is not one of this model's: {', '.join(known)}. Leave it out to let the router decide")


# --- reading --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Input:
    """One input row: what to score, or why it cannot be read."""

    id: str | int
    request: ScoreRequest | str
    digest: str


def _chunks(source: Path, part: "_Part", category: str | None) -> Iterator[list[_Input]]:
    """Input rows that are still to be done, in chunks; checks on the way that the rows done are still the same."""
    digest, number, waiting, size, done = hashlib.sha256(), 0, [], 0, part.rows
    for row in scan_rows(source):
        number += 1
        digest.update(row.raw.rstrip(b"\r\n") + b"\n")
        if number <= done:
            if number == done and digest.hexdigest() != part.input_sha256:
                raise ConfigError(f"{source} has changed in its first {done:,} rows since {part.path} was begun. {_START_ANEW}")
            continue
        item = _input(row, source, category, digest.hexdigest())
        waiting.append(item)
        size += len(item.request.responses) if isinstance(item.request, ScoreRequest) else 1
        if size >= CHUNK_RESPONSES:
            yield waiting
            waiting, size = [], 0
    if number < done:
        raise ConfigError(f"{source} has {number:,} rows, but {part.path} was made from {done:,}. {_START_ANEW}")
    if waiting:
        yield waiting


def _input(row: Row | BadRow, source: Path, category: str | None, digest: str) -> _Input:
    if isinstance(row, BadRow):
        return _Input(f"{source.name}:{row.line}", f"{source.name}:{row.line}: {row.reason}", digest)
    try:
        return _Input(row_id(row, source), read_request(row, source, category), digest)
    except DataError as error:
        return _Input(row_id(row, source), f"{source.name}:{row.line}: {error}", digest)


def _count_lines(source: Path) -> int | None:
    """Lines that are not blank, for the time left; None where the file cannot be read to its end (reading it will say why)."""
    try:
        with gzip.open(source, "rb") if source.suffix == ".gz" else source.open("rb") as stream:
            return sum(1 for line in stream if line.strip())
    except FileNotFoundError:
        raise DataError(f"{source}: no such file. Check the path; relative ones start at {Path.cwd()}.") from None
    except (OSError, EOFError, zlib.error):
        return None


# --- scoring --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Done:
    """Output rows of one chunk."""

    lines: bytes
    rows: int
    responses: int
    failed: int
    input_sha256: str


def _score(model: RewardModel, chunk: list[_Input], aggregation: Aggregation, batch_tokens: int) -> _Done:
    requests = [item.request for item in chunk if isinstance(item.request, ScoreRequest)]
    results = iter(model.score_many(requests, aggregation=aggregation, max_tokens=batch_tokens))
    rows: list[dict[str, Any]] = []
    for item in chunk:
        if isinstance(item.request, ScoreRequest):
            rows += [_row(item.id, index, result) for index, result in enumerate(next(results))]
        else:
            rows.append({"id": item.id, "response_index": None, "error": item.request})
    failed = sum("error" in row for row in rows)
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()
    return _Done(lines, len(chunk), len(rows) - failed, failed, chunk[-1].digest)


def _row(id: str | int, index: int, result: Reward | ScoreFailure) -> dict[str, Any]:
    head = {"id": id, "response_index": index}
    if isinstance(result, ScoreFailure):
        return {**head, "error": result.message}
    numbers = (result.reward, result.category_probability, result.capability_spread, result.uncertainty, *result.capabilities.values())
    if not all(map(math.isfinite, numbers)):
        return {**head, "error": f"the model gives no finite reward ({result.reward})"}
    return {**head, **asdict(result)}


# --- the unfinished output ------------------------------------------------------------------------------------------------------------

_START_ANEW = "Begin again with overwrite (--overwrite)."


@dataclass(slots=True)
class _Part:
    """The output so far and the note beside it; `bytes` is what of it the note vouches for."""

    target: Path
    settings: dict[str, Any]
    rows: int = 0
    responses: int = 0
    failed: int = 0
    bytes: int = 0
    input_sha256: str = ""

    @property
    def path(self) -> Path:
        return self.target.with_name(f"{self.target.name}.partial")

    @property
    def note(self) -> Path:
        return self.target.with_name(f"{self.target.name}.partial.json")

    @property
    def aggregation(self) -> Aggregation:
        return self.settings["aggregation"]  # type: ignore[no-any-return]

    @staticmethod
    def open(target: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> "_Part":
        """A fresh output, or the unfinished one cut back to its last whole chunk."""
        part = _Part(target, settings)
        unfinished = part.path.exists() and part.note.exists()
        if target.exists() and not overwrite:
            raise ConfigError(f"{target} exists already; nothing was written. Name another output, or pass overwrite (--overwrite)")
        if unfinished and not resume and not overwrite:
            raise ConfigError(
                f"{part.path} is an unfinished run; nothing was written. Go on with resume (--resume), or begin again with "
                "overwrite (--overwrite)"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        if unfinished and resume:
            part._read_note()
            with part.path.open("r+b") as file:
                file.truncate(part.bytes)
        else:
            part.path.write_bytes(b"")
            part._write_note()
        return part

    def append(self, done: _Done) -> None:
        """Add a chunk, then vouch for it: a crash in between leaves bytes that the next run cuts off."""
        # Gzip members stand one behind the other, so a compressed output can be cut and continued too.
        content = gzip.compress(done.lines, mtime=0) if self.target.suffix == ".gz" else done.lines
        with self.path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.rows += done.rows
        self.responses += done.responses
        self.failed += done.failed
        self.bytes += len(content)
        self.input_sha256 = done.input_sha256
        self._write_note()

    def finish(self) -> None:
        """Give the output its name."""
        self.path.replace(self.target)
        self.note.unlink()

    def discard_if_empty(self) -> None:
        """Leave no trace of a run that has done nothing."""
        if self.rows == 0:
            self.path.unlink()
            self.note.unlink()

    def _write_note(self) -> None:
        state = {name: getattr(self, name) for name in ("rows", "responses", "failed", "bytes", "input_sha256")}
        unfinished = self.note.with_name(f"{self.note.name}.tmp")
        unfinished.write_text(json.dumps({**self.settings, **state}, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(self.note)

    def _read_note(self) -> None:
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            if not isinstance(note, dict):
                raise TypeError("it is no object")
            other = [name for name, value in self.settings.items() if note.get(name) != value]
            if other:
                raise ConfigError(f"{self.path} was begun with another {' and '.join(other)}. {_START_ANEW}")
            self.rows, self.responses, self.failed, self.bytes = (int(note[name]) for name in ("rows", "responses", "failed", "bytes"))
            self.input_sha256 = str(note["input_sha256"])
        except ConfigError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.note} cannot be read ({error!r}). {_START_ANEW}") from error
        if self.path.stat().st_size < self.bytes:
            raise ConfigError(f"{self.path} is shorter than {self.note.name} says. {_START_ANEW}")
