"""`dmoerm.json`: what a saved model is made of, and how older formats are read.

The manifest is read strictly: unknown keys, names that could lead out of the folder and impossible combinations are refused, since
everything that loading does follows from it. A newer format is refused by name; an older one passes through `MIGRATIONS`, one function
a step, on the parsed manifest alone: the files of a model are never rewritten.
"""

import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from dmoerm.errors import ArtifactError
from dmoerm.modeling.model_folder import cut_short
from dmoerm.taxonomy import GENERAL, Taxonomy
from dmoerm.validation import Section

__all__ = [
    "CARD",
    "FORMAT_VERSION",
    "MANIFEST",
    "MIGRATIONS",
    "AdapterShape",
    "BackboneEntry",
    "CanaryEntry",
    "CategoryEntry",
    "Manifest",
    "RenderingEntry",
    "RouterEntry",
    "read_manifest",
]

MANIFEST = "dmoerm.json"
CARD = "README.md"
"""The model card: people edit it, nothing reads it, so it is the one file without a hash."""

FORMAT_VERSION = 2
"""Raised with every change of the layout that an older version would misread. Each rise brings a migration and a fixture
(tests/make_artifact_fixture.py).
"""

_Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]  # becomes a folder, so nothing that could leave one
_Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class AdapterShape(Section):
    """Where a LoRA sits and how wide it is."""

    first_layer: int = Field(ge=0, description="Lowest layer that it adapts; it reaches up to the top.")
    copies: int = Field(ge=1, description="Updates in the stack; 1 for a task adapter.")
    rank: int = Field(ge=1, description="Rank of each.")
    alpha: float = Field(description="The update is scaled by alpha / rank.")
    dropout: float = Field(ge=0, lt=1, description="As in training; not used in scoring.")


class BackboneEntry(Section):
    """The pretrained model, which is not copied."""

    name: str = Field(description="Folder or Hub id.")
    revision: str | None = Field(description="Branch, tag or commit on the Hub.")
    sha256: _Hash = Field(description="Over names, shapes and bytes of the weights.")
    pooling: Literal["mean", "spread", "last", "first"] = Field(description="How a row becomes a vector.")
    keep_layers: int | None = Field(None, ge=1, description="How many of its layers are used, from the embeddings up; null: all.")
    target_modules: tuple[str, ...] = Field(description="Names of the adapted linear layers.")
    attention: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$")] = Field(
        description="Attention implementation; a plain name, never a kernel to be fetched from the Hub."
    )


class RenderingEntry(Section):
    """What decides the token ids."""

    max_length_tokens: int = Field(ge=1, description="Budget of prompt and response.")
    sha256: _Hash = Field(description="Fingerprint of rules, template, vocabulary and budget.")


class RouterEntry(Section):
    """The outer layer."""

    categories: tuple[_Name, ...] = Field(description="In the order of its outputs.")
    general_below: float = Field(description="Probability under which the fallback judges.")
    finetuned: bool = Field(description="It has an adapter of its own.")
    adapter: AdapterShape | None = Field(description="That adapter.")

    @model_validator(mode="after")
    def _adapter_where_finetuned(self) -> "RouterEntry":
        if self.finetuned != (self.adapter is not None):
            raise ValueError("finetuned and adapter contradict each other")
        return self


class CategoryEntry(Section):
    """One inner model."""

    capabilities: tuple[_Name, ...] = Field(description="Its experts, in the order of their stack.")
    with_task_member: bool = Field(description="The task model is a member beside them.")
    units: int = Field(ge=1, description="Hidden units of the aggregator.")
    copies: int = Field(ge=1, description="The aggregator and its bootstrapped copies.")
    full: bool = Field(description="It has a backbone of its own, all weights trained.")
    task_adapter: AdapterShape | None = Field(None, description="Phase 1, unless full.")
    experts: AdapterShape | None = Field(None, description="Phase 2, where there are experts.")

    @model_validator(mode="after")
    def _parts_fit(self) -> "CategoryEntry":
        if self.full == (self.task_adapter is not None):
            raise ValueError("a category has either a backbone of its own (full) or a task_adapter")
        if bool(self.capabilities) != (self.experts is not None):
            raise ValueError("capabilities and experts contradict each other")
        if len(set(self.capabilities)) < len(self.capabilities):
            raise ValueError("a capability is named twice")
        members = len(self.capabilities) + self.with_task_member
        if self.experts is not None and self.experts.copies != members:
            raise ValueError(f"experts.copies is {self.experts.copies}, but there are {members} members")
        return self


class CanaryEntry(Section):
    """A prompt and a response with what the model said of them when it was saved."""

    prompt: str
    response: str
    category: _Name | None = Field(description="Given to the model; null: the router decides.")
    judged_by: _Name
    reward: float
    capabilities: dict[_Name, float] = Field(description="Standardised r of each expert.")
    category_probability: float | None = Field(None, description="Of the router's first choice; null in models of format 1.")


class Manifest(Section):
    """All of `dmoerm.json`."""

    format_version: int
    dmoerm_version: str
    backbone: BackboneEntry
    rendering: RenderingEntry
    router: RouterEntry
    categories: dict[_Name, CategoryEntry]
    taxonomy: Taxonomy
    aggregation: Literal["mlp", "mean", "wco", "uwo", "task"]
    uwo_penalty: float
    metadata: dict[str, Any]
    canaries: tuple[CanaryEntry, ...] = Field(min_length=1)
    files: dict[str, _Hash] = Field(description="SHA-256 of every file but this one and the model card.")

    @field_validator("files")
    @classmethod
    def _inside_the_folder(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or path.as_posix() != name:
                raise ValueError(f'"{name}" is no plain path inside the model\'s folder')
        return files

    @model_validator(mode="after")
    def _whole(self) -> "Manifest":
        if GENERAL not in self.categories:
            raise ValueError(f'categories lacks "{GENERAL}", the fallback')
        if missing := sorted(self.parts() - set(self.files)):
            raise ValueError(f"files lacks {', '.join(missing)}")
        return self

    def adapters(self) -> dict[str, tuple[AdapterShape, bool]]:
        """Folder of every adapter to its shape and whether a head lies beside it."""
        found = {"router/adapter": (self.router.adapter, False)} if self.router.adapter else {}
        for name, entry in self.categories.items():
            if entry.task_adapter is not None:
                found[f"categories/{name}/task_adapter"] = (entry.task_adapter, True)
            if entry.experts is not None:
                found.update({f"categories/{name}/experts/{capability}": (entry.experts, True) for capability in entry.capabilities})
        return found

    def parts(self) -> set[str]:
        """Every file that loading reads, those of the tokenizer left out."""
        found = {"router/router.safetensors"}
        found |= {f"{folder}/adapter_{kind}" for folder in self.adapters() for kind in ("config.json", "model.safetensors")}
        for name, entry in self.categories.items():
            found.add(f"categories/{name}/aggregator.safetensors")
            if entry.full:
                found.add(f"categories/{name}/backbone.safetensors")
        return found

    def as_json(self) -> str:
        """The text of the file. A figure of the metadata that is no number is written as null."""
        value = {**self.model_dump(mode="json"), "metadata": _finite(self.metadata)}
        return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a saved model, brought to today's format.

    Raises:
        ArtifactError: it is missing, damaged, contradicts itself, or was written by a newer format than this version reads.
    """
    path = folder / MANIFEST
    if not path.is_file():
        left = cut_short(folder) or (
            "It was copied or written in part: copy the model again."
            if (folder / "categories").is_dir()
            else "Name the folder that `dmoerm train` wrote."
        )
        if (folder / "config.json").is_file():
            left += " A plain sequence classifier, a student among them, is measured by dmoerm probe and dmoerm best-of-n."
        raise ArtifactError(f"{folder} is no dmoerm model: there is no {MANIFEST}. {left}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        found = value["format_version"]
        if type(found) is not int or found < 1:
            raise ValueError(f"format_version is {found!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path}: not a manifest ({type(error).__name__}: {error}). Copy the model again.") from error
    made_by = f"made by dmoerm {value.get('dmoerm_version')}, format {found}"
    if found > FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: {made_by}; this is dmoerm {version('dmoerm')}, format <= {FORMAT_VERSION}. Install a newer version of dmoerm."
        )
    try:
        return Manifest.model_validate_json(json.dumps(_migrated(value, found)), strict=True)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'the whole'}: {p['msg']}" for p in error.errors(include_url=False)[:5])
        raise ArtifactError(f"{path}: {made_by}, but not as that format is: {problems}. Copy the model again.") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: {made_by}, but not as that format is ({error!r}). Copy the model again.") from error


def _from_format_1(value: dict[str, Any]) -> dict[str, Any]:
    """Format 1 kept the time of saving, so that no two saves were alike, and a hash of the model card, which people edit."""
    value = {key: part for key, part in value.items() if key != "created"}
    return {**value, "files": {name: digest for name, digest in value["files"].items() if name != CARD}}


MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_format_1}
"""Format to the function that brings its manifest to the next one."""


def _migrated(value: dict[str, Any], found: int) -> dict[str, Any]:
    for step in range(found, FORMAT_VERSION):
        value = {**MIGRATIONS[step](value), "format_version": step + 1}
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))) else value
