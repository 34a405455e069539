"""Our models as reward functions of TRL's GRPO and RLOO trainers.

    GRPOTrainer(model=…, reward_funcs=reward_function("my-rm/model"), …)
    GRPOTrainer(model=…, reward_funcs=capability_functions("my-rm/model", ["correctness", "clarity"]),
                args=GRPOConfig(reward_weights=[1.0, 0.5], …), …)

All completions of a prompt in a batch are scored in one request, so they route alike and see the same cut of the prompt. The functions of
one loaded model share one pass over a batch. A completion that cannot be scored gets None, which TRL leaves out, and a warning; never 0.

Source: the contract of a reward function in trl 1.16 (`GRPOTrainer._calculate_rewards`). Nothing here imports trl.
"""

import logging
import math
import statistics
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmoerm.errors import ConfigError
from dmoerm.records import Reward

if TYPE_CHECKING:
    from dmoerm.modeling.inner import Aggregation
    from dmoerm.modeling.reward_model import RewardModel

__all__ = ["RewardFunction", "capability_functions", "reward_function"]

_LOG = logging.getLogger(__name__)

Scored = list[Reward | None]


class RewardFunction:
    """What TRL calls for one batch.

    Attributes:
        __name__: under which TRL logs it.
    """

    def __init__(self, model: "RewardModel", name: str, aggregation: "Aggregation", read: Callable[[Reward], float | None]) -> None:
        self.__name__ = name
        self._model, self._scorer = model, _shared_scorer(model)
        self._aggregation: Aggregation = aggregation
        self._read = read

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], *, log_metric: Callable[[str, float], None] | None = None, **others: Any
    ) -> list[float | None]:
        """Rewards of a batch.

        Args:
            prompts: a text or a conversation a completion.
            completions: a text or a list with one assistant message each.
            log_metric: TRL's; gets shares by category, uncertainty and failures, once a batch.
            others: what else TRL passes: completion ids, columns of the data set, the trainer's state. Not read.

        Returns:
            One a completion; None where it cannot be scored, or where its category has not the capability.
        """
        scored = self._scorer.score(prompts, completions, self._aggregation, log_metric)
        return [None if reward is None else self._read(reward) for reward in scored]


def reward_function(
    model: "RewardModel | str | Path", *, aggregation: "Aggregation | None" = None, name: str = "dmoerm", device: str = "auto"
) -> RewardFunction:
    """The reward of a model for `reward_funcs`.

    Args:
        model: loaded, or a folder or Hub id.
        aggregation: None is the model's own.
        name: under which TRL logs it.
        device: where a model named by its folder is loaded.

    Raises:
        ArtifactError: there is no such model.
        ConfigError: the model has no such aggregation.
    """
    from dmoerm.scoring.bulk import require_aggregation

    loaded = _loaded(model, device)
    chosen: Aggregation = aggregation or loaded.aggregation
    require_aggregation(loaded, chosen)
    return RewardFunction(loaded, name, chosen, lambda reward: reward.reward)


def capability_functions(
    model: "RewardModel | str | Path", names: Sequence[str] | None = None, *, device: str = "auto"
) -> list[RewardFunction]:
    """One function a capability, to be weighted by `reward_weights`; the values are standardised scores (see `Reward.capabilities`).

    Args:
        model: loaded, or a folder or Hub id.
        names: of capabilities, each of which some category must have; None is all of them.
        device: where a model named by its folder is loaded.

    Raises:
        ArtifactError: there is no such model.
        ConfigError: no category has a capability of that name, or a name comes twice.
    """
    loaded = _loaded(model, device)
    known = list(dict.fromkeys(name for inner in loaded.inner.values() for name in inner.capabilities))
    chosen = known if names is None else list(names)
    unknown = [name for name in chosen if name not in known]
    if unknown or len(set(chosen)) < len(chosen) or not chosen:
        raise ConfigError(f"capabilities {', '.join(chosen) or '(none)'}: expected some of {', '.join(known) or '(none)'}, each once")
    return [RewardFunction(loaded, name, loaded.aggregation, _reader(name)) for name in chosen]


def _reader(name: str) -> Callable[[Reward], float | None]:
    return lambda reward: reward.capabilities.get(name)


def _loaded(model: "RewardModel | str | Path", device: str) -> "RewardModel":
    from dmoerm.modeling.reward_model import RewardModel

    return RewardModel.from_pretrained(model, device=device) if isinstance(model, str | Path) else model


# --- one pass for all functions of a model ------------------------------------------------------------------------------------------------

_scorers: "weakref.WeakKeyDictionary[RewardModel, _SharedScorer]" = weakref.WeakKeyDictionary()


def _shared_scorer(model: "RewardModel") -> "_SharedScorer":
    found = _scorers.get(model)
    if found is None:
        found = _scorers[model] = _SharedScorer(model)
    return found


class _SharedScorer:
    """Scores a batch once and remembers it until the next one comes."""

    def __init__(self, model: "RewardModel") -> None:
        # Weakly: else the entry of _scorers would keep its own key alive.
        self._model = weakref.proxy(model)
        self._categories = tuple(model.inner)
        self._lock = threading.Lock()
        self._seen: tuple[Aggregation, list[Any], list[Any]] | None = None
        self._scored: Scored = []

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        aggregation: "Aggregation",
        log_metric: Callable[[str, float], None] | None,
    ) -> Scored:
        with self._lock:
            batch = (aggregation, list(prompts), list(completions))
            if batch != self._seen:
                self._scored = self._fresh(prompts, completions, aggregation)
                self._seen = batch
                if log_metric is not None:
                    self._log(log_metric)
            return list(self._scored)

    def _fresh(self, prompts: Sequence[Any], completions: Sequence[Any], aggregation: "Aggregation") -> Scored:
        from dmoerm.scoring.rollouts import group_rollouts

        rollouts = group_rollouts(prompts, completions)
        scored: Scored = [None] * rollouts.rows
        reasons = list(rollouts.failures.values())
        for places, results in zip(rollouts.places, self._model.score_many(rollouts.requests, aggregation=aggregation), strict=True):
            for place, result in zip(places, results, strict=True):
                if isinstance(result, Reward) and math.isfinite(result.reward):
                    scored[place] = result
                else:
                    reasons.append("its reward is not a finite number" if isinstance(result, Reward) else result.message)
        if reasons:
            _LOG.warning("%d of %d completions could not be scored and get no reward (None): %s", len(reasons), len(scored), reasons[0])
        return scored

    def _log(self, log_metric: Callable[[str, float], None]) -> None:
        rewards = [reward for reward in self._scored if reward is not None]
        log_metric("dmoerm/failed", 1.0 - len(rewards) / max(len(self._scored), 1))
        if not rewards:
            return
        counts = Counter(reward.category for reward in rewards)
        for category in self._categories:  # a share of 0 counts too: TRL averages over the batches in which a name appears
            log_metric(f"dmoerm/category/{category}", counts[category] / len(rewards))
        log_metric("dmoerm/uncertainty", statistics.fmean(reward.uncertainty for reward in rewards))
        log_metric("dmoerm/capability_spread", statistics.fmean(reward.capability_spread for reward in rewards))
        log_metric("dmoerm/truncated", statistics.fmean(float(reward.truncated) for reward in rewards))
