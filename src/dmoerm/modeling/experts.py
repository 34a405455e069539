"""Task adapters and experts that share a trunk: low-rank additions to the linear layers of one backbone.

Every adapted linear layer may carry, for each category, one task adapter (the LoRA of phase 1) and one stack of K experts (the LoRAs
of phase 2, A of shape (K, r, d_in), B of shape (K, d_out, r)). A pass over the backbone names which of them are active. Below the
fan-out layer a row is computed once; at that layer it becomes K copies, laid out expert by expert (row k·B + b), and from there each
copy meets its own expert. K products run as one batched product, so no loop over experts and no `set_adapter` takes place.

At the fan-out layer itself the K copies are still equal, so its input projections run on B rows and only their outputs differ.

Shapes: B rows, L tokens, D hidden, K experts, N = B·L, R rank, O output width.
Source: LoRA (arXiv 2106.09685) for the update and its initialisation; the shared trunk is ours.
"""

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from dmoerm.modeling.prefix import FlatRow

__all__ = ["AdaptedLinear", "LowRank", "Pass", "PassHolder"]

INPUT_PROJECTIONS = frozenset({"q_proj", "k_proj", "v_proj", "query", "key", "value", "Wqkv", "qkv_proj", "query_key_value", "c_attn"})
"""Linear layers that read the (normed) input of their transformer layer, hence K equal copies at the fan-out layer."""


@dataclass(slots=True)
class Pass:
    """What one forward pass over the backbone does; read by the staged layers and the adapted linear layers.

    Attributes:
        start: first layer that runs; those below hand their input on.
        hidden_BLD: the input of layer `start`, when it was computed before.
        stop: the pass ends before this layer and hands out its input.
        task: category whose task adapter is added, or None.
        experts: category whose expert stack is added from `fan_out_at` on, or None.
        fan_out_at: layer in which B rows become copies·B rows.
        copies: K, or the number of `members`.
        members: which experts of the stack run, as indices; None means all.
        pooled_index_BP: when set, the top layer is computed for these P positions of each row alone.
        flat: when set, the one row of the batch is several rows that share their beginnings (see prefix.py).
        rows: B, known once the first layer runs.
        layer: index of the layer now running.
    """

    start: int = 0
    hidden_BLD: Tensor | None = None
    stop: int | None = None
    task: str | None = None
    experts: str | None = None
    fan_out_at: int | None = None
    copies: int = 1
    members: Tensor | None = None
    pooled_index_BP: Tensor | None = None
    flat: "FlatRow | None" = None
    rows: int = 0
    layer: int = -1
    repeated: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def repeat(self, value: Any) -> Any:
        """`value` with every tensor of B rows repeated to copies·B rows; each tensor once per pass: every layer gets the same ones."""
        if isinstance(value, Tensor):
            if value.dim() == 0 or value.shape[0] != self.rows or self.rows == 1:
                return value
            if id(value) not in self.repeated:
                self.repeated[id(value)] = (value, repeat_rows(value, self.copies))
            return self.repeated[id(value)][1]
        if isinstance(value, tuple):
            return tuple(self.repeat(item) for item in value)
        return value


@dataclass(slots=True)
class PassHolder:
    """The one place the modules of a backbone look up the current pass; the lock lets one pass run at a time."""

    current: Pass | None = None
    lock: Any = field(default_factory=threading.RLock)

    def __deepcopy__(self, memo: dict[int, Any]) -> "PassHolder":
        """A copied backbone runs its own passes."""
        return PassHolder()


def repeat_rows(x: Tensor, copies: int) -> Tensor:
    """(B, …) to (copies·B, …), expert by expert."""
    return x.unsqueeze(0).expand(copies, *x.shape).flatten(0, 1)


class LowRank(nn.Module):
    """K low-rank updates of one linear layer: x ↦ scaling · B_k A_k x.

    Args:
        copies: K; a task adapter is the case K = 1.
        in_features: d_in of the linear layer.
        out_features: d_out of the linear layer.
        rank: R.
        alpha: scaling is alpha / rank.
        dropout: probability with which a feature of x is dropped while this update is trained.
    """

    def __init__(self, copies: int, in_features: int, out_features: int, *, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.a_KRD = nn.Parameter(torch.empty(copies, rank, in_features))
        self.b_KOR = nn.Parameter(torch.zeros(copies, out_features, rank))
        self.reset()

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    def reset(self) -> None:
        """Kaiming-uniform A and zero B, so that a fresh update changes nothing."""
        bound = math.sqrt(1.0 / self.a_KRD.shape[-1])  # kaiming_uniform with a = sqrt(5), as PEFT does
        nn.init.uniform_(self.a_KRD, -bound, bound)
        nn.init.zeros_(self.b_KOR)

    def add_to(self, base_out: Tensor, x: Tensor, *, shared: bool, members: Tensor | None = None) -> Tensor:
        """Base output plus the K updates.

        Args:
            base_out: (N, O) when shared, else (K·N, O).
            x: (N, D) when all K updates read the same input, else (K·N, D).
            shared: which of the two it is.
            members: indices of the updates to add, K of them; None means all.

        Returns:
            (K·N, O).
        """
        a_KRD, b_KOR = (self.a_KRD, self.b_KOR) if members is None else (self.a_KRD[members], self.b_KOR[members])
        a_KRD = a_KRD.to(x.dtype)  # the updates stay float32 on a backbone loaded in bf16
        copies, rank, width = a_KRD.shape
        drops = self.training and self.dropout > 0 and self.a_KRD.requires_grad
        if shared and not drops:
            down_KNR = (x @ a_KRD.reshape(copies * rank, width).T).view(-1, copies, rank).transpose(0, 1)
        else:
            x_KND = x.unsqueeze(0).expand(copies, *x.shape) if shared else x.view(copies, -1, width)
            if drops:
                x_KND = nn.functional.dropout(x_KND, self.dropout, training=True)
            down_KNR = torch.bmm(x_KND, a_KRD.transpose(1, 2))
        base_KNO = base_out.unsqueeze(0).expand(copies, *base_out.shape) if shared else base_out.view(copies, -1, base_out.shape[-1])
        up_KRO = b_KOR.to(down_KNR.dtype).transpose(1, 2)
        return torch.baddbmm(base_KNO.to(down_KNR.dtype), down_KNR, up_KRO, alpha=self.scaling).flatten(0, 1)


class AdaptedLinear(nn.Module):
    """A linear layer of the backbone plus the task adapters and expert stacks of every category.

    With no pass or no active adapter it is the base layer. In the fan-out layer an input projection takes B rows, or K·B rows known
    to be K equal copies, and returns K·B rows.
    """

    def __init__(self, base: nn.Linear, holder: PassHolder, *, reads_layer_input: bool) -> None:
        super().__init__()
        self.base = base
        self.reads_layer_input = reads_layer_input
        self.task = nn.ModuleDict()
        self.experts = nn.ModuleDict()
        self._holder = holder

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    def forward(self, x: Tensor) -> Tensor:
        run = self._holder.current
        if run is None:
            return self.base(x)  # type: ignore[no-any-return]
        fans_out_here = run.fan_out_at == run.layer and self.reads_layer_input and run.copies > 1
        if fans_out_here:
            x = x[: run.rows]
        y: Tensor = self.base(x)
        task = cast(LowRank, self.task[slot(run.task)]) if run.task is not None and slot(run.task) in self.task else None
        if task is not None:
            y = task.add_to(y.flatten(0, -2), x.flatten(0, -2), shared=True).view(*x.shape[:-1], -1)
        expert_active = (
            run.experts is not None and slot(run.experts) in self.experts and run.fan_out_at is not None and run.layer >= run.fan_out_at
        )
        if expert_active:
            shared = fans_out_here or run.copies == 1
            y = cast(LowRank, self.experts[slot(cast(str, run.experts))]).add_to(
                y.flatten(0, -2), x.flatten(0, -2), shared=shared, members=run.members
            )
            return y.view(run.copies * x.shape[0] if shared else x.shape[0], *x.shape[1:-1], -1)
        return repeat_rows(y, run.copies) if fans_out_here else y


def slot(category: str) -> str:
    """Key of a category's adapters; prefixed, since a ModuleDict refuses names of its own methods, such as "values"."""
    return f"of_{category}"


def adapted_linears(module: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """(path below `module`, layer) of every adapted linear layer."""
    for path, child in module.named_modules():
        if isinstance(child, AdaptedLinear):
            yield path, child
