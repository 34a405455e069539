"""What a public benchmark is to us: where its rows live, how a row becomes an item, and how rewards become figures.

A benchmark is one file in this folder that makes one or more `Benchmark`, and a row of `table.BENCHMARKS`. Its rule is two pure functions:
`credits` says for every item what it earned in which cell (a subset, a domain at a difficulty), `figures` says which means of cells are
reported. Sampling error, failures and ties are the same for all and live in `figures.measure`.

A response that could not be scored (None) earns nothing in whatever it takes part in, and its item is counted as failed. It never gets a
reward of 0, which would be better than many.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmoerm.data.jsonl import Row
from dmoerm.data.readers.outcome import LeftOut
from dmoerm.evaluation.benchmarks.figures import Credit, Figure
from dmoerm.evaluation.scorers import Rewards
from dmoerm.records import Comparison, Message, prompt_hash

__all__ = ["Benchmark", "Item", "item_of", "mean_credit", "wins"]


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt of a benchmark, its responses, and which of them are right.

    Attributes:
        id: its own, or "file:line".
        prompt: the conversation up to the response.
        responses: in the order of the row.
        right: one a response.
        groups: subset, domain or source; several where they overlap.
        source: path and line, for messages.
        pairs: (right, wrong) indices that are compared; () for every right response against every wrong one.
    """

    id: str
    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    right: tuple[bool, ...]
    groups: tuple[str, ...]
    source: str
    pairs: tuple[tuple[int, int], ...] = ()

    @property
    def compared(self) -> tuple[tuple[int, int], ...]:
        """The pairs that are compared, the right response first."""
        good, bad = ([index for index, right in enumerate(self.right) if right is wanted] for wanted in (True, False))
        return self.pairs or tuple(itertools.product(good, bad))

    @property
    def unit(self) -> str:
        """What a bootstrap draws: items of one prompt are not independent."""
        return prompt_hash(self.prompt)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One public benchmark.

    Attributes:
        title: its name in print.
        sources: where it lives by default, as `dmoerm.locations` names data; () where nothing there can be read as it is.
        get: what to do where it cannot be had; ends the message of the error.
        read_row: makes an item of a row, or says why it is none. Its `DataError` reads on from "path:line: ".
        credits: the scoring rule: what every item earned, given its rewards.
        figures: what is reported, the overall figure first.
        groups: the subsets of the whole benchmark, () where the data decide; a missing one is said in the report.
        rule: how it is scored, in a line.
        citation: paper and the code that the rule follows.
        folder: files of a folder in the layout of its repository; () where a folder cannot be named.
    """

    title: str
    sources: tuple[str, ...]
    get: str
    read_row: Callable[[Row, Path], Item | LeftOut]
    credits: Callable[[Sequence[Item], Sequence[Rewards]], list[Credit]]
    figures: Callable[[Sequence[Item]], list[Figure]]
    groups: tuple[str, ...]
    rule: str
    citation: str
    folder: tuple[str, ...] = ()


def item_of(comparison: Comparison, *groups: str) -> Item:
    """The item of a comparison: its best-ranked responses are the right ones."""
    best = min(comparison.ranks)
    right = tuple(rank == best for rank in comparison.ranks)
    return Item(comparison.id, comparison.prompt, comparison.responses, right, groups, comparison.source or "")


def wins(rewards: Rewards, right: int, wrong: int, *, tie: float) -> float:
    """1 where the right response has the higher reward, `tie` where they are equal, 0 where it has the lower one or one is missing."""
    first, second = rewards[right], rewards[wrong]
    if first is None or second is None:
        return 0.0
    return float(first > second) if first != second else tie


def mean_credit(items: Sequence[Item], rewards: Sequence[Rewards], *, tie: float) -> list[Credit]:
    """The share of its compared pairs that an item gets right, in the cell of each of its groups and weighted by its pairs."""
    found = []
    for number, (item, given) in enumerate(zip(items, rewards, strict=True)):
        earned = [wins(given, right, wrong, tie=tie) for right, wrong in item.compared]
        found += [Credit(group, sum(earned) / len(earned), (number,), item.unit, len(earned)) for group in item.groups]
    return found
