"""What the choice of words alone gives away: a bag of words, measured on prompts that it has not seen, and the words that weigh most.

The list of words is the point: a control token, a model's name or "sorry" at its top says more than the figure.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from dmoerm.data.doctor.corpus import Corpus
from dmoerm.data.doctor.finding import Finding, NotChecked, Table
from dmoerm.data.doctor.held_out import ENOUGH_PAIRS, cross_validated_agreement
from dmoerm.data.doctor.wording import counted, share_text
from dmoerm.data.pairwise_logistic import fit_differences

__all__ = ["words"]

SAMPLE = 5_000
"""Pairs that are looked at, about."""
TELLING, REVEALING = 0.55, 0.75
"""Agreement from which words are worth a note, and from which they give the answer away."""
_MOST_WORDS, _MOST_CHARACTERS, _SHOWN, _STRENGTH = 30_000, 4_000, 8, 1.0


def words(corpus: Corpus) -> Iterator[Finding | NotChecked]:
    """Logistic regression on the difference of tf-idf vectors, as the baseline `bag_of_words` of an evaluation, with a fixed penalty."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    numbers = corpus.sample(SAMPLE)
    pairs = corpus.pairs_of(numbers)
    if len(pairs) < ENOUGH_PAIRS:
        yield NotChecked("words", "Bag of words", f"{counted(len(pairs), 'ranked pair')}; {ENOUGH_PAIRS} are needed")
        return
    row: dict[tuple[int, int], int] = {}
    for number in numbers:
        for index in range(len(corpus.comparisons[number].responses)):
            row[number, index] = len(row)
    texts = [corpus.comparisons[number].responses[index][:_MOST_CHARACTERS] for number, index in row]
    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True, min_df=2, max_features=_MOST_WORDS)
    try:
        vectors = vectorizer.fit_transform(texts)
    except ValueError:  # no word, or none that comes twice
        yield NotChecked("words", "Bag of words", "no word stands in two responses")
        return
    chosen = [row[number, winner] for number, winner, _ in pairs]
    rejected = [row[number, loser] for number, _, loser in pairs]
    difference_PV = vectors[chosen] - vectors[rejected]
    share = cross_validated_agreement(corpus, pairs, difference_PV, _STRENGTH)
    if share is None:
        yield NotChecked("words", "Bag of words", "all prompts share one fold")
        return
    revealing = share.low > 0.5 and share.value >= REVEALING
    telling = share.low > 0.5 and share.value >= TELLING
    yield Finding(
        "words",
        "Words that give the winner away" if revealing else "Bag of words",
        "warning" if revealing else "note" if telling else "fine",
        f"the words alone, without the prompt, agree with {share_text(share)} of {share.n:,} held-out pairs",
        "Look at the words: marks of a template, names and phrases of one author are no quality. A reward model must beat this figure."
        if telling
        else "",
        share=share,
        table=_heaviest(vectorizer, difference_PV) if telling else None,
    )


def _heaviest(vectorizer: Any, difference_PV: Any) -> Table:
    weights_V = fit_differences(difference_PV, np.ones(difference_PV.shape[0]), _STRENGTH)
    names = vectorizer.get_feature_names_out()
    order = np.argsort(weights_V, kind="stable")
    winning = " ".join(str(names[index]) for index in order[::-1][:_SHOWN] if weights_V[index] > 0)
    losing = " ".join(str(names[index]) for index in order[:_SHOWN] if weights_V[index] < 0)
    return Table(("words", "by weight"), (("of winners", winning), ("of losers", losing)))
