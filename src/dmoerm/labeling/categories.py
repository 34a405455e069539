"""The category of a prompt, named by the judge: for comparisons that carry none, before their capabilities can be asked about.

Each prompt is asked twice, with the categories listed forwards and backwards, and gets a category only where both answers agree: what
depends on the order of a list says nothing about the prompt. The answers are rows for `data.prompts`, so they teach the router too.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from dmoerm.data.sources import RunData
from dmoerm.labeling.judge import JudgeSettings
from dmoerm.labeling.labels import write_rows
from dmoerm.labeling.prices import Prices, prices_of
from dmoerm.labeling.prompts import Template, category_template
from dmoerm.labeling.questions import AnyQuestion, Criterion, conversation_text, criteria_lines, digest
from dmoerm.labeling.store import Answer
from dmoerm.recipe import LabelingOptions, Recipe
from dmoerm.records import Message, prompt_hash

__all__ = ["CATEGORY", "NO_FIT", "CategoryPlan", "CategoryQuestion", "Named", "named_categories", "plan_categories", "write_categories"]

CATEGORY = "category"
"""Key of the reply."""

NO_FIT = Criterion("none of these", "No other line fits.")
"""Always listed last; such a prompt stays without a category, and `general` judges it. No category can have this name."""


@dataclass(frozen=True)
class CategoryQuestion:
    """One call: a prompt, and the categories in one of two orders."""

    prompt: tuple[Message, ...]
    categories: tuple[Criterion, ...]
    """In the order of the taxonomy."""
    about: str
    """Id of the first comparison with that prompt."""
    swapped: bool
    """Whether they are listed backwards."""
    settings: str
    names: tuple[str, ...] = field(default=(CATEGORY,), init=False)

    @property
    def answers(self) -> tuple[str, ...]:
        """Names of the categories as they are listed."""
        return tuple(criterion.name for criterion in self._listed)

    @property
    def place(self) -> str:
        """Hash of the prompt."""
        return prompt_hash(self.prompt)

    @cached_property
    def item(self) -> str:
        """32 hex digits over prompt, order and names of the categories."""
        return digest(CATEGORY, self.place, *self.answers)[:32]

    @cached_property
    def criteria(self) -> str:
        """32 hex digits over names and descriptions of the categories."""
        return digest(*(part for criterion in self.categories for part in (criterion.name, criterion.description)))[:32]

    @cached_property
    def key(self) -> str:
        """32 hex digits over everything that changes the answer."""
        return digest(self.settings, self.item, self.criteria)[:32]

    def value(self, answer: str) -> str:
        """The name itself."""
        return answer

    def shown(self) -> dict[str, str]:
        """The conversation."""
        return {"conversation": conversation_text(self.prompt)}

    def listed(self) -> dict[str, str]:
        """One line for each category."""
        return {"categories": criteria_lines(self._listed)}

    @property
    def _listed(self) -> tuple[Criterion, ...]:
        return (*(self.categories[::-1] if self.swapped else self.categories), NO_FIT)


@dataclass(frozen=True)
class CategoryPlan:
    """The prompts whose category is asked for; see `plan.Plan`.

    Attributes:
        options: the section of the recipe.
        template: the words of a question.
        settings: what every answer depends on.
        categories: of the taxonomy.
        prompts: each once, with the id of a comparison that has it, in the order in which they are asked.
    """

    options: LabelingOptions
    template: Template
    settings: JudgeSettings
    categories: tuple[Criterion, ...]
    prompts: tuple[tuple[tuple[Message, ...], str], ...]

    def questions(self) -> Iterator[CategoryQuestion]:
        """Both orders of each prompt."""
        settings = self.settings.fingerprint
        for prompt, about in self.prompts:
            for swapped in (False, True):
                yield CategoryQuestion(prompt, self.categories, about, swapped, settings)

    def tallied(self, question: AnyQuestion) -> bool:
        """All of them."""
        return True

    @property
    def prices(self) -> Prices | None:
        """Of the judge; None where nobody knows them."""
        return prices_of(self.options)


@dataclass(frozen=True, slots=True)
class Named:
    """What the answers say.

    Attributes:
        categories: each prompt with the category that both orders name.
        no_fit: prompts for which both orders say that none fits.
        disagreeing: prompts whose two answers differ.
        unanswered: prompts without both answers.
    """

    categories: tuple[tuple[tuple[Message, ...], str], ...]
    no_fit: int
    disagreeing: int
    unanswered: int

    @property
    def counts(self) -> dict[str, int]:
        """Prompts by category, the most frequent first."""
        return dict(sorted(Counter(name for _, name in self.categories).items(), key=lambda item: (-item[1], item[0])))


def plan_categories(recipe: Recipe, data: RunData) -> CategoryPlan:
    """What `dmoerm label categories` would ask: each prompt of the comparisons that have no category.

    Args:
        recipe: names the judge.
        data: of `load_run_data(recipe, named=False)`, so that what was named before is planned too.

    Raises:
        ConfigError: no model is named, or a field of the request is wrong.
    """
    options, template = recipe.labeling, category_template()
    found: dict[str, tuple[tuple[Message, ...], str]] = {}
    for comparison in (*data.comparisons, *data.labels, *(data.test if options.test_too else ())):
        if comparison.category is None:
            found.setdefault(prompt_hash(comparison.prompt), (comparison.prompt, comparison.id))
    return CategoryPlan(
        options,
        template,
        replace(JudgeSettings.of(options, template), soft=False),  # a probability of A means nothing here
        tuple(Criterion(category.name, category.description) for category in data.taxonomy.categories),
        tuple(found[name] for name in sorted(found)),
    )


def named_categories(plan: CategoryPlan, answers: Mapping[str, Mapping[str, Answer]]) -> Named:
    """Join the two answers of each prompt."""
    kept, no_fit, disagreeing, unanswered = [], 0, 0, 0
    questions = plan.questions()
    for one, other in zip(questions, questions, strict=True):
        said = [answers[question.key][CATEGORY].verdict for question in (one, other) if question.key in answers]
        if len(said) < 2:
            unanswered += 1
        elif said[0] != said[1]:
            disagreeing += 1
        elif said[0] == NO_FIT.name:
            no_fit += 1
        else:
            kept.append((one.prompt, said[0]))
    return Named(tuple(kept), no_fit, disagreeing, unanswered)


def write_categories(path: Path, named: Sequence[tuple[tuple[Message, ...], str]]) -> None:
    """Write prompts with their categories, as `data.prompts` takes them; an existing file is replaced in one step.

    Raises:
        LabelError: it cannot be written.
    """
    rows = ({"prompt": [{"role": m.role, "content": m.content} for m in prompt], "category": name} for prompt, name in named)
    write_rows(path, rows, again="dmoerm label categories")
