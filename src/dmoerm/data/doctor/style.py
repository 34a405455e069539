"""What a response looks like, without its content: layout, refusals, loose ends. Does one look win?

For each trait, the pairs count in which one response has more of it than the other. All traits and the length together make one linear
reward, measured on prompts that it has not seen: what a model can reach without reading.

P pairs, V traits.
"""

import re
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from dmoerm.data.doctor.corpus import Corpus, Pairs
from dmoerm.data.doctor.finding import Cell, Finding, NotChecked, Table, first_places
from dmoerm.data.doctor.held_out import ENOUGH_PAIRS, cross_validated_agreement
from dmoerm.data.doctor.share import Share, share_of
from dmoerm.data.doctor.wording import counted, percent, share_text

__all__ = ["TRAITS", "is_refusal", "refusals", "style"]

SAMPLE = 10_000
"""Pairs that are looked at, about; more would make the intervals narrower, and nothing else."""
ENOUGH_DIFFERENT = 20
"""Pairs that must differ in a trait before it is judged."""
STRONG_TRAIT, STRONG_STYLE, MILD_STYLE = 0.15, 0.65, 0.55
"""A trait wins or loses by so much more than half; style alone agrees with people so often."""

_BULLET = re.compile(r"^[ \t]*[-*•+] ", re.MULTILINE)
_NUMBERED = re.compile(r"^[ \t]*\d{1,3}[.)] ", re.MULTILINE)
_HEADING = re.compile(r"^#{1,6} ", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*")
_TABLE_ROW = re.compile(r"^[ \t]*\|.*\|[ \t]*$", re.MULTILINE)
_ENDS = tuple(".!?…。！？\"'”’)]}）】」*`|:;~")
_APOSTROPHE = "['’]?"
_REFUSAL = re.compile(
    rf"\bI{_APOSTROPHE}m (?:very |so )?sorry,? (?:but|I)\b|\bI apologi[sz]e,? but\b|\bSorry,? but I\b"
    rf"|\bI(?: can(?:not|{_APOSTROPHE}t)| am (?:unable|not able) to|{_APOSTROPHE}m (?:unable|not able) to)\s*"
    r"(?:assist|help|provide|fulfil|comply|do that|answer|engage|create|generate|write|access|browse|support|discuss)"
    rf"|\bI (?:must|have to) decline\b|\bI won{_APOSTROPHE}t be able to\b"
    r"|\bas an? (?:AI|artificial intelligence|(?:large )?language model)\b"
    r"|抱歉|对不起|很遗憾|我无法|我不能|作为一个?(?:AI|人工智能|语言模型)",
    re.IGNORECASE,
)
_REFUSAL_WITHIN = 250


def is_refusal(text: str) -> bool:
    """Does a response begin as refusals do, in English or Chinese? A list of phrases, so a hint and no more."""
    return _REFUSAL.search(text, 0, _REFUSAL_WITHIN) is not None


TRAITS: dict[str, Callable[[str], float]] = {
    "bullet points": lambda text: len(_BULLET.findall(text)),
    "numbered items": lambda text: len(_NUMBERED.findall(text)),
    "headings": lambda text: len(_HEADING.findall(text)) if "#" in text else 0,
    "bold": lambda text: len(_BOLD.findall(text)) if "**" in text else 0,
    "code blocks": lambda text: text.count("```") // 2,
    "tables": lambda text: len(_TABLE_ROW.findall(text)) if "|" in text else 0,
    "links": lambda text: text.count("://"),
    "paragraphs": lambda text: text.strip().count("\n\n"),
    "exclamation marks": lambda text: text.count("!") + text.count("！"),
    "question marks": lambda text: text.count("?") + text.count("？"),
    "refusal": lambda text: float(is_refusal(text)),
    "cut off (no end mark)": lambda text: float(not text.rstrip().endswith(_ENDS)),
    "space at the start": lambda text: float(text[:1].isspace()),
    "space at the end": lambda text: float(text[-1:].isspace()),
}
"""Name to how much of it a text has. A new trait is one row."""


def style(corpus: Corpus) -> Iterator[Finding | NotChecked]:
    """Every trait, and all of them with length as one held-out reward."""
    pairs = corpus.pairs_of(corpus.sample(SAMPLE))
    if len(pairs) < ENOUGH_PAIRS:
        yield NotChecked("style", "Style", f"{counted(len(pairs), 'ranked pair')}; {ENOUGH_PAIRS} are needed")
        return
    chosen_PV, rejected_PV = _features(corpus, pairs)
    rows = list(_traits(chosen_PV - rejected_PV, pairs))
    names = [name for name, share, _ in rows if share.n >= ENOUGH_DIFFERENT and share.away_from_half(STRONG_TRAIT)]
    together = cross_validated_agreement(corpus, pairs, _scaled(np.log1p(chosen_PV) - np.log1p(rejected_PV)))
    strong = together is not None and together.low > 0.5 and together.value >= STRONG_STYLE
    mild = bool(names) or (together is not None and together.low > 0.5 and together.value >= MILD_STYLE)
    reached = f"length and style alone, reading nothing, agree with {share_text(together)} of {together.n:,} pairs" if together else "-"
    yield Finding(
        "style",
        "Style bias" if mild or strong else "No style bias",
        "warning" if strong else "note" if mild else "fine",
        f"{reached}; {'one sided: ' + ', '.join(names) if names else 'no single trait is one-sided'}",
        "A reward model must beat this figure to have learnt more than looks; see that these traits are what people wanted."
        if mild
        else "",
        share=together,
        table=Table(("more of it", "wins", "pairs that differ"), tuple(_cells(rows))),
    )


def _features(corpus: Corpus, pairs: Pairs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Traits, and characters in the last column, of the chosen and of the rejected responses."""
    traits = list(TRAITS.values())
    known: dict[tuple[int, int], list[float]] = {}

    def of(number: int, index: int) -> list[float]:
        if (number, index) not in known:
            text = corpus.comparisons[number].responses[index]
            known[number, index] = [*(trait(text) for trait in traits), float(len(text))]
        return known[number, index]

    both = np.array([[of(number, chosen), of(number, rejected)] for number, chosen, rejected in pairs])
    return both[:, 0], both[:, 1]


def _traits(difference_PV: NDArray[np.float64], pairs: Pairs) -> Iterator[tuple[str, Share, int]]:
    for column, name in enumerate(TRAITS):
        differ_P = difference_PV[:, column] != 0
        share = share_of(difference_PV[differ_P, column] > 0, pairs.prompt_P[differ_P])
        if share is not None:
            yield name, share, share.n


def _cells(rows: list[tuple[str, Share, int]]) -> Iterator[tuple[Cell, ...]]:
    for name, share, n in sorted(rows, key=lambda row: -abs(row[1].value - 0.5)):
        if n >= ENOUGH_DIFFERENT:
            yield name, share, n


def _scaled(difference_PV: NDArray[np.float64]) -> NDArray[np.float64]:
    scale_V = np.sqrt((difference_PV**2).mean(axis=0))
    return np.asarray(difference_PV[:, scale_V > 0] / scale_V[scale_V > 0])


def refusals(corpus: Corpus) -> Iterator[Finding]:
    """Pairs in which one response refuses, or both do."""
    pairs = corpus.pairs_of(corpus.sample(SAMPLE))
    wins, prompts, places, both = [], [], [], 0
    for (number, chosen, rejected), prompt in zip(pairs, pairs.prompt_P.tolist(), strict=True):
        texts = corpus.comparisons[number].responses
        refused = is_refusal(texts[chosen]), is_refusal(texts[rejected])
        both += all(refused)
        if refused[0] != refused[1]:
            wins.append(refused[0])
            prompts.append(prompt)
            places.append(number)
    share = share_of(wins, prompts)
    if share is None and not both:
        yield Finding("refusals", "No refusals", "fine", "none", count=0, total=len(pairs))
        return
    won = f"; it wins {share_text(share)} of them" if share else ""
    liked = share is not None and share.n >= ENOUGH_DIFFERENT and share.low > 0.5
    yield Finding(
        "refusals",
        "Refusals",
        "warning" if liked else "note",
        f"one response refuses in {len(wins):,} of {counted(len(pairs), 'pair')} ({percent(len(wins) / len(pairs))}){won}; "
        f"both refuse in {both:,}",
        "Refusals win: right where the prompts ask for harm; else a model learns to decline." if liked else "",
        len(wins),
        len(pairs),
        share,
        first_places(corpus.place(number) for number in dict.fromkeys(places)),
    )
