"""Our own format: any number of responses with ranks, and labels of capabilities.

    {"id"?, "prompt": str | [{"role", "content"}], "responses": [str | {"text", "author"?}], "ranks": [int], "category"?,
     "capability_ranks"?: {name: [int | null]}, "labels"?: [{"capability", "preferred", "other", "probability"?}], "margin"?: number,
     "subset"?: str}

Rank 1 is best and ties are allowed. `capability_ranks` ranks the responses on one capability: every two responses with different ranks
give a label, null ranks give none. `labels` says the same of single pairs by index from 0, for judgements that are no full ranking;
`to_native` writes this form, which loses nothing. `margin` is for pairs only.
"""

from pathlib import Path
from typing import Any

from dmoerm.data.jsonl import Row
from dmoerm.data.readers.fields import (
    category_field,
    check_fields,
    id_field,
    list_value,
    margin_field,
    messages_field,
    name_field,
    object_value,
    response_text,
    sized_list,
    source_of,
    text_field,
)
from dmoerm.data.readers.ratings import labels_by_rating
from dmoerm.data.strict_json import json_type
from dmoerm.errors import DataError
from dmoerm.records import CapabilityLabel, Comparison

__all__ = ["OPTIONAL", "REQUIRED", "read_row", "to_native"]

REQUIRED = ("prompt", "responses", "ranks")
OPTIONAL = ("id", "category", "capability_ranks", "labels", "margin", "subset")


def read_row(row: Row, path: Path) -> Comparison:
    """One comparison of a native row.

    Raises:
        DataError: a field is missing, misspelt or of the wrong type; lists of different lengths.
    """
    data = row.data
    check_fields(data, REQUIRED, OPTIONAL)
    prompt = messages_field(data["prompt"], '"prompt"')
    items = list_value(data["responses"], '"responses"')
    if len(items) < 2:
        raise DataError(f'"responses" has {len(items)}; expected two or more to compare.')
    responses, authors = zip(*(_response(item, f'"responses", item {number}') for number, item in enumerate(items, 1)), strict=True)
    ranks = tuple(_rank(value, '"ranks"') for value in sized_list(data["ranks"], '"ranks"', len(items)))
    margin = margin_field(data)
    if margin is not None and len(items) > 2:
        raise DataError(f'"margin" stands beside {len(items)} responses; expected it with two only. Remove it, or write pairs.')
    return Comparison(
        id=id_field(row, path),
        prompt=prompt,
        responses=responses,
        ranks=ranks,
        category=category_field(data),
        labels=(*_ranked_labels(data.get("capability_ranks"), len(items)), *_single_labels(data.get("labels"), len(items))),
        authors=authors,
        source=source_of(row, path),
        margin=margin,
        subset=name_field(data, "subset"),
    )


def to_native(comparison: Comparison) -> dict[str, Any]:
    """A comparison as a native row; reading it back gives the same comparison but for `source`."""
    authors = comparison.authors or (None,) * len(comparison.responses)
    row: dict[str, Any] = {
        "id": comparison.id,
        "prompt": [{"role": message.role, "content": message.content} for message in comparison.prompt],
        "responses": [
            text if author is None else {"text": text, "author": author} for text, author in zip(comparison.responses, authors, strict=True)
        ],
        "ranks": list(comparison.ranks),
    }
    if comparison.category is not None:
        row["category"] = comparison.category
    if comparison.labels:
        row["labels"] = [_label_row(label) for label in comparison.labels]
    row |= {name: value for name, value in (("margin", comparison.margin), ("subset", comparison.subset)) if value is not None}
    return row


def _label_row(label: CapabilityLabel) -> dict[str, Any]:
    row = {"capability": label.capability, "preferred": label.preferred, "other": label.other}
    return row if label.probability == 1.0 else row | {"probability": label.probability}


def _response(value: object, where: str) -> tuple[str, str | None]:
    if isinstance(value, str):
        return response_text(value, where), None
    if isinstance(value, dict):
        check_fields(value, ("text",), ("author",))
        return response_text(value["text"], f'"text" of {where}'), name_field(value, "author")
    raise DataError(f'{where} is {json_type(value)}; expected a string or an object with "text".')


def _ranked_labels(value: object, size: int) -> list[CapabilityLabel]:
    ratings: dict[str, list[int | None]] = {}
    for capability, ranks in object_value({} if value is None else value, '"capability_ranks"').items():
        where = f'"capability_ranks", "{capability}"'
        # The best rank is the smallest number, the best rating the largest.
        ratings[capability] = [None if rank is None else -_rank(rank, where) for rank in sized_list(ranks, where, size)]
    return labels_by_rating(ratings)


def _single_labels(value: object, size: int) -> list[CapabilityLabel]:
    labels = []
    for number, item in enumerate(list_value([] if value is None else value, '"labels"'), 1):
        where = f'"labels", item {number}'
        data = object_value(item, where)
        check_fields(data, ("capability", "preferred", "other"), ("probability",))
        preferred, other = (_index(data[name], f'"{name}" of {where}', size) for name in ("preferred", "other"))
        if preferred == other:
            raise DataError(f"{where} prefers response {preferred} to itself.")
        probability = _probability(data.get("probability", 1.0), f'"probability" of {where}')
        labels.append(CapabilityLabel(text_field(data, "capability"), preferred, other, probability))
    return labels


def _rank(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DataError(f"{where} holds {value!r}; expected whole numbers from 1 (best) on.")
    return value


def _probability(value: object, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0.5 <= value <= 1.0:
        raise DataError(f"{where} is {value!r}; expected 0.5 to 1, how sure the judge is that the preferred response is the better one.")
    return float(value)


def _index(value: object, where: str, size: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < size:
        raise DataError(f"{where} is {value!r}; expected the number of a response, 0 to {size - 1}.")
    return value
