"""What the verbs that change one part of a model share: `train --only`, `add-capability`, `add-category`, `remove`. No verb of its own."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from dmoerm.cli.main import DONE
from dmoerm.cli.options import add_recipe, add_run, print_measured, progress_line, quiet_libraries, read_run
from dmoerm.errors import ConfigError

if TYPE_CHECKING:
    from dmoerm.evaluation.run import ModelReport
    from dmoerm.recipe import Recipe

__all__ = ["add_part_arguments", "change_parts", "run_change"]

Action = Literal["train", "add", "remove"]


def add_part_arguments(parser: argparse.ArgumentParser, part: str, meaning: str) -> None:
    """RECIPE, one or more parts, and where the model is."""
    add_recipe(parser)
    parser.add_argument("part", metavar=part, nargs="+", help=meaning)
    add_run(parser)


def run_change(args: argparse.Namespace, action: Action, *, capability: bool | None = None) -> int:
    """Change the parts, measure the model, print the table.

    Args:
        args: as parsed.
        action: what to do with the parts.
        capability: the parts must be capabilities (True) or categories (False); None takes both.
    """
    recipe = read_run(args)
    for part in args.part:
        if capability is not None and ("/" in part) != capability:
            form = "category/capability" if capability else "the name of a category"
            raise ConfigError(f"{part}: expected {form}, for example {'objective_qa/correctness' if capability else 'objective_qa'}")
    quiet_libraries()
    print_measured(recipe, change_parts(args, recipe, action, args.part))
    return DONE


def change_parts(args: argparse.Namespace, recipe: "Recipe", action: Action, parts: Sequence[str]) -> "ModelReport | None":
    """One change for each part, all in one go."""
    from dmoerm.evaluation.trained import change_and_evaluate
    from dmoerm.modeling.manifest import read_manifest
    from dmoerm.recipe import recipe_taxonomy
    from dmoerm.training.change import Change, parse_part

    # What is removed may be gone from the recipe's taxonomy already; the model still knows it.
    taxonomy = read_manifest(recipe.output).taxonomy if action == "remove" else recipe_taxonomy(recipe)
    changes = [Change(action, parse_part(part, taxonomy)) for part in dict.fromkeys(parts)]
    _, report = change_and_evaluate(recipe, changes, quiet=args.quiet, progress=progress_line("measured", quiet=args.quiet))
    return report
