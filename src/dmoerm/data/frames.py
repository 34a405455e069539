r"""What stands around the contents of a conversation: the ids that we write ourselves, with a slot for each content.

A frame depends on the roles alone, never on what people wrote, so it is made once a sequence of roles. Three kinds:

- a chat template is rendered with placeholders for contents, and its own pieces are tokenised with their control tokens. Contents are
  put in beside it, so rules of a template that look inside a content (moving a reasoning part, say) do not apply; that it strips white
  space around contents is found out and followed. `strftime_now` always gives one date: a score must not change overnight.
- an encoder without a template reads `[CLS] conversation [SEP] response [SEP]`, segments 0 and 1. A single user message is the
  conversation by itself; otherwise each message is a line `role: content`.
- a decoder without a template reads `role:\ncontent\n\n` for each message, the response likewise, then its end-of-text token. It starts
  with a begin-of-text token where the tokenizer starts plain texts so.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmoerm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Frame", "Slot", "build_frame", "equal_template", "frame_kind", "template_text", "template_texts"]

ASSISTANT = "assistant"

# White space around a placeholder, and what is left of it when a template strips nothing, line breaks or all white space there.
_LEFT = {"\n\t": "", "\t": "\n", "": None}
_RIGHT = {"\f\n": "", "\f": "\n", "": None}

# Which message is the longest, and how many of its characters are kept.
_MEASURE = (
    "{% set found = namespace(all=0, most=0, at=0) %}"
    "{% for message in messages[:-1] %}{% set size = message['content'] | length %}{% set found.all = found.all + size %}"
    "{% if size > found.most %}{% set found.most = size %}{% set found.at = loop.index0 %}{% endif %}{% endfor %}"
    "{% set allowed = [ROOM // 2, ROOM - messages[-1]['content'] | length] | max %}"
    "{% set keep = [found.most - [found.all - allowed, 0] | max, 40] | max %}"
)
_SHORTENED = (
    "message['content'] if loop.index0 != found.at or keep >= found.most else "
    "message['content'][:keep - keep // 2] + message['content'][found.most - keep // 2:]"
)

_FIXED_CLOCK = "{% macro strftime_now(format) %}01 Jan 2026{% endmacro %}{{ '' }}"


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one content.

    Attributes:
        message: index of the message; the response is the message after the prompt.
        strip_left: characters to strip on the left: "" none, None all white space.
        strip_right: likewise on the right.
    """

    message: int
    strip_left: str | None = ""
    strip_right: str | None = ""

    def trim(self, content: str) -> str:
        """The content as it goes into this place."""
        if self.strip_left != "":
            content = content.lstrip(self.strip_left)
        return content if self.strip_right == "" else content.rstrip(self.strip_right)


@dataclass(frozen=True, slots=True)
class Frame:
    """Literal ids and slots in turn: `literals[0] slots[0] literals[1] … slots[-1] literals[-1]`."""

    literals: tuple[tuple[int, ...], ...]
    slots: tuple[Slot, ...]

    @property
    def length(self) -> int:
        """Tokens of the frame itself."""
        return sum(map(len, self.literals))


def template_text(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The chat template in use, None where the tokenizer has none.

    Raises:
        ConfigError: several templates and none of them named "default".
    """
    if not tokenizer.chat_template:
        return None
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise ConfigError(f"The tokenizer's chat template cannot be chosen: {error} Set tokenizer.chat_template to one of them.") from None


def equal_template(tokenizer: "PreTrainedTokenizerBase", *, start: str = "", separator: str | None = None, room: int | None = None) -> str:
    """The chat template by which other software writes what a frame with its contents is: the tokenizer's own, its clock stopped, or
    our own layout where there is none. Its ids equal ours where no token spans a border between frame and content. Of an encoder's
    layout the last message is the response; the segments (0 and 1) are nothing that a template could give.

    For an encoder without a template, `start` is written after [CLS] and `separator` in place of [SEP] between prompt and response. With
    `room`, in characters, the longest message of a prompt loses its middle by the rule of rendering.py, counted in characters.
    """
    template = template_text(tokenizer)
    if template is not None:
        return _FIXED_CLOCK + template if "strftime_now" in template else template
    if frame_kind(tokenizer) == "encoder":
        middle = "{{ sep_token }}" if separator is None else separator
        content = "message['content']" if room is None else _SHORTENED
        heads = "{{ '' if single else (('' if loop.first else '\\n') + message['role'] + ': ') }}"
        single = "{% set single = messages | length == 2 and messages[0]['role'] == 'user' %}"
        prompt = f"{{% for message in messages[:-1] %}}{heads}{{{{ {content} }}}}{{% endfor %}}"
        measure = "" if room is None else _MEASURE.replace("ROOM", str(room))
        return f"{single}{measure}{{{{ cls_token }}}}{start}{prompt}{middle}{{{{ messages[-1]['content'] + sep_token }}}}"
    first = "{{ bos_token }}" if _starts_with_bos(tokenizer) else ""
    turn = "{{ '' if loop.first else '\\n\\n' }}{{ message['role'] + ':\\n' + message['content'] }}"
    return f"{first}{{% for message in messages %}}{turn}{{% endfor %}}{{{{ eos_token }}}}"


def template_texts(tokenizer: "PreTrainedTokenizerBase", roles: tuple[str, ...]) -> tuple[str, ...]:
    """What the chat template writes before, between and after the contents of a conversation with these roles: one text more than roles.

    Raises:
        DataError: the template refuses these roles, or writes their contents in another order, twice or not at all.
    """
    order, literals = _cut_at_placeholders(_apply(tokenizer, roles, pad=False), roles)
    if order != list(range(len(roles))):
        raise DataError(f"The tokenizer's chat template writes the messages of {', '.join(roles)} in another order.")
    return tuple(literals)


def frame_kind(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Which of the three ways a tokenizer is rendered: "template", "encoder" or "decoder".

    Raises:
        ConfigError: it has no chat template, no cls and sep tokens and no eos token.
    """
    if tokenizer.chat_template:
        return "template"
    if tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None:
        return "encoder"
    if tokenizer.eos_token_id is not None:
        return "decoder"
    raise ConfigError(
        "The tokenizer has no chat template, no cls and sep tokens and no eos token, so nothing marks where a response ends. "
        "Set one of them."
    )


def build_frame(tokenizer: "PreTrainedTokenizerBase", roles: tuple[str, ...], with_response: bool) -> Frame:
    """The frame of a prompt with these roles, with or without a place for the response.

    Raises:
        ConfigError: as `frame_kind`.
        DataError: the chat template refuses these roles, or leaves a message out or writes it twice.
    """
    kind = frame_kind(tokenizer)
    if kind == "template":
        return _template_frame(tokenizer, (*roles, ASSISTANT) if with_response else roles)
    if kind == "encoder":
        return _encoder_frame(tokenizer, roles, with_response)
    return _decoder_frame(tokenizer, roles, with_response)


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[int, ...]:
    """A piece of our own or of the template: control tokens count."""
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=False, verbose=False)["input_ids"]) if text else ()


def _template_frame(tokenizer: "PreTrainedTokenizerBase", roles: tuple[str, ...]) -> Frame:
    order, literals = _cut_at_placeholders(_apply(tokenizer, roles, pad=False), roles)
    _, padded = _cut_at_placeholders(_apply(tokenizer, roles, pad=True), roles)
    strips = [_stripping(*pieces) for pieces in zip(literals, padded, strict=True)]
    # The piece before a slot tells of its left side, the piece after it of its right side.
    slots = tuple(Slot(message, strips[place][1], strips[place + 1][0]) for place, message in enumerate(order))
    return Frame(tuple(_ids(tokenizer, literal) for literal in literals), slots)


def _placeholder(message: int) -> str:
    return f"DMOERM-CONTENT-{message}-END"


def _apply(tokenizer: "PreTrainedTokenizerBase", roles: tuple[str, ...], pad: bool) -> str:
    from jinja2 import TemplateError

    left, right = (next(iter(sides)) if pad else "" for sides in (_LEFT, _RIGHT))
    chat = [{"role": role, "content": f"{left}{_placeholder(index)}{right}"} for index, role in enumerate(roles)]
    try:
        return str(
            tokenizer.apply_chat_template(chat, chat_template=equal_template(tokenizer), tokenize=False, add_generation_prompt=False)
        )
    except (TemplateError, TypeError) as error:
        raise DataError(
            f"The tokenizer's chat template refuses a conversation of {', '.join(roles)}: {error}. "
            "Bring the messages into an order that it takes, or give the tokenizer another chat_template."
        ) from error


def _cut_at_placeholders(text: str, roles: tuple[str, ...]) -> tuple[list[int], list[str]]:
    """The messages in the order in which the template writes them, and the pieces of text around them."""
    for index, role in enumerate(roles):
        count = text.count(_placeholder(index))
        if count != 1:
            raise DataError(
                f"The tokenizer's chat template writes message {index + 1} of {', '.join(roles)} (the {role} message) {count} times; "
                "expected once. Leave such messages out, or give the tokenizer another chat_template."
            )
    order = sorted(range(len(roles)), key=lambda index: text.index(_placeholder(index)))
    literals = []
    for message in order:
        literal, text = text.split(_placeholder(message))
        literals.append(literal)
    return order, [*literals, text]


def _stripping(plain: str, padded: str) -> tuple[str | None, str | None]:
    """What the template strips from the right of the content before a piece and from the left of the one after it."""
    for before, right in _RIGHT.items():
        for after, left in _LEFT.items():
            if padded == before + plain + after:
                return right, left
    return "", ""


def _encoder_frame(tokenizer: "PreTrainedTokenizerBase", roles: tuple[str, ...], with_response: bool) -> Frame:
    cls, sep = (int(tokenizer.cls_token_id),), (int(tokenizer.sep_token_id),)
    heads = [""] if roles == ("user",) else [f"{role}: " if index == 0 else f"\n{role}: " for index, role in enumerate(roles)]
    literals = [_ids(tokenizer, head) for head in heads]
    literals[0] = cls + literals[0]
    if with_response:
        literals.append(sep)
    return Frame((*literals, sep), tuple(map(Slot, range(len(literals)))))


def _decoder_frame(tokenizer: "PreTrainedTokenizerBase", roles: tuple[str, ...], with_response: bool) -> Frame:
    turns = (*roles, ASSISTANT) if with_response else roles
    literals = [_ids(tokenizer, f"{role}:\n" if index == 0 else f"\n\n{role}:\n") for index, role in enumerate(turns)]
    if _starts_with_bos(tokenizer):
        literals[0] = (int(tokenizer.bos_token_id), *literals[0])
    return Frame((*literals, (int(tokenizer.eos_token_id),)), tuple(map(Slot, range(len(turns)))))


def _starts_with_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a", verbose=False)["input_ids"][0] == bos
