"""Pairs that a judge looked at twice, once in each presentation order.

    {"prompt", "chosen", "rejected", "judgements": [{"order": "chosen_first" | "rejected_first", "overall": 1 | -1 | 0 | null,
     "capabilities": {name: 1 | -1 | 0 | null}}], and the optional fields of TRL rows}

1 says that the chosen response is better, -1 that the rejected one is, 0 that they do not differ, in whatever order they were shown.
A verdict becomes a label only where both orders give it: a judge that changes its mind with the order has said nothing.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmoerm.data.jsonl import Row
from dmoerm.data.readers import trl
from dmoerm.data.readers.fields import check_fields
from dmoerm.data.strict_json import json_type
from dmoerm.errors import DataError
from dmoerm.records import OVERALL, CapabilityLabel, Comparison

__all__ = ["OPTIONAL", "ORDERS", "REQUIRED", "read_row", "read_verdicts"]

REQUIRED = ("chosen", "rejected", "judgements")
OPTIONAL = trl.OPTIONAL
ORDERS = ("chosen_first", "rejected_first")


def read_row(row: Row, path: Path) -> Comparison:
    """One comparison with ranks (1, 2) and the consistent verdicts as labels; the overall one is named `OVERALL`.

    Raises:
        DataError: a field is missing, misspelt or of the wrong type; one order is judged twice.
    """
    check_fields(row.data, REQUIRED, OPTIONAL)
    comparison = trl.read_row(row, path)
    return dataclasses.replace(comparison, labels=tuple(_consistent(read_verdicts(row))))


def read_verdicts(row: Row) -> dict[str, dict[str, int | None]]:
    """Every verdict of a row by presentation order and by name, the overall one as `OVERALL`; None where it is null.

    Raises:
        DataError: a field is missing or of the wrong type; one order is judged twice.
    """
    judgements = row.data["judgements"]
    if not isinstance(judgements, list):
        raise DataError(f'"judgements" is {json_type(judgements)}; expected a list.')
    by_order: dict[str, dict[str, int | None]] = {}
    for number, judgement in enumerate(judgements, 1):
        where = f'"judgements", item {number}'
        order = _order(judgement, where)
        if order in by_order:
            raise DataError(f"{where} judges the order {order!r} a second time; expected each order once.")
        by_order[order] = dict(_verdicts(judgement, where))
    return by_order


def _consistent(by_order: dict[str, dict[str, int | None]]) -> Iterator[CapabilityLabel]:
    if len(by_order) < len(ORDERS):
        return
    first, second = (by_order[order] for order in ORDERS)
    for capability, verdict in first.items():
        if verdict and second.get(capability) == verdict:
            yield CapabilityLabel(capability, *((0, 1) if verdict == 1 else (1, 0)))


def _order(judgement: object, where: str) -> str:
    if not isinstance(judgement, dict):
        raise DataError(f"{where} is {json_type(judgement)}; expected an object.")
    check_fields(judgement, ("order",), ("overall", "capabilities"))
    order = judgement["order"]
    if order not in ORDERS:
        raise DataError(f"{where} has the order {order!r}; expected {' or '.join(map(repr, ORDERS))}.")
    return str(order)


def _verdicts(judgement: dict[str, Any], where: str) -> Iterator[tuple[str, int | None]]:
    capabilities = judgement.get("capabilities") or {}
    if not isinstance(capabilities, dict):
        raise DataError(f'"capabilities" of {where} is {json_type(capabilities)}; expected an object.')
    if OVERALL in capabilities:
        raise DataError(f'"capabilities" of {where} holds "{OVERALL}", which is the name of the verdict beside it.')
    overall = {OVERALL: judgement["overall"]} if "overall" in judgement else {}
    for name, verdict in {**overall, **capabilities}.items():
        if verdict is not None and (type(verdict) is not int or verdict not in (-1, 0, 1)):
            raise DataError(f'"{name}" of {where} is {verdict!r}; expected 1 (chosen is better), -1, 0 or null.')
        yield name, verdict
