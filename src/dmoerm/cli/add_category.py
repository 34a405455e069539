"""`dmoerm add-category RECIPE CATEGORY`: one more inner model for a trained model; the router is fitted anew."""

import argparse

from dmoerm.cli.change import add_part_arguments, run_change

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmoerm add-category`."""
    add_part_arguments(parser, "CATEGORY", "named in the recipe's taxonomy and with comparisons in its data; may be several")


def run(args: argparse.Namespace) -> int:
    """Change the model, measure it, print the table."""
    return run_change(args, "add", capability=False)
