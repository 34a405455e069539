"""`dmoerm probe MODEL… FILE`: which bad answers would these reward models put above the honest one?"""

import argparse
from pathlib import Path

from dmoerm.cli.main import DONE
from dmoerm.cli.options import check_device, print_json, progress_line, quiet_libraries

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmoerm probe`."""
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help="a folder that dmoerm train wrote, a folder or Hub id of a classifier with one label, or longest",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="comparisons with preferences, unseen by the models; the last argument")
    parser.add_argument("--limit", metavar="N", type=int, default=100, help="prompts drawn from the file (default 100)")
    parser.add_argument("--format", default="auto", help="a name of docs/data.md, for example trl; default: auto, by the keys of the rows")
    parser.add_argument("--bad-rows", choices=("stop", "skip"), default="stop", help="on a row that cannot be used")
    parser.add_argument("--device", metavar="D", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--html", metavar="PAGE.html", type=Path, help="also write a page, with the texts that fooled each model most")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the prompts drawn, the texts and the intervals")


def run(args: argparse.Namespace) -> int:
    """Probe and print; what is found does not change the exit code."""
    from dmoerm.evaluation.probe_page import probe_sections
    from dmoerm.evaluation.probe_report import probe_texts, run_probes
    from dmoerm.evaluation.report import write_report
    from dmoerm.evaluation.result_files import result_document
    from dmoerm.evaluation.run import read_files
    from dmoerm.evaluation.scorers import open_scorer

    comparisons, formats, notes = read_files([args.file], format=args.format, bad_rows=args.bad_rows)
    probe_texts(comparisons, limit=args.limit, seed=args.seed)  # what is wrong with file or limit is said before a model loads
    quiet_libraries()
    check_device(args.device)
    report = run_probes(
        [open_scorer(model, device=args.device) for model in args.models],
        comparisons,
        limit=args.limit,
        seed=args.seed,
        meta={
            "models": ", ".join(args.models),
            "file": f"{args.file} ({formats[str(args.file)]})",
            **{name: count for name, count in notes.items() if count},
        },
        progress=progress_line("probed", quiet=args.quiet),
    )
    if args.json:
        print_json(result_document("probes", report.as_dict()))
    else:
        print(report.as_table())
    if args.html:
        write_report(args.html, f"Probes of {', '.join(report.models)}", probe_sections(report), subtitle=str(args.file))
    return DONE
