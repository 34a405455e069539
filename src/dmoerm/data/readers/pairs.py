"""Two numbered responses and which one people preferred.

    {"prompt", "response_1", "response_2", "preference": 1 | 2 | 0, "id"?, "category"?}

0 is a tie.
"""

from pathlib import Path

from dmoerm.data.jsonl import Row
from dmoerm.data.readers.fields import (
    category_field,
    check_fields,
    id_field,
    messages_field,
    response_text,
    source_of,
)
from dmoerm.errors import DataError
from dmoerm.records import Comparison

__all__ = ["OPTIONAL", "REQUIRED", "read_row"]

REQUIRED = ("prompt", "response_1", "response_2", "preference")
OPTIONAL = ("id", "category")

_RANKS = {1: (1, 2), 2: (2, 1), 0: (1, 1)}


def read_row(row: Row, path: Path) -> Comparison:
    """One comparison of a row with `response_1`, `response_2` and `preference`.

    Raises:
        DataError: a field is missing, misspelt or of the wrong type.
    """
    data = row.data
    check_fields(data, REQUIRED, OPTIONAL)
    preference = data["preference"]
    if type(preference) is not int or preference not in _RANKS:
        raise DataError(f'"preference" is {preference!r}; expected 1 (response_1 is better), 2, or 0 for a tie.')
    return Comparison(
        id=id_field(row, path),
        prompt=messages_field(data["prompt"], '"prompt"'),
        responses=tuple(response_text(data[name], f'"{name}"') for name in ("response_1", "response_2")),
        ranks=_RANKS[preference],
        category=category_field(data),
        authors=(None, None),
        source=source_of(row, path),
    )
