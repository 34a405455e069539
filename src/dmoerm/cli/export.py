"""`dmoerm export MODEL OUT --to FORMAT`: a trained model for tools that do not know dmoerm, or for the Hub."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dmoerm.cli.main import DONE
from dmoerm.cli.options import add_model, line_writer, open_model, print_json, progress_line

if TYPE_CHECKING:
    from dmoerm.modeling.reward_model import RewardModel

__all__ = ["TARGETS", "add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmoerm export`."""
    add_model(parser)
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write; --to hub: the repository, OWNER/NAME")
    parser.add_argument(
        "--to",
        choices=sorted(TARGETS),
        required=True,
        help="peft: each expert of a decoder as a LoRA with its head; seqcls: one plain sequence classifier that learns its rewards; "
        "hub: a model, or what an export wrote, to the Hugging Face Hub",
    )
    parser.add_argument("--category", metavar="NAME", action="append", help="peft: only this category; may be repeated")
    parser.add_argument("--with-base", action="store_true", help="peft: also write the backbone's weights as a classifier, for vLLM")
    parser.add_argument("--no-check", action="store_true", help="peft: do not compare what was written with what the other tool computes")
    parser.add_argument("--data", metavar="FILE", type=Path, nargs="+", help="seqcls: prompts with responses to learn from, as for score")
    parser.add_argument("--test", metavar="FILE", type=Path, nargs="+", help="seqcls: prompts to measure on, instead of a share of --data")
    parser.add_argument("--student-backbone", metavar="NAME", help="seqcls: start from this model; default: from the teacher's own")
    parser.add_argument("--epochs", metavar="N", type=int, help="seqcls: passes over the prompts, 0: only fit the top; default 5, BERT 0")
    parser.add_argument("--learning-rate", metavar="X", type=float, help="seqcls: peak; default 1e-5, with --student-backbone 5e-5")
    parser.add_argument("--held-out-fraction", metavar="X", type=float, help="seqcls: share of the prompts to measure on; default 0.2")
    parser.add_argument("--seed", metavar="N", type=int, help="seqcls: of split, new weights and order; default 0")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--reseeded", metavar="MODEL", help="seqcls: the teacher's recipe trained with another seed, to measure beside")
    again.add_argument("--recipe", metavar="RECIPE", type=Path, help="seqcls: the teacher's recipe; trains it here with its seed + 1")
    parser.add_argument("--public", action="store_true", help="hub: a new repository is public; default: private")
    parser.add_argument("--message", metavar="TEXT", help="hub: of the commit")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


OWN_FLAGS = {
    "peft": ("category", "with_base", "no_check"),
    "seqcls": ("data", "test", "student_backbone", "epochs", "learning_rate", "held_out_fraction", "seed", "reseeded", "recipe"),
    "hub": ("public", "message"),
}
"""Flags that only one target reads."""


def run(args: argparse.Namespace) -> int:
    """Load, write, say what was written."""
    _refuse_foreign_flags(args)
    return TARGETS[args.to](args)


def _refuse_foreign_flags(args: argparse.Namespace) -> None:
    from dmoerm.errors import ConfigError

    for target, flags in OWN_FLAGS.items():
        for flag in flags:
            if target != args.to and getattr(args, flag) not in (None, False):
                raise ConfigError(f"--{flag.replace('_', '-')} belongs to --to {target}, not to --to {args.to}; leave it out")
    if args.to == "seqcls" and not args.data:
        raise ConfigError("--to seqcls needs --data FILE: prompts with responses, which the model scores for the student to learn from")
    if args.to == "hub" and args.overwrite:
        raise ConfigError("--overwrite does not apply to --to hub: a commit replaces nothing; the Hub keeps what was there before")


def _to_peft(args: argparse.Namespace) -> int:
    from dmoerm.errors import missing_extra
    from dmoerm.modeling.peft_export import export_peft

    export = export_peft(
        open_model(args.model, args.device, args.backbone),
        args.out,
        categories=args.category or [],
        with_base=args.with_base,
        check=not args.no_check,
        overwrite=args.overwrite,
    )
    if args.json:
        print_json(export.as_dict())
        return DONE
    for adapter in export.adapters:
        print(f"{adapter.category}.{adapter.capability}: {adapter.folder or adapter.base}")
    if export.largest_difference is not None:
        print(f"compared with PEFT on {export.texts} texts: largest difference {export.largest_difference:.1g}")
    elif not args.no_check:
        print(f"not compared with PEFT: {missing_extra('peft', 'peft')}")
    if export.texts_differing:
        print(f"the exported chat template gives other tokens for {export.texts_differing} of {export.texts} texts: see README.md")
    print(f"How to load and serve it: {args.out / 'README.md'}")
    return DONE


def _to_seqcls(args: argparse.Namespace) -> int:
    from dmoerm.evaluation.student_export import StudentOptions, check_student_target, export_student, read_candidates

    check_student_target(args.out, overwrite=args.overwrite)  # before a long training
    given = {name: getattr(args, name) for name in ("epochs", "learning_rate", "held_out_fraction", "seed")}
    options = StudentOptions(backbone=args.student_backbone, **{name: value for name, value in given.items() if value is not None})
    data, test = read_candidates(args.data), read_candidates(args.test) if args.test else []
    teacher = open_model(args.model, args.device, args.backbone)
    export = export_student(
        teacher,
        args.out,
        data,
        test=test,
        reseeded=_reseeded(args, teacher),
        options=options,
        overwrite=args.overwrite,
        progress=_Progress(quiet=args.quiet),
    )
    if args.json:
        print_json(export.as_dict())
        return DONE
    print(export.as_table())
    if export.difference is not None:
        print(f"Kendall's tau of the student less that of the re-seeded teacher: {export.difference}")
    for reason, count in export.dropped.items():
        print(f"left out: {count:,} {reason}")
    if export.truncated:
        lost = "end" if export.truncation_side == "right" else "beginning"
        print(f"{export.truncated:.1%} of the rows are longer than {export.max_length_tokens} tokens: their {lost} was cut")
    if export.routes:
        print(f"routes: {', '.join(export.routes)}")
    if export.errors:
        of = f"of {export.epochs}" if export.epoch else "(what was fitted in closed form alone)"
        print(f"kept: the state after epoch {export.epoch} {of}, nearest to the teacher on prompts not learned from")
    print(f"How to use it: {args.out / 'README.md'}")
    return DONE


def _reseeded(args: argparse.Namespace, teacher: "RewardModel") -> "RewardModel | None":
    if args.reseeded is not None:
        return open_model(args.reseeded, args.device, args.backbone)
    if args.recipe is None:
        return None
    from dmoerm.evaluation.student_export import train_reseeded
    from dmoerm.recipe import load_recipe

    return train_reseeded(teacher, load_recipe(args.recipe), args.out, overwrite=args.overwrite, quiet=args.quiet)


class _Progress:
    """One progress line for each thing that goes on."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._lines: dict[str, Callable[[int, int | None], None]] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._lines:
            self._lines[what] = progress_line(what, quiet=self._quiet, unit=what.split()[-1])  # "teacher: prompts", "student: steps"
        self._lines[what](done, total)


def _to_hub(args: argparse.Namespace) -> int:
    from dmoerm.modeling.hub_upload import push_folder

    write = line_writer(quiet=args.quiet)
    write(lambda: f"sending {args.model}", False)
    pushed = push_folder(Path(args.model), args.out.as_posix(), private=not args.public, message=args.message)
    write(lambda: f"sent {pushed.files} files", True)
    if args.json:
        print_json(pushed.as_dict())
        return DONE
    print(f"{pushed.files} files in {pushed.repository}: {pushed.address}")
    if pushed.local_backbone is not None:
        print(f"Its backbone is the folder {pushed.local_backbone}: whoever loads it has to say where theirs lies (backbone=, --backbone)")
    return DONE


TARGETS: dict[str, Callable[[argparse.Namespace], int]] = {"peft": _to_peft, "seqcls": _to_seqcls, "hub": _to_hub}
"""What `--to` takes. A new target is a function here and a library function below it."""
