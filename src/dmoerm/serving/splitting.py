r"""One string that a client sent becomes a prompt and a response, so that it can be routed and scored as a training row would be.

In this order:

1. the prompt that came with it, where the client sends one: the string has to contain it, and the rest is the response;
2. the chat template of the model's own tokenizer: what it writes around the contents is matched, so the contents, and with them the
   tokens, are those of training;
3. the turns of a known family of templates (`integrations/templated.py`), which the policy may have used;
4. a delimiter that the operator has set: its first occurrence, which no response can move.

Who can write control tokens into a response can move the split of 2 and 3; 1 cannot be moved. What none of them can split is judged
whole, as a response without a prompt, by the general model, and counted.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from dmoerm.data.frames import template_texts
from dmoerm.errors import DataError
from dmoerm.integrations.templated import read_prompt, read_query, read_response
from dmoerm.records import Message, Role

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Split", "Splitter"]

MOST_TURNS = 64


@dataclass(frozen=True, slots=True)
class Split:
    """A prompt and a response. `whole` says that they could not be told apart: the prompt is then empty."""

    prompt: tuple[Message, ...]
    response: str
    whole: bool = False


class Splitter:
    """Splits strings.

    Args:
        tokenizer: the model's own.
        delimiter: between prompt and response, for strings that no template wrote.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", delimiter: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._delimiter = delimiter
        # Calls of this one splitter: a template is rendered once a number of turns.
        self._pieces = lru_cache(maxsize=2 * MOST_TURNS)(self._render)

    def split(self, text: str, prompt: str | None = None) -> Split:
        """A text as prompt and response.

        Args:
            text: both, one after the other, as a chat template or a person put them.
            prompt: the beginning of it, as the client knows it.
        """
        found = self._given(text, prompt) or self._own(text) or self._family(text) or self._delimited(text)
        return found or Split((Message("user", ""),), text, whole=True)

    def _given(self, text: str, prompt: str | None) -> Split | None:
        if prompt is None or not prompt.strip():
            return None
        try:
            response = read_response(text, prompt)
            return Split(self._own_prompt(prompt) or read_prompt(prompt), response)
        except DataError:  # another prompt than the text's, or a role that nobody knows
            return None

    def _own(self, text: str) -> Split | None:
        if not self._tokenizer.chat_template:
            return None
        between = self._between()
        count = text.count(between) if between else 0
        for system in (False, True):
            if 0 < count <= MOST_TURNS and (contents := self._match(text, self._roles(count, system))):
                messages = tuple(map(Message, self._roles(count, system), contents))
                return Split(messages[:-1], contents[-1])
        return None

    def _own_prompt(self, prompt: str) -> tuple[Message, ...] | None:
        """The messages of a prompt that the own template wrote, header of the answer included or not."""
        between = self._between() if self._tokenizer.chat_template else ""
        header = between if between and prompt.endswith(between) else ""
        split = self._own(prompt.removesuffix(header) + between + "x") if between else None
        return None if split is None else split.prompt

    def _between(self) -> str:
        """What the template writes between a user's content and the assistant's; "" where it does not take two turns."""
        pieces = self._pieces(("user", "assistant"))
        return pieces[1] if pieces else ""

    def _roles(self, turns: int, system: bool) -> tuple[Role, ...]:
        pair: tuple[Role, ...] = ("user", "assistant")
        return (*(("system",) if system else ()), *pair * turns)

    def _match(self, text: str, roles: tuple[Role, ...]) -> list[str] | None:
        """The contents between the template's pieces, None where they are not all there. The last piece may be missing: a cut answer."""
        pieces = self._pieces(roles)
        if pieces is None:
            return None
        first, *others, last = pieces
        start = text.find(first) if first else 0
        if start < 0 or (text[:start].strip() and not _only_padding(text[:start], self._tokenizer)):
            return None
        contents, place = [], start + len(first)
        for piece in others:
            end = text.find(piece, place)
            if end < 0:
                return None
            contents.append(text[place:end])
            place = end + len(piece)
        rest = text[place:]
        end = rest.rfind(last.strip()) if last.strip() else -1
        if end >= 0 and _only_padding(rest[end + len(last.strip()) :], self._tokenizer):
            rest = rest[:end]
        return [*contents, rest] if rest.strip() else None

    def _render(self, roles: tuple[Role, ...]) -> tuple[str, ...] | None:
        try:
            return template_texts(self._tokenizer, roles)
        except DataError:  # a template without system messages, say
            return None

    def _family(self, text: str) -> Split | None:
        try:
            found = read_query(text)
        except DataError:
            return None
        return None if found is None else Split(*found)

    def _delimited(self, text: str) -> Split | None:
        if not self._delimiter or self._delimiter not in text:
            return None
        prompt, response = text.split(self._delimiter, 1)
        return Split((Message("user", prompt.strip()),), response.strip()) if prompt.strip() and response.strip() else None


def _only_padding(text: str, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Nothing but special tokens and white space, as batches of token ids leave them at both ends."""
    for token in tokenizer.all_special_tokens:
        text = text.replace(str(token), "")
    return not text.strip()
