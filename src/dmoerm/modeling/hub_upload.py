"""A finished folder of ours to the Hugging Face Hub: a double-layer model, or an export.

The folder is checked before anything is sent. Only what belongs to it is sent: no hidden files, and nothing that can carry code.
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmoerm.errors import ArtifactError, ConfigError
from dmoerm.modeling.manifest import MANIFEST, read_manifest
from dmoerm.modeling.model_folder import REFUSED_SUFFIXES, file_names
from dmoerm.modeling.peft_export import EXPORT_MARKER

if TYPE_CHECKING:
    from dmoerm.modeling.reward_model import RewardModel

__all__ = ["Pushed", "push_folder", "push_model"]


@dataclass(frozen=True, slots=True)
class Pushed:
    """What was sent.

    Attributes:
        address: of the commit on the Hub.
        repository: "owner/name".
        files: how many.
        private: as asked; one that existed before keeps its own setting.
        local_backbone: the backbone is a folder of this machine: whoever loads the model has to name it (`backbone=`); None otherwise.
    """

    address: str
    repository: str
    files: int
    private: bool
    local_backbone: str | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def push_folder(folder: Path, repository: str, *, private: bool = True, message: str | None = None) -> Pushed:
    """Send a saved model or an export; the repository is made where there is none.

    Args:
        folder: what `dmoerm train` or `dmoerm export` wrote.
        repository: "owner/name", or "name" for the one who is logged in.
        private: of a new repository.
        message: of the commit.

    Raises:
        ArtifactError: the folder is none of ours, damaged, or holds files that are not; or the Hub refuses.
        ConfigError: no such name can exist.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    files, backbone = _checked(folder)
    api = HfApi()
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=made.repo_id,
            folder_path=str(folder),
            allow_patterns=files,
            commit_message=message or f"{'Model' if (folder / MANIFEST).is_file() else 'Export'} by dmoerm",
        )
    except HFValidationError as error:
        raise ConfigError(f"{repository!r} cannot name a repository ({str(error).splitlines()[0]}); expected OWNER/NAME") from error
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        raise ArtifactError(
            f"{repository}: the Hub did not take it ({str(error).splitlines()[0]}). Log in (`hf auth login`) with a token that may write"
        ) from error
    local = backbone if backbone is not None and Path(backbone).exists() else None
    return Pushed(str(commit.commit_url), str(made.repo_id), len(files), private, local)


def push_model(model: "RewardModel", repository: str, *, private: bool = True, message: str | None = None) -> Pushed:
    """Save a loaded model to a folder of its own and send it; see `push_folder`."""
    with tempfile.TemporaryDirectory(prefix="dmoerm-") as scratch:
        folder = Path(scratch) / "model"
        model.save_pretrained(folder)
        return push_folder(folder, repository, private=private, message=message)


def _checked(folder: Path) -> tuple[list[str], str | None]:
    """The files to send, and for a double-layer model the name of its backbone."""
    if (folder / MANIFEST).is_file():
        from dmoerm.modeling.verification import verify_artifact

        verify_artifact(folder, load=False).require()  # every file whole and none that does not belong
        files, backbone = file_names(folder), read_manifest(folder).backbone.name
    elif (folder / EXPORT_MARKER).is_file():
        files, backbone = file_names(folder), None
        _require_export(folder, files)
    else:
        raise ArtifactError(f"{folder} holds neither a model ({MANIFEST}) nor an export ({EXPORT_MARKER}); nothing was sent")
    if carriers := [name for name in files if Path(name).suffix in REFUSED_SUFFIXES]:
        raise ArtifactError(f"{folder / carriers[0]} can carry code and is not ours; nothing was sent. Take it out of the folder")
    return files, backbone


def _require_export(folder: Path, files: list[str]) -> None:
    try:
        kind = json.loads((folder / EXPORT_MARKER).read_text(encoding="utf-8"))["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{folder / EXPORT_MARKER}: damaged ({type(error).__name__}); nothing was sent. Write the export again"
        ) from error
    needed = {"config.json", "model.safetensors", "tokenizer.json"} if kind == "seqcls" else set()
    if missing := sorted(needed - set(files)):
        raise ArtifactError(f"{folder} lacks {missing[0]}; nothing was sent. Write the export again")
