"""Rows into batches: sorted by length, filled up to a token budget. Used by training's one-off passes and by scoring alike."""

from collections.abc import Iterator, Sequence

__all__ = ["token_batches"]


def token_batches(lengths: Sequence[int], max_tokens: int, *, max_rows: int = 256) -> Iterator[list[int]]:
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
