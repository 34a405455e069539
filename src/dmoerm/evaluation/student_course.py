"""What a student is going to learn: the student as it begins, and the lessons, which a teacher gives on prompts and responses.

A student that routes is told what each response is worth under each category that the teacher's router chose somewhere in the data; one
with a single head, what it is worth under the chosen one.

Shapes: T categories of the router, D width of the body.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmoerm.evaluation.scorers import Candidates, ModelScorer, Rewards

if TYPE_CHECKING:
    from torch import Tensor

    from dmoerm.modeling.reward_model import RewardModel
    from dmoerm.modeling.student import Student
    from dmoerm.training.lessons import Lesson

__all__ = ["Course", "prepare_course", "scored"]

PROMPTS_AT_ONCE = 256

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Course:
    """A student with its lessons.

    Attributes:
        student: has learned nothing yet.
        lessons: one a prompt with a response that the teacher can score.
        routes: categories that the student tells apart, the most frequent first; empty for one with a single head.
        router_TD: the teacher's router as weights on the mean over a prompt's tokens; None where it reads another body than the student's.
        unscored: responses that are left out.
        cut: rows that are longer than the budget.
    """

    student: "Student"
    lessons: tuple["Lesson", ...]
    routes: tuple[str, ...]
    router_TD: "Tensor | None"
    unscored: int
    cut: int


def prepare_course(teacher: "RewardModel", data: Sequence[Candidates], *, backbone: str | None, seed: int, progress: Progress) -> Course:
    """Build the student and let the teacher score.

    Args:
        teacher: the model.
        data: prompts with responses.
        backbone: another pretrained model for the student; None: the teacher's.
        seed: of new weights.
        progress: called with (what is going on, done, all).

    Raises:
        ConfigError: as `build_student`.
    """
    from dmoerm.modeling.student import build_student, encode, reading_of, student_renderer
    from dmoerm.training.lessons import Lesson

    prompts = [one.prompt for one in data]
    reading = reading_of(student_renderer(teacher, backbone), [(one.prompt, one.responses) for one in data])
    chosen = [category for category, _ in teacher.route(prompts)]
    routes = tuple(category for category, _ in Counter(chosen).most_common())
    student = build_student(teacher, backbone=backbone, reading=reading, routes=len(routes), seed=seed)
    if student.routed is None:
        routes, chosen, tables = (), [""] * len(data), {"": scored(teacher, data, "teacher", progress)}
    else:
        tables = {route: scored(teacher, data, f"teacher as {route}", progress, category=route) for route in routes}
    logits = _router_logits(teacher, data)
    lessons, unscored, cut = [], 0, 0
    for number, one in enumerate(data):
        rows, by_route, own = [], [], []
        for index, response in enumerate(one.responses):
            ids, truncated = encode(student.tokenizer, one.prompt, response)
            rewards = {route: table[number][index] for route, table in tables.items()}
            cut += truncated
            if not ids or None in rewards.values():
                unscored += 1
                continue
            rows.append(tuple(ids))
            by_route.append(tuple(reward for reward in rewards.values() if reward is not None))
            own.append(by_route[-1][list(tables).index(chosen[number])])
        if rows:
            lessons.append(Lesson(tuple(rows), tuple(own), tuple(by_route), list(tables).index(chosen[number]), logits[number]))
    router_TD = _router_weights(teacher) if backbone is None else None
    return Course(student, tuple(lessons), routes, router_TD, unscored, cut)


def scored(
    model: "RewardModel", candidates: Sequence[Candidates], what: str, progress: Progress, *, category: str | None = None
) -> list[Rewards]:
    """A model's rewards, with progress; `category` judges in place of each prompt's own."""
    scorer = ModelScorer(model, category=category)
    found: list[Rewards] = []
    for start in range(0, len(candidates), PROMPTS_AT_ONCE):
        found += scorer.score(candidates[start : start + PROMPTS_AT_ONCE])
        progress(f"{what}: prompts", len(found), len(candidates))
    return found


def _router_logits(teacher: "RewardModel", candidates: Sequence[Candidates]) -> list[tuple[float, ...]]:
    if not teacher.router.categories:
        return [()] * len(candidates)
    vectors_PD = teacher.prompt_vectors([one.prompt for one in candidates])
    return [tuple(logits) for logits in teacher.router.logits(vectors_PD).tolist()]


def _router_weights(teacher: "RewardModel") -> "Tensor | None":
    router = teacher.router
    return None if router.finetuned or not router.categories else router.weight_TD / router.std_D / router.temperature
