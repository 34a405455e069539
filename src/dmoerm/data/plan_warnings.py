"""What looks wrong in a plan: too little data, labels that say nothing, a bias that a model would learn instead of quality.

Each warning is one line that says where, what, and what to do. None of them is an error.
"""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dmoerm.data.sources import RunData
from dmoerm.data.splits import fold_indices
from dmoerm.recipe import Recipe
from dmoerm.records import OVERALL
from dmoerm.taxonomy import GENERAL

if TYPE_CHECKING:
    from dmoerm.data.plan import LabelCount, RunPlan

__all__ = ["find_warnings"]

FEW_TEST_PROMPTS = 30
"""Below this number of prompts the intervals of the evaluation are too narrow."""
STRONG_LENGTH_BIAS = 0.65
"""Share of pairs won by the longer (or by the shorter) response from which length alone is a strong model."""
ENOUGH_TO_JUDGE = 20
"""Pairs or labels below which a share says too little to warn about."""


def find_warnings(plan: "RunPlan", recipe: Recipe, data: RunData) -> Iterable[str]:
    """The warnings of a plan, those that touch everything first."""
    yield from _test_warnings(plan)
    yield from _router_warnings(plan)
    yield from _size_warnings(plan, recipe, data)
    yield from _label_warnings(plan, data)
    yield from _length_warnings(plan)


def _test_warnings(plan: "RunPlan") -> Iterable[str]:
    if plan.test == 0:
        yield "nothing is held out: the model cannot be measured. Name files in data.test, or set data.test_fraction"
    elif plan.test_prompts < FEW_TEST_PROMPTS:
        yield f"{plan.test_prompts} held-out prompts: intervals are too narrow below {FEW_TEST_PROMPTS}. Hold out more"


def _router_warnings(plan: "RunPlan") -> Iterable[str]:
    if sum(count >= 2 for count in plan.router_prompts.values()) < 2:
        lost = f", and {plan.uncategorised} comparisons without a category serve general only" if plan.uncategorised else ""
        yield f"fewer than two categories have router prompts: the fallback (general) judges everything{lost}. Name files in data.prompts"
    elif plan.uncategorised:
        yield f"{plan.uncategorised} comparisons have no category: the router gives them one, so counts of categories are lower bounds"


def _size_warnings(plan: "RunPlan", recipe: Recipe, data: RunData) -> Iterable[str]:
    for category in plan.categories:
        if not category.own_model:
            yield (
                f"{category.name}: {category.preferred} comparisons with a preference, {plan.minimum_comparisons} are needed "
                "(task_model.minimum_comparisons): the fallback (general) judges it"
            )
    folds = recipe.aggregator.cross_fit_folds
    for category in plan.categories:
        if folds is not None and category.own_model:
            ranked = [c for c in data.comparisons if c.has_preference and category.name in (GENERAL, c.category)]
            if len(set(fold_indices(ranked, folds, recipe.seed))) < 2:
                yield f"{category.name}: all comparisons fall into one of {folds} folds, so cross-fitting cannot run. Use more prompts"


def _label_warnings(plan: "RunPlan", data: RunData) -> Iterable[str]:
    if plan.label_comparisons == 0:
        yield (
            "no capability labels: every category is judged by its task model alone. Name files in data.labels, or let "
            "dmoerm label ask a judge"
        )
        return
    for category in plan.categories:
        few = {name: count.labels for name, count in category.labels.items() if name not in category.experts and count.labels}
        if category.own_model and few:
            listed = ", ".join(f"{name} ({count})" for name, count in few.items())
            yield f"{category.name}: too few labels for an expert, {plan.minimum_labels} are needed (experts.minimum_labels): {listed}"
        if category.own_model and not category.experts:
            yield f"{category.name}: no capability has enough labels: its task model judges alone"
        for name, count in category.labels.items():
            if category.name != GENERAL and count.labels >= ENOUGH_TO_JUDGE:
                yield from _constant(f"{category.name}, {name}", count)
    yield from _unused_labels(data)


def _constant(where: str, count: "LabelCount") -> Iterable[str]:
    if count.against_overall == 0:
        yield f"{where}: all {count.labels} labels follow the overall preference: its expert learns nothing else"
    elif count.prefer_first in (0, count.labels):
        place = "first" if count.prefer_first else "second"
        yield f"{where}: all {count.labels} labels prefer the response listed {place}: constant labels, check how they were made"


def _unused_labels(data: RunData) -> Iterable[str]:
    unused: Counter[str] = Counter()
    for c in data.labelled:
        names = data.taxonomy.category(c.category).capability_names if c.category is not None else data.taxonomy.capability_names
        unused.update(label.capability for label in c.labels if label.capability not in (*names, OVERALL))
    if unused:
        listed = ", ".join(f"{name} ({count})" for name, count in unused.most_common())
        advice = "Map them in data.aspects (null: to none), or fix the taxonomy"
        yield f"labels of capabilities that their category does not have: {listed}. {advice}"


def _length_warnings(plan: "RunPlan") -> Iterable[str]:
    for part, bias in (("training", plan.length_train), ("held-out", plan.length_test)):
        if bias is None or bias.pairs < ENOUGH_TO_JUDGE:
            continue
        if not 1 - STRONG_LENGTH_BIAS < bias.longer_wins < STRONG_LENGTH_BIAS:
            which, share = ("longer", bias.longer_wins) if bias.longer_wins > 0.5 else ("shorter", 1 - bias.longer_wins)
            wins = f"the {which} response wins {share:.0%} of {bias.pairs:,} {part} pairs"
            yield f"strong length bias: {wins}. Read the length-balanced figures"
