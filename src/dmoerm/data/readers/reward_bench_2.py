"""RewardBench 2: one prompt with right responses and wrong ones, usually one and three.

    {"prompt", "chosen": [str], "rejected": [str], "num_correct", "total_completions", "subset"?, "id"?}

One comparison: rank 1 for every right response, rank 2 for every wrong one, the right ones first.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmoerm.data.jsonl import Row
from dmoerm.data.readers.fields import check_fields, messages_field, name_field, response_texts
from dmoerm.data.readers.outcome import comparison_of
from dmoerm.errors import DataError
from dmoerm.records import Comparison

__all__ = ["REQUIRED", "read_row"]

REQUIRED = ("prompt", "chosen", "rejected", "num_correct", "total_completions")
_OPTIONAL = ("id", "category", "subset")


def read_row(row: Row, path: Path) -> Comparison:
    """One comparison over all completions.

    Raises:
        DataError: a field is missing, misspelt or of the wrong type; the two numbers are not those of the lists.
    """
    data = row.data
    check_fields(data, REQUIRED, _OPTIONAL)
    chosen, rejected = (response_texts(data[name], f'"{name}"') for name in ("chosen", "rejected"))
    _check_count(data, "num_correct", len(chosen), '"chosen"')
    _check_count(data, "total_completions", len(chosen) + len(rejected), '"chosen" and "rejected" together')
    prompt = messages_field(data["prompt"], '"prompt"')
    ranks = (1,) * len(chosen) + (2,) * len(rejected)
    return comparison_of(row, path, prompt, (*chosen, *rejected), ranks, subset=name_field(data, "subset"))


def _check_count(data: Mapping[str, Any], name: str, count: int, lists: str) -> None:
    if data[name] != count:
        raise DataError(f'"{name}" is {data[name]!r}, but {lists} hold {count}; expected the same number. Fix the row.')
