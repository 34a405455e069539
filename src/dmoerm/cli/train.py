"""`dmoerm train RECIPE`: router and the three phases, then the held-out comparisons beside the baselines."""

import argparse
from typing import TYPE_CHECKING

from dmoerm.cli.main import DONE
from dmoerm.cli.options import add_recipe, add_run, print_measured, progress_line, quiet_libraries, read_run

if TYPE_CHECKING:
    from dmoerm.evaluation.run import ModelReport
    from dmoerm.recipe import Recipe

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmoerm train`."""
    add_recipe(parser)
    add_run(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is there, and begin an unfinished run anew")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished run; with none, begin")
    parser.add_argument(
        "--force-resume",
        action="store_true",
        help="go on although recipe, data, backbone or processes have changed; the change is recorded",
    )
    parser.add_argument(
        "--only",
        metavar="PART",
        action="append",
        default=[],
        help="train one part of the model that is there anew and keep the rest byte for byte: a category, or category/capability; "
        "may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    """Train, measure, print the table."""
    recipe = read_run(args)
    quiet_libraries()
    print_measured(recipe, _train_only(args, recipe) if args.only else _train_all(args, recipe))
    return DONE


def _train_all(args: argparse.Namespace, recipe: "Recipe") -> "ModelReport | None":
    from dmoerm.evaluation.trained import train_and_evaluate

    _, report = train_and_evaluate(
        recipe,
        overwrite=args.overwrite,
        resume=args.resume,
        force_resume=args.force_resume,
        quiet=args.quiet,
        progress=progress_line("measured", quiet=args.quiet),
    )
    return report


def _train_only(args: argparse.Namespace, recipe: "Recipe") -> "ModelReport | None":
    from dmoerm.cli.change import change_parts

    return change_parts(args, recipe, "train", args.only)
