"""The training rows: every (prompt, response) of a run rendered once, and the frozen trunk's hidden states of each, computed once.

A phase refers to rows by number. `TrunkStates` keeps the hidden states that enter one layer, so that epochs, folds, categories and
experts do not compute the lower layers again; where they do not fit the memory budget, the pass starts from the tokens.

Shapes: B rows of a batch, L tokens, D hidden, K members.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmoerm.data.rendering import RenderCounts, Rendered, Renderer, collate, count_rendered, drop_reason
from dmoerm.errors import DataError
from dmoerm.modeling.backbone import Backbone
from dmoerm.modeling.batching import token_batches
from dmoerm.records import Comparison

__all__ = ["Rows", "TrunkStates", "autocast"]


@dataclass(slots=True)
class Rows:
    """Rendered rows and, for each comparison (by id), the numbers of its responses' rows."""

    pad_token_id: int
    rendered: list[Rendered] = field(default_factory=list)
    of_comparison: dict[str, tuple[int, ...]] = field(default_factory=dict)
    counts: RenderCounts = field(default_factory=RenderCounts)

    def add(self, comparisons: Sequence[Comparison], renderer: Renderer) -> list[Comparison]:
        """Render comparisons that are not known yet; returns those that can be used; the others are counted with the reason."""
        usable = []
        for comparison in comparisons:
            if comparison.id not in self.of_comparison:
                try:
                    rendered = renderer.render(comparison.prompt, comparison.responses)
                except DataError as error:
                    self.counts += count_rendered([], {drop_reason(error): len(comparison.responses)})
                    continue
                self.counts += count_rendered(rendered)
                first = len(self.rendered)
                self.rendered.extend(rendered)
                self.of_comparison[comparison.id] = tuple(range(first, first + len(rendered)))
            usable.append(comparison)
        return usable

    def lengths(self, rows: Sequence[int]) -> list[int]:
        """Tokens of each of `rows`."""
        return [len(self.rendered[row].input_ids) for row in rows]

    def names(self, rows: Sequence[int], most: int = 4) -> str:
        """Ids of the comparisons that `rows` belong to, the first few of them."""
        wanted = set(rows)
        ids = [name for name, numbers in self.of_comparison.items() if wanted & set(numbers)]
        return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Right-padded tensors of `rows`, each (B, L)."""
        return collate([self.rendered[row] for row in rows], self.pad_token_id)


@dataclass(slots=True)
class TrunkStates:
    """Hidden states that enter layer `layer`, one (L, D) tensor a row, on the CPU."""

    layer: int
    of_row: dict[int, Tensor] = field(default_factory=dict)

    @staticmethod
    def compute(
        backbone: Backbone,
        rows: Rows,
        numbers: Sequence[int],
        layer: int,
        *,
        task: str | None = None,
        below: "TrunkStates | None" = None,
        bf16: bool,
        max_tokens: int = 8192,
    ) -> "TrunkStates":
        """Run the trunk once over `numbers`, from the tokens or from the states `below`."""
        states = TrunkStates(layer)
        backbone.eval()
        for picked in token_batches(rows.lengths(numbers), max_tokens):
            chosen = [numbers[index] for index in picked]
            batch = to_device(rows.batch(chosen), backbone.device)
            start, hidden = (0, None) if below is None else (below.layer, below.batch(chosen, backbone.device))
            with torch.no_grad(), autocast(backbone.device, bf16):
                hidden_BLD = backbone.trunk(batch, layer, task=task, start=start, hidden_BLD=hidden)
            for row, length, hidden_LD in zip(chosen, rows.lengths(chosen), hidden_BLD, strict=True):
                states.of_row[row] = hidden_LD[:length].to("cpu", torch.bfloat16 if bf16 else torch.float32).clone()
        return states

    @staticmethod
    def kept(path: Path, compute: "Callable[[], TrunkStates]") -> "TrunkStates":
        """The states in `path`; where there are none, or the file is damaged, those that `compute` gives, which are written there first.

        The name of the file must say what they depend on: weights, tokens, layer and precision.
        """
        try:
            held = load_file(path)
            layer, lengths = int(held["layer"]), held["lengths"].tolist()
            return TrunkStates(layer, dict(zip(held["rows"].tolist(), torch.split(held["hidden"], lengths), strict=True)))
        except (OSError, SafetensorError, KeyError, ValueError):
            states = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.part")
        hidden = list(states.of_row.values())
        columns = {"rows": list(states.of_row), "lengths": [len(hidden_LD) for hidden_LD in hidden], "layer": states.layer}
        save_file({"hidden": torch.cat(hidden), **{name: torch.tensor(value) for name, value in columns.items()}}, unfinished)
        unfinished.replace(path)
        return states

    @staticmethod
    def bytes_needed(rows: Rows, numbers: Sequence[int], hidden_size: int, *, bf16: bool) -> int:
        """Memory that `compute` would keep for `numbers`."""
        return sum(rows.lengths(numbers)) * hidden_size * (2 if bf16 else 4)

    def batch(self, rows: Sequence[int], device: torch.device) -> Tensor:
        """Right-padded hidden states of `rows`, float32, (B, L, D)."""
        return torch.nn.utils.rnn.pad_sequence([self.of_row[row] for row in rows], batch_first=True).to(device).float()


def member_vectors(
    backbone: Backbone,
    rows: Rows,
    numbers: Sequence[int],
    *,
    task: str | None,
    experts: str | None,
    states: TrunkStates | None,
    bf16: bool,
    max_tokens: int = 8192,
) -> Tensor:
    """Pooled member vectors of `numbers`, in their order, float32 on the CPU, (rows, K, D)."""
    backbone.eval()
    if experts is not None:  # from their first layer on every token is there once an expert
        max_tokens = max(512, max_tokens * 4 // max(4, backbone.adapter_config[f"experts/{experts}"]["copies"]))
    vectors: list[Tensor | None] = [None] * len(numbers)
    for picked in token_batches(rows.lengths(numbers), max_tokens):
        chosen = [numbers[index] for index in picked]
        batch = to_device(rows.batch(chosen), backbone.device)
        start, hidden = (0, None) if states is None else (states.layer, states.batch(chosen, backbone.device))
        with torch.no_grad(), autocast(backbone.device, bf16):
            pooled_BKD = backbone.pooled(batch, start=start, hidden_BLD=hidden, task=task, experts=experts).float().cpu()
        for index, vector_KD in zip(picked, pooled_BKD, strict=True):
            vectors[index] = vector_KD
    return torch.stack([vector for vector in vectors if vector is not None])


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Every tensor of a batch on `device`."""
    return {key: value.to(device) for key, value in batch.items()}


def autocast(device: torch.device, bf16: bool) -> torch.autocast:
    """Mixed precision in bf16, or nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)
