"""HelpSteer3, its preference part: a conversation, two responses and how much better one of them is.

    {"context": [msg], "response1", "response2", "overall_preference": -3 … 3, "id"?, "category"?}

As in HelpSteer2, a negative preference is for response 1. `individual_preference` (the single annotators) and `domain` are not used.
"""

from pathlib import Path

from dmoerm.data.jsonl import Row
from dmoerm.data.readers.fields import check_fields, messages_field, response_text
from dmoerm.data.readers.helpsteer2_preference import ranks_by_strength
from dmoerm.data.readers.outcome import comparison_of
from dmoerm.records import Comparison

__all__ = ["REQUIRED", "read_row"]

REQUIRED = ("context", "response1", "response2", "overall_preference")
_OPTIONAL = ("id", "category")


def read_row(row: Row, path: Path) -> Comparison:
    """One comparison.

    Raises:
        DataError: a field is missing, misspelt or of the wrong type; the preference is no whole number from -3 to 3.
    """
    data = row.data
    check_fields(data, REQUIRED, _OPTIONAL)
    responses = [response_text(data[name], f'"{name}"') for name in ("response1", "response2")]
    ranks = ranks_by_strength(data["overall_preference"], '"overall_preference"')
    return comparison_of(row, path, messages_field(data["context"], '"context"'), responses, ranks)
