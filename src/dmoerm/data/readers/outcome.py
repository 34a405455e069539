"""What a row becomes: a comparison, or nothing where the row is right but says nothing about two responses to one prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dmoerm.data.jsonl import Row
from dmoerm.data.readers.fields import category_field, id_field, source_of
from dmoerm.records import CapabilityLabel, Comparison, Message

__all__ = ["LeftOut", "comparison_of"]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that is no comparison and no mistake either; it is counted by its reason."""

    reason: str


def comparison_of(
    row: Row,
    path: Path,
    prompt: tuple[Message, ...],
    responses: Sequence[str],
    ranks: Sequence[int],
    *,
    id: str | None = None,
    authors: Sequence[str | None] = (),
    labels: Sequence[CapabilityLabel] = (),
    margin: float | None = None,
    subset: str | None = None,
) -> Comparison:
    """A comparison with the `id` and `category` of its row, where it has them.

    Raises:
        DataError: `id` or `category` is of the wrong type.
    """
    return Comparison(
        id=id or id_field(row, path),
        prompt=prompt,
        responses=tuple(responses),
        ranks=tuple(ranks),
        category=category_field(row.data),
        labels=tuple(labels),
        authors=tuple(authors) or (None,) * len(responses),
        source=source_of(row, path),
        margin=margin,
        subset=subset,
    )
