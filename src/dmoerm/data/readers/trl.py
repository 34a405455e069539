r"""TRL preference rows, explicit and implicit prompt, strings and message lists.

    {"prompt": str | [msg], "chosen": str | [msg], "rejected": str | [msg]}       explicit
    {"chosen": [msg], "rejected": [msg]}                                          implicit: the leading messages are the prompt
    {"chosen": "\n\nHuman: …\n\nAssistant: …", "rejected": …}                    implicit, as transcripts (see transcripts.py)
    optional: id, category, chosen_model, rejected_model, margin (a number); all other columns are ignored

The defaults of OpenRLHF (`chosen`, `rejected`, `prompt`, `margin`) and the generic rows of RewardBench are the same.

Two plain texts without a prompt do not say where the prompt ends (responses may begin alike), so they are refused.
"""

from pathlib import Path

from dmoerm.data.jsonl import Row
from dmoerm.data.readers.fields import (
    category_field,
    check_fields,
    id_field,
    margin_field,
    messages_field,
    name_field,
    response_text,
    source_of,
)
from dmoerm.data.readers.transcripts import split_transcripts
from dmoerm.data.strict_json import json_type
from dmoerm.errors import DataError
from dmoerm.records import Comparison, Message

__all__ = ["OPTIONAL", "REQUIRED", "read_row", "split_conversations"]

REQUIRED = ("chosen", "rejected")
OPTIONAL = ("prompt", "id", "category", "chosen_model", "rejected_model", "margin")

Split = tuple[tuple[Message, ...], str, str]


def read_row(row: Row, path: Path) -> Comparison:
    """One comparison of a TRL row, the chosen response first.

    Raises:
        DataError: a field is missing, misspelt or of the wrong type; the prompt cannot be told from the responses.
    """
    data = row.data
    check_fields(data, REQUIRED, OPTIONAL)
    chosen, rejected = data["chosen"], data["rejected"]
    if data.get("prompt") is not None:
        prompt = messages_field(data["prompt"], '"prompt"')
        first, second = _reply(chosen, '"chosen"', prompt), _reply(rejected, '"rejected"', prompt)
    else:
        prompt, first, second = _implicit(chosen, rejected)
    return Comparison(
        id=id_field(row, path),
        prompt=prompt,
        responses=(first, second),
        ranks=(1, 2),
        category=category_field(data),
        authors=(name_field(data, "chosen_model"), name_field(data, "rejected_model")),
        source=source_of(row, path),
        margin=margin_field(data),
    )


def _reply(value: object, where: str, prompt: tuple[Message, ...]) -> str:
    if isinstance(value, str):
        return response_text(value, where)
    messages = messages_field(value, where)
    # Some sets give the prompt and repeat it at the head of both conversations.
    if messages[: len(prompt)] == prompt:
        messages = messages[len(prompt) :]
    if len(messages) != 1 or messages[0].role != "assistant":
        roles = ", ".join(message.role for message in messages) or "nothing"
        raise DataError(f"{where} holds {roles} after the prompt; expected one assistant message.")
    return response_text(messages[0].content, where)


def _implicit(chosen: object, rejected: object) -> Split:
    if isinstance(chosen, str) and isinstance(rejected, str):
        return split_transcripts(chosen, rejected)
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        kinds = f'"chosen" is {json_type(chosen)}, "rejected" is {json_type(rejected)}'
        raise DataError(f"{kinds}; expected two strings or two lists of messages.")
    return split_conversations(chosen, rejected, ('"chosen"', '"rejected"'))


def split_conversations(chosen: object, rejected: object, where: tuple[str, str]) -> Split:
    """The common conversation of two lists of messages and the two replies to it.

    Raises:
        DataError: they share not all messages but the last, or the last is not the assistant's.
    """
    first, second = messages_field(chosen, where[0]), messages_field(rejected, where[1])
    if len(first) < 2 or first[:-1] != second[:-1]:
        raise DataError(f"{where[0]} and {where[1]} do not share all messages but the last; expected one prompt and two replies to it.")
    return first[:-1], _reply(chosen, where[0], first[:-1]), _reply(rejected, where[1], first[:-1])
