"""What a double-layer model has to beat, trained through the same loop on the same comparisons: an ensemble, and one model of many heads.

An ensemble is M task models of all categories that differ by seed (order of the comparisons, dropout, initial adapter) and by a bootstrap
sample of the comparisons; without the sample their fitted first heads would be one and the same. Their scalars are standardised over the
training rows and joined by mean, worst case (WCO) or mean less variance (UWO), as in Coste et al. (arXiv 2310.02743).

A multi-head model is one task adapter under K + 1 linear heads: overall preference and each capability. It costs one pass and shares
everything below the heads: what is left of the double layer when the experts go.

Shapes: B rows, D hidden, M members, K capabilities.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dmoerm.errors import TrainingError
from dmoerm.modeling.backbone import Backbone
from dmoerm.records import CapabilityLabel
from dmoerm.training.phase1 import TaskModelShape, fit_head, train_task_model
from dmoerm.training.phase2 import expert_items
from dmoerm.training.rows import Rows, TrunkStates, member_vectors
from dmoerm.training.trainer import Item, PhaseSettings, RankingModule, only_these_learn, restore, run_phase

__all__ = ["Ensemble", "MultiHead", "bootstrap_items", "train_ensemble", "train_multi_head"]


@dataclass(frozen=True, slots=True)
class Ensemble:
    """M task models on one backbone.

    Attributes:
        slots: names of their task adapters.
        heads_MD: their heads.
        mean_M: mean scalar of each over the training rows.
        std_M: its standard deviation.
    """

    slots: tuple[str, ...]
    heads_MD: Tensor
    mean_M: Tensor
    std_M: Tensor

    def scalars(self, backbone: Backbone, rows: Rows, numbers: Sequence[int], *, states: TrunkStates | None, bf16: bool) -> Tensor:
        """Standardised scalar of each row under each member, shape (rows, M), for `modeling.inner.aggregate`."""
        return (_raw_scalars(self.slots, self.heads_MD, backbone, rows, numbers, states, bf16) - self.mean_M) / self.std_M


@dataclass(frozen=True, slots=True)
class MultiHead:
    """One task adapter with a head for the overall preference (the first) and one for each capability.

    Attributes:
        slot: name of its task adapter.
        names: `overall`, then the capabilities.
        heads_KD: in that order, shape (K + 1, D).
    """

    slot: str
    names: tuple[str, ...]
    heads_KD: Tensor

    def scalars(self, backbone: Backbone, rows: Rows, numbers: Sequence[int], *, states: TrunkStates | None, bf16: bool) -> Tensor:
        """Scalar of each row under each head, shape (rows, K + 1)."""
        vectors = member_vectors(backbone, rows, numbers, task=self.slot, experts=None, states=states, bf16=bf16)
        return vectors[:, 0] @ self.heads_KD.T


def train_ensemble(
    backbone: Backbone,
    rows: Rows,
    name: str,
    items: Sequence[Item],
    shape: TaskModelShape,
    settings: PhaseSettings,
    *,
    members: int = 5,
    base_vectors: dict[int, Tensor],
    states: TrunkStates | None,
    stop_after: int | None = None,
    report: Callable[[int, int], None] = lambda step, total: None,
) -> Ensemble:
    """Train M task models; arguments as in `train_task_model`.

    Raises:
        TrainingError: fewer than two members, full fine-tuning (each member would need a backbone of its own), or as `run_phase`.
    """
    if members < 2:
        raise TrainingError(f"an ensemble of {members}; expected two members or more")
    if shape.depth is None:
        raise TrainingError("an ensemble shares one backbone, which full fine-tuning would change; use task_model.kind: lora")
    slots, heads = [], []
    for member in range(members):
        slot = f"{name}#{member}"
        drawn = bootstrap_items(items, settings.seed + member)
        module, results = train_task_model(
            backbone, rows, slot, drawn, [], shape, replace(settings, seed=settings.seed + member),
            base_vectors=base_vectors, states=states, stop_after=stop_after, report=report,
        )  # fmt: skip
        restore(module, results[-1].weights)
        slots.append(slot)
        heads.append(module.heads_KD.detach()[0].cpu())
    heads_MD = torch.stack(heads)
    learned = sorted({row for item in items for row in item.rows})
    raw_BM = _raw_scalars(slots, heads_MD, backbone, rows, learned, states, settings.bf16)
    return Ensemble(tuple(slots), heads_MD, raw_BM.mean(0), raw_BM.std(0).clamp_min(1e-8))


def bootstrap_items(items: Sequence[Item], seed: int) -> list[Item]:
    """As many comparisons as there are, drawn with replacement."""
    generator = torch.Generator().manual_seed(seed)
    return [items[index] for index in torch.randint(len(items), (len(items),), generator=generator).tolist()]


def train_multi_head(
    backbone: Backbone,
    rows: Rows,
    name: str,
    items: Sequence[Item],
    labelled: Sequence[tuple[tuple[int, ...], Sequence[CapabilityLabel]]],
    capabilities: Sequence[str],
    shape: TaskModelShape,
    settings: PhaseSettings,
    *,
    base_vectors: dict[int, Tensor],
    states: TrunkStates | None,
    stop_after: int | None = None,
    report: Callable[[int, int], None] = lambda step, total: None,
) -> MultiHead:
    """Train one adapter under all heads at once: ranked pairs teach the first head, capability labels their own.

    Args:
        backbone: shared.
        rows: rendered rows the items refer to.
        name: slot of the task adapter.
        items: comparisons with their ranked pairs (member 0), as `task_items` makes them.
        labelled: (rows, labels) of comparisons; labels of other capabilities fall away.
        capabilities: names of the further heads.
        shape: of the adapter.
        settings: optimisation, that of the task model.
        base_vectors: pooled vectors of the bare backbone by row, for the first heads; rows without one start from the overall head.
        states: trunk states below the adapter, or None.
        stop_after: epochs to run of the schedule.
        report: called with (step, steps in all).

    Raises:
        TrainingError: full fine-tuning, or as `run_phase`.
    """
    if shape.depth is None:
        raise TrainingError("a multi-head model beside others shares their backbone; use task_model.kind: lora")
    torch.manual_seed(settings.seed)
    backbone.add_task_adapter(name, depth=shape.depth, rank=shape.rank, alpha=shape.alpha, dropout=shape.dropout)
    told = [_moved(item) for item in expert_items(labelled, capabilities, task_member=False)]
    overall_D = fit_head(base_vectors, items) if shape.fit_head else torch.randn(backbone.hidden_size) / backbone.hidden_size
    heads_KD = overall_D.repeat(len(capabilities) + 1, 1)
    if shape.fit_head:
        for member in range(1, len(capabilities) + 1):
            own = [item for item in told if member in item.members() and all(row in base_vectors for row in item.rows)]
            if own:
                heads_KD[member] = fit_head(base_vectors, own, member=member, prior_D=overall_D)
    heads = nn.Parameter(heads_KD.to(backbone.device))
    module = RankingModule(backbone, rows, heads, task=name, experts=None, states=states)
    adapter = [parameter for update in backbone.adapters("task", name).values() for parameter in update.parameters()]
    only_these_learn(module, [*adapter, heads])
    results = run_phase(module, [*items, *told], [], settings, stop_after=stop_after, report=report)
    restore(module, results[-1].weights)
    return MultiHead(name, ("overall", *capabilities), module.heads_KD.detach().cpu())


def _moved(item: Item) -> Item:
    """The same item with every member one further, as the first head is that of the overall preference."""
    return replace(item, pairs=tuple((better, worse, member + 1) for better, worse, member in item.pairs))


def _raw_scalars(
    slots: Sequence[str],
    heads_MD: Tensor,
    backbone: Backbone,
    rows: Rows,
    numbers: Sequence[int],
    states: TrunkStates | None,
    bf16: bool,
) -> Tensor:
    columns = [
        member_vectors(backbone, rows, numbers, task=slot, experts=None, states=states, bf16=bf16)[:, 0] @ head_D
        for slot, head_D in zip(slots, heads_MD, strict=True)
    ]
    return torch.stack(columns, 1)
