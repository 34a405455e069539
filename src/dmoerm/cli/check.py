"""`dmoerm check RECIPE` shows what a training run would do; `dmoerm check FILE…` looks for what is wrong with preference files."""

import argparse
import os
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmoerm.cli.main import DONE, FAILED
from dmoerm.cli.options import print_json, read_recipe, terminal_colours

if TYPE_CHECKING:
    from dmoerm.data.doctor import DoctorReport
    from dmoerm.data.sources import RunData
    from dmoerm.recipe import Recipe

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmoerm check`."""
    parser.add_argument(
        "paths", metavar="RECIPE|FILE", type=Path, nargs="+", help="one recipe (.yaml, .yml), or files with preferences to train on"
    )
    parser.add_argument(
        "--test", metavar="FILE", type=Path, nargs="+", default=[], help="files with preferences to test on; beside files, not a recipe"
    )
    parser.add_argument("--format", help="a name of docs/data.md for all files, for example trl; default: by the keys of the rows of each")
    parser.add_argument(
        "--set",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        help="replace one value of the recipe; may be repeated",
    )
    parser.add_argument("--strict", action="store_true", help="leave with code 1 when there are problems (for CI)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the plan or the doctor's report. What they find changes the exit code only with --strict.

    Raises:
        ConfigError: a recipe among files, or an argument of the other use.
    """
    from dmoerm.errors import ConfigError

    recipes = [path for path in args.paths if path.suffix.lower() in (".yaml", ".yml")]
    if recipes and (len(args.paths) > 1 or args.test):
        raise ConfigError(f"{recipes[0]}: a recipe is checked by itself; its files stand in it. Give one recipe, or files only.")
    if recipes and args.format:
        raise ConfigError("--format is for files; the recipe names formats in data.formats. Leave --format out.")
    if args.set and not recipes:
        raise ConfigError("--set changes a value of a recipe, and none was given. Name a recipe (.yaml), or leave --set out.")
    report = _check_recipe(args) if recipes else _check_files(args)
    return FAILED if args.strict and report.of_severity("problem") else DONE


def _check_files(args: argparse.Namespace) -> "DoctorReport":
    from dmoerm.data.doctor import examine

    report = examine(args.paths, args.test, format=args.format or "auto")
    if args.json:
        print_json(report.as_dict())
    else:
        print(report.as_text(shutil.get_terminal_size().columns, colour=terminal_colours()))
    return report


def _check_recipe(args: argparse.Namespace) -> "DoctorReport":
    from dmoerm.data.doctor import brief_text, examine_recipe
    from dmoerm.data.plan import plan_run
    from dmoerm.data.sources import load_run_data

    recipe = read_recipe(args.paths[0], args.set)
    data = load_run_data(recipe)
    plan = plan_run(recipe, data)
    labels = _labelling(recipe, data)
    report = examine_recipe(recipe)
    if args.json:
        print_json({**plan.as_dict(), "labeling": labels[0] if labels else None, "doctor": report.as_dict()})
    else:
        print(plan.as_text(), *([f"labelling: {labels[1]}"] if labels else []), brief_text(report, _command(recipe)), sep="\n\n")
    return report


def _labelling(recipe: "Recipe", data: "RunData") -> tuple[dict[str, Any], str] | None:
    """What `dmoerm label` would still ask and what that costs, for --json and for people; None where no judge is named."""
    from dmoerm.cli.label_text import estimate_dict, estimate_text, left_out_lines
    from dmoerm.labeling.costs import estimate_open
    from dmoerm.labeling.plan import plan_labels

    if recipe.labeling.model is None:
        return None
    labels = plan_labels(recipe, data)
    estimate = estimate_open(labels)
    return estimate_dict(labels, estimate), "\n".join([estimate_text(labels, estimate), *left_out_lines(labels)]).replace("\n", "\n  ")


def _command(recipe: "Recipe") -> str:
    """The command that shows the whole report. It takes the default thresholds, as it does not know the recipe."""
    data = recipe.data
    files = [_relative(path) for path in (*data.comparisons, *recipe.label_files)]
    test = ["--test", *map(_relative, data.test)] if data.test else []
    return shlex.join(["dmoerm", "check", *files, *test])


def _relative(path: Path) -> str:
    return os.path.relpath(path) if path.is_file() else str(path)
