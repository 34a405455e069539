"""Phase 1: the task model. The backbone learns the comparisons of one category, through a task adapter or all its weights.

The head is first fitted on the frozen vectors (a logistic regression on differences of responses), then trained together with the
adapter. Starting from a fitted head keeps what the pretrained vectors already know and disturbs them less (linear probing before
fine-tuning, arXiv 2202.10054).

Shapes: D hidden, N pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import GroupKFold
from torch import Tensor, nn

from dmoerm.modeling.backbone import Backbone
from dmoerm.training.checkpoints import EpochResult, Unit
from dmoerm.training.rows import Rows, TrunkStates, member_vectors
from dmoerm.training.trainer import Item, PhaseSettings, RankingModule, only_these_learn, run_phase

Array = np.ndarray[Any, np.dtype[Any]]

NEWTON_STEPS = 15

__all__ = ["TaskModelShape", "fit_head", "task_items", "train_task_model"]

PROBE_STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2)
"""Inverse L2 strengths tried for the first head, on features of standard deviation 1, total loss over pairs."""


@dataclass(frozen=True, slots=True)
class TaskModelShape:
    """Where and how wide the task adapter is; `depth` None means all weights of the backbone learn."""

    depth: int | str | None
    rank: int
    alpha: float
    dropout: float
    fit_head: bool = True
    use_margin: bool = False


def task_items(
    comparisons: Sequence[tuple[tuple[int, ...], Sequence[tuple[int, int]]]], margins: Sequence[float | None] | None = None
) -> list[Item]:
    """Items of phase 1 from (rows, ranked pairs) of each comparison; those without a ranked pair fall away.

    Args:
        comparisons: rows and pairs (better, worse) of each.
        margins: what the loss asks of each comparison's pairs, reward units; None, of one or of all, is 0.
    """
    asked = margins if margins is not None else [None] * len(comparisons)
    return [
        Item(rows, tuple((better, worse, 0) for better, worse in pairs), margin or 0.0)
        for (rows, pairs), margin in zip(comparisons, asked, strict=True)
        if pairs
    ]


def fit_head(
    vectors: dict[int, Tensor], items: Sequence[Item], *, member: int = 0, prior_D: Tensor | None = None, cautious: bool = False
) -> Tensor:
    """Head (D,) whose scalars order a member's pairs best: logistic regression on vector differences, strength by cross-validation.

    Args:
        vectors: pooled vector of each row, shape (D,).
        items: comparisons; folds never split one.
        member: only pairs of this member count.
        prior_D: a head to stay near: the fit is this head times a free factor plus a penalised difference.
        cautious: of the strengths within a standard error of the best held-out loss take the smallest (the one-standard-error rule of
            Breiman et al., Classification and Regression Trees, 1984), so few labels leave the prior only for a reason.
    """
    differences, weights, groups = [], [], []
    for group, item in enumerate(items):
        for (better, worse, whose), weight in zip(item.pairs, item.weights(), strict=True):
            if whose == member:
                differences.append(vectors[item.rows[better]] - vectors[item.rows[worse]])
                weights.append(weight)
                groups.append(group)
    x: Array = torch.stack(differences).double().numpy()
    x /= (scale := x.std() + 1e-8)
    weight_N, group_N = np.array(weights), np.array(groups)
    margin_N = None if prior_D is None else x @ prior_D.double().cpu().numpy()
    basis_RD = None
    if len(x) < x.shape[1]:  # fewer pairs than features: work in the span of the pairs, where the solution lies
        left, singular, basis_RD = np.linalg.svd(x, full_matrices=False)
        x = left * singular
    if margin_N is not None:
        x = np.concatenate([x, (margin_N / (margin_N.std() + 1e-8))[:, None]], 1)
    penalty_D = np.ones(x.shape[1])
    if margin_N is not None:
        penalty_D[-1] = 0.0  # the factor of the prior is free
    strength = PROBE_STRENGTHS[0]
    if len(set(groups)) >= 10:
        folds = list(GroupKFold(3).split(x, groups=group_N))
        paths = [(_probe_path(x[fit], weight_N[fit], penalty_D), x[held]) for fit, held in folds]
        losses_NS = np.concatenate([_held_out_losses(path, held) for path, held in paths])
        strength = PROBE_STRENGTHS[_chosen(losses_NS, cautious=cautious)]
    head = _probe_path(x, weight_N, penalty_D)[PROBE_STRENGTHS.index(strength)]
    change = head if margin_N is None else head[:-1]
    found_D = change if basis_RD is None else change @ basis_RD
    if margin_N is not None and prior_D is not None:
        found_D = found_D + head[-1] / (margin_N.std() + 1e-8) * prior_D.double().cpu().numpy()
    return torch.tensor(found_D / scale, dtype=torch.float32)


def _probe_path(x: Array, weight_N: Array, penalty_D: Array) -> list[Array]:
    """Penalised logistic regressions without intercept, one for each of `PROBE_STRENGTHS`, by Newton's method from the last solution.

    With a few hundred features a Newton step is one small linear system, and a handful suffice; quasi-Newton solvers need hundreds of
    passes here, since the prior's column is all but unpenalised.
    """
    solution = np.zeros(x.shape[1])
    solutions = []
    for strength in PROBE_STRENGTHS:
        ridge_D = penalty_D / strength + 1e-6
        for _ in range(NEWTON_STEPS):
            wrong_N = 1.0 / (1.0 + np.exp(np.clip(x @ solution, -30, 30)))
            gradient = x.T @ (weight_N * wrong_N) - ridge_D * solution
            curvature = (x * (weight_N * wrong_N * (1 - wrong_N))[:, None]).T @ x
            curvature[np.diag_indices_from(curvature)] += ridge_D
            step = np.linalg.solve(curvature, gradient)
            solution = solution + step
            if np.abs(step).max() < 1e-3 * (1e-6 + np.abs(solution).max()):
                break
        solutions.append(solution)
    return solutions


def _held_out_losses(path: Sequence[Array], x: Array) -> Array:
    """(N, S): the loss of each pair under each strength."""
    return np.stack([np.logaddexp(0.0, -(x @ coefficients)) for coefficients in path], 1)


def _chosen(losses_NS: Array, *, cautious: bool) -> int:
    """Which strength: that of the lowest loss, or the first whose loss is not above it by more than a standard error of the difference."""
    best = int(losses_NS.mean(0).argmin())
    excess_NS = losses_NS - losses_NS[:, [best]]
    errors = excess_NS.std(0) / np.sqrt(len(excess_NS))
    return int(np.argmax(excess_NS.mean(0) <= errors)) if cautious else best


def train_task_model(
    backbone: Backbone,
    rows: Rows,
    category: str,
    items: Sequence[Item],
    held_out: Sequence[Item],
    shape: TaskModelShape,
    settings: PhaseSettings,
    *,
    base_vectors: dict[int, Tensor],
    states: TrunkStates | None,
    prior_D: Tensor | None = None,
    unit: Unit | None = None,
    stop_after: int | None = None,
    report: Callable[[int, int], None] = lambda step, total: None,
) -> tuple[RankingModule, list[EpochResult]]:
    """Train the task model of `category`; the backbone is left in the state of the last epoch run.

    Args:
        backbone: shared by all categories when `shape.depth` is given, else this category's own copy.
        rows: rendered rows the items refer to.
        category: name of the adapter slot.
        items: comparisons to learn from.
        held_out: comparisons to measure on after each epoch.
        shape: the task adapter.
        settings: optimisation.
        base_vectors: pooled vectors of the bare backbone by row, for the first head.
        states: trunk states that enter the adapter's lowest layer, or None.
        prior_D: a head that the first one is fitted near, cautiously, or None.
        unit: where the result is stored; one that is stored is taken as it is.
        stop_after: epochs to run of the schedule; None means all.
        report: called with (step, steps in all).

    Returns:
        The module, and its state before training and after each epoch.
    """
    torch.manual_seed(settings.seed)
    if shape.depth is None:
        learning = list(backbone.base_parameters())
    else:
        backbone.add_task_adapter(category, depth=shape.depth, rank=shape.rank, alpha=shape.alpha, dropout=shape.dropout)
        learning = [parameter for update in backbone.adapters("task", category).values() for parameter in update.parameters()]
    first = torch.randn(backbone.hidden_size) / backbone.hidden_size
    if shape.fit_head and (unit is None or not unit.finished):
        first = fit_head(base_vectors, items, prior_D=prior_D, cautious=prior_D is not None)
    head = nn.Parameter(first.unsqueeze(0).to(backbone.device))
    module = RankingModule(backbone, rows, head, task=category, experts=None, states=states)
    only_these_learn(module, [*learning, head])
    return module, run_phase(module, items, held_out, settings, unit=unit, stop_after=stop_after, report=report)


def task_vectors(
    backbone: Backbone, rows: Rows, numbers: Sequence[int], *, task: str | None, states: TrunkStates | None, bf16: bool
) -> dict[int, Tensor]:
    """Pooled vector (D,) of each of `numbers` under a task adapter, or under the bare backbone when `task` is None."""
    vectors_BKD = member_vectors(backbone, rows, numbers, task=task, experts=None, states=states, bf16=bf16)
    return dict(zip(numbers, vectors_BKD[:, 0], strict=True))
