r"""A prompt that a trainer has already put through a chat template, read back as a conversation, so that the router sees what people wrote.

The control tokens of a family say which template it was; a text without any is one user message. What stands behind the last whole turn is
the header of the answer to come and is dropped. Content that itself holds control tokens is read as the template's, as its model would.

Source: the chat templates that ship with the models named in `TEMPLATES`.
"""

import re
from collections.abc import Mapping

from dmoerm.errors import DataError
from dmoerm.records import Message, Role

__all__ = ["TEMPLATES", "read_prompt", "read_query", "read_response"]

TEMPLATES: Mapping[str, re.Pattern[str]] = {
    "ChatML (Qwen, Yi …)": re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL),
    "Llama 3": re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\s*(.*?)<\|eot_id\|>", re.DOTALL),
    "Gemma": re.compile(r"<start_of_turn>(\w+)\n(.*?)<end_of_turn>", re.DOTALL),
    "Phi-3, Zephyr": re.compile(r"<\|(system|user|assistant)\|>\n?(.*?)(?:<\|end\|>|</s>|<\|endoftext\|>)", re.DOTALL),
}
"""Family to the pattern of one turn: role, then content. A new family is a row."""

_TURN_ENDS = {"ChatML (Qwen, Yi …)": "<|im_end|>", "Llama 3": "<|eot_id|>", "Gemma": "<end_of_turn>", "Phi-3, Zephyr": "<|end|>"}
_MISTRAL = re.compile(r"\[INST\](.*?)\[/INST\](?:(.*?)</s>)?", re.DOTALL)
_ROLES: Mapping[str, Role] = {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool", "model": "assistant"}
_BEGINNINGS = ("<|begin_of_text|>", "<bos>", "<s>", "<|endoftext|>")
_ENDS = re.compile(r"(?:\s*(?:<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|<\|end\|>|<\|endoftext\|>|<\|end_of_text\|>|</s>|<eos>|<pad>))+\s*$")


def read_prompt(text: str) -> tuple[Message, ...]:
    """The conversation that a templated prompt was made of.

    Raises:
        DataError: control tokens with a role that is unknown.
    """
    for family, pattern in TEMPLATES.items():
        turns = pattern.findall(text)
        if turns:
            return tuple(Message(_role(role, family), content.strip()) for role, content in turns)
    turns = _MISTRAL.findall(text)
    if turns:
        pairs = [Message(role, part.strip()) for turn in turns for role, part in zip(("user", "assistant"), turn, strict=True)]  # type: ignore[arg-type]
        return tuple(message for message in pairs if message.content)
    for beginning in _BEGINNINGS:
        text = text.removeprefix(beginning)
    return (Message("user", text.strip()),)


def read_query(query: str) -> tuple[tuple[Message, ...], str] | None:
    """Prompt and response out of one templated text whose last turn is the answer, with or without its end; None where it is no such text.

    The text has to begin with a turn, so that an answer which only quotes control tokens is not taken apart.

    Raises:
        DataError: control tokens with a role that is unknown.
    """
    text = query.strip()
    for beginning in _BEGINNINGS:
        while text.startswith(beginning):
            text = text.removeprefix(beginning).lstrip()
    body = _ENDS.sub("", text)
    for family, pattern in TEMPLATES.items():
        if pattern.match(text) is None:
            continue
        turns = [Message(_role(role, family), content.strip()) for role, content in pattern.findall(body + _TURN_ENDS[family])]
        return _last_answer(turns)
    if _MISTRAL.match(text) is None:
        return None
    pairs: list[Message] = []
    for asked, answered in _MISTRAL.findall(body + "</s>"):
        pairs += [Message("user", asked.strip()), Message("assistant", answered.strip())]
    return _last_answer(pairs)


def _last_answer(turns: list[Message]) -> tuple[tuple[Message, ...], str] | None:
    if len(turns) < 2 or turns[-1].role != "assistant" or not turns[-1].content:
        return None
    return tuple(turns[:-1]), turns[-1].content


def read_response(query: str, prompt: str) -> str:
    """What a query says behind its prompt, without the control tokens at its end.

    Raises:
        DataError: the query does not hold the prompt.
    """
    start = query.find(prompt)
    if start < 0:
        raise DataError(
            f"the query does not contain its prompt (query {query[:60]!r} …, prompt {prompt[:60]!r} …); expected prompt and response joined"
        )
    return _ENDS.sub("", query[start + len(prompt) :])


def _role(name: str, family: str) -> Role:
    if name not in _ROLES:
        raise DataError(f"the prompt has a turn of {name!r} ({family}); expected {', '.join(_ROLES)}")
    return _ROLES[name]
