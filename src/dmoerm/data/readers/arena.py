"""Arena human preferences (the 55k set): two anonymous models answer one user, who votes.

    {"prompt", "response_a", "response_b", "winner_model_a": 0 | 1, "winner_model_b", "winner_tie", "model_a"?, "model_b"?, "id"?}

Prompt and responses are lists of turns written as JSON in a string, or plain lists. In a conversation of several turns each model went on
from its own answers, so the last ones answer different conversations: they are compared only where all earlier answers are equal, and
such rows are left out, with their count, where they are not. A tie is a tie, whether both were good or both were bad.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmoerm.data.jsonl import Row
from dmoerm.data.readers.fields import check_fields, message_texts, name_field, response_text
from dmoerm.data.readers.outcome import LeftOut, comparison_of
from dmoerm.data.strict_json import parse_text
from dmoerm.errors import DataError
from dmoerm.records import Comparison, Message

__all__ = ["REQUIRED", "read_row"]

_VOTES = {"winner_model_a": (1, 2), "winner_model_b": (2, 1), "winner_tie": (1, 1)}
REQUIRED = ("prompt", "response_a", "response_b", *_VOTES)
_OPTIONAL = ("id", "category", "model_a", "model_b")


def read_row(row: Row, path: Path) -> Comparison | LeftOut:
    """One comparison of the last answers.

    Raises:
        DataError: a field is missing, misspelt or of the wrong type; the lists differ in length; not exactly one of the votes is 1.
    """
    data = row.data
    check_fields(data, REQUIRED, _OPTIONAL)
    asked, first, second = (_turns(data, name) for name in ("prompt", "response_a", "response_b"))
    ranks = _ranks(data)
    for name, turns in (("response_a", first), ("response_b", second)):
        if len(turns) != len(asked) or not asked:
            raise DataError(f'"{name}" has {len(turns)} turns and "prompt" {len(asked)}; expected as many, and at least one.')
    responses = [response_text(turns[-1], f'the last turn of "{name}"') for name, turns in (("response_a", first), ("response_b", second))]
    if first[:-1] != second[:-1]:
        return LeftOut("several turns in which the models answered differently before the last")
    prompt = [Message("user", asked[0])]
    for answer, question in zip(first, asked[1:], strict=False):
        prompt += [Message("assistant", answer), Message("user", question)]
    if not any(message.content.strip() for message in prompt):
        raise DataError('"prompt" is empty; expected what the user wrote.')
    return comparison_of(row, path, tuple(prompt), responses, ranks, authors=(name_field(data, "model_a"), name_field(data, "model_b")))


def _turns(data: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = data[name]
    if isinstance(value, str):
        try:
            value = parse_text(value)
        except DataError as error:
            raise DataError(f'"{name}" holds no list of turns: {error} Expected a JSON list of strings, as text.') from None
    return message_texts(value, f'"{name}"')


def _ranks(data: Mapping[str, Any]) -> tuple[int, int]:
    votes = []
    for name in _VOTES:
        value = data[name]
        if value not in (0, 1, "0", "1"):  # cells of a CSV file are texts
            raise DataError(f'"{name}" is {value!r}; expected 1 or 0.')
        votes.append(int(value))
    if sum(votes) != 1:
        raise DataError(f"{', '.join(_VOTES)} are {', '.join(map(str, votes))}; expected exactly one of them to be 1.")
    return list(_VOTES.values())[votes.index(1)]
