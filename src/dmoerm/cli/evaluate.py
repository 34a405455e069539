"""`dmoerm evaluate MODEL FILE…`: agreement with preferences, with intervals, beside baselines or another model; or public benchmarks."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dmoerm.cli.main import DONE, PARTLY_DONE
from dmoerm.cli.options import AGGREGATIONS, add_model, check_device, open_model, print_json, progress_line, quiet_libraries
from dmoerm.errors import ConfigError

if TYPE_CHECKING:
    from dmoerm.labeling.judged import JudgedPair
    from dmoerm.records import Comparison

__all__ = ["add_arguments", "run"]

_WITH_FILES = ("train", "against", "judge", "max_cost", "judgements", "report")
"""Flags that mean nothing to a benchmark."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmoerm evaluate`."""
    add_model(parser)
    parser.add_argument("files", metavar="FILE", type=Path, nargs="*", help="comparisons with preferences, unseen by the model")
    parser.add_argument(
        "--benchmark",
        metavar="NAME[=SOURCE]",
        action="append",
        default=[],
        help="instead of FILE: a benchmark of docs/benchmarks.md from the Hub, a file, a folder or hub:…; may be repeated. "
        "MODEL may then also be a published classifier, or: longest",
    )
    parser.add_argument("--format", default="auto", help="a name of docs/data.md, for example trl; default: auto, by the keys of the rows")
    parser.add_argument(
        "--train",
        metavar="FILE",
        type=Path,
        nargs="+",
        default=[],
        help="comparisons from which the baselines bag_of_words and author_prior learn",
    )
    parser.add_argument(
        "--aggregation",
        choices=AGGREGATIONS,
        nargs="+",
        help="one row each; default: the model's own and mean. The first is the reference, unless --against is given",
    )
    parser.add_argument("--against", metavar="OTHER", help="another model, which is then the reference of the differences")
    parser.add_argument(
        "--judge",
        metavar="RECIPE",
        type=Path,
        help="also ask the judge of this recipe (labeling.model) for the overall preference, in both orders; costs money, is kept",
    )
    parser.add_argument("--max-cost", metavar="USD", type=float, help="with --judge: stop before its store has cost more")
    parser.add_argument(
        "--judgements", metavar="FILE", type=Path, nargs="+", default=[], help="files of two-order judgements: a row for each one's overall"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--report", metavar="PAGE.html", type=Path, help="also write an HTML page")
    parser.add_argument("--bad-rows", choices=("stop", "skip"), default="stop", help="on a row that cannot be used")
    parser.add_argument("--bootstrap-samples", metavar="N", type=int, default=2000, help="resamples of the prompts behind an interval")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the bootstrap")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    if args.benchmark:
        return _run_benchmarks(args)
    if not args.files:
        raise ConfigError("nothing to evaluate on; expected FILE … or --benchmark NAME")
    from dmoerm.evaluation.model_page import model_sections
    from dmoerm.evaluation.report import write_report
    from dmoerm.evaluation.result_files import result_document
    from dmoerm.evaluation.run import evaluate_model, read_files

    comparisons, formats, notes = read_files(args.files, format=args.format, bad_rows=args.bad_rows)
    training, _, _ = read_files(args.train, bad_rows=args.bad_rows)
    judges = _judges(args, comparisons)
    model = open_model(args.model, args.device, args.backbone)
    report = evaluate_model(
        model,
        comparisons,
        training=training,
        aggregations=args.aggregation or list(dict.fromkeys((model.aggregation, "mean"))),
        against=open_model(args.against, args.device) if args.against else None,
        judges=judges,
        seed=args.seed,
        samples=args.bootstrap_samples,
        meta={"model": args.model, "files": ", ".join(f"{path} ({name})" for path, name in formats.items()), **_counts(notes)},
        progress=progress_line("scored", quiet=args.quiet),
    )
    if args.json:
        print_json(result_document("agreement", report.as_dict()))
    else:
        print(report.as_table())
    if args.report:
        write_report(args.report, f"Agreement of {Path(args.model).name}", model_sections(report), subtitle=", ".join(map(str, args.files)))
    return DONE


def _run_benchmarks(args: argparse.Namespace) -> int:
    """Score each benchmark and print; 3 where a response could not be scored."""
    from dmoerm.evaluation.benchmarks.run import parse_requests, run_benchmarks
    from dmoerm.evaluation.result_files import result_document

    unused = {"FILE": args.files, **{f"--{name.replace('_', '-')}": getattr(args, name) for name in _WITH_FILES}}
    unused["--format"] = args.format != "auto"
    given = [name for name, value in unused.items() if value]
    if given:
        raise ConfigError(f"{', '.join(given)}: not used with --benchmark; leave out one or the other")
    requests = parse_requests(args.benchmark)
    quiet_libraries()
    check_device(args.device)
    reports = run_benchmarks(
        args.model,
        requests,
        device=args.device,
        backbone=args.backbone,
        aggregations=args.aggregation or (),
        bad_rows=args.bad_rows,
        seed=args.seed,
        samples=args.bootstrap_samples,
        progress=progress_line("scored", quiet=args.quiet),
    )
    if args.json:
        print_json(result_document("benchmarks", {"benchmarks": [report.as_dict() for report in reports]}))
    else:
        print("\n\n".join(report.as_table() for report in reports))
    return PARTLY_DONE if any(report.n_failed for report in reports) else DONE


def _judges(args: argparse.Namespace, comparisons: "Sequence[Comparison]") -> "dict[str, list[JudgedPair]]":
    """Verdicts of the judges that were asked for, by name; before any model is loaded, as an endpoint may fail."""
    import asyncio

    from dmoerm.cli.label_run import progress_printer
    from dmoerm.labeling.judged import read_judged

    judges = {path.name.removesuffix(".gz").removesuffix(".jsonl"): read_judged(path) for path in args.judgements}
    if args.judge is not None:
        from dmoerm.cli.options import read_recipe
        from dmoerm.labeling.overall import ask_overall
        from dmoerm.labeling.run import Limits

        options = read_recipe(args.judge, []).labeling
        asked = ask_overall(options, comparisons, Limits(args.max_cost), progress=progress_printer(quiet=args.quiet))
        judges[str(options.model)] = asyncio.run(asked)
    return judges


def _counts(notes: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in notes.items() if count}
