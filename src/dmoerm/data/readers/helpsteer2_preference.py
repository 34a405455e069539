"""HelpSteer2-Preference: two responses and how much better one of them is.

    {"prompt", "response_1", "response_2", "preference_strength": -3 … 3, "id"?, "category"?}

A negative strength prefers response 1, a positive one response 2, and 0 is a tie (the data set's card). How strong it is is not used.
"""

from pathlib import Path

from dmoerm.data.jsonl import Row
from dmoerm.data.readers.fields import check_fields, response_text, text_field
from dmoerm.data.readers.helpsteer2 import conversation
from dmoerm.data.readers.outcome import comparison_of
from dmoerm.errors import DataError
from dmoerm.records import Comparison

__all__ = ["REQUIRED", "ranks_by_strength", "read_row"]

REQUIRED = ("prompt", "response_1", "response_2", "preference_strength")
_OPTIONAL = ("id", "category")


def read_row(row: Row, path: Path) -> Comparison:
    """One comparison.

    Raises:
        DataError: a field is missing, misspelt or of the wrong type; the strength is no whole number from -3 to 3.
    """
    data = row.data
    check_fields(data, REQUIRED, _OPTIONAL)
    responses = [response_text(data[name], f'"{name}"') for name in ("response_1", "response_2")]
    ranks = ranks_by_strength(data["preference_strength"], '"preference_strength"')
    return comparison_of(row, path, conversation(text_field(data, "prompt")), responses, ranks)


def ranks_by_strength(value: object, where: str) -> tuple[int, int]:
    """The ranks of response 1 and response 2.

    Raises:
        DataError: no whole number from -3 to 3.
    """
    if type(value) is not int or not -3 <= value <= 3:
        raise DataError(f"{where} is {value!r}; expected a whole number from -3 (response 1 is much better) to 3, 0 for a tie.")
    return (1, 1) if value == 0 else (1, 2) if value < 0 else (2, 1)
