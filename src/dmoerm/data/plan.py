"""The plan of a run: what its files hold, what will be trained on it, and what looks wrong, before any model is loaded.

Counting follows the rules of `training` (which category gets an inner model of its own, which capability an expert). A comparison without
a category is given one by the router in training, so where there are such, counts of categories are lower bounds; the fallback `general`
is trained on everything and its counts are exact. Nothing here is an error: data that cannot be used stops in `load_run_data`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dmoerm.data.cost import Memory, Steps, estimate_memory, inner_steps
from dmoerm.data.plan_text import plan_text
from dmoerm.data.plan_warnings import find_warnings
from dmoerm.data.readers import read_prompts
from dmoerm.data.sources import RunData, load_run_data
from dmoerm.recipe import Recipe, recipe_hash
from dmoerm.records import Comparison, prompt_hash
from dmoerm.taxonomy import GENERAL

__all__ = ["CategoryPlan", "FilePlan", "LabelCount", "LengthBias", "RunPlan", "plan_run"]


@dataclass(frozen=True, slots=True)
class FilePlan:
    """One file of the recipe: its role under `data`, its format, and how many of its rows go where."""

    path: str
    role: str
    format: str
    train: int
    test: int


@dataclass(frozen=True, slots=True)
class LabelCount:
    """Labels of one capability: all of them, those against the overall preference, and those that prefer the response listed first."""

    labels: int = 0
    against_overall: int = 0
    prefer_first: int = 0


@dataclass(frozen=True, slots=True)
class LengthBias:
    """Strictly ranked pairs of unequal length, and the share of them that the longer response wins."""

    pairs: int
    longer_wins: float


@dataclass(frozen=True, slots=True)
class CategoryPlan:
    """What one category (or the fallback) is trained on.

    Attributes:
        name: the category; `general` is the fallback, over all comparisons.
        train: training comparisons.
        preferred: those of them with a preference.
        test: held-out comparisons.
        labels: labels by capability, in the order of the taxonomy.
        experts: capabilities with enough labels for an expert.
        own_model: False where `general` judges because there are too few comparisons.
        steps: of its phases; None without an own model.
    """

    name: str
    train: int
    preferred: int
    test: int
    labels: Mapping[str, LabelCount]
    experts: tuple[str, ...]
    own_model: bool
    steps: Steps | None


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What `dmoerm check` shows.

    Attributes:
        recipe_hash: of the recipe.
        schedule: of the recipe.
        files: every file of the recipe.
        categories: in the order of the taxonomy, `general` last.
        train: training comparisons with overall preferences.
        train_prompts: distinct prompts among them.
        test: held-out comparisons.
        test_prompts: distinct prompts among them.
        tied: comparisons, training and test, in which all responses are tied.
        uncategorised: training comparisons to which the router will give a category.
        label_comparisons: comparisons that carry a capability label.
        router_prompts: distinct prompts by category from which the router learns.
        length_train: length bias of the training pairs; None without pairs.
        length_test: of the held-out pairs.
        dropped: what was left out, by reason.
        memory: estimate.
        warnings: what looks wrong, most serious first.
        minimum_comparisons: below this a category is judged by `general`.
        minimum_labels: below this a capability gets no expert.
    """

    recipe_hash: str
    schedule: str
    files: tuple[FilePlan, ...]
    categories: tuple[CategoryPlan, ...]
    train: int
    train_prompts: int
    test: int
    test_prompts: int
    tied: int
    uncategorised: int
    label_comparisons: int
    router_prompts: Mapping[str, int]
    length_train: LengthBias | None
    length_test: LengthBias | None
    dropped: Mapping[str, int]
    memory: Memory
    minimum_comparisons: int
    minimum_labels: int
    warnings: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON knows."""
        return asdict(self)

    def as_text(self) -> str:
        """For a terminal."""
        return plan_text(self)


def plan_run(recipe: Recipe, data: RunData | None = None) -> RunPlan:
    """Read the data of a recipe and say what a training run would do with it.

    Args:
        recipe: the run.
        data: its data where it has been read already.

    Raises:
        DataError: a file or row that cannot be used; see `load_run_data`.
    """
    data = data or load_run_data(recipe)
    categories = _categories(recipe, data)
    plan = RunPlan(
        recipe_hash=recipe_hash(recipe),
        schedule=recipe.schedule,
        files=tuple(_files(recipe, data)),
        categories=categories,
        train=len(data.comparisons),
        train_prompts=_prompts(data.comparisons),
        test=len(data.test),
        test_prompts=_prompts(data.test),
        tied=sum(not c.has_preference for c in (*data.comparisons, *data.test)),
        uncategorised=sum(c.category is None for c in data.comparisons),
        label_comparisons=len(data.labelled),
        router_prompts=_router_prompts(data),
        length_train=length_bias(data.comparisons),
        length_test=length_bias(data.test),
        dropped={reason: count for reason, count in data.notes.items() if count},
        memory=_memory(recipe, data, categories),
        minimum_comparisons=recipe.task_model.minimum_comparisons,
        minimum_labels=recipe.experts.minimum_labels,
    )
    return replace(plan, warnings=tuple(find_warnings(plan, recipe, data)))


def length_bias(comparisons: Iterable[Comparison]) -> LengthBias | None:
    """How often the longer response (in characters) wins; None where no pair differs in length."""
    longer = [
        len(c.responses[pair.chosen]) > len(c.responses[pair.rejected])
        for c in comparisons
        for pair in c.pairs()
        if len(c.responses[pair.chosen]) != len(c.responses[pair.rejected])
    ]
    return LengthBias(len(longer), sum(longer) / len(longer)) if longer else None


def _files(recipe: Recipe, data: RunData) -> Iterable[FilePlan]:
    def by_file(comparisons: Iterable[Comparison]) -> Counter[str]:
        return Counter(c.source.rpartition(":")[0] for c in comparisons)

    train, labels, test = by_file(data.comparisons), by_file(data.labels), by_file(data.test)
    for path in recipe.data.comparisons:
        yield FilePlan(str(path), "comparisons", data.formats[str(path)], train[str(path)], test[str(path)])
    for path in recipe.label_files:
        yield FilePlan(str(path), "labels", data.formats[str(path)], labels[str(path)], 0)
    tested = {prompt_hash(c.prompt) for c in data.test}
    for path in recipe.prompt_files:
        used = [prompt_hash(prompt) not in tested for prompt, _ in read_prompts(path, recipe.data.bad_rows)]
        yield FilePlan(str(path), "prompts", "prompts", sum(used), 0)
    for path in recipe.data.test:
        yield FilePlan(str(path), "test", data.formats[str(path)], 0, test[str(path)])


def _categories(recipe: Recipe, data: RunData) -> tuple[CategoryPlan, ...]:
    plans = []
    for category in data.taxonomy.categories:
        own = [c for c in data.comparisons if c.category == category.name]
        labelled = [c for c in data.labelled if c.category == category.name]
        tested = sum(c.category == category.name for c in data.test)
        plans.append(_category(recipe, category.name, own, labelled, tested, category.capability_names))
    names = data.taxonomy.capability_names
    return (*plans, _category(recipe, GENERAL, data.comparisons, data.labelled, len(data.test), names))


def _category(
    recipe: Recipe, name: str, comparisons: Sequence[Comparison], labelled: Sequence[Comparison], tested: int, capabilities: Sequence[str]
) -> CategoryPlan:
    labels = {capability: _count_labels(labelled, capability) for capability in capabilities}
    experts = tuple(capability for capability, count in labels.items() if count.labels >= recipe.experts.minimum_labels)
    preferred = sum(c.has_preference for c in comparisons)
    own_model = name == GENERAL or preferred >= recipe.task_model.minimum_comparisons
    steps = inner_steps(recipe, comparisons, labelled, experts) if own_model else None
    return CategoryPlan(name, len(comparisons), preferred, tested, labels, experts, own_model, steps)


def _count_labels(labelled: Sequence[Comparison], capability: str) -> LabelCount:
    found = [(c, label) for c in labelled for label in c.labels if label.capability == capability]
    return LabelCount(
        len(found),
        sum(c.ranks[label.preferred] > c.ranks[label.other] for c, label in found),
        sum(label.preferred < label.other for _, label in found),
    )


def _prompts(comparisons: Iterable[Comparison]) -> int:
    return len({prompt_hash(c.prompt) for c in comparisons})


def _router_prompts(data: RunData) -> dict[str, int]:
    known = {(prompt_hash(prompt), category) for prompt, category in data.prompts}
    known |= {(prompt_hash(c.prompt), c.category) for c in (*data.comparisons, *data.labels) if c.category is not None}
    counts = Counter(category for _, category in known)
    return {name: counts[name] for name in data.taxonomy.category_names}


def _memory(recipe: Recipe, data: RunData, categories: Sequence[CategoryPlan]) -> Memory:
    own = [plan for plan in categories if plan.own_model]
    labelled = [[c for c in data.labelled if plan.name == GENERAL or c.category == plan.name] if plan.experts else [] for plan in own]
    return estimate_memory(recipe, [*data.comparisons, *data.labelled], labelled, [max(1, len(plan.experts)) for plan in own])
