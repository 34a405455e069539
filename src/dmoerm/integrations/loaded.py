"""The one model of a process, for trainers that call a plain function and leave no place to pass one.

    DMOERM_MODEL            folder or Hub id
    DMOERM_AGGREGATION      mlp, mean, wco, uwo or task; default: the model's own
    DMOERM_DEVICE           auto, cpu, cuda, cuda:1 …; default: auto
    DMOERM_BACKBONE         where its backbone lies now; default: where it lay in training
    DMOERM_FAILURE_REWARD   what a response gets that cannot be scored, as a number; default: it is an error

These trainers cannot take "no reward" for a response. So unless the user has said what such a response is worth, it is an error: a made-up
number would be trained on.
"""

import os
import threading
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, get_args

from dmoerm.errors import ConfigError, DataError
from dmoerm.records import Message, Reward, ScoreFailure

if TYPE_CHECKING:
    from dmoerm.modeling.inner import Aggregation
    from dmoerm.modeling.reward_model import RewardModel

__all__ = ["failure_reward", "score_groups"]

_lock = threading.Lock()
"""One batch at a time: both trainers call from several threads."""


def score_groups(
    prompts: Sequence[tuple[Message, ...]], responses: Sequence[str], *, model: str | None = None, aggregation: str | None = None
) -> list[Reward | ScoreFailure]:
    """Rewards of responses, those to one prompt scored together.

    Args:
        prompts: one a response.
        responses: their texts.
        model: folder or Hub id; None is DMOERM_MODEL.
        aggregation: None is DMOERM_AGGREGATION.

    Raises:
        ConfigError: no model is named, or the model has no such aggregation.
        ArtifactError: there is no such model.
    """
    from dmoerm.scoring.rollouts import group_rollouts

    with _lock:
        loaded = _model(model or _setting("MODEL"), _setting("DEVICE") or "auto", _setting("BACKBONE"))
        rollouts = group_rollouts(prompts, responses)
        found: list[Reward | ScoreFailure] = [ScoreFailure(rollouts.failures.get(row, "not scored")) for row in range(rollouts.rows)]
        scored = loaded.score_many(rollouts.requests, aggregation=_aggregation(loaded, aggregation or _setting("AGGREGATION")))
    for places, results in zip(rollouts.places, scored, strict=True):
        for place, result in zip(places, results, strict=True):
            found[place] = result
    return found


def failure_reward(given: float | None, failure: ScoreFailure) -> float:
    """What a response is worth that cannot be scored.

    Args:
        given: by the caller; None is DMOERM_FAILURE_REWARD.
        failure: why it cannot be scored.

    Raises:
        DataError: nobody has said what it is worth.
        ConfigError: DMOERM_FAILURE_REWARD is no number.
    """
    setting = _setting("FAILURE_REWARD")
    if given is not None:
        return given
    if setting is None:
        raise DataError(
            f"a response cannot be scored: {failure.message}. Set DMOERM_FAILURE_REWARD to the reward that such a response gets"
        )
    try:
        return float(setting)
    except ValueError:
        raise ConfigError(f"DMOERM_FAILURE_REWARD is {setting!r}; expected a number") from None


@cache
def _model(name: str | None, device: str, backbone: str | None) -> "RewardModel":
    from dmoerm.modeling.reward_model import RewardModel

    if name is None:
        raise ConfigError("no model is named: set DMOERM_MODEL to the folder of a model, or its Hub id")
    return RewardModel.from_pretrained(name, device=device, backbone=backbone)


def _aggregation(model: "RewardModel", name: str | None) -> "Aggregation":
    from dmoerm.modeling.inner import AGGREGATIONS, Aggregation
    from dmoerm.scoring.bulk import require_aggregation

    if name is None:
        return model.aggregation
    if name not in get_args(Aggregation):
        raise ConfigError(f"aggregation {name!r}; expected one of {', '.join(AGGREGATIONS)}")
    chosen = AGGREGATIONS[AGGREGATIONS.index(name)]
    require_aggregation(model, chosen)
    return chosen


def _setting(name: str) -> str | None:
    return os.environ.get(f"DMOERM_{name}") or None
