"""What a recipe wants labelled, and by whom: the questions of a run, before anything is sent."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from dmoerm.data.sources import RunData
from dmoerm.errors import ConfigError
from dmoerm.labeling.canaries import canary_pairs
from dmoerm.labeling.judge import JudgeSettings
from dmoerm.labeling.prices import Prices, prices_of
from dmoerm.labeling.prompts import REASON, Template, load_template
from dmoerm.labeling.questions import AnyQuestion, AskedPair, Question, pairs_to_ask, questions_of
from dmoerm.recipe import LabelingOptions, Recipe

__all__ = ["LabelPlan", "Plan", "plan_labels"]


class Plan(Protocol):
    """What a run has to know of what it asks."""

    @property
    def options(self) -> LabelingOptions:
        """The section of the recipe."""

    @property
    def template(self) -> Template:
        """The words of a question."""

    @property
    def settings(self) -> JudgeSettings:
        """What every answer depends on."""

    @property
    def prices(self) -> Prices | None:
        """Of the judge; None where nobody knows them."""

    def questions(self) -> Iterator[AnyQuestion]:
        """Every call, each once."""

    def tallied(self, question: AnyQuestion) -> bool:
        """Whether its answer counts for the consistency that a run shows."""


@dataclass(frozen=True)
class LabelPlan:
    """What a recipe wants labelled, and by whom.

    Attributes:
        options: the section of the recipe.
        template: the words of a question.
        settings: what every answer depends on.
        pairs: what is asked, in order.
        canaries: known pairs that are asked first.
        left_out: comparisons that are not asked about, by reason.
    """

    options: LabelingOptions
    template: Template
    settings: JudgeSettings
    pairs: list[AskedPair]
    canaries: tuple[AskedPair, ...]
    left_out: Mapping[str, int]

    def questions(self) -> Iterator[Question]:
        """Every call of the plan, canaries first; each once, though two comparisons may hold the same pair."""
        seen: set[str] = set()
        for question in questions_of(itertools.chain(self.canaries, self.pairs), self.settings.fingerprint):
            if (key := question.key) not in seen:
                seen.add(key)
                yield question

    def tallied(self, question: AnyQuestion) -> bool:
        """All but the known pairs."""
        return question.place not in self._known

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(" ".join(pair.texts) for pair in self.canaries)

    @property
    def prices(self) -> Prices | None:
        """Of the judge; None where nobody knows them."""
        return prices_of(self.options)


def plan_labels(recipe: Recipe, data: RunData) -> LabelPlan:
    """What `dmoerm label` would ask; nothing is sent, no store is opened.

    Raises:
        ConfigError: no model is named, the template or a field of the request is wrong, or a capability has the name of the reason.
    """
    options = recipe.labeling
    if options.reason and REASON in data.taxonomy.capability_names:
        raise ConfigError(f'labeling.reason: true uses the key "{REASON}" of the reply, which is also a capability. Rename that capability')
    template = load_template(options.template, reason=options.reason)
    settings = JudgeSettings.of(options, template)
    pairs, left_out = pairs_to_ask(data, options)
    return LabelPlan(options, template, settings, pairs, canary_pairs() if options.canaries else (), left_out)
