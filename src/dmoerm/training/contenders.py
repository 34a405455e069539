"""All that a double-layer model has to beat, and what it is made of, trained on the same comparisons by the same loop, on one backbone.

    single            one task model on every comparison: phase 1 with the recipe's settings and the epochs that its inner folds choose
    single-judged     the same, given the judge's overall verdicts as further pairs
    ensemble          M such models on bootstrap samples: mean, worst case (wco), mean less variance (uwo) of the standardised members
    multi-head        one task model with a head for the overall preference, which is its reward, and one for each capability
    double-layer      router, inner models, under each aggregation
    without-outer     no router: the inner model of the fallback judges everything
    without-inner     no experts: the router, then the task model of the category alone

A `Course` is one training set under one seed. What it has trained stays in slots of the backbone until another course on the same
`Prepared` trains the same: score before.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal

from torch import Tensor

from dmoerm.data.flips import flip_preferences
from dmoerm.data.rendering import Rendered, Renderer
from dmoerm.data.sources import RunData
from dmoerm.errors import ConfigError, DataError
from dmoerm.modeling.backbone import Backbone
from dmoerm.modeling.inner import Aggregation, aggregate
from dmoerm.modeling.reward_model import RewardModel, ScoreRequest
from dmoerm.modeling.router import Router
from dmoerm.recipe import Recipe
from dmoerm.records import OVERALL, Reward
from dmoerm.taxonomy import GENERAL
from dmoerm.training.baselines import train_ensemble, train_multi_head
from dmoerm.training.checkpoints import RunState
from dmoerm.training.inner import InnerResult, enough_labels, task_epochs
from dmoerm.training.phase1 import task_items, train_task_model
from dmoerm.training.pipeline import Prepared, assemble, everyone_of, inner_plan, train_inner_models, train_run_router, with_categories
from dmoerm.training.rows import Rows, TrunkStates, member_vectors
from dmoerm.training.trainer import Item, restore

__all__ = ["CONTENDERS", "Course", "RowRewards", "Score", "contenders_of"]

RowRewards = dict[str, list[list[float | None]]]
"""By row, then by request, then by response; None where a response cannot be scored."""


Score = Callable[[Sequence[ScoreRequest]], RowRewards]
"""A trained contender: the rewards of any responses under all its rows, in one pass."""


class Course:
    """One training set under one seed, and what several contenders share of it.

    Args:
        prepared: backbone, rendered rows and trunk states; courses on one of them take turns.
        data: what it was prepared from.
        recipe: of the run; its seed is that of this course.
        members: of the ensemble.
        flip: share of the training preferences that are turned round (data/flips.py).
        state: where finished phases of the double layer are kept; None keeps nothing.

    Raises:
        ConfigError: full fine-tuning, where nothing can share a backbone.
    """

    def __init__(
        self, prepared: Prepared, data: RunData, recipe: Recipe, *, members: int = 5, flip: float = 0.0, state: RunState | None = None
    ) -> None:
        if recipe.task_model.kind == "full":
            raise ConfigError("task_model.kind is full, and models that are compared share one backbone; set it to lora")
        turned = {c.id: c for c in flip_preferences(data.comparisons, flip, recipe.seed)}
        comparisons = [turned[c.id] for c in prepared.comparisons]
        # Folds and preferences are this course's own, so heads that all categories share are fitted anew.
        everyone = everyone_of(comparisons, prepared.labelled, recipe)
        self.work = replace(prepared.work, state=state or RunState(None), everyone=everyone)
        self.prepared = replace(prepared, work=self.work, comparisons=comparisons)
        self.data, self.recipe, self.members, self.plan = data, recipe, members, inner_plan(recipe, prepared)
        self._inner: dict[str, InnerResult] | None = None

    @cached_property
    def router(self) -> Router:
        """The outer layer."""
        return train_run_router(self.prepared, self.recipe, self.data, self.data.taxonomy)[0]

    @cached_property
    def model(self) -> RewardModel:
        """The double-layer model."""
        prepared, recipe = self.prepared, self.recipe
        comparisons = with_categories(prepared.comparisons, prepared, self.router)
        labelled = with_categories(prepared.labelled, prepared, self.router)
        self._inner = train_inner_models(prepared, comparisons, labelled, self.data.taxonomy, recipe)
        return assemble(prepared, self.router, self._inner, recipe, self.data, {})

    @cached_property
    def epochs(self) -> int:
        """Passes of every task model that learns all comparisons: what the inner folds of the fallback choose."""
        if self._inner is not None:
            return int(self._inner[GENERAL].metrics["task_epochs"])
        return task_epochs(self.work, GENERAL, self.prepared.comparisons, self.plan)

    @cached_property
    def items(self) -> list[Item]:
        """Every comparison with its ranked pairs."""
        chosen = self.prepared.comparisons
        ranked = [(self.work.rows.of_comparison[c.id], [(pair.chosen, pair.rejected) for pair in c.pairs()]) for c in chosen]
        return task_items(ranked, [c.margin for c in chosen] if self.plan.task_shape.use_margin else None)

    @cached_property
    def judged_items(self) -> list[Item]:
        """The judge's overall verdicts as ranked pairs."""
        rows = self.work.rows.of_comparison
        verdicts = [(rows[c.id], [(n.preferred, n.other) for n in c.labels if n.capability == OVERALL]) for c in self.prepared.labelled]
        return task_items(verdicts)

    # --- scoring ------------------------------------------------------------------------------------------------------------------------

    def rewards(
        self,
        names: Sequence[str],
        requests: Sequence[ScoreRequest],
        values_of: Callable[[Rows, list[int], TrunkStates], Sequence[Tensor]],
    ) -> RowRewards:
        """Rewards under the rows `names`, from what `values_of` gives to the rendered texts; their trunk is computed once for all."""
        rendered = [_rendered(self.prepared.renderer, request) for request in requests]
        usable = [one for texts in rendered for one in texts if one is not None]
        if not usable:
            return {name: [[None for _ in texts] for texts in rendered] for name in names}
        backbone = self.prepared.backbone
        backbone.eval()
        rows, numbers = Rows(self.work.rows.pad_token_id, usable), list(range(len(usable)))
        states = TrunkStates.compute(backbone, rows, numbers, self._task_layer, bf16=False)
        found: RowRewards = {}
        for name, value_B in zip(names, values_of(rows, numbers, states), strict=True):
            values = iter(value_B.tolist())
            found[name] = [[None if one is None else next(values) for one in texts] for texts in rendered]
        return found

    @property
    def _task_layer(self) -> int:
        depth = self.plan.task_shape.depth
        assert depth is not None, "full fine-tuning was refused"
        return self.prepared.backbone.first_layer(depth)

    def judged(self, requests: Sequence[ScoreRequest], names: Mapping[str, Aggregation], category: str | None = None) -> RowRewards:
        """Rewards of the double-layer model by row, each under its aggregation; a `category` skips the router."""
        model = self.model
        self.prepared.backbone.eval()
        asked = [replace(request, category=category) for request in requests]
        found = model.score_by_aggregation(asked, list(names.values()))
        return {
            name: [[one.reward if isinstance(one, Reward) else None for one in rewards] for rewards in results]
            for name, results in zip(names, found, strict=True)
        }


def _rendered(renderer: Renderer, request: ScoreRequest) -> list[Rendered | None]:
    """Every response as the model reads it; None for those that cannot be."""
    usable = [place for place, text in enumerate(request.responses) if text.strip()]
    found: list[Rendered | None] = [None] * len(request.responses)
    try:
        rendered = renderer.render(request.prompt, [request.responses[place] for place in usable]) if usable else []
    except DataError:
        return found
    for place, one in zip(usable, rendered, strict=True):
        found[place] = one
    return found


# --- the contenders -----------------------------------------------------------------------------------------------------------------------


def _single(course: Course) -> Score:
    return _task_model(course, "single", course.items)


def _single_judged(course: Course) -> Score:
    return _task_model(course, "single-judged", [*course.items, *course.judged_items])


def _task_model(course: Course, row: str, items: Sequence[Item]) -> Score:
    work, backbone, slot = course.work, course.prepared.backbone, f"#{row}"
    module, results = train_task_model(
        backbone, work.rows, slot, items, [], course.plan.task_shape, course.plan.task_settings,
        base_vectors=work.base_vectors, states=work.states, stop_after=course.epochs, report=work.log.stepper(row),
    )  # fmt: skip
    restore(module, results[-1].weights)
    head_D = module.heads_KD.detach()[0].cpu()
    return lambda requests: course.rewards([row], requests, _linear(backbone, slot, head_D))


def _ensemble(course: Course) -> Score:
    work, backbone, settings = course.work, course.prepared.backbone, course.plan.task_settings
    ensemble = train_ensemble(
        backbone, work.rows, "#ensemble", course.items, course.plan.task_shape,
        replace(settings, seed=settings.seed * course.members),  # courses of other seeds have other members
        members=course.members, base_vectors=work.base_vectors, states=work.states, stop_after=course.epochs,
        report=work.log.stepper("ensemble"),
    )  # fmt: skip

    def values(rows: Rows, numbers: list[int], states: TrunkStates) -> list[Tensor]:
        scalars_BM = ensemble.scalars(backbone, rows, numbers, states=states, bf16=False)
        joined = aggregate(scalars_BM, course.plan.aggregator.uwo_penalty)
        return [joined[name] for name in ENSEMBLE.values()]

    return lambda requests: course.rewards(list(ENSEMBLE), requests, values)


def _multi_head(course: Course) -> Score:
    work, backbone, plan = course.work, course.prepared.backbone, course.plan
    labelled = course.prepared.labelled
    model = train_multi_head(
        backbone, work.rows, "#multi-head", course.items, [(work.rows.of_comparison[c.id], c.labels) for c in labelled],
        enough_labels(labelled, course.data.taxonomy.capability_names, plan.minimum_labels), plan.task_shape, plan.task_settings,
        base_vectors=work.base_vectors, states=work.states, stop_after=course.epochs, report=work.log.stepper("multi-head"),
    )  # fmt: skip
    return lambda requests: course.rewards(["multi-head"], requests, _linear(backbone, model.slot, model.heads_KD[0]))


def _double_layer(course: Course) -> Score:
    assert course.model, "trained now, not at the first score"
    return lambda requests: course.judged(requests, DOUBLE_LAYER)


def _without_outer(course: Course) -> Score:
    assert course.model, "trained now, not at the first score"
    return lambda requests: course.judged(requests, WITHOUT_OUTER, GENERAL)


def _without_inner(course: Course) -> Score:
    model, backbone = course.model, course.prepared.backbone

    def score(requests: Sequence[ScoreRequest]) -> RowRewards:
        routes = [category for category, _ in model.route([request.prompt for request in requests])]
        rewards: dict[int, list[float | None]] = {}
        for category in set(routes):
            own = [number for number, name in enumerate(routes) if name == category]
            values = _linear(backbone, category, model.inner[category].task_head_D.detach().cpu())
            found = course.rewards(["without-inner"], [requests[number] for number in own], values)
            rewards |= dict(zip(own, found["without-inner"], strict=True))
        return {"without-inner": [rewards[number] for number in range(len(requests))]}

    return score


def _linear(backbone: Backbone, slot: str, head_D: Tensor) -> Callable[[Rows, list[int], TrunkStates], list[Tensor]]:
    """One head on one task adapter."""
    return lambda rows, numbers, states: [
        member_vectors(backbone, rows, numbers, task=slot, experts=None, states=states, bf16=False)[:, 0] @ head_D
    ]


DOUBLE_LAYER: Mapping[str, Aggregation] = {
    "double-layer/mlp": "mlp",
    "double-layer/mean": "mean",
    "double-layer/wco": "wco",
    "double-layer/uwo": "uwo",
}
WITHOUT_OUTER: Mapping[str, Aggregation] = {"without-outer/mlp": "mlp", "without-outer/mean": "mean"}
ENSEMBLE: Mapping[str, Literal["mean", "wco", "uwo"]] = {"ensemble/mean": "mean", "ensemble/wco": "wco", "ensemble/uwo": "uwo"}
"""Rows, and how the members are joined in each."""

CONTENDERS: Mapping[str, tuple[tuple[str, ...], Callable[[Course], Score]]] = {
    "double-layer": (tuple(DOUBLE_LAYER), _double_layer),
    "without-outer": (tuple(WITHOUT_OUTER), _without_outer),
    "without-inner": (("without-inner",), _without_inner),
    "single": (("single",), _single),
    "single-judged": (("single-judged",), _single_judged),
    "ensemble": (tuple(ENSEMBLE), _ensemble),
    "multi-head": (("multi-head",), _multi_head),
}
"""By name: its rows, and what trains it. The double layer comes first, as two others are parts of it."""


def contenders_of(data: RunData, recipe: Recipe) -> dict[str, str | None]:
    """Every contender, and why it cannot be trained on this data; None where it can."""
    absent: dict[str, str | None] = dict.fromkeys(CONTENDERS)
    if not any(label.capability == OVERALL for c in data.labelled for label in c.labels):
        absent["single-judged"] = "no overall verdicts of a judge among the labels"
    if not enough_labels(data.labelled, data.taxonomy.capability_names, recipe.experts.minimum_labels):
        absent["multi-head"] = f"no capability with {recipe.experts.minimum_labels} labels"
    return absent
