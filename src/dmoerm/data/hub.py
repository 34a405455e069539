"""Data sets of the Hugging Face Hub, or folders in their layout: from a name to the files that hold its rows.

The library `datasets` is asked only which files make up a split. The files are then read by our own readers, because `datasets` rewrites
text: what looks like a date comes back as another string (seen with 5.2.0, even where the column is declared a string).
A name without a revision takes the newest commit; which one that was is told by `hub_commit`.
"""

import functools
import importlib.util
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dmoerm.errors import DataError, missing_extra
from dmoerm.locations import FILE_SUFFIXES, HubName, parse_hub
from dmoerm.validation import did_you_mean

__all__ = ["HubFiles", "hub_commit", "hub_files"]

_ADDRESS = re.compile(r"hf://datasets/(?P<repository>[^/]+/[^/@]+)@(?P<commit>[^/]+)/(?P<file>.+)")
_OFFLINE = "Without a network, download the data set and name its folder: hub:/FOLDER:CONFIG:SPLIT"


@dataclass(frozen=True, slots=True)
class HubFiles:
    """The files of one name, each with its name inside the data set, and the commit they are from (None for a folder)."""

    files: tuple[tuple[str, Path], ...]
    commit: str | None


@functools.lru_cache(maxsize=256)  # a file is looked at, then read: it must be the same one
def hub_files(path: Path) -> HubFiles:
    """Find the files of a `hub:` name, and download those that are not there.

    Raises:
        ConfigError: the name is malformed.
        DataError: no such data set, configuration, split or file, one of a kind that is not read here, or no connection.
        DmoermError: `datasets` is not installed and a split is asked for.
    """
    name = parse_hub(path)
    found = HubFiles(tuple(_one_file(path, name)), None) if name.file is not None else _split_files(path, name)
    for file, _ in found.files:
        if not file.lower().endswith(FILE_SUFFIXES):
            raise DataError(
                f"{path}: {file} cannot be read here; expected one of {', '.join(FILE_SUFFIXES)}. Convert it, or name other files."
            )
    commits = {local.parts[local.parts.index("snapshots") + 1] for _, local in found.files if not name.local}
    return HubFiles(found.files, next(iter(commits), None))


def hub_commit(path: Path) -> str | None:
    """The commit from which the rows of a `hub:` name came; None for a folder."""
    return hub_files(path).commit


def _one_file(path: Path, name: HubName) -> Iterator[tuple[str, Path]]:
    assert name.file is not None
    if not name.local:
        yield name.file, _download(path, name.repository, name.file, name.revision)
        return
    local = _folder(name) / name.file
    if not local.is_file():
        raise DataError(f"{path}: there is no file {local}.")
    yield name.file, local


def _split_files(path: Path, name: HubName) -> HubFiles:
    if importlib.util.find_spec("datasets") is None:
        raise missing_extra("datasets", "hub")
    import datasets

    try:
        place = str(_folder(name)) if name.local else name.repository
        with tempfile.TemporaryDirectory() as unused:  # it would keep lock files for data that it is never asked to prepare
            builder = datasets.load_dataset_builder(place, name.config, revision=name.revision, cache_dir=unused)
    except Exception as error:  # a dozen types of three libraries; the reason is theirs
        raise DataError(f"{path}: the data set cannot be opened ({error}). {'' if name.local else _OFFLINE}".rstrip()) from error
    splits = {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}
    wanted = name.split or ("train" if "train" in splits or len(splits) != 1 else next(iter(splits)))
    if wanted not in splits:
        raise DataError(f'{path}: there is no split "{wanted}"{did_you_mean(wanted, splits)}.')
    return HubFiles(tuple(_local(path, name, str(address)) for address in splits[wanted]), None)


def _local(path: Path, name: HubName, address: str) -> tuple[str, Path]:
    if name.local:
        return str(Path(address).resolve().relative_to(_folder(name))), Path(address)
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise DataError(f"{path}: {address} is outside the repository. Download it, and name the file.")
    return found["file"], _download(path, found["repository"], found["file"], found["commit"])


def _folder(name: HubName) -> Path:
    return Path(name.repository).expanduser().resolve()


def _download(path: Path, repository: str, file: str, revision: str | None) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(repository, file, repo_type="dataset", revision=revision))
    except Exception as error:  # as above
        raise DataError(f"{path}: {file} cannot be downloaded ({error}). {_OFFLINE}") from error
