"""A file of prompts and responses to a file of rewards: streamed, in order, on one or many processes, and safe to kill.

One output row a response, in the order of the input:

    {"id", "response_index", "reward", "category", "category_probability", "capabilities", "capability_spread", "uncertainty", "truncated"}
    {"id", "response_index" | null, "error"}      what could not be scored, and why; null where the whole row could not be read

The input is cut into shards (shards.py), each is scored by one process (scorer.py; dispatch.py where there are several) and written as one
part file (parts.py). The parts are joined when all are there, so the output appears under its name only when it is whole. `resume` does the
shards that have no part, with any number of processes and on any engine; it refuses another model, another setting and a changed input.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from dmoerm.errors import ConfigError
from dmoerm.modeling.inner import Aggregation
from dmoerm.modeling.reward_model import RewardModel
from dmoerm.scoring.dispatch import Dispatcher
from dmoerm.scoring.parts import PartFolder, Totals, refuse_taken
from dmoerm.scoring.scorer import ModelFacts, ModelSource, ScoredShard, ScoreOptions, ShardScorer, model_identity, require_aggregation
from dmoerm.scoring.shards import SHARD_RESPONSES, Shard, Survey, read_shards, survey

__all__ = ["ENGINES", "BulkResult", "Engine", "ModelSource", "model_identity", "require_aggregation", "score_file"]

Engine = Literal["local", "ray"]
ENGINES: tuple[Engine, ...] = ("local", "ray")


@dataclass(frozen=True, slots=True)
class BulkResult:
    """What became of a file.

    Attributes:
        path: the output.
        rows: input rows.
        responses: output rows with a reward.
        failed: output rows with an error.
        resumed_rows: input rows of them that an earlier run had done.
        deaths: processes that died and were replaced.
        seconds: of this run.
    """

    path: Path
    rows: int
    responses: int
    failed: int
    resumed_rows: int
    deaths: int
    seconds: float


def score_file(
    model: RewardModel | ModelSource,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    aggregation: Aggregation | None = None,
    category: str | None = None,
    batch_tokens: int = 16384,
    workers: int | None = None,
    engine: Engine = "local",
    parts: bool = False,
    shard_responses: int = SHARD_RESPONSES,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> BulkResult:
    """Score every response of a file.

    Args:
        model: the model, or where it is saved; several processes need the latter.
        source: `.jsonl` or `.jsonl.gz`; see `scoring.requests` for the rows.
        target: the file to write, gzip where its name ends in `.gz`; with `parts` the folder.
        aggregation: None is the model's own default.
        category: judge every row by this category's inner model and skip the router.
        batch_tokens: token budget of a batch, padding counted.
        workers: processes, each with a model of its own. None scores in this one; with "ray", one a GPU or core of the cluster.
        engine: "local", or "ray" for a Ray cluster.
        parts: leave the part files as they are, for outputs that nobody wants in one piece.
        shard_responses: responses of a shard; what is lost when a process dies.
        resume: go on with an unfinished run; where there is none, begin.
        overwrite: replace the output, and forget an unfinished run.
        progress: called with (input rows done, all of them) after each shard.

    Raises:
        ConfigError: the output or an unfinished run is there and neither `resume` nor `overwrite` is given, the unfinished run is of
            another model, setting or input, the model has no such category or aggregation, or several processes but no saved model.
        DataError: the input cannot be read to its end, or two rows have one id. A single bad row is an error row of the output instead.
        DmoermError: processes keep dying, on one shard or while they load; what is finished is kept.
    """
    source, target = Path(source), Path(target)
    begin = time.monotonic()
    for name, value in (("batch_tokens", batch_tokens), ("shard_responses", shard_responses)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; expected at least 1")
    if source.resolve() == target.resolve():
        raise ConfigError(f"{source} is input and output at once; name another output")
    if target.is_dir() and not parts:
        raise ConfigError(f"{target} is a folder; name a file, or ask for a folder of part files (--parts)")
    folder = target if parts else target.with_name(f"{target.name}.parts")
    refuse_taken(folder, target, resume=resume, overwrite=overwrite)
    known = survey(source)  # before anything is written or loaded, so that a bad input leaves no trace
    scorers = _scorers(model, ScoreOptions(aggregation, category, batch_tokens), workers, engine)
    try:
        facts = scorers.open()
        settings = _settings(known, facts, category, shard_responses)
        there, compressed = target.exists() and not parts, target.suffix == ".gz" and not parts
        with closing(PartFolder.open(folder, settings, compressed=compressed, overwrite=overwrite, replaces=there)) as kept:
            if there and not overwrite and (done := kept.merged(target)) is not None:
                kept.remove()  # killed when all was done but this
                return _result(target, done, done.rows, 0, begin)
            tally = _Tally(known.rows, progress)
            shards = read_shards(source, known, category=category, shard_responses=shard_responses)
            for scored in scorers.score(_still_to_do(shards, kept, tally)):
                kept.add(scored)
                tally.add(scored)
            if parts:
                kept.finish(tally.shards, tally.totals)
            else:
                kept.merge(target, tally.shards, tally.totals)
            return _result(target, tally.totals, tally.resumed_rows, scorers.deaths, begin)
    finally:
        scorers.close()


class _Scorers(Protocol):
    """One process or several."""

    deaths: int

    def open(self) -> ModelFacts: ...

    def score(self, shards: Iterable[Shard]) -> Iterator[ScoredShard]: ...

    def close(self) -> None: ...


class _ThisProcess:
    """Scores here, one shard after the other."""

    deaths = 0

    def __init__(self, model: RewardModel | ModelSource, options: ScoreOptions) -> None:
        self._model, self._options = model, options

    def open(self) -> ModelFacts:
        model = self._model.load() if isinstance(self._model, ModelSource) else self._model
        self._scorer = ShardScorer(model, self._options)
        return self._scorer.facts()

    def score(self, shards: Iterable[Shard]) -> Iterator[ScoredShard]:
        return map(self._scorer.score, shards)

    def close(self) -> None:
        pass


def _scorers(model: RewardModel | ModelSource, options: ScoreOptions, workers: int | None, engine: Engine) -> _Scorers:
    if engine not in ENGINES:
        raise ConfigError(f"engine is {engine!r}; expected {' or '.join(ENGINES)}")
    if engine == "local" and workers is None:
        return _ThisProcess(model, options)
    if not isinstance(model, ModelSource):
        raise ConfigError("several processes each load the model: pass ModelSource(FOLDER) instead of a loaded one")
    if engine == "local":
        assert workers is not None
        from dmoerm.scoring.workers import WorkerPool

        return Dispatcher(WorkerPool(model, options, workers))
    from dmoerm.scoring.ray_engine import RayPool

    return Dispatcher(RayPool(model, options, workers))


def _settings(known: Survey, facts: ModelFacts, category: str | None, shard_responses: int) -> dict[str, Any]:
    return {
        "kind": "bulk scoring",
        "version": 1,
        "input_name": known.name,
        "input_rows": known.rows,
        "input_bytes": known.bytes,
        "input_sha256": known.sha256,
        "model": facts.model,
        "aggregation": facts.aggregation,
        "category": category,
        "shard_responses": shard_responses,
    }


class _Tally:
    """How far a run is."""

    def __init__(self, rows: int, progress: Callable[[int, int], None]) -> None:
        self.shards = 0
        self.resumed_rows = 0
        self.totals = Totals(0, 0, 0)
        self._all, self._progress = rows, progress

    def add(self, scored: ScoredShard) -> None:
        """A shard of this run."""
        self._count(scored)
        self._progress(self.totals.rows, self._all)

    def keep(self, scored: ScoredShard) -> None:
        """A shard of an earlier run."""
        self._count(scored)
        self.resumed_rows += scored.rows

    def begin(self) -> None:
        """What comes first of what is still to do has been found."""
        self._progress(self.totals.rows, self._all)

    def _count(self, scored: ScoredShard) -> None:
        self.shards += 1
        totals = self.totals
        self.totals = Totals(totals.rows + scored.rows, totals.responses + scored.responses, totals.failed + scored.failed)


def _still_to_do(shards: Iterable[Shard], kept: PartFolder, tally: _Tally) -> Iterator[Shard]:
    begun = False
    for shard in shards:
        if (done := kept.done(shard)) is not None:
            tally.keep(done)
            continue
        if not begun:
            tally.begin()
        begun = True
        yield shard


def _result(target: Path, totals: Totals, resumed_rows: int, deaths: int, begin: float) -> BulkResult:
    return BulkResult(target, totals.rows, totals.responses, totals.failed, resumed_rows, deaths, time.monotonic() - begin)
