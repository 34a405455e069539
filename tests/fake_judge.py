"""A judge by script, and the well-behaved chat completion that carries its verdicts.

The judge reads what a model would read and nothing else: the last user message lists the asked criteria, one a line, as
`- name: description`, and the two responses carry their true worth as markers, `[quality 0.7]` for all criteria and `[correctness 0.2]`
for one. The first marker of a kind belongs to the response shown first, the second to the other. Its faults (position bias, noise, halo)
are drawn from a hash of seed, request and criterion: the same request gets the same answer on any day and in any order of arrival, and the
two orders of a pair, being two requests, get independent draws.

It refuses to guess: without two markers of a kind the answer is the default, never the longer or the first-named response.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

ASKED = re.compile(r"^- ([a-z][a-z0-9_]*): ", re.MULTILINE)
MARKER = re.compile(r"\[([a-z][a-z0-9_]*) (-?\d+(?:\.\d+)?)\]")
TOKEN = re.compile(r"_?[a-z0-9]{1,6}|_")
FENCE_WORD = re.compile(r"\b[0-9a-f]{12}\b")  # as in "[0123456789ab response A begins]"
FILLERS = (" A", " B", "a", "b", "Tie", " tie", "Both", "Response", "The", "E", "C", "D", "AB", "BA", "N", "None", "null", "?", "1", "2")


def draw(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def request_key(body: object) -> str:
    """One name for a question: model, messages and every parameter, whatever the order of the fields and the word of the fences.

    That word comes from the secret of a store. Faults are drawn by this name, and no test may depend on luck.
    """
    return hashlib.sha256(FENCE_WORD.sub("", json.dumps(body, sort_keys=True, separators=(",", ":"))).encode()).hexdigest()[:32]


def message_text(message: Mapping) -> str:
    """The text of a message whose content is a string or a list of parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def last_user_text(body: Mapping) -> str:
    messages = body.get("messages") or []
    return next((message_text(message) for message in reversed(messages) if message.get("role") == "user"), "")


def asked_criteria(body: Mapping) -> tuple[str, ...]:
    """The criteria listed in the last user message, in order, each once."""
    return tuple(dict.fromkeys(ASKED.findall(last_user_text(body))))


def markers(text: str) -> dict[str, float]:
    """For each kind of marker that occurs twice or more: worth of the response shown first minus worth of the other."""
    found: dict[str, list[float]] = {}
    for kind, worth in MARKER.findall(text):
        found.setdefault(kind, []).append(float(worth))
    return {kind: worths[0] - worths[1] for kind, worths in found.items() if len(worths) >= 2}


@dataclass(frozen=True)
class Verdict:
    """What the judge says on one criterion, and how much better than the other it believes the first response to be."""

    answer: str  # "A", "B" or "tie"; A is the response shown first
    lean: float

    @property
    def probabilities(self) -> dict[str, float]:
        """Of A, B and tie; they sum to 1 and the answer has the largest."""
        tie = 0.9 if self.answer == "tie" else 0.02
        first = (1 - tie) / (1 + math.exp(-5 * max(-2.0, min(2.0, self.lean))))
        return {"A": first, "B": 1 - tie - first, "tie": tie}


@dataclass(frozen=True)
class ScriptedJudge:
    """With probability `position_bias` says A unseen; else compares the markers, and errs with probability `noise`.

    With probability `halo` the quality marker decides a criterion that has its own. Markers that differ by less than `tie_below`, or not at
    all, are a tie, which noise leaves alone. `default(body, criterion)` answers where there are no markers (None: A).
    """

    position_bias: float = 0.0
    noise: float = 0.0
    halo: float = 0.0
    tie_below: float = 0.0
    seed: int = 0
    default: Callable[[Mapping, str], str] | None = None

    def verdicts(self, body: Mapping, key: str) -> dict[str, Verdict]:
        differences = markers(last_user_text(body))
        return {criterion: self._verdict(body, key, criterion, differences) for criterion in asked_criteria(body)}

    def _verdict(self, body: Mapping, key: str, criterion: str, differences: Mapping[str, float]) -> Verdict:
        def happens(what: str, chance: float) -> bool:
            return chance > 0 and draw(self.seed, key, criterion, what) < chance

        quality = differences.get("quality")
        difference = differences.get(criterion, quality)
        if quality is not None and happens("halo", self.halo):
            difference = quality
        if happens("position", self.position_bias):
            return Verdict("A", abs(difference or 0.4))
        if difference is None:
            answer = self.default(body, criterion) if self.default else "A"
            return Verdict(answer, {"A": 0.5, "B": -0.5}.get(answer, 0.0))
        if difference == 0 or abs(difference) < self.tie_below:
            return Verdict("tie", difference)
        if happens("noise", self.noise):
            difference = -difference
        return Verdict("A" if difference > 0 else "B", difference)


def completion(body: Mapping, verdicts: Mapping[str, Verdict], number: int) -> dict:
    """The chat.completion object of an endpoint in good health; `number` makes its id."""
    pieces = _pieces(verdicts)
    content = "".join(token for token, _ in pieces)
    asked_tokens = sum(len(message_text(message)) for message in body["messages"]) // 4
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1_700_000_000 + number,
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, "refusal": None},
                "logprobs": _logprobs(pieces, body.get("top_logprobs") or 0) if body.get("logprobs") else None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": asked_tokens,
            "completion_tokens": len(content) // 4,
            "total_tokens": asked_tokens + len(content) // 4,
        },
    }


def _pieces(verdicts: Mapping[str, Verdict]) -> list[tuple[str, Verdict | None]]:
    """The JSON reply cut into tokens as a byte-pair tokenizer might; a verdict is a token of its own and comes with its Verdict."""
    if not verdicts:
        return [("{}", None)]
    pieces: list[tuple[str, Verdict | None]] = [('{"', None)]
    for position, (criterion, verdict) in enumerate(verdicts.items()):
        if position:
            pieces += [('",', None), (' "', None)]
        pieces += [(token, None) for token in TOKEN.findall(criterion)]
        pieces += [('":', None), (' "', None), (verdict.answer, verdict)]
    return [*pieces, ('"}', None)]


def _logprobs(pieces: list[tuple[str, Verdict | None]], top: int) -> dict:
    return {"content": [_token_logprob(token, verdict, top) for token, verdict in pieces], "refusal": None}


def _token_logprob(token: str, verdict: Verdict | None, top: int) -> dict:
    chances = dict(verdict.probabilities) if verdict else {token: 0.9999}
    for position, filler in enumerate(FILLERS):
        chances.setdefault(filler, 1e-6 / 2**position)
    ranked = sorted(chances.items(), key=lambda item: -item[1])[:top]
    return {**_logprob(token, chances[token]), "top_logprobs": [_logprob(*item) for item in ranked]}


def _logprob(token: str, chance: float) -> dict:
    return {"token": token, "logprob": math.log(chance), "bytes": list(token.encode())}
