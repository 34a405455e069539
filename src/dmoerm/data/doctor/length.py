"""Does the longer response win? In all, by how much longer it is, by category and by file."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from dmoerm.data.doctor.corpus import Corpus
from dmoerm.data.doctor.finding import Cell, Finding, NotChecked, Table
from dmoerm.data.doctor.share import Share, share_of
from dmoerm.data.doctor.wording import share_text

__all__ = ["MILD", "STRONG", "length_bias"]

STRONG, MILD = 0.15, 0.05
"""Distance from one half at which length is a strong model by itself, and at which it is worth a note."""
ENOUGH_PAIRS = 20
"""Pairs below which a share says too little."""
GAPS = ((1.0, 1.1, "up to 10% longer"), (1.1, 1.5, "10 to 50% longer"), (1.5, 2.5, "50 to 150% longer"), (2.5, np.inf, "more than that"))
"""Bins by the ratio of the longer response to the shorter one, in characters."""


def length_bias(corpus: Corpus) -> Iterator[Finding | NotChecked]:
    """The share of pairs that the longer response wins, in characters; equal lengths do not count."""
    chosen_P, rejected_P = _lengths(corpus)
    unequal_P = chosen_P != rejected_P
    longer_P = chosen_P > rejected_P
    prompt_P = corpus.pairs.prompt_P
    share = share_of(longer_P[unequal_P], prompt_P[unequal_P])
    if share is None or share.n < ENOUGH_PAIRS:
        yield NotChecked("length_bias", "Length bias", f"{share.n if share else 0} pairs of unequal length; {ENOUGH_PAIRS} are needed")
        return
    ratio_P = np.maximum(chosen_P, rejected_P) / np.maximum(1, np.minimum(chosen_P, rejected_P))
    groups = [(name, unequal_P & (ratio_P > low) & (ratio_P <= high)) for low, high, name in GAPS]
    groups += [(f"category {name}", unequal_P & keep_P) for name, keep_P in _categories(corpus)]
    by_file = list(_by_file(corpus, unequal_P, longer_P))
    rows = list(_rows(groups, longer_P, prompt_P))
    # One strongly biased file hides behind others that are not.
    worst = max((share, *(found for _, found in by_file if found.n >= ENOUGH_PAIRS)), key=lambda found: abs(found.value - 0.5))
    strong, mild = worst.away_from_half(STRONG), worst.away_from_half(MILD)
    which = "longer" if worst.value >= 0.5 else "shorter"
    told = f"; in {next(name for name, found in by_file if found is worst)} {share_text(worst)}" if worst is not share and mild else ""
    yield Finding(
        "length_bias",
        "Length bias" if mild else "No length bias",
        "warning" if strong else "note" if mild else "fine",
        f"the longer response wins {share_text(share)} of {share.n:,} pairs{told}",
        f"A model can get this far by preferring the {which}: read the length-balanced agreement, or balance the pairs." if mild else "",
        share=share,
        table=Table(("pairs", "longer wins", "n"), (*rows, *((name, found, found.n) for name, found in by_file))),
    )


def _lengths(corpus: Corpus) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    texts = [corpus.comparisons[number].responses for number in corpus.pairs.comparison_P.tolist()]
    chosen = [len(text[index]) for text, index in zip(texts, corpus.pairs.chosen_P.tolist(), strict=True)]
    rejected = [len(text[index]) for text, index in zip(texts, corpus.pairs.rejected_P.tolist(), strict=True)]
    return np.array(chosen, dtype=np.int64), np.array(rejected, dtype=np.int64)


def _categories(corpus: Corpus) -> Iterable[tuple[str, NDArray[np.bool_]]]:
    category_P = np.array([corpus.comparisons[number].category or "" for number in corpus.pairs.comparison_P.tolist()])
    names = sorted(set(category_P.tolist()) - {""})
    return [(name, category_P == name) for name in names] if len(names) > 1 else []


def _by_file(corpus: Corpus, unequal_P: NDArray[np.bool_], longer_P: NDArray[np.bool_]) -> Iterator[tuple[str, Share]]:
    """The share in each file, where there are several."""
    file_P = np.array(corpus.file_of, dtype=np.int64)[corpus.pairs.comparison_P]
    for number, file in enumerate(corpus.files if len(corpus.files) > 1 else []):
        keep_P = unequal_P & (file_P == number)
        share = share_of(longer_P[keep_P], corpus.pairs.prompt_P[keep_P])
        if share is not None:
            yield file.name, share


def _rows(
    groups: Iterable[tuple[str, NDArray[np.bool_]]], longer_P: NDArray[np.bool_], prompt_P: NDArray[np.int64]
) -> Iterator[tuple[Cell, ...]]:
    for name, keep_P in groups:
        share: Share | None = share_of(longer_P[keep_P], prompt_P[keep_P])
        if share is not None:
            yield name, share, share.n
