"""JudgeBench: pairs of one right and one wrong answer of the same model (350 by GPT-4o, 270 by Claude 3.5 Sonnet).

Scored as upstream scores reward models, in one order (`--single_game`): the verdict is A>B where A has the strictly higher reward and B>A
otherwise. **A tie is therefore read as B>A**, and right where B is the right one; the number of ties is in the report. A pair with a
failed response is wrong. `overall` is the share of all pairs (micro average), as upstream prints it; `macro` is the mean of the four
kinds of task, which some papers report.

Source: Tan et al. (2024), arXiv 2410.12784; ScalerLab/JudgeBench at 12a499c: utils/judges.py (reward models), utils/metrics.py.
"""

from collections.abc import Sequence
from pathlib import Path

from dmoerm.data.jsonl import Row
from dmoerm.data.readers import judge_bench as reader
from dmoerm.evaluation.benchmarks.definition import Benchmark, Item, item_of, wins
from dmoerm.evaluation.benchmarks.figures import Credit, Figure, mean_of
from dmoerm.evaluation.scorers import Rewards

__all__ = ["JUDGE_BENCH", "JUDGE_BENCH_CLAUDE"]

_KINDS = {"mmlu-pro": "knowledge", "livebench-reasoning": "reasoning", "livebench-math": "math", "livecodebench": "coding"}
"""Beginning of `source` to kind of task."""

_ALL = "all pairs"


def read_row(row: Row, path: Path) -> Item:
    """One pair, A first.

    Raises:
        DataError: a field is missing or of the wrong type, or another label than A>B or B>A.
    """
    comparison = reader.read_row(row, path)
    source = comparison.subset or "unnamed source"
    return item_of(comparison, next((kind for start, kind in _KINDS.items() if source.startswith(start)), source))


def credits(items: Sequence[Item], rewards: Sequence[Rewards]) -> list[Credit]:
    """1 where the verdict of the rewards is the label; in the cell of its kind and in that of all pairs."""
    found = []
    for number, (item, given) in enumerate(zip(items, rewards, strict=True)):
        right = item.right.index(True)
        earned = wins(given, right, 1 - right, tie=float(right == 1))
        found += [Credit(cell, earned, (number,), item.unit) for cell in (_ALL, item.groups[0])]
    return found


def figures(items: Sequence[Item]) -> list[Figure]:
    """Overall (micro), macro, and the kinds of task."""
    kinds = [*_KINDS.values(), *sorted({item.groups[0] for item in items} - set(_KINDS.values()))]
    rows = [Figure(kind, ((1.0, kind),), level=1) for kind in kinds]
    return [Figure("overall", ((1.0, _ALL),)), mean_of("macro", kinds), *rows]


def _judge_bench(title: str, split: str) -> Benchmark:
    return Benchmark(
        title=title,
        sources=(f"hub:ScalerLab/JudgeBench::{split}",),
        get=f"Name a copy of the split {split}: rows with question, response_A, response_B, label and source",
        read_row=read_row,
        credits=credits,
        figures=figures,
        groups=tuple(_KINDS.values()),
        rule="one order, A>B only where A has the strictly higher reward (a tie is B>A); overall: all pairs, macro: mean of 4 kinds",
        citation="Tan et al. (2024), arXiv 2410.12784; ScalerLab/JudgeBench at 12a499c",
    )


JUDGE_BENCH = _judge_bench("JudgeBench (GPT-4o pairs)", "gpt")
JUDGE_BENCH_CLAUDE = _judge_bench("JudgeBench (Claude pairs)", "claude")
