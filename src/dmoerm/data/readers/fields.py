"""Taking fields out of a row: the right type or a message that names the field, what came and the nearest known name.

Strings are handed on byte for byte. Nothing is filled in for a field that is missing or null where a value is needed.
"""

import difflib
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast, get_args

from dmoerm.data.jsonl import Row
from dmoerm.data.strict_json import json_type
from dmoerm.errors import DataError
from dmoerm.records import Message, Role

__all__ = [
    "category_field",
    "check_fields",
    "explain_missing",
    "id_field",
    "list_value",
    "margin_field",
    "message_texts",
    "messages_field",
    "name_field",
    "number_value",
    "object_value",
    "response_text",
    "response_texts",
    "sized_list",
    "source_of",
    "text_field",
]

_ROLES = cast("tuple[Role, ...]", get_args(Role))


def explain_missing(data: Mapping[str, Any], required: Collection[str]) -> str:
    """Which of the required fields are missing and what is there in their stead; "" where none is."""
    others = [key for key in data if key not in required]
    reasons = []
    for name in required:
        if name not in data:
            near = difflib.get_close_matches(name, others, n=1, cutoff=0.7)
            hint = f' (there is "{near[0]}": did you mean "{name}"?)' if near else ""
            reasons.append(f'"{name}" is missing{hint}')
    return ", ".join(reasons)


def check_fields(data: Mapping[str, Any], required: Collection[str], optional: Collection[str] = ()) -> None:
    """Refuse a row that lacks a field, or has an unknown one that is nearly an optional field that it lacks.

    Such a slip would be passed over in silence otherwise; fields that resemble no known one are bookkeeping and are left alone.

    Raises:
        DataError: naming what is there and what was meant.
    """
    missing = explain_missing(data, required)
    if missing:
        raise DataError(f"{missing}.")
    absent = [name for name in optional if name not in data]
    for key in data if absent else ():
        if key not in required and key not in optional:
            near = difflib.get_close_matches(key, absent, n=1, cutoff=0.85)
            if near:
                raise DataError(f'"{key}" is not a known field: did you mean "{near[0]}"? Rename or remove it.')


def text_field(data: Mapping[str, Any], name: str) -> str:
    """A string, empty or not, of a field that is there.

    Raises:
        DataError: not a string.
    """
    return _string(data[name], f'"{name}"')


def name_field(data: Mapping[str, Any], name: str) -> str | None:
    """An optional name; None where the field is missing or null.

    Raises:
        DataError: not a string, or a blank one.
    """
    value = data.get(name)
    if value is None:
        return None
    if not _string(value, f'"{name}"').strip():
        raise DataError(f'"{name}" is blank; expected a name, or null where there is none.')
    return cast("str", value)


def category_field(data: Mapping[str, Any]) -> str | None:
    """The task category of a row, None where it has none."""
    return name_field(data, "category")


def id_field(row: Row, path: Path) -> str:
    """The id of a row as a string; "file:line" where it has none.

    Raises:
        DataError: neither a string nor an integer, or blank.
    """
    value = row.data.get("id")
    if value is None:
        return f"{path.name}:{row.line}"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return name_field(row.data, "id") or ""


def source_of(row: Row, path: Path) -> str:
    """Path and line of a row, for messages to people."""
    return f"{path}:{row.where}"


def list_value(value: object, where: str) -> list[Any]:
    """A list of anything.

    Raises:
        DataError: another type.
    """
    if not isinstance(value, list):
        raise DataError(f"{where} is {json_type(value)}; expected a list.")
    return value


def sized_list(value: object, where: str, size: int) -> list[Any]:
    """A list with one item a response.

    Raises:
        DataError: another type or length.
    """
    items = list_value(value, where)
    if len(items) != size:
        raise DataError(f"{where} has {len(items)} items for {size} responses; expected one a response.")
    return items


def object_value(value: object, where: str) -> dict[str, Any]:
    """An object.

    Raises:
        DataError: another type.
    """
    if not isinstance(value, dict):
        raise DataError(f"{where} is {json_type(value)}; expected an object.")
    return value


def number_value(value: object, where: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number from `low` to `high`.

    Raises:
        DataError: another type, NaN, or out of range.
    """
    limits = "" if math.isinf(low) else f" from {low:g} to {high:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where} is {json_type(value)}; expected a number{limits}.")
    if not math.isfinite(value) or not low <= value <= high:
        raise DataError(f"{where} is {value}; expected a number{limits}.")
    return float(value)


def margin_field(data: Mapping[str, Any]) -> float | None:
    """The optional `margin` of a pair.

    Raises:
        DataError: neither a number nor null.
    """
    return None if data.get("margin") is None else number_value(data["margin"], '"margin"')


def response_text(value: object, where: str) -> str:
    """A response that says something.

    Raises:
        DataError: not a string, or blank.
    """
    text = _string(value, where)
    if not text.strip():
        raise DataError(f"{where} is empty; expected an assistant message.")
    return text


def response_texts(value: object, where: str, least: int = 1) -> tuple[str, ...]:
    """A list of responses that say something.

    Raises:
        DataError: no list, too few, or one of them is blank or no string.
    """
    items = list_value(value, where)
    if len(items) < least:
        raise DataError(f"{where} has {len(items)} items; expected at least {least}.")
    return tuple(response_text(item, f"{where}, item {number}") for number, item in enumerate(items, 1))


def message_texts(value: object, where: str) -> tuple[str, ...]:
    """A list of the contents of turns, which may be empty.

    Raises:
        DataError: no list, or one of them is no string.
    """
    return tuple(_string(item, f"{where}, item {number}") for number, item in enumerate(list_value(value, where), 1))


def messages_field(value: object, where: str) -> tuple[Message, ...]:
    """A conversation: a string is one user message, a list holds {"role", "content"} objects.

    Args:
        value: what the row holds.
        where: the field as a message should name it, with its quotes.

    Raises:
        DataError: another type, an empty list, a message of another shape, or nothing but blanks in all of it.
    """
    if isinstance(value, str):
        messages: tuple[Message, ...] = (Message("user", value),)
    elif isinstance(value, list):
        messages = tuple(_message(item, f"{where}, message {number}") for number, item in enumerate(value, 1))
    else:
        raise DataError(f"{where} is {json_type(value)}; expected a string or a list of messages.")
    if not any(message.content.strip() for message in messages):
        raise DataError(f"{where} is empty; expected a string or at least one message with text.")
    return messages


def _message(value: object, where: str) -> Message:
    if not isinstance(value, dict):
        raise DataError(f'{where} is {json_type(value)}; expected an object with "role" and "content".')
    if "role" not in value or "content" not in value:
        found = ", ".join(f'"{key}"' for key in value) or "no keys"
        raise DataError(f'{where} has {found}; expected "role" and "content".')
    if value["role"] not in _ROLES:
        raise DataError(f"{where} has the role {value['role']!r}; expected one of {', '.join(_ROLES)}.")
    if value.get("tool_calls"):
        raise DataError(f"{where} carries tool calls, which would be lost; write them into the content.")
    return Message(value["role"], _string(value["content"], f'"content" of {where}'))


def _string(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where} is {json_type(value)}; expected a string.")
    return value
