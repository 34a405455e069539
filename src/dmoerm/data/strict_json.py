"""One JSON object from bytes, strictly: what `json.loads` lets pass or repairs is refused.

Refused: bytes that are not UTF-8, broken JSON, anything but an object, a key that comes twice, NaN, Infinity and numbers that overflow,
an unpaired surrogate (tokenizers, SQLite and HTTP clients break on it), a NUL, nesting deeper than `MAX_DEPTH`.
"""

import datetime
import json
import math
import re
from typing import Any, NoReturn

from dmoerm.errors import DataError

__all__ = ["MAX_DEPTH", "check_value", "json_type", "parse_object", "parse_text"]

MAX_DEPTH = 64
"""Objects and arrays within each other. Preference data needs about five; the C parser gives up near a thousand."""

_UNUSABLE = re.compile("[\x00\ud800-\udfff]")
_NAMES = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
    bytes: "binary",  # Parquet knows more types than JSON
    datetime.datetime: "a time stamp",
    datetime.date: "a date",
}


def json_type(value: object) -> str:
    """The name of a JSON type as people say it, with its article."""
    return _NAMES.get(type(value), type(value).__name__)


def parse_object(content: bytes, offset: int = 0) -> dict[str, Any]:
    """One JSON object.

    Args:
        content: UTF-8 without a byte order mark.
        offset: where `content` begins in its file, for messages.

    Raises:
        DataError: anything that the head of this file names; the message says what, and where in the content.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise DataError(f"not UTF-8: byte 0x{byte:02x} at byte offset {offset + error.start} of the file ({error.reason}).") from None
    data = _loads(text)
    if not isinstance(data, dict):
        raise DataError(f"expected an object, got {json_type(data)}.")
    # Only an escape can bring in a surrogate or a NUL, and only brackets can nest: most rows need no walk.
    if b"\\u" in content or content.count(b"{") + content.count(b"[") > MAX_DEPTH:
        check_value(data)
    return data


def parse_text(text: str) -> Any:
    """Any JSON value out of a text, with the same strictness.

    Raises:
        DataError: anything that the head of this file names, but that a value of any type is taken.
    """
    value = _loads(text)
    check_value(value)
    return value


def check_value(value: object) -> None:
    """Refuse what no tokenizer or database takes, in a value that another reader made.

    Raises:
        DataError: a string holds a NUL or an unpaired surrogate, or the value is nested too deep.
    """
    _check(value, 1)


def _loads(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise DataError(f"not valid JSON ({error.msg}: {line}column {error.colno}).") from None
    except RecursionError:
        raise DataError(f"nested deeper than {MAX_DEPTH} levels.") from None
    except DataError:
        raise
    except ValueError as error:  # an integer with thousands of digits
        raise DataError(f"not usable JSON ({error}).") from None


def _check(value: object, depth: int) -> None:
    if isinstance(value, str):
        found = _UNUSABLE.search(value)
        if found:
            name = "a NUL character" if found[0] == "\x00" else f"the unpaired surrogate \\u{ord(found[0]):04x}"
            raise DataError(f"a string holds {name} at character {found.start() + 1}; no tokenizer or database takes it.")
        return
    if depth > MAX_DEPTH and isinstance(value, dict | list):
        raise DataError(f"nested deeper than {MAX_DEPTH} levels.")
    if isinstance(value, dict):
        for key, item in value.items():
            _check(key, depth)
            _check(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth + 1)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DataError(f"the key {twice!r} comes twice in one object.")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise DataError(f"{name} is not a JSON number.")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise DataError(f"the number {text[:40]} is too large.")
    return number
