"""A plan as text for a terminal; nothing is computed here."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dmoerm.data.cost import Memory
from dmoerm.taxonomy import GENERAL

if TYPE_CHECKING:
    from dmoerm.data.plan import CategoryPlan, LengthBias, RunPlan

__all__ = ["plan_text"]


def plan_text(plan: "RunPlan") -> str:
    """The plan, one block a question."""
    blocks = [
        [f"Recipe {plan.recipe_hash}, schedule {plan.schedule}"],
        ["Files", *_table(("", "as", "format", "train", "test"), _files(plan))],
        [
            _comparisons(plan),
            *_table(("", "train", "test", "phase 1 steps", "phase 2 steps", "judged by"), map(_category, plan.categories)),
        ],
        [f"Labels by capability ({plan.label_comparisons:,} comparisons carry some)", *_labels(plan)],
        ["Router prompts", *_wrapped(f"{name} {count:,}" for name, count in plan.router_prompts.items())],
        ["Length", f"  the longer response wins {_length(plan.length_train)} in training, {_length(plan.length_test)} held out"],
        [_steps(plan), *_memory(plan.memory)],
        ["Warnings", *(f"  - {warning}" for warning in plan.warnings)] if plan.warnings else ["No warnings."],
    ]
    return "\n\n".join("\n".join(block) for block in blocks)


def _files(plan: "RunPlan") -> Iterable[tuple[str, ...]]:
    for file in plan.files:
        yield Path(file.path).name, file.role, file.format, f"{file.train:,}", f"{file.test:,}"


def _comparisons(plan: "RunPlan") -> str:
    notes = [f"{plan.tied:,} all tied"] if plan.tied else []
    notes += [f"{plan.uncategorised:,} without a category (the router decides)"] if plan.uncategorised else []
    notes += [f"left out: {count:,} {reason}" for reason, count in plan.dropped.items()]
    sizes = f"{plan.train:,} to train on ({plan.train_prompts:,} prompts), {plan.test:,} held out ({plan.test_prompts:,} prompts)"
    return f"Comparisons: {'; '.join([sizes, *notes])}"


def _category(category: "CategoryPlan") -> tuple[str, ...]:
    phase_1, phase_2 = ("-", "-") if category.steps is None else (f"{category.steps.phase_1:,}", f"{category.steps.phase_2:,}")
    judge = f"{len(category.experts)} expert{'' if len(category.experts) == 1 else 's'}" if category.experts else "its task model alone"
    judge = judge if category.own_model else "general (too few)"
    return category.name, f"{category.train:,}", f"{category.test:,}", phase_1, phase_2, judge


def _labels(plan: "RunPlan") -> Iterable[str]:
    for category in plan.categories:
        counts = [(name, count.labels) for name, count in category.labels.items() if count.labels]
        if category.name != GENERAL and counts:
            yield f"  {category.name}"
            yield from _wrapped(f"{name} {count:,}{'' if name in category.experts else ' (no expert)'}" for name, count in counts)


def _length(bias: "LengthBias | None") -> str:
    return "no pair" if bias is None else f"{bias.longer_wins:.0%} of {bias.pairs:,} pairs"


def _steps(plan: "RunPlan") -> str:
    steps = [category.steps for category in plan.categories if category.steps is not None]
    first, second = sum(step.phase_1 for step in steps), sum(step.phase_2 for step in steps)
    return f"Steps at most: {first:,} in phase 1, {second:,} in phase 2, all categories and folds; phase 3 takes seconds"


def _memory(memory: Memory) -> Iterable[str]:
    parts = (("backbone", memory.backbone), ("trained weights", memory.trained), ("stored trunk states", memory.trunk_states))
    yield f"Memory, about: {', '.join(f'{name} {_mib(value)}' for name, value in parts)}"
    if memory.note:
        yield f"  ({memory.note})"


def _mib(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f} MiB" if value >= 10 or value == 0 else f"{value:.1f} MiB"


def _wrapped(words: Iterable[str]) -> Iterable[str]:
    line = "   "
    for word in words:
        if len(line) + len(word) > 98 and line.strip():
            yield line.rstrip(",")
            line = "   "
        line += f" {word},"
    yield line.rstrip(",")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    numeric = [head[column] in {"train", "test", "phase 1 steps", "phase 2 steps"} for column in range(len(head))]
    for line in lines:
        cells = (cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(line, widths, numeric, strict=True))
        yield f"  {'  '.join(cells)}".rstrip()
