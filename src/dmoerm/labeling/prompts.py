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
from dmoerm.labeling.questions import AnyQuestion, digest
from dmoerm.validation import Section, validate
from dmoerm.yaml_strict import YamlDocument, parse_yaml, read_yaml

__all__ = ["REASON", "Template", "category_template", "load_template"]

REASON = "reason"
"""Key of the reply under which a judge may explain itself; no capability may be named so where reasons are asked."""

_PLACE = re.compile(r"\{\{([a-z_]+)\}\}")
_REQUIRED = {"conversation", "response_a", "response_b", "criteria", "reply", "fence"}
_REQUIRED_OF_CATEGORY = {"conversation", "categories", "reply", "fence"}


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

    def messages(self, question: AnyQuestion, secret: bytes) -> list[dict[str, str]]:
        """The messages of one question, in the form of the chat completions API.

        Args:
            question: what is asked.
            secret: of the store; the word of the fences is derived from it.
        """
        shown = question.shown()
        word = fence(secret, question.key, tuple(shown.values()))
        values = {**shown, **question.listed(), "reply": self._reply(question), "fence": word}
        return [
            {"role": "system", "content": _fill(self.system, values).strip()},
            {"role": "user", "content": _fill(self.user, values).strip()},
        ]

    def _reply(self, question: AnyQuestion) -> str:
        form = ({REASON: "one sentence"} if self.reason else {}) | dict.fromkeys(question.names, " or ".join(question.answers))
        return json.dumps(form, ensure_ascii=False)


def load_template(path: Path | None, *, reason: bool = False) -> Template:
    """The packaged template, or one of the user's.

    Raises:
        ConfigError: a place is missing or unknown, with the names of all.
    """
    document = read_yaml(path) if path is not None else _packaged("question")
    return _checked(document, _REQUIRED, reason)


def category_template() -> Template:
    """The packaged words that ask for the category of a prompt."""
    return _checked(_packaged("category"), _REQUIRED_OF_CATEGORY, reason=False)


def _checked(document: YamlDocument, required: set[str], reason: bool) -> Template:
    texts = validate(_Texts, document)
    named = {name for text in (texts.system, texts.user) for name in _PLACE.findall(text)}
    for name in sorted(named - required):
        raise ConfigError(f"{document.name}: unknown place {{{{{name}}}}}; known: {', '.join(sorted(required))}")
    in_user = set(_PLACE.findall(texts.user))
    for name in sorted(required - in_user):
        raise ConfigError(f"{document.name}: the place {{{{{name}}}}} is missing from `user`; without it no judge can answer. Put it in")
    return Template(texts.system, texts.user, reason)


def fence(secret: bytes, key: str, texts: tuple[str, ...]) -> str:
    """A word of 12 hex digits that none of the texts contains, and that nobody can know without the secret."""
    for attempt in range(100):
        word = hmac.new(secret, f"{key} {attempt}".encode(), hashlib.sha256).hexdigest()[:12]
        if not any(word in text for text in texts):
            return word
    raise AssertionError("a hundred words of 48 bits all occur in the texts")


def _fill(text: str, values: Mapping[str, str]) -> str:
    return _PLACE.sub(lambda match: values[match.group(1)], text)


def _packaged(name: str) -> YamlDocument:
    text = files("dmoerm.labeling").joinpath(f"templates/{name}.yaml").read_text(encoding="utf-8")
    return parse_yaml(text, f"dmoerm/labeling/templates/{name}.yaml")
