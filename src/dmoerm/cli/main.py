"""The command line: finds the verb, loads its one file, turns errors into messages and exit codes.

Results go to stdout, progress and messages to stderr. A verb is a module with two functions: `add_arguments(parser)` and
`run(args) -> int`; only the module of the verb that was asked for is imported, so help is quick and needs no torch.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but some items failed, 75 paused by the endpoint (come back later), 130 interrupted.
"""

import argparse
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, cast

import dmoerm
from dmoerm.errors import DmoermError

__all__ = ["DONE", "FAILED", "INTERRUPTED", "PARTLY_DONE", "PAUSED", "USAGE", "VERBS", "build_parser", "main"]

DONE, FAILED, USAGE, PARTLY_DONE, PAUSED, INTERRUPTED = 0, 1, 2, 3, 75, 130

VERBS: dict[str, tuple[str, str]] = {
    "quickstart": ("dmoerm.cli.quickstart", "train, evaluate and explain a model on the bundled sample"),
    "init": ("dmoerm.cli.init", "write a commented recipe and taxonomy to start from"),
    "check": ("dmoerm.cli.check", "look for what is wrong with preference files, or show the plan of a recipe"),
    "label": ("dmoerm.cli.label", "ask a judge model which response is better on each capability, and say what its labels are worth"),
    "train": ("dmoerm.cli.train", "train router, task models, experts and aggregators"),
    "add-capability": ("dmoerm.cli.add_capability", "give a category of a trained model one more expert"),
    "add-category": ("dmoerm.cli.add_category", "give a trained model one more category"),
    "remove": ("dmoerm.cli.remove", "take a category or an expert out of a trained model"),
    "evaluate": ("dmoerm.cli.evaluate", "measure agreement with preferences, with intervals and baselines"),
    "baselines": ("dmoerm.cli.baselines", "train all that the model has to beat and is made of, and show one table with intervals"),
    "disturbance": ("dmoerm.cli.disturbance", "train on categories apart and together, and see whether they disturb each other"),
    "probe": ("dmoerm.cli.probe", "see which empty, padded or manipulative answers a reward model puts above honest ones"),
    "best-of-n": ("dmoerm.cli.best_of_n", "show what a reward picks among many responses, and how good the picks really are"),
    "overoptimize": ("dmoerm.cli.overoptimize", "train a policy against a reward by RL, and see what a gold reward says of it"),
    "report": ("dmoerm.cli.report", "put models and measurements on one page to send to a colleague"),
    "score": ("dmoerm.cli.score", "give every response of a file its reward"),
    "compare": ("dmoerm.cli.compare", "show which of some responses wins, and on which capability"),
    "serve": ("dmoerm.cli.serve", "serve rewards over HTTP, in the dialects of RL trainers too, and a page to compare on"),
    "export": ("dmoerm.cli.export", "write a model in another tool's format"),
    "verify": ("dmoerm.cli.verify", "check that a saved model is whole and gives the rewards it gave"),
    "doctor": ("dmoerm.cli.doctor", "show versions, devices and what is missing on this machine"),
}
"""Verb to module and one line of help, in the order of the work. A new verb is one file and one row."""


class Verb(Protocol):
    """What the module of a verb offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the verb's own arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do the work; the returned number is the exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments without the program's name; None takes those of the process.

    Returns:
        The exit code, see the top of this file. Wrong usage, `--help` and `--version` leave through SystemExit, as argparse does.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # No common flag takes a value, so the first word that is not a flag is the verb.
    asked = next((word for word in arguments if not word.startswith("-")), None)
    parser = build_parser([asked] if asked in VERBS else [])
    if asked is not None and asked not in VERBS:
        parser.error(_unknown_verb(asked))
    args = parser.parse_args(arguments)
    args.own_process = argv is None  # the command is all that this process is for
    progress = _progress_to_stderr(quiet=args.quiet)
    try:
        return _run(args)
    finally:
        logging.getLogger("dmoerm").removeHandler(progress)


def build_parser(verbs: Iterable[str]) -> argparse.ArgumentParser:
    """The parser with all verbs, of which those in `verbs` have their arguments (their modules are imported)."""
    parser = argparse.ArgumentParser(
        prog="dmoerm",
        description="Reward models that route by task and judge by capability.",
        epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but some items failed, 75 paused by the endpoint, 130 interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dmoerm {dmoerm.__version__}", help="print the version and leave")
    _add_common_flags(parser, default=False)
    commands = parser.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs")
    for verb, (module_name, summary) in VERBS.items():
        command = commands.add_parser(verb, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False)
        if verb in verbs:
            module = cast(Verb, importlib.import_module(module_name))
            module.add_arguments(command)
            _add_common_flags(command, default=argparse.SUPPRESS)
            command.set_defaults(run=module.run)
    return parser


def _add_common_flags(parser: argparse.ArgumentParser, default: bool | str) -> None:
    # Before or after the verb; SUPPRESS keeps the verb's parser from overwriting what stood before it.
    parser.add_argument("--debug", action="store_true", default=default, help="show the traceback of an error")
    parser.add_argument("-q", "--quiet", action="store_true", default=default, help="show no progress, only warnings and errors")


def _unknown_verb(word: str) -> str:
    from dmoerm.validation import did_you_mean  # loads pydantic, which help does not need

    return f'unknown verb "{word}"{did_you_mean(word, VERBS)}'


def _progress_to_stderr(*, quiet: bool) -> logging.Handler:
    """Send what the library logs to stderr as plain lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("dmoerm")
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    return handler


def _run(args: argparse.Namespace) -> int:
    run = cast(Callable[[argparse.Namespace], int], args.run)
    try:
        code = run(args)
        sys.stdout.flush()  # here, so that a closed pipe is met inside this function
    except BrokenPipeError:
        # The reader of stdout left (`| head`). Python flushes stdout once more at exit and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        _report("interrupted", args)
        return INTERRUPTED
    except (DmoermError, OSError) as error:  # OSError: a full disk, a folder that may not be written
        _report(f"error: {error}", args)
        return FAILED
    return code


def _report(message: str, args: argparse.Namespace) -> None:
    if args.debug:
        traceback.print_exc(file=sys.stderr)
    print(message, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
