"""What the top layers of a routed student read: rewards of each route and gates between them, fitted in closed form.

Nothing passes through the body more than once and no weight of it moves. The teacher says of every response what it is worth under each
category it routes to, so each route's head learns from all responses and not from those of its own prompts alone. Gates begin with the
teacher's router and learn what a row, in which prompt and response see each other, makes different from a prompt alone: a ridge towards
the router's logits, then a softmax regression on the route, on logits of prompts that the ridge has not seen. How sharp the softmax is
in the end is what brings the mixed reward nearest to the teacher's.

Shapes: B rows, P prompts, D width of the body, C routes, T categories of the router.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmoerm.modeling.batching import token_batches
from dmoerm.modeling.routed_bert import Readouts, RoutedBert
from dmoerm.training.least_squares import equations_of, fit_linear
from dmoerm.training.lessons import Lesson

__all__ = ["fit_readouts", "mixed_rewards"]

FOLDS = 5

GATE_STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Of the ridge towards the router's logits, as a share of the mean squared feature."""

SHARPNESS = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
"""Factors of the gates that are tried."""

DECAY = 1e-3
"""Of the softmax regression's squared weights."""

SETTLING = 32
"""Rows that say how the body scales channels."""

MAX_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class _Table:
    """All rows of all lessons."""

    prompt_BD: Tensor
    row_BD: Tensor
    rewards_BC: Tensor
    prompt_B: Tensor
    sizes: tuple[int, ...]
    route_P: Tensor
    logits_PT: Tensor


def fit_readouts(
    student: RoutedBert,
    lessons: Sequence[Lesson],
    *,
    router_TD: Tensor | None,
    pad_token_id: int,
    level_weight: float,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Readouts:
    """The readouts for a student, to be given to `RoutedBert.write`.

    Args:
        student: with its body.
        lessons: at least one with two rows, all with `by_route`.
        router_TD: weights of the teacher's router on the mean over a prompt's tokens; None where it reads something else.
        pad_token_id: fills rows.
        level_weight: as for `distillation_loss`.
        report: called with (rows seen, rows).
    """
    table = _table(student, lessons, pad_token_id, report)
    routes = table.rewards_BC.shape[1]
    solution = fit_linear(equations_of(table.row_BD, table.rewards_BC, table.sizes, level_weight), routes, with_bias=True)
    reward_CD, reward_bias_C = solution[:-1].T, solution[-1]
    rewards_BC = table.row_BD @ reward_CD.T + reward_bias_C
    prompt_CD, row_CD, bias_C = _gates(table, rewards_BC, router_TD, level_weight)
    gates_BC = table.prompt_BD @ prompt_CD.T + table.row_BD @ row_CD.T + bias_C
    return Readouts(
        reward_CD.float(),
        reward_bias_C.float(),
        prompt_CD.float(),
        row_CD.float(),
        bias_C.float(),
        reward_range=(float(rewards_BC.min()), float(rewards_BC.max())),
        gate_range=(float(gates_BC.min()), float(gates_BC.max())),
    )


def mixed_rewards(readouts: Readouts, prompt_BD: Tensor, row_BD: Tensor) -> Tensor:
    """What a student with these readouts gives, by the formula, shape (B,)."""
    gates_BC = prompt_BD @ readouts.gate_prompt_CD.T + row_BD @ readouts.gate_row_CD.T + readouts.gate_bias_C
    return (gates_BC.softmax(1) * (row_BD @ readouts.reward_CD.T + readouts.reward_bias_C)).sum(1)


def _table(student: RoutedBert, lessons: Sequence[Lesson], pad_token_id: int, report: Callable[[int, int], None]) -> _Table:
    rows = [torch.tensor(row) for lesson in lessons for row in lesson.rows]
    prompt_BD, row_BD = (torch.zeros(len(rows), student.body_size, dtype=torch.float64) for _ in range(2))
    done, device = 0, student.model.device

    def batch(picked: Sequence[int]) -> tuple[Tensor, Tensor]:
        ids_BL = nn.utils.rnn.pad_sequence([rows[index] for index in picked], batch_first=True, padding_value=pad_token_id)
        mask_BL = nn.utils.rnn.pad_sequence([torch.ones_like(rows[index]) for index in picked], batch_first=True)
        return ids_BL.to(device), mask_BL.to(device)

    student.settle(*batch(range(0, len(rows), -(-len(rows) // SETTLING))))
    for picked in token_batches([len(row) for row in rows], MAX_TOKENS):
        prompt, row = student.features(*batch(picked))
        prompt_BD[picked], row_BD[picked] = prompt.double().cpu(), row.double().cpu()
        done += len(picked)
        report(done, len(rows))
    sizes = tuple(len(lesson.rows) for lesson in lessons)
    return _Table(
        prompt_BD,
        row_BD,
        torch.tensor([rewards for lesson in lessons for rewards in lesson.by_route], dtype=torch.float64),
        torch.arange(len(lessons)).repeat_interleave(torch.tensor(sizes)),
        sizes,
        torch.tensor([lesson.route for lesson in lessons]),
        torch.tensor([lesson.logits for lesson in lessons], dtype=torch.float64).view(len(lessons), -1),
    )


# --- gates --------------------------------------------------------------------------------------------------------------------------


def _gates(table: _Table, rewards_BC: Tensor, router_TD: Tensor | None, level_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gates as linear readings of prompt (C, D) and row (C, D), with biases (C,)."""
    width, routes = table.row_BD.shape[1], rewards_BC.shape[1]
    categories = table.logits_PT.shape[1]
    if routes == 1 or categories == 0:
        return torch.zeros(routes, width), torch.zeros(routes, width), torch.zeros(routes)
    features_BF = torch.cat([table.prompt_BD, table.row_BD], 1)
    start_TF = torch.zeros(categories, 2 * width, dtype=torch.float64)
    if router_TD is not None:
        start_TF[:, :width] = router_TD.double().cpu()
    logits_BT = table.logits_PT[table.prompt_B]
    missing_BT = logits_BT - features_BF @ start_TF.T
    fold_B = table.prompt_B % FOLDS

    def predicted(strength: float) -> Tensor:
        """Logits of every prompt by a ridge that has not seen it."""
        found_BT = torch.zeros_like(logits_BT)
        for fold in range(FOLDS):
            held_B = fold_B == fold
            if held_B.any():
                weight_TF, bias_T = _ridge(features_BF[~held_B], missing_BT[~held_B], strength)
                found_BT[held_B] = features_BF[held_B] @ (start_TF + weight_TF).T + bias_T
        return found_BT

    tries = {strength: predicted(strength) for strength in GATE_STRENGTHS}
    strength = min(tries, key=lambda s: float((tries[s] - logits_BT).square().mean()))
    weight_TF, bias_T = _ridge(features_BF, missing_BT, strength)
    route_B = table.route_P[table.prompt_B]
    mix_CT, mix_bias_C = _softmax_regression(tries[strength], route_B, table, routes)
    gates_BC = tries[strength] @ mix_CT.T + mix_bias_C
    target_B = table.rewards_BC.gather(1, route_B[:, None])[:, 0]

    def error(sharpness: float) -> float:
        mixed_B = ((sharpness * gates_BC).softmax(1) * rewards_BC).sum(1)
        equations = equations_of(mixed_B[:, None], target_B[:, None], table.sizes, level_weight)
        return float(sum((equation[:, 0] - equation[:, 2]).square().sum() for equation in equations))

    sharpness = min(SHARPNESS, key=error)
    weight_CF = sharpness * mix_CT @ (start_TF + weight_TF)
    return weight_CF[:, :width], weight_CF[:, width:], sharpness * (mix_CT @ bias_T + mix_bias_C)


def _ridge(x_BF: Tensor, y_BT: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Weights (T, F), which a penalty shrinks, and biases (T,)."""
    mean_F, mean_T = x_BF.mean(0), y_BT.mean(0)
    gram = (x_BF - mean_F).T @ (x_BF - mean_F)
    penalty = strength * gram.diagonal().mean() + 1e-12
    weight_TF = torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=gram.dtype), (x_BF - mean_F).T @ (y_BT - mean_T)).T
    return weight_TF, mean_T - weight_TF @ mean_F


def _softmax_regression(logits_BT: Tensor, route_B: Tensor, table: _Table, routes: int) -> tuple[Tensor, Tensor]:
    """Log-odds of the routes as a linear reading of the router's logits; every prompt counts as one."""
    weight = torch.zeros(routes, logits_BT.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    x_BT = torch.cat([logits_BT, torch.ones(len(logits_BT), 1, dtype=torch.float64)], 1)
    share_B = 1 / torch.tensor(table.sizes, dtype=torch.float64)[table.prompt_B] / len(table.sizes)
    optimiser = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss: Tensor = (nn.functional.cross_entropy(x_BT @ weight.T, route_B, reduction="none") * share_B).sum()
        loss = loss + DECAY * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    found = weight.detach()
    return found[:, :-1], found[:, -1]
