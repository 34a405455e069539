"""Phase 3: the aggregator and the calibration, from member vectors computed once.

The vectors of a comparison come from experts that have not seen its prompt (cross-fitting), or, in the paper's schedule, from
comparisons kept out of phase 1. One run fits side by side: the aggregator on all comparisons, its bootstrap copies on resampled ones,
and one copy per fold that leaves this fold out. The left-out folds choose when to stop and give the margins for the temperature.

Shapes: B rows, K members, D hidden, S copies, P pairs, C comparisons.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmoerm.modeling.inner import AGGREGATIONS, Aggregation, Aggregator, InnerModel
from dmoerm.training.losses import pairwise_loss

__all__ = ["AggregatorSettings", "FitReport", "VectorSet", "fit_aggregator", "fit_temperature"]


LEAST_BOOTSTRAP_STEPS = 25
"""Steps that bootstrap copies take at least: where the held-out folds stop the aggregator sooner, equal copies would claim certainty."""


@dataclass(frozen=True, slots=True)
class AggregatorSettings:
    """How the aggregator is fitted; `uwo_penalty` is the λ of UWO."""

    learning_rate: float
    weight_decay: float
    epochs: int
    members: int
    units: int
    seed: int
    uwo_penalty: float


@dataclass(frozen=True, slots=True)
class VectorSet:
    """Standardised member scalars and vectors of rows, and the ranked pairs between them.

    Attributes:
        scalars_BK: member scalars, standardised with the statistics of the experts that made them.
        vectors_BV: concatenated vectors, standardised likewise, V = K·D.
        chosen_P: row of the better response of each pair.
        rejected_P: row of the worse response.
        weight_P: 1 over the number of pairs of the comparison.
        comparison_P: number of the comparison a pair belongs to, 0 to C − 1.
        fold_P: fold of that comparison's prompt, 0 to F − 1.
    """

    scalars_BK: Tensor
    vectors_BV: Tensor
    chosen_P: Tensor
    rejected_P: Tensor
    weight_P: Tensor
    comparison_P: Tensor
    fold_P: Tensor


@dataclass(frozen=True, slots=True)
class FitReport:
    """What the fit chose: steps, and held-out loss (nats a pair) and agreement of the aggregator and of the plain mean."""

    steps: int
    loss: float
    accuracy: float
    mean_accuracy: float
    temperature: dict[Aggregation, float]


def fit_aggregator(
    data: VectorSet, settings: AggregatorSettings, raw_by_aggregation: dict[Aggregation, Tensor]
) -> tuple[Aggregator, FitReport]:
    """Fit the aggregator, its bootstrap copies and the temperatures.

    Args:
        data: vectors of experts that have not seen the prompts they are judged on.
        settings: `epochs` bounds the full-batch steps.
        raw_by_aggregation: uncalibrated rewards of the same rows under the aggregations without parameters, shape (B,) each.

    Returns:
        An aggregator of 1 + `settings.members` copies, and the report.
    """
    torch.manual_seed(settings.seed)
    folds = int(data.fold_P.max()) + 1
    members = data.scalars_BK.shape[1]
    kept = 1 + settings.members
    model = Aggregator(members, data.vectors_BV.shape[1] // members, settings.units, kept + folds)
    weight_PS = torch.stack([*_sample_weights(data, settings), *_fold_weights(data, folds)], 1)
    held_PF = torch.stack([data.fold_P == fold for fold in range(folds)], 1)
    best: tuple[float, int, dict[str, Tensor], Tensor] | None = None
    spread_out: dict[str, Tensor] = {}
    decayed = [model.inner_SHV, model.outer_SH]
    free = [model.inner_bias_SH, model.slope_S]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": [*free, model.weights_SK], "weight_decay": 0.0}],
        lr=settings.learning_rate,
    )
    for step in range(settings.epochs + 1):
        rewards_BS = model(data.scalars_BK, data.vectors_BV)
        losses_PS = pairwise_loss(rewards_BS[data.chosen_P], rewards_BS[data.rejected_P])
        with torch.no_grad():
            margins_PF = (rewards_BS[data.chosen_P] - rewards_BS[data.rejected_P])[:, kept:]
            margin_P = margins_PF[held_PF]
            temperature = fit_temperature(margin_P, data.weight_P)
            held_loss = float(
                (pairwise_loss(margin_P / temperature, torch.zeros_like(margin_P)) * data.weight_P).sum() / data.weight_P.sum()
            )
        if step == min(LEAST_BOOTSTRAP_STEPS, settings.epochs):
            spread_out = {name: value[:kept].clone() for name, value in model.state_dict().items()}
        if best is None or held_loss < best[0] - 1e-5:
            best = (held_loss, step, {name: value[:kept].clone() for name, value in model.state_dict().items()}, margin_P.clone())
        if step == settings.epochs:
            break
        optimizer.zero_grad()
        (losses_PS * weight_PS).sum(0).div(weight_PS.sum(0)).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert best is not None
    loss, steps, state, margin_P = best
    chosen = Aggregator(members, data.vectors_BV.shape[1] // members, settings.units, kept)
    if steps < LEAST_BOOTSTRAP_STEPS:
        state = {name: torch.cat([value[:1], spread_out[name][1:]]) for name, value in state.items()}
    chosen.load_state_dict(state)
    temperature_by: dict[Aggregation, float] = {"mlp": fit_temperature(margin_P, data.weight_P)}
    for name, raw_B in raw_by_aggregation.items():
        temperature_by[name] = fit_temperature(raw_B[data.chosen_P] - raw_B[data.rejected_P], data.weight_P)
    mean_margin_P = raw_by_aggregation["mean"][data.chosen_P] - raw_by_aggregation["mean"][data.rejected_P]
    return chosen, FitReport(steps, loss, _accuracy(margin_P, data.weight_P), _accuracy(mean_margin_P, data.weight_P), temperature_by)


def fit_temperature(margin_P: Tensor, weight_P: Tensor) -> float:
    """Temperature t > 0 that minimises the mean of −log σ(margin / t); 100 when the margins do not point the right way.

    Source: Guo et al. (arXiv 1706.04599), here for the one-parameter Bradley–Terry model.
    """
    if float((margin_P * weight_P).sum()) <= 0:
        return 100.0
    inverse = torch.logspace(-2, 2, 81)
    for _ in range(3):
        losses = torch.stack([(torch.nn.functional.softplus(-margin_P * value) * weight_P).sum() for value in inverse])
        index = int(losses.argmin())
        best = float(inverse[index])
        inverse = torch.linspace(float(inverse[max(0, index - 1)]), float(inverse[min(len(inverse) - 1, index + 1)]), 41)
    return 1.0 / best


def calibrate(inner: InnerModel, report: FitReport, vectors_BKD: Tensor, *, uwo_penalty: float) -> None:
    """Write temperatures into the inner model and shift each aggregation so that its mean over `vectors_BKD` is 0."""
    with torch.no_grad():
        for name, raw in inner.raw_rewards(vectors_BKD, uwo_penalty=uwo_penalty).items():
            index = AGGREGATIONS.index(name)
            inner.temperature_A[index] = report.temperature[name]
            inner.reference_A[index] = (raw[:, 0] if name == "mlp" else raw).mean()


def set_statistics(inner: InnerModel, vectors_BKD: Tensor) -> None:
    """Take the mean and standard deviation of member scalars and vectors over these rows as the inner model's own."""
    with torch.no_grad():
        scalars_BK = inner.scalars(vectors_BKD)
        inner.scalar_mean_K.copy_(scalars_BK.mean(0))
        inner.scalar_std_K.copy_(scalars_BK.std(0).clamp_min(1e-6))
        inner.vector_mean_KD.copy_(vectors_BKD.mean(0))
        inner.vector_std_KD.copy_(vectors_BKD.std(0).clamp_min(1e-6))


def _sample_weights(data: VectorSet, settings: AggregatorSettings) -> list[Tensor]:
    """Pair weights of the aggregator itself and of each bootstrap copy (comparisons drawn with replacement)."""
    generator = torch.Generator().manual_seed(settings.seed)
    count = int(data.comparison_P.max()) + 1
    weights = [data.weight_P]
    for _ in range(settings.members):
        drawn_C = torch.bincount(torch.randint(count, (count,), generator=generator), minlength=count).float()
        weights.append(data.weight_P * drawn_C[data.comparison_P])
    return weights


def _fold_weights(data: VectorSet, folds: int) -> Sequence[Tensor]:
    return [data.weight_P * (data.fold_P != fold) for fold in range(folds)]


def _accuracy(margin_P: Tensor, weight_P: Tensor) -> float:
    right_P = (margin_P > 0).float() + 0.5 * (margin_P == 0).float()
    return float((right_P * weight_P).sum() / weight_P.sum())
