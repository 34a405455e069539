"""`dmoerm disturbance RECIPE`: one model on each category, on pairs and on all, and what each makes of every category."""

import argparse
from pathlib import Path

from dmoerm.cli.main import DONE
from dmoerm.cli.options import add_recipe, check_device, print_json, quiet_libraries, read_recipe

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmoerm disturbance`."""
    add_recipe(parser)
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="where figures, page and the rewards of each model go; what an earlier run of the same study left there is used. "
        "Default: beside the model of the recipe, as MODEL-disturbance",
    )
    parser.add_argument("--overwrite", action="store_true", help="begin anew where a study was begun, losing what it has trained")
    parser.add_argument(
        "--equal",
        choices=("steps", "epochs"),
        default="steps",
        help="what all models have alike: optimizer steps (small sets are passed over more often) or passes (large sets take more steps)",
    )
    parser.add_argument(
        "--steps", metavar="N", type=int, help="optimizer steps of every model; default: the recipe's epochs over all categories"
    )
    parser.add_argument(
        "--sizes-equal",
        action="store_true",
        help="give every model as many training comparisons as the smallest category has, so that mixed data is not more data",
    )
    parser.add_argument("--no-pairs", dest="pairs", action="store_false", help="train on no pairs of categories")
    parser.add_argument("--seeds", metavar="N", type=int, nargs="+", help="training seeds to average over; default: that of the recipe")
    parser.add_argument("--device", metavar="D", help="auto, cpu, cuda, cuda:1 or mps; default: as the recipe says")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Train what is missing, print the matrix, say where the page is."""
    from dmoerm.evaluation.disturbance_run import PAGE, DisturbanceOptions, run_disturbance

    recipe = read_recipe(args.recipe, args.set)
    seeds = None if args.seeds is None else tuple(args.seeds)
    options = DisturbanceOptions(args.equal, args.steps, args.sizes_equal, args.pairs, seeds)
    quiet_libraries()
    if args.device is not None:
        check_device(args.device)
        recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"device": args.device})})
    output = (args.output or recipe.output.with_name(f"{recipe.output.name}-disturbance")).absolute()
    study = run_disturbance(recipe, output, options, overwrite=args.overwrite, quiet=args.quiet)
    if args.json:
        print_json(study.as_dict())
    else:
        print(f"{study.as_table()}\n\nPage: {output / PAGE}")
    return DONE
