"""`dmoerm remove RECIPE PART`: take a category or one expert out of a trained model."""

import argparse

from dmoerm.cli.change import add_part_arguments, run_change

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmoerm remove`."""
    add_part_arguments(parser, "PART", "a category, or category/capability; may be several")


def run(args: argparse.Namespace) -> int:
    """Change the model, measure it, print the table."""
    return run_change(args, "remove")
