"""Distillation: a student learns the rewards of a teacher, above all how they differ within a prompt.

A reward is used to compare responses to one prompt, and pairs within a prompt identify nothing else, so the loss is the squared error of
those differences. A small share of the error of the prompt's mean keeps the student on the teacher's scale, so that one threshold or one
normalisation serves both; weighed more, it would spend the student's capacity on how hard a prompt is.

What has a closed form is fitted first under the same loss: the last linear layer (least_squares.py), or all that a student which routes
reads off its body (readouts.py). Then everything that may learn does, without dropout: the teacher's rewards carry no noise that would
need it. That first state is a good one, and a rate too high for the data leaves it for a worse; so every tenth prompt only says, after
each epoch, how far the student is from its teacher, and the nearest state is kept, the first among them.

Shapes: B rows, P prompts, D width of the last layer.
Source: Hinton et al. (arXiv 1503.02531) for learning from a teacher's outputs; the split into differences and level is ours.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from dmoerm.errors import DataError, TrainingError
from dmoerm.modeling.batching import token_batches
from dmoerm.modeling.student import final_linear
from dmoerm.training.least_squares import equations_of, fit_linear
from dmoerm.training.lessons import Lesson
from dmoerm.training.rows import to_device
from dmoerm.training.trainer import PhaseSettings, train_classifier

__all__ = ["Distilled", "distil", "distillation_loss", "within_variance"]

TUNING = 10
"""Every tenth prompt with several responses chooses the epoch."""

LEAST_TUNING = 8
"""Fewer such prompts choose nothing: everything is learned from, and the last epoch stays."""

MAX_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Distilled:
    """How a student came to its weights.

    Attributes:
        epoch: passes after which it was nearest to its teacher; 0 is the fitted last layer alone.
        errors: its loss on the prompts that choose, before and after each pass, in units of the teacher's variance within a prompt; empty
            where too few prompts could choose.
    """

    epoch: int
    errors: tuple[float, ...]


def distillation_loss(student_B: Tensor, teacher_B: Tensor, prompt_B: Tensor, level_weight: float) -> Tensor:
    """Half the mean squared error of differences within a prompt, averaged over prompts, and a share of that of the prompts' means.

    Args:
        student_B: rewards of the student.
        teacher_B: rewards of the teacher, same unit.
        prompt_B: which prompt a row belongs to, 0 to P − 1, each with a row.
        level_weight: weight of the mean squared error of a prompt's mean reward.

    Returns:
        Scalar in squared reward units, 0 where all agree. A prompt with one response counts for the second part only. For the first part:
        over the pairs of n errors e, the mean of (e_i − e_j)² / 2 is their variance with n − 1 below the line.
    """
    error_B = student_B - teacher_B
    prompts = int(prompt_B.max()) + 1
    size_P = torch.zeros(prompts, device=error_B.device).index_add(0, prompt_B, torch.ones_like(error_B))
    mean_P = torch.zeros(prompts, device=error_B.device).index_add(0, prompt_B, error_B) / size_P
    within_P = torch.zeros(prompts, device=error_B.device).index_add(0, prompt_B, (error_B - mean_P[prompt_B]) ** 2)
    several_P = size_P > 1
    within = (within_P[several_P] / (size_P[several_P] - 1)).sum() / several_P.sum().clamp_min(1)
    return within + level_weight * (mean_P**2).mean()


def within_variance(lessons: Sequence[Lesson]) -> float:
    """Variance of the teacher's rewards within a prompt, averaged over prompts with several responses.

    Raises:
        DataError: no prompt has several responses, or the teacher rewards all responses to a prompt alike.
    """
    found = [float(torch.tensor(lesson.rewards, dtype=torch.float64).var()) for lesson in lessons if len(lesson.rewards) > 1]
    if not found:
        raise DataError("no prompt to learn from has two responses, so there is nothing to compare; give prompts with several responses")
    value = sum(found) / len(found)
    if value < 1e-12:
        raise DataError("the teacher rewards all responses to a prompt alike, so there is nothing to learn from it")
    return value


def distil(
    model: PreTrainedModel,
    lessons: Sequence[Lesson],
    settings: PhaseSettings,
    *,
    pad_token_id: int,
    level_weight: float = 0.1,
    first: Callable[[Sequence[Lesson]], None] | None = None,
    report: Callable[[int, int], None] = lambda step, total: None,
) -> Distilled:
    """Teach a student, in place; it is on its device and stays there.

    Args:
        model: a classifier with one label.
        lessons: prompts with their responses.
        settings: `comparisons_per_batch` counts prompts.
        pad_token_id: fills rows.
        level_weight: as for `distillation_loss`.
        first: fits what has a closed form to the lessons it is given; None: the last linear layer.
        report: called with (step, steps in all).

    Raises:
        DataError: as `within_variance`.
        TrainingError: a loss is not finite, or memory runs out.
    """
    scale = within_variance(lessons)
    fit = first or (lambda lessons: _fit_head(model, lessons, pad_token_id, level_weight))
    if settings.epochs == 0:
        fit(lessons)
        return Distilled(0, ())
    learned, tuning = _divided(lessons)
    parts = [part for lesson in learned for part in lesson.parts()]
    fit(learned)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kept = {dropout: dropout.p for dropout in model.modules() if isinstance(dropout, nn.Dropout)}
    for dropout in kept:
        dropout.p = 0.0
    try:
        with tempfile.TemporaryDirectory(prefix="dmoerm-") as scratch:
            nearest = _Nearest(model, tuning, scale, level_weight, pad_token_id, Path(scratch) / "nearest.safetensors")
            module = _Module(model, scale, level_weight)
            train_classifier(
                module,
                parameters,
                len(parts),
                lambda numbers: _batch([parts[number] for number in numbers], pad_token_id),
                settings,
                lengths=[max(map(len, part.rows)) for part in parts],
                report=lambda step, total: _after_step(step, total, settings.epochs, nearest, report),
            )
            found = nearest.restore(settings.epochs)
    finally:
        for dropout, probability in kept.items():
            dropout.p = probability
    model.eval()
    if found.errors and found.epoch == 0:  # now from all lessons
        fit(lessons)
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise TrainingError(f"{name} of the student is not finite after training; lower --learning-rate")
    return found


def _divided(lessons: Sequence[Lesson]) -> tuple[list[Lesson], list[Lesson]]:
    """Lessons to learn from, and those that choose the epoch."""
    several = [number for number, lesson in enumerate(lessons) if len(lesson.rows) > 1]
    tuning = set(several[TUNING - 1 :: TUNING])
    if len(tuning) < LEAST_TUNING:
        return list(lessons), []
    return [one for number, one in enumerate(lessons) if number not in tuning], [lessons[number] for number in sorted(tuning)]


def _after_step(step: int, total: int, epochs: int, nearest: "_Nearest", report: Callable[[int, int], None]) -> None:
    if step % max(1, total // epochs) == 0:
        nearest.measure()
    report(step, total)


class _Nearest:
    """The state of a student, before and after each epoch, that is nearest to its teacher on prompts it does not learn from."""

    def __init__(
        self, model: PreTrainedModel, lessons: Sequence[Lesson], scale: float, level_weight: float, pad_token_id: int, path: Path
    ) -> None:
        self._model, self._lessons, self._path, self._pad = model, lessons, path, pad_token_id
        self._scale, self._level_weight = scale, level_weight
        self._errors: list[float] = []
        self.measure()

    def measure(self) -> None:
        """Compare, and keep the state where it is the nearest so far."""
        if not self._lessons:
            return
        error = self._error()
        if not self._errors or error < min(self._errors):
            save_model(self._model, str(self._path))
        self._errors.append(error)

    def restore(self, epochs: int) -> Distilled:
        """Give the model the nearest state."""
        if not self._errors:
            return Distilled(epochs, ())
        load_model(self._model, self._path, device=str(self._model.device))
        return Distilled(self._errors.index(min(self._errors)), tuple(self._errors))

    @torch.no_grad()
    def _error(self) -> float:
        was_training = self._model.training
        self._model.eval()
        rows = [row for lesson in self._lessons for row in lesson.rows]
        rewards = torch.zeros(len(rows))
        for picked in token_batches([len(row) for row in rows], MAX_TOKENS):
            batch = to_device(_padded([rows[index] for index in picked], self._pad), self._model.device)
            rewards[picked] = self._model(**batch).logits[:, 0].float().cpu()
        self._model.train(was_training)
        batch = _batch(self._lessons, self._pad)
        return _finite(float(distillation_loss(rewards, batch["reward"], batch["prompt"], self._level_weight)) / self._scale)


class _Module(nn.Module):
    """Student and loss, in units of the teacher's variance within a prompt: 1 is what a student scores that sees no difference."""

    def __init__(self, model: PreTrainedModel, scale: float, level_weight: float) -> None:
        super().__init__()
        self.model = model
        self._scale, self._level_weight = scale, level_weight

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        rewards_B = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].float()
        loss = distillation_loss(rewards_B, batch["reward"], batch["prompt"], self._level_weight) / self._scale
        _finite(float(loss.detach()))
        return {"loss": loss}


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise TrainingError(f"the loss of the student is {loss}; nothing was written. Lower --learning-rate")
    return loss


def _batch(lessons: Sequence[Lesson], pad_token_id: int) -> dict[str, Tensor]:
    rows = [row for lesson in lessons for row in lesson.rows]
    return {
        **_padded(rows, pad_token_id),
        "reward": torch.tensor([reward for lesson in lessons for reward in lesson.rewards], dtype=torch.float32),
        "prompt": torch.tensor([number for number, lesson in enumerate(lessons) for _ in lesson.rows]),
    }


def _padded(rows: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, Tensor]:
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad_token_id] * (length - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


# --- the first head -----------------------------------------------------------------------------------------------------------------


def _fit_head(model: PreTrainedModel, lessons: Sequence[Lesson], pad_token_id: int, level_weight: float) -> None:
    """Set the last layer to the least loss that a linear one reaches on the features it sees, shrunk."""
    head = final_linear(model)
    rows = [row for lesson in lessons for row in lesson.rows]
    features_BD = _features(model, head, rows, pad_token_id)
    rewards_B1 = torch.tensor([reward for lesson in lessons for reward in lesson.rewards], dtype=torch.float64)[:, None]
    equations = equations_of(features_BD, rewards_B1, [len(lesson.rows) for lesson in lessons], level_weight)
    solution = fit_linear(equations, 1, with_bias=head.bias is not None)[:, 0]
    with torch.no_grad():
        width = head.in_features
        head.weight.copy_(solution[:width].to(head.weight)[None])
        if head.bias is not None:
            head.bias.fill_(float(solution[width]))


@torch.no_grad()
def _features(model: PreTrainedModel, head: nn.Linear, rows: Sequence[Sequence[int]], pad_token_id: int) -> Tensor:
    """What the last layer sees of each row, (B, D), float64."""
    model.eval()
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    found = torch.zeros(len(rows), head.in_features, dtype=torch.float64)
    try:
        for picked in token_batches([len(row) for row in rows], MAX_TOKENS):
            batch = to_device(_padded([rows[index] for index in picked], pad_token_id), model.device)
            model(**batch)
            features = seen.pop()
            if features.dim() == 3:  # a decoder applies its head everywhere, then takes the last token
                last_B = batch["attention_mask"].sum(1) - 1
                features = features[torch.arange(len(picked), device=features.device), last_B]
            found[picked] = features.double().cpu()
    finally:
        handle.remove()
    return found
