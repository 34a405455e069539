"""LLMBar: 419 pairs in which one output follows the instruction and the other, often the nicer text, does not.

A pair earns 1 for the higher reward and one half for a tie: upstream's `correct_average` is the mean over both orders of presentation,
and for an evaluator that rates each output by itself a tie is read once as each. `adversarial` is the mean of the four adversarial sets;
`overall` is the mean of all five sets, and `all pairs` the share of all pairs. Upstream's code scores one set at a time and averages
nothing over sets: these means are our reading of the paper's tables.

The rows do not name their set; the folder does (`…/Adversarial/Neighbor/dataset.json`), or a field `subset`. The repository on the Hub
holds a loading script and no data, so there is no default source.

Source: Zeng et al. (2023), arXiv 2310.07641; princeton-nlp/LLMBar at caa7bee, LLMEvaluator/evaluate.py (rating evaluators, statistics).
"""

from collections.abc import Sequence
from pathlib import Path

from dmoerm.data.jsonl import Row
from dmoerm.data.readers.fields import check_fields, id_field, messages_field, name_field, response_text, source_of
from dmoerm.errors import DataError
from dmoerm.evaluation.benchmarks.definition import Benchmark, Item, mean_credit
from dmoerm.evaluation.benchmarks.figures import Credit, Figure, mean_of
from dmoerm.evaluation.scorers import Rewards
from dmoerm.validation import did_you_mean

__all__ = ["LLM_BAR"]

ADVERSARIAL = ("Neighbor", "GPTInst", "GPTOut", "Manual")
SETS = ("Natural", *ADVERSARIAL)
_REQUIRED = ("input", "output_1", "output_2", "label")
_ALL = "all pairs"


def read_row(row: Row, path: Path) -> Item:
    """One pair, in the order of the row.

    Raises:
        DataError: a field is missing or of the wrong type, the label is neither 1 nor 2, or nothing tells the set.
    """
    data = row.data
    check_fields(data, _REQUIRED, ("id", "subset"))
    label = data["label"]
    if isinstance(label, bool) or label not in (1, 2):
        raise DataError(f'"label" is {label!r}; expected 1 or 2, the better output.')
    prompt = messages_field(data["input"], '"input"')
    responses = tuple(response_text(data[name], f'"{name}"') for name in ("output_1", "output_2"))
    named = name_field(data, "subset") or path.parent.name
    subset = next((name for name in SETS if name.lower() == named.lower().removeprefix("adversarial_")), None)
    if subset is None:
        raise DataError(f'nothing tells the set: neither "subset" nor the folder, which is {named!r}{did_you_mean(named, SETS)}.')
    return Item(id_field(row, path), prompt, responses, (label == 1, label == 2), (subset, _ALL), source_of(row, path))


def credits(items: Sequence[Item], rewards: Sequence[Rewards]) -> list[Credit]:
    """1 for the higher reward, one half for a tie; a cell a set."""
    return mean_credit(items, rewards, tie=0.5)


def figures(items: Sequence[Item]) -> list[Figure]:
    """Mean of the sets, share of all pairs, mean of the adversarial sets, and each set."""
    rows = [Figure(name, ((1.0, name),), level=2) for name in SETS]
    return [mean_of("overall", SETS), Figure(_ALL, ((1.0, _ALL),)), mean_of("adversarial", ADVERSARIAL, level=1), *rows]


LLM_BAR = Benchmark(
    title="LLMBar",
    sources=(),
    get="Get the repository princeton-nlp/LLMBar and name its folder Dataset/LLMBar, or rows with input, output_1, output_2, label, subset",
    read_row=read_row,
    credits=credits,
    figures=figures,
    groups=SETS,
    rule="higher reward, a tie is one half; adversarial: mean of 4 sets; overall: mean of 5 sets",
    citation="Zeng et al. (2023), arXiv 2310.07641; princeton-nlp/LLMBar at caa7bee",
    folder=("Natural/dataset.json", *(f"Adversarial/{name}/dataset.json" for name in ADVERSARIAL)),
)
