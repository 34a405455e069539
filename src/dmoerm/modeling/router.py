"""The outer layer: from the prompt (never the response) to one category, with a calibrated probability.

A linear classifier on a pooled vector of the prompt. By default that vector comes from the bare backbone, so routing adds no weights
to speak of; with `features: finetuned` it comes from a task adapter of its own, named `ROUTER`. Below `general_below` the router is
unsure and the `general` inner model judges.

Shapes: B prompts, D hidden, T categories.
"""

import torch
from torch import Tensor, nn

from dmoerm.taxonomy import GENERAL

__all__ = ["ROUTER", "Router"]

ROUTER = "router"
"""Name of the adapter slot of a fine-tuned router."""


class Router(nn.Module):
    """Linear classifier with a temperature.

    Args:
        categories: names, in the order of the outputs.
        hidden_size: D.
        general_below: probability of the best category under which `GENERAL` is chosen, 0 to 1.
        finetuned: the prompt vectors come from the adapter `ROUTER` and not from the bare backbone.
    """

    def __init__(self, categories: tuple[str, ...], hidden_size: int, *, general_below: float, finetuned: bool = False) -> None:
        super().__init__()
        self.categories = tuple(categories)
        self.general_below = general_below
        self.finetuned = finetuned
        self.weight_TD = nn.Parameter(torch.zeros(len(categories), hidden_size), requires_grad=False)
        self.bias_T = nn.Parameter(torch.zeros(len(categories)), requires_grad=False)
        self.mean_D: Tensor
        self.std_D: Tensor
        self.temperature: Tensor
        self.register_buffer("mean_D", torch.zeros(hidden_size))
        self.register_buffer("std_D", torch.ones(hidden_size))
        self.register_buffer("temperature", torch.ones(()))

    def logits(self, prompts_BD: Tensor) -> Tensor:
        """Calibrated logits, shape (B, T)."""
        return ((prompts_BD - self.mean_D) / self.std_D @ self.weight_TD.T + self.bias_T) / self.temperature

    def route(self, prompts_BD: Tensor) -> list[tuple[str, float]]:
        """(category, probability of the best category) for each prompt; the category is `GENERAL` where that probability is too low."""
        if not self.categories:
            return [(GENERAL, 1.0)] * prompts_BD.shape[0]
        probability_B, index_B = self.logits(prompts_BD).softmax(-1).max(-1)
        return [
            (self.categories[index] if probability >= self.general_below else GENERAL, probability)
            for index, probability in zip(index_B.tolist(), probability_B.tolist(), strict=True)
        ]
