"""Training the router: multinomial logistic regression on prompt vectors, strength and temperature by cross-validation over prompts.

With `features: finetuned`, an adapter of its own is first trained on the same prompts with cross-entropy, then frozen.

Shapes: B prompts, D hidden, T categories.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor, nn

from dmoerm.data.rendering import Renderer, collate
from dmoerm.modeling.backbone import Backbone
from dmoerm.modeling.reward_model import prompt_vectors
from dmoerm.modeling.router import ROUTER, Router
from dmoerm.records import Message, prompt_hash
from dmoerm.training.progress import RunLog
from dmoerm.training.trainer import PhaseSettings, train_classifier

__all__ = ["RouterData", "train_router"]

STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Inverse L2 strengths tried, on standardised features."""


@dataclass(frozen=True, slots=True)
class RouterData:
    """Prompts with their category; the same prompt with the same category counts once."""

    prompts: tuple[tuple[Message, ...], ...]
    categories: tuple[str, ...]

    @staticmethod
    def of(labelled: Sequence[tuple[tuple[Message, ...], str]]) -> "RouterData":
        unique = {(prompt_hash(prompt), category): prompt for prompt, category in labelled}
        return RouterData(tuple(unique.values()), tuple(category for _, category in unique))


def train_router(
    backbone: Backbone,
    renderer: Renderer,
    data: RouterData,
    categories: Sequence[str],
    *,
    general_below: float,
    finetune: PhaseSettings | None,
    rank: int,
    seed: int,
    log: RunLog,
) -> tuple[Router, dict[str, Any]]:
    """A calibrated router over those of `categories` that have prompts, and what was measured on held-out folds.

    Args:
        backbone: the shared one.
        renderer: of the run.
        data: prompts and categories.
        categories: the taxonomy's, in its order.
        general_below: probability under which the fallback judges.
        finetune: how to train an adapter for the router, or None for the bare backbone's vectors.
        rank: of that adapter.
        seed: of folds and solver.
        log: progress.
    """
    present = tuple(name for name in categories if data.categories.count(name) >= 2)
    kept = [index for index, category in enumerate(data.categories) if category in present]
    if len(present) < 2:
        log.say("router: fewer than two categories have prompts; the fallback (general) judges everything")
        return Router((), backbone.hidden_size, general_below=general_below), {"prompts": len(kept), "categories": len(present)}
    prompts = [data.prompts[index] for index in kept]
    target = np.array([present.index(data.categories[index]) for index in kept])
    if finetune is not None:
        _finetune(backbone, renderer, prompts, target, len(present), finetune, rank, log)
    features = prompt_vectors(backbone, renderer, prompts, finetuned=finetune is not None).cpu()
    mean_D, std_D = features.mean(0), features.std(0).clamp_min(1e-6)
    x = ((features - mean_D) / std_D).numpy().astype(np.float64)
    groups = np.array([prompt_hash(prompt) for prompt in prompts])
    smallest = int(np.bincount(target).min())
    folds = list(StratifiedGroupKFold(min(5, smallest), shuffle=True, random_state=seed).split(x, target, groups))
    strength, logits = _choose_strength(x, target, len(present), folds, seed)
    temperature = _temperature(logits, target)
    model = LogisticRegression(C=strength, max_iter=2000, random_state=seed).fit(x, target)
    router = Router(present, backbone.hidden_size, general_below=general_below, finetuned=finetune is not None)
    with torch.no_grad():
        weight, bias = _both_sides(model.coef_, model.intercept_)
        router.weight_TD.copy_(torch.tensor(weight))
        router.bias_T.copy_(torch.tensor(bias))
        router.mean_D.copy_(mean_D)
        router.std_D.copy_(std_D)
        router.temperature.fill_(temperature)
    probabilities = torch.tensor(logits / temperature).softmax(-1).numpy()
    metrics = {
        "prompts": len(prompts),
        "categories": len(present),
        "held_out_accuracy": float((probabilities.argmax(1) == target).mean()),
        "held_out_log_loss": float(-np.log(probabilities[np.arange(len(target)), target]).mean()),
        "held_out_to_general": float((probabilities.max(1) < general_below).mean()),
        "temperature": temperature,
    }
    log.record(phase="router", **metrics)
    log.say(
        f"router: {len(prompts)} prompts, {len(present)} categories, held-out accuracy {metrics['held_out_accuracy']:.3f}, "
        f"{metrics['held_out_to_general']:.0%} unsure (judged by general)"
    )
    return router, metrics


def _choose_strength(x: np.ndarray, target: np.ndarray, classes: int, folds: list[Any], seed: int) -> tuple[float, np.ndarray]:
    """The strength with the lowest held-out log loss after its own temperature, and its held-out logits, shape (B, T)."""
    best: tuple[float, float, np.ndarray] | None = None
    for strength in STRENGTHS:
        logits = np.zeros((len(target), classes))
        for fit, held in folds:
            model = LogisticRegression(C=strength, max_iter=2000, random_state=seed).fit(x[fit], target[fit])
            weight, bias = _both_sides(model.coef_, model.intercept_)
            logits[np.ix_(held, model.classes_)] = x[held] @ weight.T + bias
        loss = _log_loss(logits / _temperature(logits, target), target)
        if best is None or loss < best[0]:
            best = (loss, strength, logits)
    assert best is not None
    return best[1], best[2]


def _both_sides(coefficients: np.ndarray, intercept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn keeps one row for two classes; we keep one a class."""
    if coefficients.shape[0] > 1:
        return coefficients, intercept
    return np.concatenate([-coefficients, coefficients]) / 2, np.concatenate([-intercept, intercept]) / 2


def _temperature(logits: np.ndarray, target: np.ndarray) -> float:
    grid = np.geomspace(0.2, 5.0, 60)
    return float(grid[int(np.argmin([_log_loss(logits / value, target) for value in grid]))])


def _log_loss(logits: np.ndarray, target: np.ndarray) -> float:
    shifted = logits - logits.max(1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(target)), target]).mean())


class _PromptClassifier(nn.Module):
    """The backbone with the router's adapter and a linear classifier on the mean-pooled prompt; its forward returns the loss."""

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.hidden_size, classes)

    def forward(self, target: Tensor, **batch: Tensor) -> dict[str, Tensor]:
        pooled_BD = self.backbone.pooled(batch, task=ROUTER, pooling="mean")[:, 0]
        return {"loss": nn.functional.cross_entropy(self.classifier(pooled_BD), target)}


def _finetune(
    backbone: Backbone,
    renderer: Renderer,
    prompts: Sequence[tuple[Message, ...]],
    target: np.ndarray,
    classes: int,
    settings: PhaseSettings,
    rank: int,
    log: RunLog,
) -> None:
    torch.manual_seed(settings.seed)
    backbone.add_task_adapter(ROUTER, depth="all", rank=rank, alpha=float(rank), dropout=0.05)
    module = _PromptClassifier(backbone, classes).to(backbone.device)
    rendered = [renderer.render_prompt(prompt) for prompt in prompts]

    def batch(indices: Sequence[int]) -> dict[str, Tensor]:
        return {
            **collate([rendered[index] for index in indices], renderer.tokenizer.pad_token_id),
            "target": torch.tensor([int(target[index]) for index in indices]),
        }

    learning = [p for update in backbone.adapters("task", ROUTER).values() for p in update.parameters()]
    train_classifier(module, [*learning, *module.classifier.parameters()], len(prompts), batch, settings, report=log.stepper("router"))
