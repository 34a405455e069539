"""Do the answering models give the winner away? What their record alone predicts, and those that always win or never do."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from dmoerm.data.doctor.corpus import Corpus
from dmoerm.data.doctor.finding import Cell, Finding, NotChecked, Table
from dmoerm.data.doctor.held_out import ENOUGH_PAIRS, cross_validated_agreement
from dmoerm.data.doctor.wording import counted, part, percent, share_text

__all__ = ["authors"]

ENOUGH_OF_ONE = 10
"""Pairs of an author below which winning them all may be luck."""
STRONG, MILD = 0.65, 0.55
"""Agreement of the record alone from which it is a warning, and from which it is worth a note."""
_SHOWN = 8


def authors(corpus: Corpus) -> Iterator[Finding | NotChecked]:
    """A strength for each author, fitted on four fifths of the prompts, picks the winner in the last fifth."""
    known = [_both(corpus, number, chosen, rejected) for number, chosen, rejected in corpus.pairs]
    keep_P = np.array([names is not None for names in known], dtype=bool)
    names = [pair for pair in known if pair is not None]
    different_P = np.array([winner != loser for winner, loser in names], dtype=bool)
    pairs = corpus.pairs.select(keep_P)
    if int(different_P.sum()) < ENOUGH_PAIRS:
        reason = "no authors are named" if not names else f"{int(different_P.sum())} pairs of two known authors; {ENOUGH_PAIRS} are needed"
        yield NotChecked("authors", "Author bias", reason)
        return
    share = cross_validated_agreement(corpus, pairs.select(different_P), _design([n for n in names if n[0] != n[1]]))
    wins, losses = Counter(winner for winner, _ in names), Counter(loser for _, loser in names)
    total = wins + losses
    fixed = sorted((n for n in total if total[n] >= ENOUGH_OF_ONE and not (wins[n] and losses[n])), key=lambda n: (-total[n], n))
    strong = share is not None and share.low > 0.5 and share.value >= STRONG
    mild = bool(fixed) or (share is not None and share.low > 0.5 and share.value >= MILD)
    reached = f"who wrote it, reading nothing, agrees with {share_text(share)} of {share.n:,} held-out pairs" if share else "one fold only"
    always = f"; always winning or losing: {', '.join(fixed[:5])}{' …' if len(fixed) > 5 else ''}" if fixed else ""
    yield Finding(
        "authors",
        "Author bias" if mild or strong else "No author bias",
        "warning" if strong or fixed else "note" if mild else "fine",
        f"{reached}{always}; authors are known in {part(len(names), len(corpus.pairs), 'pair')}",
        "A model can learn to recognise the author in place of quality: test on authors that it has not seen, and pair equals."
        if mild
        else "",
        len(fixed),
        len(total),
        share,
        table=Table(("author", "pairs won", "lost", "wins"), tuple(_rows(fixed, wins, losses))),
    )


def _both(corpus: Corpus, number: int, chosen: int, rejected: int) -> tuple[str, str] | None:
    by = corpus.comparisons[number].authors
    if not by:
        return None
    winner, loser = by[chosen], by[rejected]
    return None if winner is None or loser is None else (winner, loser)


def _design(names: list[tuple[str, str]]) -> Any:
    """One column an author: 1 where it wrote the chosen response, −1 where it wrote the rejected one."""
    from sklearn.feature_extraction import DictVectorizer

    return DictVectorizer().fit_transform([{winner: 1.0, loser: -1.0} for winner, loser in names])


def _rows(fixed: list[str], wins: Counter[str], losses: Counter[str]) -> Iterator[tuple[Cell, ...]]:
    total = wins + losses
    ordered = [*fixed[:_SHOWN], *(name for name, _ in sorted(total.items(), key=lambda item: (-item[1], item[0])) if name not in fixed)]
    for name in ordered[:_SHOWN]:
        yield name, wins[name], losses[name], percent(wins[name] / total[name])
    if len(total) > _SHOWN:
        yield f"({counted(len(total) - _SHOWN, 'more author')})", None, None, None
