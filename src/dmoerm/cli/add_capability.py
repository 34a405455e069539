"""`dmoerm add-capability RECIPE CATEGORY/CAPABILITY`: one more expert for a category of a trained model."""

import argparse

from dmoerm.cli.change import add_part_arguments, run_change

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmoerm add-capability`."""
    add_part_arguments(parser, "PART", "category/capability, named in the recipe's taxonomy and with labels in its data; may be several")


def run(args: argparse.Namespace) -> int:
    """Change the model, measure it, print the table."""
    return run_change(args, "add", capability=True)
