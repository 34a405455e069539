"""The files of a saved model against its manifest: nothing missing, changed, foreign, or meaning to others what it does not mean to us.

Loads no weights and no tokenizer. What a file must hold stands in the manifest; nothing is taken from the files themselves.
"""

import json
from pathlib import Path

from dmoerm.errors import ArtifactError
from dmoerm.modeling.adapter_files import CONFIG, config_problems
from dmoerm.modeling.manifest import CARD, MANIFEST, Manifest
from dmoerm.modeling.model_folder import REFUSED_SUFFIXES, file_names, sha256_of

__all__ = ["adapter_problems", "file_problems", "verify_files"]


def file_problems(folder: Path, manifest: Manifest) -> list[str]:
    """Files that are missing, changed, foreign, or of a kind that is never loaded; each sentence begins with the file's name."""
    present = set(file_names(folder)) - {MANIFEST, CARD}
    problems = []
    for name, expected in manifest.files.items():
        if name not in present:
            problems.append(f"{name} is missing")
        elif sha256_of(folder / name) != expected:
            problems.append(f"{name} has changed since it was saved")
    for name in sorted(present | set(manifest.files)):
        if Path(name).suffix in REFUSED_SUFFIXES:
            problems.append(f"{name} may carry code and is never loaded")
        elif name not in manifest.files:
            problems.append(f"{name} does not belong to the model")
    return problems


def adapter_problems(folder: Path, manifest: Manifest) -> list[str]:
    """Configs that would mean to other software something else than the manifest means to us; each sentence begins with the file's name."""
    problems = []
    for name, (shape, head) in manifest.adapters().items():
        found = config_problems(folder / name / CONFIG, shape, manifest.backbone, head=head)
        problems += [f"{name}/{CONFIG} {problem}" for problem in found]
    for path in sorted((folder / "tokenizer").glob("*.json")):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            problems.append(f"tokenizer/{path.name} is not valid JSON ({error})")
            continue
        if isinstance(value, dict) and "auto_map" in value:
            problems.append(f'tokenizer/{path.name} has the key "auto_map", which asks for code to be run')
    return problems


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file with its hash, and every adapter's config with the manifest.

    Raises:
        ArtifactError: names the files that are missing, changed, foreign, of a kind that is never loaded, or contradict the manifest.
    """
    problems = file_problems(folder, manifest) or adapter_problems(folder, manifest)
    if problems:
        raise ArtifactError(f"{folder}: {'; '.join(problems)}. Copy the model again from where it was made.")
