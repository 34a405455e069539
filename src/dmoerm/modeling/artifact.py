"""The saved model: one folder, safetensors only, every file hashed, and canary texts whose rewards loading must reproduce.

    dmoerm.json                                  manifest: format, taxonomy, backbone, rendering, categories, canaries, file hashes
    tokenizer/                                   as `transformers` saves it
    router/router.safetensors                    the outer layer
    categories/<category>/task_adapter/          phase 1 in PEFT's format (lora)
    categories/<category>/backbone.safetensors   phase 1 (full fine-tuning)
    categories/<category>/experts/<capability>/  one expert in PEFT's format, its head beside the LoRA
    categories/<category>/aggregator.safetensors aggregator, statistics, calibration, task head
    README.md                                    model card

The shared backbone is not copied: its name, revision and hash are in the manifest, and loading refuses another one.
Saving writes beside the target and renames, so a folder of that name is always whole. Loading reads nothing but JSON and safetensors.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from dmoerm.data.rendering import Renderer
from dmoerm.errors import ArtifactError
from dmoerm.modeling.backbone import Backbone
from dmoerm.modeling.experts import LowRank
from dmoerm.modeling.inner import TASK_MEMBER, InnerModel
from dmoerm.modeling.reward_model import RewardModel, ScoreRequest, as_messages
from dmoerm.modeling.router import ROUTER, Router
from dmoerm.records import Reward
from dmoerm.taxonomy import Taxonomy

__all__ = ["FORMAT_VERSION", "MANIFEST", "check_target", "load_model", "read_manifest", "save_model", "verify_files"]

FORMAT_VERSION = 1
MANIFEST = "dmoerm.json"
REFUSED_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy"})
"""Files that can carry code, or that we never write."""

CANARY_TOLERANCE = 2e-3
"""Reward units by which a canary may move between machines in float32."""

CANARIES = (
    ("What is the boiling point of water at sea level?", "Pure water boils at 100 degrees Celsius at sea level."),
    ("What is the boiling point of water at sea level?", "Water is wet, and soup is often served hot."),
    ("Write two lines about autumn.", "Leaves let go without a word,\nand the wind reads them aloud."),
    ("My cat died last night and I can't stop crying.", "Cats live about fifteen years. Consider a dog."),
    ("Should I learn the piano at forty?", "Yes, if an hour a day pleases you: adults progress steadily, and nobody asks for a career."),
    (
        "You are a ship's captain. Tell me a storm is coming.",
        "Reef the mains, lad! That sky has teeth, and I mean to see the harbour again.",
    ),
)
"""Prompt and response pairs scored at saving and again at loading, through the router and through every category."""


# --- saving -------------------------------------------------------------------------------------------------------------------------


def save_model(model: RewardModel, folder: Path, *, overwrite: bool = False) -> None:
    """Write `model` as `folder`, whole or not at all.

    Raises:
        ArtifactError: the folder exists and is no model of ours, or is one and `overwrite` is False.
    """
    check_target(folder, overwrite=overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _write(model, partial)
        if folder.exists():
            old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
            folder.rename(old)
            partial.rename(folder)
            shutil.rmtree(old)
        else:
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Refuse a target folder that is taken.

    Raises:
        ArtifactError: it holds something that is no model of ours, or a model and `overwrite` is False.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(f"{folder} exists and holds no dmoerm model; nothing was written. Choose another folder.")
    if not overwrite:
        raise ArtifactError(f"{folder} already holds a model; nothing was written. Choose another folder, or pass overwrite (--overwrite).")


def _write(model: RewardModel, folder: Path) -> None:
    model.renderer.tokenizer.save_pretrained(folder / "tokenizer")
    _save_tensors(model.router, folder / "router" / "router.safetensors")
    if model.router.finetuned:
        _save_adapter(model.backbone, "task", ROUTER, 0, folder / "router" / "adapter", head=None)
    categories = {}
    for name, inner in model.inner.items():
        target = folder / "categories" / name
        own = model.own_backbones.get(name)
        backbone = own or model.backbone
        entry: dict[str, Any] = {
            "capabilities": list(inner.capabilities),
            "with_task_member": inner.with_task_member,
            "units": inner.aggregator.inner_SHV.shape[1],
            "copies": inner.aggregator.inner_SHV.shape[0],
            "full": own is not None,
        }
        if own is not None:
            target.mkdir(parents=True)
            save_file({path: tensor.contiguous() for path, tensor in _plain_state(own)}, target / "backbone.safetensors")
        else:
            _save_adapter(backbone, "task", name, 0, target / "task_adapter", head=inner.task_head_D)
            entry["task_adapter"] = backbone.adapter_config[f"task/{name}"]
        if inner.capabilities:
            entry["experts"] = backbone.adapter_config[f"experts/{name}"]
            for capability in inner.capabilities:
                member = inner.members.index(capability)
                _save_adapter(backbone, "experts", name, member, target / "experts" / capability, head=inner.heads_KD[member])
        state = {key: value for key, value in inner.state_dict().items() if key != "heads_KD"}
        target.mkdir(parents=True, exist_ok=True)
        save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, target / "aggregator.safetensors")
        categories[name] = entry
    manifest = {
        "format_version": FORMAT_VERSION,
        "dmoerm_version": version("dmoerm"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "backbone": {
            "name": model.backbone.name,
            "revision": model.backbone.revision,
            "sha256": model.backbone.fingerprint(),
            "pooling": model.backbone.pooling,
            "keep_layers": model.backbone.keep_layers,
            "target_modules": list(model.backbone.target_modules),
            "attention": model.backbone.model.config._attn_implementation,
        },
        "rendering": {"max_length_tokens": model.renderer.max_length_tokens, "sha256": model.renderer.fingerprint()},
        "router": {
            "categories": list(model.router.categories),
            "general_below": model.router.general_below,
            "finetuned": model.router.finetuned,
            "adapter": model.backbone.adapter_config.get(f"task/{ROUTER}"),
        },
        "categories": categories,
        "taxonomy": json.loads(model.taxonomy.model_dump_json()),
        "aggregation": model.aggregation,
        "uwo_penalty": model.uwo_penalty,
        "metadata": model.metadata,
        "canaries": _canary_rewards(model),
    }
    (folder / "README.md").write_text(_model_card(manifest), encoding="utf-8")
    manifest["files"] = {path: _sha256(folder / path) for path in _files(folder)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _save_tensors(module: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}, path)


def _plain_state(backbone: Backbone) -> Iterator[tuple[str, Tensor]]:
    """Base weights of a fully fine-tuned backbone by their names in our wrapped model, adapters left out."""
    for path, tensor in backbone.model.state_dict().items():
        if ".task." not in path and ".experts." not in path:
            yield path, tensor.detach().cpu()


def _save_adapter(backbone: Backbone, kind: Any, name: str, member: int, folder: Path, *, head: Tensor | None) -> None:
    """One adapter as PEFT would save it: LoRA of a sequence classifier, its head a saved module."""
    folder.mkdir(parents=True)
    prefix = f"base_model.model.{backbone.model.base_model_prefix}."
    tensors: dict[str, Tensor] = {}
    updates = backbone.adapters(kind, name)
    for path, update in updates.items():
        tensors[f"{prefix}{path}.lora_A.weight"] = update.a_KRD[member]
        tensors[f"{prefix}{path}.lora_B.weight"] = update.b_KOR[member]
    if head is not None:
        tensors["base_model.model.score.weight"] = head.unsqueeze(0)
    save_file(
        {key: value.detach().cpu().float().contiguous().clone() for key, value in tensors.items()}, folder / "adapter_model.safetensors"
    )
    config = backbone.adapter_config[f"{kind}/{name}"]
    peft = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": backbone.name,
        "revision": backbone.revision,
        "r": config["rank"],
        "lora_alpha": config["alpha"],
        "lora_dropout": config["dropout"],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted({path.rsplit(".", 1)[-1] for path in updates}),
        "layers_to_transform": list(range(config["first_layer"], len(backbone.layers))),
        "modules_to_save": None if head is None else ["score"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(peft, indent=2) + "\n", encoding="utf-8")


def _canary_rewards(model: RewardModel) -> list[dict[str, Any]]:
    requests = _canary_requests(model)
    results = [rewards[0] for rewards in model.score_many(requests)]
    entries = []
    for request, result in zip(requests, results, strict=True):
        assert isinstance(result, Reward)
        entries.append(
            {
                "prompt": request.prompt[0].content,
                "response": request.responses[0],
                "category": request.category,
                "judged_by": result.category,
                "reward": result.reward,
                "capabilities": dict(result.capabilities),
            }
        )
    return entries


def _canary_requests(model: RewardModel) -> list[ScoreRequest]:
    routed = [ScoreRequest(as_messages(prompt), (response,)) for prompt, response in CANARIES]
    return routed + [ScoreRequest(as_messages(p), (r,), category) for category in model.inner for p, r in CANARIES[:2]]


def _model_card(manifest: Mapping[str, Any]) -> str:
    rows = []
    metrics = manifest["metadata"].get("categories", {})
    for name, entry in manifest["categories"].items():
        measured = metrics.get(name, {})
        agreement = measured.get("held_out_accuracy")
        count = measured.get("comparisons", "")
        held = f"{agreement:.3f}" if isinstance(agreement, float) else ""
        rows.append(f"| {name} | {', '.join(entry['capabilities']) or 'none (task model alone)'} | {count} | {held} |")
    return "\n".join(
        [
            "---",
            "library_name: dmoerm",
            "tags: [reward-model, preference-learning, mixture-of-experts, lora]",
            f"base_model: {manifest['backbone']['name']}",
            "---",
            "",
            "# Reward model that routes by task and judges by capability",
            "",
            "```python",
            "from dmoerm import RewardModel",
            "",
            'model = RewardModel.from_pretrained("this folder or its Hub id")',
            'model.score("Write a haiku about rain.", ["Rain taps the window …", "No."])',
            "```",
            "",
            "| category | experts | training comparisons | held-out agreement (cross-fitted) |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Backbone: {manifest['backbone']['name']}, {manifest['rendering']['max_length_tokens']} tokens. "
            f"Made with dmoerm {manifest['dmoerm_version']} on {manifest['created']}.",
            "Rewards compare responses to one prompt; a difference of 1 means odds of e to 1 on held-out comparisons of that category.",
            "",
        ]
    )


# --- loading ------------------------------------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a saved model.

    Raises:
        ArtifactError: it is missing, is no JSON, or was written by a newer format than this version reads.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{folder} is no dmoerm model: there is no {MANIFEST}. Name the folder that `dmoerm train` wrote.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = int(manifest["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not a manifest ({error}). Copy the model again.") from error
    if found > FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: made by dmoerm {manifest.get('dmoerm_version')}, format {found}; "
            f"this is dmoerm {version('dmoerm')}, format <= {FORMAT_VERSION}. Install a newer version."
        )
    return manifest  # type: ignore[no-any-return]


def verify_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compare every file with its hash in the manifest.

    Raises:
        ArtifactError: names the files that are missing, changed, foreign, or of a kind that is never loaded.
    """
    present = set(_files(folder)) - {MANIFEST}
    problems = []
    for path, expected in manifest["files"].items():
        if path not in present:
            problems.append(f"{path} is missing")
        elif _sha256(folder / path) != expected:
            problems.append(f"{path} has changed since it was saved")
    for path in sorted(present - set(manifest["files"])):
        kind = "may carry code and is never loaded" if Path(path).suffix in REFUSED_SUFFIXES else "does not belong to the model"
        problems.append(f"{path} {kind}")
    if problems:
        raise ArtifactError(f"{folder}: {'; '.join(problems)}. Copy the model again from where it was made.")


def load_model(name: str | Path, *, revision: str | None = None, device: str = "auto", check: bool = True) -> RewardModel:
    """A saved model, ready to score; see `RewardModel.from_pretrained`."""
    folder = Path(name) if Path(name).exists() else _download(str(name), revision)
    manifest = read_manifest(folder)
    if check:
        verify_files(folder, manifest)
    spec = manifest["backbone"]
    backbone = _load_backbone(spec, check=check)
    renderer = Renderer(AutoTokenizer.from_pretrained(folder / "tokenizer"), manifest["rendering"]["max_length_tokens"])
    if check and renderer.fingerprint() != manifest["rendering"]["sha256"]:
        raise ArtifactError(
            f"{folder}: this installation renders text to other tokens than the one that trained the model "
            "(tokenizer, chat template or rendering rules differ). Install the version of the model card."
        )
    router = _load_router(folder, manifest, backbone)
    inner: dict[str, InnerModel] = {}
    own: dict[str, Backbone] = {}
    for category, entry in manifest["categories"].items():
        if entry["full"]:
            own[category] = _load_backbone(spec, check=False)
            _load_full(own[category], folder / "categories" / category / "backbone.safetensors")
        inner[category] = _load_inner(folder / "categories" / category, category, entry, own.get(category, backbone))
    model = RewardModel(
        backbone,
        renderer,
        router,
        inner,
        own_backbones=own,
        taxonomy=Taxonomy.model_validate_json(json.dumps(manifest["taxonomy"]), strict=True),
        aggregation=manifest["aggregation"],
        uwo_penalty=manifest["uwo_penalty"],
        metadata=manifest["metadata"],
    ).to(_device(device))
    if check:
        _check_canaries(model, manifest, folder)
    return model


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.md", "*.txt", "*.jinja", "*.model"])
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ArtifactError(
            f"{name}: no such folder, and not to be had from the Hub ({type(error).__name__}). Check the path or the name."
        ) from error


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def _load_backbone(spec: Mapping[str, Any], *, check: bool) -> Backbone:
    backbone = Backbone.load(
        spec["name"],
        revision=spec["revision"],
        pooling=spec["pooling"],
        attention=spec["attention"],
        target_modules=spec["target_modules"],
        keep_layers=spec["keep_layers"],
    )
    if check and (found := backbone.fingerprint()) != spec["sha256"]:
        raise ArtifactError(
            f"backbone {spec['name']}: its weights hash to {found[:12]}…, the model was trained on {spec['sha256'][:12]}…. "
            "The experts fit only that checkpoint; name the same revision."
        )
    return backbone


def _load_router(folder: Path, manifest: Mapping[str, Any], backbone: Backbone) -> Router:
    spec = manifest["router"]
    router = Router(tuple(spec["categories"]), backbone.hidden_size, general_below=spec["general_below"], finetuned=spec["finetuned"])
    _fill(router, _tensors(folder / "router" / "router.safetensors"), "router/router.safetensors")
    if spec["finetuned"]:
        _add(backbone, "task", ROUTER, spec["adapter"])
        _fill_adapter(backbone, "task", ROUTER, 0, folder / "router" / "adapter")
    return router


def _load_inner(folder: Path, category: str, entry: Mapping[str, Any], backbone: Backbone) -> InnerModel:
    inner = InnerModel(
        category,
        tuple(entry["capabilities"]),
        backbone.hidden_size,
        units=entry["units"],
        copies=entry["copies"],
        with_task_member=entry["with_task_member"],
    )
    state = _tensors(folder / "aggregator.safetensors")
    heads_KD = torch.zeros_like(inner.heads_KD)
    if inner.with_task_member:
        heads_KD[inner.members.index(TASK_MEMBER)] = state["task_head_D"]
    if not entry["full"]:
        _add(backbone, "task", category, entry["task_adapter"])
        head = _fill_adapter(backbone, "task", category, 0, folder / "task_adapter")
        if head is None or not torch.equal(head, state["task_head_D"]):
            raise ArtifactError(f"{folder / 'task_adapter'}: its head is not the one of aggregator.safetensors. Copy the model again.")
    if inner.capabilities:
        _add(backbone, "experts", category, entry["experts"])
        for capability in inner.capabilities:
            member = inner.members.index(capability)
            head = _fill_adapter(backbone, "experts", category, member, folder / "experts" / capability)
            if head is None:
                raise ArtifactError(f"{folder / 'experts' / capability}: the head (score.weight) is missing. Copy the model again.")
            heads_KD[member] = head
    _fill(inner, {**state, "heads_KD": heads_KD}, f"{folder.name}/aggregator.safetensors")
    return inner


def _load_full(backbone: Backbone, path: Path) -> None:
    tensors = _tensors(path)
    expected = dict(_plain_state(backbone))
    if set(tensors) != set(expected):
        raise ArtifactError(f"{path}: {len(set(expected) ^ set(tensors))} weights are missing or foreign. Copy the model again.")
    backbone.model.load_state_dict(tensors, strict=False)


def _add(backbone: Backbone, kind: str, name: str, config: Mapping[str, Any]) -> None:
    depth = len(backbone.layers) - int(config["first_layer"])
    shape = {"depth": depth, "rank": config["rank"], "alpha": config["alpha"], "dropout": config["dropout"]}
    if kind == "task":
        backbone.add_task_adapter(name, **shape)
    else:
        backbone.add_experts(name, int(config["copies"]), **shape)


def _fill_adapter(backbone: Backbone, kind: Any, name: str, member: int, folder: Path) -> Tensor | None:
    """Copy one saved adapter into its slot; returns its head, shape (D,)."""
    tensors = _tensors(folder / "adapter_model.safetensors")
    prefix = f"base_model.model.{backbone.model.base_model_prefix}."
    head = tensors.pop("base_model.model.score.weight", None)
    updates: dict[str, LowRank] = backbone.adapters(kind, name)
    expected = {f"{prefix}{path}.lora_{part}.weight" for path in updates for part in "AB"}
    if set(tensors) != expected:
        raise ArtifactError(f"{folder}: {len(expected ^ set(tensors))} weights are missing or foreign. Copy the model again.")
    with torch.no_grad():
        for path, update in updates.items():
            for part, target in (("A", update.a_KRD), ("B", update.b_KOR)):
                value = tensors[f"{prefix}{path}.lora_{part}.weight"]
                if value.shape != target[member].shape:
                    raise ArtifactError(f"{folder}: {path} has shape {tuple(value.shape)}, expected {tuple(target[member].shape)}.")
                target[member].copy_(value)
    return None if head is None else head[0]


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    try:
        module.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        raise ArtifactError(f"{where}: {error}") from error


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing. Copy the model again.") from error
    except SafetensorError as error:
        raise ArtifactError(f"{path}: not a whole safetensors file ({error}). Copy the model again.") from error


def _check_canaries(model: RewardModel, manifest: Mapping[str, Any], folder: Path) -> None:
    requests = [ScoreRequest(as_messages(c["prompt"]), (c["response"],), c["category"]) for c in manifest["canaries"]]
    for saved, rewards in zip(manifest["canaries"], model.score_many(requests), strict=True):
        result = rewards[0]
        assert isinstance(result, Reward)
        tolerance = CANARY_TOLERANCE * max(1.0, abs(saved["reward"]))
        if result.category != saved["judged_by"]:
            raise ArtifactError(
                f"{folder}: the router sends a canary to {result.category}, at saving it was {saved['judged_by']}. Copy the model again."
            )
        if not abs(result.reward - saved["reward"]) <= tolerance:
            raise ArtifactError(
                f"{folder}: category {result.category} gives a canary the reward {result.reward:.4f}, "
                f"at saving it was {saved['reward']:.4f} (tolerance {tolerance:.4f}): "
                "a head, adapter or aggregator is not the saved one. Copy the model again."
            )


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
