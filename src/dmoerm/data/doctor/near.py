"""Texts that are nearly the same: MinHash over character shingles, banded, and doubtful candidates compared exactly.

Two texts are near duplicates when at least `SIMILAR` of their distinct 8-byte shingles (of the lower-case text with single spaces) are
common to both: another punctuation mark, a typo, another case. Shingles of bytes need no words, so any language will do. Work grows with
the length of the texts, not with the number of pairs; nothing is random.

Of a long text, head and tail are compared. Texts below `minimum_bytes` are near duplicates only when they are equal but for case and
spaces: one word more or less is another text there.

Sources: Broder (1997) for MinHash; Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, chapter 3, for banding and shingle length.

N texts, H hashes, W shingles.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["SIMILAR", "near_duplicate_groups", "normalised", "similarity"]

SIMILAR = 0.8
"""Jaccard similarity from which two texts are near duplicates."""

_BANDS, _ROWS = 12, 5  # finds 99 % of the twins at 0.8, and looks in vain at 3 % of the pairs at 0.3
_SHINGLE = 8
_HALF = 2000
_CHUNK_BYTES = 1 << 17  # the arrays of a chunk then fit the cache
_REPRESENTATIVES = 8
_HOPELESS, _CERTAIN = 0.6, 0.95
"""Between these shares of equal hashes a pair is compared exactly: of 60, twins at 0.8 have fewer, and others more, once in thousands."""

Words = NDArray[np.uint64]


def normalised(text: str) -> bytes:
    """What is compared of a text: lower case, single spaces, head and tail."""
    blob = " ".join(text.lower().split()).encode()
    return blob if len(blob) <= 2 * _HALF else blob[:_HALF] + blob[-_HALF:]


def similarity(first: bytes, second: bytes) -> float:
    """Jaccard similarity of the shingles of two normalised texts, 0 to 1."""
    if first == second:
        return 1.0
    a, b = _shingles(first), _shingles(second)
    both = np.sort(np.concatenate([a, b]))
    common = int(np.count_nonzero(both[1:] == both[:-1]))
    return common / max(1, len(a) + len(b) - common)


def near_duplicate_groups(texts: Sequence[str], minimum_bytes: int = 40, sample_every: int = 1) -> list[list[int]]:
    """Groups of near duplicates.

    Args:
        texts: any texts.
        minimum_bytes: shorter ones must be equal but for case and spaces.
        sample_every: candidates are looked for by one in so many shingles, chosen by hash: quicker, and as good for texts of a few
            hundred characters. The comparison itself always sees all.

    Returns:
        Indices, each in at most one group; groups of two or more in order of their first members. A group is a chain: its ends may be
        less alike than neighbours are.
    """
    same: defaultdict[bytes, list[int]] = defaultdict(list)
    for number, text in enumerate(texts):
        same[normalised(text)].append(number)
    blobs = [blob for blob in same if len(blob) >= minimum_bytes]
    members = list(same.values())
    position = {blob: number for number, blob in enumerate(same)}
    joined = _Groups(len(members))
    for first, second in _twins(blobs, sample_every):
        joined.join(position[blobs[first]], position[blobs[second]])
    groups = (sorted(index for part in parts for index in members[part]) for parts in joined.groups())
    return sorted(group for group in groups if len(group) > 1)


class _Groups:
    """Union-find; the smallest member stands for a group."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def root(self, item: int) -> int:
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def join(self, first: int, second: int) -> None:
        low, high = sorted((self.root(first), self.root(second)))
        self._parent[high] = low

    def groups(self) -> Iterable[list[int]]:
        found: defaultdict[int, list[int]] = defaultdict(list)
        for item in range(len(self._parent)):
            found[self.root(item)].append(item)
        return found.values()


def _twins(blobs: Sequence[bytes], sample_every: int) -> Iterator[tuple[int, int]]:
    """Enough pairs of near duplicates to join every group."""
    if len(blobs) < 2:
        return
    signature_NH = _signatures(blobs, sample_every)
    groups = _Groups(len(blobs))
    tried: set[tuple[int, int]] = set()
    for band in range(_BANDS):
        for bucket in _buckets(signature_NH[:, band * _ROWS : (band + 1) * _ROWS]):
            # Each is compared with a few that stand for the bucket, so that a bucket of thousands takes thousands of looks and no more.
            seen: list[int] = []
            for item in bucket:
                for other in seen:
                    if groups.root(item) == groups.root(other):
                        break
                    if (other, item) in tried:
                        continue
                    tried.add((other, item))
                    if _alike(blobs, signature_NH, other, item):
                        groups.join(other, item)
                        yield other, item
                        break
                else:
                    if len(seen) < _REPRESENTATIVES:
                        seen.append(item)


def _alike(blobs: Sequence[bytes], signature_NH: Words, first: int, second: int) -> bool:
    agree = float((signature_NH[first] == signature_NH[second]).mean())
    if not _HOPELESS <= agree < _CERTAIN:
        return agree >= _CERTAIN
    return similarity(blobs[first], blobs[second]) >= SIMILAR


def _buckets(rows_NH: Words) -> Iterator[list[int]]:
    """Numbers of the texts that agree in all columns, ascending; only where there are two or more."""
    key_N = rows_NH[:, 0].copy()
    for column in range(1, rows_NH.shape[1]):
        key_N = _mixed(key_N ^ rows_NH[:, column])
    order_N = np.argsort(key_N, kind="stable")
    begins = np.flatnonzero(np.concatenate([[True], np.diff(key_N[order_N]) != 0, [True]]))
    for number in np.flatnonzero(np.diff(begins) > 1).tolist():
        bucket = order_N[begins[number] : begins[number + 1]]
        if rows_NH[bucket[0], 0] != np.iinfo(np.uint64).max:  # the largest number: no shingle of the text was sampled
            yield bucket.tolist()


def _signatures(blobs: Sequence[bytes], sample_every: int) -> Words:
    factors = _mixed(np.arange(1, _BANDS * _ROWS + 1, dtype=np.uint64)) | np.uint64(1)
    signature_NH = np.full((len(blobs), len(factors)), np.iinfo(np.uint64).max, dtype=np.uint64)
    for start, end in _chunks(blobs):
        hash_W, text_W = _sampled_shingles(blobs[start:end], sample_every)
        if not len(hash_W):
            continue
        begins = np.flatnonzero(np.diff(text_W, prepend=-1))
        rows = start + text_W[begins]
        for column, factor in enumerate(factors):
            signature_NH[rows, column] = np.minimum.reduceat(hash_W * factor, begins)
    return signature_NH


def _chunks(blobs: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    start, size = 0, 0
    for number, blob in enumerate(blobs):
        size += len(blob)
        if size >= _CHUNK_BYTES:
            yield start, number + 1
            start, size = number + 1, 0
    if start < len(blobs):
        yield start, len(blobs)


def _sampled_shingles(blobs: Sequence[bytes], sample_every: int) -> tuple[Words, NDArray[np.int64]]:
    """Hashes of shingles and the number of the text of each, texts in order."""
    size_N = np.array([len(blob) for blob in blobs], dtype=np.int64)
    text_W = np.repeat(np.arange(len(blobs)), size_N)
    left_W = np.repeat(np.cumsum(size_N), size_N) - np.arange(len(text_W))  # bytes to the end of the text
    hash_W = _mixed(_windows(b"".join(blobs) + bytes(_SHINGLE - 1)))
    keep_W = left_W >= _SHINGLE
    if sample_every > 1:
        keep_W &= hash_W % np.uint64(sample_every) == 0
    return hash_W[keep_W], text_W[keep_W]


def _windows(buffer: bytes) -> Words:
    """Every run of eight bytes as a number, the same on every machine."""
    return np.ndarray((len(buffer) - _SHINGLE + 1,), dtype="<u8", buffer=buffer, strides=(1,)).astype(np.uint64)


def _shingles(blob: bytes) -> Words:
    """Distinct shingles, ascending."""
    ordered = np.sort(_windows(blob.ljust(_SHINGLE, b"\0")))
    distinct: Words = ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])]
    return distinct


def _mixed(number_W: Words) -> Words:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014), with its increment first, as 0 would stay 0: every bit moves every other."""
    mixed = number_W + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
