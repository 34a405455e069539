"""Capability labels: how many, how often they differ from the overall preference, and which capabilities say the same as another.

An expert earns its place on labels that go against the overall preference: where they all follow it, it learns what the task model knows.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from dmoerm.data.doctor.corpus import Corpus
from dmoerm.data.doctor.finding import Cell, Finding, NotChecked, Table, first_places
from dmoerm.data.doctor.share import Share, share_of
from dmoerm.data.doctor.wording import counted, part, percent, share_text
from dmoerm.records import OVERALL

__all__ = [
    "ENOUGH_LABELS",
    "HALO",
    "MILD_HALO",
    "REPEATED",
    "SAME_BEYOND_OVERALL",
    "halo",
    "judge_against_people",
    "label_counts",
    "repeated_capabilities",
]

ENOUGH_LABELS = 20
"""Labels below which a share says too little."""
HALO, REPEATED = 0.95, 0.95
"""Agreement with the overall preference, and between two capabilities, from which one of them is hardly of its own."""
SAME_BEYOND_OVERALL = 0.6
"""Kappa beyond what two capabilities owe to the overall preference from which they are one ("substantial", Landis & Koch 1977)."""
MILD_HALO = 0.9
"""Agreement of all labels together with an overall verdict from which it is worth a note."""
_SHOWN = 8
_RANKS, _JUDGE = "the overall preference", "the judge's own overall verdict"

_Name = tuple[str, str]  # category ("" where unknown) and capability


@dataclass(frozen=True, slots=True)
class _Label:
    """One label: its comparison, the pair, and how it stands to the ranks and to the judge's own overall verdict.

    1: with it, -1: against it, 0: there is none, or a tie.
    """

    number: int
    pair: tuple[int, int]
    prefers_first: bool
    follows: int
    follows_judge: int


def label_counts(corpus: Corpus) -> Iterator[Finding | NotChecked]:
    """Labels by category and capability: too few for an expert, or all of one kind."""
    by_name = _labels(corpus)
    if not by_name:
        yield NotChecked("labels", "Capability labels", "the files carry none; without labels a category has a task model and no experts")
        return
    few = [name for name, labels in by_name.items() if len(labels) < corpus.context.minimum_labels]
    rows: list[tuple[Cell, ...]] = []
    for name, labels in by_name.items():
        first = sum(label.prefers_first for label in labels)
        rows.append((_title(name), len(labels), _against(corpus, labels), percent(first / len(labels))))
    listed = ", ".join(_title(name) for name in few[:6]) + (" …" if len(few) > 6 else "")
    total = sum(map(len, by_name.values()))
    yield Finding(
        "labels",
        "Capabilities with too few labels" if few else "Capability labels",
        "warning" if few else "note",
        f"{counted(total, 'label')} on {counted(len(by_name), 'capability', 'capabilities')}"
        + (f"; fewer than {corpus.context.minimum_labels}: {listed}" if few else ""),
        "Label more, or they get no expert (experts.minimum_labels)." if few else "",
        len(few),
        len(by_name),
        examples=first_places(corpus.place(by_name[name][0].number) for name in few),
        table=Table(("capability", "labels", "against overall", "prefers first"), tuple(rows)),
    )
    yield from _constant(corpus, by_name)


def _constant(corpus: Corpus, by_name: dict[_Name, list[_Label]]) -> Iterator[Finding]:
    """Capabilities whose labels all prefer the same place of the row, although the ranks do not."""
    constant = []
    for name, labels in by_name.items():
        follows = {label.follows for label in labels}
        if len(labels) >= ENOUGH_LABELS and len({label.prefers_first for label in labels}) == 1 and -1 in follows:
            constant.append(name)
    if constant:
        yield Finding(
            "constant_labels",
            "Labels of one class",
            "problem",
            f"every label of {', '.join(map(_title, constant))} prefers the response at the same place of the row",
            "Check how they were made: an expert would learn the place, or nothing.",
            len(constant),
            len(by_name),
            examples=first_places(corpus.place(by_name[name][0].number) for name in constant),
        )


def halo(corpus: Corpus) -> Iterator[Finding]:
    """Capabilities whose labels are the overall preference, or the judge's own overall verdict, under another name."""
    by_name = {name: labels for name, labels in _labels(corpus).items() if len(labels) >= ENOUGH_LABELS}
    rows: list[tuple[Cell, ...]] = []
    same = []
    for name, labels in by_name.items():
        shares = _following(corpus, labels), _following(corpus, labels, judge=True)
        rows.append((_title(name), *shares))
        if any(share is not None and share.n >= ENOUGH_LABELS and share.value >= HALO for share in shares):
            same.append(name)
    everything = [label for labels in by_name.values() for label in labels]
    ranks, judge = _following(corpus, everything), _following(corpus, everything, judge=True)
    if ranks is None and judge is None:
        return
    mild = any(share is not None and share.low >= MILD_HALO for share in (ranks, judge))
    told = [f"{share_text(share)} of {share.n:,} labels follow {what}" for share, what in ((ranks, _RANKS), (judge, _JUDGE)) if share]
    listed = f"; {percent(HALO)} or more: {', '.join(map(_title, same))}" if same else ""
    yield Finding(
        "halo",
        "Capabilities that repeat the overall preference" if same else "Capabilities and the overall preference",
        "warning" if same else "note" if mild else "fine",
        f"{'; '.join(told)}{listed}",
        "Their experts learn what the task model knows: ask about narrower points, or label pairs that are close overall." if same else "",
        len(same),
        len(by_name),
        ranks or judge,
        table=Table(("labels that follow", "the ranks", "the judge"), tuple(rows)) if same or mild else None,
    )


def repeated_capabilities(corpus: Corpus) -> Iterator[Finding | NotChecked]:
    """Two capabilities of a category that give the same labels on the pairs that both judge."""
    verdicts: defaultdict[_Name, dict[tuple[int, int, int], _Label]] = defaultdict(dict)
    for name, labels in _labels(corpus).items():
        verdicts[name] = {(label.number, *label.pair): label for label in labels}
    rows: list[tuple[Cell, ...]] = []
    repeated = compared = 0
    for a, b in combinations(verdicts, 2):
        shared = [key for key in verdicts[a] if key in verdicts[b]] if a[0] == b[0] else []
        if len(shared) < ENOUGH_LABELS:
            continue
        compared += 1
        pairs = [(verdicts[a][key], verdicts[b][key]) for key in shared]
        share = share_of([x.prefers_first == y.prefers_first for x, y in pairs], corpus.prompt_numbers[[x.number for x, _ in pairs]])
        kappa = _kappa([(x.follows, y.follows) for x, y in pairs])
        same = share is not None and share.value >= REPEATED and (kappa is None or kappa >= SAME_BEYOND_OVERALL)
        repeated += same
        rows.append((f"{_title(a)} = {b[1]}" if same else f"{_title(a)}, {b[1]}", share, kappa, len(shared)))
    if not compared:
        if verdicts:
            yield NotChecked("repeated_capabilities", "Capabilities that repeat one another", "no two judge the same pairs often enough")
        return
    rows.sort(key=lambda row: -row[1].value if isinstance(row[1], Share) else 0.0)
    yield Finding(
        "repeated_capabilities",
        "Capabilities that repeat one another" if repeated else "No two capabilities say the same",
        "warning" if repeated else "fine",
        f"{part(repeated, compared, 'pair')} of capabilities give the same labels, also where they go against the overall preference"
        if repeated
        else f"{counted(compared, 'pair')} of capabilities compared",
        "Merge them, or sharpen their descriptions: two experts on one thing cost two and say one." if repeated else "",
        repeated,
        compared,
        table=Table(("capabilities", "agree", "kappa", "both judge"), tuple(rows[:_SHOWN])),
    )


def judge_against_people(corpus: Corpus) -> Iterator[Finding]:
    """Labels named `overall`: does the judge of the capabilities prefer what people prefer?"""
    labels = [label for label in _labels(corpus, overall=True).get(("", OVERALL), []) if label.follows]
    share = _following(corpus, labels)
    if share is None or share.n < ENOUGH_LABELS:
        return
    turned = share.high < 0.5
    weak = share.value < 0.6
    yield Finding(
        "judge_against_ranks",
        "The judge prefers the rejected responses"
        if turned
        else "The judge and the ranks disagree"
        if weak
        else "The judge prefers what the ranks prefer",
        "problem" if turned else "warning" if weak else "fine",
        f"the judge's overall verdict is that of the ranks in {share_text(share)} of {share.n:,} pairs",
        "Have chosen and rejected changed places?" if turned else "Its capability labels are doubtful, too." if weak else "",
        share=share,
        examples=first_places(corpus.place(label.number) for label in labels if label.follows < 0) if turned or weak else (),
    )


def _labels(corpus: Corpus, *, overall: bool = False) -> dict[_Name, list[_Label]]:
    """Labels by category and capability, by name; with `overall` the judge's verdicts on the whole response and nothing else."""
    found: defaultdict[_Name, list[_Label]] = defaultdict(list)
    for number, comparison in enumerate(corpus.comparisons):
        judge = {frozenset((label.preferred, label.other)): label.preferred for label in comparison.labels if label.capability == OVERALL}
        for label in comparison.labels:
            if (label.capability == OVERALL) == overall:
                preferred, other = comparison.ranks[label.preferred], comparison.ranks[label.other]
                verdict = judge.get(frozenset((label.preferred, label.other)))
                found["" if overall else comparison.category or "", label.capability].append(
                    _Label(
                        number,
                        (min(label.preferred, label.other), max(label.preferred, label.other)),
                        label.preferred < label.other,
                        (other > preferred) - (other < preferred),
                        0 if verdict is None else 1 if verdict == label.preferred else -1,
                    )
                )
    return dict(sorted(found.items()))


def _following(corpus: Corpus, labels: list[_Label], *, judge: bool = False) -> Share | None:
    """The share of labels that go with the ranks, or with the judge's overall verdict."""
    judged = [(label.number, label.follows_judge if judge else label.follows) for label in labels]
    return share_of(
        [follows > 0 for _, follows in judged if follows], corpus.prompt_numbers[[number for number, follows in judged if follows]]
    )


def _against(corpus: Corpus, labels: list[_Label]) -> Share | None:
    judged = [label for label in labels if label.follows]
    return share_of([label.follows < 0 for label in judged], corpus.prompt_numbers[[label.number for label in judged]])


def _kappa(follows: list[tuple[int, int]]) -> float | None:
    """Cohen's kappa of two labellers, each as "with the overall preference" or "against it"; None where both never go against it."""
    both = Counter((a > 0, b > 0) for a, b in follows if a and b)
    n = sum(both.values())
    if not n:
        return None
    agreed = (both[True, True] + both[False, False]) / n
    a, b = (both[True, True] + both[True, False]) / n, (both[True, True] + both[False, True]) / n
    chance = a * b + (1 - a) * (1 - b)
    return None if np.isclose(chance, 1.0) else (agreed - chance) / (1 - chance)


def _title(name: _Name) -> str:
    return "/".join(filter(None, name))
