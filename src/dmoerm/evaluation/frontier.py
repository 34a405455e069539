"""What perfect RL would reach on a pool: the KL-regularised optimum π(y|x) ∝ π₀(y|x) · exp(r(x, y)/β), with π₀ uniform over the pool.

Of all policies with the same mean KL from π₀ it has the highest mean reward, so sweeping β gives the reward–KL frontier, and the gold score
along it shows what is lost by optimising the proxy in earnest. One β holds for all prompts, as in RL: prompts on which the rewards lie
farther apart move first. β is chosen to reach given values of the mean KL, so a reward may be in any unit: scaling it, or shifting it in
a prompt, changes nothing. Another monotone map of it does, which best-of-n would not notice.

β → ∞ is π₀; β → 0 is the highest reward, equal ones sharing. A response without a reward gets no mass at any finite β, so with such
responses the frontier begins at the KL of leaving them out; a prompt without any reward stays at π₀.

Source: Korbak et al. 2022 (arXiv 2205.11275) and Rafailov et al. 2023 (arXiv 2305.18290) for the optimum.

G prompts, M members of the largest pool (smaller ones are padded), N points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmoerm.errors import DataError
from dmoerm.evaluation.gold_curves import PromptCurves, standardised_rewards
from dmoerm.evaluation.scorers import Rewards

__all__ = ["Tilt", "frontier_curves", "kl_targets"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

POINTS = 24
"""KL values of a frontier, besides those of its two ends."""

_DOUBLINGS = 200
_HALVINGS = 100
_KL_TOLERANCE = 1e-10


@dataclass(frozen=True, slots=True, eq=False)
class Tilt:
    """The rewards of all prompts, ready to be optimised.

    Attributes:
        below_GM: reward minus the highest of its prompt: 0 or less, −inf where there is none.
        member_GM: which places are members; the others are padding.
    """

    below_GM: FloatArray
    member_GM: BoolArray

    @classmethod
    def of(cls, rewards: Sequence[Rewards]) -> "Tilt":
        """From the rewards of every prompt.

        Raises:
            DataError: no prompts, or a pool without members.
        """
        if not rewards or not all(rewards):
            raise DataError("frontier: no prompts, or a pool without members; expected at least one of each.")
        width = max(map(len, rewards))
        below_GM = np.full((len(rewards), width), -math.inf)
        member_GM = np.zeros((len(rewards), width), dtype=np.bool_)
        for row, found in enumerate(rewards):
            values_M = np.array([-math.inf if reward is None else reward for reward in found])
            highest = values_M.max()
            # A prompt without any reward cannot be optimised: all its members are equal.
            below_GM[row, : len(found)] = values_M - highest if math.isfinite(highest) else 0.0
            member_GM[row, : len(found)] = True
        return cls(below_GM, member_GM)

    def policy(self, strength: float) -> FloatArray:
        """π for 1/β = `strength`, shape (G, M); 0 is π₀, infinity the single best response."""
        if strength == 0.0:
            mass_GM: FloatArray = self.member_GM.astype(np.float64)
        elif math.isinf(strength):
            mass_GM = (self.below_GM == 0.0).astype(np.float64)
        else:
            # The highest exponent is 0, so nothing overflows and no row sums to 0.
            mass_GM = np.exp(self.below_GM * strength)
        policy_GM: FloatArray = mass_GM / mass_GM.sum(axis=1, keepdims=True)
        return policy_GM

    def kl(self, policy_GM: FloatArray) -> FloatArray:
        """KL from π₀ on every prompt, nats, shape (G,)."""
        sizes_G1 = self.member_GM.sum(axis=1, keepdims=True)
        logs_GM = np.log(np.where(policy_GM > 0, policy_GM * sizes_G1, 1.0))
        kl_G: FloatArray = np.maximum(np.sum(policy_GM * logs_GM, axis=1), 0.0)
        return kl_G

    def strength_for(self, target_kl: float, low: float = 0.0) -> float | None:
        """1/β with that mean KL over prompts; None where no finite one has it.

        Args:
            target_kl: nats.
            low: a strength whose mean KL is known to be less.
        """
        # The mean KL never falls as the strength grows: its slope is the strength times the mean variance of the reward.
        finite_GM = self.below_GM[np.isfinite(self.below_GM) & (self.below_GM < 0.0)]
        if len(finite_GM) == 0:
            return None
        high = max(low, 1.0 / float(np.mean(-finite_GM)))
        for _ in range(_DOUBLINGS):
            if self._mean_kl(high) >= target_kl:
                break
            low, high = high, 2.0 * high
        else:
            return None
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            found = self._mean_kl(middle)
            if abs(found - target_kl) < _KL_TOLERANCE:
                return middle
            low, high = (middle, high) if found < target_kl else (low, middle)
        return high

    def _mean_kl(self, strength: float) -> float:
        return float(self.kl(self.policy(strength)).mean())


def kl_targets(sizes: Sequence[int], points: int = POINTS) -> FloatArray:
    """Values of the mean KL, equally spaced in d = √KL, above 0 and below that of one response a prompt, the largest there is."""
    largest = math.sqrt(float(np.mean(np.log(sizes))))
    return (largest * np.arange(1, points + 1) / (points + 1)) ** 2


def frontier_curves(rewards: Sequence[Rewards], gold: Sequence[Sequence[float]], targets_N: FloatArray) -> PromptCurves:
    """Gold, proxy and KL along the frontier of a reward.

    Args:
        rewards: by prompt, then by member; None where a member has none.
        gold: of the same members.
        targets_N: rising values of the mean KL, nats. Those that no β reaches (responses tie, or have no reward) are left out.

    Returns:
        A curve from β = ∞ over the targets to β = 0; its settings are β.

    Raises:
        DataError: no prompts, or a pool without members.
    """
    tilt = Tilt.of(rewards)
    shape = tilt.member_GM.shape
    gold_GM, proxy_GM = np.zeros(shape), np.full(shape, math.nan)
    for row, (scores, shown) in enumerate(zip(gold, standardised_rewards(rewards), strict=True)):
        gold_GM[row, : len(scores)] = scores
        proxy_GM[row, : len(shown)] = shown
    strengths = _strengths(tilt, targets_N)
    policies = [tilt.policy(strength) for strength in strengths]
    return PromptCurves(
        np.array([math.inf if strength == 0 else 1.0 / strength for strength in strengths]),
        np.stack([tilt.kl(policy_GM) for policy_GM in policies], axis=1),
        np.stack([np.sum(policy_GM * gold_GM, axis=1) for policy_GM in policies], axis=1),
        np.stack([_expected_known(proxy_GM, policy_GM) for policy_GM in policies], axis=1),
    )


def _strengths(tilt: Tilt, targets_N: FloatArray) -> list[float]:
    lowest = tilt._mean_kl(np.finfo(np.float64).tiny)  # without the responses that have no reward
    highest = tilt._mean_kl(math.inf)
    found, last = [0.0], 0.0
    for target in targets_N:
        if lowest < target < highest * (1.0 - 1e-9):
            strength = tilt.strength_for(float(target), last)
            if strength is not None:
                found.append(strength)
                last = strength
    return [*found, math.inf]


def _expected_known(proxy_GM: FloatArray, policy_GM: FloatArray) -> FloatArray:
    known_GM = ~np.isnan(proxy_GM)
    mass_G = np.sum(policy_GM * known_GM, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(mass_G > 0, np.sum(np.where(known_GM, policy_GM * proxy_GM, 0.0), axis=1) / mass_G, math.nan)
