"""The ranking loss over all ranked pairs of a comparison, for one reward or for K experts at once.

Shapes: B rows (responses), K experts, P pairs.
"""

import torch
from torch import Tensor

__all__ = ["pairwise_loss", "ranking_loss"]


def pairwise_loss(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor | float = 0.0) -> Tensor:
    """Bradley–Terry loss of each pair, −log σ(chosen − rejected − margin), shape (P,), nats, lower is better.

    Source: Bradley & Terry (1952); the margin as in Llama 2 (arXiv 2307.09288, eq. 2).
    """
    return -torch.nn.functional.logsigmoid(chosen_P - rejected_P - margin_P)


def ranking_loss(
    rewards_BK: Tensor, chosen_P: Tensor, rejected_P: Tensor, expert_P: Tensor, weight_P: Tensor, margin_P: Tensor | float = 0.0
) -> Tensor:
    """Sum over experts of their mean ranking loss; an expert without a label in the batch adds nothing.

    Args:
        rewards_BK: scalar of every row under every expert.
        chosen_P: row of the better response.
        rejected_P: row of the worse response.
        expert_P: which expert's label this is.
        weight_P: 1 / (number of pairs of the same comparison and expert), so that each comparison weighs 1 for each expert.
        margin_P: by how much the better response should lead, reward units.

    Returns:
        Scalar, nats; ln 2 times the number of experts with a label when all rewards are equal.

    Raises:
        ValueError: there is no pair.

    Source: InstructGPT (arXiv 2203.02155, eq. 1) for averaging over the pairs of a comparison.
    """
    if chosen_P.numel() == 0:
        raise ValueError("ranking_loss needs at least one pair")
    loss_P = pairwise_loss(rewards_BK[chosen_P, expert_P], rewards_BK[rejected_P, expert_P], margin_P)
    experts = rewards_BK.shape[1]
    total_K = torch.zeros(experts, dtype=loss_P.dtype, device=loss_P.device).index_add(0, expert_P, loss_P * weight_P)
    mass_K = torch.zeros(experts, dtype=loss_P.dtype, device=loss_P.device).index_add(0, expert_P, weight_P)
    return (total_K / mass_K.clamp_min(1e-12)).sum()
