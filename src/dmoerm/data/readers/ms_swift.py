"""ms-swift: a conversation that ends with the preferred reply, and what stands in its place in the other one.

{"messages": [msg], "rejected_response": str | "rejected_messages": [msg], "margin"?: number, "id"?, "category"?}
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmoerm.data.jsonl import Row
from dmoerm.data.readers.fields import check_fields, margin_field, messages_field, response_text
from dmoerm.data.readers.outcome import comparison_of
from dmoerm.data.readers.trl import split_conversations
from dmoerm.errors import DataError
from dmoerm.records import Comparison

__all__ = ["REQUIRED", "misfit", "read_row"]

REQUIRED = ("messages",)
_OTHERS = ("rejected_response", "rejected_messages")
_OPTIONAL = (*_OTHERS, "margin", "id", "category")


def misfit(data: Mapping[str, Any]) -> str:
    """Why a row with the required keys is of another format; "" where it is not."""
    return "" if any(data.get(name) is not None for name in _OTHERS) else '"rejected_response" or "rejected_messages" is missing'


def read_row(row: Row, path: Path) -> Comparison:
    """One comparison, the preferred reply first.

    Raises:
        DataError: a field is missing, misspelt or of the wrong type; the two conversations part before their last message.
    """
    data = row.data
    check_fields(data, REQUIRED, _OPTIONAL)
    given = [name for name in _OTHERS if data.get(name) is not None]
    if len(given) != 1:
        raise DataError(f'"rejected_response" and "rejected_messages" are {"both" if given else "not"} there; expected one of them.')
    if given == ["rejected_messages"]:
        prompt, first, second = split_conversations(data["messages"], data["rejected_messages"], ('"messages"', '"rejected_messages"'))
    else:
        messages = messages_field(data["messages"], '"messages"')
        if len(messages) < 2 or messages[-1].role != "assistant":
            raise DataError('"messages" does not end with a reply of the assistant after a prompt; expected the preferred one there.')
        prompt, first = messages[:-1], response_text(messages[-1].content, 'the last of "messages"')
        second = response_text(data["rejected_response"], '"rejected_response"')
    return comparison_of(row, path, prompt, (first, second), (1, 2), margin=margin_field(data))
