"""Linear layers fitted in closed form under the loss of a distillation: differences within a prompt, and a share of the prompt's mean.

Shapes: B rows, P prompts, D features, K outputs, E equations.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["equations_of", "fit_linear"]

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Of the ridge, as a share of the mean squared feature."""

LEAST_HELD = 5
"""Prompts below which a fifth of them chooses no strength, and 0.1 is taken."""


def equations_of(features_BD: Tensor, targets_BK: Tensor, sizes: Sequence[int], level_weight: float) -> list[Tensor]:
    """For each prompt the rows of a least-squares problem that is `distillation_loss`, columns D features, a one for a bias, K targets.

    Args:
        features_BD: float64, prompt after prompt.
        targets_BK: likewise.
        sizes: rows of each prompt.
        level_weight: of the squared error of a prompt's mean.
    """
    found, first = [], 0
    ones_B1 = torch.ones(len(features_BD), 1, dtype=features_BD.dtype)
    table = torch.cat([features_BD, ones_B1, targets_BK], 1)
    for size in sizes:
        block = table[first : first + size]
        mean = block.mean(0, keepdim=True)
        found.append(torch.cat([(block - mean) / max(size - 1, 1) ** 0.5, level_weight**0.5 * mean]))
        first += size
    return found


def fit_linear(equations: Sequence[Tensor], outputs: int, *, with_bias: bool) -> Tensor:
    """Weights (D, or D + 1 with the bias last, K) of least ridge-penalised error.

    Every fifth prompt is left out first, to choose the strength for each output by the error there; then all are fitted.

    Args:
        equations: of `equations_of`.
        outputs: K, the last columns.
        with_bias: else the column of ones is passed over.
    """
    held = equations[4::5]
    strengths = [1e-1] * outputs
    if len(held) >= LEAST_HELD:
        fitted = [equation for number, equation in enumerate(equations) if number % 5 != 4]
        tries = torch.stack([_error(held, _solve(fitted, outputs, strength, with_bias), outputs, with_bias) for strength in STRENGTHS])
        strengths = [STRENGTHS[index] for index in tries.argmin(0).tolist()]
    solutions = {strength: _solve(equations, outputs, strength, with_bias) for strength in set(strengths)}
    return torch.stack([solutions[strength][:, output] for output, strength in enumerate(strengths)], 1)


def _sides(equations: Sequence[Tensor], outputs: int, with_bias: bool) -> tuple[Tensor, Tensor]:
    table = torch.cat(list(equations))
    return table[:, : table.shape[1] - outputs - int(not with_bias)], table[:, -outputs:]


def _solve(equations: Sequence[Tensor], outputs: int, strength: float, with_bias: bool) -> Tensor:
    x, y = _sides(equations, outputs, with_bias)
    gram = x.T @ x
    width = gram.shape[0] - int(with_bias)
    penalty = torch.full((gram.shape[0],), strength * float(gram.diagonal()[:width].mean()), dtype=gram.dtype)
    penalty[width:] = 1e-9
    solution: Tensor = torch.linalg.solve(gram + torch.diag(penalty), x.T @ y)
    return solution


def _error(equations: Sequence[Tensor], solution: Tensor, outputs: int, with_bias: bool) -> Tensor:
    x, y = _sides(equations, outputs, with_bias)
    return ((x @ solution - y) ** 2).mean(0)
