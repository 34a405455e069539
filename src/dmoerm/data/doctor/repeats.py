"""What stands in the files more than once, exactly: comparisons, prompts of several files, one pair in both directions, one text twice."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import combinations

from dmoerm.data.doctor.corpus import TEST, TRAIN, Corpus
from dmoerm.data.doctor.finding import Finding, Table, first_places
from dmoerm.data.doctor.share import share_of
from dmoerm.data.doctor.wording import counted, part

__all__ = ["contradictions", "identical_responses", "prompts_in_several_files", "repeated_comparisons", "same_response_to_many_prompts"]

MANY_CONTRADICTIONS = 0.01
"""Share of the pairs from which contradictions are a problem and no slip."""
ENOUGH_SHARED_PAIRS = 10
"""Pairs that two files share before one of them can be said to have its columns swapped."""
MANY_PROMPTS = 5
"""Different prompts with the very same response from which it is worth a note."""

_Direction = tuple[int, int]
_PairKey = tuple[int, str, str]


def identical_responses(corpus: Corpus) -> Iterator[Finding]:
    """Comparisons in which two responses are the same text, and so cannot be ranked."""
    ranked: list[int] = []
    unranked: list[int] = []
    for number, comparison in enumerate(corpus.comparisons):
        if len(set(comparison.responses)) < len(comparison.responses):
            wrong = any(comparison.responses[pair.chosen] == comparison.responses[pair.rejected] for pair in comparison.pairs())
            (ranked if wrong else unranked).append(number)
    found = [*ranked, *unranked]
    total = len(corpus.comparisons)
    if not found:
        yield Finding("identical_responses", "No identical responses in a comparison", "fine", "none", count=0, total=total)
        return
    yield Finding(
        "identical_responses",
        "Identical responses",
        "problem" if ranked else "note",
        f"{part(len(found), total, 'comparison')} hold the same text twice, {len(ranked):,} of them rank it above itself",
        "Correct the rows. Training drops the comparisons whose responses are all the same.",
        len(found),
        total,
        examples=first_places(corpus.place(number) for number in found),
    )


def repeated_comparisons(corpus: Corpus) -> Iterator[Finding]:
    """Rows that say the same as an earlier one of the same side: prompt, responses and ranks, in whatever order the responses stand."""
    first: dict[tuple[object, ...], int] = {}
    twins = []
    for number in corpus.preferences:
        comparison = corpus.comparisons[number]
        ranked = tuple(sorted(zip(comparison.ranks, comparison.responses, strict=True)))
        earlier = first.setdefault((corpus.role(number), corpus.prompt_keys[number], ranked), number)
        if earlier != number:
            twins.append((earlier, number))
    total = len(corpus.preferences)
    if not twins:
        yield Finding("repeated_comparisons", "No comparison stands twice", "fine", "none", count=0, total=total)
        return
    yield Finding(
        "repeated_comparisons",
        "Repeated comparisons",
        "warning",
        f"{part(len(twins), total, 'comparison')} repeat an earlier one",
        "Remove them. Training drops those that repeat every byte; the others would count twice.",
        len(twins),
        total,
        examples=first_places((corpus.place(a), corpus.place(b)) for a, b in twins),
    )


def contradictions(corpus: Corpus) -> Iterator[Finding]:
    """Pairs that also stand the other way round, and files that turn most of the pairs which they share with another file."""
    seen: defaultdict[_PairKey, dict[bool, list[int]]] = defaultdict(dict)
    for number, chosen, rejected in corpus.pairs:
        texts = corpus.comparisons[number].responses
        if texts[chosen] != texts[rejected]:
            low, high = sorted((texts[chosen], texts[rejected]))
            seen[int(corpus.prompt_numbers[number]), low, high].setdefault(texts[chosen] == low, []).append(number)
    both = {key: (directions[True], directions[False]) for key, directions in seen.items() if len(directions) == 2}
    yield from _swapped_files(corpus, seen)
    if not both:
        yield Finding("contradictions", "No pair stands in both directions", "fine", "none", count=0, total=len(seen))
        return
    share = share_of([key in both for key in seen], [key[0] for key in seen])
    assert share is not None
    yield Finding(
        "contradictions",
        "The same pair in both directions",
        "problem" if share.value >= MANY_CONTRADICTIONS else "warning",
        f"{part(len(both), len(seen), 'different pair')} are ranked one way in one row and the other way in another",
        "Keep one direction, or a tie, where the rows are copies with swapped columns; votes of several people may disagree, and no model "
        "can agree with both.",
        len(both),
        len(seen),
        share,
        first_places(tuple(corpus.place(number) for number in sorted((a[0], b[0]))) for a, b in both.values()),
    )


def _swapped_files(corpus: Corpus, seen: dict[_PairKey, dict[bool, list[int]]]) -> Iterator[Finding]:
    shared: Counter[_Direction] = Counter()
    turned: Counter[_Direction] = Counter()
    example: dict[_Direction, tuple[int, int]] = {}
    for directions in seen.values():
        sides = {corpus.file_of[number]: (direction, number) for direction, numbers in directions.items() for number in numbers}
        for a, b in combinations(sorted(sides), 2):
            shared[a, b] += 1
            if sides[a][0] != sides[b][0]:
                turned[a, b] += 1
                example.setdefault((a, b), (sides[a][1], sides[b][1]))
    swapped = [files for files in shared if shared[files] >= ENOUGH_SHARED_PAIRS and turned[files] > shared[files] / 2]
    if swapped:
        yield Finding(
            "swapped_columns",
            "Swapped columns",
            "problem",
            f"{counted(len(swapped), 'pair')} of files rank most of the pairs that they share in opposite ways: in one of the two, "
            "chosen and rejected have changed places",
            "Find out which file is right, and swap the columns of the other.",
            len(swapped),
            examples=first_places((corpus.place(a), corpus.place(b)) for a, b in (example[files] for files in swapped)),
            table=Table(
                ("files", "shared pairs", "turned"),
                tuple((f"{corpus.files[a].name} and {corpus.files[b].name}", shared[a, b], turned[a, b]) for a, b in swapped),
            ),
        )


def prompts_in_several_files(corpus: Corpus) -> Iterator[Finding]:
    """Prompts that stand in training and in test files (a leak), or in more than one file of either kind."""
    places: defaultdict[int, dict[int, int]] = defaultdict(dict)
    for number in range(len(corpus.comparisons)):
        places[int(corpus.prompt_numbers[number])].setdefault(corpus.file_of[number], number)
    roles = {key: {corpus.files[file].role for file in found} for key, found in places.items()}
    leaked = [key for key, found in roles.items() if TEST in found and len(found) > 1]
    tested = sum(TEST in found for found in roles.values())
    if tested:
        yield Finding(
            "leaked_prompts",
            "Test prompts in the training files" if leaked else "No test prompt is in a training file",
            "problem" if leaked else "fine",
            f"{part(len(leaked), tested, 'test prompt')} are also trained on",
            "Remove them from the training files: what a model has seen is no test. A run refuses such files (data.allow_overlap)."
            if leaked
            else "",
            len(leaked),
            tested,
            examples=first_places(tuple(corpus.place(number) for number in places[key].values()) for key in leaked),
        )
    # Label files name the prompts of the others by intent.
    several = [key for key, found in places.items() if len(found) > 1 and roles[key] in ({TRAIN}, {TEST})]
    if several:
        yield Finding(
            "prompts_in_several_files",
            "Prompts in several files",
            "note",
            f"{part(len(several), len(places), 'prompt')} stand in more than one file",
            "No harm: one hash of the prompt decides on its side in every file. Split by hand, and they would leak.",
            len(several),
            len(places),
            examples=first_places(tuple(corpus.place(number) for number in places[key].values()) for key in several),
        )


def same_response_to_many_prompts(corpus: Corpus) -> Iterator[Finding]:
    """One text as the response to many different prompts: canned answers, refusals, placeholders."""
    prompts: defaultdict[str, dict[int, int]] = defaultdict(dict)
    won: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    for number in corpus.preferences:
        for text in corpus.comparisons[number].responses:
            prompts[text].setdefault(int(corpus.prompt_numbers[number]), number)
    canned = sorted((text for text, found in prompts.items() if len(found) >= MANY_PROMPTS), key=lambda text: (-len(prompts[text]), text))
    if not canned:
        yield Finding("canned_responses", "No response stands under many prompts", "fine", "none", count=0, total=len(prompts))
        return
    known = set(canned)
    for number, chosen, rejected in corpus.pairs:
        texts = corpus.comparisons[number].responses
        won[texts[chosen]] += texts[chosen] in known
        lost[texts[rejected]] += texts[rejected] in known
    rows = []
    for text in canned[:5]:
        short = " ".join(text.split())
        rows.append((short if len(short) <= 30 else f"{short[:29]}…", len(prompts[text]), won[text], lost[text]))
    affected = {number for text in canned for number in prompts[text].values()}
    yield Finding(
        "canned_responses",
        "One response to many prompts",
        "note",
        f"{counted(len(canned), 'text')} stand under {MANY_PROMPTS} or more different prompts each",
        "Look whether they are placeholders or failed generations; a model learns such a text by heart.",
        len(canned),
        len(prompts),
        examples=first_places(corpus.place(number) for number in sorted(affected)),
        table=Table(("response", "prompts", "pairs won", "lost"), tuple(rows)),
    )
