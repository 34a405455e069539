"""Scorers that any reward model must beat: chance, length, bag of words, and the record of the answering models.

Each has `fit(comparisons)` and `score(comparison)`; their rewards are log-odds, so that calibration and log loss can be read too.
A new one is a class here, a row in `BASELINES`, a test and a line in the docs. scikit-learn is imported when a fit needs it.

P pairs, V words.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from dmoerm.data.pairwise_logistic import fit_differences
from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.pair_table import Scored
from dmoerm.records import Comparison, prompt_hash

__all__ = ["BASELINES", "AuthorPrior", "BagOfWords", "Baseline", "Chance", "LongerResponse", "RandomDraws", "score_baselines"]

FloatArray = NDArray[np.float64]


class Baseline(Protocol):
    """What a baseline offers. `needs_fit` is False where `score` works without training comparisons."""

    needs_fit: ClassVar[bool]

    def fit(self, comparisons: Sequence[Comparison]) -> Self:
        """Learn from training comparisons; returns itself."""
        ...

    def score(self, comparison: Comparison) -> tuple[float, ...]:
        """One reward a response, higher is better, log-odds."""
        ...


class Chance:
    """The expectation of guessing, without the noise of a draw: all rewards are equal, so each pair counts one half."""

    needs_fit: ClassVar[bool] = False

    def fit(self, comparisons: Sequence[Comparison]) -> Self:
        """Nothing to learn."""
        return self

    def score(self, comparison: Comparison) -> tuple[float, ...]:
        """Zeros."""
        return (0.0,) * len(comparison.responses)


class RandomDraws:
    """Guessing with an actual draw, for null runs: a number in 0 to 1 that depends on seed, comparison id and position only."""

    needs_fit: ClassVar[bool] = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, comparisons: Sequence[Comparison]) -> Self:
        """Nothing to learn."""
        return self

    def score(self, comparison: Comparison) -> tuple[float, ...]:
        """Uniform numbers in 0 to 1, the same in whatever order comparisons are scored."""
        digest = hashlib.sha256(f"{self.seed}:{comparison.id}".encode()).digest()
        draws = np.random.default_rng(int.from_bytes(digest[:8], "big")).random(len(comparison.responses))
        return tuple(draws.tolist())


class LongerResponse:
    """The response with more characters wins.

    `fit` learns only how much a thousand characters weigh (one number, by logistic regression), never the direction: where the training
    data prefer the shorter response, the weight is next to nothing but longer still wins.
    """

    needs_fit: ClassVar[bool] = False
    smallest_weight: ClassVar[float] = 1e-6

    def __init__(self) -> None:
        self.weight_per_thousand_characters = 1.0

    def fit(self, comparisons: Sequence[Comparison]) -> Self:
        """Learn the weight of length.

        Raises:
            DataError: no strictly ranked pair.
        """
        pairs = _training_pairs(comparisons)
        lengths = [[len(response) / 1000.0 for response in comparison.responses] for comparison in comparisons]
        difference_P1 = np.array([[lengths[number][chosen] - lengths[number][rejected]] for number, chosen, rejected in pairs])
        weight = float(fit_differences(difference_P1, _pair_weights(pairs), strength=1.0)[0])
        self.weight_per_thousand_characters = max(weight, self.smallest_weight)
        return self

    def score(self, comparison: Comparison) -> tuple[float, ...]:
        """Characters in thousands, times the weight."""
        return tuple(self.weight_per_thousand_characters * len(response) / 1000.0 for response in comparison.responses)


class BagOfWords:
    """Logistic regression on the difference of the responses' tf-idf vectors: what the choice of words alone gives away.

    The prompt is not read. Words are runs of letters and digits, so text written without spaces is one word a clause. The L2 strength is
    chosen by cross-validated log loss on folds grouped by prompt. Word statistics (not labels) come from all training responses.
    """

    needs_fit: ClassVar[bool] = True
    strengths: ClassVar[tuple[float, ...]] = (0.01, 0.1, 1.0, 10.0, 100.0)
    n_folds: ClassVar[int] = 5

    def __init__(self) -> None:
        self.strength = 1.0
        self._vectorizer: Any = None
        self._coefficients_V: FloatArray | None = None

    def fit(self, comparisons: Sequence[Comparison]) -> Self:
        """Learn the weight of every word.

        Raises:
            DataError: no strictly ranked pair, or no word in any response.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer

        pairs = _training_pairs(comparisons)
        starts = np.cumsum([0, *(len(comparison.responses) for comparison in comparisons)])
        vectorizer = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)
        try:
            vectors = vectorizer.fit_transform([response for comparison in comparisons for response in comparison.responses])
        except ValueError as error:
            raise DataError(f"bag_of_words: no word in the responses of {len(comparisons)} training comparisons ({error}).") from error
        chosen = [starts[number] + winner for number, winner, _ in pairs]
        rejected = [starts[number] + loser for number, _, loser in pairs]
        difference_PV = vectors[chosen] - vectors[rejected]
        weight_P = _pair_weights(pairs)
        self.strength = self._choose_strength(difference_PV, weight_P, [prompt_hash(comparisons[number].prompt) for number, _, _ in pairs])
        self._coefficients_V = fit_differences(difference_PV, weight_P, self.strength)
        self._vectorizer = vectorizer
        return self

    def score(self, comparison: Comparison) -> tuple[float, ...]:
        """Weighted words of each response.

        Raises:
            DataError: `fit` was not called.
        """
        if self._coefficients_V is None:
            raise DataError("bag_of_words has seen no training comparisons; call fit before score.")
        return tuple((self._vectorizer.transform(comparison.responses) @ self._coefficients_V).tolist())

    def _choose_strength(self, difference_PV: Any, weight_P: FloatArray, prompts: Sequence[str]) -> float:
        from sklearn.model_selection import GroupKFold

        n_folds = min(self.n_folds, len(set(prompts)))
        if n_folds < 2:
            return self.strength
        folds = list(GroupKFold(n_folds).split(difference_PV, groups=prompts))
        losses = [sum(_held_out_loss(difference_PV, weight_P, fold, strength) for fold in folds) for strength in self.strengths]
        return self.strengths[int(np.argmin(losses))]


class AuthorPrior:
    """The model that won more often in training wins; no text is read.

    A reward is the logit of the author's smoothed win rate. An author that training did not show (or that is unknown) gets the mean reward
    of those it did; where it showed none, all rewards are 0 and agreement is that of chance.
    """

    needs_fit: ClassVar[bool] = True
    pseudo_wins: ClassVar[float] = 1.0

    def __init__(self) -> None:
        self.rewards: dict[str, float] | None = None

    def fit(self, comparisons: Sequence[Comparison]) -> Self:
        """Count wins; every pair gives a win to one author and a loss to the other.

        Raises:
            DataError: no strictly ranked pair.
        """
        wins: defaultdict[str, float] = defaultdict(float)
        losses: defaultdict[str, float] = defaultdict(float)
        pairs = _training_pairs(comparisons)
        for (number, winner, loser), weight in zip(pairs, _pair_weights(pairs).tolist(), strict=True):
            authors = _authors(comparisons[number])
            if (name := authors[winner]) is not None:
                wins[name] += weight
            if (name := authors[loser]) is not None:
                losses[name] += weight
        names = sorted({*wins, *losses})
        self.rewards = {name: math.log((wins[name] + self.pseudo_wins) / (losses[name] + self.pseudo_wins)) for name in names}
        return self

    def score(self, comparison: Comparison) -> tuple[float, ...]:
        """The record of each response's author.

        Raises:
            DataError: `fit` was not called.
        """
        if self.rewards is None:
            raise DataError("author_prior has seen no training comparisons; call fit before score.")
        mean = sum(self.rewards.values()) / len(self.rewards) if self.rewards else 0.0
        return tuple(mean if author is None else self.rewards.get(author, mean) for author in _authors(comparison))


BASELINES: dict[str, type[Baseline]] = {
    "random": Chance,
    "longer": LongerResponse,
    "bag_of_words": BagOfWords,
    "author_prior": AuthorPrior,
}


def score_baselines(
    training: Sequence[Comparison], comparisons: Sequence[Comparison], names: Iterable[str] | None = None
) -> dict[str, list[Scored]]:
    """Fit baselines on training comparisons and score others with them.

    Args:
        training: what they may learn from; empty leaves out those that must learn.
        comparisons: what they score; must share no prompt with `training`.
        names: keys of `BASELINES`; None means all that can be had.

    Returns:
        Baseline name to scored comparisons, in the given order.

    Raises:
        ConfigError: an unknown name, or one that must learn while `training` is empty.
        DataError: a prompt is in both, or `training` has no strictly ranked pair.
    """
    wanted = [name for name, kind in BASELINES.items() if training or not kind.needs_fit] if names is None else list(names)
    for name in wanted:
        if name not in BASELINES:
            raise ConfigError(f"baseline {name!r} is unknown; expected one of {', '.join(BASELINES)}.")
        if BASELINES[name].needs_fit and not training:
            raise ConfigError(
                f"baseline {name!r} learns from training comparisons and none were given. Leave it out, or give the training file."
            )
    shared = {prompt_hash(c.prompt) for c in training} & {prompt_hash(c.prompt) for c in comparisons}
    if shared:
        raise DataError(
            f"{len(shared)} prompts are in the training and in the scored comparisons; split by prompt, or baselines will be too good."
        )
    fitted: Mapping[str, Baseline] = {name: BASELINES[name]().fit(training) if training else BASELINES[name]() for name in wanted}
    return {name: [Scored(c, baseline.score(c)) for c in comparisons] for name, baseline in fitted.items()}


_TrainingPair = tuple[int, int, int]  # number of the comparison, chosen response, rejected response


def _training_pairs(comparisons: Sequence[Comparison]) -> list[_TrainingPair]:
    pairs = [(number, pair.chosen, pair.rejected) for number, comparison in enumerate(comparisons) for pair in comparison.pairs()]
    if not pairs:
        raise DataError(f"No strictly ranked pair in {len(comparisons)} training comparisons; a baseline needs at least one to learn from.")
    return pairs


def _pair_weights(pairs: Sequence[_TrainingPair]) -> FloatArray:
    # As in the metrics, each comparison weighs the same.
    number_P = np.array([number for number, _, _ in pairs])
    return np.asarray(1.0 / np.bincount(number_P)[number_P], dtype=np.float64)


def _authors(comparison: Comparison) -> tuple[str | None, ...]:
    return comparison.authors or (None,) * len(comparison.responses)


def _held_out_loss(difference_PV: Any, weight_P: FloatArray, fold: tuple[Any, Any], strength: float) -> float:
    train, held_out = fold
    margin_P = difference_PV[held_out] @ fit_differences(difference_PV[train], weight_P[train], strength)
    return float((weight_P[held_out] * np.logaddexp(0.0, -margin_P)).sum())
