"""Phase 2: the experts. All capabilities of a category learn in the same pass over the frozen task model.

A comparison carries labels for some capabilities; each label trains its own expert, a missing one trains nobody. The low-rank updates
start at zero, so before the first step every expert's vector is the task model's. Its head starts from the task model's head: a copy of
it (the paper), or that head refitted to the expert's own labels and held near the original, which costs next to nothing and gives the
experts something to specialise from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmoerm.errors import TrainingError
from dmoerm.modeling.backbone import Backbone
from dmoerm.records import CapabilityLabel
from dmoerm.training.checkpoints import EpochResult, Unit
from dmoerm.training.phase1 import fit_head
from dmoerm.training.rows import Rows, TrunkStates
from dmoerm.training.trainer import Item, PhaseSettings, RankingModule, only_these_learn, run_phase

__all__ = ["ExpertShape", "expert_items", "train_experts"]


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """Where and how wide each expert is; with `task_member` the stack's first place is the task model, untrained."""

    depth: int | str
    rank: int
    alpha: float
    dropout: float
    task_member: bool
    fit_heads: bool = True


def expert_items(
    comparisons: Sequence[tuple[tuple[int, ...], Sequence[CapabilityLabel]]],
    capabilities: Sequence[str],
    *,
    task_member: bool,
    soft: bool = True,
) -> list[Item]:
    """Items of phase 2 from (rows, labels) of each comparison; labels of unknown capabilities and comparisons without any fall away.

    A label of which the judge was only p sure is learned as such: −p log σ(m) − (1 − p) log σ(−m) for the margin m, which is the pair with
    weight p and the turned pair with weight 1 − p. With `soft` False it counts like any other, as where agreement is measured.
    """
    first = 1 if task_member else 0
    place = {capability: first + index for index, capability in enumerate(capabilities)}
    items = []
    for rows, labels in comparisons:
        pairs, shares = [], []
        for label in labels:
            if label.capability in place:
                sure = label.probability if soft else 1.0
                pairs.append((label.preferred, label.other, place[label.capability]))
                shares.append(sure)
                if sure < 1.0:
                    pairs.append((label.other, label.preferred, place[label.capability]))
                    shares.append(1.0 - sure)
        if pairs:
            items.append(Item(rows, tuple(pairs), shares=tuple(shares) if min(shares) < 1.0 else ()))
    return items


def train_experts(
    backbone: Backbone,
    rows: Rows,
    category: str,
    capabilities: Sequence[str],
    task_head_D: Tensor,
    items: Sequence[Item],
    held_out: Sequence[Item],
    shape: ExpertShape,
    settings: PhaseSettings,
    *,
    task: str | None,
    states: TrunkStates | None,
    vectors: Callable[[], dict[int, Tensor]],
    prior_D: Tensor | None = None,
    unit: Unit | None = None,
    stop_after: int | None = None,
    report: Callable[[int, int], None] = lambda step, total: None,
) -> tuple[RankingModule, list[EpochResult]]:
    """Train the experts of `category`; the backbone is left in the state of the last epoch run.

    Args:
        backbone: with the category's trained task adapter.
        rows: rendered rows the items refer to.
        category: name of the stack's slot.
        capabilities: the experts, in stack order.
        task_head_D: the task model's head, from which every expert's head starts.
        items: labelled comparisons.
        held_out: labelled comparisons to measure on after each epoch.
        shape: of each expert.
        settings: optimisation.
        task: slot of the frozen task adapter, or None when the task model is a full fine-tune.
        states: trunk states below the experts, made with that task adapter active, or None.
        vectors: gives the task model's pooled vector of each labelled row, for the first heads; not called when they are copies.
        prior_D: a head that the first ones are fitted near, cautiously; None: near the task model's.
        unit: where the result is stored; one that is stored is taken as it is.
        stop_after: epochs to run of the schedule; None means all.
        report: called with (step, steps in all).

    Raises:
        TrainingError: phase 1 has not run, or as `run_phase`.

    Returns:
        The module (heads of all members in stack order), and its state before training and after each epoch.
    """
    if task is not None and f"task/{task}" not in backbone.adapter_config:
        raise TrainingError(f"phase 2 of {category} needs the task model of phase 1, and the backbone has no task adapter {task!r}.")
    torch.manual_seed(settings.seed)
    copies = len(capabilities) + (1 if shape.task_member else 0)
    backbone.add_experts(category, copies, depth=shape.depth, rank=shape.rank, alpha=shape.alpha, dropout=shape.dropout)
    first_KD = task_head_D.detach().cpu().repeat(copies, 1)
    if shape.fit_heads and (unit is None or not unit.finished):
        of_row = vectors()
        near_D = task_head_D if prior_D is None else prior_D
        for member in range(copies - len(capabilities), copies):
            first_KD[member] = fit_head(of_row, items, member=member, prior_D=near_D, cautious=prior_D is not None)
    heads = nn.Parameter(first_KD.to(backbone.device))
    module = RankingModule(backbone, rows, heads, task=task, experts=category, states=states)
    learning = [parameter for update in backbone.adapters("experts", category).values() for parameter in update.parameters()]
    only_these_learn(module, [*learning, heads])
    results = run_phase(module, items, held_out, settings, unit=unit, stop_after=stop_after, report=report)
    if shape.task_member:  # no label speaks about the task model, so only weight decay could have moved its head
        for result in results:
            result.weights["heads_KD"][0] = task_head_D.cpu()
    return module, results
