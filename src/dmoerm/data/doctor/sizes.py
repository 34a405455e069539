"""How much there is: categories and their sizes, ties, which response is listed first."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from dmoerm.data.doctor.corpus import Corpus
from dmoerm.data.doctor.finding import Cell, Finding, NotChecked, Severity, Table, first_places
from dmoerm.data.doctor.share import Share, share_of
from dmoerm.data.doctor.wording import counted, part, share_text
from dmoerm.records import Comparison

__all__ = ["categories", "names_that_look_alike", "positions", "ties"]

MANY_TIES = 0.3
"""Share of tied comparisons from which it is worth a warning."""
POSITION_BIAS = 0.05
"""Distance from one half at which the place in the row tells who wins."""
NUMBERED = ("pairs", "arena", "helpsteer2_preference", "helpsteer3", "judge_bench")
"""Formats that number the responses, so that a preference can be for either; the others list the winner first as they like."""
ENOUGH_PAIRS = 20
"""Pairs below which a share says too little."""


def categories(corpus: Corpus) -> Iterator[Finding | NotChecked]:
    """Comparisons by category, and the categories that are too small or all alike to be trained on."""
    by_name: defaultdict[str, list[int]] = defaultdict(list)
    for number in corpus.preferences:
        by_name[corpus.comparisons[number].category or ""].append(number)
    if not any(by_name):
        yield NotChecked(
            "categories",
            "Categories",
            "no row names one, so everything goes to general; name files in data.prompts, or let a judge: dmoerm label categories",
        )
        return
    names = sorted(filter(None, by_name))
    preferred = {name: [number for number in by_name[name] if corpus.comparisons[number].has_preference] for name in by_name}
    small = [name for name in names if len(preferred[name]) < corpus.context.minimum_comparisons]
    rows: list[tuple[Cell, ...]] = [
        (name or "(none)", len(by_name[name]), len({int(corpus.prompt_numbers[number]) for number in by_name[name]}), len(preferred[name]))
        for name in (*names, *([""] if "" in by_name else []))
    ]
    needed = f"{corpus.context.minimum_comparisons} comparisons with a preference"
    yield Finding(
        "categories",
        "Categories too small to train" if small else "Categories",
        "warning" if small else "note",
        f"{counted(len(names), 'category', 'categories')}"
        + (f"; fewer than {needed}: {', '.join(small)}" if small else f", each with at least {needed}"),
        "Collect more, or merge them: the fallback (general) judges them until then (task_model.minimum_comparisons)." if small else "",
        len(small),
        len(names),
        examples=first_places(corpus.place(by_name[name][0]) for name in small),
        table=Table(("category", "comparisons", "prompts", "with a preference"), tuple(rows)),
    )
    if len(names) == 1:
        yield Finding(
            "single_category",
            "One category only",
            "note",
            f"every row that names a category says {names[0]}: a router has nothing to tell apart",
            "Nothing, if there is one kind of task; else name files with other categories in data.prompts.",
        )


def names_that_look_alike(corpus: Corpus) -> Iterator[Finding]:
    """Categories, or capabilities, whose names differ in case, spaces or marks only."""
    used: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    place: dict[str, int] = {}
    for number, comparison in enumerate(corpus.comparisons):
        for kind, name in _names(comparison):
            used[kind, "".join(filter(str.isalnum, name.casefold()))][name] += 1
            place.setdefault(name, number)
    twins = [(kind, counts) for (kind, _), counts in used.items() if len(counts) > 1]
    if not used:
        return
    yield Finding(
        "alike_names",
        "Names spelt in several ways" if twins else "Names are spelt in one way",
        "warning" if twins else "fine",
        "; ".join(f"{kind} {' / '.join(f'{name} ({count:,})' for name, count in counts.most_common())}" for kind, counts in twins)
        or "none",
        "Write each in one way: two spellings are two of a kind to a router and to an expert." if twins else "",
        len(twins),
        examples=first_places(corpus.place(place[name]) for _, counts in twins for name in counts),
    )


def _names(comparison: Comparison) -> Iterable[tuple[str, str]]:
    if comparison.category is not None:
        yield "category", comparison.category
    for name in dict.fromkeys(label.capability for label in comparison.labels):
        yield "capability", name


def ties(corpus: Corpus) -> Iterator[Finding]:
    """Comparisons without a preference, and categories that hold nothing else."""
    total = len(corpus.preferences)
    tied = [number for number in corpus.preferences if not corpus.comparisons[number].has_preference]
    by_category = Counter(corpus.comparisons[number].category or "" for number in corpus.preferences)
    tied_in = Counter(corpus.comparisons[number].category or "" for number in tied)
    only_ties = sorted(name for name in tied_in if name and tied_in[name] == by_category[name])
    share = share_of([not corpus.comparisons[n].has_preference for n in corpus.preferences], corpus.prompt_numbers[corpus.preferences])
    severity: Severity
    if total and len(tied) == total:
        severity, more = "problem", ": there is nothing to learn from"
    elif only_ties or len(tied) >= MANY_TIES * max(1, total):
        severity, more = "warning", f"; nothing but ties: {', '.join(only_ties)}" if only_ties else ""
    else:
        severity, more = ("note", "") if tied else ("fine", "")
    yield Finding(
        "ties",
        "Ties" if tied else "No comparison is all tied",
        severity,
        f"{part(len(tied), total, 'comparison')} rank all responses alike{more}",
        "They train nothing and are not counted in an agreement; ask again where a preference was expected." if tied else "",
        len(tied),
        total,
        share if tied else None,
        first_places(corpus.place(number) for number in tied),
    )


def positions(corpus: Corpus) -> Iterator[Finding | NotChecked]:
    """How often the response listed first wins: by whoever judged, in the order in which it was shown."""
    file_P = np.array(corpus.file_of, dtype=np.int64)[corpus.pairs.comparison_P] if len(corpus.pairs) else np.zeros(0, dtype=np.int64)
    first_P = corpus.pairs.chosen_P < corpus.pairs.rejected_P
    shares: dict[int, Share] = {}
    for number in sorted(set(file_P.tolist())):
        share = share_of(first_P[file_P == number], corpus.pairs.prompt_P[file_P == number])
        # Where the winner always stands at one end (chosen and rejected, sorted rankings), the order says nothing of who judged.
        if share is not None and share.n >= ENOUGH_PAIRS and (0.0 < share.value < 1.0 or corpus.files[number].format in NUMBERED):
            shares[number] = share
    one_class = [number for number, share in shares.items() if share.value in (0.0, 1.0)]
    if one_class:
        yield Finding(
            "one_class",
            "Preferences of one class",
            "problem",
            f"every preference in {', '.join(corpus.files[number].name for number in one_class)} is for the response at the same place",
            "Check how they were made: the column of the preference may be constant, or the rows sorted by it.",
            len(one_class),
            len(shares),
        )
    if not shares:
        yield NotChecked(
            "positions", "Position bias", "the files list the winner at one end, so nothing says in which order they were shown"
        )
        return
    biased = [number for number, share in shares.items() if share.away_from_half(POSITION_BIAS)]
    worst = max(shares.values(), key=lambda share: abs(share.value - 0.5))
    yield Finding(
        "positions",
        "Position bias" if biased else "No position bias",
        "warning" if biased else "fine",
        f"the response listed first wins {share_text(worst)} of {worst.n:,} pairs",
        "Whoever judged liked one place better, or the rows are half sorted: ask in both orders, or shuffle before asking."
        if biased
        else "",
        share=worst,
        table=Table(("file", "first wins", "pairs"), tuple((corpus.files[n].name, s, s.n) for n, s in shares.items())) if biased else None,
    )
