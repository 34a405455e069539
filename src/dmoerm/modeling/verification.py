"""Everything that can be checked of a saved model, one check after another, none of which stops at its first fault.

    from dmoerm.modeling.verification import verify_artifact
    verify_artifact("my-model").require()

Loading does the same checks and stops at the first that fails.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dmoerm.errors import ArtifactError, DmoermError
from dmoerm.modeling.artifact import assemble, find_model
from dmoerm.modeling.canaries import compare_canaries
from dmoerm.modeling.file_checks import adapter_problems, file_problems
from dmoerm.modeling.manifest import CARD, MANIFEST, Manifest, read_manifest

__all__ = ["Check", "Verification", "verify_artifact"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what was looked at.
        found: what there was, in words; "" where the check could not be made.
        problems: a sentence for each fault; it names the file.
    """

    name: str
    found: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verification:
    """The checks of one model, in order. A check that the faults of an earlier one rule out is not among them."""

    folder: Path
    checks: tuple[Check, ...]

    @property
    def problems(self) -> list[str]:
        return [problem for check in self.checks for problem in check.problems]

    def require(self) -> None:
        """Raise when there is a fault.

        Raises:
            ArtifactError: lists all of them.
        """
        if self.problems:
            raise ArtifactError(f"{self.folder}: {'; '.join(self.problems)}. Copy the model again from where it was made.")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        checks = [{"name": c.name, "ok": not c.problems, "found": c.found, "problems": list(c.problems)} for c in self.checks]
        return {"model": str(self.folder), "ok": not self.problems, "checks": checks}

    def as_text(self) -> str:
        """One line a check, and one a fault."""
        lines = []
        for check in self.checks:
            lines.append(f"{'FAULT' if check.problems else 'ok':<6}{check.name:<11}{check.found}".rstrip())
            lines += [f"      {problem}" for problem in check.problems]
        return "\n".join(lines)


def verify_artifact(
    name: str | Path,
    *,
    revision: str | None = None,
    load: bool = True,
    device: str = "auto",
    backbone: str | Path | None = None,
) -> Verification:
    """Check a saved model.

    Args:
        name: folder or Hub id.
        revision: branch, tag or commit on the Hub.
        load: also load it with its backbone and score the canaries; False looks at the files alone.
        device: where the canaries are scored.
        backbone: where the backbone lies now, when not where it lay in training.

    Raises:
        ArtifactError: there is no such model at all.
    """
    folder = find_model(name, revision)
    try:
        manifest = read_manifest(folder)
    except ArtifactError as error:
        return Verification(folder, (Check("manifest", "", (str(error),)),))
    checks = [Check("manifest", _summary(folder, manifest)), *_file_checks(folder, manifest)]
    if load and not any(check.problems for check in checks):
        checks += _load_checks(folder, manifest, device, backbone)
    return Verification(folder, tuple(checks))


def _summary(folder: Path, manifest: Manifest) -> str:
    stored = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["format_version"]
    experts = sum(len(entry.capabilities) for entry in manifest.categories.values())
    return f"format {stored}, made by dmoerm {manifest.dmoerm_version}; {len(manifest.categories)} categories, {experts} experts"


def _file_checks(folder: Path, manifest: Manifest) -> Iterator[Check]:
    size = sum((folder / name).stat().st_size for name in manifest.files if (folder / name).is_file())
    yield Check(
        "files",
        f"{len(manifest.files)} files, {size / 2**20:.1f} MiB, compared with their SHA-256 ({CARD} has none: people edit it)",
        tuple(file_problems(folder, manifest)),
    )
    yield Check("configs", f"{len(manifest.adapters())} adapters and the tokenizer", tuple(adapter_problems(folder, manifest)))
    weights = sorted(name for name in manifest.files if name.endswith(".safetensors") and (folder / name).is_file())
    problems = []
    for name in weights:
        try:
            with safe_open(folder / name, framework="numpy") as file:
                file.keys()  # reading the header compares it with the length of the file
        except SafetensorError as error:
            problems.append(f"{name} is not a whole safetensors file ({error})")
    yield Check("weights", f"{len(weights)} safetensors files", tuple(problems))


def _load_checks(folder: Path, manifest: Manifest, device: str, backbone: str | Path | None) -> Iterator[Check]:
    source = manifest.backbone.name if backbone is None else backbone
    what = f"backbone {source}, tokenizer and every weight in its place"
    try:
        model = assemble(folder, manifest, device=device, backbone=backbone)
    except DmoermError as error:
        yield Check("loading", what, (str(error),))
        return
    yield Check("loading", what)
    try:
        result = compare_canaries(model, manifest)
    except DmoermError as error:
        yield Check("canaries", "", (str(error),))
        return
    yield Check(
        "canaries",
        f"{result.count} scored on {model.device}; largest difference {result.largest_difference:.1g}",
        result.problems,
    )
