"""What can be scored, out of a row: a prompt with one response, with several, or a comparison in any of our formats.

    {"prompt": str | [msg], "response": str, "id"?}
    {"prompt": str | [msg], "responses": [str | {"text"}], "id"?}
    a row of `dmoerm.data.readers.FORMATS`; its ranks and labels are not read

An empty response is no error of the row: it is a failure of that response, and the others are scored. The category of a row is not used,
since the router decides; name one for all rows where it is known.
"""

from pathlib import Path
from typing import Any

from dmoerm.data.jsonl import Row
from dmoerm.data.readers.comparisons import FORMATS
from dmoerm.data.readers.fields import check_fields, messages_field, text_field
from dmoerm.data.readers.outcome import LeftOut
from dmoerm.data.strict_json import json_type
from dmoerm.errors import DataError
from dmoerm.modeling.reward_model import ScoreRequest
from dmoerm.records import Comparison

__all__ = ["read_request", "row_id"]


def read_request(row: Row, path: Path, category: str | None = None) -> ScoreRequest:
    """The prompt and the responses of a row.

    Args:
        row: the row.
        path: its file, for messages.
        category: for every row, to skip the router.

    Raises:
        DataError: a field is missing or of the wrong type. The message reads on from "path:line: ".
    """
    data = row.data
    if "response" in data and "responses" not in data and not FORMATS["mtmc"].fits(data):  # whose "response" is a list
        check_fields(data, ("prompt", "response"))
        return ScoreRequest(messages_field(data["prompt"], '"prompt"'), (text_field(data, "response"),), category)
    if "responses" in data:
        check_fields(data, ("prompt", "responses"))
        return ScoreRequest(messages_field(data["prompt"], '"prompt"'), _responses(data["responses"]), category)
    for format in FORMATS.values():
        if format.fits(data):
            comparison = format.read_row(row, path)
            if isinstance(comparison, LeftOut):
                raise DataError(f"the row holds no comparison: {comparison.reason}.")
            assert isinstance(comparison, Comparison)  # a single rated response has "response", and was taken above
            return ScoreRequest(comparison.prompt, comparison.responses, category)
    found = ", ".join(f'"{key}"' for key in data) or "none"
    raise DataError(f'the keys are {found}; expected "prompt" with "response" or "responses", or a comparison ({", ".join(FORMATS)}).')


def row_id(row: Row, path: Path) -> str | int:
    """The id of a row as it stands there, "file:line" where it has none that can be one."""
    value = row.data.get("id")
    usable = isinstance(value, str | int) and not isinstance(value, bool) and value != ""
    return value if usable else f"{path.name}:{row.line}"  # type: ignore[return-value]


def _responses(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f'"responses" is {json_type(value) if not isinstance(value, list) else "empty"}; expected a list of strings.')
    return tuple(_text(item, number) for number, item in enumerate(value, 1))


def _text(item: object, number: int) -> str:
    text = item.get("text") if isinstance(item, dict) else item
    if not isinstance(text, str):
        raise DataError(f'"responses", item {number} is {json_type(item)}; expected a string, or an object with "text".')
    return text
