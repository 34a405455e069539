"""Names of data in a recipe: a file, or a part of a data set in the layout of the Hugging Face Hub.

    data/train.jsonl                            a file
    hub:ORG/NAME                                the split "train" (or the only one) of the default configuration
    hub:ORG/NAME:CONFIG:SPLIT                   a split of a configuration; either may be left empty
    hub:ORG/NAME:folder/train.jsonl.gz          one file of the repository
    hub:ORG/NAME@REVISION…                      the same at a branch, a tag or (best) a commit
    hub:./folder…  hub:/folder…                 a folder that holds such a data set, without a network

A name of the second kind travels as a `Path` like any other, so that every list of files can hold it. Nothing is opened here.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from dmoerm.errors import ConfigError

__all__ = ["FILE_SUFFIXES", "HUB", "HubName", "absolute_location", "is_hub", "parse_hub"]

HUB = "hub:"
FILE_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".csv")
"""Names of files that hold rows."""

_REPOSITORY = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:@\s]+))?")


@dataclass(frozen=True, slots=True)
class HubName:
    """A name that begins with `hub:`, taken apart.

    Attributes:
        repository: ORG/NAME, or the path of a folder.
        local: True for a folder.
        revision: branch, tag or commit; None for the newest, and for a folder.
        config: configuration; None for the default one.
        split: None for "train" or the only one.
        file: one file of the repository instead of a split.
    """

    repository: str
    local: bool
    revision: str | None = None
    config: str | None = None
    split: str | None = None
    file: str | None = None


def is_hub(path: Path | str) -> bool:
    """True for a name that begins with `hub:`."""
    return _text(path).startswith(HUB)


def parse_hub(path: Path | str) -> HubName:
    """Take a `hub:` name apart.

    Raises:
        ConfigError: it is none of the forms above.
    """
    name, *parts = _text(path).removeprefix(HUB).split(":")
    local = name.startswith((".", "/", "~"))
    found = None if local else _REPOSITORY.fullmatch(name)
    if not name or len(parts) > 2 or not (local or found):
        raise ConfigError(
            f'"{path}" names no data set; expected hub:ORG/NAME, hub:ORG/NAME@REVISION:CONFIG:SPLIT, '
            "hub:ORG/NAME:FILE.jsonl or hub:./FOLDER"
        )
    revision = found["revision"] if found else None
    repository = found["repository"] if found else name
    if len(parts) == 1 and parts[0].lower().endswith(FILE_SUFFIXES):
        return HubName(repository, local, revision, file=parts[0])
    config, split = (*(part or None for part in parts), None, None)[:2]
    return HubName(repository, local, revision, config, split)


def absolute_location(path: Path, folder: Path) -> Path:
    """The same file, or `hub:` folder, from the root; relative ones start at `folder`. A repository stays as it is."""
    if not is_hub(path):
        return Path(os.path.normpath(folder / path.expanduser()))
    name, colon, rest = _text(path).removeprefix(HUB).partition(":")
    if not name.startswith((".", "/", "~")):
        return path
    return Path(f"{HUB}{os.path.normpath(folder / Path(name).expanduser())}{colon}{rest}")


def _text(path: Path | str) -> str:
    return path.as_posix() if isinstance(path, Path) else path
