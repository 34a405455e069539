"""A folder on disk that is whole or not there: written beside its name and renamed, every file hashed, no kind that could carry code."""

import glob
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmoerm.errors import ArtifactError

__all__ = ["REFUSED_SUFFIXES", "cut_short", "file_names", "refuse_taken", "sha256_of", "written_whole"]

REFUSED_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib", ".py", ".so"})
"""Files that can carry code, or that we never write."""


def refuse_taken(folder: Path, *, marker: str, what: str, overwrite: bool) -> None:
    """Refuse a target folder that is taken.

    Args:
        folder: where something is going to be written.
        marker: the file by which a folder of ours is known.
        what: what such a folder holds: "model", "export".
        overwrite: one of ours may be replaced.

    Raises:
        ArtifactError: it holds something that is not ours, or is ours and `overwrite` is False.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / marker).is_file():
        raise ArtifactError(f"{folder} exists and holds no dmoerm {what}; nothing was written. Choose another folder.")
    if not overwrite:
        article = "an" if what[0] in "aeiou" else "a"
        raise ArtifactError(
            f"{folder} already holds {article} {what}; nothing was written. Choose another folder, or pass overwrite (--overwrite)."
        )


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into; it takes that name when the block ends well, after everything has reached the disk.

    What had the name before is deleted last. A process that is killed leaves the old folder, or the new one, or (between two renames)
    neither under that name but both beside it; `cut_short` finds them.
    """
    folder = Path(os.path.abspath(folder))  # "." has no name to put others beside
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (folder.with_name(f".{folder.name}.{word}-{os.getpid()}") for word in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        _flush(partial)
        if not folder.exists():
            partial.rename(folder)
            return
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        try:
            partial.rename(folder)
        except OSError:
            old.rename(folder)
            raise
        shutil.rmtree(old)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def cut_short(folder: Path) -> str:
    """What a killed save of `folder` left beside it, as a sentence that says what to do; "" where there is nothing."""
    advice = []
    for old in sorted(_beside(folder, "old")):
        advice.append(f"{old} is what had this name before a save was cut short: rename it to {folder.name} to have it back.")
    for partial in sorted(_beside(folder, "partial")):
        advice.append(f"{partial} is half written: delete it once no run is writing it.")
    return " ".join(advice)


def _beside(folder: Path, word: str) -> Iterator[Path]:
    return folder.parent.glob(f".{glob.escape(folder.name)}.{word}-*")


def file_names(folder: Path) -> list[str]:
    """Relative path of every file, sorted. Hidden ones (.gitattributes, what a downloader notes) are never read, so they do not count,
    unless they are of a refused kind.
    """
    found = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and (not hidden or path.suffix in REFUSED_SUFFIXES):
            found.append(name.as_posix())
    return sorted(found)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _flush(folder: Path) -> None:
    """Make files and folders durable, so that a power cut after the rename finds them whole."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir() and os.name != "posix":
            continue  # only POSIX opens folders
        handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
