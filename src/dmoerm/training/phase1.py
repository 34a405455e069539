"""Phase 1: the task model. The backbone learns the comparisons of one category, through a task adapter or all its weights.

The head is first fitted on the frozen vectors (a logistic regression on differences of responses), then trained together with the
adapter. Starting from a fitted head keeps what the pretrained vectors already know and disturbs them less (linear probing before
fine-tuning, arXiv 2202.10054).

Shapes: D hidden, N pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from torch import Tensor, nn

from dmoerm.modeling.backbone import Backbone
from dmoerm.training.rows import Rows, TrunkStates, member_vectors
from dmoerm.training.trainer import EpochResult, Item, PhaseSettings, RankingModule, only_these_learn, run_phase

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


def task_items(comparisons: Sequence[tuple[tuple[int, ...], Sequence[tuple[int, int]]]]) -> list[Item]:
    """Items of phase 1 from (rows, ranked pairs) of each comparison; those without a ranked pair fall away."""
    return [Item(rows, tuple((better, worse, 0) for better, worse in pairs)) for rows, pairs in comparisons if pairs]


def fit_head(vectors: dict[int, Tensor], items: Sequence[Item], seed: int) -> Tensor:
    """Head (D,) whose scalars order the items' pairs best: logistic regression on vector differences, strength by cross-validation.

    Args:
        vectors: pooled vector of each row, shape (D,).
        items: comparisons; folds never split one.
        seed: of the solver.
    """
    differences, weights, groups = [], [], []
    for group, item in enumerate(items):
        for (better, worse, _), weight in zip(item.pairs, item.weights(), strict=True):
            differences.append(vectors[item.rows[better]] - vectors[item.rows[worse]])
            weights.append(weight)
            groups.append(group)
    x = torch.stack(differences).numpy().astype(np.float64)
    scale = x.std() + 1e-8
    x, weight, group_N = x / scale, np.array(weights), np.array(groups)
    strengths = PROBE_STRENGTHS
    if len(items) >= 10:
        folds = list(GroupKFold(5).split(x, groups=group_N))
        losses = [
            np.mean([_held_out_loss(_probe(x[fit], weight[fit], strength, seed), x[held]) for fit, held in folds]) for strength in strengths
        ]
        strength = strengths[int(np.argmin(losses))]
    else:
        strength = strengths[0]
    return torch.tensor(_probe(x, weight, strength, seed) / scale, dtype=torch.float32)


def _probe(x: np.ndarray, weight: np.ndarray, strength: float, seed: int) -> np.ndarray:
    both = np.concatenate([x, -x])
    target = np.concatenate([np.ones(len(x)), np.zeros(len(x))])
    model = LogisticRegression(C=strength, fit_intercept=False, max_iter=500, random_state=seed)
    model.fit(both, target, sample_weight=np.concatenate([weight, weight]))
    return np.asarray(model.coef_[0])


def _held_out_loss(coefficients: np.ndarray, x: np.ndarray) -> float:
    return float(np.logaddexp(0.0, -(x @ coefficients)).mean())


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
    head = nn.Parameter(fit_head(base_vectors, items, settings.seed).unsqueeze(0).to(backbone.device))
    module = RankingModule(backbone, rows, head, task=category, experts=None, states=states)
    only_these_learn(module, [*learning, head])
    return module, run_phase(module, items, held_out, settings, stop_after=stop_after, report=report)


def task_vectors(
    backbone: Backbone, rows: Rows, numbers: Sequence[int], *, task: str | None, states: TrunkStates | None, bf16: bool
) -> dict[int, Tensor]:
    """Pooled vector (D,) of each of `numbers` under a task adapter, or under the bare backbone when `task` is None."""
    vectors_BKD = member_vectors(backbone, rows, numbers, task=task, experts=None, states=states, bf16=bf16)
    return dict(zip(numbers, vectors_BKD[:, 0], strict=True))
