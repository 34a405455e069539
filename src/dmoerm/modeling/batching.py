"""Rows into batches, within a budget of tokens. Used by training's one-off passes and by scoring alike.

`token_batches` sorts rows by length and counts padding. `prompt_groups` finds rows that begin alike and decides whether computing that
beginning once pays; `group_batches` puts such groups together, without padding (modeling/prefix.py runs them).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["PromptGroup", "group_batches", "prompt_groups", "sharing_pays", "token_batches"]

MAX_ROWS = 256
"""Most rows in a batch."""


def token_batches(lengths: Sequence[int], max_tokens: int, *, max_rows: int = MAX_ROWS) -> Iterator[list[int]]:
    """Indices of rows, longest first, in batches whose padded size (rows times the longest) stays within `max_tokens`.

    Args:
        lengths: tokens of each row.
        max_tokens: budget of a batch, padding counted; a single row longer than this gets a batch of its own.
        max_rows: most rows in a batch.

    Yields:
        Lists of indices into `lengths`; every index occurs once.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        longest = max(1, lengths[order[start]])
        count = max(1, min(max_rows, max_tokens // longest))
        yield order[start : start + count]
        start += count


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """Rows, as indices, whose first `shared` tokens are the same; each has at least one token more."""

    rows: tuple[int, ...]
    shared: int


MINIMUM_SAVED_TOKENS = 128
MINIMUM_SAVED_SHARE = 1 / 8
"""A group runs a few kernels of its own in every layer. Below these, what it saves may be less than that."""


def sharing_pays(group: PromptGroup, lengths: Sequence[int]) -> bool:
    """The one place that decides: does computing the shared tokens of a group once save enough? It looks at no other row."""
    saved = group.shared * (len(group.rows) - 1)
    return saved >= MINIMUM_SAVED_TOKENS and saved >= MINIMUM_SAVED_SHARE * sum(lengths[row] for row in group.rows)


def prompt_groups(ids: Sequence[tuple[int, ...]], heads: Sequence[int]) -> tuple[list[PromptGroup], list[int]]:
    """Groups of rows for which sharing pays, and the rows that are left over.

    Rows belong together when their prompts are the same token for token, whichever request they came with. A group shares its longest
    common beginning, which may reach into the responses, and leaves each row at least its last token.

    Args:
        ids: tokens of each row.
        heads: tokens of each row that belong to the prompt and what stands around it (`Rendered.response_start`).
    """
    by_head: dict[tuple[int, ...], list[int]] = {}
    for row, (tokens, head) in enumerate(zip(ids, heads, strict=True)):
        by_head.setdefault(tokens[:head], []).append(row)
    lengths = [len(tokens) for tokens in ids]
    groups, alone = [], []
    for rows in by_head.values():
        group = PromptGroup(tuple(rows), _shared_tokens([ids[row] for row in rows]))
        if sharing_pays(group, lengths):
            groups.append(group)
        else:
            alone += rows
    return groups, sorted(alone)


def _shared_tokens(rows: Sequence[tuple[int, ...]]) -> int:
    first, last = min(rows), max(rows)  # what the first and last in order have in common, all have
    shared = next((place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return min(shared, min(map(len, rows)) - 1)


def group_batches(
    groups: Sequence[PromptGroup], lengths: Sequence[int], max_tokens: int, *, max_rows: int = MAX_ROWS
) -> Iterator[list[PromptGroup]]:
    """Groups in batches whose tokens (the shared ones once, then those of each row) stay within `max_tokens`.

    A group that is too large for one batch is divided, and each part computes the shared tokens anew; a single row longer than the budget
    gets a batch of its own.

    Args:
        groups: what `prompt_groups` found.
        lengths: tokens of each row.
        max_tokens: budget of a batch.
        max_rows: most rows in a batch.

    Yields:
        Lists of groups; every row occurs once.
    """
    batch: list[PromptGroup] = []
    tokens = count = 0
    for group in groups:
        for part in _parts(group, lengths, max_tokens, max_rows):
            size = part.shared + sum(lengths[row] - part.shared for row in part.rows)
            if batch and (tokens + size > max_tokens or count + len(part.rows) > max_rows):
                yield batch
                batch, tokens, count = [], 0, 0
            batch.append(part)
            tokens, count = tokens + size, count + len(part.rows)
    if batch:
        yield batch


def _parts(group: PromptGroup, lengths: Sequence[int], max_tokens: int, max_rows: int) -> Iterator[PromptGroup]:
    part: list[int] = []
    tokens = group.shared
    for row in group.rows:
        own = lengths[row] - group.shared
        if part and (tokens + own > max_tokens or len(part) == max_rows):
            yield PromptGroup(tuple(part), group.shared)
            part, tokens = [], group.shared
        part.append(row)
        tokens += own
    yield PromptGroup(tuple(part), group.shared)
