"""`export --to seqcls`: one plain sequence classifier that has learned a double-layer model's rewards, and how well it has.

The user's prompts and responses are scored by the teacher; a student learns from one part of the prompts and is measured on the other,
as it was written to disk and through transformers alone, beside a teacher trained again with another seed where there is one: what two
trainings of the same recipe differ by is as close as anybody can ask a student to come.

What the student gives is the reward. Category, capabilities, spread and uncertainty stay with the teacher.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmoerm.data.files import scan_file
from dmoerm.data.jsonl import map_rows
from dmoerm.data.splits import split_of
from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.bootstrap import Resampling
from dmoerm.evaluation.rank_agreement import Figure, RankAgreement, kendall_difference, rank_agreement
from dmoerm.evaluation.scorers import Candidates, ClassifierScorer
from dmoerm.evaluation.student_course import prepare_course, scored
from dmoerm.modeling.model_folder import refuse_taken, written_whole
from dmoerm.modeling.student_card import student_card
from dmoerm.recipe import Recipe, recipe_hash
from dmoerm.records import Message, prompt_hash

if TYPE_CHECKING:
    from dmoerm.evaluation.student_course import Course
    from dmoerm.modeling.reward_model import RewardModel
    from dmoerm.modeling.student import Student
    from dmoerm.training.distillation import Distilled
    from dmoerm.training.lessons import Lesson
    from dmoerm.training.trainer import PhaseSettings

__all__ = ["StudentExport", "StudentOptions", "check_student_target", "export_student", "read_candidates", "train_reseeded"]

LEAST_PROMPTS = 8
"""Prompts with several responses below which nothing is learned, or measured with an interval."""

HUNDREDTHS = 100

UNSCORED = "responses that the teacher cannot score"


@dataclass(frozen=True, slots=True)
class StudentOptions:
    """How a student is taught.

    Attributes:
        backbone: another pretrained model; None is the teacher's, as its `general` task model left it.
        epochs: passes over the prompts; 0 trains nothing and leaves what is fitted in closed form. None: 0 for a student that routes, 5 for
            others.
        learning_rate: of AdamW, peak; it falls to 0. None: 1e-5 where the student starts from the teacher's body, 5e-5 from another.
        prompts_per_batch: prompts whose responses make a batch.
        level_weight: see `training.distillation.distillation_loss`.
        held_out_fraction: share of the prompts that is only measured on, where no test files are given; a hundredth is the least step.
        seed: of the split, of new weights and of the order of batches.
    """

    backbone: str | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    prompts_per_batch: int = 8
    level_weight: float = 0.1
    held_out_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("epochs", 0), ("prompts_per_batch", 1), ("learning_rate", 1e-9), ("level_weight", 0.0)):
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise ConfigError(f"{name} is {value}; expected at least {low:g}")
        if not 0.01 <= self.held_out_fraction <= 0.9:
            raise ConfigError(f"held_out_fraction is {self.held_out_fraction}; expected 0.01 to 0.9")

    @property
    def peak_rate(self) -> float:
        """The learning rate, chosen where it was not given."""
        return self.learning_rate or (1e-5 if self.backbone is None else 5e-5)


@dataclass(frozen=True, slots=True)
class StudentExport:
    """What was written and measured.

    Attributes:
        folder: the student.
        architecture: its class in transformers.
        backbone: what it was made from, and `from_teacher` whether with what the teacher had learned.
        parameters: of the student.
        max_length_tokens: of a row.
        truncation_side: where its tokenizer cuts: the side that leaves more of what the teacher sees.
        routes: categories that it tells apart, the most frequent first; empty for a student with one head.
        options: how it was taught.
        epochs: passes over the prompts; 0: only what has a closed form was fitted.
        learning_rate: its peak.
        epoch, errors: which pass was kept and why; see `training.distillation.Distilled`.
        train_prompts: prompts it learned from, with `train_responses` responses.
        held_out_prompts: prompts it was measured on.
        dropped: what was left out of the data, by reason, with counts.
        truncated: share of all rows that are longer than the budget.
        student: beside the teacher, on the held-out prompts.
        reseeded: the re-seeded teacher, likewise; None where there was none.
        difference: Kendall's τ of the student less that of the re-seeded teacher.
    """

    folder: Path
    architecture: str
    backbone: str
    from_teacher: bool
    parameters: int
    max_length_tokens: int
    truncation_side: str
    routes: tuple[str, ...]
    options: StudentOptions
    epochs: int
    learning_rate: float
    epoch: int
    errors: tuple[float, ...]
    train_prompts: int
    train_responses: int
    held_out_prompts: int
    dropped: dict[str, int]
    truncated: float
    student: RankAgreement
    reseeded: RankAgreement | None
    difference: Figure | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the folder is left out, for it is where this lies."""
        return {"format": "seqcls", "dmoerm_version": version("dmoerm"), **{k: v for k, v in asdict(self).items() if k != "folder"}}

    def as_table(self) -> str:
        """The models beside the teacher, one line each."""
        rows = [("student", self.student)] + ([] if self.reseeded is None else [("re-seeded teacher", self.reseeded)])
        head = ("beside the teacher", "Kendall's tau", "Spearman's rho", "pairs alike", "R2 of margins")
        cells = [head, *((name, *map(str, (r.kendall, r.spearman, r.agreement, r.margin_r2))) for name, r in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
        facts = f"{self.student.n_prompts:,} held-out prompts, {self.student.n_pairs:,} pairs; 95 % intervals over prompts"
        return "\n".join([*lines, facts])


def export_student(
    teacher: "RewardModel",
    out: Path,
    data: Sequence[Candidates],
    *,
    test: Sequence[Candidates] = (),
    reseeded: "RewardModel | None" = None,
    options: StudentOptions | None = None,
    resampling: Resampling | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> StudentExport:
    """Teach, write and measure a student.

    Args:
        teacher: the model.
        out: the folder to write.
        data: prompts with responses, each prompt once (see `read_candidates`).
        test: prompts to measure on; those that are in `data` too are not learned from. None: a share of `data`, by a hash of the prompt.
        reseeded: the teacher's recipe trained with another seed.
        options: how it is taught.
        resampling: of the intervals.
        overwrite: replace an earlier export.
        progress: called with (what is going on, done, all).

    Raises:
        ConfigError: the backbone has no stock classifier, several processes were started, or `reseeded` is the teacher itself.
        DataError: too few prompts to learn from or to measure on.
        ArtifactError: the folder is taken.
        TrainingError: as `training.distillation.distil`.
    """
    from dmoerm.modeling.peft_export import EXPORT_MARKER
    from dmoerm.modeling.student import save_student

    options = options or StudentOptions()
    check_student_target(out, overwrite=overwrite)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a student is taught in one process; start dmoerm without accelerate launch or torchrun")
    learned, held_out, left_out = _split(data, test, options)
    _require(sum(len(one.responses) > 1 for one in learned), "to learn from")
    course = prepare_course(teacher, learned, backbone=options.backbone, seed=options.seed, progress=progress)
    student, lessons = course.student, course.lessons
    _require(sum(len(lesson.rows) > 1 for lesson in lessons), "to learn from")
    known = scored(teacher, held_out, "teacher, held out", progress)
    settings = _settings(options, student, teacher)
    taught = _teach(teacher, course, options, settings, progress)
    with written_whole(out) as folder:
        save_student(student, folder)
        found = ClassifierScorer(str(folder), device=str(teacher.device), max_length_tokens=student.max_length_tokens).score(held_out)
        beside, other, difference = rank_agreement(known, found, resampling), None, None
        if reseeded is not None:
            again = scored(reseeded, held_out, "re-seeded teacher", progress)
            if again == known:
                raise ConfigError("the re-seeded teacher gives every held-out response the teacher's own reward: it is the same model. "
                                  "Train the recipe with another seed (--set seed=1 --output OTHER), or give --recipe")  # fmt: skip
            other = rank_agreement(known, again, resampling)
            difference = kendall_difference(known, found, again, resampling)
        result = StudentExport(
            folder=out,
            architecture=type(student.model).__name__,
            backbone=student.backbone,
            from_teacher=student.from_teacher,
            parameters=sum(parameter.numel() for parameter in student.model.parameters()),
            max_length_tokens=student.max_length_tokens,
            truncation_side=student.tokenizer.truncation_side,
            routes=course.routes,
            options=options,
            epochs=settings.epochs,
            learning_rate=options.peak_rate,
            epoch=taught.epoch,
            errors=taught.errors,
            train_prompts=len(lessons),
            train_responses=sum(len(lesson.rows) for lesson in lessons),
            held_out_prompts=len(held_out),
            dropped=left_out | ({UNSCORED: course.unscored} if course.unscored else {}),
            truncated=course.cut / max(1, sum(len(one.responses) for one in learned)),
            student=beside,
            reseeded=other,
            difference=difference,
        )
        (folder / EXPORT_MARKER).write_text(json.dumps(result.as_dict(), indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(student_card(result.as_dict()), encoding="utf-8")
    return result


def check_student_target(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that is taken, before anything takes long.

    Raises:
        ArtifactError: it holds an export and `overwrite` is False, or anything else.
    """
    from dmoerm.modeling.peft_export import EXPORT_MARKER

    refuse_taken(out, marker=EXPORT_MARKER, what="export", overwrite=overwrite)


def train_reseeded(teacher: "RewardModel", recipe: Recipe, out: Path, *, overwrite: bool = False, quiet: bool = False) -> "RewardModel":
    """The teacher's recipe trained once more with its seed + 1, into `<out>-reseeded`.

    The seed also decides which prompts a recipe without `data.test` holds out.

    Args:
        teacher: whose manifest says which recipe made it.
        recipe: that recipe, with its files.
        out: of the student.
        overwrite: replace an earlier one.
        quiet: no progress on stderr.

    Raises:
        ConfigError: another recipe than the one that made the teacher.
        DmoermError: as `training.pipeline.train_recipe`.
    """
    from dmoerm.training.pipeline import train_recipe

    known = teacher.metadata.get("recipe_hash")
    if recipe_hash(recipe) != known:
        raise ConfigError(
            f"--recipe: its hash is {recipe_hash(recipe)}, but the model was made by {known}: other values, or files that lie elsewhere. "
            "Give the recipe that made the model, or train that one with another seed and name the result (--reseeded)"
        )
    again = recipe.model_copy(update={"seed": recipe.seed + 1, "output": out.absolute().with_name(f"{out.absolute().name}-reseeded")})
    return train_recipe(again, overwrite=overwrite, quiet=quiet).model


def read_candidates(paths: Sequence[Path]) -> list[Candidates]:
    """Prompts with their responses from any files that `dmoerm score` takes; ranks and labels are not read.

    The responses to one prompt are put together over all rows and files, each text once; empty ones are left out.

    Raises:
        DataError: a file or row that cannot be used, or there is none.
    """
    from dmoerm.scoring.requests import read_request

    found: dict[str, tuple[tuple[Message, ...], dict[str, None]]] = {}
    for path in paths:
        for request in map_rows(path, lambda row, path=path: read_request(row, path), scan=scan_file).items:  # type: ignore[misc]
            _, texts = found.setdefault(prompt_hash(request.prompt), (request.prompt, {}))
            texts.update(dict.fromkeys(text for text in request.responses if text.strip()))
    candidates = [Candidates(prompt, tuple(texts)) for prompt, texts in found.values() if texts]
    if not candidates:
        raise DataError(f"{', '.join(map(str, paths))}: no prompt with a response")
    return candidates


def _split(
    data: Sequence[Candidates], test: Sequence[Candidates], options: StudentOptions
) -> tuple[list[Candidates], list[Candidates], dict[str, int]]:
    if test:
        tested = {prompt_hash(one.prompt) for one in test}
        learned = [one for one in data if prompt_hash(one.prompt) not in tested]
        left_out = {"prompts that are also in the test files": len(data) - len(learned)}
        held_out = list(test)
    else:
        bound = round(options.held_out_fraction * HUNDREDTHS)
        sides = [split_of(one.prompt, HUNDREDTHS, options.seed, "student") < bound for one in data]
        learned = [one for one, held in zip(data, sides, strict=True) if not held]
        held_out, left_out = [one for one, held in zip(data, sides, strict=True) if held], {}
    _require(sum(len(one.responses) > 1 for one in held_out), "to measure on")
    return learned, held_out, {reason: count for reason, count in left_out.items() if count}


def _require(prompts: int, what: str) -> None:
    if prompts < LEAST_PROMPTS:
        raise DataError(
            f"{prompts} prompts with several responses are left {what}; expected at least {LEAST_PROMPTS}. Give more files (--data), "
            "each with several responses to a prompt, or another --held-out-fraction"
        )


def _teach(
    teacher: "RewardModel",
    course: "Course",
    options: StudentOptions,
    settings: "PhaseSettings",
    progress: Callable[[str, int, int], None],
) -> "Distilled":
    from dmoerm.training.distillation import distil
    from dmoerm.training.readouts import fit_readouts

    routed, pad = course.student.routed, int(course.student.tokenizer.pad_token_id)

    def fit(lessons: Sequence["Lesson"]) -> None:
        assert routed is not None
        readouts = fit_readouts(
            routed,
            lessons,
            router_TD=course.router_TD,
            pad_token_id=pad,
            level_weight=options.level_weight,
            report=lambda done, total: progress("student: rows read", done, total),
        )
        routed.write(readouts)

    if routed is not None:
        routed.only_the_body_learns()
    return distil(
        course.student.model.to(teacher.device),
        course.lessons,
        settings,
        pad_token_id=pad,
        level_weight=options.level_weight,
        first=None if routed is None else fit,
        report=lambda step, total: progress("student: steps", step, total),
    )


def _settings(options: StudentOptions, student: "Student", teacher: "RewardModel") -> "PhaseSettings":
    from dmoerm.training.pipeline import computes_bf16
    from dmoerm.training.trainer import PhaseSettings

    return PhaseSettings(
        learning_rate=options.peak_rate,
        epochs=(5 if student.routed is None else 0) if options.epochs is None else options.epochs,
        comparisons_per_batch=options.prompts_per_batch,
        weight_decay=0.01,
        warmup_fraction=0.1,
        gradient_accumulation_steps=1,
        seed=options.seed,
        bf16=computes_bf16(teacher.device),
    )
