"""One reward model on the comparisons of some categories: of one, of two, of all. What multi-task disturbance is measured with.

A mixture names the categories that a model learns. Every mixture goes through phase 1 as the recipe has it (`train_task_model`) on the same
frozen trunk, and one learning-rate schedule of a given number of steps: a smaller set is passed over more often, each pass in another
order. The head that phase 1 starts from has no steps; it is fitted on each comparison of the mixture once.

With a size, every mixture gets so many comparisons, an equal share of each of its categories. A category's comparisons are put in one order
that the seed decides, and every mixture takes the first ones, so what a mixture has of a category is part of what that category alone has.
"""

import copy
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from dmoerm.errors import ConfigError, TrainingError
from dmoerm.records import Comparison
from dmoerm.training.inner import InnerPlan, Workspace
from dmoerm.training.phase1 import task_items, train_task_model
from dmoerm.training.rows import Rows, member_vectors
from dmoerm.training.trainer import Item, PhaseSettings, steps_of_a_pass

__all__ = ["Budget", "Mixture", "budget", "draw", "mixtures_of", "train_mixture"]

SLOT = "mixture"
"""Name of the task adapter while a mixture is trained; one after the other they live in the same slot."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """The categories that one model learns.

    Attributes:
        name: for people; no category can have the name of a pair, or of all.
        key: for files.
        categories: one, two or all, in the order of the taxonomy.
    """

    name: str
    key: str
    categories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Budget:
    """What a mixture is trained with.

    Attributes:
        comparisons: distinct ones in it.
        steps: of the optimizer.
        passes: over its comparisons, a whole number where the steps end with a pass.
    """

    comparisons: int
    steps: int
    passes: float


def mixtures_of(categories: Sequence[str], *, pairs: bool = True) -> list[Mixture]:
    """Each category alone, every pair of them unless `pairs` is False, and all together; of two categories, all is the pair.

    Raises:
        ConfigError: fewer than two categories.
    """
    if len(categories) < 2:
        raise ConfigError(f"disturbance between {len(categories)} categories; expected at least two to train on apart and together")
    alone = [Mixture(name, f"alone-{name}", (name,)) for name in categories]
    several = itertools.combinations(categories, 2) if pairs and len(categories) > 2 else ()
    of_two = [Mixture(" + ".join(two), f"pair-{'+'.join(two)}", two) for two in several]
    return [*alone, *of_two, Mixture("all categories", "all", tuple(categories))]


def draw(of_category: Mapping[str, Sequence[Comparison]], mixture: Mixture, size: int | None, seed: int) -> list[Comparison]:
    """The comparisons of a mixture, in the order of the data.

    Args:
        of_category: the training comparisons of every category.
        mixture: which categories.
        size: how many in all, shared evenly over its categories, the first ones getting what is left over; None: every comparison.
        seed: of the order in which a category's comparisons are taken.

    Raises:
        ConfigError: a category has fewer comparisons than its share.
    """
    kept: list[Comparison] = []
    for place, name in enumerate(mixture.categories):
        own = of_category[name]
        share = len(own) if size is None else (size + len(mixture.categories) - 1 - place) // len(mixture.categories)
        if share > len(own):
            raise ConfigError(f"{mixture.name}: {share} comparisons of {name} are wanted, {len(own)} are there; ask for a smaller size")
        first = set(sorted((c.id for c in own), key=lambda id_: _place(id_, seed))[:share])
        kept += [c for c in own if c.id in first]
    return kept


def budget(count: int, settings: PhaseSettings) -> Budget:
    """Steps and passes of a set of `count` comparisons under these settings."""
    of_a_pass = steps_of_a_pass(count, settings)
    steps = settings.epochs * of_a_pass if settings.steps is None else settings.steps
    return Budget(count, steps, steps / of_a_pass)


def train_mixture(
    work: Workspace,
    comparisons: Sequence[Comparison],
    tests: Sequence[Comparison],
    plan: InnerPlan,
    settings: PhaseSettings,
    *,
    report: Callable[[int, int], None] = lambda step, total: None,
) -> dict[str, list[float]]:
    """Train phase 1 on `comparisons` and give the rewards of `tests` by the last step.

    Args:
        work: backbone, rendered rows and trunk states; left as it was found.
        comparisons: to learn from, each rendered and with a preference.
        tests: to give rewards to; those that could not be rendered fall away.
        plan: for the shape of the task adapter.
        settings: of phase 1, its seed included.
        report: called with (step, steps in all).

    Returns:
        One reward a response, by the id of the comparison.

    Raises:
        TrainingError: no test comparison was rendered, or as `run_phase`.
    """
    full = plan.task_shape.depth is None
    backbone = copy.deepcopy(work.backbone) if full else work.backbone
    states = None if full else work.states
    items = _items(work.rows, comparisons, use_margin=plan.task_shape.use_margin)
    known = [c for c in tests if c.id in work.rows.of_comparison]
    numbers = [row for c in known for row in work.rows.of_comparison[c.id]]
    if not numbers:
        raise TrainingError(f"none of {len(tests)} test comparisons can be rendered, so nothing could be measured")
    try:
        module, _ = train_task_model(
            backbone, work.rows, SLOT, items, [], plan.task_shape, settings, base_vectors=work.base_vectors, states=states, report=report
        )
        slot = None if full else SLOT
        vectors_BKD = member_vectors(backbone, work.rows, numbers, task=slot, experts=None, states=states, bf16=False)
        with torch.no_grad():
            rewards = (vectors_BKD[:, 0] @ module.heads_KD[0].cpu().float()).tolist()
    finally:
        work.backbone.remove("task", SLOT)
    reward_of = dict(zip(numbers, rewards, strict=True))
    return {c.id: [reward_of[row] for row in work.rows.of_comparison[c.id]] for c in known}


def _items(rows: Rows, comparisons: Sequence[Comparison], *, use_margin: bool) -> list[Item]:
    pairs = [(rows.of_comparison[c.id], [(pair.chosen, pair.rejected) for pair in c.pairs()]) for c in comparisons]
    return task_items(pairs, [c.margin for c in comparisons] if use_margin else None)


def _place(comparison_id: str, seed: int) -> bytes:
    return hashlib.sha256(f"mixture\n{seed}\n{comparison_id}".encode()).digest()
