"""What a run has finished and what it is in the middle of, on disk, so that a killed run goes on where it was.

A run is made of units: one phase of one category on one part of the data. A finished unit is a folder with its results; an unfinished one
may have steps, written by the trainer as it goes. Both hold `complete.json`, the SHA-256 of every file in them, written last: a folder
without it, or with a file that does not match, is not there. An older complete step is deleted only once the newer one is complete.

A unit's key is a hash of everything that its result depends on, the weights it starts from included, so a stored result is used where it
would be computed again bit for bit, and nowhere else. On top of that, `run.json` keeps the run's fingerprint field by field: a resume with
other data, seed, backbone, rank or number of processes is refused by name rather than silently begun anew.

Only safetensors and JSON are read here; the optimizer state in a step is torch's own, read with `weights_only=True` by transformers.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmoerm.errors import TrainingError
from dmoerm.validation import changed_fields

__all__ = ["COMPLETE", "EpochResult", "RunState", "Unit", "content_key", "read_complete", "seal"]

COMPLETE = "complete.json"
RUN_FILE = "run.json"


@dataclass(frozen=True, slots=True)
class EpochResult:
    """State after an epoch: the trained tensors and the held-out loss and agreement, NaN when nothing was held out.

    Attributes:
        epoch: 0 is the state before training.
        weights: copies of the trained tensors by name, on the CPU.
        loss: mean held-out ranking loss over members, nats.
        accuracy: share of held-out pairs ordered rightly, 0 to 1.
        pairs: number of held-out pairs.
    """

    epoch: int
    weights: dict[str, Tensor]
    loss: float
    accuracy: float
    pairs: int


# --- folders that are whole or not there ----------------------------------------------------------------------------------------------


def seal(folder: Path) -> None:
    """Declare a folder complete: every file to disk, then `complete.json` with their hashes, by rename."""
    hashes = {}
    for path in _files(folder):
        _to_disk(path)
        hashes[path.relative_to(folder).as_posix()] = _sha256(path)
    partial = folder / f".{COMPLETE}"
    partial.write_text(json.dumps({"files": hashes}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    _to_disk(partial)
    partial.replace(folder / COMPLETE)
    _to_disk(folder)


def read_complete(folder: Path) -> str | None:
    """Why a folder is not to be used, or None where it is whole."""
    marker = folder / COMPLETE
    if not marker.is_file():
        return f"{folder}: unfinished (no {COMPLETE}); skipped"
    try:
        expected: Mapping[str, str] = json.loads(marker.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError):
        return f"{folder}: {COMPLETE} is damaged; skipped"
    found = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    for name, digest in expected.items():
        if name not in found:
            return f"{folder}: {name} is missing; skipped"
        if _sha256(found[name]) != digest:
            return f"{folder}: {name} is not the file that was written (cut or changed); skipped"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in {COMPLETE, f".{COMPLETE}"})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def content_key(*parts: Any) -> str:
    """Hex SHA-256 over plain values and tensors (in mappings and sequences as well); equal content, equal key."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, Mapping):
            for name in sorted(value):
                add(name)
                add(value[name])
        elif isinstance(value, Sequence) and not isinstance(value, str):
            digest.update(f"[{len(value)}]".encode())
            for item in value:
                add(item)
        else:
            digest.update(f"{type(value).__name__}:{value!r};".encode())

    add(parts)
    return digest.hexdigest()


# --- units ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unit:
    """One phase of one category on one part of the data, with its folder; `folder` None keeps nothing.

    Attributes:
        folder: where its steps and its result are kept.
        writes: False in all processes but the first.
        every_steps: optimizer steps between two stored steps within an epoch; 0 stores at the ends of epochs only.
        say: where lines for people go.
    """

    folder: Path | None = None
    writes: bool = True
    every_steps: int = 0
    say: Callable[[str], None] = field(default=lambda line: None)

    @property
    def finished(self) -> bool:
        """Whether a whole result is stored."""
        return self.folder is not None and read_complete(self.folder / "result") is None

    def result(self) -> list[EpochResult] | None:
        """The stored result, or None where the unit has to run."""
        if self.folder is None or not (self.folder / "result").is_dir():
            return None
        problem = read_complete(self.folder / "result")
        if problem is not None:
            self.say(problem)
            return None
        return load_epochs(self.folder / "result")

    def finish(self, results: Sequence[EpochResult]) -> None:
        """Store the result and forget the steps."""
        if self.folder is None or not self.writes:
            return
        target = self.folder / "result"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        save_epochs(results, target)
        seal(target)
        shutil.rmtree(self.folder / "steps", ignore_errors=True)

    def steps_folder(self) -> Path | None:
        """Where the trainer writes its steps, or None."""
        return None if self.folder is None else self.folder / "steps"

    def last_step(self) -> Path | None:
        """The newest complete step; those that are not whole are named and passed over."""
        for step in reversed(self._steps()):
            problem = read_complete(step)
            if problem is None:
                return step
            self.say(problem)
        return None

    def step_written(self, step: Path) -> None:
        """Seal a step that the trainer has written, then delete the older ones."""
        if not self.writes:
            return
        seal(step)
        for older in self._steps():
            if older != step:
                shutil.rmtree(older, ignore_errors=True)

    def _steps(self) -> list[Path]:
        folder = self.steps_folder()
        if folder is None or not folder.is_dir():
            return []
        numbered = [(path.name.rpartition("-")[2], path) for path in folder.iterdir() if path.is_dir()]
        return [path for _, path in sorted((int(number), path) for number, path in numbered if number.isdigit())]


def save_epochs(results: Sequence[EpochResult], folder: Path) -> None:
    """Write the results of epochs as one safetensors file each and a table."""
    for result in results:
        save_file({name: value.contiguous() for name, value in result.weights.items()}, folder / f"epoch-{result.epoch}.safetensors")
    table = [{"epoch": r.epoch, "loss": r.loss, "accuracy": r.accuracy, "pairs": r.pairs} for r in results]
    (folder / "epochs.json").write_text(json.dumps(table) + "\n", encoding="utf-8")


def load_epochs(folder: Path) -> list[EpochResult]:
    """Read what `save_epochs` wrote.

    Raises:
        TrainingError: a file is missing or is no safetensors file.
    """
    try:
        table = json.loads((folder / "epochs.json").read_text(encoding="utf-8"))
        return [
            EpochResult(row["epoch"], load_file(folder / f"epoch-{row['epoch']}.safetensors"), row["loss"], row["accuracy"], row["pairs"])
            for row in table
        ]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise TrainingError(f"{folder}: cannot be read ({error}). Delete this folder; the unit then runs again.") from error


# --- the run --------------------------------------------------------------------------------------------------------------------------


class RunState:
    """The units of one run and its fingerprint.

    Args:
        folder: of the run; None keeps nothing on disk.
        writes: False in all processes but the first.
        every_steps: see `Unit`.
        say: where lines for people go.
    """

    def __init__(
        self, folder: Path | None, *, writes: bool = True, every_steps: int = 0, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.folder = None if folder is None else folder / "checkpoints"
        self._file = None if folder is None else folder / RUN_FILE
        self._writes, self._every_steps, self._say = writes, every_steps, say

    def unit(self, name: str, key: str) -> Unit:
        """The unit of this name whose result depends on `key`; a stored one with another key is another unit."""
        folder = None if self.folder is None else self.folder / f"{name}-{key[:16]}"
        return Unit(folder, self._writes, self._every_steps, self._say)

    def begin(self, fingerprint: Mapping[str, Any], *, resume: bool, force: bool = False) -> None:
        """Take the run folder for a run with this fingerprint.

        Args:
            fingerprint: what the run depends on, one plain value a field.
            resume: go on with what is there; otherwise it is deleted.
            force: resume although fields differ; the difference is recorded in `run.json`.

        Raises:
            TrainingError: there is an unfinished run with another fingerprint; the message lists the fields.
        """
        if self.folder is None or self._file is None:
            return
        fields = {name: _plain(value) for name, value in fingerprint.items()}
        before = self._stored() if resume else {}
        stored = before.get("fingerprint", {})
        changed = changed_fields(stored, fields) if stored else {}
        if changed and not force:
            lines = "\n".join(f"  {name}: {_short(old)} then, {_short(new)} now" for name, (old, new) in changed.items())
            raise TrainingError(
                f"{self.folder.parent}: the run that was begun there differs from this one:\n{lines}\n"
                "Take the change back; or pass --overwrite to begin anew; or --force-resume to go on all the same, which is recorded "
                "(units that the change touches run again)."
            )
        if not self._writes:
            return
        if not resume:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        forced = list(before.get("forced", []))
        if changed:
            forced.append({name: list(pair) for name, pair in changed.items()})
        partial = self._file.with_name(f".{RUN_FILE}")
        partial.write_text(json.dumps({"fingerprint": fields, "forced": forced}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        _to_disk(partial)
        partial.replace(self._file)

    def unfinished(self) -> bool:
        """Whether a run was begun here and has not been `close`d."""
        return self._file is not None and self._file.is_file()

    def close(self, *, keep_units: bool) -> None:
        """The model is saved: the run is no longer unfinished; its units stay where `keep_units` says so, for later changes of one part."""
        if self._file is None or self.folder is None or not self._writes:
            return
        if self._file.is_file():
            self._file.replace(self._file.with_name("finished-run.json"))
        if not keep_units:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _stored(self) -> dict[str, Any]:
        assert self._file is not None
        try:
            stored = json.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise TrainingError(f"{self._file}: damaged ({error}). Begin anew with --overwrite.") from error
        return stored if isinstance(stored, dict) else {}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
