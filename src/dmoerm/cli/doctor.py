"""`dmoerm doctor`: versions, devices and what is missing on this machine; what to put into a bug report."""

import argparse

from dmoerm.cli.main import DONE, FAILED
from dmoerm.cli.options import print_json

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmoerm doctor`."""
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Look and print; only a fault, without which nothing works, fails."""
    from dmoerm.installation import inspect_installation

    result = inspect_installation()
    if args.json:
        print_json(result.as_dict())
    else:
        print(result.as_text())
        warnings, faults = len(result.at("warning")), len(result.at("fault"))
        print(f"\n{faults} {'fault' if faults == 1 else 'faults'}, {warnings} {'warning' if warnings == 1 else 'warnings'}")
    return FAILED if result.at("fault") else DONE
