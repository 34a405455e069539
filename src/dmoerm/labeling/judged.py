"""Pairs of responses as a judge saw them in both presentation orders, with every verdict: the kept ones, and those that cancel out.

The labels that a model learns from hold the consistent verdicts alone. What the labels are worth shows in the others as well.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from dmoerm.data.jsonl import Row, map_rows
from dmoerm.data.readers.judgements import ORDERS, read_row, read_verdicts
from dmoerm.records import Comparison, prompt_hash

__all__ = ["JudgedPair", "State", "Verdict", "Verdicts", "consistent", "read_judged", "response_hash", "state"]

Verdict = Literal[1, -1, 0]
"""1: the pair's first response is better, -1: its second one, 0: no difference; in whatever order the two were shown."""
Verdicts = tuple[Verdict | None, Verdict | None]
"""The verdict when the first response was shown first, and when the second one was; None where there is no answer."""
State = Literal["consistent", "tie", "inconsistent", "incomplete"]


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """Two responses of a comparison as one judge saw them, in both presentation orders.

    Attributes:
        id: of the comparison.
        prompt: `prompt_hash` of its prompt; pairs of one prompt are not independent.
        responses: `response_hash` of both texts. With the prompt the identity of the pair where several judges are compared, in
            whichever order each of them holds the two.
        category: the task category, or None where unknown.
        judge: model name, annotator or file stem.
        preference: what people (or a gold judge) prefer: 1 the first response, -1 the second, 0 tied, None unknown.
        lengths: of both responses, characters.
        verdicts: by capability, or `OVERALL`. A name that is there was asked, even where both answers are None.
    """

    id: str
    prompt: str
    responses: tuple[str, str]
    category: str | None
    judge: str
    preference: int | None
    lengths: tuple[int, int]
    verdicts: Mapping[str, Verdicts]


def state(verdicts: Verdicts) -> State:
    """What two verdicts make: a label ("consistent"), no difference in both orders ("tie"), two answers, or less than two."""
    first, second = verdicts
    if first is None or second is None:
        return "incomplete"
    if first != second:
        return "inconsistent"
    return "consistent" if first else "tie"


def consistent(verdicts: Verdicts) -> Verdict | None:
    """The label: the verdict that both orders give, where it names a response; else None."""
    return verdicts[0] if state(verdicts) == "consistent" else None


def response_hash(text: str) -> str:
    """Hex SHA-256 of a response."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_judged(path: str | os.PathLike[str], judge: str | None = None) -> list[JudgedPair]:
    """The pairs of a file of two-order judgements (data/readers/judgements.py describes it), the chosen response first.

    Args:
        path: `.jsonl` or `.jsonl.gz`.
        judge: who gave the verdicts; None takes the file's name without its suffixes.

    Raises:
        DataError: the file cannot be read, or rows of it are no such judgements; up to 20 are named.
    """
    path = Path(path)
    name = judge or path.name.removesuffix(".gz").removesuffix(".jsonl")
    return map_rows(path, lambda row: _judged(row, read_row(row, path), name)).items


def _judged(row: Row, comparison: Comparison, judge: str) -> JudgedPair:
    first, second = (read_verdicts(row).get(order, {}) for order in ORDERS)
    one, two = comparison.responses
    verdicts = {key: cast("Verdicts", (first.get(key), second.get(key))) for key in dict.fromkeys([*first, *second])}
    return JudgedPair(
        id=comparison.id,
        prompt=prompt_hash(comparison.prompt),
        responses=(response_hash(one), response_hash(two)),
        category=comparison.category,
        judge=judge,
        preference=1,
        lengths=(len(one), len(two)),
        verdicts=verdicts,
    )
