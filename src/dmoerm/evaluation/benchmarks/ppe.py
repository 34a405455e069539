"""Preference Proxy Evaluations (PPE): votes of people (16,038 rows), and right against wrong answers to five public benchmarks.

Human preference: agreement with the votes that name a winner. Ties ("tie", "tie (bothbad)") are left out and counted. The flags of a row
(hard_prompt, is_code …) are overlapping subsets.

Correctness: K answers of one model to a question and whether each is right. The pairs compared are upstream's `sampled_conflict_pairs`
(indices from 0, one right and one wrong); without that field, every right answer against every wrong one. A set's figure is the share of
all its pairs, `overall` the unweighted mean of the sets. Answers in no pair are not scored. A question with only right or only wrong
answers compares nothing; it is left out and counted.

A reward tie earns one half, as elsewhere in this package: upstream's own treatment of ties we have not seen. Its other figures (best-of-K
curves, separability, rank correlations with model strength, ROC) are not computed, since their code was not at hand either.

Source: Frick et al. (2024), arXiv 2410.14872. Fields by the public cards of the data sets; the reading of conflict pairs (index from 0,
right where scores differ) by a public copy of upstream's benchmarks/base.py.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmoerm.data.jsonl import Row
from dmoerm.data.readers.fields import check_fields, list_value, messages_field, name_field, sized_list, source_of, text_field
from dmoerm.data.readers.outcome import LeftOut
from dmoerm.errors import DataError
from dmoerm.evaluation.benchmarks.definition import Benchmark, Item, mean_credit
from dmoerm.evaluation.benchmarks.figures import Credit, Figure, mean_of
from dmoerm.evaluation.scorers import Rewards

__all__ = ["PPE_CORRECTNESS", "PPE_HUMAN"]

_HUMAN = ("prompt", "response_1", "response_2", "winner")
_WINNERS = {"model_a": (True, False), "model_b": (False, True)}
_FLAGS = ("hard_prompt", "easy_prompt", "if_prompt", "math_prompt", "is_code", "is_refusal")
_ALL = "all votes"
_SETS = ("MMLU-Pro", "MATH", "GPQA", "IFEval", "MBPP-Plus")
_SET_NAME = re.compile(r"PPE-(?P<set>[\w-]+?)-Best-of-K", re.IGNORECASE)


def read_vote(row: Row, path: Path) -> Item | LeftOut:
    """One vote; the flags that are true become groups.

    Raises:
        DataError: a field is missing or of the wrong type, or another winner.
    """
    data = row.data
    check_fields(data, _HUMAN, ("question_id", *_FLAGS))
    winner = data["winner"]
    if isinstance(winner, str) and winner.startswith("tie"):
        return LeftOut("people called it a tie")
    if winner not in _WINNERS:
        raise DataError(f'"winner" is {winner!r}; expected "model_a", "model_b" or a tie.')
    flags = tuple(name for name in _FLAGS if data.get(name) is True)
    responses = (text_field(data, "response_1"), text_field(data, "response_2"))
    prompt = messages_field(data["prompt"], '"prompt"')
    return Item(_id(row, path), prompt, responses, _WINNERS[winner], (_ALL, *flags), source_of(row, path))


def read_answers(row: Row, path: Path) -> Item | LeftOut:
    """One question and the answers that are in a pair.

    Raises:
        DataError: a field is missing or of the wrong type, the numbers of answers and scores differ, or a pair is none.
    """
    data = row.data
    check_fields(data, ("prompt", "scores", "response_1"), ("question_id", "sampled_conflict_pairs"))
    numbers = itertools.takewhile(lambda number: f"response_{number}" in data, itertools.count(1))
    answers = [text_field(data, f"response_{number}") for number in numbers]
    right = [_score(value, number) for number, value in enumerate(sized_list(data["scores"], '"scores"', len(answers)), 1)]
    pairs = _conflict_pairs(data, right)
    if not pairs:
        return LeftOut("no right answer beside a wrong one")
    used = sorted(set(itertools.chain.from_iterable(pairs)))
    place = {old: new for new, old in enumerate(used)}
    return Item(
        id=_id(row, path),
        prompt=messages_field(data["prompt"], '"prompt"'),
        responses=tuple(answers[index] for index in used),
        right=tuple(right[index] for index in used),
        groups=(_set_name(path, data),),
        source=source_of(row, path),
        pairs=tuple((place[first], place[second]) for first, second in pairs),
    )


def credits(items: Sequence[Item], rewards: Sequence[Rewards]) -> list[Credit]:
    """The share of its pairs, a tie one half; a cell a set or flag."""
    return mean_credit(items, rewards, tie=0.5)


def vote_figures(items: Sequence[Item]) -> list[Figure]:
    """All votes, then the flags."""
    return [Figure("overall", ((1.0, _ALL),)), *(Figure(name, ((1.0, name),), level=2) for name in _FLAGS)]


def answer_figures(items: Sequence[Item]) -> list[Figure]:
    """Mean of the sets, and each set."""
    names = [*_SETS, *sorted({item.groups[0] for item in items} - set(_SETS))]
    return [mean_of("overall", names), *(Figure(name, ((1.0, name),), level=1) for name in names)]


def _id(row: Row, path: Path) -> str:
    return name_field(row.data, "question_id") or f"{path.name}:{row.line}"


def _score(value: object, number: int) -> bool:
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise DataError(f'"scores", item {number} is {value!r}; expected true or false.')
    return bool(value)


def _conflict_pairs(data: Mapping[str, Any], right: Sequence[bool]) -> list[tuple[int, int]]:
    named = data.get("sampled_conflict_pairs")
    if named is None:
        good, bad = ([index for index, value in enumerate(right) if value is wanted] for wanted in (True, False))
        return list(itertools.product(good, bad))
    pairs = []
    for number, pair in enumerate(list_value(named, '"sampled_conflict_pairs"'), 1):
        known = isinstance(pair, list) and len(pair) == 2 and all(type(index) is int and 0 <= index < len(right) for index in pair)
        if not known or right[pair[0]] == right[pair[1]]:
            raise DataError(
                f'"sampled_conflict_pairs", item {number} is {pair!r}; expected two indices from 0 to {len(right) - 1}, '
                "of a right answer and a wrong one."
            )
        pairs.append((pair[0], pair[1]) if right[pair[0]] else (pair[1], pair[0]))
    return pairs


def _set_name(path: Path, data: Mapping[str, Any]) -> str:
    """Rows do not name their set: the data set does, or a field `subset`."""
    named = name_field(data, "subset")
    found = _SET_NAME.search(path.as_posix())
    name = named or (found["set"] if found else path.name.split(".")[0])
    return next((known for known in _SETS if known.lower() == name.lower()), name)


_CITATION = "Frick et al. (2024), arXiv 2410.14872"

PPE_HUMAN = Benchmark(
    title="PPE human preference",
    sources=("hub:lmarena-ai/PPE-Human-Preference-V1::test",),
    get="Name a copy of the split test: rows with prompt, response_1, response_2 and winner (model_a, model_b, tie)",
    read_row=read_vote,
    credits=credits,
    figures=vote_figures,
    groups=(),
    rule="agreement with votes that name a winner, a reward tie is one half; other figures of PPE are not computed",
    citation=_CITATION,
)

PPE_CORRECTNESS = Benchmark(
    title="PPE correctness",
    sources=tuple(f"hub:lmarena-ai/PPE-{name}-Best-of-K::train" for name in _SETS),
    get="Name copies of the five sets, each with its own --benchmark ppe-correctness=…: rows with prompt, scores and response_1 …",
    read_row=read_answers,
    credits=credits,
    figures=answer_figures,
    groups=_SETS,
    rule="right over wrong answer in the sampled conflict pairs, a reward tie is one half; overall: mean of the sets; no best-of-K curves",
    citation=_CITATION,
)
