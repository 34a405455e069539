"""One ranking phase on the Hugging Face `Trainer`: rows in, rewards of K members out, the ranking loss between.

Phases 1 and 2 differ only in which parameters learn and which member a pair speaks about, so both run through `run_phase`. The Trainer
brings devices, mixed precision, gradient accumulation and trackers; ours are the batches (from stored trunk states where there are
any), the measurement on held-out items after each epoch, and a copy of the trained weights per epoch from which the caller picks.

Shapes: B rows, K members, D hidden, P pairs.
"""

import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from dmoerm.errors import TrainingError
from dmoerm.modeling.backbone import Backbone
from dmoerm.modeling.batching import token_batches
from dmoerm.training.losses import pairwise_loss, ranking_loss
from dmoerm.training.rows import Rows, TrunkStates, autocast, to_device

__all__ = [
    "EpochResult",
    "Item",
    "PhaseSettings",
    "RankingModule",
    "best_epoch",
    "only_these_learn",
    "restore",
    "run_phase",
    "train_classifier",
]


LONGEST_ROW = 10_000_000
"""More tokens than any row has: separates groups when items are sorted by group and length."""


@dataclass(frozen=True, slots=True)
class Item:
    """One comparison as a phase sees it: its rows, and pairs (better, worse, member) with the first two as positions in `rows`."""

    rows: tuple[int, ...]
    pairs: tuple[tuple[int, int, int], ...]

    def members(self) -> tuple[int, ...]:
        """Members that some pair speaks about, ascending."""
        return tuple(sorted({member for _, _, member in self.pairs}))

    def weights(self) -> list[float]:
        """Weight of each pair: 1 over the number of pairs of the same member in this comparison."""
        members = [member for _, _, member in self.pairs]
        return [1.0 / members.count(member) for member in members]


@dataclass(frozen=True, slots=True)
class PhaseSettings:
    """How a phase is optimised; the recipe's section of that phase plus what all phases share."""

    learning_rate: float
    epochs: int
    comparisons_per_batch: int
    weight_decay: float
    warmup_fraction: float
    gradient_accumulation_steps: int
    seed: int
    bf16: bool
    report_to: tuple[str, ...] = ()
    gradient_checkpointing: bool = False
    max_gradient_norm: float = 1.0


@dataclass(frozen=True, slots=True)
class EpochResult:
    """State after an epoch: the trained tensors and the held-out loss and agreement, NaN when nothing was held out.

    Attributes:
        epoch: 0 is the state before training.
        weights: copies of the trained tensors by name, on the CPU.
        loss: mean held-out ranking loss over members, nats.
        accuracy: share of held-out pairs ordered rightly, 0 to 1.
        pairs: number of held-out pairs.
    """

    epoch: int
    weights: dict[str, Tensor]
    loss: float
    accuracy: float
    pairs: int


class RankingModule(nn.Module):
    """The backbone with one category's adapters active, and the heads under training; its forward returns the loss of a batch."""

    def __init__(
        self,
        backbone: Backbone,
        rows: Rows,
        heads_KD: nn.Parameter,
        *,
        task: str | None,
        experts: str | None,
        states: TrunkStates | None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads_KD = heads_KD
        self._rows, self._task, self._experts, self._states = rows, task, experts, states

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that learn, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def row_lengths(self, item: Item) -> list[int]:
        """Tokens of each row of an item."""
        return self._rows.lengths(item.rows)

    def rewards(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Scalars of a batch under the members its pairs speak about, (B, K), and each pair's index among those members, (P,).

        Experts without a label in the batch are not run: a batch of one category costs the general model's twenty experts only five.
        """
        inputs: dict[str, Tensor] = {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids") if key in batch}
        start = self._states.layer if self._states is not None else 0
        members, expert_P = torch.unique(batch["expert"], return_inverse=True)
        pooled_BKD = self.backbone.pooled(
            inputs,
            start=start,
            hidden_BLD=batch.get("hidden"),
            task=self._task,
            experts=self._experts,
            members=None if self._experts is None else members,
        )
        return (pooled_BKD * self.heads_KD[members].float()).sum(-1), expert_P

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        rewards_BK, expert_P = self.rewards(batch)
        loss = ranking_loss(rewards_BK, batch["chosen"], batch["rejected"], expert_P, batch["weight"])
        if not torch.isfinite(loss):
            raise TrainingError("the loss is not finite. Lower the learning rate, or use training.precision: fp32.")
        return {"loss": loss}

    def collate(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """One batch: the rows of all items one after the other, and their pairs by row."""
        numbers = [row for item in items for row in item.rows]
        batch = self._rows.batch(numbers)
        if self._states is not None:
            batch["hidden"] = self._states.batch(numbers, torch.device("cpu"))
        pairs, weights, first = [], [], 0
        for item in items:
            pairs += [(first + better, first + worse, member) for better, worse, member in item.pairs]
            weights += item.weights()
            first += len(item.rows)
        chosen, rejected, expert = torch.tensor(pairs, dtype=torch.long).T
        return {**batch, "chosen": chosen, "rejected": rejected, "expert": expert, "weight": torch.tensor(weights)}

    @torch.no_grad()
    def measure(self, items: Sequence[Item], *, bf16: bool, max_tokens: int = 8192) -> tuple[float, float, int]:
        """(mean ranking loss over members, share of pairs ordered rightly, number of pairs) on held-out items."""
        if not items:
            return math.nan, math.nan, 0
        self.eval()
        losses, rights, members = [], [], []
        for group in sorted({item.members() for item in items}):
            alike = [item for item in items if item.members() == group]
            for picked in token_batches([sum(self._rows.lengths(item.rows)) for item in alike], max_tokens):
                batch = to_device(self.collate([alike[index] for index in picked]), self.backbone.device)
                with autocast(self.backbone.device, bf16):
                    rewards_BK, expert_P = self.rewards(batch)
                better, worse = (rewards_BK[batch[side], expert_P].float() for side in ("chosen", "rejected"))
                losses.append(pairwise_loss(better, worse))
                rights.append((better > worse).float() + 0.5 * (better == worse).float())
                members.append(batch["expert"])
        loss_P, right_P, member_P = torch.cat(losses), torch.cat(rights), torch.cat(members)
        by_member = [loss_P[member_P == member].mean() for member in member_P.unique()]  # type: ignore[no-untyped-call]
        return float(torch.stack(by_member).mean()), float(right_P.mean()), int(loss_P.numel())


class _LengthGroupedTrainer(Trainer):  # type: ignore[misc]  # mypy does not follow transformers
    """The Trainer, drawing items of like length together so that little padding is computed."""

    def __init__(self, lengths: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._lengths = list(lengths)

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        generator = torch.Generator().manual_seed(self.args.seed)
        return LengthGroupedSampler(self.args.train_batch_size, lengths=self._lengths, generator=generator)  # type: ignore[no-any-return]


class _Steps(TrainerCallback):  # type: ignore[misc]
    """Reports each step."""

    def __init__(self, report: Callable[[int, int], None]) -> None:
        self.report = report

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.report(state.global_step, state.max_steps)


class _Epochs(TrainerCallback):  # type: ignore[misc]
    """Measures and copies the weights after each epoch; ends the run at the epoch the caller asked for; reports steps."""

    def __init__(
        self, module: RankingModule, held_out: Sequence[Item], bf16: bool, stop_after: int, report: Callable[[int, int], None]
    ) -> None:
        self.module, self.held_out, self.bf16, self.stop_after, self.report = module, held_out, bf16, stop_after, report
        self.results: list[EpochResult] = []

    def take(self, epoch: int) -> None:
        loss, accuracy, pairs = self.module.measure(self.held_out, bf16=self.bf16)
        weights = {name: parameter.detach().cpu().clone() for name, parameter in self.module.trained().items()}
        self.results.append(EpochResult(epoch, weights, loss, accuracy, pairs))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        total = state.max_steps * self.stop_after // max(1, round(args.num_train_epochs))
        self.report(state.global_step, total)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        epoch = len(self.results)
        self.take(epoch)
        if epoch >= self.stop_after:
            control.should_training_stop = True


def run_phase(
    module: RankingModule,
    items: Sequence[Item],
    held_out: Sequence[Item],
    settings: PhaseSettings,
    *,
    stop_after: int | None = None,
    report: Callable[[int, int], None] = lambda step, total: None,
) -> list[EpochResult]:
    """Train `module` on `items` and return its state before training and after each epoch.

    Args:
        module: its parameters with `requires_grad` learn.
        items: comparisons to learn from, at least one.
        held_out: comparisons to measure on after each epoch; may be empty.
        settings: the schedule is laid out for `settings.epochs`.
        stop_after: end after this many epochs of that schedule; None means all.
        report: called with (step, steps in all) after each step.

    Raises:
        TrainingError: the loss is not finite, or there is nothing to learn from.
    """
    if not items:
        raise TrainingError("there is no comparison to learn from")
    stop = settings.epochs if stop_after is None else stop_after
    epochs = _Epochs(module, held_out, settings.bf16, stop, report)
    epochs.take(0)
    if stop == 0:
        return epochs.results
    # Items with the same set of labelled members come together, and within them those of like length.
    groups = {key: index for index, key in enumerate(sorted({item.members() for item in items}))}
    lengths = [groups[item.members()] * LONGEST_ROW + max(module.row_lengths(item)) for item in items]
    _train(module, list(items), module.collate, settings, module.backbone.device, lengths, [epochs])
    return epochs.results


def train_classifier(
    module: nn.Module,
    learning: Iterable[nn.Parameter],
    count: int,
    batch_of: Callable[[Sequence[int]], dict[str, Tensor]],
    settings: PhaseSettings,
    *,
    report: Callable[[int, int], None] = lambda step, total: None,
) -> None:
    """Train a module whose forward returns {"loss": …} on `count` examples; `batch_of` makes a batch from their numbers."""
    only_these_learn(module, learning)
    device = next(module.parameters()).device
    _train(module, list(range(count)), batch_of, settings, device, [1] * count, [_Steps(report)])


def _train(
    module: nn.Module,
    examples: list[Any],
    collate: Callable[[Any], dict[str, Tensor]],
    settings: PhaseSettings,
    device: torch.device,
    lengths: Sequence[int],
    callbacks: list[TrainerCallback],
) -> None:
    with tempfile.TemporaryDirectory(prefix="dmoerm-") as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=settings.comparisons_per_batch,
            gradient_accumulation_steps=settings.gradient_accumulation_steps,
            num_train_epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            warmup_steps=_warmup_steps(len(examples), settings),
            max_grad_norm=settings.max_gradient_norm,
            lr_scheduler_type="linear",
            bf16=settings.bf16,
            use_cpu=device.type == "cpu",
            seed=settings.seed,
            report_to=list(settings.report_to) or "none",
            **_checkpointing(settings.gradient_checkpointing),
            save_strategy="no",
            logging_strategy="epoch" if settings.report_to else "no",
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=device.type == "cuda",
        )
        trainer = _LengthGroupedTrainer(
            lengths, model=module, args=arguments, train_dataset=examples, data_collator=collate, callbacks=callbacks
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def _warmup_steps(count: int, settings: PhaseSettings) -> int:
    """Whole steps of warm-up, rounded down: its first step has rate 0, which a run of a few steps cannot spare."""
    batches = -(-count // settings.comparisons_per_batch)
    steps = -(-batches // settings.gradient_accumulation_steps) * settings.epochs
    return int(settings.warmup_fraction * steps)


def _checkpointing(wanted: bool) -> dict[str, bool]:
    """The argument under the name this version of transformers has for it; none where it is not wanted."""
    name = "activation_checkpointing" if "activation_checkpointing" in TrainingArguments.__dataclass_fields__ else "gradient_checkpointing"
    return {name: True} if wanted else {}


def best_epoch(folds: Sequence[Sequence[EpochResult]], *, least: int = 0) -> int:
    """Epoch with the lowest held-out loss, averaged over folds by their number of pairs; never before `least`."""
    scores = {}
    for epoch in range(least, min(len(fold) for fold in folds)):
        results = [fold[epoch] for fold in folds if fold[epoch].pairs]
        total = sum(result.pairs for result in results)
        scores[epoch] = sum(result.loss * result.pairs for result in results) / total if total else math.inf
    return min(scores, key=lambda epoch: (scores[epoch], epoch))


def restore(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put the copied tensors of an epoch back into the module they were copied from."""
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)


def only_these_learn(module: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Freeze everything below `module` except `parameters`."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
