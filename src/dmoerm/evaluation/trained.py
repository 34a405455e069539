"""Training with its measurement: a recipe from files to a saved model and its figures on the comparisons it has not seen."""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dmoerm.data.sources import RunData, load_run_data
from dmoerm.evaluation.result_files import result_document
from dmoerm.evaluation.run import ModelReport, evaluate_model, write_json
from dmoerm.recipe import Recipe, recipe_hash

if TYPE_CHECKING:
    from dmoerm.modeling.reward_model import RewardModel
    from dmoerm.training.change import Change
    from dmoerm.training.pipeline import TrainResult

__all__ = ["change_and_evaluate", "evaluate_run", "train_and_evaluate"]


def train_and_evaluate(
    recipe: Recipe,
    *,
    overwrite: bool = False,
    resume: bool = False,
    force_resume: bool = False,
    quiet: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> "tuple[TrainResult, ModelReport | None]":
    """Train a recipe, then measure the model on its held-out comparisons beside the recipe's baselines.

    The model goes to `recipe.output`, `evaluation.json` beside it to the run's folder (`<output>-run`).

    Args:
        recipe: the run.
        overwrite: replace a model of ours at the output.
        resume: go on with an unfinished run.
        force_resume: go on although it differs.
        quiet: no progress on stderr.
        progress: called with (comparisons scored, all of them) while the model is measured.

    Returns:
        What training gave, and the report; None where nothing with a preference is held out, and in all processes but the first.

    Raises:
        DmoermError: see `training.pipeline.train_recipe`.
    """
    from dmoerm.training.pipeline import train_recipe

    result = train_recipe(recipe, overwrite=overwrite, resume=resume, force_resume=force_resume, quiet=quiet)
    return result, _measured(result, recipe, progress)


def change_and_evaluate(
    recipe: Recipe,
    changes: "Sequence[Change]",
    *,
    quiet: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> "tuple[TrainResult, ModelReport | None]":
    """Change parts of the model at `recipe.output` (`training.change`), then measure it as `train_and_evaluate` does.

    Raises:
        DmoermError: see `training.change.change_model`.
    """
    from dmoerm.training.change import change_model

    result = change_model(recipe, changes, quiet=quiet)
    return result, _measured(result, recipe, progress)


def _measured(result: "TrainResult", recipe: Recipe, progress: Callable[[int, int], None]) -> ModelReport | None:
    from dmoerm.training.pipeline import is_first_process, run_folder

    if not is_first_process() or not any(comparison.has_preference for comparison in result.test):
        return None
    report = evaluate_run(result.model, recipe, load_run_data(recipe), progress=progress)
    write_json(run_folder(recipe.output) / "evaluation.json", result_document("agreement", report.as_dict()))
    return report


def evaluate_run(
    model: "RewardModel", recipe: Recipe, data: RunData, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> ModelReport:
    """Measure a model on the held-out comparisons of its recipe, with the recipe's options."""
    options = recipe.evaluation
    return evaluate_model(
        model,
        data.test,
        training=data.comparisons,
        baselines=options.baselines,
        aggregations=tuple(dict.fromkeys((model.aggregation, "mlp", "mean"))),
        seed=recipe.seed,
        samples=options.bootstrap_samples,
        confidence=options.confidence,
        meta={"recipe": recipe_hash(recipe), "model": os.fspath(recipe.output.name)},
        progress=progress,
    )
