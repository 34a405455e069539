"""mtmc-rlhf (once Ernie-rlhf), the data set of the DMoERM paper: several ranked responses to a Chinese conversation.

    {"src": [user turns], "tgt": [earlier replies], "response": [str], "rank": [number], "label"?: category in Chinese, "id"?}

`src` has one turn more than `tgt`. Which end of `rank` is the better one is read both ways inside the official code; here the smaller
number is better unless `read_comparisons(…, rank_order="larger_is_better")` (in a recipe `data.rank_order`) turns all of them round.
`label` becomes the category; the taxonomy's Chinese names are matched with it later, and one that matches none is dropped.
"""

import dataclasses
from pathlib import Path

from dmoerm.data.jsonl import Row
from dmoerm.data.readers.fields import check_fields, message_texts, name_field, number_value, response_texts, sized_list
from dmoerm.data.readers.outcome import comparison_of
from dmoerm.data.readers.ratings import ranks_by_score
from dmoerm.errors import DataError
from dmoerm.records import Comparison, Message

__all__ = ["REQUIRED", "read_row"]

REQUIRED = ("src", "tgt", "response", "rank")
_OPTIONAL = ("label", "id", "category")


def read_row(row: Row, path: Path) -> Comparison:
    """One comparison, the smallest rank best.

    Raises:
        DataError: a field is missing, misspelt or of the wrong type; lists whose lengths do not go together.
    """
    data = row.data
    check_fields(data, REQUIRED, _OPTIONAL)
    asked, answered = (message_texts(data[name], f'"{name}"') for name in ("src", "tgt"))
    if len(asked) != len(answered) + 1:
        raise DataError(f'"src" has {len(asked)} turns and "tgt" {len(answered)}; expected one more in "src".')
    prompt = [Message("user", asked[0])]
    for answer, question in zip(answered, asked[1:], strict=True):
        prompt += [Message("assistant", answer), Message("user", question)]
    if not any(message.content.strip() for message in prompt):
        raise DataError('"src" is empty; expected what the user wrote.')
    responses = response_texts(data["response"], '"response"', least=2)
    ranks = [number_value(value, '"rank"') for value in sized_list(data["rank"], '"rank"', len(responses))]
    comparison = comparison_of(row, path, tuple(prompt), responses, ranks_by_score([-rank for rank in ranks]))
    return comparison if comparison.category is not None else dataclasses.replace(comparison, category=name_field(data, "label"))
