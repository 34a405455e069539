"""What is asked: pairs of responses, the points on which each is judged, both presentation orders, and the key of each question.

A question is one call. Its key covers everything that changes the answer: endpoint, model, sampling, template, descriptions and texts;
so a question with a stored answer is never paid for again, and one whose wording changed is asked anew. Its item covers the texts and
the points alone: it finds answers that other settings gave. `AnyQuestion` is what a run has to know of one, whether it asks for a
comparison (`Question`) or for the category of a prompt (`categories.CategoryQuestion`).
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from dmoerm.data.sources import RunData
from dmoerm.recipe import LabelingOptions
from dmoerm.records import OVERALL, Comparison, Message, prompt_hash
from dmoerm.taxonomy import Taxonomy

__all__ = [
    "NO_CATEGORY",
    "OVERALL_DESCRIPTION",
    "VERDICTS",
    "AnyQuestion",
    "AskedPair",
    "Criterion",
    "Question",
    "conversation_text",
    "criteria_lines",
    "digest",
    "fingerprint",
    "informative_pairs",
    "pairs_to_ask",
    "questions_of",
    "verdict_of",
]

NO_CATEGORY = "asked for the overall preference only, having no category"
"""Why comparisons are left out of the capability questions."""

VERDICTS = ("A", "B", "tie")
"""What may be said on each point of a comparison."""

OVERALL_DESCRIPTION = "All in all, the response serves the person who asked better."

_ROLE_NAMES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


class AnyQuestion(Protocol):
    """One call, as a run, its account and the store see it."""

    @property
    def settings(self) -> str:
        """Fingerprint of what all questions of a run share (`JudgeSettings.fingerprint`)."""

    @property
    def key(self) -> str:
        """32 hex digits over everything that changes the answer."""

    @property
    def item(self) -> str:
        """32 hex digits over what is asked about, whoever answers and however."""

    @property
    def criteria(self) -> str:
        """32 hex digits over names and descriptions of the points."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the points asked: the keys of the reply."""

    @property
    def answers(self) -> tuple[str, ...]:
        """What the reply may say on each of them."""

    @property
    def about(self) -> str:
        """Id of a comparison that it is asked for; for people."""

    @property
    def place(self) -> str:
        """The same for the two orders in which a thing is asked, and for nothing else."""

    @property
    def swapped(self) -> bool:
        """Which of the two orders this is."""

    def value(self, answer: str) -> int | str:
        """An answer in terms that do not depend on the order."""

    def shown(self) -> dict[str, str]:
        """The texts that stand between fences, by their place in the template."""

    def listed(self) -> dict[str, str]:
        """The other texts of the question, by their place in the template."""


@dataclass(frozen=True, slots=True)
class Criterion:
    """One point on which two responses are judged."""

    name: str
    description: str


@dataclass(frozen=True)
class AskedPair:
    """Two responses of a comparison and the points on which they are judged.

    Attributes:
        comparison: where they come from.
        first: index of one response; in the first of the two orders it is shown as A.
        second: index of the other.
        groups: the points, grouped by call.
    """

    comparison: Comparison
    first: int
    second: int
    groups: tuple[tuple[Criterion, ...], ...]

    @cached_property
    def texts(self) -> tuple[str, str, str]:
        """Hashes of the conversation and of both responses."""
        responses = self.comparison.responses
        return prompt_hash(self.comparison.prompt), digest(responses[self.first]), digest(responses[self.second])


@dataclass(frozen=True)
class Question:
    """One call: a pair in one presentation order, and the points that it is asked about."""

    pair: AskedPair
    asked: tuple[Criterion, ...]
    swapped: bool
    settings: str
    """Fingerprint of what all questions of a run share (`JudgeSettings.fingerprint`)."""

    @property
    def answers(self) -> tuple[str, ...]:
        """Verdicts, in terms of what is shown."""
        return VERDICTS

    @property
    def about(self) -> str:
        """Id of the comparison."""
        return self.pair.comparison.id

    @property
    def place(self) -> str:
        """Hashes of the texts in the order of the pair."""
        return " ".join(self.pair.texts)

    def value(self, answer: str) -> int:
        """As `verdict_of`."""
        return verdict_of(answer, swapped=self.swapped)

    def shown(self) -> dict[str, str]:
        """The conversation and the responses A and B."""
        responses = self.pair.comparison.responses
        first, second = responses[self.pair.first], responses[self.pair.second]
        response_a, response_b = (second, first) if self.swapped else (first, second)
        return {"conversation": conversation_text(self.pair.comparison.prompt), "response_a": response_a, "response_b": response_b}

    def listed(self) -> dict[str, str]:
        """One line for each point."""
        return {"criteria": criteria_lines(self.asked)}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the points asked."""
        return tuple(criterion.name for criterion in self.asked)

    @cached_property
    def item(self) -> str:
        """32 hex digits over texts, order and names of the points, whoever judges them and however."""
        prompt, first, second = self.pair.texts
        return digest(prompt, *((second, first) if self.swapped else (first, second)), *sorted(self.names))[:32]

    @cached_property
    def criteria(self) -> str:
        """32 hex digits over names and descriptions of the points."""
        return digest(*(part for criterion in self.asked for part in (criterion.name, criterion.description)))[:32]

    @cached_property
    def key(self) -> str:
        """32 hex digits over everything that changes the answer."""
        return digest(self.settings, self.item, self.criteria)[:32]


def verdict_of(shown: str, *, swapped: bool) -> int:
    """1: the pair's first response is better, -1: its second, 0: tie; from "A", "B" or "tie" as it was shown."""
    value = {"A": 1, "B": -1, "tie": 0}[shown]
    return -value if swapped else value


def conversation_text(prompt: tuple[Message, ...]) -> str:
    """A conversation as a judge reads it: the bare text of a single user turn, else the turns with their roles."""
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return "\n\n".join(f"{_ROLE_NAMES[message.role]}: {message.content}" for message in prompt)


def criteria_lines(criteria: Iterable[Criterion]) -> str:
    """Names with their descriptions, one a line."""
    return "\n".join(f"- {criterion.name}: {' '.join(criterion.description.split())}" for criterion in criteria)


def digest(*parts: str) -> str:
    """Hex SHA-256 of some texts, each with its length, so that no two lists of texts share one."""
    sha = hashlib.sha256()
    for part in parts:
        encoded = part.encode("utf-8")
        sha.update(len(encoded).to_bytes(8, "big"))
        sha.update(encoded)
    return sha.hexdigest()


def fingerprint(settings: Mapping[str, Any]) -> str:
    """32 hex digits over a JSON object."""
    return digest(json.dumps(settings, sort_keys=True, ensure_ascii=False))[:32]


def pairs_to_ask(data: RunData, options: LabelingOptions) -> tuple[list[AskedPair], dict[str, int]]:
    """The pairs that a recipe asks about, in the order in which they are asked, and what is left out, by reason.

    The order is that of the prompts' hashes: it mixes files and categories, so a run that stops early has labelled a bit of everything,
    and a larger `comparisons_per_category` begins with the same comparisons.
    """
    left_out: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    chosen: list[Comparison] = []
    seen: set[tuple[object, ...]] = set()
    candidates = (*data.comparisons, *(data.test if options.test_too else ()))
    for comparison in sorted(candidates, key=lambda c: (prompt_hash(c.prompt), c.id, c.responses)):
        category, most = comparison.category or "", options.comparisons_per_category
        if not category and not options.overall:
            left_out["without a category"] += 1
        elif (comparison.prompt, comparison.responses) in seen:
            left_out["the same prompt and responses as another"] += 1
        elif most is not None and taken[category] >= most:
            left_out["beyond labeling.comparisons_per_category"] += 1
        else:
            seen.add((comparison.prompt, comparison.responses))
            taken[category] += 1
            chosen.append(comparison)
    if taken[""]:
        left_out[NO_CATEGORY] = taken[""]
    pairs = []
    for comparison in chosen:
        groups = criteria_groups(data.taxonomy, comparison.category, options)
        for first, second in informative_pairs(comparison.ranks, options.pairs_per_comparison, prompt_hash(comparison.prompt)):
            if comparison.responses[first] != comparison.responses[second]:
                pairs.append(AskedPair(comparison, first, second, groups))
    return pairs, dict(left_out)


def criteria_groups(taxonomy: Taxonomy, category: str | None, options: LabelingOptions) -> tuple[tuple[Criterion, ...], ...]:
    """The points of a category, grouped by call as the recipe wants it; without a category only the overall preference."""
    capabilities = () if category is None else taxonomy.category(category).capabilities
    criteria = [Criterion(capability.name, capability.description) for capability in capabilities]
    if options.overall:
        criteria.append(Criterion(OVERALL, OVERALL_DESCRIPTION))
    return tuple((criterion,) for criterion in criteria) if options.calls == "one_capability" else (tuple(criteria),)


def informative_pairs(ranks: Sequence[int], most: int, salt: str) -> list[tuple[int, int]]:
    """At most `most` pairs of responses, as (smaller index, larger index), of those that teach most for one call each.

    Neighbours in the ranking come first: they chain all responses together, and their overall preference is the least certain, so a
    capability is most likely to differ from it there. With fewer pairs than neighbours, the pairs are spread over the ranking so that as
    many responses as possible are seen; with more, wider gaps follow. Which of equally ranked responses stand side by side is drawn by
    `salt`.

    >>> informative_pairs([1, 2], 3, "")
    [(0, 1)]
    >>> informative_pairs([1, 2, 3, 4], 2, "")
    [(0, 1), (2, 3)]
    """
    order = sorted(range(len(ranks)), key=lambda index: (ranks[index], digest(salt, str(index))))
    gaps = itertools.groupby(sorted(itertools.combinations(range(len(order)), 2), key=lambda p: (p[1] - p[0], p[0])), lambda p: p[1] - p[0])
    pairs: list[tuple[int, int]] = []
    for _, of_gap in gaps:
        places = list(of_gap)
        # Every second neighbour first: 0-1, 2-3 …, then 1-2, 3-4 …
        for place in [*places[::2], *places[1::2]]:
            if len(pairs) < most:
                first, second = order[place[0]], order[place[1]]
                pairs.append((min(first, second), max(first, second)))
    return pairs


def questions_of(pairs: Iterable[AskedPair], settings: str) -> Iterator[Question]:
    """Every call for these pairs; the two orders of a point follow each other."""
    for pair in pairs:
        for group in pair.groups:
            for swapped in (False, True):
                yield Question(pair, group, swapped, settings)
