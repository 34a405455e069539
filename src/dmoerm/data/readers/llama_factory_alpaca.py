"""LLaMA-Factory's alpaca form of preferences.

    {"instruction", "input"?, "chosen", "rejected", "system"?, "history"?: [[user, assistant]], "id"?, "category"?}

The user's message is the instruction and, where it is not empty, the input on the next line, as LLaMA-Factory joins them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmoerm.data.jsonl import Row
from dmoerm.data.readers.fields import check_fields, list_value, message_texts, response_text, text_field
from dmoerm.data.readers.outcome import comparison_of
from dmoerm.errors import DataError
from dmoerm.records import Comparison, Message

__all__ = ["REQUIRED", "misfit", "read_row"]

REQUIRED = ("instruction", "chosen", "rejected")
_OPTIONAL = ("input", "system", "history", "id", "category")


def misfit(data: Mapping[str, Any]) -> str:
    """Why a row with the required keys is of another format; "" where it is not."""
    return "" if data.get("prompt") is None else '"prompt" is there, which this format does not have'


def read_row(row: Row, path: Path) -> Comparison:
    """One comparison, the chosen response first.

    Raises:
        DataError: a field is missing, misspelt or of the wrong type.
    """
    data = row.data
    check_fields(data, REQUIRED, _OPTIONAL)
    responses = [response_text(data[name], f'"{name}"') for name in ("chosen", "rejected")]
    return comparison_of(row, path, _prompt(data), responses, (1, 2))


def _prompt(data: Mapping[str, Any]) -> tuple[Message, ...]:
    messages = []
    if data.get("system"):
        messages.append(Message("system", text_field(data, "system")))
    history = [] if data.get("history") is None else list_value(data["history"], '"history"')
    for number, turn in enumerate(history, 1):
        texts = message_texts(turn, f'"history", item {number}')
        if len(texts) != 2:
            raise DataError(f'"history", item {number} has {len(texts)} texts; expected two, of the user and of the assistant.')
        messages += [Message("user", texts[0]), Message("assistant", texts[1])]
    asked = text_field(data, "instruction")
    more = "" if data.get("input") is None else text_field(data, "input")
    if not (asked + more).strip():
        raise DataError('"instruction" is empty; expected what the user wrote.')
    return (*messages, Message("user", f"{asked}\n{more}" if more else asked))
