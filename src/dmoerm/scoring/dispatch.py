"""Shards to several processes and back: who gets what, what happens when one dies, how much is under way at once.

A process has one shard at a time and the next lies ready, so memory does not grow with the file. A process that dies is started again and
its shard is given to the next that is free. The third death on one shard ends the run with the lines of that shard, since the rows are
then more likely to blame than the machine. How processes are started and spoken to is the pool's: `workers.py` on this machine,
`ray_engine.py` on a cluster.
"""

import logging
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from dmoerm.errors import ConfigError, DmoermError
from dmoerm.scoring.scorer import ModelFacts, ScoredShard
from dmoerm.scoring.shards import Shard

__all__ = ["MAX_DEATHS", "Died", "Dispatcher", "Done", "Pool", "Ready"]

MAX_DEATHS = 3
"""Processes that a shard may take with it; also how many may die in a row before one has loaded the model."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ready:
    """A process has loaded the model."""

    slot: int
    facts: ModelFacts


@dataclass(frozen=True, slots=True)
class Done:
    """A process has scored the shard that it was given."""

    slot: int
    scored: ScoredShard


@dataclass(frozen=True, slots=True)
class Died:
    """A process is gone."""

    slot: int
    reason: str


class Pool(Protocol):
    """Processes with a model each, numbered from 0 to `slots` - 1."""

    slots: int

    def start(self, slot: int) -> None:
        """Begin a process, also in place of one that died; `wait` tells when it is ready."""

    def submit(self, slot: int, shard: Shard) -> None:
        """Give a shard to a process that is ready and has none."""

    def wait(self) -> list[Ready | Done | Died]:
        """Wait until something has happened. What a process refuses (a model that is not there) is raised as it is."""

    def close(self) -> None:
        """End all processes."""


class Dispatcher:
    """Runs shards through a pool.

    Args:
        pool: the processes.

    Attributes:
        deaths: processes that died so far.
    """

    def __init__(self, pool: Pool) -> None:
        self.deaths = 0
        self._pool = pool
        self._facts: ModelFacts | None = None
        self._idle: deque[int] = deque()
        self._working: dict[int, Shard] = {}
        self._again: deque[Shard] = deque()
        self._deaths_of: Counter[int] = Counter()
        self._deaths_in_loading = 0

    def open(self) -> ModelFacts:
        """Start all processes and wait for the first that has loaded its model.

        Raises:
            DmoermError: the model cannot be loaded, or does not have what is asked for.
        """
        for slot in range(self._pool.slots):
            self._pool.start(slot)
        while self._facts is None:
            self._take(self._pool.wait())
        return self._facts

    def close(self) -> None:
        """End all processes."""
        self._pool.close()

    def score(self, shards: Iterable[Shard]) -> Iterator[ScoredShard]:
        """Scored shards in the order in which they become ready.

        Raises:
            DmoermError: a shard has ended three processes, processes die while they load, or they hold different models.
        """
        source, scored = iter(shards), list[ScoredShard]()
        ahead = next(source, None)
        while True:
            while self._idle and (self._again or ahead is not None):
                shard = self._again.popleft() if self._again else ahead
                assert shard is not None
                slot = self._idle.popleft()
                self._working[slot] = shard
                self._pool.submit(slot, shard)
                if shard is ahead:
                    ahead = next(source, None)
            yield from scored  # only now, so that nobody waits while the caller writes them away
            if not self._working and not self._again and ahead is None:
                return
            scored = self._take(self._pool.wait())

    def _take(self, events: list[Ready | Done | Died]) -> list[ScoredShard]:
        scored = []
        for event in events:
            if isinstance(event, Ready):
                self._deaths_in_loading = 0
                self._facts = self._facts or event.facts
                _require_equal(self._facts, event.facts)
                self._idle.append(event.slot)
            elif isinstance(event, Done):
                del self._working[event.slot]
                self._idle.append(event.slot)
                scored.append(event.scored)
            else:
                self._bury(event)
        return scored

    def _bury(self, event: Died) -> None:
        self.deaths += 1
        if event.slot in self._idle:
            self._idle.remove(event.slot)
            _LOG.warning("process %d died (%s); starting another", event.slot, event.reason)
        elif (shard := self._working.pop(event.slot, None)) is not None:
            self._deaths_of[shard.index] += 1
            if self._deaths_of[shard.index] == MAX_DEATHS:
                raise DmoermError(
                    f"{shard.place}: these rows (shard {shard.index}) ended {MAX_DEATHS} processes, the last one by: {event.reason}. "
                    "What is finished is kept. Take the rows out, or give them more room (a lower --batch-tokens, fewer --workers), "
                    "and go on with --resume"
                )
            self._again.append(shard)
            _LOG.warning("process %d died (%s) on %s; trying these rows again", event.slot, event.reason, shard.place)
        else:
            self._deaths_in_loading += 1
            if self._deaths_in_loading == MAX_DEATHS:
                raise DmoermError(
                    f"{MAX_DEATHS} processes in a row died before they had loaded the model, the last one by: {event.reason}. Try fewer "
                    "--workers: each holds a model of its own"
                )
        self._pool.start(event.slot)


def _require_equal(facts: ModelFacts, other: ModelFacts) -> None:
    if facts == other:
        return
    what = "model" if facts.model != other.model else "version of dmoerm"
    raise ConfigError(f"the processes hold different ones of a {what}; nothing more was scored. Bring all machines to the same, and go on")
