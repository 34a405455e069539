"""`dmoerm export MODEL OUT --to FORMAT`: a trained model for tools that do not know dmoerm."""

import argparse
from collections.abc import Callable
from pathlib import Path

from dmoerm.cli.main import DONE
from dmoerm.cli.options import add_model, open_model, print_json

__all__ = ["TARGETS", "add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmoerm export`."""
    add_model(parser)
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write")
    parser.add_argument("--to", choices=sorted(TARGETS), required=True, help="peft: each expert of a decoder as a LoRA with its head")
    parser.add_argument("--category", metavar="NAME", action="append", default=[], help="only this category; may be repeated")
    parser.add_argument("--with-base", action="store_true", help="also write the backbone's weights as a sequence classifier, for vLLM")
    parser.add_argument("--no-check", action="store_true", help="do not compare what was written with what the other tool computes")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def run(args: argparse.Namespace) -> int:
    """Load, write, say what was written."""
    return TARGETS[args.to](args)


def _to_peft(args: argparse.Namespace) -> int:
    from dmoerm.errors import missing_extra
    from dmoerm.modeling.peft_export import export_peft

    export = export_peft(
        open_model(args.model, args.device, args.backbone),
        args.out,
        categories=args.category,
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


TARGETS: dict[str, Callable[[argparse.Namespace], int]] = {"peft": _to_peft}
"""What `--to` takes. A new target is a function here and a library function below it."""
