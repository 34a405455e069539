"""One ranking phase on the Hugging Face `Trainer`: rows in, rewards of K members out, the ranking loss between.

Phases 1 and 2 differ only in which parameters learn and which member a pair speaks about, so both run through `run_phase`. The Trainer
brings devices, mixed precision, gradient accumulation and trackers; ours are the batches (from stored trunk states where there are
any), the measurement on held-out items after each epoch, and a copy of the trained weights per epoch from which the caller picks.

Shapes: B rows, K members, D hidden, P pairs.
"""

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dmoerm.errors import TrainingError
from dmoerm.modeling.backbone import Backbone
from dmoerm.modeling.batching import token_batches
from dmoerm.training.checkpoints import EpochResult, Unit, load_epochs, save_epochs
from dmoerm.training.interrupt import graceful_stop, stop_wanted
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
    "steps_of_a_pass",
    "train_classifier",
]


LONGEST_ROW = 10_000_000
"""More tokens than any row has: separates groups when items are sorted by group and length."""

BATCHES_IN_POOL = 50
"""Batches that are sorted by length together; fewer pad more, more of them shuffle less."""

TRAINED = "trained.safetensors"

NOT_FINITE = "Nothing was stored from it. Lower the learning rate, or use training.precision: fp32; then go on with --resume --force-resume"


@dataclass(frozen=True, slots=True)
class Item:
    """One comparison as a phase sees it: its rows, and pairs (better, worse, member) with the first two as positions in `rows`.

    `margin` is what the loss asks of each pair, reward units. `shares` weighs the pairs of a member against each other; empty: alike.
    """

    rows: tuple[int, ...]
    pairs: tuple[tuple[int, int, int], ...]
    margin: float = 0.0
    shares: tuple[float, ...] = ()

    def members(self) -> tuple[int, ...]:
        """Members that some pair speaks about, ascending."""
        return tuple(sorted({member for _, _, member in self.pairs}))

    def weights(self) -> list[float]:
        """Weight of each pair: its share among the pairs of the same member in this comparison; each member's add up to 1."""
        members = [member for _, _, member in self.pairs]
        shares = self.shares or (1.0,) * len(members)
        total = {member: sum(s for s, m in zip(shares, members, strict=True) if m == member) for member in set(members)}
        return [share / total[member] for share, member in zip(shares, members, strict=True)]


@dataclass(frozen=True, slots=True)
class PhaseSettings:
    """How a phase is optimised; the recipe's section of that phase plus what all phases share.

    `steps` given, the schedule is laid out for so many optimizer steps in place of `epochs`: items are passed over anew, each pass in
    another order, until they are done, and all of it counts as one epoch.
    """

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
    steps: int | None = None


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
        self.step = 0
        self.last_loss: Tensor | None = None
        self.last_batch: tuple[int, int, str] = (0, 0, "none yet")

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
        numbers = batch["rows"].tolist()
        self.last_batch = (len(numbers), int(batch["input_ids"].shape[1]), self._rows.names(numbers))
        rewards_BK, expert_P = self.rewards(batch)
        loss = ranking_loss(rewards_BK, batch["chosen"], batch["rejected"], expert_P, batch["weight"], batch["margin"])
        if not torch.isfinite(loss):
            raise TrainingError(f"step {self.step + 1}: the loss is {float(loss.detach())}; {self.recent()}. {NOT_FINITE}")
        self.last_loss = loss.detach()
        return {"loss": loss}

    def require_finite(self) -> None:
        """Raise where a trained weight is not finite, so that nothing is stored from it."""
        for name, parameter in self.trained().items():
            if not torch.isfinite(parameter).all():
                raise TrainingError(f"after step {self.step}: {name} is not finite; {self.recent()}. {NOT_FINITE}")

    def recent(self) -> str:
        """The last batch and the last finite loss, in words."""
        rows, tokens, items = self.last_batch
        loss = "none was finite before" if self.last_loss is None else f"the last finite loss was {float(self.last_loss):.4f}"
        return f"the batch has {rows} rows of up to {tokens} tokens ({items}); {loss}"

    def collate(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """One batch: the rows of all items one after the other, and their pairs by row."""
        numbers = [row for item in items for row in item.rows]
        batch = self._rows.batch(numbers)
        if self._states is not None:
            batch["hidden"] = self._states.batch(numbers, torch.device("cpu"))
        pairs, weights, margins, first = [], [], [], 0
        for item in items:
            pairs += [(first + better, first + worse, member) for better, worse, member in item.pairs]
            weights += item.weights()
            margins += [item.margin] * len(item.pairs)
            first += len(item.rows)
        chosen, rejected, expert = torch.tensor(pairs, dtype=torch.long).T
        return {
            **batch,
            "rows": torch.tensor(numbers),
            "chosen": chosen,
            "rejected": rejected,
            "expert": expert,
            "weight": torch.tensor(weights),
            "margin": torch.tensor(margins),
        }

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


class _Sampler(torch.utils.data.Sampler[int]):
    """Batches of items of like length, the batches in random order, that with the longest first so that memory runs out at once or never.

    The order depends on the seed and the epoch alone, so a resumed run sees the same batches.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int, epoch: Callable[[], int]) -> None:
        self._lengths, self._batch, self._seed, self._epoch = lengths, batch, seed, epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        epoch = self._epoch()
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        pool = self._batch * BATCHES_IN_POOL
        batches = []
        for start in range(0, len(order), pool):
            alike = sorted(order[start : start + pool], key=lambda index: -self._lengths[index])
            batches += [alike[first : first + self._batch] for first in range(0, len(alike), self._batch)]
        short = batches.pop() if len(batches[-1]) < self._batch else None  # stays last: batches are cut from the flat order
        batches = [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]
        if epoch == 0 and batches:
            longest = max(range(len(batches)), key=lambda index: max(self._lengths[item] % LONGEST_ROW for item in batches[index]))
            batches.insert(0, batches.pop(longest))
        for chosen in batches if short is None else [*batches, short]:
            yield from chosen


class _PhaseTrainer(Trainer):  # type: ignore[misc]  # mypy does not follow transformers
    """The Trainer with our order of items, and with checkpoints that hold the trained tensors only and are complete or not there."""

    def __init__(self, lengths: Sequence[int], unit: Unit, epochs: "_Epochs | None", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._lengths, self._unit, self._epochs = list(lengths), unit, epochs

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        return _Sampler(self._lengths, self.args.train_batch_size, self.args.seed, lambda: int(self.state.epoch or 0))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # every process has written its random state
        self._unit.step_written(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        module = self.accelerator.unwrap_model(self.model)
        module.require_finite()
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().cpu().contiguous() for name, value in module.trained().items()}, folder / TRAINED)
        if self._epochs is not None:
            save_epochs(self._epochs.results, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        restore(self.accelerator.unwrap_model(self.model), load_file(folder / TRAINED))
        if self._epochs is not None:
            self._epochs.results = load_epochs(folder)


class _Epochs(TrainerCallback):  # type: ignore[misc]
    """Watches a phase: measures and copies the weights after each epoch, ends it where the caller asked, says when to store a step."""

    def __init__(
        self, module: RankingModule, held_out: Sequence[Item], bf16: bool, stop_after: int, unit: Unit, report: Callable[[int, int], None]
    ) -> None:
        self.module, self.held_out, self.bf16, self.stop_after, self.unit, self.report = module, held_out, bf16, stop_after, unit, report
        self.results: list[EpochResult] = []

    def take(self, epoch: int) -> None:
        self.module.require_finite()
        loss, accuracy, pairs = self.module.measure(self.held_out, bf16=self.bf16)
        weights = {name: parameter.detach().cpu().clone() for name, parameter in self.module.trained().items()}
        self.results.append(EpochResult(epoch, weights, loss, accuracy, pairs))

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A gradient that is not finite would turn every weight into NaN: stop before it is applied."""
        for name, parameter in self.module.trained().items():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                raise TrainingError(
                    f"step {state.global_step + 1}: the gradient of {name} is not finite; {self.module.recent()}. {NOT_FINITE}"
                )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        epochs = 1 if args.max_steps > 0 else max(1, round(args.num_train_epochs))
        self.report(state.global_step, state.max_steps * self.stop_after // epochs)
        self.module.step = state.global_step
        at_end = state.global_step % max(1, state.max_steps // epochs) == 0  # stored after the measurement instead
        every = self.unit.every_steps
        if not at_end and self.unit.folder is not None and (stop_wanted() or (every and state.global_step % every == 0)):
            control.should_save = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step < args.max_steps:
            return  # a pass on the way to a number of steps
        epoch = len(self.results)
        self.take(epoch)
        if epoch >= self.stop_after:
            control.should_training_stop = True
        elif self.unit.folder is not None:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if stop_wanted():
            raise KeyboardInterrupt


class _Steps(TrainerCallback):  # type: ignore[misc]
    """Reports each step."""

    def __init__(self, report: Callable[[int, int], None]) -> None:
        self.report = report

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.report(state.global_step, state.max_steps)


def run_phase(
    module: RankingModule,
    items: Sequence[Item],
    held_out: Sequence[Item],
    settings: PhaseSettings,
    *,
    unit: Unit | None = None,
    stop_after: int | None = None,
    report: Callable[[int, int], None] = lambda step, total: None,
) -> list[EpochResult]:
    """Train `module` on `items` and return its state before training and after each epoch.

    Args:
        module: its parameters with `requires_grad` learn.
        items: comparisons to learn from, at least one.
        held_out: comparisons to measure on after each epoch; may be empty.
        settings: the schedule is laid out for `settings.epochs`.
        unit: where the result and the steps towards it are stored and taken up again; None stores nothing.
        stop_after: end after this many epochs of that schedule; None means all.
        report: called with (step, steps in all) after each step.

    Raises:
        TrainingError: a loss or gradient is not finite, memory runs out, or there is nothing to learn from.
    """
    if not items:
        raise TrainingError("there is no comparison to learn from")
    unit = unit or Unit()
    stored = unit.result()
    if stored is not None:
        restore(module, stored[-1].weights)
        return stored
    laid_out = settings.epochs if settings.steps is None else 1
    stop = laid_out if stop_after is None else stop_after
    epochs = _Epochs(module, held_out, settings.bf16, stop, unit, report)
    epochs.take(0)
    # Items with the same set of labelled members come together, and within them those of like length.
    groups = {key: index for index, key in enumerate(sorted({item.members() for item in items}))}
    lengths = [groups[item.members()] * LONGEST_ROW + max(module.row_lengths(item)) for item in items]
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1  # several processes would not see a signal at the same step
    with graceful_stop(active=alone and unit.folder is not None):
        if stop > 0:
            _train(module, list(items), module.collate, settings, module.backbone.device, lengths, epochs, unit)
        unit.finish(epochs.results)
    return epochs.results


def train_classifier(
    module: nn.Module,
    learning: Iterable[nn.Parameter],
    count: int,
    batch_of: Callable[[Sequence[int]], dict[str, Tensor]],
    settings: PhaseSettings,
    *,
    lengths: Sequence[int] | None = None,
    report: Callable[[int, int], None] = lambda step, total: None,
) -> None:
    """Train a module whose forward returns {"loss": …} on `count` examples; `batch_of` makes a batch from their numbers, those of like
    `lengths` together.
    """
    only_these_learn(module, learning)
    device = next(module.parameters()).device
    _train(module, list(range(count)), batch_of, settings, device, lengths or [1] * count, _Steps(report), Unit())


def _train(
    module: nn.Module,
    examples: list[Any],
    collate: Callable[[Any], dict[str, Tensor]],
    settings: PhaseSettings,
    device: torch.device,
    lengths: Sequence[int],
    callback: TrainerCallback,
    unit: Unit,
) -> None:
    refuse_split_weights(os.environ)
    with tempfile.TemporaryDirectory(prefix="dmoerm-") as scratch:
        arguments = TrainingArguments(
            output_dir=str(unit.steps_folder() or scratch),
            per_device_train_batch_size=settings.comparisons_per_batch,
            gradient_accumulation_steps=settings.gradient_accumulation_steps,
            num_train_epochs=settings.epochs,
            max_steps=-1 if settings.steps is None else settings.steps,
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
            save_strategy="no",  # the callback says when
            logging_strategy="epoch" if settings.report_to else "no",
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=device.type == "cuda",
            # An expert without a label in the batch gets no gradient.
            ddp_find_unused_parameters=True,
        )
        trainer = _PhaseTrainer(
            lengths,
            unit,
            callback if isinstance(callback, _Epochs) else None,
            model=module,
            args=arguments,
            train_dataset=examples,
            data_collator=collate,
            callbacks=[callback],
        )
        trainer.remove_callback(PrinterCallback)
        step = unit.last_step()
        if step is not None:
            unit.say(f"going on from {step}")
        try:
            trainer.train(resume_from_checkpoint=None if step is None else str(step))
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not is_out_of_memory(error):
                raise
            raise TrainingError(out_of_memory_message(module, settings, device)) from error


def refuse_split_weights(environment: Mapping[str, str]) -> None:
    """Refuse a launcher that splits the weights over processes: what is kept after an epoch is copied from whole tensors.

    Args:
        environment: as `accelerate launch` sets it.

    Raises:
        TrainingError: FSDP, or DeepSpeed ZeRO stage 3.
    """
    fsdp = environment.get("ACCELERATE_USE_FSDP", "").lower() in {"1", "true"}
    zero3 = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"
    if fsdp or zero3:
        raise TrainingError(
            f"{'FSDP' if fsdp else 'DeepSpeed ZeRO stage 3'} splits the weights over the processes, which is not supported. Use plain data "
            "parallelism (recipes/accelerate/ddp.yaml): adapters are small; or ZeRO stage 2 (deepspeed-zero2.yaml) for full fine-tuning"
        )


def steps_of_a_pass(count: int, settings: PhaseSettings) -> int:
    """Optimizer steps that one pass over `count` comparisons takes in one process; a last batch may be short."""
    batches = -(-count // settings.comparisons_per_batch)
    return -(-batches // settings.gradient_accumulation_steps)


def _warmup_steps(count: int, settings: PhaseSettings) -> int:
    """Whole steps of warm-up, rounded down: its first step has rate 0, which a run of a few steps cannot spare."""
    steps = settings.steps if settings.steps is not None else steps_of_a_pass(count, settings) * settings.epochs
    return int(settings.warmup_fraction * steps)


def _checkpointing(wanted: bool) -> dict[str, bool]:
    """The argument under the name this version of transformers has for it; none where it is not wanted."""
    name = "activation_checkpointing" if "activation_checkpointing" in TrainingArguments.__dataclass_fields__ else "gradient_checkpointing"
    return {name: True} if wanted else {}


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory, on a device or on the host (which has no exception of its own)."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error)


def out_of_memory_message(module: nn.Module, settings: PhaseSettings, device: torch.device) -> str:
    """What did not fit, and what to change."""
    total = f" of {torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB" if device.type == "cuda" else ""
    batch = module.recent() if isinstance(module, RankingModule) else "a batch of prompts"
    half = max(1, settings.comparisons_per_batch // 2)
    return (
        f"out of memory on {device}{total}; {batch}. The longest batch comes first, so it would not have fitted later either. "
        f"Halve the batch at the same step size (comparisons_per_batch: {half}, gradient_accumulation_steps: "
        f"{settings.gradient_accumulation_steps * 2}), or set training.gradient_checkpointing: true, a smaller backbone.max_length_tokens, "
        "or a smaller experts.depth; then go on with --resume --force-resume."
    )


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
