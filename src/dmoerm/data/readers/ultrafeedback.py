"""UltraFeedback: several completions of one instruction, each rated by GPT-4 from 1 to 5 on four aspects.

    {"instruction", "completions": [{"model", "response", "annotations": {aspect: {"Rating": "4" | "N/A", …}}, …}], "id"?, "category"?}

Ranks are those of the mean rating over the aspects that are rated in every completion of the row. `overall_score` is not used: it came
from a critique, was 10 where 1 was meant in 2,628 rows until December 2023, and copies with that fault are still about
(github.com/argilla-io/notus/issues/7). Each aspect gives labels under its own name. "N/A" is a missing rating, never a zero.
"""

from pathlib import Path
from typing import Any

from dmoerm.data.jsonl import Row
from dmoerm.data.readers.fields import check_fields, list_value, messages_field, name_field, number_value, object_value, response_text
from dmoerm.data.readers.outcome import LeftOut, comparison_of
from dmoerm.data.readers.ratings import labels_by_rating, ranks_by_score
from dmoerm.errors import DataError
from dmoerm.records import Comparison

__all__ = ["REQUIRED", "read_row"]

REQUIRED = ("instruction", "completions")
_OPTIONAL = ("id", "category")
_ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")


def read_row(row: Row, path: Path) -> Comparison | LeftOut:
    """One comparison over all completions; left out are rows with fewer than two, or without an aspect that is rated in all of them.

    Raises:
        DataError: a field is missing, misspelt or of the wrong type; a rating is neither 1 to 5 nor "N/A".
    """
    check_fields(row.data, REQUIRED, _OPTIONAL)
    prompt = messages_field(row.data["instruction"], '"instruction"')
    completions = list_value(row.data["completions"], '"completions"')
    responses, authors, rated = [], [], []
    for number, item in enumerate(completions, 1):
        where = f'"completions", item {number}'
        data = object_value(item, where)
        check_fields(data, ("response", "annotations"), ("model",))
        responses.append(response_text(data["response"], f'"response" of {where}'))
        authors.append(name_field(data, "model"))
        rated.append(_ratings(data["annotations"], where))
    if len(responses) < 2:
        return LeftOut("fewer than two completions")
    ratings = {aspect: [of_one[aspect] for of_one in rated] for aspect in _ASPECTS}
    whole = [values for values in ratings.values() if None not in values]
    if not whole:
        return LeftOut("no aspect is rated in every completion")
    # As many aspects in every sum, so that sums rank as means do, and without rounding.
    ranks = ranks_by_score([sum(value for value in of_one if value is not None) for of_one in zip(*whole, strict=True)])
    return comparison_of(row, path, prompt, responses, ranks, authors=authors, labels=labels_by_rating(ratings))


def _ratings(value: Any, completion: str) -> dict[str, float | None]:
    annotations = object_value(value, f'"annotations" of {completion}')
    check_fields(annotations, (), _ASPECTS)
    return {aspect: _rating(annotations.get(aspect), f'"{aspect}" of {completion}') for aspect in _ASPECTS}


def _rating(annotation: Any, where: str) -> float | None:
    if annotation is None:
        return None
    data = object_value(annotation, where)
    check_fields(data, ("Rating",))
    value = data["Rating"]
    if value is None or value == "N/A":
        return None
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        raise DataError(f'"Rating" of {where} is {value!r}; expected a number from 1 to 5, or "N/A".') from None
    return number_value(number, f'"Rating" of {where}', 1, 5)
