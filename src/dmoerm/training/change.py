"""Changing one part of a trained model: a category or one expert trained anew, added or removed, everything else kept byte for byte.

What is kept is loaded from the model folder and saved from there again; saving is deterministic, so its files do not change. Refitted
besides the named part: the aggregator and calibration of its category, and the router where the set of categories changes. The fallback
(`general`) stays as it is until it is named itself. The model records what was changed, by which recipe, from which model (`lineage`).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from dmoerm.data.sources import RunData, load_run_data
from dmoerm.errors import ConfigError, TrainingError
from dmoerm.modeling.backbone import Backbone
from dmoerm.modeling.inner import InnerModel
from dmoerm.modeling.manifest import MANIFEST
from dmoerm.modeling.reward_model import RewardModel
from dmoerm.recipe import Recipe, recipe_hash
from dmoerm.records import Comparison
from dmoerm.taxonomy import GENERAL, Category, Taxonomy
from dmoerm.training.checkpoints import RunState
from dmoerm.training.inner import InnerPlan, InnerResult, change_experts, enough_labels, train_inner
from dmoerm.training.pipeline import (
    Prepared,
    TrainResult,
    inner_plan,
    is_first_process,
    load_backbone,
    prepare,
    run_folder,
    train_run_router,
    wait_for_everyone,
    with_categories,
)
from dmoerm.training.progress import RunLog
from dmoerm.validation import did_you_mean

__all__ = ["Change", "Part", "change_model", "parse_part"]

Action = Literal["train", "add", "remove"]


@dataclass(frozen=True, slots=True)
class Part:
    """A category, or one capability of it; `str` gives the form people write."""

    category: str
    capability: str | None = None

    def __str__(self) -> str:
        return self.category if self.capability is None else f"{self.category}/{self.capability}"


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be done with one part."""

    action: Action
    part: Part


def parse_part(text: str, taxonomy: Taxonomy) -> Part:
    """`objective_qa` or `objective_qa/correctness`, both in the taxonomy; `general` is the fallback.

    Raises:
        ConfigError: there is no such category or capability; the message has the nearest name.
    """
    category, slash, capability = text.partition("/")
    names = (*taxonomy.category_names, GENERAL)
    if category not in names:
        raise ConfigError(f'no category "{category}"{did_you_mean(category, names)}')
    known = taxonomy.capability_names if category == GENERAL else taxonomy.category(category).capability_names
    if not slash:
        return Part(category)
    if capability not in known:
        raise ConfigError(f'no capability "{capability}" in {category}{did_you_mean(capability, known)}')
    return Part(category, capability)


def change_model(recipe: Recipe, changes: Sequence[Change], *, quiet: bool = False) -> TrainResult:
    """Change parts of the model at `recipe.output` and put the result in its place.

    A killed change leaves the model as it was; begun again, it takes over the phases that were finished.

    Raises:
        ConfigError: the model or the recipe does not fit the change.
        DataError: the data cannot be used.
        TrainingError: a phase fails.
        ArtifactError: there is no whole model at `recipe.output`.
    """
    model = RewardModel.from_pretrained(recipe.output, device=recipe.training.device)
    data = load_run_data(recipe)
    for change in changes:
        _check(change, model, data.taxonomy, recipe)
    folder, first = run_folder(recipe.output), is_first_process()
    parent = hashlib.sha256((recipe.output / MANIFEST).read_bytes()).hexdigest()
    with RunLog(folder if first else None, quiet=quiet or not first, append=True) as log:
        state = RunState(folder, writes=first, every_steps=recipe.training.checkpoint_steps, say=log.say)
        changed = _changed(model, data, recipe, changes, log, state)
        changed.metadata["lineage"] = [*model.metadata.get("lineage", ()), _lineage(changes, recipe, parent)]
        if first:
            changed.save_pretrained(recipe.output, overwrite=True)
            log.say(f"saved to {recipe.output}; changed: {', '.join(f'{c.part} ({c.action})' for c in changes)}")
    wait_for_everyone()
    return TrainResult(changed, data.test, changed.metadata)


def _lineage(changes: Sequence[Change], recipe: Recipe, parent: str) -> dict[str, Any]:
    return {
        "changes": [{"action": change.action, "part": str(change.part)} for change in changes],
        "recipe_hash": recipe_hash(recipe),
        "version": version("dmoerm"),
        "parent_manifest_sha256": parent,
    }


def _check(change: Change, model: RewardModel, taxonomy: Taxonomy, recipe: Recipe) -> None:
    """Refuse what cannot be done, before anything is trained."""
    action, part = change.action, change.part
    inner = model.inner.get(part.category)
    there = inner is not None and (part.capability is None or part.capability in inner.capabilities)
    where = str(recipe.output)
    if action == "add" and there:
        raise ConfigError(f"{where} already has {part}. To train it anew: dmoerm train RECIPE --only {part}")
    if action != "add" and not there:
        names = [*model.inner, *(f"{name}/{c}" for name, other in model.inner.items() for c in other.capabilities)]
        hint = f"Add it: dmoerm add-{'category' if part.capability is None else 'capability'} RECIPE {part}" if action == "train" else ""
        raise ConfigError(f"{where} has no {part}{did_you_mean(str(part), names)}. {hint}".rstrip())
    if part.capability is not None and inner is None:
        raise ConfigError(f"{where} has no category {part.category}. Add it whole: dmoerm add-category RECIPE {part.category}")
    if action == "remove" and part.category == GENERAL and part.capability is None:
        raise ConfigError("general is the fallback for prompts that fit nowhere, and a model needs one")
    for name, other in model.inner.items():
        if action == "remove" and name == part.category:
            continue
        known = taxonomy.capability_names if name == GENERAL else _capabilities(taxonomy, name)
        if known is None or (name != GENERAL and set(other.capabilities) - set(known)):
            lost = name if known is None else ", ".join(f"{name}/{c}" for c in other.capabilities if c not in known)
            raise ConfigError(f"the recipe's taxonomy lacks {lost}, which {where} has. Put it back, or take it out first: dmoerm remove")


def _capabilities(taxonomy: Taxonomy, category: str) -> tuple[str, ...] | None:
    return taxonomy.category(category).capability_names if category in taxonomy.category_names else None


def _changed(model: RewardModel, data: RunData, recipe: Recipe, changes: Sequence[Change], log: RunLog, state: RunState) -> RewardModel:
    """The model with its changes; parts that are kept are the very modules of `model`."""
    wanted, renderer = load_backbone(recipe)
    if wanted.fingerprint() != model.backbone.fingerprint() or renderer.fingerprint() != model.renderer.fingerprint():
        raise ConfigError(
            f"{recipe.output} stands on {model.backbone.name} with {model.renderer.max_length_tokens} tokens; the recipe's backbone "
            "section means other weights, layers or tokens. A part can only be changed on the same ones: copy it from the model's recipe"
        )
    if wanted.pooling != model.backbone.pooling:
        raise ConfigError(f"{recipe.output} pools by {model.backbone.pooling}, the recipe by {wanted.pooling}: set backbone.pooling")
    model.backbone.sampled_positions = recipe.training.sampled_positions
    prepared = prepare(data.comparisons, data.labelled, recipe, log, backbone=model.backbone, renderer=model.renderer, state=state)
    taxonomy = _without(data.taxonomy, [change.part for change in changes if change.action == "remove"])
    router, router_metrics = model.router, model.metadata.get("router", {})
    if {c.part.category for c in changes if c.part.capability is None and c.action != "train"}:
        router, router_metrics = train_run_router(prepared, recipe, data, taxonomy)
    comparisons, labelled = (with_categories(rows, prepared, router) for rows in (prepared.comparisons, prepared.labelled))
    plan = inner_plan(recipe, prepared)
    inner, own = dict(model.inner), dict(model.own_backbones)
    metrics = {**model.metadata, "router": router_metrics, "categories": dict(model.metadata.get("categories", {}))}
    for category in dict.fromkeys(change.part.category for change in changes):
        mine = [change for change in changes if change.part.category == category]
        whole = next((change for change in mine if change.part.capability is None), None)
        own_rows = comparisons if category == GENERAL else [c for c in comparisons if c.category == category]
        own_labels = labelled if category == GENERAL else [c for c in labelled if c.category == category]
        if whole is not None and whole.action == "remove":
            del inner[category]
            own.pop(category, None)
            metrics["categories"].pop(category, None)
            model.backbone.remove("task", category)
            model.backbone.remove("experts", category)
            continue
        preferred = sum(c.has_preference for c in own_rows)
        if preferred < recipe.task_model.minimum_comparisons:
            raise TrainingError(
                f"{category}: {preferred} comparisons with a preference, fewer than task_model.minimum_comparisons "
                f"({recipe.task_model.minimum_comparisons}). Add data to data.comparisons, or lower that number."
            )
        names = taxonomy.capability_names if category == GENERAL else taxonomy.category(category).capability_names
        if whole is not None:
            result = train_inner(prepared.work, category, own_rows, own_labels, names, plan)
        else:
            result = _change_experts(prepared, inner[category], own.get(category, model.backbone), mine, own_rows, own_labels, names, plan)
        inner[category] = result.inner
        if result.backbone is not model.backbone:
            own[category] = result.backbone
        metrics["categories"][category] = result.metrics
    return RewardModel(
        model.backbone,
        model.renderer,
        router,
        inner,
        own_backbones=own,
        taxonomy=taxonomy,
        aggregation=model.aggregation,
        uwo_penalty=model.uwo_penalty,
        metadata=metrics,
    ).to(model.backbone.device)


def _change_experts(
    prepared: Prepared,
    kept: InnerModel,
    backbone: Backbone,
    changes: Sequence[Change],
    comparisons: Sequence[Comparison],
    labelled: Sequence[Comparison],
    names: Sequence[str],
    plan: InnerPlan,
) -> InnerResult:
    removed = {change.part.capability for change in changes if change.action == "remove"}
    anew = [change.part.capability for change in changes if change.action != "remove" and change.part.capability is not None]
    for capability in anew:
        if not enough_labels(labelled, (capability,), plan.minimum_labels):
            raise TrainingError(
                f"{kept.category}/{capability}: fewer labels than experts.minimum_labels ({plan.minimum_labels}) prefer one response. "
                "Add labels to data.labels, or lower that number."
            )
    experts = tuple(name for name in names if (name in kept.capabilities or name in anew) and name not in removed)
    return change_experts(prepared.work, kept, backbone, anew, experts, comparisons, labelled, plan)


def _without(taxonomy: Taxonomy, parts: Sequence[Part]) -> Taxonomy:
    """The taxonomy less these parts; a category keeps at least one capability in it, as its description."""
    gone = {str(part) for part in parts}
    categories = []
    for category in taxonomy.categories:
        if category.name in gone:
            continue
        left = tuple(c for c in category.capabilities if f"{category.name}/{c.name}" not in gone)
        categories.append(Category(**{**dict(category), "capabilities": left or category.capabilities}))
    return Taxonomy(categories=tuple(categories))
