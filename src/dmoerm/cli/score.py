"""`dmoerm score MODEL IN OUT`: the reward of every response of a file."""

import argparse
import json
import sys
from pathlib import Path

from dmoerm.cli.main import DONE, PARTLY_DONE
from dmoerm.cli.options import AGGREGATIONS, add_model, check_device, progress_line, quiet_libraries

__all__ = ["add_arguments", "run"]

ENGINES = ("local", "ray")
"""Those of `dmoerm.scoring.bulk`, repeated because help must not load torch; a test compares them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmoerm score`."""
    add_model(parser)
    parser.add_argument("source", metavar="IN.jsonl", type=Path, help='rows with "prompt" and "response" or "responses", or comparisons')
    parser.add_argument("target", metavar="OUT.jsonl", type=Path, help="one row a response, in the order of the input; .gz compresses")
    parser.add_argument("--aggregation", choices=AGGREGATIONS, help="default: the model's own")
    parser.add_argument("--category", metavar="NAME", help="judge every row by this category and skip the router")
    parser.add_argument("--batch-tokens", metavar="N", type=int, default=16384, help="token budget of a batch, padding counted")
    parser.add_argument("--workers", metavar="N", type=int, help="processes, each with a model of its own; default: this one")
    parser.add_argument("--engine", choices=ENGINES, default="local", help="ray: a Ray cluster (RAY_ADDRESS, or one on this machine)")
    parser.add_argument("--parts", action="store_true", help="OUT is a folder, and its part files are not joined")
    parser.add_argument("--shard-responses", metavar="N", type=int, default=512, help="responses of a part, scored by one process")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with an unfinished run of the same model, settings and input")
    again.add_argument("--overwrite", action="store_true", help="replace the output, and forget an unfinished run")


def run(args: argparse.Namespace) -> int:
    """Score, and print a summary as one JSON line."""
    from dmoerm.scoring.bulk import ModelSource, score_file

    quiet_libraries()
    if args.engine == "local":  # a cluster has other devices than this machine
        check_device(args.device)
    try:
        result = score_file(
            ModelSource(args.model, args.device, args.backbone),
            args.source,
            args.target,
            aggregation=args.aggregation,
            category=args.category,
            batch_tokens=args.batch_tokens,
            workers=args.workers,
            engine=args.engine,
            parts=args.parts,
            shard_responses=args.shard_responses,
            resume=args.resume,
            overwrite=args.overwrite,
            progress=progress_line("scored", quiet=args.quiet),
        )
    except KeyboardInterrupt:
        print("what is done so far is kept: go on with --resume", file=sys.stderr)
        raise
    print(
        json.dumps(
            {
                "output": str(result.path),
                "rows": result.rows,
                "resumed_rows": result.resumed_rows,
                "responses": result.responses,
                "failed": result.failed,
                "process_deaths": result.deaths,
                "seconds": round(result.seconds, 2),
            }
        )
    )
    if result.failed:
        print(f'{result.failed} of {result.responses + result.failed} could not be scored; see "error" in {result.path}', file=sys.stderr)
    return PARTLY_DONE if result.failed else DONE
