"""The error family. A user who catches `DmoermError` catches everything we raise on purpose.

    DmoermError
    ├── ConfigError    (ValueError)    a recipe, taxonomy, flag or option that cannot be used
    ├── DataError      (ValueError)    a file or row that cannot be used
    ├── LabelError     (RuntimeError)  the labelling endpoint or its store
    ├── TrainingError  (RuntimeError)  a phase that cannot start or cannot go on
    └── ArtifactError  (RuntimeError)  a saved model that cannot be trusted or loaded

A message says where, what came, what was expected and what to do.
"""

__all__ = ["ArtifactError", "ConfigError", "DataError", "DmoermError", "LabelError", "TrainingError", "missing_extra"]


class DmoermError(Exception):
    """Root of all errors raised on purpose by this package."""


class ConfigError(DmoermError, ValueError):
    """A recipe, taxonomy, flag or option that cannot be used."""


class DataError(DmoermError, ValueError):
    """A file or a row that cannot be used."""


class LabelError(DmoermError, RuntimeError):
    """The labelling endpoint or its store failed."""


class TrainingError(DmoermError, RuntimeError):
    """A training phase cannot start or cannot go on."""


class ArtifactError(DmoermError, RuntimeError):
    """A saved model is damaged, foreign or made for something else."""


def missing_extra(package: str, extra: str) -> DmoermError:
    """The one message for an optional dependency that is not installed."""
    return DmoermError(f"{package!r} is not installed. Install it with: pip install 'dmoerm[{extra}]'")
