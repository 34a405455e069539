r"""Conversations written as one text with "\n\nHuman: " and "\n\nAssistant: " before the turns, as in Anthropic's hh-rlhf.

Both transcripts of a row share the conversation up to the last "\n\nAssistant:" that they have in common; what follows it are the two
responses. One space after a marker belongs to the marker; everything else stays as it is.
"""

import re

from dmoerm.data.readers.fields import response_text
from dmoerm.errors import DataError
from dmoerm.records import Message

__all__ = ["split_transcripts"]

_REPLY = "\n\nAssistant:"
_TURN = re.compile(r"\n\n(Human|Assistant):")


def split_transcripts(chosen: str, rejected: str) -> tuple[tuple[Message, ...], str, str]:
    """The common conversation and the two replies to it.

    Raises:
        DataError: there is no common "Assistant:" turn, the text does not begin with a turn, or the two differ before the last turn.
    """
    shared = chosen[: _common_length(chosen, rejected)]
    end = shared.rfind(_REPLY)
    if end < 0:
        raise DataError(
            '"prompt" is missing, and "chosen" and "rejected" are plain texts without a common "\\n\\nAssistant:" turn, so nothing says '
            'where the prompt ends. Add "prompt", or write both as lists of messages.'
        )
    start = end + len(_REPLY)
    return _conversation(shared[:end]), _reply(chosen[start:], '"chosen"'), _reply(rejected[start:], '"rejected"')


def _common_length(first: str, second: str) -> int:
    # Halving compares slices, which is far quicker than going through the characters.
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle - 1)
    return low


def _reply(text: str, where: str) -> str:
    if _TURN.search(text):
        raise DataError(
            f'{where} has more turns after the point where the two part; expected them to differ in the last "Assistant:" turn.'
        )
    return response_text(text.removeprefix(" "), where)


def _conversation(text: str) -> tuple[Message, ...]:
    head, *parts = _TURN.split(text)
    if head or not parts:
        raise DataError('the transcript does not begin with "\\n\\nHuman:"; expected turns only.')
    turns = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message("user" if speaker == "Human" else "assistant", content.removeprefix(" ")) for speaker, content in turns)
