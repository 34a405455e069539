"""What best-of-n picks, exactly: the probability of every response to be the one with the highest reward among n.

Two readings of a pool:

- `finite`: the pool is the policy, uniform over its members, and n responses are drawn from it with replacement. A member, or a group of
  members with equal rewards, is the best with probability (C/m)^n − (B/m)^n, where C of the m members have that reward or less and B have
  less. Expected gold and KL(best-of-n ‖ pool) are exact for every n; nothing is sampled.
- `samples`: the pool holds m samples of one policy. The mean over all subsets of n of them, drawn without replacement, is an unbiased
  estimate of what best-of-n of that policy reaches, for n up to m: (binom(C, n) − binom(B, n)) / binom(m, n). The KL is that of n
  continuous draws, log n − (n − 1)/n, an upper bound for any policy (Beirami et al. 2024, arXiv 2401.01879).

Members with equal rewards share their probability. A response that has no reward is picked only where all n have none. A reward counts by
its order alone: best-of-n is the same under any increasing function of it.

Source: Gao, Schulman & Hilton 2022 (arXiv 2210.10760); Nakano et al. 2021 (arXiv 2112.09332) for the
estimator over subsets.

G prompts, M members of a pool, N values of n.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.gold_curves import PromptCurves, standardised_rewards
from dmoerm.evaluation.scorers import Rewards

__all__ = ["Regime", "best_of_n_curves", "kl_bound", "n_grid", "random_curves", "selection_kl", "selection_probabilities"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

Regime = Literal["finite", "samples"]

STEPS_PER_POOL = 8
"""The default largest n of a finite pool, in pools: the best member is then among the n draws in all but exp(−8) of cases."""


def n_grid(sizes: Sequence[int], regime: Regime, max_n: int | None = None) -> IntArray:
    """Values of n, about two for each doubling: 1, 2, 3, 4, 6, 8, 12, 16, 24 … and the largest.

    Args:
        sizes: members of every pool.
        regime: of the pools.
        max_n: the largest; None is eight times the largest finite pool, or the smallest pool of samples.

    Raises:
        ConfigError: below 1, or more samples than the smallest pool has.
    """
    if max_n is None:
        max_n = STEPS_PER_POOL * max(sizes) if regime == "finite" else min(sizes)
    if max_n < 1:
        raise ConfigError(f"max_n: {max_n}; expected at least 1")
    if regime == "samples" and max_n > min(sizes):
        raise ConfigError(
            f"max_n: {max_n}; the smallest pool has {min(sizes)} samples, and subsets are drawn without replacement. Give more samples, or "
            f"take the pool as the policy (finite)"
        )
    steps = {round(factor * 2**power) for power in range(max_n.bit_length()) for factor in (1, 1.5)}
    return np.array(sorted({1, max_n} | {n for n in steps if n <= max_n}), dtype=np.int64)


def selection_probabilities(rewards: Rewards, n_N: IntArray, regime: Regime) -> FloatArray:
    """The probability of every member to be picked, shape (M, N); every column sums to 1.

    Args:
        rewards: one a member, None where it has none.
        n_N: the values of n, each at least 1, and in samples at most M.
        regime: how the n are drawn.
    """
    size = len(rewards)
    values_M = np.array([-math.inf if reward is None else reward for reward in rewards])
    _, group_M, counts_U = np.unique(values_M, return_inverse=True, return_counts=True)
    reached_U = np.cumsum(counts_U)
    below_U = reached_U - counts_U
    share = _all_at_most_finite if regime == "finite" else _all_at_most_samples
    mass_UN = share(reached_U, size, n_N) - share(below_U, size, n_N)
    return (mass_UN / counts_U[:, None])[group_M]


def selection_kl(probabilities_MN: FloatArray) -> FloatArray:
    """KL from the uniform choice among the members, in nats, shape (N,): 0 to log M."""
    size = len(probabilities_MN)
    logs = np.log(np.where(probabilities_MN > 0, probabilities_MN * size, 1.0))
    kl_N: FloatArray = np.maximum(np.sum(probabilities_MN * logs, axis=0), 0.0)
    return kl_N


def kl_bound(n_N: IntArray) -> FloatArray:
    """The bound log n − (n − 1)/n, nats: at least the KL of best-of-n from its policy, and equal to it where no two responses tie."""
    return np.log(n_N) - (n_N - 1) / n_N


def best_of_n_curves(rewards: Sequence[Rewards], gold: Sequence[Sequence[float]], n_N: IntArray, regime: Regime) -> PromptCurves:
    """Gold, proxy and KL of best-of-n on every prompt.

    Args:
        rewards: by prompt, then by member; None where a member has none.
        gold: of the same members.
        n_N: the values of n.
        regime: of the pools.

    Raises:
        DataError: no prompts, or a pool without members.
    """
    if not rewards or not all(rewards):
        raise DataError("best-of-n: no prompts, or a pool without members; expected at least one of each.")
    shown = standardised_rewards(rewards)
    kl, gold_rows, proxy_rows = [], [], []
    for found, proxy_M, scores in zip(rewards, shown, gold, strict=True):
        probabilities_MN = selection_probabilities(found, n_N, regime)
        kl.append(selection_kl(probabilities_MN) if regime == "finite" else kl_bound(n_N))
        gold_rows.append(np.asarray(scores, dtype=np.float64) @ probabilities_MN)
        proxy_rows.append(expected_proxy(proxy_M, probabilities_MN))
    return PromptCurves(n_N.astype(np.float64), np.array(kl), np.array(gold_rows), np.array(proxy_rows))


def random_curves(gold: Sequence[Sequence[float]], n_N: IntArray, regime: Regime) -> PromptCurves:
    """A reward that knows nothing, averaged over all orders of the members: gold stays at their mean, and KL is spent all the same."""
    kl, gold_rows = [], []
    for scores in gold:
        any_order = [float(rank) for rank in range(len(scores))]
        kl.append(selection_kl(selection_probabilities(list(any_order), n_N, regime)) if regime == "finite" else kl_bound(n_N))
        gold_rows.append(np.full(len(n_N), np.mean(scores)))
    proxy = np.full((len(gold), len(n_N)), math.nan)
    return PromptCurves(n_N.astype(np.float64), np.array(kl), np.array(gold_rows), proxy)


def expected_proxy(proxy_M: FloatArray, probabilities_MN: FloatArray) -> FloatArray:
    """Mean reward of what is picked, over the members that have one; NaN where nothing with a reward can be picked."""
    has = ~np.isnan(proxy_M)
    mass_N = probabilities_MN[has].sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(mass_N > 0, proxy_M[has] @ probabilities_MN[has] / mass_N, math.nan)


def _all_at_most_finite(counts_U: IntArray, size: int, n_N: IntArray) -> FloatArray:
    """Probability that all n draws fall among `counts` of the members."""
    return (counts_U[:, None] / size) ** n_N[None, :]


def _all_at_most_samples(counts_U: IntArray, size: int, n_N: IntArray) -> FloatArray:
    """The same without replacement: binom(counts, n) / binom(size, n), by logarithms, since the binomials overflow."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, size + 1)))])
    fits = counts_U[:, None] >= n_N[None, :]
    left_UN = np.where(fits, counts_U[:, None] - n_N[None, :], 0)
    logs = log_factorial[counts_U][:, None] - log_factorial[left_UN] - log_factorial[size] + log_factorial[size - n_N][None, :]
    return np.where(fits, np.exp(np.where(fits, logs, 0.0)), 0.0)
