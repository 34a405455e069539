"""The records that travel through the package: frozen dataclasses, no torch, no input or output.

A `Comparison` is one prompt with two or more responses and their ranks. A pair is the two-response case.
A `CapabilityLabel` says which of two responses of that comparison is better on one capability.
A `Reward` is what scoring returns for one response.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["OVERALL", "CapabilityLabel", "Comparison", "Message", "RankedPair", "Reward", "ScoreFailure", "prompt_hash"]

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")

OVERALL = "overall"
"""Reserved label name: the verdict of a judge on the whole response. Never a capability of a taxonomy."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class CapabilityLabel:
    """On `capability`, response `preferred` is better than response `other` (indices into `Comparison.responses`).

    `probability` is how sure the judge is of that, 0.5 to 1; 1 where nobody has asked it.
    """

    capability: str
    preferred: int
    other: int
    probability: float = 1.0


@dataclass(frozen=True, slots=True)
class RankedPair:
    """Response `chosen` is ranked above response `rejected` (indices into `Comparison.responses`)."""

    chosen: int
    rejected: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """One prompt, its responses and how people (or a gold judge) ranked them.

    Attributes:
        id: unique within a run; the reader makes one from file and line where the row has none.
        prompt: the conversation up to the response, at least one message.
        responses: two or more assistant replies to `prompt`.
        ranks: one integer a response, 1 is best, equal numbers are ties.
        category: the task category where it is known, else None (the router decides).
        labels: capability labels; the name `OVERALL` is a judge's overall verdict.
        authors: who wrote each response (a model's name), or None where unknown; same length as `responses`.
        source: "file:line" for messages to people.
        margin: by how much the reward of the better response should exceed the other's, reward units, where the file says so; pairs only.
        subset: the part of a benchmark that the row belongs to; nothing is trained on it.
    """

    id: str
    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    category: str | None = None
    labels: tuple[CapabilityLabel, ...] = ()
    authors: tuple[str | None, ...] = ()
    source: str = ""
    margin: float | None = None
    subset: str | None = None

    def pairs(self) -> Iterator[RankedPair]:
        """All strictly ranked pairs of responses, the better one as `chosen`; ties give none."""
        for first, second in itertools.combinations(range(len(self.responses)), 2):
            if self.ranks[first] < self.ranks[second]:
                yield RankedPair(first, second)
            elif self.ranks[first] > self.ranks[second]:
                yield RankedPair(second, first)

    @property
    def has_preference(self) -> bool:
        """False when all responses are tied."""
        return len(set(self.ranks)) > 1


@dataclass(frozen=True, slots=True)
class Reward:
    """The reward of one response and its reasons.

    Attributes:
        reward: the scalar; higher is better, unbounded, comparable within one prompt. About 0 for an average response
            of the category; a difference of 1 means odds of e to 1 on held-out comparisons.
        category: the inner model that judged ("general" where the router was unsure).
        category_probability: the router's calibrated probability of its first choice, 0 to 1; 1.0 when the caller named the category.
        capabilities: standardised score of each expert (0 is the average response of the category, unit one standard deviation).
        capability_spread: standard deviation over `capabilities`; large when the experts disagree.
        uncertainty: standard deviation of `reward` over bootstrapped aggregators, reward units.
        truncated: True when the prompt or the response was cut to fit the token budget.
    """

    reward: float
    category: str
    category_probability: float
    capabilities: Mapping[str, float]
    capability_spread: float
    uncertainty: float
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class ScoreFailure:
    """A response that could not be scored, and why. Never a reward of 0."""

    message: str


def prompt_hash(prompt: tuple[Message, ...]) -> str:
    """Hex SHA-256 of a conversation: the identity by which data is split and routed alike."""
    digest = hashlib.sha256()
    for message in prompt:
        for part in (message.role, message.content):
            encoded = part.encode("utf-8")
            digest.update(len(encoded).to_bytes(8, "big"))
            digest.update(encoded)
    return digest.hexdigest()
