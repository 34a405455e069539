"""RM-Bench: three right and three wrong responses, each concise, detailed in plain text, and detailed in Markdown, in this order.

    {"prompt", "chosen": [str × 3], "rejected": [str × 3], "domain", "id"?}

One comparison of six responses, the right ones first: its nine pairs are the cells of the benchmark's matrix of styles.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmoerm.data.jsonl import Row
from dmoerm.data.readers.fields import check_fields, messages_field, name_field, response_texts
from dmoerm.data.readers.outcome import comparison_of
from dmoerm.data.strict_json import json_type
from dmoerm.errors import DataError
from dmoerm.records import Comparison

__all__ = ["REQUIRED", "misfit", "read_row"]

REQUIRED = ("prompt", "chosen", "rejected", "domain")
_OPTIONAL = ("id", "category")
_STYLES = 3


def misfit(data: Mapping[str, Any]) -> str:
    """Why a row with the required keys is of another format; "" where it is not."""
    chosen = data["chosen"]
    if isinstance(chosen, list):
        return "" if all(isinstance(item, str) for item in chosen) else '"chosen" holds messages; expected a list of strings'
    return f'"chosen" is {json_type(chosen)}; expected a list of strings'


def read_row(row: Row, path: Path) -> Comparison:
    """One comparison of six responses.

    Raises:
        DataError: a field is missing, misspelt or of the wrong type; a list has not three responses.
    """
    data = row.data
    check_fields(data, REQUIRED, _OPTIONAL)
    chosen, rejected = (response_texts(data[name], f'"{name}"') for name in ("chosen", "rejected"))
    for name, responses in (("chosen", chosen), ("rejected", rejected)):
        if len(responses) != _STYLES:
            raise DataError(f'"{name}" has {len(responses)} items; expected {_STYLES}: concise, detailed plain, detailed Markdown.')
    prompt = messages_field(data["prompt"], '"prompt"')
    return comparison_of(row, path, prompt, (*chosen, *rejected), (1,) * 3 + (2,) * 3, subset=name_field(data, "domain"))
