"""What came back: the bytes of a reply become verdicts, or one typed outcome that says why not.

Reading is a pure function of stored bytes, so a better parser reads old replies again without paying (`dmoerm label reparse`). It is
strict: a reply counts only where it is one JSON object with exactly the points that were asked and the verdicts "A", "B" or "tie". A
judge that says more than that, or the same twice, has not said it clearly enough to train on.
"""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from dmoerm.data.strict_json import json_type, parse_object
from dmoerm.errors import DataError
from dmoerm.labeling.prompts import REASON
from dmoerm.labeling.questions import VERDICTS

__all__ = ["PARSER_VERSION", "RETRIED", "UNUSABLE", "Outcome", "Reading", "Usage", "read_reply", "read_usage", "shortened"]

PARSER_VERSION = 1
"""Raised when the same bytes may give another reading; `label reparse` then reads all stored replies again."""


class Outcome(StrEnum):
    """What became of an attempt."""

    UNDER_WAY = "under_way"
    """Sent, no reply stored: still on its way, or lost when a run was killed. It may have been billed."""
    UNREAD = "unread"
    """A reply is stored and waits to be read."""
    ANSWERED = "answered"
    UNPARSED = "unparsed"
    """A complete reply, but not exactly the verdicts that were asked for."""
    REFUSED = "refused"
    """The judge declined, or a content filter cut in."""
    TRUNCATED = "truncated"
    """The reply ended at the token limit."""
    EMPTY = "empty"
    BAD_REPLY = "bad_reply"
    """Status 200, but no chat completion: HTML, broken JSON, an error body, no choices."""
    REJECTED = "rejected"
    """The endpoint will not take this question (400, 413, 422), for example because it is too long."""
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    """The connection broke, with the request on its way or its reply."""
    UNREACHED = "unreached"
    """No connection came about: nothing was sent, so nothing was billed."""
    FATAL = "fatal"
    """No further question would fare better: key, model, quota, redirect."""


UNUSABLE = frozenset({Outcome.UNPARSED, Outcome.REFUSED, Outcome.TRUNCATED, Outcome.EMPTY, Outcome.BAD_REPLY})
"""Replies that give no verdict. They count against a question over all runs, `labeling.max_attempts` times."""

RETRIED = UNUSABLE | {Outcome.SERVER_ERROR, Outcome.TIMEOUT, Outcome.CONNECTION, Outcome.UNREACHED}
"""Outcomes after which a question is tried again. Those without a reply are the endpoint's: the next run begins to count them anew."""

_MOST_TOKENS = 10**9
"""A count beyond it is a fault of the endpoint; it would not fit into the store either."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one attempt as the endpoint counted them."""

    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What a stored reply says.

    Attributes:
        outcome: ANSWERED, or why there are no verdicts.
        verdicts: by point, "A", "B" or "tie" in terms of what was shown, or another answer that was offered; empty unless answered.
        preference_A: by point, the judge's own probability that A is better, ties shared out evenly; only where log-probabilities came.
        detail: for people, a few words on what was wrong.
        usage: None where the endpoint did not say.
    """

    outcome: Outcome
    verdicts: Mapping[str, str] = field(default_factory=dict)
    preference_A: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""
    usage: Usage | None = None


def read_reply(body: bytes, asked: Sequence[str], answers: Sequence[str] = VERDICTS) -> Reading:
    """Read the body of a response with status 200.

    Args:
        body: as received.
        asked: names of the points.
        answers: what may be said on each.
    """
    try:
        data = parse_object(body)
    except DataError as error:
        return Reading(Outcome.BAD_REPLY, detail=_unreadable(body, str(error)))
    usage = read_usage(data)
    message, choice, detail = _message(data)
    if message is None:
        return Reading(Outcome.BAD_REPLY, detail=detail, usage=usage)
    content, reason = message.get("content"), choice.get("finish_reason")
    if message.get("refusal") or reason == "content_filter":
        return Reading(Outcome.REFUSED, detail="content filter" if reason == "content_filter" else "the judge declined", usage=usage)
    if reason == "length":
        return Reading(Outcome.TRUNCATED, detail="the reply ended at labeling.max_tokens", usage=usage)
    if content is None or (isinstance(content, str) and not content.strip()):
        return Reading(Outcome.EMPTY, detail="no text in the reply", usage=usage)
    if not isinstance(content, str):
        return Reading(Outcome.BAD_REPLY, detail=f"content is {json_type(content)}", usage=usage)
    try:
        verdicts = _verdicts(content, asked, answers)
    except DataError as error:
        return Reading(Outcome.UNPARSED, detail=shortened(str(error)), usage=usage)
    return Reading(Outcome.ANSWERED, verdicts, _preferences(choice.get("logprobs"), content, asked), usage=usage)


def read_usage(data: Mapping[str, Any]) -> Usage | None:
    """The tokens that a response counts; None where it does not, or not in whole numbers."""
    usage = data.get("usage")
    if not isinstance(usage, dict):
        return None
    sent, received = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if type(sent) is not int or type(received) is not int or not (0 <= sent <= _MOST_TOKENS and 0 <= received <= _MOST_TOKENS):
        return None
    return Usage(sent, received)


def _message(data: Mapping[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any], str]:
    if isinstance(data.get("error"), dict):
        error = data["error"]
        return None, {}, shortened(f"an error with status 200: {error.get('code') or error.get('type') or 'unnamed'}")
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None, {}, f"choices is {json_type(choices) if not isinstance(choices, list) else 'a list without an object'}"
    message = choices[0].get("message")
    if not isinstance(message, dict):
        return None, {}, f"message is {json_type(message)}"
    return message, choices[0], ""


def _unreadable(body: bytes, problem: str) -> str:
    if not body:
        return "no body"
    start = body.lstrip()[:200].lower()
    html = start.startswith((b"<!doctype", b"<html", b"<head", b"<body"))
    return "HTML instead of JSON" if html else shortened(f"not JSON: {problem}")


def shortened(text: str) -> str:
    """One line of at most 300 characters that any database and terminal takes."""
    line = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    return line if len(line) <= 300 else line[:297] + "..."


_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_FENCED = re.compile(r"\A```(?:json)?\s*\n(.*)\n```\Z", re.DOTALL)


def _verdicts(content: str, asked: Sequence[str], answers: Sequence[str]) -> dict[str, str]:
    """The verdicts of a reply's text.

    Two wrappings are taken off, as they are forms and no words: a leading thought that a server has left in, and a code fence.

    Raises:
        DataError: what is not as asked.
    """
    text = _THOUGHT.sub("", content, count=1).strip()
    fenced = _FENCED.match(text)
    data = parse_object((fenced.group(1) if fenced else text).encode("utf-8", "surrogatepass"))
    data.pop(REASON, None) if REASON not in asked else None
    missing, unknown = [name for name in asked if name not in data], [name for name in data if name not in asked]
    if missing or unknown:
        parts = [f"{word} {', '.join(map(repr, names))}" for word, names in (("without", missing), ("unasked", unknown)) if names]
        raise DataError(f"keys not as asked: {'; '.join(parts)}")
    for name, verdict in data.items():
        if verdict not in answers:
            shown = json.dumps(verdict, ensure_ascii=False)
            shown = shown if len(shown) <= 40 else shown[:37] + "..."
            raise DataError(f"{name} is {shown}; expected {', '.join(answers[:-1])} or {answers[-1]}")
    return {name: data[name] for name in asked}


def _preferences(logprobs: object, content: str, asked: Sequence[str]) -> dict[str, float]:
    """P(A) + P(tie) / 2 by point, from the alternatives of the token that holds each verdict; empty where anything does not fit."""
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(tokens, list) or not all(isinstance(t, dict) and isinstance(t.get("token"), str) for t in tokens):
        return {}
    if "".join(token["token"] for token in tokens) != content:
        return {}
    ends = list(itertools.accumulate(len(token["token"]) for token in tokens))
    found = {}
    for name in asked:
        places = list(re.finditer(rf'"{re.escape(name)}"\s*:\s*"', content))
        if len(places) != 1:
            return {}
        start = places[0].end()
        index = next((i for i, end in enumerate(ends) if end > start), None)
        if index is None:
            return {}
        token = tokens[index]
        lead = content[ends[index] - len(token["token"]) : start]
        probability = _probability_A(token.get("top_logprobs"), lead)
        if probability is None:
            return {}
        found[name] = probability
    return found


def _probability_A(alternatives: object, lead: str) -> float | None:
    """From the alternatives of one token; `lead` is what precedes the verdict within it, such as a quotation mark."""
    if not isinstance(alternatives, list):
        return None
    mass = dict.fromkeys(VERDICTS, 0.0)
    for alternative in alternatives:
        if not isinstance(alternative, dict):
            return None
        text, logprob = alternative.get("token"), alternative.get("logprob")
        # Rounding may lift the logarithm of a probability a little above 0; what is further above is none.
        if not isinstance(text, str) or isinstance(logprob, bool) or not isinstance(logprob, int | float) or logprob > 1e-3:
            return None
        if not text.startswith(lead):
            continue
        said = text[len(lead) :].strip('"} \n')
        # "t" and "ti" are beginnings of "tie"; nothing else begins so.
        verdict = next((v for v in VERDICTS if said and v.startswith(said)), None)
        if verdict is not None:
            mass[verdict] += math.exp(max(logprob, -1e4))
    total = sum(mass.values())
    return (mass["A"] + mass["tie"] / 2) / total if total > 0 else None
