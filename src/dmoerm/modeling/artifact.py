"""The saved model: one folder, safetensors only, every file hashed, and canary texts whose rewards loading must reproduce.

    dmoerm.json                                  manifest: format, taxonomy, backbone, rendering, categories, canaries, file hashes
    tokenizer/                                   as `transformers` saves it
    router/router.safetensors                    the outer layer
    router/adapter/                              where it was fine-tuned
    categories/<category>/task_adapter/          phase 1 in PEFT's format (lora)
    categories/<category>/backbone.safetensors   phase 1 (full fine-tuning)
    categories/<category>/experts/<capability>/  one expert in PEFT's format, its head beside the LoRA
    categories/<category>/aggregator.safetensors aggregator, statistics, calibration, task head
    README.md                                    model card

The shared backbone is not copied: its name, revision and hash are in the manifest, and loading refuses another one. The same model saved
twice gives the same bytes. Loading reads nothing but JSON and safetensors, and runs nobody's code.
"""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dmoerm.data.rendering import Renderer
from dmoerm.errors import ArtifactError, ConfigError
from dmoerm.modeling.adapter_files import fill_adapter, read_tensors, require_shapes, save_adapter, write_tensors
from dmoerm.modeling.backbone import Backbone
from dmoerm.modeling.canaries import compare_canaries, measure_canaries
from dmoerm.modeling.file_checks import verify_files
from dmoerm.modeling.inner import InnerModel
from dmoerm.modeling.manifest import (
    CARD,
    FORMAT_VERSION,
    MANIFEST,
    AdapterShape,
    BackboneEntry,
    CategoryEntry,
    Manifest,
    RenderingEntry,
    RouterEntry,
    read_manifest,
)
from dmoerm.modeling.model_card import model_card
from dmoerm.modeling.model_folder import cut_short, file_names, refuse_taken, sha256_of, written_whole
from dmoerm.modeling.reward_model import RewardModel
from dmoerm.modeling.router import ROUTER, Router
from dmoerm.taxonomy import TASK_MEMBER

__all__ = [
    "assemble",
    "check_target",
    "find_model",
    "load_model",
    "pick_device",
    "save_model",
    "save_tokenizer",
]


# --- saving -------------------------------------------------------------------------------------------------------------------------


def save_model(model: RewardModel, folder: Path, *, overwrite: bool = False) -> None:
    """Write `model` as `folder`, whole or not at all.

    Raises:
        ArtifactError: the folder exists and is no model of ours, or is one and `overwrite` is False; or a canary has no finite reward.
    """
    check_target(folder, overwrite=overwrite)
    with written_whole(folder) as partial:
        _write(model, partial)


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Refuse a target folder that is taken.

    Raises:
        ArtifactError: it holds something that is no model of ours, or a model and `overwrite` is False.
    """
    refuse_taken(folder, marker=MANIFEST, what="model", overwrite=overwrite)


def _write(model: RewardModel, folder: Path) -> None:
    save_tokenizer(model.renderer.tokenizer, folder / "tokenizer")
    write_tensors(model.router.state_dict(), folder / "router" / "router.safetensors")
    if model.router.finetuned:
        save_adapter(model.backbone, "task", ROUTER, 0, folder / "router" / "adapter", head=None)
    contents: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "dmoerm_version": version("dmoerm"),
        "backbone": BackboneEntry(
            name=model.backbone.name,
            revision=model.backbone.revision,
            sha256=model.backbone.fingerprint(),
            pooling=model.backbone.pooling,
            keep_layers=model.backbone.keep_layers,
            target_modules=tuple(model.backbone.target_modules),
            attention=_plain_attention(model.backbone),
        ),
        "rendering": RenderingEntry(max_length_tokens=model.renderer.max_length_tokens, sha256=model.renderer.fingerprint()),
        "router": RouterEntry(
            categories=model.router.categories,
            general_below=model.router.general_below,
            finetuned=model.router.finetuned,
            adapter=_shape(model.backbone, "task", ROUTER) if model.router.finetuned else None,
        ),
        "categories": {name: _write_category(model, name, folder / "categories" / name) for name in model.inner},
        "taxonomy": model.taxonomy,
        "aggregation": model.aggregation,
        "uwo_penalty": model.uwo_penalty,
        "metadata": model.metadata,
        "canaries": measure_canaries(model),
        "files": {path: sha256_of(folder / path) for path in file_names(folder)},
    }
    manifest = Manifest(**contents)
    (folder / CARD).write_text(model_card(manifest), encoding="utf-8")
    (folder / MANIFEST).write_text(manifest.as_json(), encoding="utf-8")


def _write_category(model: RewardModel, name: str, folder: Path) -> CategoryEntry:
    inner, own = model.inner[name], model.own_backbones.get(name)
    backbone = own or model.backbone
    if own is not None:
        write_tensors(_plain_state(own), folder / "backbone.safetensors")
    else:
        save_adapter(backbone, "task", name, 0, folder / "task_adapter", head=inner.task_head_D)
    for capability in inner.capabilities:
        member = inner.members.index(capability)
        save_adapter(backbone, "experts", name, member, folder / "experts" / capability, head=inner.heads_KD[member])
    write_tensors({key: value for key, value in inner.state_dict().items() if key != "heads_KD"}, folder / "aggregator.safetensors")
    return CategoryEntry(
        capabilities=inner.capabilities,
        with_task_member=inner.with_task_member,
        units=inner.aggregator.inner_SHV.shape[1],
        copies=inner.aggregator.inner_SHV.shape[0],
        full=own is not None,
        task_adapter=None if own is not None else _shape(backbone, "task", name),
        experts=_shape(backbone, "experts", name) if inner.capabilities else None,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The tokenizer's files, without what only tells of the machine that it was loaded on."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("is_local", "local_files_only", "name_or_path", "_name_or_path"):
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def _shape(backbone: Backbone, kind: str, name: str) -> AdapterShape:
    return AdapterShape(**backbone.adapter_config[f"{kind}/{name}"])


def _plain_attention(backbone: Backbone) -> str:
    """The implementation's plain name; transformers may have put a kernel of the Hub in its place."""
    found = str(backbone.model.config._attn_implementation)
    return found if found.replace("_", "").isalnum() else "flash_attention_2"


def _plain_state(backbone: Backbone) -> dict[str, Tensor]:
    """Base weights of a fully fine-tuned backbone by their names in our wrapped model, adapters left out."""
    return {path: value for path, value in backbone.model.state_dict().items() if ".task." not in path and ".experts." not in path}


# --- loading ------------------------------------------------------------------------------------------------------------------------


def load_model(
    name: str | Path, *, revision: str | None = None, device: str = "auto", check: bool = True, backbone: str | Path | None = None
) -> RewardModel:
    """A saved model, ready to score; see `RewardModel.from_pretrained`."""
    folder = find_model(name, revision)
    manifest = read_manifest(folder)
    if check:
        verify_files(folder, manifest)
    model = assemble(folder, manifest, device=device, check=check, backbone=backbone)
    if check and (problems := compare_canaries(model, manifest).problems):
        raise ArtifactError(f"{folder}: {'; '.join(problems[:3])}. Copy the model again.")
    return model


def find_model(name: str | Path, revision: str | None = None) -> Path:
    """The folder itself, or where the Hub's copy was downloaded to.

    Raises:
        ArtifactError: there is neither.
    """
    if Path(name).exists():
        return Path(name)
    if left := cut_short(Path(name)):
        raise ArtifactError(f"{name}: no such folder. {left}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.md", "*.txt", "*.jinja", "*.model"]
    try:
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ArtifactError(
            f"{name}: no such folder, and not to be had from the Hub ({type(error).__name__}). Check the path or the name."
        ) from error


def assemble(
    folder: Path, manifest: Manifest, *, device: str = "auto", check: bool = True, backbone: str | Path | None = None
) -> RewardModel:
    """Build the model from its files. The canaries are not scored here.

    Args:
        folder: the saved model.
        manifest: its manifest.
        device: as for `RewardModel.from_pretrained`.
        check: compare the backbone's weights and the rendering with the manifest.
        backbone: where the backbone lies now.

    Raises:
        ArtifactError: the backbone or the rendering is another one; a weight is missing, foreign or of another shape.
        ConfigError: the backbone cannot be found.
    """
    shared = _load_backbone(manifest.backbone, backbone, check=check)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
    renderer = Renderer(tokenizer, manifest.rendering.max_length_tokens)
    if check and renderer.fingerprint() != manifest.rendering.sha256:
        raise ArtifactError(
            f"{folder / 'tokenizer'}: this installation renders text to other tokens than the one that trained the model "
            f"(tokenizer, chat template or rendering rules differ). Install dmoerm {manifest.dmoerm_version}, which made it."
        )
    router = _load_router(folder / "router", manifest.router, shared)
    inner: dict[str, InnerModel] = {}
    own: dict[str, Backbone] = {}
    for category, entry in manifest.categories.items():
        home = folder / "categories" / category
        if entry.full:
            own[category] = _load_backbone(manifest.backbone, backbone, check=False)
            _fill(
                own[category].model, _plain_state(own[category]), read_tensors(home / "backbone.safetensors"), home / "backbone.safetensors"
            )
        inner[category] = _load_inner(home, category, entry, own.get(category, shared))
    return RewardModel(
        shared,
        renderer,
        router,
        inner,
        own_backbones=own,
        taxonomy=manifest.taxonomy,
        aggregation=manifest.aggregation,
        uwo_penalty=manifest.uwo_penalty,
        metadata=manifest.metadata,
    ).to(pick_device(device))


def pick_device(device: str) -> torch.device:
    """The named device; auto is CUDA where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def _load_backbone(entry: BackboneEntry, elsewhere: str | Path | None, *, check: bool) -> Backbone:
    name = entry.name if elsewhere is None else str(elsewhere)
    revision = entry.revision if elsewhere is None else None
    try:
        found = Backbone.load(
            name,
            revision=revision,
            pooling=entry.pooling,
            attention=entry.attention,
            target_modules=entry.target_modules,
            keep_layers=entry.keep_layers,
        )
    except ConfigError as error:
        if elsewhere is not None:
            raise
        raise ConfigError(
            f"{error} The model was trained on it; where it lies elsewhere now, name the place (backbone, --backbone)."
        ) from error
    if check and (digest := found.fingerprint()) != entry.sha256:
        raise ArtifactError(
            f"backbone {name}: its weights hash to {digest[:12]}…, the model was trained on {entry.sha256[:12]}…. "
            "The experts fit only that checkpoint; name the same revision."
        )
    return found


def _load_router(folder: Path, entry: RouterEntry, backbone: Backbone) -> Router:
    router = Router(entry.categories, backbone.hidden_size, general_below=entry.general_below, finetuned=entry.finetuned)
    _fill(router, router.state_dict(), read_tensors(folder / "router.safetensors"), folder / "router.safetensors")
    if entry.adapter is not None:
        _add(backbone, "task", ROUTER, entry.adapter, folder / "adapter")
        fill_adapter(backbone, "task", ROUTER, 0, folder / "adapter", head=False)
    return router


def _load_inner(folder: Path, category: str, entry: CategoryEntry, backbone: Backbone) -> InnerModel:
    inner = InnerModel(
        category,
        entry.capabilities,
        backbone.hidden_size,
        units=entry.units,
        copies=entry.copies,
        with_task_member=entry.with_task_member,
    )
    path = folder / "aggregator.safetensors"
    _fill(inner, {key: value for key, value in inner.state_dict().items() if key != "heads_KD"}, read_tensors(path), path)
    heads_KD = inner.heads_KD.data
    if inner.with_task_member:
        heads_KD[inner.members.index(TASK_MEMBER)] = inner.task_head_D.data
    if entry.task_adapter is not None:
        _add(backbone, "task", category, entry.task_adapter, folder / "task_adapter")
        head = fill_adapter(backbone, "task", category, 0, folder / "task_adapter", head=True)
        if head is None or not torch.equal(head, inner.task_head_D.data):
            raise ArtifactError(f"{folder / 'task_adapter'}: its head is not the one of {path.name}. Copy the model again.")
    if entry.experts is not None:
        _add(backbone, "experts", category, entry.experts, folder / "experts")
        for capability in entry.capabilities:
            member = inner.members.index(capability)
            head = fill_adapter(backbone, "experts", category, member, folder / "experts" / capability, head=True)
            assert head is not None
            heads_KD[member] = head
    return inner


def _add(backbone: Backbone, kind: str, name: str, shape: AdapterShape, folder: Path) -> None:
    depth = len(backbone.layers) - shape.first_layer
    if depth < 1:
        raise ArtifactError(f"{folder}: it starts at layer {shape.first_layer}, and {backbone.name} has {len(backbone.layers)} layers.")
    settings: dict[str, Any] = {"depth": depth, "rank": shape.rank, "alpha": shape.alpha, "dropout": shape.dropout}
    if kind == "task":
        backbone.add_task_adapter(name, **settings)
    else:
        backbone.add_experts(name, shape.copies, **settings)


def _fill(module: nn.Module, expected: Mapping[str, Tensor], tensors: dict[str, Tensor], path: Path) -> None:
    """Load a module's tensors, all of those expected and no other."""
    require_shapes({k: tuple(v.shape) for k, v in tensors.items()}, {k: tuple(v.shape) for k, v in expected.items()}, path)
    module.load_state_dict(tensors, strict=False)  # the names have been compared
