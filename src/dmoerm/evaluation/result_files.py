"""Results on disk: every JSON document that a report can show says of itself what it is, and is read strictly.

A document is `{"kind": …, "format": 1, …figures}`. Documents that were written before there was a kind are recognised by their figures
(`report_runs`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmoerm.data.strict_json import parse_object
from dmoerm.errors import DataError

__all__ = ["FORMAT", "read_document", "result_document"]

FORMAT = 1
"""Raised when a document changes in a way that an older version would misread."""

_BOM = b"\xef\xbb\xbf"


def result_document(kind: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures with the name of what they are, a key of `report_kinds.table.KINDS`."""
    return {"kind": kind, "format": FORMAT, **figures}


def read_document(path: Path) -> dict[str, Any]:
    """One JSON object from a file.

    Raises:
        DataError: it cannot be read, is no JSON object, or says that a newer version wrote it.
    """
    try:
        content = path.read_bytes().removeprefix(_BOM)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    try:
        found = parse_object(content)
    except DataError as error:
        raise DataError(f"{path}: {error}{_guess(content)}") from error
    if isinstance(found.get("kind"), str) and isinstance(found.get("format"), int) and found["format"] > FORMAT:
        raise DataError(
            f"{path}: {json.dumps(found['kind'])} of format {found['format']}; this version reads formats up to {FORMAT}. "
            "Install a newer version of dmoerm."
        )
    return found


def _guess(content: bytes) -> str:
    begin = content[:200].lstrip().lower()
    if not begin:
        return " The file is empty; give the verb --json and send its output there."
    if begin.startswith((b"<!doctype", b"<html")):
        return " This looks like a page; name the JSON that was written beside it (--json)."
    if len(content.strip().split(b"\n", 1)) == 2 and begin.startswith(b"{") and content.split(b"\n", 1)[0].rstrip().endswith(b"}"):
        return " This looks like JSON lines; a result is one JSON object."
    return " It may have been cut off: write it again."
