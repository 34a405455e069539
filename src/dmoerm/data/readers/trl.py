r"""TRL preference rows, explicit and implicit prompt, strings and message lists.

    {"prompt": str | [msg], "chosen": str | [msg], "rejected": str | [msg]}       explicit
    {"chosen": [msg], "rejected": [msg]}                                          implicit: the leading messages are the prompt
    {"chosen": "\n\nHuman: …\n\nAssistant: …", "rejected": …}                    implicit, as transcripts (see transcripts.py)
    optional: id, category, chosen_model, rejected_model; `margin` and all other columns are ignored

Two plain texts without a prompt do not say where the prompt ends (responses may begin alike), so they are refused.
"""

from pathlib import Path

from dmoerm.data.jsonl import Row
from dmoerm.data.readers.fields import (
    category_field,
    check_fields,
    id_field,
    messages_field,
    name_field,
    response_text,
    source_of,
)
from dmoerm.data.readers.transcripts import split_transcripts
from dmoerm.data.strict_json import json_type
from dmoerm.errors import DataError
from dmoerm.records import Comparison, Message

__all__ = ["OPTIONAL", "REQUIRED", "read_row"]

REQUIRED = ("chosen", "rejected")
OPTIONAL = ("prompt", "id", "category", "chosen_model", "rejected_model")

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
    first, second = messages_field(chosen, '"chosen"'), messages_field(rejected, '"rejected"')
    if len(first) < 2 or first[:-1] != second[:-1]:
        raise DataError('"chosen" and "rejected" do not share all messages but the last; expected one prompt and two replies to it.')
    return first[:-1], _reply(chosen, '"chosen"', first[:-1]), _reply(rejected, '"rejected"', first[:-1])
