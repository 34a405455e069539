"""Which writing systems the texts are in, told by the Unicode names of their letters; no language is guessed."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import cache

from dmoerm.data.doctor.corpus import Corpus
from dmoerm.data.doctor.finding import Cell, Finding, Table, first_places
from dmoerm.data.doctor.share import share_of
from dmoerm.data.doctor.wording import part, percent, share_text

__all__ = ["script_of", "scripts"]

LOOKED_AT = 200
"""Characters of a text that are looked at."""
SOME = 0.01
"""Share of the prompts in other scripts than the commonest from which it is worth a note."""
ENOUGH_PAIRS = 20
"""Pairs below which a share says too little."""

_LETTER = re.compile("[A-Za-z]")
_JAPANESE = ("HIRAGANA", "KATAKANA")
_NAMES = {"CJK": "Chinese", "HANGUL": "Korean"}


def script_of(text: str) -> str | None:
    """The commonest script among the letters of a text, "Japanese" where it has any kana; None without letters."""
    text = text[:LOOKED_AT]
    if text.isascii():
        return "Latin" if _LETTER.search(text) else None
    counts: Counter[str] = Counter()
    for character in text:
        if character.isalpha():
            counts["Latin" if character.isascii() else _script(character)] += 1
    if not counts:
        return None
    if counts["Japanese"]:
        counts["Japanese"] += counts.pop("Chinese", 0)
    # Of two as common, the first by name: the same answer whatever came first.
    return min(counts, key=lambda name: (-counts[name], name))


@cache
def _script(character: str) -> str:
    first = unicodedata.name(character, "OTHER").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ").split(" ")[0].split("-")[0]
    return "Japanese" if first in _JAPANESE else _NAMES.get(first, first.capitalize())


def scripts(corpus: Corpus) -> Iterator[Finding]:
    """Prompts by script, and responses in another script than their prompt."""
    of_prompt = [script_of("\n".join(m.content for m in corpus.comparisons[n].prompt[-1:])) for n in corpus.first_of_prompt]
    counts = Counter(name or "(no letters)" for name in of_prompt)
    if not counts:
        return
    common = min(counts, key=lambda name: (-counts[name], name))
    others = sum(counts.values()) - counts[common]
    rows: list[tuple[Cell, ...]] = [
        (name, n, percent(n / len(of_prompt))) for name, n in sorted(counts.items(), key=lambda i: (-i[1], i[0]))
    ]
    foreign = common not in ("Latin", "(no letters)") or others >= SOME * len(of_prompt)
    yield Finding(
        "scripts",
        "Scripts" if foreign else f"One script throughout ({common})",
        "note" if foreign else "fine",
        f"{part(counts[common], len(of_prompt), 'prompt')} are in {common} script",
        "The default backbone (all-MiniLM-L6-v2) has read English: choose a multilingual backbone.name for other languages."
        if foreign
        else "",
        others,
        len(of_prompt),
        table=Table(("script", "prompts", "share"), tuple(rows[:8])),
    )
    yield _mixed(corpus, dict(zip((int(corpus.prompt_numbers[n]) for n in corpus.first_of_prompt), of_prompt, strict=True)))


def _mixed(corpus: Corpus, of_prompt: dict[int, str | None]) -> Finding:
    places: list[int] = []
    wins: list[bool] = []
    prompts: list[int] = []
    for number in corpus.preferences:
        prompt = int(corpus.prompt_numbers[number])
        comparison = corpus.comparisons[number]
        scripts = [script_of(text) for text in comparison.responses]
        other = [script not in (None, of_prompt[prompt]) and of_prompt[prompt] is not None for script in scripts]
        if any(other):
            places.append(number)
            differ = [other[pair.chosen] for pair in comparison.pairs() if other[pair.chosen] != other[pair.rejected]]
            wins += differ
            prompts += [prompt] * len(differ)
    share = share_of(wins, prompts)
    enough = share is not None and share.n >= ENOUGH_PAIRS
    told = f"; against one in the script of the prompt it wins {share_text(share)} of {share.n:,} pairs" if share and enough else ""
    total = len(corpus.preferences)
    return Finding(
        "mixed_scripts",
        "Responses in another script than the prompt" if places else "Responses are in the script of their prompt",
        "note" if places else "fine",
        f"{part(len(places), total, 'comparison')} have one{told}" if places else "none",
        "Right for translations; elsewhere the response answers in the wrong language." if places else "",
        len(places),
        total,
        share,
        first_places(corpus.place(number) for number in places),
    )
