"""JudgeBench: one question, two responses of one model, and which of them is right.

    {"question", "response_A", "response_B", "label": "A>B" | "B>A", "pair_id"?, "source"?, "response_model"?}

`source` becomes the subset.
"""

from pathlib import Path

from dmoerm.data.jsonl import Row
from dmoerm.data.readers.fields import check_fields, messages_field, name_field, response_text
from dmoerm.data.readers.outcome import comparison_of
from dmoerm.errors import DataError
from dmoerm.records import Comparison

__all__ = ["REQUIRED", "read_row"]

REQUIRED = ("question", "response_A", "response_B", "label")
_OPTIONAL = ("pair_id", "id", "category", "source", "response_model")
_RANKS = {"A>B": (1, 2), "B>A": (2, 1)}


def read_row(row: Row, path: Path) -> Comparison:
    """One comparison.

    Raises:
        DataError: a field is missing, misspelt or of the wrong type; another label.
    """
    data = row.data
    check_fields(data, REQUIRED, _OPTIONAL)
    label = data["label"]
    if not isinstance(label, str) or label not in _RANKS:
        raise DataError(f'"label" is {label!r}; expected "A>B" or "B>A".')
    return comparison_of(
        row,
        path,
        messages_field(data["question"], '"question"'),
        [response_text(data[name], f'"{name}"') for name in ("response_A", "response_B")],
        _RANKS[label],
        id=name_field(data, "pair_id"),
        authors=(name_field(data, "response_model"),) * 2,
        subset=name_field(data, "source"),
    )
