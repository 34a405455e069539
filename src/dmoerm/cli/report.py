"""`dmoerm report RUN…`: models and measurements on one page to send to a colleague."""

import argparse
from pathlib import Path

from dmoerm.cli.main import DONE

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmoerm report`."""
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="a model folder, a run folder, a file that a verb printed with --json, or a folder of such files; NAME=RUN gives it a name on "
        "the page. Several of one kind stand side by side",
    )
    parser.add_argument(
        "--output",
        metavar="PAGE.html",
        type=Path,
        default=Path("report.html"),
        help="the page, .html where the name has no ending; its CSV files lie beside it",
    )
    parser.add_argument("--title", metavar="TEXT", default="", help="of the page; default: the names of the models")
    parser.add_argument("--overwrite", action="store_true", help="replace a page that is there, with its CSV files")


def run(args: argparse.Namespace) -> int:
    """Read everything, then write."""
    from dmoerm.evaluation.report_page import csv_folder, write_results_page
    from dmoerm.evaluation.report_runs import read_runs

    output = args.output if args.output.suffix else args.output.with_suffix(".html")
    page, *numbers = write_results_page(output, read_runs(args.runs), title=args.title, overwrite=args.overwrite)
    print(f"Page: {page}")
    if numbers:
        print(f"Numbers of {len(numbers)} plots: {csv_folder(page)}")
    return DONE
