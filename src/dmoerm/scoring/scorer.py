"""A model that scores shards, and what has to be known of it before its rewards may stand beside others in one file."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import dmoerm
from dmoerm.errors import ConfigError
from dmoerm.modeling.inner import Aggregation
from dmoerm.modeling.reward_model import RewardModel, ScoreRequest
from dmoerm.records import Reward, ScoreFailure
from dmoerm.scoring.shards import Shard
from dmoerm.taxonomy import GENERAL

__all__ = ["ModelFacts", "ModelSource", "ScoreOptions", "ScoredShard", "ShardScorer", "model_identity", "require_aggregation"]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A saved model, for processes that each load it for themselves.

    Attributes:
        name: folder or Hub id.
        device: as for `RewardModel.from_pretrained`.
        backbone: likewise.
    """

    name: str
    device: str = "auto"
    backbone: str | None = None

    def load(self, device: str | None = None) -> RewardModel:
        """Load it, on another device than its own where one is given.

        Raises:
            ArtifactError: there is no such model, or it is damaged.
        """
        return RewardModel.from_pretrained(self.name, device=device or self.device, backbone=self.backbone)

    def absolute(self) -> "ModelSource":
        """The same for a process that runs in another folder."""
        name, backbone = (str(Path(at).absolute()) if at is not None and Path(at).exists() else at for at in (self.name, self.backbone))
        assert name is not None
        return replace(self, name=name, backbone=backbone)


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """How to score.

    Attributes:
        aggregation: None is the model's own default.
        category: judge every row by this category's inner model and skip the router.
        batch_tokens: token budget of a batch, padding counted.
    """

    aggregation: Aggregation | None = None
    category: str | None = None
    batch_tokens: int = 16384


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What decides a reward besides the text: equal in all processes of a run, or the run stops."""

    model: str
    aggregation: Aggregation
    dmoerm: str


@dataclass(frozen=True, slots=True)
class ScoredShard:
    """Output rows of one shard, as JSON lines.

    Attributes:
        index: of the shard.
        lines: the rows.
        rows: input rows.
        responses: output rows with a reward.
        failed: output rows with an error.
    """

    index: int
    lines: bytes
    rows: int
    responses: int
    failed: int


class ShardScorer:
    """Scores shard after shard with one model.

    Raises:
        ConfigError: the model has no such category or aggregation.
    """

    def __init__(self, model: RewardModel, options: ScoreOptions) -> None:
        self._model, self._options = model, options
        self._aggregation: Aggregation = options.aggregation or model.aggregation
        require_aggregation(model, self._aggregation)
        _require_category(model, options.category)

    def facts(self) -> ModelFacts:
        """What the rewards depend on."""
        return ModelFacts(model_identity(self._model), self._aggregation, dmoerm.__version__)

    def score(self, shard: Shard) -> ScoredShard:
        """One row a response, in order; what cannot be scored is a row with an error."""
        requests = [row.request for row in shard.rows if isinstance(row.request, ScoreRequest)]
        results = iter(self._model.score_many(requests, aggregation=self._aggregation, max_tokens=self._options.batch_tokens))
        rows: list[dict[str, Any]] = []
        for row in shard.rows:
            if isinstance(row.request, ScoreRequest):
                rows += [_row(row.id, index, result) for index, result in enumerate(next(results))]
            else:
                rows.append({"id": row.id, "response_index": None, "error": row.request})
        failed = sum("error" in row for row in rows)
        lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()
        return ScoredShard(shard.index, lines, len(shard.rows), len(rows) - failed, failed)


def require_aggregation(model: RewardModel, aggregation: str) -> None:
    """Refuse an aggregation that some category of the model does not have, before anything is scored.

    Raises:
        ConfigError: "task" where the task model is not a member everywhere.
    """
    without = [name for name, inner in model.inner.items() if not inner.with_task_member]
    if aggregation == "task" and without:
        raise ConfigError(
            f"aggregation task: the task model is no member of {', '.join(without)}. Choose mlp, mean, wco or uwo, "
            "or train with experts.with_task_model: true"
        )


def model_identity(model: RewardModel) -> str:
    """Hex SHA-256 over everything that decides a reward: rendering, backbone, router, adapters, aggregators and calibration.

    The shared backbone counts by its name, revision and saved hash rather than by its bytes: loading has compared those already.
    """
    digest = hashlib.sha256()
    facts = (model.renderer.fingerprint(), model.backbone.name, model.backbone.revision, model.backbone.pooling, model.uwo_penalty)
    digest.update(json.dumps(facts).encode())
    modules: list[tuple[str, torch.nn.Module]] = [
        ("router", model.router),
        *sorted(model.inner.items()),
        *sorted(model.own_backbones.items()),
    ]
    state = [(f"{name}.{key}", tensor) for name, module in modules for key, tensor in module.state_dict().items()]
    backbone = model.backbone.state_dict()
    for key in (key for key in backbone if ".task." in key or ".experts." in key):
        tensor = backbone[key]
        if key.endswith("a_KRD"):
            # Where B is 0 (the task model as a member), A changes nothing, is not saved, and differs from load to load.
            tensor = tensor[backbone[f"{key.removesuffix('a_KRD')}b_KOR"].flatten(1).any(dim=1)]
        state.append((key, tensor))
    for key, tensor in state:
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _require_category(model: RewardModel, category: str | None) -> None:
    known = dict.fromkeys((*model.taxonomy.category_names, *model.inner, GENERAL))
    if category is not None and category not in known:
        raise ConfigError(f"category {category!r} is not one of this model's: {', '.join(known)}. Leave it out to let the router decide")


def _row(id: str | int, index: int, result: Reward | ScoreFailure) -> dict[str, Any]:
    head = {"id": id, "response_index": index}
    if isinstance(result, ScoreFailure):
        return {**head, "error": result.message}
    numbers = (result.reward, result.category_probability, result.capability_spread, result.uncertainty, *result.capabilities.values())
    if not all(map(math.isfinite, numbers)):
        return {**head, "error": f"the model gives no finite reward ({result.reward})"}
    return {**head, **asdict(result)}
