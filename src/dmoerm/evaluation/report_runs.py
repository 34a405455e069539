"""From the names on a command line to results: what a RUN is, found out from what lies there.

    a model folder            the model, and beside it (`<name>-run`) its metrics and the evaluation that training ended with
    a run folder              the same
    a folder of models        each of them
    a folder of results       every *.json in it that is one
    a JSON file               what a verb printed with --json
    NAME=any of these         under that name on the page

A file says what it is ("kind"); one that does not is read as every kind in turn, and where none fits, the reasons are told.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dmoerm.errors import ArtifactError, DataError
from dmoerm.evaluation.report_kinds.kind import Run
from dmoerm.evaluation.report_kinds.model import METRICS, read_model
from dmoerm.evaluation.report_kinds.table import KINDS
from dmoerm.evaluation.result_files import read_document
from dmoerm.modeling.manifest import MANIFEST
from dmoerm.recipe import run_folder
from dmoerm.validation import did_you_mean

__all__ = ["Found", "read_runs"]

_EVALUATION = "evaluation.json"
_RUN = "-run"
_KEPT = ("contest.json", "run.json")
"""What a study keeps beside its result to go on with."""


@dataclass(frozen=True, slots=True)
class Found:
    """Results by kind, in the order of `KINDS`, and what was passed over."""

    runs: Mapping[str, tuple[Run, ...]]
    left_out: tuple[str, ...]


def read_runs(names: Sequence[str]) -> Found:
    """Read every RUN.

    Args:
        names: paths, or NAME=path. A result that is named twice is read once.

    Raises:
        DataError: one of them is no result, or a damaged one.
        ArtifactError: a damaged model.
    """
    if not names:
        raise DataError("Nothing to report on; name at least one result, such as a model folder or a file of --json.")
    found: dict[str, list[tuple[Path, Run]]] = {kind: [] for kind in KINDS}
    left_out: list[str] = []
    for text in names:
        name, path = _named(text)
        for kind, place, run in _open(path, left_out):
            if all(place != other for other, _ in found[kind]):
                found[kind].append((place, replace(run, name=name or run.name)))
    return Found({kind: _distinct(runs) for kind, runs in found.items() if runs}, tuple(left_out))


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if equals and name and path and "/" not in name and not Path(text).exists():
        return name, Path(path)
    return "", Path(text)


def _open(path: Path, left_out: list[str]) -> Iterator[tuple[str, Path, Run]]:
    """Kind, resolved path and run of everything that a RUN stands for."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; expected a result, such as a model folder or a file of --json.")
    if path.name == MANIFEST:
        path = path.parent
    if path.is_dir():
        yield from _open_folder(path, left_out)
    else:
        kind, result = _recognised(path)
        yield kind, path.resolve(), Run(_file_name(path), str(path), _dated(path), result)


def _open_folder(path: Path, left_out: list[str]) -> Iterator[tuple[str, Path, Run]]:
    model = path.resolve().with_name(path.resolve().name.removesuffix(_RUN))
    if (path / MANIFEST).is_file() or (path / "categories").is_dir():
        yield from _open_model(path)
    elif (path / METRICS).is_file():
        if (model / MANIFEST).is_file():
            yield from _open_model(path.with_name(model.name) if path.name else model)
        elif (path / _EVALUATION).is_file():
            yield from _open(path / _EVALUATION, left_out)
        else:
            raise DataError(f"{path}: a run that has not ended, so it has no result. Go on with it: dmoerm train --resume.")
    else:
        models = sorted(child for child in path.iterdir() if (child / MANIFEST).is_file())
        files = sorted(child for child in path.glob("*.json") if child.is_file())
        refused = []
        for child in models:
            yield from _open_model(child)
        read = len(models)
        for child in files:
            try:
                kind, result = _recognised(child)
            except _NoResult as error:
                refused.append(str(error))
                if child.name not in _KEPT:
                    left_out.append(f"{child} is no result and is left out.")
                continue
            read += 1
            yield kind, child.resolve(), Run(_file_name(child), str(child), _dated(child), result)
        if not read:
            what = "\n".join(refused) or "it holds no model and no *.json"
            raise DataError(f"{path}: a folder without a result. Expected a model folder, or a folder with files of --json.\n{what}")


def _open_model(path: Path) -> Iterator[tuple[str, Path, Run]]:
    place = path.resolve()
    name = _model_name(place)
    try:
        model = read_model(path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error}).") from error
    yield "model", place, Run(name, str(path), _dated(path / MANIFEST), model)
    evaluation = run_folder(path if path.name else place) / _EVALUATION
    if evaluation.is_file():
        kind, result = _recognised(evaluation)
        yield kind, evaluation.resolve(), Run(name, str(evaluation), _dated(evaluation), result)


class _NoResult(DataError):
    """A file that is a result of no kind, as against a damaged one."""


def _recognised(path: Path) -> tuple[str, Any]:
    """The kind of a file and its result."""
    document = read_document(path)
    readers = {name: kind for name, kind in KINDS.items() if kind.read is not None}
    said = document.get("kind")
    if isinstance(said, str):
        if said not in readers:
            raise _NoResult(f'{path}: it says that it is "{said}", which no report shows{did_you_mean(said, readers)}.')
        return said, _read(path, said, document)
    reasons = []
    for name, kind in readers.items():
        assert kind.read is not None
        try:
            return name, kind.read(document)
        except DataError as error:
            reasons.append(f"  {name} ({kind.made_by}): {error}")
    tried = "\n".join(reasons)
    raise _NoResult(f"{path}: not a result that a report can show. Tried as\n{tried}\nName a model folder, or what one of these printed.")


def _read(path: Path, name: str, document: Mapping[str, Any]) -> Any:
    kind = KINDS[name]
    assert kind.read is not None
    try:
        return kind.read(document)
    except DataError as error:
        raise DataError(f"{path}: it says that it is {json.dumps(name)}, but is not: {error}. Write it again: {kind.made_by}.") from error


def _file_name(path: Path) -> str:
    """The stem; of the evaluation of a run, the name of its model."""
    folder = path.resolve().parent
    if path.name == _EVALUATION and folder.name.endswith(_RUN):
        return _model_name(folder.with_name(folder.name.removesuffix(_RUN)))
    return path.stem


def _model_name(place: Path) -> str:
    """The folder's name; with the one above where it is what recipes call every model."""
    return f"{place.parent.name}/{place.name}" if place.name == "model" and place.parent.name else place.name


def _dated(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()


def _distinct(found: Sequence[tuple[Path, Run]]) -> tuple[Run, ...]:
    """Runs under names of their own: equal ones get the folders above them, as many as it takes."""
    runs, origins = [run for _, run in found], [_origin(place).parts for place, _ in found]
    for length in range(2, 1 + max(map(len, origins))):
        names = [run.name for run in runs]
        if len(set(names)) == len(names):
            break
        runs = [
            replace(run, name="/".join(parts[-length:])) if names.count(run.name) > 1 else run
            for run, parts in zip(runs, origins, strict=True)
        ]
    return tuple(runs)


def _origin(place: Path) -> Path:
    """The model that an evaluation is of, else the file without its ending."""
    if place.name == _EVALUATION and place.parent.name.endswith(_RUN):
        return place.parent.with_name(place.parent.name.removesuffix(_RUN))
    return place.with_suffix("") if place.is_file() else place
