"""GRPO on a policy, by TRL, with one reward that is trained on and another that is only watched.

The trainer sees a single reward function, so the watched (gold) reward cannot enter an advantage. It is not passed to TRL with weight 0: a
completion without a proxy reward would then count as one of reward 0, since TRL sums what there is. Here it has no reward, and TRL gives it
no advantage.

KL from the policy as it was is measured on the completions themselves, in nats a completion, at the weights they were sampled with:

- `kl`: at every sampled position the exact KL between the two next-token distributions, over the whole vocabulary, summed over the
  completion. Its mean over samples is an unbiased estimate of the KL between the two policies (up to the token limit), is never negative,
  and varies less than the next one (Amini, Vieira & Cotterell 2025, arXiv 2504.10637).
- `log_ratio`: log π − log π₀ of the sampled tokens, summed: the plain Monte Carlo estimate, which can be negative.

TRL's own `kl` (kept as `kl_trl`; only with β above 0) is another quantity: per token, not per completion, by the estimator
π₀/π − log(π₀/π) − 1 of Schulman (http://joschu.net/blog/kl-approx.html, "k3"), averaged over the tokens of the batch (trl 1.16,
`GRPOTrainer._compute_loss`).

Sampling is at temperature 1 from the whole distribution and dropout is off: anything else would sample from another policy than the one
whose KL is measured.

L tokens of a completion, V vocabulary.
"""

import json
import logging
import math
import os
import shutil
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback

from dmoerm.errors import ConfigError, missing_extra
from dmoerm.records import Message
from dmoerm.scoring.rollouts import group_rollouts
from dmoerm.training.checkpoints import read_complete, seal
from dmoerm.training.interrupt import stop_wanted

__all__ = ["METRICS", "SAMPLES", "Judge", "PolicyOptions", "Sample", "next_token_kl", "read_jsonl", "require_policy", "train_policy"]

_LOG = logging.getLogger(__name__)

METRICS, SAMPLES, CHECKPOINTS = "metrics.jsonl", "samples.jsonl", "checkpoints"

Judge = Callable[[Sequence[tuple[tuple[Message, ...], tuple[str, ...]]]], tuple[list[list[float | None]], list[list[float | None]]]]
"""From prompts with their completions to the rewards that are trained on, and those that are watched; None where there is none."""

Progress = Callable[[int, int, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """How a policy is trained.

    Attributes:
        policy: causal language model, folder or Hub id; where training starts and what KL is measured to.
        steps: optimiser steps.
        generations: completions of a prompt, from which its advantages are made.
        prompts_per_step: prompts in an optimiser step.
        batch: completions in one training pass; 0 is `generations`.
        max_completion_tokens: a completion is cut there.
        beta: weight of TRL's KL penalty; 0 is none.
        learning_rate: constant.
        lora_rank: 0 trains all weights.
        measure_samples: completions of each measured prompt, at each measurement.
        measure_every: steps between measurements.
        save_every: steps between checkpoints.
        seed: of sampling and the order of prompts.
        device: "auto" or "cpu".

    Raises:
        ConfigError: a value is out of range.
    """

    policy: str
    steps: int = 200
    generations: int = 8
    prompts_per_step: int = 4
    batch: int = 0
    max_completion_tokens: int = 128
    beta: float = 0.0
    learning_rate: float = 1e-6
    lora_rank: int = 0
    measure_samples: int = 2
    measure_every: int = 20
    save_every: int = 50
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        least = {"steps": 1, "generations": 2, "prompts_per_step": 1, "batch": 0, "max_completion_tokens": 1, "lora_rank": 0}
        least |= {"measure_samples": 1, "measure_every": 1, "save_every": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name}: {getattr(self, name)}; expected at least {low}")
        if not (self.beta >= 0.0 and math.isfinite(self.beta)) or not (self.learning_rate > 0.0 and math.isfinite(self.learning_rate)):
            raise ConfigError(f"beta {self.beta}, learning_rate {self.learning_rate}; expected beta 0 or more and a learning rate above 0")
        if self.prompts_per_step * self.generations % self.pass_size:
            raise ConfigError(
                f"batch: {self.pass_size}; expected a divisor of the completions of a step, {self.prompts_per_step} prompts times "
                f"{self.generations} generations"
            )
        if self.device not in {"auto", "cpu"}:
            raise ConfigError(f"device {self.device!r}; expected auto or cpu. Choose a GPU with CUDA_VISIBLE_DEVICES")

    @property
    def pass_size(self) -> int:
        """Completions in one training pass."""
        return self.batch or self.generations


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion.

    Attributes:
        step: optimiser steps made before it was sampled.
        prompt: index of its prompt.
        completion: its text.
        proxy: the reward that is trained on; None where it failed.
        gold: the reward that is watched; None where it failed.
        kl: nats, see the top of this file.
        log_ratio: nats, likewise.
        tokens: of the completion, its end token included.
        ended: by an end token, not by the limit.
    """

    step: int
    prompt: int
    completion: str
    proxy: float | None
    gold: float | None
    kl: float
    log_ratio: float
    tokens: int
    ended: bool


def require_policy(options: PolicyOptions) -> None:
    """Refuse what can be seen before anything is loaded.

    Raises:
        DmoermError: trl or, for LoRA, peft is not installed.
        ConfigError: the policy is no causal language model, or several processes were started.
    """
    if find_spec("trl") is None:
        raise missing_extra("trl", "rl")
    if options.lora_rank and find_spec("peft") is None:
        raise missing_extra("peft", "peft")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("several processes were started; policies are trained in one. Run it without accelerate launch")
    try:
        architectures = AutoConfig.from_pretrained(options.policy).architectures or []
    except (OSError, ValueError) as error:
        raise ConfigError(f"policy {options.policy}: no model there ({str(error).splitlines()[0]})") from error
    if not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        raise ConfigError(f"policy {options.policy}: {', '.join(architectures) or 'no architecture'}; expected a causal language model")


def train_policy(
    options: PolicyOptions,
    prompts: Sequence[tuple[Message, ...]],
    measured: Sequence[tuple[Message, ...]],
    judge: Judge,
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress = lambda done, total, row: None,
) -> None:
    """Train a policy against a reward and write down what happens.

    `metrics.jsonl` gets a row a step: means over the completions that the step was made from. `samples.jsonl` gets every completion of the
    measured prompts, before the first step, each `measure_every` steps and after the last. A signal stops after the running step, with a
    checkpoint.

    Args:
        options: how.
        prompts: to train on.
        measured: prompts that are never trained on.
        judge: gives the rewards.
        folder: for the two files and `checkpoints`.
        resume: go on from the newest whole checkpoint, if any; rows behind it are dropped.
        progress: called with (steps done, all of them, the row).

    Raises:
        ConfigError: the prompts do not fit the policy, or fewer than a step needs.
    """
    from trl import GRPOConfig, GRPOTrainer

    if not hasattr(GRPOTrainer, "_generate_and_score_completions"):
        raise ConfigError("this version of trl samples in another way than 1.16, so that KL cannot be measured. Install trl 1.16")
    if len(prompts) < options.prompts_per_step:
        raise ConfigError(f"{len(prompts)} prompts to train on; expected at least {options.prompts_per_step}, those of a step")
    tokenizer = AutoTokenizer.from_pretrained(options.policy, padding_side="left")
    conversations = [*prompts, *measured]
    rows = _rows(conversations, tokenizer, options)
    checkpoint, start = _checkpoint(folder / CHECKPOINTS) if resume else (None, 0)
    watch = _Watch(options, conversations, judge, folder, progress)
    watch.begin(start if checkpoint is not None else None)
    with _quiet_trl():
        trainer = _trainer_class(GRPOTrainer)(
            watch,
            model=options.policy,
            reward_funcs=watch,
            processing_class=tokenizer,
            train_dataset=_dataset(rows[: len(prompts)]),
            eval_dataset=_dataset(rows[len(prompts) :]),
            peft_config=_lora(options.lora_rank),
            args=_settings(GRPOConfig, options, folder / CHECKPOINTS),
            callbacks=[watch.callback()],
        )
        trainer.remove_callback(PrinterCallback)  # stdout is for results
        watch.reference = _reference(trainer, options)
        if checkpoint is None:
            trainer.evaluate()
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def next_token_kl(logits_LV: Tensor, reference_LV: Tensor, tokens_L: Tensor) -> tuple[Tensor, Tensor]:
    """How far a policy is from its reference on one completion.

    Args:
        logits_LV: of the policy, for every token of the completion.
        reference_LV: of the reference.
        tokens_L: the tokens that were sampled.

    Returns:
        KL(policy ‖ reference) of the next token at each position, and log π − log π₀ of the token that was sampled; both (L,), nats.
    """
    logs_LV = torch.log_softmax(logits_LV.float(), dim=-1)
    difference_LV = logs_LV - torch.log_softmax(reference_LV.float(), dim=-1)
    kl_L = (logs_LV.exp() * difference_LV).sum(dim=-1).clamp(min=0.0)  # rounding can leave a little below 0
    return kl_L, difference_LV.gather(-1, tokens_L[:, None])[:, 0]


# --- watching ---------------------------------------------------------------------------------------------------------------------------


def _trainer_class(base: Any) -> Any:
    class WatchedTrainer(base):  # type: ignore[misc]
        """Hands every batch to the watcher while the policy still has the weights that it was sampled with."""

        def __init__(self, watch: "_Watch", **settings: Any) -> None:
            super().__init__(**settings)
            self._watch = watch

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            batch = super()._generate_and_score_completions(inputs)
            self._watch.sampled(self, batch)
            return batch

    return WatchedTrainer


def _settings(config: Any, options: PolicyOptions, folder: Path) -> Any:
    """TRL's settings of a run whose checkpoints go to a folder; what is not named is as TRL has it."""
    on_cuda = options.device == "auto" and torch.cuda.is_available()
    checkpointing = "gradient_checkpointing"  # the name that transformers gave up, and the new one
    if "activation_checkpointing" in config.__dataclass_fields__:
        checkpointing = "activation_checkpointing"
    per_pass = options.measure_samples * max(1, options.pass_size // options.measure_samples)
    return config(
        output_dir=str(folder),
        max_steps=options.steps,
        per_device_train_batch_size=options.pass_size,
        gradient_accumulation_steps=options.prompts_per_step * options.generations // options.pass_size,
        per_device_eval_batch_size=per_pass,
        num_generations=options.generations,
        num_generations_eval=options.measure_samples,
        max_completion_length=options.max_completion_tokens,
        beta=options.beta,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant",
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        repetition_penalty=1.0,
        disable_dropout=True,
        use_cpu=options.device == "cpu",
        bf16=on_cuda and torch.cuda.is_bf16_supported(),
        **{checkpointing: on_cuda},
        dataloader_pin_memory=on_cuda,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        save_strategy="steps",
        save_steps=options.save_every,
        save_total_limit=2,
        seed=options.seed,
    )


class _Watch:
    """The reward function of a run, and what is written down of it.

    Attributes:
        reference: gives, for token ids (1, L), the logits of the policy as it was; set once the trainer is there.
    """

    __name__ = "proxy"

    def __init__(
        self, options: PolicyOptions, prompts: Sequence[tuple[Message, ...]], judge: Judge, folder: Path, progress: Progress
    ) -> None:
        self.reference: Callable[[Tensor], Tensor] | None = None
        self._options, self._prompts, self._judge, self._progress = options, prompts, judge, progress
        self._metrics, self._samples = folder / METRICS, folder / SAMPLES
        self._scored: list[tuple[int, str, float | None, float | None]] = []
        self._row: dict[str, Any] = {}

    def begin(self, step: int | None) -> None:
        """Drop rows from a step on (they will be made again), or all of them."""
        self._metrics.parent.mkdir(parents=True, exist_ok=True)
        for path, last in ((self._metrics, (step or 0) - 1), (self._samples, step or 0)):
            kept = [] if step is None else [row for row in read_jsonl(path) if row["step"] <= last]
            unfinished = path.with_name(path.name + ".part")
            unfinished.write_text("".join(map(_line, kept)), encoding="utf-8")
            unfinished.replace(path)

    def __call__(self, prompts: Any, completions: Sequence[Any], *, prompt_index: Sequence[int], **others: Any) -> list[float | None]:
        """The rewards of a batch, as TRL asks for them."""
        rollouts = group_rollouts([self._prompts[index] for index in prompt_index], completions)
        proxies: list[float | None] = [None] * rollouts.rows
        golds: list[float | None] = [None] * rollouts.rows
        texts = [""] * rollouts.rows
        proxy, gold = self._judge([(request.prompt, request.responses) for request in rollouts.requests])
        for places, request, own, watched in zip(rollouts.places, rollouts.requests, proxy, gold, strict=True):
            for place, text, reward, score in zip(places, request.responses, own, watched, strict=True):
                texts[place], proxies[place], golds[place] = text, reward, score
        self._scored = list(zip(prompt_index, texts, proxies, golds, strict=True))
        return proxies

    def sampled(self, trainer: Any, batch: dict[str, Tensor]) -> None:
        """Measure the KL of the batch that was just scored, and keep what it shows."""
        assert self.reference is not None
        samples = []
        for row, (prompt, text, proxy, gold) in enumerate(self._scored):
            prompt_L = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
            completion_L = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
            ids_1L = torch.cat([prompt_L, completion_L])[None]
            with torch.no_grad(), trainer.accelerator.autocast():
                kept = slice(len(prompt_L) - 1, -1)
                kl_L, ratio_L = next_token_kl(_logits(trainer.model, ids_1L)[kept], self.reference(ids_1L)[kept], completion_L)
            ended = bool(torch.isin(completion_L[-1:], torch.tensor(trainer.eos_token_ids, device=completion_L.device)).item())
            kl, ratio = float(kl_L.sum()), float(ratio_L.sum())
            samples.append(Sample(trainer.state.global_step, prompt, text, proxy, gold, kl, ratio, len(completion_L), ended))
        if trainer.model.training:
            self._row = _means(samples)
        else:
            self._append(self._samples, map(asdict, samples))

    def callback(self) -> TrainerCallback:
        """What the trainer tells when."""
        watch, options = self, self._options

        class Callback(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
                done = state.global_step
                control.should_evaluate = done % options.measure_every == 0 or done >= options.steps
                if stop_wanted():
                    control.should_save = control.should_training_stop = True

            def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **others: Any) -> None:
                watch.logged(state.global_step, logs or {})

            def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
                seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

        return Callback()

    def logged(self, done: int, logs: dict[str, Any]) -> None:
        """Complete the row of a step by what TRL says of it."""
        if "loss" not in logs or not self._row:
            return
        names = {"loss": "loss", "grad_norm": "grad_norm", "entropy": "entropy", "kl": "kl_trl"}
        row = {**self._row, **{ours: logs.get(theirs) for theirs, ours in names.items()}}
        self._row = {}
        self._append(self._metrics, [row])
        self._progress(done, self._options.steps, row)

    def _append(self, path: Path, rows: Iterable[dict[str, Any]]) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(map(_line, rows))


def _means(samples: Sequence[Sample]) -> dict[str, Any]:
    """A row of metrics.jsonl, but for what TRL knows."""
    proxies = [one.proxy for one in samples if one.proxy is not None]
    golds = [one.gold for one in samples if one.gold is not None]
    return {
        "step": samples[0].step,
        "proxy": statistics.fmean(proxies) if proxies else None,
        "proxy_deviation": statistics.pstdev(proxies) if proxies else None,
        "gold": statistics.fmean(golds) if golds else None,
        "kl": statistics.fmean(one.kl for one in samples),
        "kl_log_ratio": statistics.fmean(one.log_ratio for one in samples),
        "length_tokens": statistics.fmean(one.tokens for one in samples),
        "ended": statistics.fmean(float(one.ended) for one in samples),
        "completions": len(samples),
        "proxy_failed": len(samples) - len(proxies),
        "gold_failed": len(samples) - len(golds),
    }


@contextmanager
def _quiet_trl() -> Iterator[None]:
    """Without what trl says of old names in transformers, and of every completion that has no reward: those are counted in each row."""
    logger = logging.getLogger("trl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # trl 1.16 asks for names that transformers 5.24 has given new ones.
            warnings.filterwarnings("ignore", r"`\w*gradient_checkpointing\w*` is deprecated", FutureWarning)
            yield
    finally:
        logger.setLevel(before)


# --- the policy and its reference -------------------------------------------------------------------------------------------------------


def _logits(model: Any, ids_1L: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids_1L, attention_mask=torch.ones_like(ids_1L), use_cache=False).logits[0]
    return logits


def _reference(trainer: Any, options: PolicyOptions) -> Callable[[Tensor], Tensor]:
    """The logits of the policy as it was: without its adapter, TRL's own copy where it has one (β above 0), or a copy of ours."""
    if options.lora_rank:
        policy = trainer.accelerator.unwrap_model(trainer.model)

        def without_adapter(ids_1L: Tensor) -> Tensor:
            with policy.disable_adapter():
                return _logits(policy, ids_1L)

        return without_adapter
    reference = trainer.ref_model
    if reference is None:
        reference = AutoModelForCausalLM.from_pretrained(options.policy, dtype=trainer.model.dtype)
        reference = reference.to(trainer.accelerator.device).eval().requires_grad_(False)
    return lambda ids_1L: _logits(reference, ids_1L)


def _lora(rank: int) -> Any:
    if not rank:
        return None
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


# --- prompts and checkpoints ------------------------------------------------------------------------------------------------------------


def _rows(prompts: Sequence[tuple[Message, ...]], tokenizer: Any, options: PolicyOptions) -> list[dict[str, Any]]:
    """The prompts as TRL takes them: conversations where the policy has a chat template, else texts."""
    rows: list[dict[str, Any]] = []
    limit = getattr(AutoConfig.from_pretrained(options.policy).get_text_config(), "max_position_embeddings", None) or math.inf
    too_long = 0
    for index, prompt in enumerate(prompts):
        if tokenizer.chat_template is not None:
            turns = [{"role": message.role, "content": message.content} for message in prompt]
            length = len(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"])
            rows.append({"prompt": turns, "prompt_index": index})
        elif len(prompt) == 1:
            length = len(tokenizer(prompt[0].content)["input_ids"])
            rows.append({"prompt": prompt[0].content, "prompt_index": index})
        else:
            raise ConfigError(
                f"policy {options.policy}: its tokenizer has no chat template, and a prompt has {len(prompt)} messages. Name a chat model, "
                f"or give prompts of one message"
            )
        too_long += length + options.max_completion_tokens > limit
    if too_long:
        raise ConfigError(
            f"{too_long} of {len(prompts)} prompts leave the policy no room for {options.max_completion_tokens} tokens (it takes {limit}). "
            f"Leave them out, or lower max_completion_tokens"
        )
    return rows


def _dataset(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)


def _checkpoint(folder: Path) -> tuple[Path | None, int]:
    """The newest whole checkpoint and its step; those that are not whole are removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for path in found:
        fault = read_complete(path)
        if fault is None:
            return path, int(path.name.rpartition("-")[2])
        _LOG.warning("%s", fault)
        shutil.rmtree(path)
    return None, 0


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a file that a killed run may have left cut; none where there is no file."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _line(row: dict[str, Any]) -> str:
    finite = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}
    return json.dumps(finite, ensure_ascii=True, allow_nan=False) + "\n"
