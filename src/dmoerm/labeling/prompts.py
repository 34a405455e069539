"""The words of a question: template, fences, and the messages that go to the endpoint.

Texts under judgement are put between marks with a word that cannot be known to whoever wrote them: it is derived from a secret of the
store and the question's key, so the same question has the same words (and the endpoint may cache them), and it never occurs in the
texts. Filling in is one pass: braces inside a response stay what they are.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pydantic import Field

from dmoerm.errors import ConfigError
from dmoerm.labeling.questions import Question, digest
from dmoerm.records import Message
from dmoerm.validation import Section, validate
from dmoerm.yaml_strict import YamlDocument, parse_yaml, read_yaml

__all__ = ["REASON", "Template", "conversation_text", "load_template"]

REASON = "reason"
"""Key of the reply under which a judge may explain itself; no capability may be named so where reasons are asked."""

_PLACE = re.compile(r"\{\{([a-z_]+)\}\}")
_REQUIRED = {"conversation", "response_a", "response_b", "criteria", "reply", "fence"}
_ROLE_NAMES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


class _Texts(Section):
    system: str = Field(min_length=1, description="What the judge is told about its task.")
    user: str = Field(min_length=1, description="The question itself.")


@dataclass(frozen=True, slots=True)
class Template:
    """The texts of a question with places to fill in."""

    system: str
    user: str
    reason: bool = False

    @property
    def fingerprint(self) -> str:
        """32 hex digits over both texts, and whether a reason is asked."""
        return digest(self.system, self.user, str(self.reason))[:32]

    def messages(self, question: Question, secret: bytes) -> list[dict[str, str]]:
        """The messages of one question, in the form of the chat completions API.

        Args:
            question: what is asked.
            secret: of the store; the word of the fences is derived from it.
        """
        conversation = conversation_text(question.pair.comparison.prompt)
        response_a, response_b = question.shown
        values = {
            "conversation": conversation,
            "response_a": response_a,
            "response_b": response_b,
            "criteria": "\n".join(f"- {criterion.name}: {' '.join(criterion.description.split())}" for criterion in question.asked),
            "reply": self._reply(question),
            "fence": fence(secret, question.key, (conversation, response_a, response_b)),
        }
        return [
            {"role": "system", "content": _fill(self.system, values).strip()},
            {"role": "user", "content": _fill(self.user, values).strip()},
        ]

    def _reply(self, question: Question) -> str:
        form = ({REASON: "one sentence"} if self.reason else {}) | dict.fromkeys(question.names, "A or B or tie")
        return json.dumps(form, ensure_ascii=False)


def load_template(path: Path | None, *, reason: bool = False) -> Template:
    """The packaged template, or one of the user's.

    Raises:
        ConfigError: a place is missing or unknown, with the names of all.
    """
    document = read_yaml(path) if path is not None else _packaged()
    texts = validate(_Texts, document)
    named = {name for text in (texts.system, texts.user) for name in _PLACE.findall(text)}
    for name in sorted(named - _REQUIRED):
        raise ConfigError(f"{document.name}: unknown place {{{{{name}}}}}; known: {', '.join(sorted(_REQUIRED))}")
    in_user = set(_PLACE.findall(texts.user))
    for name in sorted(_REQUIRED - in_user):
        raise ConfigError(f"{document.name}: the place {{{{{name}}}}} is missing from `user`; without it no judge can answer. Put it in")
    return Template(texts.system, texts.user, reason)


def conversation_text(prompt: tuple[Message, ...]) -> str:
    """A conversation as a judge reads it: the bare text of a single user turn, else the turns with their roles."""
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return "\n\n".join(f"{_ROLE_NAMES[message.role]}: {message.content}" for message in prompt)


def fence(secret: bytes, key: str, texts: tuple[str, ...]) -> str:
    """A word of 12 hex digits that none of the texts contains, and that nobody can know without the secret."""
    for attempt in range(100):
        word = hmac.new(secret, f"{key} {attempt}".encode(), hashlib.sha256).hexdigest()[:12]
        if not any(word in text for text in texts):
            return word
    raise AssertionError("a hundred words of 48 bits all occur in the texts")


def _fill(text: str, values: Mapping[str, str]) -> str:
    return _PLACE.sub(lambda match: values[match.group(1)], text)


def _packaged() -> YamlDocument:
    name = "dmoerm/labeling/templates/question.yaml"
    return parse_yaml(files("dmoerm.labeling").joinpath("templates/question.yaml").read_text(encoding="utf-8"), name)
