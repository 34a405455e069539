"""A whole run: data to trained model. Router, then the three phases for every category and for the fallback, in one backbone.

`train_model` takes records and is what Python users call; `train_recipe` reads the files of a recipe, trains, and saves the artifact
with its resolved recipe and `metrics.jsonl` beside it.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dmoerm.data.readers.native import to_native
from dmoerm.data.rendering import Renderer
from dmoerm.data.sources import RunData, load_run_data
from dmoerm.errors import ConfigError, TrainingError
from dmoerm.modeling.backbone import Backbone, cpu_computes_bf16, load_tokenizer
from dmoerm.modeling.inner import InnerModel
from dmoerm.modeling.reward_model import RewardModel, prompt_vectors
from dmoerm.modeling.router import Router
from dmoerm.recipe import ExpertOptions, Recipe, TaskModelOptions, dump_recipe, recipe_hash, run_folder
from dmoerm.records import OVERALL, Comparison
from dmoerm.taxonomy import GENERAL, Taxonomy
from dmoerm.training.checkpoints import RUN_FILE, RunState, content_key
from dmoerm.training.inner import Everyone, InnerPlan, InnerResult, Workspace, train_inner
from dmoerm.training.phase1 import TaskModelShape, task_vectors
from dmoerm.training.phase2 import ExpertShape
from dmoerm.training.phase3 import AggregatorSettings
from dmoerm.training.progress import RunLog
from dmoerm.training.router import RouterData, train_router
from dmoerm.training.rows import Rows, TrunkStates
from dmoerm.training.trainer import PhaseSettings

__all__ = [
    "Prepared",
    "TrainResult",
    "computes_bf16",
    "everyone_of",
    "inner_plan",
    "load_backbone",
    "prepare",
    "run_folder",
    "train_inner_models",
    "train_model",
    "train_recipe",
]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A trained model, the comparisons it has not seen, and what was measured on the way."""

    model: RewardModel
    test: tuple[Comparison, ...]
    metrics: dict[str, Any]


@dataclass(slots=True)
class Prepared:
    """What every model of a run starts from: backbone, tokenizer, rendered rows, trunk states. Several models may be trained on one."""

    backbone: Backbone
    renderer: Renderer
    work: Workspace
    comparisons: list[Comparison]
    labelled: list[Comparison]


def train_recipe(
    recipe: Recipe, *, overwrite: bool = False, resume: bool = False, force_resume: bool = False, quiet: bool = False
) -> TrainResult:
    """Run a recipe from its files to the saved model at `recipe.output`.

    Under a launcher of several processes (`accelerate launch`, `torchrun`) every process calls this; the first one writes and tells.

    Args:
        recipe: the run.
        overwrite: replace a model of ours at the output; an unfinished run is begun anew unless `resume` is given as well.
        resume: go on with an unfinished run of this recipe; where there is none, begin one.
        force_resume: go on although data, recipe, backbone or processes have changed since; what changed is recorded.
        quiet: no progress on stderr.

    Raises:
        DataError: its data cannot be used.
        TrainingError: nothing can be trained, a phase fails, or an unfinished run is in the way or differs.
        ArtifactError: the output folder is taken.
    """
    from dmoerm.modeling.artifact import check_target

    check_target(recipe.output, overwrite=overwrite)
    data = load_run_data(recipe)
    folder = run_folder(recipe.output)
    resume = resume or force_resume
    if (folder / RUN_FILE).is_file() and not (resume or overwrite):
        raise TrainingError(
            f"{folder} holds an unfinished run; nothing was done. Go on with it: --resume. Begin anew, losing it: --overwrite."
        )
    wait_for_everyone()  # who looked after the first process had begun would find its run unfinished
    first = is_first_process()
    with RunLog(folder if first else None, quiet=quiet or not first, append=resume) as log:
        state = RunState(folder, writes=first, every_steps=recipe.training.checkpoint_steps, say=log.say)
        result = train_model(data, recipe, log=log, state=state, resume=resume, force_resume=force_resume)
        if first:
            (folder / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
            result.model.save_pretrained(recipe.output, overwrite=overwrite)
            state.close(keep_units=recipe.task_model.kind == "lora")
            log.say(f"saved to {recipe.output}")
    wait_for_everyone()
    return result


def train_model(
    data: RunData,
    recipe: Recipe,
    *,
    log: RunLog | None = None,
    state: RunState | None = None,
    resume: bool = False,
    force_resume: bool = False,
) -> TrainResult:
    """Train the double-layer model on records already read; see `train_recipe`. Without a `state` nothing is kept on the way."""
    log = log or RunLog(None, quiet=True)
    backbone, renderer = load_backbone(recipe)
    state = state or RunState(None)
    fingerprint = run_fingerprint(recipe, data, backbone, renderer)
    state.begin(fingerprint, resume=resume, force=force_resume)
    wait_for_everyone()
    prepared = prepare(data.comparisons, data.labelled, recipe, log, backbone=backbone, renderer=renderer, state=state)
    router, router_metrics = train_run_router(prepared, recipe, data, data.taxonomy)
    comparisons = with_categories(prepared.comparisons, prepared, router)
    labelled = with_categories(prepared.labelled, prepared, router)
    results = train_inner_models(prepared, comparisons, labelled, data.taxonomy, recipe)
    metrics = _metrics(results, router_metrics, prepared)
    model = assemble(prepared, router, results, recipe, data, metrics)
    return TrainResult(model, data.test, metrics)


def train_inner_models(
    prepared: Prepared, comparisons: Sequence[Comparison], labelled: Sequence[Comparison], taxonomy: Taxonomy, recipe: Recipe
) -> dict[str, InnerResult]:
    """The inner model of every category with enough comparisons, and of the fallback, by name.

    Args:
        prepared: the run; the adapters are left in its backbone.
        comparisons: with overall preferences and categories.
        labelled: with capability labels and categories; may repeat comparisons.
        taxonomy: the categories and their capabilities.
        recipe: the phases.
    """
    plan = inner_plan(recipe, prepared)
    results: dict[str, InnerResult] = {}
    for category in taxonomy.categories:
        own = [c for c in comparisons if c.category == category.name]
        preferred = sum(c.has_preference for c in own)
        if preferred < recipe.task_model.minimum_comparisons:
            if preferred:
                prepared.work.log.say(
                    f"{category.name}: {preferred} comparisons, fewer than {recipe.task_model.minimum_comparisons}; "
                    "the fallback (general) judges it"
                )
            continue
        own_labels = [c for c in labelled if c.category == category.name]
        results[category.name] = train_inner(prepared.work, category.name, own, own_labels, category.capability_names, plan)
    results[GENERAL] = train_inner(prepared.work, GENERAL, comparisons, labelled, taxonomy.capability_names, plan)
    return results


def train_run_router(prepared: Prepared, recipe: Recipe, data: RunData, taxonomy: Taxonomy) -> tuple[Router, dict[str, Any]]:
    """The router over the categories of `taxonomy`, from every row of the run that names one of them."""
    rows = [*data.prompts, *((c.prompt, c.category) for c in (*data.comparisons, *data.labels) if c.category is not None)]
    return train_router(
        prepared.backbone,
        prepared.renderer,
        RouterData.of([(prompt, category) for prompt, category in rows if category in taxonomy.category_names]),
        taxonomy.category_names,
        general_below=recipe.router.general_below,
        finetune=_router_settings(recipe, prepared.work.bf16) if recipe.router.features == "finetuned" else None,
        rank=recipe.experts.rank,
        seed=recipe.seed,
        log=prepared.work.log,
    )


def run_fingerprint(recipe: Recipe, data: RunData, backbone: Backbone, renderer: Renderer) -> dict[str, Any]:
    """What the weights of a run depend on, field by field: recipe without paths and machine, data, backbone, tokens.

    The number of threads is not in it: it moves results by rounding only.
    """
    skipped = {
        "output",
        "evaluation",
        "labeling",
        "data.comparisons",
        "data.labels",
        "data.prompts",
        "data.test",
        "taxonomy",
        "backbone.name",
    }
    skipped |= {f"training.{name}" for name in ("report_to", "device", "trunk_cache_mib", "checkpoint_steps", "gradient_checkpointing")}
    fields = {name: value for name, value in _flat(recipe.model_dump(mode="json")) if not skipped & {name, name.partition(".")[0]}}
    for name, rows in (("comparisons", data.comparisons), ("labels", data.labels), ("test", data.test)):
        fields[f"data.{name}"] = f"{len(rows)} rows, {content_key([to_native(row) for row in rows])[:12]}"
    fields["data.prompts"] = f"{len(data.prompts)} rows, {content_key([(p[-1].content, c) for p, c in data.prompts])[:12]}"
    fields["taxonomy"] = content_key(data.taxonomy.model_dump_json())[:12]
    fields["backbone.sha256"] = backbone.fingerprint()
    fields["tokens.sha256"] = renderer.fingerprint()
    fields["processes"] = int(os.environ.get("WORLD_SIZE", "1"))
    fields["dmoerm"] = version("dmoerm")
    return fields


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def prepare(
    comparisons: Sequence[Comparison],
    labelled: Sequence[Comparison],
    recipe: Recipe,
    log: RunLog,
    *,
    backbone: Backbone,
    renderer: Renderer,
    state: RunState,
    keep: Path | None = None,
) -> Prepared:
    """Render every row, and run the frozen trunk over them once.

    Args:
        comparisons: with overall preferences.
        labelled: with capability labels; may repeat comparisons.
        recipe: the run.
        log: progress.
        backbone: of the recipe.
        renderer: of the recipe.
        state: where finished phases are kept.
        keep: a folder for the trunk's states, which a later run on the same rows then does not compute again; None keeps none.

    Raises:
        TrainingError: more rows are unusable than `data.max_drop_fraction` allows, or nothing is left.
    """
    rows = Rows(renderer.tokenizer.pad_token_id)
    ranked = rows.add(comparisons, renderer)
    labels = rows.add(labelled, renderer)
    dropped = len(comparisons) + len(labelled) - len(ranked) - len(labels)
    if dropped > recipe.data.max_drop_fraction * (len(comparisons) + len(labelled)):
        raise TrainingError(
            f"{dropped} of {len(comparisons) + len(labelled)} comparisons cannot be rendered, more than data.max_drop_fraction "
            f"({recipe.data.max_drop_fraction:g}). Fix them, or raise that limit. What became of the responses:\n{rows.counts.as_table()}"
        )
    log.say(f"responses as the model reads them\n{rows.counts.as_table()}")
    bf16 = use_bf16(recipe, backbone.device)
    numbers = sorted({row for c in [*ranked, *labels] for row in rows.of_comparison[c.id]})
    states = None
    if recipe.task_model.kind == "lora":
        layer = backbone.first_layer(recipe.task_model.depth)
        if (
            layer > 0
            and TrunkStates.bytes_needed(rows, numbers, backbone.hidden_size, bf16=bf16) <= recipe.training.trunk_cache_mib * 2**20
        ):
            states = _trunk_states(backbone, renderer, rows, numbers, layer, bf16=bf16, keep=keep)
    vectors = task_vectors(backbone, rows, numbers, task=None, states=states, bf16=bf16)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    key = content_key(backbone.fingerprint(), processes, bf16, recipe.training.sampled_positions)
    everyone = everyone_of(ranked, labels, recipe)
    return Prepared(backbone, renderer, Workspace(backbone, rows, vectors, states, bf16, log, state, key, everyone), ranked, labels)


def everyone_of(comparisons: Sequence[Comparison], labelled: Sequence[Comparison], recipe: Recipe) -> Everyone | None:
    """What first heads are fitted near, no head fitted yet; None where the recipe lets each category stand alone."""
    if not recipe.training.share_heads:
        return None
    capabilities = sorted({label.capability for c in labelled for label in c.labels} - {OVERALL})
    return Everyone(comparisons, labelled, capabilities, content_key([to_native(c) for c in [*comparisons, *labelled]]))


def _trunk_states(
    backbone: Backbone, renderer: Renderer, rows: Rows, numbers: Sequence[int], layer: int, *, bf16: bool, keep: Path | None
) -> TrunkStates:
    def compute() -> TrunkStates:
        return TrunkStates.compute(backbone, rows, numbers, layer, bf16=bf16)

    if keep is None:
        return compute()
    tokens = torch.tensor([token for row in numbers for token in rows.rendered[row].input_ids])
    key = content_key(backbone.fingerprint(), renderer.fingerprint(), layer, bf16, list(numbers), rows.lengths(numbers), tokens)
    return TrunkStates.kept(keep / f"trunk-{key[:16]}.safetensors", compute)


def load_backbone(recipe: Recipe) -> tuple[Backbone, Renderer]:
    """The recipe's backbone on its device, and the renderer that goes with it."""
    options = recipe.backbone
    backbone = Backbone.load(
        options.name,
        revision=options.revision,
        pooling=options.pooling,
        attention=options.attention,
        target_modules=options.target_modules,
        keep_layers=options.used_layers(),
    ).to(_device(recipe))
    backbone.sampled_positions = recipe.training.sampled_positions
    return backbone, Renderer(load_tokenizer(options.name, options.revision), options.max_length_tokens)


def with_categories(comparisons: Sequence[Comparison], prepared: Prepared, router: Router) -> list[Comparison]:
    """Comparisons without a category get the router's first choice."""
    unknown = [c for c in comparisons if c.category is None]
    if not unknown or not router.categories:
        return list(comparisons)
    vectors = prompt_vectors(prepared.backbone, prepared.renderer, [c.prompt for c in unknown], finetuned=router.finetuned)
    with torch.no_grad():
        best = router.to(vectors.device).logits(vectors).argmax(-1).tolist()
    chosen = {c.id: router.categories[index] for c, index in zip(unknown, best, strict=True)}
    return [replace(c, category=chosen.get(c.id, c.category)) for c in comparisons]


def assemble(
    prepared: Prepared, router: Router, results: dict[str, InnerResult], recipe: Recipe, data: RunData, metrics: dict[str, Any]
) -> RewardModel:
    """Put the trained parts together."""
    own = {name: result.backbone for name, result in results.items() if result.backbone is not prepared.backbone}
    inner: dict[str, InnerModel] = {name: result.inner for name, result in results.items()}
    return RewardModel(
        prepared.backbone,
        prepared.renderer,
        router,
        inner,
        own_backbones=own,
        taxonomy=data.taxonomy,
        aggregation=recipe.aggregator.default,
        uwo_penalty=recipe.aggregator.uwo_penalty,
        metadata={"recipe_hash": recipe_hash(recipe), "recipe": dump_recipe(recipe), "version": version("dmoerm"), **metrics},
    ).to(prepared.backbone.device)


def inner_plan(recipe: Recipe, prepared: Prepared) -> InnerPlan:
    """The recipe's phases as the inner models need them."""
    bf16 = prepared.work.bf16
    task, expert, aggregator = recipe.task_model, recipe.experts, recipe.aggregator
    return InnerPlan(
        task_shape=TaskModelShape(
            None if task.kind == "full" else task.depth, task.rank, task.alpha, task.dropout, task.fit_head, task.use_margin
        ),
        expert_shape=ExpertShape(expert.depth, expert.rank, expert.alpha, expert.dropout, expert.with_task_model, expert.fit_heads),
        task_settings=_phase_settings(task, recipe, bf16),
        expert_settings=_phase_settings(expert, recipe, bf16),
        aggregator=AggregatorSettings(
            learning_rate=aggregator.learning_rate,
            weight_decay=aggregator.weight_decay,
            epochs=aggregator.epochs,
            members=aggregator.members,
            units=prepared.backbone.hidden_size if aggregator.hidden_size == "hidden" else aggregator.hidden_size,
            seed=recipe.seed,
            uwo_penalty=aggregator.uwo_penalty,
        ),
        folds=aggregator.cross_fit_folds,
        holdout_fraction=aggregator.holdout_fraction,
        minimum_labels=expert.minimum_labels,
        seed=recipe.seed,
        trunk_cache_mib=recipe.training.trunk_cache_mib,
    )


def _phase_settings(options: TaskModelOptions | ExpertOptions, recipe: Recipe, bf16: bool) -> PhaseSettings:
    """How phase 1 or 2 is optimised: its own section of the recipe, and what both share."""
    return PhaseSettings(
        learning_rate=options.learning_rate,
        epochs=options.epochs,
        comparisons_per_batch=options.comparisons_per_batch,
        weight_decay=options.weight_decay,
        warmup_fraction=options.warmup_fraction,
        gradient_accumulation_steps=recipe.task_model.gradient_accumulation_steps,
        seed=recipe.seed,
        bf16=bf16,
        report_to=recipe.training.report_to,
        gradient_checkpointing=recipe.training.gradient_checkpointing,
    )


def use_bf16(recipe: Recipe, device: torch.device) -> bool:
    """Whether phases 1 and 2 run in bf16: as the recipe says, or where the device computes in it."""
    return computes_bf16(device) if recipe.training.precision == "auto" else recipe.training.precision == "bf16"


def computes_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bf16; elsewhere it would be slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and cpu_computes_bf16()


def is_first_process() -> bool:
    """True for the process that writes, where a launcher has started several."""
    return int(os.environ.get("RANK", "0")) == 0


def wait_for_everyone() -> None:
    """A barrier where a launcher has started several processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()


def _device(recipe: Recipe) -> torch.device:
    name = recipe.training.device
    if name == "auto":
        local = os.environ.get("LOCAL_RANK")
        return torch.device(("cuda" if local is None else f"cuda:{local}") if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"training.device is {name!r}; expected auto, cpu, cuda, cuda:1 or mps") from error


def _router_settings(recipe: Recipe, bf16: bool) -> PhaseSettings:
    return PhaseSettings(
        learning_rate=recipe.router.learning_rate,
        epochs=recipe.router.epochs,
        comparisons_per_batch=recipe.task_model.comparisons_per_batch,
        weight_decay=0.0,
        warmup_fraction=0.1,
        gradient_accumulation_steps=1,
        seed=recipe.seed,
        bf16=bf16,
        report_to=recipe.training.report_to,
    )


def _metrics(results: dict[str, InnerResult], router: dict[str, Any], prepared: Prepared) -> dict[str, Any]:
    counts = prepared.work.rows.counts
    return {
        "router": router,
        "categories": {name: result.metrics for name, result in results.items()},
        "rendering": {
            "kept": counts.kept,
            "truncated_prompt": counts.truncated_prompt,
            "truncated_response": counts.truncated_response,
            "dropped": dict(counts.dropped),
        },
        "labels": dict(Counter(label.capability for c in prepared.labelled for label in c.labels)),
    }
