"""Scoring processes on a Ray cluster: one actor with a model each; an actor that dies is made again, on any machine that is left.

Only shards go out and only output rows come back: the parts are written where the run was started, so the machines need no storage in
common. They need this package and the model, at the same path or from the Hub. Ray's own checkpoints and restarts are not used: which
shards are done is decided by the part files alone.
"""

import logging
import os
import socket
from typing import Any

from dmoerm.errors import ConfigError, DmoermError, missing_extra
from dmoerm.scoring.dispatch import Died, Done, Ready
from dmoerm.scoring.scorer import ModelFacts, ModelSource, ScoredShard, ScoreOptions, ShardScorer
from dmoerm.scoring.shards import Shard

__all__ = ["RayPool"]

_SECONDS_TO_ANSWER = 10.0


class RayPool:
    """A `dispatch.Pool` of Ray actors.

    Joins the cluster that this process or `RAY_ADDRESS` names, else one that runs on this machine, else starts one for this run.

    Args:
        source: the model that each actor loads.
        options: how to score.
        count: how many actors; None is one a GPU, or one a CPU core where there is no GPU or `source.device` is not one.

    Raises:
        ConfigError: fewer than one actor, or no cluster at the address.
        DmoermError: Ray is not installed.
    """

    def __init__(self, source: ModelSource, options: ScoreOptions, count: int | None = None) -> None:
        if count is not None and count < 1:
            raise ConfigError(f"workers is {count}; expected at least 1")
        self._ray = ray = _import_ray()
        self._own = not ray.is_initialized()
        if self._own:
            _require_reachable(os.environ.get("RAY_ADDRESS", ""))
            try:
                ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise ConfigError(f"no Ray cluster: {error}. Set RAY_ADDRESS to the address of yours, or unset it") from error
        resources = ray.cluster_resources()
        wants_gpu = source.device == "auto" or source.device.startswith("cuda")
        gpus = int(resources.get("GPU", 0)) if wants_gpu else 0
        self.slots = count or gpus or max(1, int(resources.get("CPU", 1)))
        self._actor = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=0, max_task_retries=0)(_Actor)
        self._arguments = source.absolute(), options
        self._actors: dict[int, Any] = {}
        self._pending: dict[Any, int] = {}

    def start(self, slot: int) -> None:
        """Begin an actor; see `Pool`."""
        self._actors[slot] = self._actor.remote()
        self._pending[self._actors[slot].load.remote(*self._arguments)] = slot

    def submit(self, slot: int, shard: Shard) -> None:
        """Send a shard; see `Pool`."""
        self._pending[self._actors[slot].score.remote(shard)] = slot

    def wait(self) -> list[Ready | Done | Died]:
        """What has happened; see `Pool`. An actor that dies without a shard is noticed when it is given one."""
        ready, _ = self._ray.wait(list(self._pending), num_returns=1)
        return [self._event(reference, self._pending.pop(reference)) for reference in ready]

    def close(self) -> None:
        """End all actors, and the cluster where it was started here."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors, self._pending = {}, {}
        if self._own:
            self._ray.shutdown()

    def _event(self, reference: Any, slot: int) -> Ready | Done | Died:
        exceptions = self._ray.exceptions
        try:
            result = self._ray.get(reference)
        except exceptions.RayTaskError as error:  # raised inside the actor
            cause = error.cause
            if isinstance(cause, DmoermError):
                raise cause from error
            self._ray.kill(self._actors[slot])
            return Died(slot, f"{type(cause).__name__}: {cause}")
        except exceptions.RayError as error:  # the actor, its machine or the way there is gone
            self._ray.kill(self._actors[slot])
            return Died(slot, _last_line(str(error)))
        return Ready(slot, result) if isinstance(result, ModelFacts) else Done(slot, result)


class _Actor:
    """Runs on the cluster. The model is loaded by a method, since an error there comes back as it is."""

    def load(self, source: ModelSource, options: ScoreOptions) -> ModelFacts:
        from transformers.utils import logging

        logging.disable_progress_bar()
        self._scorer = ShardScorer(source.load(), options)
        return self._scorer.facts()

    def score(self, shard: Shard) -> ScoredShard:
        return self._scorer.score(shard)


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when a cluster is started: no reports to Ray's makers
    try:
        import ray
    except ImportError as error:
        raise missing_extra("ray", "ray") from error
    return ray


def _require_reachable(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself would try for minutes.

    Raises:
        ConfigError: nobody answers there.
    """
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return  # "auto", "local" and the like are Ray's to resolve
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_TO_ANSWER).close()
    except OSError as error:
        raise ConfigError(
            f"RAY_ADDRESS is {address}, where nobody answers ({error}). Start the cluster (ray start --head), name another, or unset it"
        ) from error


def _last_line(text: str) -> str:
    """What Ray says of a dead actor, without the pages of advice."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else "the actor died")[:200]
