"""Our own format: any number of responses with ranks, and labels of capabilities.

    {"id"?, "prompt": str | [{"role", "content"}], "responses": [str | {"text", "author"?}], "ranks": [int], "category"?,
     "capability_ranks"?: {name: [int | null]}, "labels"?: [{"capability", "preferred", "other"}]}

Rank 1 is best and ties are allowed. `capability_ranks` ranks the responses on one capability: every two responses with different ranks
give a label, null ranks give none. `labels` says the same of single pairs by index from 0, for judgements that are no full ranking;
`to_native` writes this form, which loses nothing.
"""

import itertools
from pathlib import Path
from typing import Any

from dmoerm.data.jsonl import Row
from dmoerm.data.readers.fields import (
    category_field,
    check_fields,
    id_field,
    messages_field,
    name_field,
    response_text,
    source_of,
    text_field,
)
from dmoerm.data.strict_json import json_type
from dmoerm.errors import DataError
from dmoerm.records import CapabilityLabel, Comparison

__all__ = ["OPTIONAL", "REQUIRED", "read_row", "to_native"]

REQUIRED = ("prompt", "responses", "ranks")
OPTIONAL = ("id", "category", "capability_ranks", "labels")


def read_row(row: Row, path: Path) -> Comparison:
    """One comparison of a native row.

    Raises:
        DataError: a field is missing, misspelt or of the wrong type; lists of different lengths.
    """
    data = row.data
    check_fields(data, REQUIRED, OPTIONAL)
    prompt = messages_field(data["prompt"], '"prompt"')
    items = _list(data["responses"], '"responses"')
    if len(items) < 2:
        raise DataError(f'"responses" has {len(items)}; expected two or more to compare.')
    responses, authors = zip(*(_response(item, f'"responses", item {number}') for number, item in enumerate(items, 1)), strict=True)
    ranks = tuple(_rank(value, '"ranks"') for value in _sized(data["ranks"], '"ranks"', len(items)))
    return Comparison(
        id=id_field(row, path),
        prompt=prompt,
        responses=responses,
        ranks=ranks,
        category=category_field(data),
        labels=(*_ranked_labels(data.get("capability_ranks"), len(items)), *_single_labels(data.get("labels"), len(items))),
        authors=authors,
        source=source_of(row, path),
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
        row["labels"] = [
            {"capability": label.capability, "preferred": label.preferred, "other": label.other} for label in comparison.labels
        ]
    return row


def _response(value: object, where: str) -> tuple[str, str | None]:
    if isinstance(value, str):
        return response_text(value, where), None
    if isinstance(value, dict):
        check_fields(value, ("text",), ("author",))
        return response_text(value["text"], f'"text" of {where}'), name_field(value, "author")
    raise DataError(f'{where} is {json_type(value)}; expected a string or an object with "text".')


def _ranked_labels(value: object, size: int) -> list[CapabilityLabel]:
    labels = []
    for capability, ranks in _mapping(value, '"capability_ranks"').items():
        where = f'"capability_ranks", "{capability}"'
        ranked = [None if rank is None else _rank(rank, where) for rank in _sized(ranks, where, size)]
        for first, second in itertools.combinations(range(size), 2):
            a, b = ranked[first], ranked[second]
            if a is not None and b is not None and a != b:
                labels.append(CapabilityLabel(capability, *((first, second) if a < b else (second, first))))
    return labels


def _single_labels(value: object, size: int) -> list[CapabilityLabel]:
    labels = []
    for number, item in enumerate(_list([] if value is None else value, '"labels"'), 1):
        where = f'"labels", item {number}'
        data = _mapping(item, where)
        check_fields(data, ("capability", "preferred", "other"))
        preferred, other = (_index(data[name], f'"{name}" of {where}', size) for name in ("preferred", "other"))
        if preferred == other:
            raise DataError(f"{where} prefers response {preferred} to itself.")
        labels.append(CapabilityLabel(text_field(data, "capability"), preferred, other))
    return labels


def _rank(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DataError(f"{where} holds {value!r}; expected whole numbers from 1 (best) on.")
    return value


def _index(value: object, where: str, size: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < size:
        raise DataError(f"{where} is {value!r}; expected the number of a response, 0 to {size - 1}.")
    return value


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{where} is {json_type(value)}; expected a list.")
    return value


def _sized(value: object, where: str, size: int) -> list[Any]:
    items = _list(value, where)
    if len(items) != size:
        raise DataError(f"{where} has {len(items)} items for {size} responses; expected one a response.")
    return items


def _mapping(value: object, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DataError(f"{where} is {json_type(value)}; expected an object.")
    return value
