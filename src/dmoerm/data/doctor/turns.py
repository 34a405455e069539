"""Conversations of an unusual shape: turns that do not alternate, that end with the assistant, or that are empty."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from dmoerm.data.doctor.corpus import Corpus
from dmoerm.data.doctor.finding import Finding, Table, first_places
from dmoerm.data.doctor.wording import counted, part
from dmoerm.records import Message

__all__ = ["turns"]

SOME = 0.01
"""Share of the prompts of one shape below which it may be a slip."""


def turns(corpus: Corpus) -> Iterator[Finding]:
    """Prompts whose roles are unusual, by what is unusual."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for number in corpus.first_of_prompt:
        for shape in _unusual(corpus.comparisons[number].prompt):
            found[shape].append(number)
    total = len(corpus.first_of_prompt)
    affected = {number for numbers in found.values() for number in numbers}
    slips = [
        shape for shape, numbers in found.items() if shape.startswith("ends") or shape.startswith("an empty") or len(numbers) < SOME * total
    ]
    several = sum(len(corpus.comparisons[number].prompt) > 1 for number in corpus.first_of_prompt)
    yield Finding(
        "turns",
        "Unusual turns" if found else "Turns alternate as usual",
        "warning" if slips else "note" if found else "fine",
        f"{part(len(affected), total, 'prompt')} have unusual turns" if found else f"{counted(several, 'prompt')} of several messages",
        "See that the prompt was cut at the right turn: a chat template may refuse such a conversation, and the row is then dropped."
        if found
        else "",
        len(affected),
        total,
        examples=first_places(f"{corpus.place(numbers[0])}: {shape}" for shape, numbers in found.items()),
        table=Table(("turns", "prompts"), tuple((shape, len(numbers)) for shape, numbers in found.items())) if found else None,
    )


def _unusual(prompt: tuple[Message, ...]) -> Iterator[str]:
    roles = [message.role for message in prompt]
    if roles[-1] == "assistant":
        yield "ends with the assistant"
    elif roles[-1] == "system":
        yield "ends with a system message"
    if "system" in roles[1:]:
        yield "a system message after the first"
    spoken = [role for role in roles if role != "system"]
    if spoken[:1] == ["assistant"]:
        yield "begins with the assistant"
    if any(a == b != "tool" for a, b in pairwise(spoken)):
        yield "one role twice in a row"
    if "tool" in roles:
        yield "messages of a tool"
    if any(not message.content.strip() for message in prompt):
        yield "an empty message"
