"""LLaMA-Factory's sharegpt form of preferences.

    {"conversations": [{"from", "value"}], "chosen": {"from", "value"}, "rejected": {"from", "value"}, "system"?, "id"?, "category"?}

`from` is human, gpt, system, observation (the reply of a tool) or function_call (what the assistant writes to call one).
"""

from pathlib import Path
from typing import Any

from dmoerm.data.jsonl import Row
from dmoerm.data.readers.fields import check_fields, list_value, object_value, response_text, text_field
from dmoerm.data.readers.outcome import comparison_of
from dmoerm.errors import DataError
from dmoerm.records import Comparison, Message, Role

__all__ = ["REQUIRED", "read_row"]

REQUIRED = ("conversations", "chosen", "rejected")
_OPTIONAL = ("system", "id", "category")
_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system", "observation": "tool", "function_call": "assistant"}


def read_row(row: Row, path: Path) -> Comparison:
    """One comparison, the chosen response first.

    Raises:
        DataError: a field is missing, misspelt or of the wrong type; an unknown speaker.
    """
    data = row.data
    check_fields(data, REQUIRED, _OPTIONAL)
    turns = list_value(data["conversations"], '"conversations"')
    prompt = [_message(item, f'"conversations", item {number}') for number, item in enumerate(turns, 1)]
    if not any(message.content.strip() for message in prompt):
        raise DataError('"conversations" is empty; expected at least one message with text.')
    if data.get("system"):
        prompt.insert(0, Message("system", text_field(data, "system")))
    return comparison_of(row, path, tuple(prompt), [_reply(data[name], f'"{name}"') for name in ("chosen", "rejected")], (1, 2))


def _reply(value: Any, where: str) -> str:
    message = _message(value, where)
    if message.role != "assistant":
        raise DataError(f"{where} is from {value['from']!r}; expected gpt.")
    return response_text(message.content, f'"value" of {where}')


def _message(value: Any, where: str) -> Message:
    data = object_value(value, where)
    check_fields(data, ("from", "value"))
    speaker = data["from"]
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise DataError(f'"from" of {where} is {speaker!r}; expected one of {", ".join(_ROLES)}.')
    return Message(_ROLES[speaker], text_field(data, "value"))
