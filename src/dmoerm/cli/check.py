"""`dmoerm check RECIPE`: reads the recipe and its data, and shows what a training run would do with them."""

import argparse

from dmoerm.cli.main import DONE
from dmoerm.cli.options import add_recipe, print_json, read_recipe

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmoerm check`."""
    add_recipe(parser)
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the plan. Warnings are part of it and do not change the exit code."""
    from dmoerm.data.plan import plan_run

    plan = plan_run(read_recipe(args.recipe, args.set))
    if args.json:
        print_json(plan.as_dict())
    else:
        print(plan.as_text())
    return DONE
