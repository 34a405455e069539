"""Two-order judgements: how often the verdict changes with the order of presentation, and which place it then likes.

The reader makes a label only of verdicts that both orders give, so the others are gone from the comparisons; this file looks at the rows
themselves.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from dmoerm.data.doctor.corpus import Corpus
from dmoerm.data.doctor.finding import Cell, Finding, NotChecked, Table, first_places
from dmoerm.data.doctor.share import share_of
from dmoerm.data.doctor.wording import part, share_text
from dmoerm.data.files import scan_file
from dmoerm.data.jsonl import Row
from dmoerm.data.readers.judgements import ORDERS, read_verdicts
from dmoerm.records import OVERALL

__all__ = ["MANY_INCONSISTENT", "order_consistency"]

MANY_INCONSISTENT = 0.2
"""Share of the verdicts that change with the order from which it is a warning."""
ENOUGH_PAIRS = 20
"""Verdicts that name another winner in each order, below which their leaning says too little."""


def order_consistency(corpus: Corpus) -> Iterator[Finding | NotChecked]:
    """Verdicts of both orders that agree, that do not, and those of one order only."""
    consistent: defaultdict[str, list[tuple[bool, int]]] = defaultdict(list)
    flips: list[tuple[bool, int]] = []
    missing: Counter[str] = Counter()
    places = []
    for file_number, file in enumerate(corpus.files):
        if file.format != "judgements":
            continue
        numbers = {corpus.comparisons[n].source: n for n in range(len(corpus.comparisons)) if corpus.file_of[n] == file_number}
        for row in scan_file(Path(file.path)):
            if not isinstance(row, Row) or (number := numbers.get(f"{file.path}:{row.where}")) is None:
                continue  # a row that could not be used
            prompt = int(corpus.prompt_numbers[number])
            chosen_first, rejected_first = _answered(row)
            for name in dict.fromkeys([*chosen_first, *rejected_first]):
                first, second = chosen_first.get(name), rejected_first.get(name)
                if first is None or second is None:
                    missing[name] += 1
                    continue
                consistent[name].append((first == second, prompt))
                if first == -second and first:
                    flips.append((first == 1, prompt))
                    if number not in places:
                        places.append(number)
    if not consistent and not missing:
        yield NotChecked("orders", "Order of presentation", "no file holds judgements in both orders")
        return
    yield _finding(corpus, consistent, flips, missing, places)


def _finding(
    corpus: Corpus,
    consistent: dict[str, list[tuple[bool, int]]],
    flips: list[tuple[bool, int]],
    missing: Counter[str],
    places: list[int],
) -> Finding:
    everything = [item for items in consistent.values() for item in items]
    wrong = sum(not same for same, _ in everything)
    share = share_of([not same for same, _ in everything], [prompt for _, prompt in everything])
    leaning = share_of([first for first, _ in flips], [prompt for _, prompt in flips])
    biased = leaning is not None and leaning.n >= ENOUGH_PAIRS and leaning.away_from_half(0.1)
    many = share is not None and share.value >= MANY_INCONSISTENT
    rows: list[tuple[Cell, ...]] = []
    for name, items in sorted(consistent.items(), key=lambda item: (item[0] != OVERALL, item[0])):
        changed = share_of([not same for same, _ in items], [prompt for _, prompt in items])
        rows.append((name, changed, len(items), missing[name]))
    rows += [(name, None, 0, count) for name, count in sorted(missing.items()) if name not in consistent]
    summary = f"{part(wrong, len(everything), 'verdict')} change with the order of presentation"
    summary += f"; of those that name another winner, {share_text(leaning)} go to the response shown first" if leaning else ""
    summary += f"; {sum(missing.values()):,} have one order only" if missing else ""
    return Finding(
        "orders",
        "Verdicts that depend on the order" if wrong or missing else "No verdict depends on the order",
        "warning" if many or biased else "note" if wrong or missing else "fine",
        summary,
        "They give no label. Where they are many, ask a stronger judge or a narrower question." if wrong or missing else "",
        wrong,
        len(everything),
        share,
        first_places(corpus.place(number) for number in places),
        Table(("verdict", "changes", "pairs", "one order only"), tuple(rows)),
    )


def _answered(row: Row) -> Iterator[dict[str, int]]:
    """The verdicts of each presentation order, by name, without those that are null."""
    by_order = read_verdicts(row)
    for order in ORDERS:
        yield {name: verdict for name, verdict in by_order.get(order, {}).items() if verdict is not None}
