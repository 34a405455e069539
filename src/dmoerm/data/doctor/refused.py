"""Rows that the reader refuses, by reason, and responses that hardly say anything."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

from dmoerm.data.doctor.corpus import Corpus
from dmoerm.data.doctor.finding import Finding, Table, first_places
from dmoerm.data.doctor.wording import counted, part

__all__ = ["blank_responses", "left_out_rows", "refused_rows"]

_MOST_REASONS = 8
_QUOTED_VALUE = re.compile(r"'(?:[^'\\]|\\.)*'")
_NUMBER = re.compile(r"\d+")
_EMPTY = re.compile(r'^"[^"]*"(?: of .*)? is empty;|^"responses", item \d+ is empty;')


def refused_rows(corpus: Corpus) -> Iterator[Finding]:
    """Rows that cannot be used, grouped by what is wrong."""
    total = sum(file.rows for file in corpus.files)
    if not corpus.refused:
        yield Finding("refused_rows", "Every row can be read", "fine", f"{counted(total, 'row')}", count=0, total=total)
        return
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for row in corpus.refused:
        groups[_pattern(row.reason)].append(row.place)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    empty = sum(bool(_EMPTY.match(row.reason)) for row in corpus.refused)
    beside = f", {empty:,} of them for an empty prompt or response" if empty else ""
    yield Finding(
        "refused_rows",
        "Rows that cannot be used",
        "problem",
        f"{part(len(corpus.refused), total, 'row')} are refused{beside}",
        "Correct them. A run stops at the first; with data.bad_rows: skip it leaves them out and counts them.",
        len(corpus.refused),
        total,
        examples=first_places(f"{row.place}: {row.reason}" for row in corpus.refused),
        table=Table(("reason", "rows"), tuple((reason, len(places)) for reason, places in ordered[:_MOST_REASONS])),
    )


def left_out_rows(corpus: Corpus) -> Iterator[Finding]:
    """Rows that can be read but hold no comparison, such as a prompt with one response."""
    reasons = sum((Counter(file.left_out) for file in corpus.files), Counter[str]())
    if reasons:
        total = sum(file.rows for file in corpus.files)
        yield Finding(
            "left_out_rows",
            "Rows without a comparison",
            "note",
            f"{part(reasons.total(), total, 'row')} hold nothing to compare",
            "Nothing, if you know them; else see how the format is read (docs/data.md).",
            reasons.total(),
            total,
            table=Table(("reason", "rows"), tuple(reasons.most_common(_MOST_REASONS))),
        )


def _pattern(reason: str) -> str:
    """The first line of a reason without what differs from row to row."""
    line = reason.splitlines()[0].split("; ")[0].split(". ")[0].rstrip(".")
    return _NUMBER.sub("N", _QUOTED_VALUE.sub("…", line))


def blank_responses(corpus: Corpus) -> Iterator[Finding]:
    """Responses without a single letter or digit; quite empty ones are refused by the reader."""
    found = [number for number, c in enumerate(corpus.comparisons) if any(not any(map(str.isalnum, text)) for text in c.responses)]
    total = len(corpus.comparisons)
    yield Finding(
        "blank_responses",
        "Responses without a word" if found else "Every response has words",
        "warning" if found else "fine",
        f"{part(len(found), total, 'comparison')} have a response without a letter or digit" if found else "none",
        "Look whether a generation failed; take the rows out where it did." if found else "",
        len(found),
        total,
        examples=first_places(corpus.place(number) for number in found),
    )
