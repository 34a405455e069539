"""Long texts: how many comparisons the token budget would cut, by an estimate of their tokens, and pairs that the cut makes equal.

The rule is that of `rendering`: prompt and longest response share one budget. Tokens are estimated without a tokenizer: a quarter of a
token for an ASCII character, one for a Chinese, Japanese or Korean one, a half for any other. On English answers this is about a tenth
more than the tokenizer of all-MiniLM-L6-v2 makes. The exact counts are printed when training starts.
"""

import re
from collections.abc import Iterator

import numpy as np

from dmoerm.data.doctor.corpus import Corpus
from dmoerm.data.doctor.finding import Finding, Table, first_places
from dmoerm.data.doctor.wording import counted, part

__all__ = ["budget", "estimated_tokens"]

MARKERS = 4
"""Tokens that markers take, about."""
MANY_CUT, SOME_CUT = 0.5, 0.05
"""Share of the comparisons that are cut from which it is a warning, and a note."""
_WIDE = re.compile("[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")


def estimated_tokens(text: str) -> float:
    """About how many tokens a text has."""
    if text.isascii():
        return len(text) / 4
    other = len(text) - len(text.encode("ascii", "ignore"))
    wide = len(_WIDE.findall(text)) if _WIDE.search(text) else 0
    return (len(text) - other) / 4 + wide + (other - wide) / 2


def budget(corpus: Corpus) -> Iterator[Finding]:
    """Comparisons of which something is cut, and how long texts are."""
    if not corpus.comparisons:
        return
    room = corpus.context.max_length_tokens - MARKERS
    prompts = np.array([sum(estimated_tokens(m.content) for m in c.prompt) for c in corpus.comparisons])
    longest = np.array([max(map(estimated_tokens, c.responses)) for c in corpus.comparisons])
    total = len(corpus.comparisons)
    cut = np.flatnonzero(prompts + longest > room)
    prompt_cut = int((np.minimum(prompts, np.maximum(room / 2, room - longest)) < prompts).sum())
    equal = [number for number in cut.tolist() if _equal_when_cut(corpus, number, room, float(prompts[number]), float(longest[number]))]
    share = len(cut) / total
    enough = int(np.ceil(np.quantile(prompts + longest, 0.95))) + MARKERS
    quantiles = (("prompt", prompts), ("longest response", longest), ("together", prompts + longest))
    yield Finding(
        "budget",
        "Texts longer than the budget" if len(cut) else "Texts fit the budget",
        "warning" if share >= MANY_CUT or equal else "note" if share >= SOME_CUT else "fine",
        f"about {part(len(cut), total, 'comparison')} exceed {corpus.context.max_length_tokens} tokens and are cut (in {prompt_cut:,} the "
        f"prompt as well)" + (f"; {counted(len(equal), 'pair')} of responses are then the same" if equal else ""),
        f"backbone.max_length_tokens: {enough} would hold 95% of them, if the backbone can read so much." if len(cut) else "",
        len(cut),
        total,
        examples=first_places(corpus.place(number) for number in (equal or sorted(cut.tolist(), key=lambda n: -float(longest[n])))),
        table=Table(
            ("tokens, about", "median", "95 of 100", "longest"),
            tuple((name, *(int(np.quantile(values, q)) for q in (0.5, 0.95, 1.0))) for name, values in quantiles),
        ),
    )


def _equal_when_cut(corpus: Corpus, number: int, room: float, prompt: float, longest: float) -> bool:
    """Do the responses of a ranked pair begin alike as far as a model would see them?"""
    comparison = corpus.comparisons[number]
    visible = room - min(prompt, max(room / 2, room - longest))
    for pair in comparison.pairs():
        first, second = comparison.responses[pair.chosen], comparison.responses[pair.rejected]
        if first != second and min(estimated_tokens(first), estimated_tokens(second)) > visible:
            characters = int(visible * len(first) / estimated_tokens(first))
            if first[:characters] == second[:characters]:
                return True
    return False
