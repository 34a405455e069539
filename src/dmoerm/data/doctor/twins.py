"""Near duplicates: prompts that are nearly the same and would be parted by a split, responses that are nearly the same.

Equal texts are counted in `repeats`; here are those that differ by a word, a mark, case or spaces (`near` says how they are found).
"""

from collections.abc import Iterator

from dmoerm.data.doctor.corpus import TEST, Corpus
from dmoerm.data.doctor.finding import Finding, first_places
from dmoerm.data.doctor.near import near_duplicate_groups, normalised, similarity
from dmoerm.data.doctor.wording import counted, part
from dmoerm.data.splits import split_by_prompt
from dmoerm.records import Message

__all__ = ["near_duplicate_prompts", "near_duplicate_responses", "nearly_identical_pairs"]

PROMPT_BYTES, RESPONSE_BYTES = 24, 200
"""Shorter prompts and responses are near duplicates only when they are equal but for case and spaces."""
RESPONSE_SAMPLING = 8
"""Candidates among responses are looked for by one in so many shingles."""
MANY_CROSSING = 0.01
"""Share of the test prompts with a near duplicate in training from which it is a warning."""
NEARLY_IDENTICAL = 0.9
"""Similarity of the two responses of a pair from which their ranks hang on next to nothing."""
LONGER_BY_LITTLE = 0.8
"""Ratio of lengths below which two texts cannot be that similar; saves the comparison."""


def near_duplicate_prompts(corpus: Corpus) -> Iterator[Finding]:
    """Different prompts that are nearly the same, and those of them that stand on both sides of the split between training and test."""
    first = corpus.first_of_prompt
    texts = [_text(corpus.comparisons[number].prompt) for number in first]
    groups = near_duplicate_groups(texts, PROMPT_BYTES)
    alike = sum(map(len, groups))
    yield Finding(
        "near_duplicate_prompts",
        "Nearly equal prompts" if groups else "No prompts are nearly equal",
        "note" if groups else "fine",
        f"{part(alike, len(first), 'prompt')} are nearly equal to another one, in {counted(len(groups), 'group')}" if groups else "none",
        "Prompts of one template are alike by nature; true copies tell a model little that is new." if groups else "",
        alike,
        len(first),
        examples=first_places(tuple(corpus.place(first[prompt]) for prompt in group[:2]) for group in groups),
    )
    yield _crossing(corpus, groups)


def _crossing(corpus: Corpus, groups: list[list[int]]) -> Finding:
    """Test prompts with a near duplicate that is trained on."""
    tested, trained, split = _sides(corpus)
    crossing = []
    for group in groups:
        for prompt in group:
            twin = next((other for other in group if other != prompt and other in trained), None)
            if prompt in tested and twin is not None:
                crossing.append((corpus.first_of_prompt[prompt], corpus.first_of_prompt[twin]))
    share = len(crossing) / len(tested) if tested else 0.0
    return Finding(
        "near_duplicates_across_split",
        "Nearly equal prompts on both sides of the test" if crossing else "No test prompt has a near duplicate in training",
        "warning" if share >= MANY_CROSSING else "note" if crossing else "fine",
        f"{part(len(crossing), len(tested), 'test prompt')} {split} have a near duplicate in training",
        "Look at the examples. Where the answer is the same, take one side out, or the test is easier than life." if crossing else "",
        len(crossing),
        len(tested),
        examples=first_places(((corpus.place(a), corpus.place(b)) for a, b in crossing), " (test) and "),
    )


def _sides(corpus: Corpus) -> tuple[set[int], set[int], str]:
    """Numbers of the prompts that are tested on and of those that are learnt from, and a word on how they were parted."""
    if any(file.role == TEST for file in corpus.files):
        sides: tuple[set[int], set[int]] = (set(), set())
        for number, prompt in enumerate(corpus.prompt_numbers.tolist()):
            sides[corpus.role(number) != TEST].add(prompt)
        return *sides, "of the test files"
    context = corpus.context
    firsts = [corpus.comparisons[number] for number in corpus.first_of_prompt]
    held_out = {id(comparison) for comparison in split_by_prompt(firsts, context.test_fraction, context.seed)[1]}
    tested = {prompt for prompt, comparison in enumerate(firsts) if id(comparison) in held_out}
    return tested, set(range(len(firsts))) - tested, f"of the hash split (seed {context.seed})"


def near_duplicate_responses(corpus: Corpus) -> Iterator[Finding]:
    """Responses to different prompts that are nearly the same text."""
    first: dict[str, int] = {}
    for number in corpus.preferences:
        for text in corpus.comparisons[number].responses:
            first.setdefault(text, number)
    texts = list(first)
    groups = []
    for group in near_duplicate_groups(texts, RESPONSE_BYTES, RESPONSE_SAMPLING):
        places = {int(corpus.prompt_numbers[first[texts[index]]]): first[texts[index]] for index in reversed(group)}
        if len(places) > 1:  # variants of a response to one prompt are what preference data are made of
            groups.append((len(group), sorted(places.values())))
    alike = sum(size for size, _ in groups)
    yield Finding(
        "near_duplicate_responses",
        "Nearly equal responses to different prompts" if groups else "No responses to different prompts are nearly equal",
        "note" if groups else "fine",
        f"{part(alike, len(texts), 'different response')} are nearly equal to one under another prompt" if groups else "none",
        "Look at the examples: templates, refusals and answers to copied prompts look like this." if groups else "",
        alike,
        len(texts),
        examples=first_places(tuple(corpus.place(number) for number in places[:2]) for _, places in groups),
    )


def nearly_identical_pairs(corpus: Corpus) -> Iterator[Finding]:
    """Ranked pairs whose two responses differ in next to nothing."""
    found: dict[int, None] = {}
    count = 0
    for number, chosen, rejected in corpus.pairs:
        first, second = (corpus.comparisons[number].responses[index] for index in (chosen, rejected))
        if first != second and _almost_the_same(first, second):
            found[number] = None
            count += 1
    total = len(corpus.pairs)
    yield Finding(
        "nearly_identical_pairs",
        "Pairs that hardly differ" if count else "No pair hardly differs",
        "note" if count else "fine",
        f"{part(count, total, 'pair')} rank two responses that are {NEARLY_IDENTICAL:.0%} the same text" if count else "none",
        "Keep them where the small difference is the point (a number, a sign); else they are noise." if count else "",
        count,
        total,
        examples=first_places(corpus.place(number) for number in found),
    )


def _almost_the_same(first: str, second: str) -> bool:
    short, long = sorted((len(first), len(second)))
    if short < LONGER_BY_LITTLE * long:
        return False
    a, b = normalised(first), normalised(second)
    # Texts that are nearly one share nearly every stretch, so one of a few must be found: a look that spares most comparisons.
    probes = (a[start : start + 8] for start in range(0, len(a), len(a) // 16 + 1))
    return any(probe in b for probe in probes) and similarity(a, b) >= NEARLY_IDENTICAL


def _text(prompt: tuple[Message, ...]) -> str:
    return "\n".join(message.content for message in prompt)
