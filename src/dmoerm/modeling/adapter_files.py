"""A task adapter or an expert as PEFT keeps it: `adapter_config.json` and `adapter_model.safetensors`, the head a saved module `score`.

The config is written for others (PEFT, vLLM) and never followed by us: what loading builds stands in the manifest. It is compared with
the manifest all the same, key by key, so that a folder which would mean something else to PEFT than to us does not pass.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmoerm.errors import ArtifactError
from dmoerm.modeling.backbone import Backbone
from dmoerm.modeling.manifest import AdapterShape, BackboneEntry

__all__ = [
    "CONFIG",
    "HEAD",
    "WEIGHTS",
    "adapter_config",
    "config_problems",
    "fill_adapter",
    "read_tensors",
    "require_shapes",
    "save_adapter",
    "weight_name",
    "write_adapter",
    "write_tensors",
]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HEAD = "base_model.model.score.weight"
"""PEFT's name of the head of a sequence classifier, shape (1, D)."""

Kind = Literal["task", "experts"]


def weight_name(backbone: Backbone, path: str, part: str) -> str:
    """PEFT's name of one LoRA matrix ("A" or "B") of the linear layer at `path` of the pretrained model."""
    return f"base_model.model.{backbone.model.base_model_prefix}.{path}.lora_{part}.weight"


def adapter_config(
    *, base: str, revision: str | None, rank: int, alpha: float, dropout: float, targets: Iterable[str], layers: Iterable[int], head: bool
) -> dict[str, Any]:
    """All keys of an adapter_config.json of ours; what is not named has PEFT's default."""
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base,
        "revision": revision,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(targets),
        "layers_to_transform": sorted(layers),
        "modules_to_save": ["score"] if head else None,
    }


def config_problems(path: Path, shape: AdapterShape, backbone: BackboneEntry, *, head: bool) -> list[str]:
    """What a saved adapter_config.json says that the manifest does not; [] where they agree."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        layers = found["layers_to_transform"]
        layers_fit = layers == list(range(shape.first_layer, shape.first_layer + max(1, len(layers))))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return [f"is no adapter config ({type(error).__name__}: {error})"]
    expected = adapter_config(
        base=backbone.name,
        revision=backbone.revision,
        rank=shape.rank,
        alpha=shape.alpha,
        dropout=shape.dropout,
        targets=backbone.target_modules,
        layers=layers if layers_fit else [shape.first_layer],
        head=head,
    )
    problems = [f'has the key "{key}", which dmoerm does not write' for key in sorted(found.keys() - expected.keys())]
    problems += [f'lacks the key "{key}"' for key in sorted(expected.keys() - found.keys())]
    for key in sorted(expected.keys() & found.keys()):
        if found[key] != expected[key]:
            start = " and so on upwards" if key == "layers_to_transform" else ""
            problems.append(f'says "{key}" is {json.dumps(found[key])}; the manifest says {json.dumps(expected[key])}{start}')
    return problems


def save_adapter(backbone: Backbone, kind: Kind, name: str, member: int, folder: Path, *, head: Tensor | None) -> None:
    """Write one adapter of a backbone and the head, shape (D,), that reads it."""
    updates = backbone.adapters(kind, name)
    tensors = {weight_name(backbone, path, "A"): update.a_KRD[member] for path, update in updates.items()}
    tensors |= {weight_name(backbone, path, "B"): update.b_KOR[member] for path, update in updates.items()}
    shape = backbone.adapter_config[f"{kind}/{name}"]
    config = adapter_config(
        base=backbone.name,
        revision=backbone.revision,
        rank=shape["rank"],
        alpha=shape["alpha"],
        dropout=shape["dropout"],
        targets=backbone.target_modules,
        layers=range(shape["first_layer"], len(backbone.layers)),
        head=head is not None,
    )
    write_adapter(folder, tensors, config, head=head)


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], *, head: Tensor | None) -> None:
    """Write the two files; weights become float32."""
    if head is not None:
        tensors = {**tensors, HEAD: head.unsqueeze(0)}
    write_tensors({key: value.float() for key, value in tensors.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def fill_adapter(backbone: Backbone, kind: Kind, name: str, member: int, folder: Path, *, head: bool) -> Tensor | None:
    """Copy one saved adapter into its slot.

    Returns:
        Its head, shape (D,), or None where it has none.

    Raises:
        ArtifactError: a weight is missing, foreign or of another shape.
    """
    tensors = read_tensors(folder / WEIGHTS)
    slots = {
        weight_name(backbone, path, part): target[member]
        for path, update in backbone.adapters(kind, name).items()
        for part, target in (("A", update.a_KRD.data), ("B", update.b_KOR.data))
    }
    shapes = {key: tuple(value.shape) for key, value in slots.items()} | ({HEAD: (1, backbone.hidden_size)} if head else {})
    require_shapes({key: tuple(value.shape) for key, value in tensors.items()}, shapes, folder / WEIGHTS)
    with torch.no_grad():
        for key, target in slots.items():
            target.copy_(tensors[key])
    return tensors[HEAD][0] if head else None


def require_shapes(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Compare names and shapes of the tensors of a file.

    Raises:
        ArtifactError: names what is missing, foreign or of another shape.
    """
    problems = [f"{key} is missing" for key in sorted(expected.keys() - found.keys())]
    problems += [f"{key} does not belong there" for key in sorted(found.keys() - expected.keys())]
    problems += [
        f"{key} has shape {found[key]}, expected {expected[key]}"
        for key in sorted(expected.keys() & found.keys())
        if found[key] != expected[key]
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ArtifactError(f"{path}: {'; '.join(problems[:3])}{more}. Copy the model again.")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        ArtifactError: it is missing, cut, or no safetensors file (a pickle by that name, say); nothing else is ever tried.
    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing. Copy the model again.") from error
    except SafetensorError as error:
        raise ArtifactError(f"{path}: not a whole safetensors file ({error}). Copy the model again.") from error


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file; equal tensors give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in sorted(tensors.items())}
    save_file(plain, path, metadata={"format": "pt"})  # transformers asks for it
