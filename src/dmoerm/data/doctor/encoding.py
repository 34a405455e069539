"""Characters that should not be there: broken encodings, invisible and control characters, and marks of chat templates.

Each kind is counted by row and, where the responses of enough pairs differ in it, by how often the response that has it wins: what stands
on one side only, a model learns first.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator

from dmoerm.data.doctor.corpus import Corpus
from dmoerm.data.doctor.finding import Finding, Severity, first_places
from dmoerm.data.doctor.share import Share, share_of
from dmoerm.data.doctor.wording import counted, part, share_text
from dmoerm.records import Comparison

__all__ = ["ODDITIES", "Oddity", "oddities"]

ENOUGH_PAIRS = 20
"""Pairs that must differ in an oddity before it is said that it wins or loses."""

# A byte 0x80 to 0xBF as Latin-1 or Windows-1252 shows it.
_TAIL = "[\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
_MOJIBAKE = re.compile(f"[ÂÃ]{_TAIL}|â€{_TAIL}|ðŸ{_TAIL}|ï»¿|(?:[ÐÑ]{_TAIL}){{3}}|(?:[äåæçèé]{_TAIL}{{2}}){{2}}")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
_MOJIBAKE_LEADS = re.compile("[ÂÃâðïÐÑäåæçèé]")
_INVISIBLE_CHARACTERS = re.compile("[\u200b-\u200d\u2060\ufeff\u00ad]")
_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad]|(?<=[A-Za-z])[\u200c\u200d](?=[A-Za-z])")
_DIRECTION = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LINES = re.compile("[\u2028\u2029\x85]")
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{2,5}|#x[0-9a-fA-F]{2,4});")
_TEMPLATE = re.compile(
    r"<\|[a-z_]{3,24}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:bos|eos|start_of_turn|end_of_turn)>|\[(?:CLS|SEP|PAD|UNK|MASK)\]"
)
_TEMPLATE_HINTS = ("|>", "INST]", "SYS>>", "s>", "_turn>", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]")
_NEXT_TURN = re.compile(r"\n\n?(?:Human|User|H|###? ?(?:Human|User|Instruction|Assistant)): ?")


class Oddity:
    """One kind: how it is found, what to do, and whether it is looked for in prompts as well."""

    def __init__(
        self, find: Callable[[str], object], advice: str, severity: Severity, *, in_ascii: bool = False, prompts: bool = True
    ) -> None:
        self.find = find
        self.advice = advice
        self.severity: Severity = severity
        self.in_ascii = in_ascii
        self.prompts = prompts

    def is_in(self, text: str) -> bool:
        """Does the text have it?"""
        return bool((self.in_ascii or not text.isascii()) and self.find(text))


def _with(mark: str, pattern: re.Pattern[str]) -> Callable[[str], object]:
    return lambda text: mark in text and pattern.search(text)


def _both(quick: re.Pattern[str], exact: re.Pattern[str]) -> Callable[[str], object]:
    """The same as `exact`, which is slow, for texts that hold what `quick` finds."""
    return lambda text: quick.search(text) and exact.search(text)


ODDITIES: dict[str, Oddity] = {
    "replacement characters": Oddity(
        lambda text: "\ufffd" in text, "The text was read in a wrong encoding and is lost there: take it from the source again.", "problem"
    ),
    "mojibake": Oddity(_both(_MOJIBAKE_LEADS, _MOJIBAKE), "UTF-8 was read as Latin-1 (Ã© for é): decode the source again.", "problem"),
    "control characters": Oddity(_CONTROL.search, "Strip them: they come from terminals and binary fields.", "warning", in_ascii=True),
    "invisible characters": Oddity(
        _both(_INVISIBLE_CHARACTERS, _INVISIBLE), "Zero-width spaces and soft hyphens cut words for a tokenizer: strip them.", "note"
    ),
    "direction marks": Oddity(_DIRECTION.search, "Right where right-to-left text is mixed in; elsewhere a copy from a web page.", "note"),
    "unusual line ends": Oddity(
        _LINES.search, "U+2028, U+2029 and U+0085 end lines in some tools, which then see two rows: write newlines.", "note"
    ),
    "carriage returns": Oddity(lambda text: "\r" in text, "Windows line ends: harmless if all texts have them.", "note", in_ascii=True),
    "HTML entities": Oddity(_with("&", _ENTITY), "Unescape them, unless the texts are about HTML.", "note", in_ascii=True),
    "marks of a chat template": Oddity(
        lambda text: any(mark in text for mark in _TEMPLATE_HINTS) and _TEMPLATE.search(text),
        "Strip them: rendering adds its own, and takes these for plain text.",
        "warning",
        in_ascii=True,
    ),
    "another turn in a response": Oddity(
        _with(":", _NEXT_TURN),
        "The response runs on into the next turn: cut it there.",
        "warning",
        in_ascii=True,
        prompts=False,
    ),
}
"""Name to kind. A new oddity is one row."""


def oddities(corpus: Corpus) -> Iterator[Finding]:
    """One finding a kind."""
    found: dict[str, list[int]] = {name: [] for name in ODDITIES}
    sides: defaultdict[str, list[tuple[bool, int]]] = defaultdict(list)
    for number, comparison in enumerate(corpus.comparisons):
        everything = "\n".join([*(message.content for message in comparison.prompt), *comparison.responses])
        for name, oddity in ODDITIES.items():
            if not oddity.is_in(everything):
                continue
            has = [oddity.is_in(text) for text in comparison.responses]
            if any(has) or (oddity.prompts and any(oddity.is_in(message.content) for message in comparison.prompt)):
                found[name].append(number)
            if any(has):
                sides[name] += [(win, int(corpus.prompt_numbers[number])) for win in _wins(comparison, has)]
    for name, numbers in found.items():
        yield _finding(corpus, name, numbers, share_of([win for win, _ in sides[name]], [prompt for _, prompt in sides[name]]))


def _wins(comparison: Comparison, has: list[bool]) -> Iterator[bool]:
    """For each pair in which one response has it: does that one win?"""
    for pair in comparison.pairs():
        if has[pair.chosen] != has[pair.rejected]:
            yield has[pair.chosen]


def _finding(corpus: Corpus, name: str, numbers: list[int], share: Share | None) -> Finding:
    check = name.replace(" ", "_").lower()
    total = len(corpus.comparisons)
    if not numbers:
        return Finding(check, f"No {name}", "fine", "none", count=0, total=total)
    oddity = ODDITIES[name]
    one_sided = share is not None and share.n >= ENOUGH_PAIRS and share.away_from_half(0.15)
    told = (
        f"; where one response of a pair has it, it wins {share_text(share)} of {counted(share.n, 'pair')}" if one_sided and share else ""
    )
    return Finding(
        check,
        name[0].upper() + name[1:],
        "warning" if one_sided and oddity.severity == "note" else oddity.severity,
        f"{part(len(numbers), total, 'comparison')} hold such text{told}",
        oddity.advice,
        len(numbers),
        total,
        share,
        first_places(f"{corpus.place(number)}{_shown(corpus.comparisons[number], oddity)}" for number in numbers),
    )


def _shown(comparison: Comparison, oddity: Oddity) -> str:
    """What was found, with its code points where it cannot be seen."""
    for text in (*comparison.responses, *(message.content for message in comparison.prompt if oddity.prompts)):
        match = oddity.find(text) if oddity.is_in(text) else None
        if isinstance(match, re.Match):
            found = match[0].strip() or match[0]
            return f": {found}" if found.isprintable() else f": {' '.join(f'U+{ord(character):04X}' for character in found[:4])}"
    return ""
