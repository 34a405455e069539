"""Running benchmarks: rows from a local copy or the Hub, rewards from any scorer, figures by the benchmark's own rule."""

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from dmoerm.data.files import scan_file
from dmoerm.data.hub import hub_commit
from dmoerm.data.jsonl import map_rows
from dmoerm.data.readers.outcome import LeftOut
from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.batch_invariance import check_batch_invariance
from dmoerm.evaluation.benchmarks.definition import Benchmark, Item
from dmoerm.evaluation.benchmarks.figures import Figure, figure_values, measure
from dmoerm.evaluation.benchmarks.report import BenchmarkReport
from dmoerm.evaluation.benchmarks.table import BENCHMARKS
from dmoerm.evaluation.bootstrap import Resampling
from dmoerm.evaluation.scorers import Candidates, Longest, ModelScorer, Rewards, Scorer, open_scorer
from dmoerm.locations import is_hub
from dmoerm.validation import did_you_mean

if TYPE_CHECKING:
    from dmoerm.modeling.inner import Aggregation

__all__ = ["BenchmarkData", "parse_requests", "read_benchmark", "run_benchmark", "run_benchmarks"]

CHUNK = 256
"""Items scored between two calls of `progress`."""

RANDOM_DRAWS = 10
"""Random rewards are drawn this often, and their figures averaged."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class BenchmarkData:
    """The items of a benchmark.

    Attributes:
        name: in `BENCHMARKS`.
        items: in the order of the files.
        sources: every file or `hub:` name, with the commit where it came from the Hub.
        skipped_rows: rows that could not be used.
        left_out: rows that are no items, by reason.
    """

    name: str
    items: tuple[Item, ...]
    sources: Mapping[str, str | None]
    skipped_rows: int
    left_out: Mapping[str, int]


def run_benchmark(
    scorer: Scorer,
    name: str,
    sources: Sequence[str | Path] = (),
    *,
    bad_rows: str = "stop",
    seed: int = 0,
    samples: int = 2000,
    progress: Progress = lambda done, total: None,
) -> BenchmarkReport:
    """Score one benchmark.

    Args:
        scorer: the model.
        name: of `BENCHMARKS`.
        sources: files, folders or `hub:` names with its rows; () for where it lives.
        bad_rows: "stop" or "skip", on a row that cannot be used.
        seed: of the bootstrap, of the sample that is scored again and of the random rewards.
        samples: bootstrap draws, at least 100.
        progress: called with (items scored, all of them).

    Raises:
        ConfigError: no such benchmark, or an option out of range.
        DataError: the rows cannot be had or used.
    """
    return _score(scorer, read_benchmark(name, sources, bad_rows=bad_rows), Resampling(seed, samples), progress)


def run_benchmarks(
    model: str,
    requests: Mapping[str, Sequence[str]],
    *,
    device: str = "auto",
    backbone: str | None = None,
    aggregations: "Sequence[Aggregation]" = (),
    bad_rows: str = "stop",
    seed: int = 0,
    samples: int = 2000,
    progress: Progress = lambda done, total: None,
) -> list[BenchmarkReport]:
    """Score several benchmarks with the model of that name; all rows are read before it is loaded.

    Args:
        model: as `open_scorer` takes it.
        requests: benchmark to its sources, as `parse_requests` makes them.
        device: auto, cpu, cuda …
        backbone: of a double-layer model, where it lies elsewhere now.
        aggregations: of a double-layer model, at most one; () is its own.
        bad_rows: as in `run_benchmark`.
        seed: likewise.
        samples: likewise.
        progress: likewise, for each benchmark.

    Raises:
        ConfigError: as `run_benchmark`; several aggregations, or one for a model that has none.
        DataError: as `run_benchmark`.
        ArtifactError: there is no such model.
    """
    if len(aggregations) > 1:
        raise ConfigError(f"--aggregation {' '.join(aggregations)}: a benchmark is scored under one; name one of them")
    resampling = Resampling(seed, samples)
    read = [read_benchmark(name, sources, bad_rows=bad_rows) for name, sources in requests.items()]
    aggregation = aggregations[0] if aggregations else None
    scorer = open_scorer(model, device=device, aggregation=aggregation, backbone=backbone)
    if aggregation is not None and not isinstance(scorer, ModelScorer):
        raise ConfigError(f"--aggregation {aggregation}: {model} has one reward and no aggregations; leave the flag out")
    return [_score(scorer, data, resampling, progress) for data in read]


def parse_requests(texts: Sequence[str]) -> dict[str, list[str]]:
    """Benchmark to sources, of NAME or NAME=SOURCE; a name that comes again adds a source.

    Raises:
        ConfigError: no such benchmark, or nothing after the =.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, source = text.partition("=")
        _definition(name)
        if equals and not source:
            raise ConfigError(f"--benchmark {text}: expected a file, a folder or hub:ORG/NAME after the =, or {name} alone")
        found.setdefault(name, []).extend([source] if source else [])
    return found


def read_benchmark(name: str, sources: Sequence[str | Path] = (), *, bad_rows: str = "stop") -> BenchmarkData:
    """The items of a benchmark from its files.

    Raises:
        ConfigError: no such benchmark or policy, a malformed `hub:` name, or no source is named where there is no default.
        DataError: the files cannot be had or read, a row cannot be used (with "stop"), or there is no item.
    """
    definition = _definition(name)
    paths = [file for source in sources or definition.sources for file in _files(definition, name, Path(source))]
    if not paths:
        raise ConfigError(f"{definition.title} has no default source. {definition.get}: --benchmark {name}=PATH")
    items: list[Item] = []
    left_out: Counter[str] = Counter()
    commits: dict[str, str | None] = {}
    skipped = 0
    for path in paths:
        try:
            mapped = map_rows(path, lambda row, path=path: definition.read_row(row, path), bad_rows, None, scan_file)  # type: ignore[misc]
            commits[path.as_posix()] = hub_commit(path) if is_hub(path) else None
        except DataError as error:
            hint = "" if sources else f"\n{definition.get}: --benchmark {name}=PATH"
            raise DataError(f"{definition.title}: {error}{hint}") from error
        skipped += mapped.rejected
        left_out.update(item.reason for item in mapped.items if isinstance(item, LeftOut))
        items += [item for item in mapped.items if isinstance(item, Item)]
    if not items:
        raise DataError(f"{definition.title}: no item in {', '.join(commits)}; {definition.get}.")
    return BenchmarkData(name, tuple(items), commits, skipped, left_out)


def _definition(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise ConfigError(f'no benchmark is named "{name}"{did_you_mean(name, BENCHMARKS)}')
    return BENCHMARKS[name]


def _files(definition: Benchmark, name: str, path: Path) -> list[Path]:
    if is_hub(path) or not path.is_dir():
        return [path]
    found = [path / file for file in definition.folder if (path / file).is_file()]
    if not found:
        wanted = f"one with {', '.join(definition.folder)}" if definition.folder else f"a file, or hub:{path}:CONFIG:SPLIT"
        raise DataError(f"--benchmark {name}={path}: a folder without the files of {definition.title}; expected {wanted}.")
    return found


def _score(scorer: Scorer, data: BenchmarkData, resampling: Resampling, progress: Progress) -> BenchmarkReport:
    definition = BENCHMARKS[data.name]
    items = data.items
    candidates = [Candidates(item.prompt, item.responses) for item in items]
    rewards: list[Rewards] = []
    for start in range(0, len(items), CHUNK):
        rewards += _checked(scorer, candidates[start : start + CHUNK])
        progress(len(rewards), len(items))
    figures = definition.figures(items)
    failed = [None in given for given in rewards]
    tied = [_tied(item, given) for item, given in zip(items, rewards, strict=True)]
    words = {(item.prompt, item.responses, item.groups) for item in items}
    return BenchmarkReport(
        benchmark=data.name,
        title=definition.title,
        model=scorer.name,
        rows=tuple(measure(figures, definition.credits(items, rewards), failed, tied, resampling)),
        longest=figure_values(figures, definition.credits(items, Longest().score(candidates))),
        random=_random(definition, figures, items, resampling.seed),
        invariance=check_batch_invariance(_Checked(scorer), candidates, rewards, seed=resampling.seed),
        sources=data.sources,
        skipped_rows=data.skipped_rows,
        left_out=data.left_out,
        missing=tuple(group for group in definition.groups if not any(group in item.groups for item in items)),
        repeated=len(items) - len(words),
        rule=definition.rule,
        citation=definition.citation,
        resampling=resampling,
        version=version("dmoerm"),
    )


class _Checked:
    """A scorer whose rewards are finite or None, one a response."""

    def __init__(self, scorer: Scorer) -> None:
        self.name = scorer.name
        self._scorer = scorer

    def score(self, candidates: Sequence[Candidates]) -> list[Rewards]:
        return _checked(self._scorer, candidates)


def _checked(scorer: Scorer, candidates: Sequence[Candidates]) -> list[Rewards]:
    found = scorer.score(candidates)
    asked = [len(one.responses) for one in candidates]
    if [len(given) for given in found] != asked:
        raise DataError(f"{scorer.name} gave {[len(given) for given in found]} rewards for {asked} responses; expected one each.")
    return [[reward if reward is not None and math.isfinite(reward) else None for reward in given] for given in found]


def _tied(item: Item, rewards: Rewards) -> bool:
    return any(rewards[right] is not None and rewards[right] == rewards[wrong] for right, wrong in item.compared)


def _random(definition: Benchmark, figures: Sequence[Figure], items: Sequence[Item], seed: int) -> dict[str, float]:
    """Figures of random rewards, averaged over draws. A figure that some draws leave undefined is averaged over the others."""
    rng = random.Random(seed)
    sums: dict[str, list[float]] = {}
    for _ in range(RANDOM_DRAWS):
        rewards: list[Rewards] = [[rng.random() for _ in item.responses] for item in items]
        for name, value in figure_values(figures, definition.credits(items, rewards)).items():
            sums.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in sums.items()}
