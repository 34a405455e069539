"""Prompts with a category, for the router: {"prompt": str | [msg], "category": str}; other fields are ignored."""

import os

from dmoerm.data.files import scan_file
from dmoerm.data.jsonl import MappedRows, Row, map_rows
from dmoerm.data.readers.fields import category_field, check_fields, messages_field
from dmoerm.errors import DataError
from dmoerm.records import Message

__all__ = ["map_prompts", "read_prompts"]


def read_prompts(
    path: str | os.PathLike[str], bad_rows: str = "stop", rejected_dir: str | os.PathLike[str] | None = None
) -> list[tuple[tuple[Message, ...], str]]:
    """The prompts of a file, each with its category, in order.

    Args:
        path: a file or `hub:` name, as for `read_comparisons`.
        bad_rows: "stop" raises an error that lists the first bad rows, "skip" leaves them out.
        rejected_dir: folder for `<stem>.rejected.jsonl` with the skipped rows; None writes nothing.

    Raises:
        DataError: as `read_comparisons`.
    """
    return map_prompts(path, bad_rows, rejected_dir).items


def map_prompts(
    path: str | os.PathLike[str], bad_rows: str = "stop", rejected_dir: str | os.PathLike[str] | None = None
) -> MappedRows[tuple[tuple[Message, ...], str]]:
    """The same with the number of rows and of those that were skipped.

    Raises:
        DataError: as `read_comparisons`.
    """
    return map_rows(path, _prompt, bad_rows, rejected_dir, scan_file)


def _prompt(row: Row) -> tuple[tuple[Message, ...], str]:
    check_fields(row.data, ("prompt", "category"))
    prompt = messages_field(row.data["prompt"], '"prompt"')
    category = category_field(row.data)
    if category is None:
        raise DataError('"category" is null; expected the name of a category.')
    return prompt, category
