"""Judged pairs as columns: one entry a question, which is one pair on one capability (or overall) before one judge.

Q questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmoerm.labeling.draws import IntArray
from dmoerm.labeling.judged import JudgedPair, consistent
from dmoerm.records import OVERALL

__all__ = ["MISSING", "Questions", "questions_of"]

MISSING = 9
"""Stands for an answer that is not there."""


@dataclass(frozen=True, slots=True)
class Questions:
    """Columns of one length.

    Attributes:
        category_Q: names, "" where unknown.
        capability_Q: names, `OVERALL` among them.
        judge_Q: names.
        pair_Q: number of the judged pair.
        prompt_Q: number of the prompt.
        item_Q: number of the prompt with its two responses, whoever judges them in whichever order.
        sign_Q: 1 where the pair holds the two responses in the item's order, else -1.
        first_Q: the verdict with the first response shown first, or `MISSING`.
        second_Q: the verdict with the second response shown first, or `MISSING`.
        people_Q: people's preference; 0 where they tie or it is unknown.
        longer_Q: 1 where the first response is the longer one, -1 the second, 0 neither.
        overall_Q: the judge's own label for the whole response; 0 where there is none.
    """

    category_Q: NDArray[np.str_]
    capability_Q: NDArray[np.str_]
    judge_Q: NDArray[np.str_]
    pair_Q: IntArray
    prompt_Q: IntArray
    item_Q: IntArray
    sign_Q: IntArray
    first_Q: IntArray
    second_Q: IntArray
    people_Q: IntArray
    longer_Q: IntArray
    overall_Q: IntArray

    def __len__(self) -> int:
        return len(self.pair_Q)

    def where(self, keep_Q: NDArray[Any]) -> "Questions":
        """The chosen ones: a mask, or their numbers in the order wanted."""
        return Questions(*(getattr(self, field.name)[keep_Q] for field in fields(self)))

    @property
    def complete_Q(self) -> NDArray[np.bool_]:
        """Answered in both orders."""
        complete: NDArray[np.bool_] = (self.first_Q != MISSING) & (self.second_Q != MISSING)
        return complete

    @property
    def same_Q(self) -> NDArray[np.bool_]:
        """The same verdict in both orders, no difference included."""
        same: NDArray[np.bool_] = self.complete_Q & (self.first_Q == self.second_Q)
        return same

    @property
    def label_Q(self) -> IntArray:
        """1 or -1 where a label is kept, else 0."""
        return np.where(self.same_Q, self.first_Q, 0)

    @property
    def about_overall_Q(self) -> NDArray[np.bool_]:
        """Asks for the whole response, not for a capability."""
        return np.asarray(self.capability_Q == OVERALL)


def questions_of(pairs: Sequence[JudgedPair]) -> Questions:
    """Every question of the pairs, in their order."""
    prompts: dict[str, int] = {}
    items: dict[tuple[str, ...], int] = {}
    names: list[tuple[str, str, str]] = []
    numbers: list[tuple[int, ...]] = []
    for pair_number, pair in enumerate(pairs):
        prompt = prompts.setdefault(pair.prompt, len(prompts))
        item = items.setdefault((pair.prompt, *sorted(pair.responses)), len(items))
        sign = 1 if pair.responses[0] <= pair.responses[1] else -1
        longer = (pair.lengths[0] > pair.lengths[1]) - (pair.lengths[0] < pair.lengths[1])
        overall = consistent(pair.verdicts.get(OVERALL, (None, None))) or 0
        for capability, (first, second) in pair.verdicts.items():
            names.append((pair.category or "", capability, pair.judge))
            answers = (MISSING if first is None else first, MISSING if second is None else second)
            numbers.append((pair_number, prompt, item, sign, *answers, pair.preference or 0, longer, overall))
    named = np.array(names, dtype=np.str_).reshape(-1, 3)
    columns = np.array(numbers, dtype=np.int64).reshape(-1, 9)
    return Questions(*named.T, *columns.T)
