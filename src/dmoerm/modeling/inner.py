"""The inner model of one category: heads of the experts, the aggregator over their vectors, and the calibration of its reward.

A row arrives as K member vectors z_1 … z_K. Member k's scalar is r_k = head_k · z_k. The aggregator is the mean of the standardised
r_k plus a multi-layer perceptron over the concatenated vectors; the perceptron starts at zero and is held there by strong decay, so
that a hundred comparisons cannot ruin what the experts know. Several copies of the aggregator, fitted on bootstrap samples of the same
vectors, give the uncertainty. Rewards of a category are divided by one temperature and shifted to one reference; comparisons within
a category cannot identify more than that.

A category with too few capability labels has no experts; its task model is then the only member.

Shapes: B rows, K members, D hidden, H hidden units of the perceptron, S bootstrap copies (the first is the aggregator itself).
Source: DMoERM (arXiv 2403.01197) for the perceptron over concatenated vectors; WCO and UWO after Coste et al. (arXiv 2310.02743),
taken here over the standardised members of one category.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dmoerm.errors import ConfigError
from dmoerm.taxonomy import TASK_MEMBER

__all__ = ["AGGREGATIONS", "Aggregation", "Aggregator", "InnerModel", "Judgement"]

Aggregation = Literal["mlp", "mean", "wco", "uwo", "task"]
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)
"""mlp: the aggregator. mean, wco (worst member), uwo (mean minus penalty times variance): over standardised members.
task: the task model."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the inner model says of B rows.

    Attributes:
        reward_B: calibrated reward, log-odds units.
        members_BK: standardised r_k, task model included where it is a member.
        uncertainty_B: standard deviation of the reward over bootstrapped aggregators, reward units.
    """

    reward_B: Tensor
    members_BK: Tensor
    uncertainty_B: Tensor


class Aggregator(nn.Module):
    """S aggregators side by side: weights over standardised member scalars plus a perceptron over standardised, concatenated vectors."""

    def __init__(self, members: int, hidden_size: int, units: int, copies: int) -> None:
        super().__init__()
        width = members * hidden_size
        self.weights_SK = nn.Parameter(torch.full((copies, members), 1.0 / members))
        self.inner_SHV = nn.Parameter(torch.empty(copies, units, width))
        self.inner_bias_SH = nn.Parameter(torch.zeros(copies, units))
        self.slope_S = nn.Parameter(torch.full((copies,), 0.25))
        self.outer_SH = nn.Parameter(torch.zeros(copies, units))
        nn.init.uniform_(self.inner_SHV, -(width**-0.5), width**-0.5)

    def forward(self, scalars_BK: Tensor, vectors_BV: Tensor) -> Tensor:
        """Raw rewards of every copy, shape (B, S)."""
        hidden_BSH = torch.einsum("bv,shv->bsh", vectors_BV, self.inner_SHV) + self.inner_bias_SH
        active_BSH = torch.where(hidden_BSH > 0, hidden_BSH, self.slope_S[:, None] * hidden_BSH)
        return scalars_BK @ self.weights_SK.T + torch.einsum("bsh,sh->bs", active_BSH, self.outer_SH)


class InnerModel(nn.Module):
    """Heads, aggregator and calibration of one category. The adapters themselves live in the backbone.

    Args:
        category: name of the category.
        capabilities: names of the experts, in the order of their stack; empty when the task model judges alone.
        hidden_size: D.
        units: H.
        copies: S, 1 + the number of bootstrapped aggregators.
        with_task_member: the task model is a member beside its experts (always so when there are none).
    """

    def __init__(
        self, category: str, capabilities: tuple[str, ...], hidden_size: int, *, units: int, copies: int, with_task_member: bool = False
    ) -> None:
        super().__init__()
        self.category = category
        self.capabilities = tuple(capabilities)
        self.with_task_member = with_task_member or not capabilities
        self.members = ((TASK_MEMBER,) if self.with_task_member else ()) + self.capabilities
        count = len(self.members)
        self.task_head_D = nn.Parameter(torch.zeros(hidden_size))
        self.heads_KD = nn.Parameter(torch.zeros(count, hidden_size))
        self.aggregator = Aggregator(count, hidden_size, units, copies)
        self.scalar_mean_K: Tensor
        self.scalar_std_K: Tensor
        self.vector_mean_KD: Tensor
        self.vector_std_KD: Tensor
        self.temperature_A: Tensor
        self.reference_A: Tensor
        self.register_buffer("scalar_mean_K", torch.zeros(count))
        self.register_buffer("scalar_std_K", torch.ones(count))
        self.register_buffer("vector_mean_KD", torch.zeros(count, hidden_size))
        self.register_buffer("vector_std_KD", torch.ones(count, hidden_size))
        self.register_buffer("temperature_A", torch.ones(len(AGGREGATIONS)))
        self.register_buffer("reference_A", torch.zeros(len(AGGREGATIONS)))

    def scalars(self, vectors_BKD: Tensor) -> Tensor:
        """r_k of every member, unstandardised, shape (B, K)."""
        return (vectors_BKD * self.heads_KD).sum(-1)

    def standardise(self, vectors_BKD: Tensor) -> tuple[Tensor, Tensor]:
        """Member scalars (B, K) and concatenated vectors (B, K·D), each to mean 0 and standard deviation 1 over the training rows."""
        scalars_BK = (self.scalars(vectors_BKD) - self.scalar_mean_K) / self.scalar_std_K
        return scalars_BK, ((vectors_BKD - self.vector_mean_KD) / self.vector_std_KD).flatten(1)

    def raw_rewards(self, vectors_BKD: Tensor, *, uwo_penalty: float) -> dict[Aggregation, Tensor]:
        """Uncalibrated rewards by aggregation, shape (B,) each; "mlp" has shape (B, S). "task" only where the task model is a member."""
        scalars_BK, vectors_BV = self.standardise(vectors_BKD)
        rewards: dict[Aggregation, Tensor] = {"mlp": self.aggregator(scalars_BK, vectors_BV), **aggregate(scalars_BK, uwo_penalty)}
        if self.with_task_member:
            rewards["task"] = scalars_BK[:, 0]
        return rewards

    def judge(self, vectors_BKD: Tensor, *, aggregation: Aggregation = "mlp", uwo_penalty: float = 0.5) -> Judgement:
        """Calibrated rewards of B rows from their member vectors, shape (B, K, D).

        Raises:
            ConfigError: "task" is asked of a model whose task model is not a member.
        """
        raw = self.raw_rewards(vectors_BKD, uwo_penalty=uwo_penalty)
        if aggregation not in raw:
            raise ConfigError(
                f"aggregation {aggregation!r} is not available for category {self.category!r}; choose one of {', '.join(raw)}"
            )
        chosen = raw["mlp"][:, 0] if aggregation == "mlp" else raw[aggregation]
        index, mlp = AGGREGATIONS.index(aggregation), AGGREGATIONS.index("mlp")
        copies_BS = raw["mlp"][:, 1:] / self.temperature_A[mlp]
        uncertainty_B = copies_BS.std(1) if copies_BS.shape[1] > 1 else torch.zeros_like(chosen)
        return Judgement(
            reward_B=(chosen - self.reference_A[index]) / self.temperature_A[index],
            members_BK=self.standardise(vectors_BKD)[0],
            uncertainty_B=uncertainty_B,
        )


def aggregate(scalars_BK: Tensor, uwo_penalty: float) -> dict[Aggregation, Tensor]:
    """Mean, worst case (WCO) and uncertainty-weighted (UWO) reward over standardised members.

    Args:
        scalars_BK: standardised member scalars, shape (B, K).
        uwo_penalty: λ of mean − λ · variance; the variance divides by K (ddof 0), so one member has variance 0. λ = 0 is the mean.
    """
    mean_B = scalars_BK.mean(1)
    return {"mean": mean_B, "wco": scalars_BK.amin(1), "uwo": mean_B - uwo_penalty * scalars_BK.var(1, correction=0)}
