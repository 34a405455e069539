"""Conversation to token ids: the one place for it, so that training and scoring cannot differ.

What stands around the contents comes from frames.py. Contents are tokenised beside it, as plain text: nothing that a person or a model
wrote becomes a control token, be it "<|im_end|>" in a chat or "</s>" in the vocabulary of a Unigram model. So ids equal those of
`tokenizer.apply_chat_template` wherever contents hold no control token and no token would have spanned the border between template and
content; true of templates that end their headers with a control token or a line break, unless a content begins with white space that
they keep. No special tokens are added beyond the frame, and there is no generation prompt: the ids end where the template ends the turn.

One budget of tokens holds a prompt and a response. All responses of a comparison see the same cut prompt. With `room` the budget less
the frame, P the tokens of the prompt and R those of the longest response:

- P + R <= room: nothing is cut;
- else the prompt keeps max(room // 2, room - R) tokens if it has as many, and every response keeps at most what is left.

So a short prompt is never cut for a long response, nor a short response for a long prompt; where both are long, each gets half. The
longest message of the prompt loses its middle, down to `MIN_KEPT` tokens; what is still too much comes off the next longest, likewise
(and where `MIN_KEPT` of each are still too many, off what was kept, the longest message first). A response loses its end. As R is the
longest of the responses given together, a prompt that is cut may be cut otherwise when one of them is scored alone.
"""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dmoerm.data.frames import Frame, build_frame, frame_kind, template_text
from dmoerm.errors import ConfigError, DataError
from dmoerm.records import Message

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

__all__ = ["RULES_VERSION", "RenderCounts", "Rendered", "Renderer", "collate", "count_rendered", "drop_reason"]

RULES_VERSION = 1
"""Raised with every change that can change ids: a saved model refuses other rules than its own."""
MIN_KEPT = 8
"""Tokens that a cut message keeps while another one can be cut instead."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """One prompt with one response (or none) as a model reads it.

    Attributes:
        input_ids: at most `max_length_tokens`, at least one.
        token_type_ids: 0 up to the separator after the prompt, then 1; None for tokenizers that make none.
        truncated_prompt: the prompt lost tokens.
        truncated_response: the response lost tokens.
        response_start: index of the first token of the response; the length of `input_ids` where there is no response.
    """

    input_ids: tuple[int, ...]
    token_type_ids: tuple[int, ...] | None
    truncated_prompt: bool
    truncated_response: bool
    response_start: int


@dataclass(frozen=True, slots=True)
class RenderCounts:
    """What became of the responses.

    Attributes:
        kept: rendered, some of them cut.
        truncated_prompt: of those, how many have a cut prompt.
        truncated_response: of those, how many are cut themselves.
        dropped: left out, by reason.
    """

    kept: int = 0
    truncated_prompt: int = 0
    truncated_response: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: "RenderCounts") -> "RenderCounts":
        return RenderCounts(
            self.kept + other.kept,
            self.truncated_prompt + other.truncated_prompt,
            self.truncated_response + other.truncated_response,
            dict(Counter(self.dropped) + Counter(other.dropped)),
        )

    def as_table(self) -> str:
        """One line a fate, most frequent reason first."""
        fates = {"kept": self.kept, "  prompt cut": self.truncated_prompt, "  response cut": self.truncated_response}
        fates["dropped"] = sum(self.dropped.values())
        fates.update({f"  {reason}": count for reason, count in sorted(self.dropped.items(), key=lambda item: (-item[1], item[0]))})
        name_width, count_width = max(map(len, fates)), max(len(f"{count:,}") for count in fates.values())
        return "\n".join(f"{name:<{name_width}}  {count:>{count_width},}" for name, count in fates.items())


def count_rendered(rendered: Iterable[Rendered], dropped: Mapping[str, int] | None = None) -> RenderCounts:
    """Count what was kept and cut; `dropped` is what the caller left out after `Renderer.render` refused it, see `drop_reason`."""
    items = list(rendered)
    return RenderCounts(
        kept=len(items),
        truncated_prompt=sum(item.truncated_prompt for item in items),
        truncated_response=sum(item.truncated_response for item in items),
        dropped=dict(dropped or {}),
    )


def drop_reason(error: DataError) -> str:
    """Why a comparison cannot be rendered, in words that are the same for every such row."""
    return re.sub(r"\d+", "N", re.split(r"[.;:] ", str(error), maxsplit=1)[0]).rstrip(".")


class Renderer:
    """Renders conversations with one tokenizer and one budget.

    Args:
        tokenizer: a fast tokenizer (offsets are needed to take control tokens apart).
        max_length_tokens: the whole budget, frame included.

    Raises:
        ConfigError: a slow tokenizer, a budget below 1, or nothing in the tokenizer that marks the end of a response.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_length_tokens: int) -> None:
        if not tokenizer.is_fast:
            raise ConfigError(f"{type(tokenizer).__name__} is a slow tokenizer; expected a fast one (with a tokenizer.json).")
        if max_length_tokens < 1:
            raise ConfigError(f"max_length_tokens is {max_length_tokens}; expected at least 1.")
        self.tokenizer = tokenizer
        self.max_length_tokens = max_length_tokens
        self._template = template_text(tokenizer)
        self._has_token_types = frame_kind(tokenizer) == "encoder" and "token_type_ids" in tokenizer.model_input_names
        self._control_ids = _control_ids(tokenizer, self._template or "")
        self._frames: dict[tuple[tuple[str, ...], bool], Frame] = {}

    def render(self, prompt: tuple[Message, ...], responses: Sequence[str]) -> list[Rendered]:
        """One prompt with each of its responses; all see the same prompt.

        Args:
            prompt: the conversation, at least one message.
            responses: one or more assistant replies to it.

        Returns:
            One item a response, in order.

        Raises:
            DataError: no message; a response that is blank or gives no token; a conversation that the chat template refuses; turn markers
                that alone fill the budget.
        """
        frame = self._frame(prompt, with_response=True)
        for number, response in enumerate(responses, 1):
            if not response.strip():
                raise DataError(f"Response {number} of {len(responses)} is empty; expected an assistant message. Leave it out.")
        *slots, reply_slot = frame.slots
        if reply_slot.message != len(prompt):
            raise DataError("The tokenizer's chat template does not write the response last. Give the tokenizer another chat_template.")
        contents = self._encode([slot.trim(prompt[slot.message].content) for slot in slots])
        replies = self._encode([reply_slot.trim(response) for response in responses])
        for number, reply in enumerate(replies, 1):
            if not reply:
                raise DataError(f"Response {number} of {len(replies)} gives no token with this tokenizer. Leave it out.")
        room = self._room(frame)
        needed, longest = sum(map(len, contents)), max(map(len, replies), default=0)
        allowed = min(needed, max(room // 2, room - longest))
        head = _interleave(frame.literals[:-1], _cut_middle(contents, allowed))
        return [
            Rendered(
                input_ids=(*head, *reply[: room - allowed], *frame.literals[-1]),
                token_type_ids=self._token_types(len(head), min(len(reply), room - allowed) + len(frame.literals[-1])),
                truncated_prompt=needed > allowed,
                truncated_response=len(reply) > room - allowed,
                response_start=len(head),
            )
            for reply in replies
        ]

    def render_prompt(self, prompt: tuple[Message, ...]) -> Rendered:
        """A prompt by itself, for the router; it may take the whole budget.

        Raises:
            DataError: no message; a conversation that the chat template refuses; turn markers that alone fill the budget.
        """
        frame = self._frame(prompt, with_response=False)
        contents = self._encode([slot.trim(prompt[slot.message].content) for slot in frame.slots])
        needed, room = sum(map(len, contents)), self._room(frame)
        body = _interleave(frame.literals[:-1], _cut_middle(contents, min(needed, room)))
        ids = (*body, *frame.literals[-1])
        return Rendered(ids, self._token_types(len(ids), 0), needed > room, False, len(ids))

    def fingerprint(self) -> str:
        """Hex SHA-256 of everything that decides the ids: rules, template, vocabulary and how text is split, special tokens, budget.

        Two renderers with the same fingerprint give the same ids; a saved model keeps it.
        """
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        parts = {
            "rules": RULES_VERSION,
            "kind": frame_kind(self.tokenizer),
            "template": self._template,
            "max_length_tokens": self.max_length_tokens,
            # Holds the ids of cls, sep, eos and the habit of starting with bos.
            "frame": self._frame((Message("user", ""),), with_response=True).literals,
            "control_ids": sorted(self._control_ids),
            "token_types": self._has_token_types,
            # Truncation and padding are switched by every call of the tokenizer and never used here.
            "backend": {name: backend[name] for name in ("added_tokens", "normalizer", "pre_tokenizer", "model")},
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()

    def _frame(self, prompt: tuple[Message, ...], with_response: bool) -> Frame:
        if not prompt:
            raise DataError("The prompt has no message; expected at least one.")
        key = (tuple(message.role for message in prompt), with_response)
        if key not in self._frames:
            self._frames[key] = build_frame(self.tokenizer, *key)
        return self._frames[key]

    def _room(self, frame: Frame) -> int:
        room = self.max_length_tokens - frame.length
        if room < 1:
            raise DataError(
                f"The turn markers of {len(frame.slots)} messages take {frame.length} of {self.max_length_tokens} tokens "
                "(max_length_tokens), which leaves nothing for their contents. Raise max_length_tokens, or shorten the conversation."
            )
        return room

    def _token_types(self, first: int, second: int) -> tuple[int, ...] | None:
        return (0,) * first + (1,) * second if self._has_token_types else None

    def _encode(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Contents to ids, none of which is a control token."""
        if not texts:
            return []
        batch = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
        return [self._without_control(text, encoding) for text, encoding in zip(texts, batch.encodings, strict=True)]

    def _without_control(self, text: str, encoding: Any) -> tuple[int, ...]:
        # `split_special_tokens` spares only added tokens that are marked special, and not those that the vocabulary itself holds.
        if self._control_ids.isdisjoint(encoding.ids):
            return tuple(encoding.ids)
        spans = [span for token, span in zip(encoding.ids, encoding.offsets, strict=True) if token in self._control_ids]
        cuts = sorted({start + 1 for start, end in spans if end - start > 1})
        if not cuts:  # a control token of one character can only be left out
            return tuple(token for token in encoding.ids if token not in self._control_ids)
        borders = [0, *cuts, len(text)]
        parts = self._encode([text[start:end] for start, end in itertools.pairwise(borders)])
        return tuple(token for part in parts for token in part)


def collate(rendered: Sequence[Rendered], pad_token_id: int) -> "dict[str, Tensor]":
    """A batch for a model, padded on the right.

    Args:
        rendered: one item a row, at least one.
        pad_token_id: fills the end of shorter rows; masked out.

    Returns:
        `input_ids` and `attention_mask` of shape (B, L), int64, L the longest row; `token_type_ids` too where every row has them.

    Raises:
        ValueError: no rows.
    """
    import torch

    if not rendered:
        raise ValueError("collate got no rows; expected at least one.")
    length = max(len(item.input_ids) for item in rendered)

    def padded(rows: Iterable[tuple[int, ...]], fill: int) -> "Tensor":
        return torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows], dtype=torch.long)

    batch = {
        "input_ids": padded((item.input_ids for item in rendered), pad_token_id),
        "attention_mask": padded(((1,) * len(item.input_ids) for item in rendered), 0),
    }
    token_types = [item.token_type_ids for item in rendered if item.token_type_ids is not None]
    if len(token_types) == len(rendered):
        batch["token_type_ids"] = padded(token_types, 0)
    return batch


def _control_ids(tokenizer: "PreTrainedTokenizerBase", template: str) -> frozenset[int]:
    """Ids that only a frame may hold: special tokens, and added tokens that the template writes ("<think>", "<tool_call>").

    The unknown token is what odd text becomes, so it is none unless it has a second office, as in GPT-2. White space that was added as a
    token (double line breaks in Gemma) is text.
    """
    others = {str(token) for name, token in tokenizer.special_tokens_map.items() if name != "unk_token"}
    declared = set(getattr(tokenizer, "chat_control_tokens", None) or ())
    found = set(tokenizer.all_special_ids)
    for token_id, token in tokenizer.added_tokens_decoder.items():
        text = str(token.content)
        if token.special or text in declared or (text in template and not text.isspace()):
            found.add(token_id)
    if tokenizer.unk_token is not None and tokenizer.unk_token not in others:
        found.discard(tokenizer.unk_token_id)
    return frozenset(found)


def _cut_middle(contents: list[tuple[int, ...]], allowed: int) -> list[tuple[int, ...]]:
    """Take the middle out of the longest contents until all of them together have `allowed` tokens."""
    result = list(contents)
    excess = sum(map(len, contents)) - allowed
    for floor in (MIN_KEPT, 0):
        for index in sorted(range(len(result)), key=lambda place: -len(result[place])):
            content = result[index]
            kept = len(content) - min(max(excess, 0), max(len(content) - floor, 0))
            excess -= len(content) - kept
            result[index] = content[: kept - kept // 2] + content[len(content) - kept // 2 :]
    return result


def _interleave(literals: Sequence[tuple[int, ...]], contents: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """A literal, a content, a literal … with as many contents as literals, or one fewer."""
    ids: list[int] = []
    for place, literal in enumerate(literals):
        ids.extend(literal)
        if place < len(contents):
            ids.extend(contents[place])
    return tuple(ids)
