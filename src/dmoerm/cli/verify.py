"""`dmoerm verify MODEL`: whether a saved model is whole and gives the rewards that it gave when it was saved."""

import argparse

from dmoerm.cli.main import DONE, FAILED
from dmoerm.cli.options import add_model, check_device, print_json, quiet_libraries

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmoerm verify`."""
    add_model(parser)
    parser.add_argument("--no-load", action="store_true", help="look at the files alone: no backbone is loaded, no canary scored")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Check and print; a fault fails."""
    from dmoerm.modeling.verification import verify_artifact

    quiet_libraries()
    check_device(args.device)
    result = verify_artifact(args.model, load=not args.no_load, device=args.device, backbone=args.backbone)
    if args.json:
        print_json(result.as_dict())
    else:
        print(result.as_text())
    return FAILED if result.problems else DONE
