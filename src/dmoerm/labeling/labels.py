"""From stored answers to labels: both presentation orders of a pair joined, written for training, and carried from and to files.

A verdict becomes a label only where both orders give it. One order alone is incomplete and counts as nothing; two that disagree stay in
the store and in the report, never in the labels.
"""

import gzip
import io
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from dmoerm.data.readers.judgements import ORDERS
from dmoerm.data.readers.native import to_native
from dmoerm.errors import LabelError
from dmoerm.labeling.judged import JudgedPair, Verdicts, consistent, response_hash
from dmoerm.labeling.questions import AskedPair, Question, verdict_of
from dmoerm.labeling.store import Answer
from dmoerm.records import OVERALL, CapabilityLabel, Comparison

__all__ = [
    "Written",
    "judged_pairs",
    "labelled_comparisons",
    "matching_replies",
    "pair_verdicts",
    "write_judgements",
    "write_labels",
    "write_rows",
]

Answers = Mapping[str, Mapping[str, Answer]]


@dataclass(frozen=True, slots=True)
class Written:
    """What a file of labels holds: rows, labels, and pairs that its format cannot say."""

    path: Path
    rows: int
    labels: int
    left_out: int = 0


def pair_verdicts(pair: AskedPair, settings: str, answers: Answers) -> dict[str, Verdicts]:
    """By point, the verdicts of both orders, None where there is no answer; every point that was planned is there."""
    return {name: _verdicts(both) for name, both in _both_orders(pair, settings, answers)}


def _both_orders(pair: AskedPair, settings: str, answers: Answers) -> Iterator[tuple[str, tuple[Answer | None, Answer | None]]]:
    """Every point of a pair with its answers: the pair's own order, then the swapped one."""
    for group in pair.groups:
        own, swapped = (answers.get(Question(pair, group, turned, settings).key, {}) for turned in (False, True))
        for criterion in group:
            yield criterion.name, (own.get(criterion.name), swapped.get(criterion.name))


def _verdicts(both: tuple[Answer | None, Answer | None]) -> Verdicts:
    values = (None if answer is None else verdict_of(answer.verdict, swapped=bool(order)) for order, answer in enumerate(both))
    return cast("Verdicts", tuple(values))


def judged_pairs(pairs: Iterable[AskedPair], settings: str, answers: Answers, judge: str) -> list[JudgedPair]:
    """The pairs with the verdicts of one judge, for the report; those of which nothing is answered yet are included."""
    judged = []
    for pair in pairs:
        comparison = pair.comparison
        first, second = comparison.responses[pair.first], comparison.responses[pair.second]
        ranks = comparison.ranks[pair.first], comparison.ranks[pair.second]
        judged.append(
            JudgedPair(
                id=comparison.id,
                prompt=pair.texts[0],
                responses=(response_hash(first), response_hash(second)),
                category=comparison.category,
                judge=judge,
                preference=(ranks[0] < ranks[1]) - (ranks[0] > ranks[1]),
                lengths=(len(first), len(second)),
                verdicts=pair_verdicts(pair, settings, answers),
            )
        )
    return judged


def labelled_comparisons(pairs: Iterable[AskedPair], settings: str, answers: Answers) -> Iterator[Comparison]:
    """Every comparison with at least one consistent verdict, carrying these labels and no others."""
    labels: defaultdict[int, list[CapabilityLabel]] = defaultdict(list)
    comparisons: dict[int, Comparison] = {}
    for pair in pairs:
        comparisons[id(pair.comparison)] = pair.comparison
        labels[id(pair.comparison)] += _labels(pair, settings, answers)
    for number, comparison in comparisons.items():
        if labels[number]:
            yield replace(comparison, labels=tuple(labels[number]))


def _labels(pair: AskedPair, settings: str, answers: Answers) -> Iterator[CapabilityLabel]:
    for name, both in _both_orders(pair, settings, answers):
        verdict = consistent(_verdicts(both))
        if verdict is not None:
            preferred, other = (pair.first, pair.second) if verdict == 1 else (pair.second, pair.first)
            first_is_better = _probability(both)
            sure = 1.0 if first_is_better is None else first_is_better if verdict == 1 else 1.0 - first_is_better
            # Averaged over both orders, a probability may fall on the other side of the verdicts: then it says "hardly any difference".
            yield CapabilityLabel(name, preferred, other, max(0.5, round(sure, 4)))


def _probability(both: tuple[Answer | None, Answer | None]) -> float | None:
    """The judge's probability that the pair's first response is better, mean over both orders; None where one of them has none."""
    own, swapped = (None if answer is None else answer.preference_A for answer in both)
    return None if own is None or swapped is None else (own + 1.0 - swapped) / 2


def write_labels(path: Path, comparisons: Iterable[Comparison]) -> Written:
    """Write comparisons with their labels in our own format, for `data.labels`; an existing file is replaced in one step."""
    rows = labels = 0

    def lines() -> Iterator[dict[str, Any]]:
        nonlocal rows, labels
        for comparison in comparisons:
            rows += 1
            labels += len(comparison.labels)
            yield to_native(comparison)

    write_rows(path, lines())
    return Written(path, rows, labels)


def write_judgements(path: Path, pairs: Sequence[AskedPair], settings: str, answers: Answers) -> Written:
    """Write every answer, consistent or not, as a file of two-order judgements (docs/data.md).

    That format names a chosen and a rejected response, so pairs without a human preference are left out, and counted.
    """
    rows = labels = left_out = 0

    def lines() -> Iterator[dict[str, Any]]:
        nonlocal rows, labels, left_out
        for number, pair in enumerate(pairs):
            ranks = pair.comparison.ranks
            verdicts = {name: both for name, both in pair_verdicts(pair, settings, answers).items() if both != (None, None)}
            if not verdicts:
                continue
            if ranks[pair.first] == ranks[pair.second]:
                left_out += 1
                continue
            rows += 1
            labels += sum(consistent(both) is not None for both in verdicts.values())
            yield _judgement_row(pair, verdicts, number)

    write_rows(path, lines())
    return Written(path, rows, labels, left_out)


def _judgement_row(pair: AskedPair, verdicts: Mapping[str, Verdicts], number: int) -> dict[str, Any]:
    comparison = pair.comparison
    turned = comparison.ranks[pair.first] > comparison.ranks[pair.second]
    chosen, rejected = (pair.second, pair.first) if turned else (pair.first, pair.second)
    authors = comparison.authors or (None,) * len(comparison.responses)
    several = len(comparison.responses) > 2
    row: dict[str, Any] = {
        "id": f"{comparison.id}#{pair.first}-{pair.second}" if several else comparison.id,
        "prompt": [{"role": message.role, "content": message.content} for message in comparison.prompt],
        "chosen": comparison.responses[chosen],
        "rejected": comparison.responses[rejected],
    }
    optional = {"category": comparison.category, "chosen_model": authors[chosen], "rejected_model": authors[rejected]}
    row |= {name: value for name, value in optional.items() if value is not None}
    judgements = []
    # Shown in the pair's own order, its first response came first: where the second is the chosen one, that is "rejected_first".
    for shown, order in enumerate(reversed(ORDERS) if turned else ORDERS):
        said = {name: both[shown] for name, both in verdicts.items() if both[shown] is not None}
        if said:
            signed = {name: -value if turned else value for name, value in said.items() if value is not None}
            judgements.append({"order": order, "overall": signed.pop(OVERALL, None), "capabilities": signed})
    return row | {"judgements": judgements}


def matching_replies(questions: Iterable[Question], judged: Sequence[JudgedPair]) -> Iterator[tuple[Question, bytes]]:
    """Questions that judgements of another origin answer in full, each with a reply as an endpoint would have given it."""
    by_texts: dict[tuple[str, frozenset[str]], JudgedPair] = {(pair.prompt, frozenset(pair.responses)): pair for pair in judged}
    for question in questions:
        responses = question.pair.comparison.responses
        first = response_hash(responses[question.pair.first])
        found = by_texts.get((question.pair.texts[0], frozenset((first, response_hash(responses[question.pair.second])))))
        if found is None:
            continue
        turned = found.responses[0] != first
        # Which of its two orders showed first what this question shows as A?
        order = int(question.swapped != turned)
        said = {name: found.verdicts.get(name, (None, None))[order] for name in question.names}
        if all(value is not None for value in said.values()):
            letters = {name: _letter(cast("int", value), turned=turned, swapped=question.swapped) for name, value in said.items()}
            yield question, _as_reply(letters)


def _letter(value: int, *, turned: bool, swapped: bool) -> str:
    first_is_better = -value if turned else value
    shown = -first_is_better if swapped else first_is_better
    return {1: "A", -1: "B", 0: "tie"}[shown]


def _as_reply(letters: Mapping[str, str]) -> bytes:
    message = {"role": "assistant", "content": json.dumps(letters)}
    return json.dumps({"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()


def write_rows(path: Path, rows: Iterable[dict[str, Any]], *, again: str = "dmoerm label export") -> None:
    """Write JSON lines, packed where the name ends in .gz; an existing file is replaced in one step.

    Args:
        path: the file.
        rows: its lines.
        again: the command that writes it.

    Raises:
        LabelError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    try:
        with unfinished.open("wb") as file:
            # A gzip file without name and time: the same labels give the same bytes.
            stream = gzip.GzipFile("", "wb", fileobj=file, mtime=0) if path.name.endswith(".gz") else file
            with io.TextIOWrapper(cast(Any, stream), encoding="utf-8", newline="\n") as text:
                for row in rows:
                    text.write(json.dumps(row, ensure_ascii=False) + "\n")
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise LabelError(f"{path}: cannot be written ({error}). The answers are in the store; {again} writes this file") from error
