"""Scoring processes on this machine: each loads the model once and talks over a pipe of its own.

A pipe each rather than one queue for all: a process that is killed while it holds a queue's lock would stop every other one. The processes
end when the pipe does, so that nothing is left running when the first process is killed.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from dmoerm.errors import ConfigError, DmoermError
from dmoerm.scoring.dispatch import Died, Done, Ready
from dmoerm.scoring.scorer import ModelSource, ScoreOptions, ShardScorer
from dmoerm.scoring.shards import Shard

__all__ = ["WorkerPool"]

_SECONDS_TO_END = 10.0
"""A process that has closed its pipe is ending; this long until it is made to."""


class WorkerPool:
    """A `dispatch.Pool` of spawned processes.

    Args:
        source: the model that each loads.
        options: how to score.
        count: how many; the threads of torch are divided among them.

    Raises:
        ConfigError: fewer than one.
    """

    def __init__(self, source: ModelSource, options: ScoreOptions, count: int) -> None:
        if count < 1:
            raise ConfigError(f"workers is {count}; expected at least 1")
        self.slots = count
        self._arguments = source, options, max(1, torch.get_num_threads() // count)
        self._devices = _devices(source.device, count)
        self._running: dict[int, tuple[SpawnProcess, Connection]] = {}
        self._early: list[Died] = []

    def start(self, slot: int) -> None:
        """Begin a process; see `Pool`."""
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, *self._arguments, self._devices[slot]), daemon=True)
        with _no_interrupt():
            process.start()
        theirs.close()  # so that the pipe ends with the process
        self._running[slot] = process, ours

    def submit(self, slot: int, shard: Shard) -> None:
        """Send a shard; see `Pool`. The process waits for it, so this does not block."""
        try:
            self._running[slot][1].send(shard)
        except OSError:
            self._early.append(self._bury(slot))

    def wait(self) -> list[Ready | Done | Died]:
        """What has happened; see `Pool`."""
        events: list[Ready | Done | Died] = [*self._early]
        self._early = []
        slots = {connection: slot for slot, (_, connection) in self._running.items()}
        for connection in wait(list(slots), timeout=0 if events else None):
            assert isinstance(connection, Connection)
            slot = slots[connection]
            try:
                kind, content = connection.recv()
            except (EOFError, OSError):
                events.append(self._bury(slot))
                continue
            if kind == "refused":
                raise content
            if kind == "failed":
                events.append(Died(slot, content))
                self._bury(slot)
            else:
                events.append(Ready(slot, content) if kind == "ready" else Done(slot, content))
        return events

    def close(self) -> None:
        """End all processes, whatever they are at."""
        for process, connection in self._running.values():
            connection.close()
            process.kill()
        for process, _ in self._running.values():
            process.join()
        self._running = {}

    def _bury(self, slot: int) -> Died:
        process, connection = self._running.pop(slot)
        connection.close()
        process.join(_SECONDS_TO_END)
        if process.is_alive():
            process.kill()
            process.join()
        return Died(slot, _reason(process.exitcode))


def _serve(connection: Connection, source: ModelSource, options: ScoreOptions, threads: int, device: str) -> None:
    """Life of one process: load, then score what comes until the pipe ends."""
    from transformers.utils import logging

    torch.set_num_threads(threads)
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))  # the tokenizer's own
    logging.disable_progress_bar()
    try:
        scorer = ShardScorer(source.load(device), options)
        connection.send(("ready", scorer.facts()))
        while True:
            connection.send(("done", scorer.score(connection.recv())))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the first process is gone, or wants no more
        return
    except DmoermError as error:
        connection.send(("refused", error))
    except Exception as error:
        connection.send(("failed", f"{type(error).__name__}: {error}"))


def _reason(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    return f"killed by {name}" + (", perhaps for lack of memory" if -code == signal.SIGKILL else "")


def _devices(device: str, count: int) -> list[str]:
    """A GPU each, in turn, where the device is left open and there are some."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return [f"cuda:{slot % torch.cuda.device_count()}" for slot in range(count)]
    return [device] * count


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal; those started in this block leave it to the first one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Any = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
