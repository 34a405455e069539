"""HelpSteer2: one response a row, rated from 0 to 4; rows that follow each other with the same prompt are compared.

    {"prompt", "response", "helpfulness", "correctness", "coherence", "complexity", "verbosity", "category"?}

Ranks are those of `helpfulness`, equal values are ties. The other ratings give labels under their own names, and so does helpfulness.
A higher `complexity` or `verbosity` is more of it, not better: map them to a capability only where that is what you want.
A prompt of several turns is one text with "<extra_id_1>Assistant" and "<extra_id_1>User" lines (github.com/NVIDIA/NeMo-Aligner,
examples/nlp/data/steerlm); it is read as that conversation. The comparison form of the set is in helpsteer2_preference.py.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmoerm.data.jsonl import Row
from dmoerm.data.readers.fields import category_field, check_fields, number_value, response_text, source_of, text_field
from dmoerm.data.readers.outcome import LeftOut
from dmoerm.data.readers.ratings import labels_by_rating, ranks_by_score
from dmoerm.errors import DataError
from dmoerm.records import Comparison, Message

__all__ = ["REQUIRED", "RatedResponse", "compare", "conversation", "read_row"]

_ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
REQUIRED = ("prompt", "response", *_ATTRIBUTES)
_OPTIONAL = ("category",)
_TURN = re.compile(r"\n<extra_id_1>(User|Assistant)\n")


@dataclass(frozen=True, slots=True)
class RatedResponse:
    """One row: a response that waits for others to the same prompt."""

    id: str
    prompt: tuple[Message, ...]
    response: str
    ratings: Mapping[str, float | None]
    category: str | None
    source: str


def read_row(row: Row, path: Path) -> RatedResponse:
    """One rated response.

    Raises:
        DataError: a field is missing, misspelt or of the wrong type; a rating is not from 0 to 4.
    """
    data = row.data
    check_fields(data, REQUIRED, _OPTIONAL)
    ratings = {name: None if data[name] is None else number_value(data[name], f'"{name}"', 0, 4) for name in _ATTRIBUTES}
    if ratings["helpfulness"] is None:
        raise DataError('"helpfulness" is null; expected a number from 0 to 4, by which responses are ranked.')
    return RatedResponse(
        id=f"{path.name}:{row.line}",
        prompt=conversation(text_field(data, "prompt")),
        response=response_text(data["response"], '"response"'),
        ratings=ratings,
        category=category_field(data),
        source=source_of(row, path),
    )


def compare(group: Sequence[RatedResponse]) -> Comparison | LeftOut:
    """Rows with one prompt, in order, as one comparison."""
    if len(group) < 2:
        return LeftOut("no other response to the same prompt beside it")
    first = group[0]
    ratings = {name: [row.ratings[name] for row in group] for name in _ATTRIBUTES}
    return Comparison(
        id=first.id,
        prompt=first.prompt,
        responses=tuple(row.response for row in group),
        ranks=ranks_by_score([value for value in ratings["helpfulness"] if value is not None]),
        category=first.category,
        labels=tuple(labels_by_rating(ratings)),
        authors=(None,) * len(group),
        source=first.source,
    )


def conversation(prompt: str) -> tuple[Message, ...]:
    """The turns of a prompt.

    Raises:
        DataError: no text, or turns that do not alternate from user to user.
    """
    first, *rest = _TURN.split(prompt)
    turns = [Message("user", first)]
    for speaker, content in zip(rest[::2], rest[1::2], strict=True):
        turns.append(Message("user" if speaker == "User" else "assistant", content))
    if any(turn.role != ("user", "assistant")[number % 2] for number, turn in enumerate(turns)) or turns[-1].role != "user":
        roles = ", ".join(turn.role for turn in turns)
        raise DataError(f'"prompt" holds the turns {roles}; expected user and assistant in turn, with the user first and last.')
    if not any(turn.content.strip() for turn in turns):
        raise DataError('"prompt" is empty; expected what the user wrote.')
    return tuple(turns)
