"""`dmoerm train RECIPE`: router and the three phases, then the held-out comparisons beside the baselines."""

import argparse
from pathlib import Path

from dmoerm.cli.main import DONE
from dmoerm.cli.options import add_recipe, progress_line, quiet_libraries, read_recipe

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmoerm train`."""
    add_recipe(parser)
    parser.add_argument("--output", metavar="DIR", type=Path, help="where the model goes, from here; default: as the recipe says")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is there, and begin an unfinished run anew")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished run; with none, begin")
    parser.add_argument(
        "--force-resume",
        action="store_true",
        help="go on although recipe, data, backbone or processes have changed; the change is recorded",
    )
    parser.add_argument("--device", metavar="D", help="auto, cpu, cuda, cuda:1 or mps; default: as the recipe says")


def run(args: argparse.Namespace) -> int:
    """Train, measure, print the table."""
    from dmoerm.evaluation.trained import train_and_evaluate
    from dmoerm.training.pipeline import is_first_process, run_folder

    recipe = read_recipe(args.recipe, args.set)
    if args.output is not None:
        recipe = recipe.model_copy(update={"output": args.output.absolute()})
    if args.device is not None:
        recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"device": args.device})})
    quiet_libraries()
    _, report = train_and_evaluate(
        recipe,
        overwrite=args.overwrite,
        resume=args.resume,
        force_resume=args.force_resume,
        quiet=args.quiet,
        progress=progress_line("measured", quiet=args.quiet),
    )
    if not is_first_process():
        return DONE
    if report is None:
        print("Nothing with a preference is held out, so nothing was measured.")
    else:
        print(report.as_table())
        print(f"\nFigures: {run_folder(recipe.output) / 'evaluation.json'}")
    print(f"Model: {recipe.output}")
    return DONE
