"""`dmoerm quickstart`: the bundled sample, trained, measured, explained. No network."""

import argparse
import shutil
from pathlib import Path

from dmoerm.cli.main import DONE
from dmoerm.cli.options import progress_line, quiet_libraries

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmoerm quickstart`."""
    parser.add_argument("--output", metavar="DIR", type=Path, default=Path("quickstart"), help="the folder for model and page")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier quickstart left there")
    parser.add_argument("--seed", metavar="N", type=int, help="another split and another start; default: as the recipe says")
    parser.add_argument(
        "--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="replace one value of the recipe; may be repeated"
    )


def run(args: argparse.Namespace) -> int:
    """Do it, and print a summary that ends with what to try next."""
    from dmoerm.evaluation.quickstart import quickstart_recipe, run_quickstart
    from dmoerm.scoring.verdict import letter, verdict_text

    recipe = quickstart_recipe(args.output, seed=args.seed, overrides=args.set)
    quiet_libraries()
    result = run_quickstart(recipe, overwrite=args.overwrite, quiet=args.quiet, progress=progress_line("measured", quiet=args.quiet))
    model = args.output / "model"
    print(result.report.as_table())
    print(f"\nOne held-out comparison: {_short(result.explained.prompt[-1].content)}")
    for index, text in enumerate(result.explained.responses):
        print(f"{letter(index):>2} (people: rank {result.explained.ranks[index]}) {_short(text)}")
    print(f"\n{verdict_text(result.rewards, width=min(100, shutil.get_terminal_size((72, 24)).columns))}")
    print(f"\nModel: {model}\nPage:  {args.output / 'report.html'}\n\nNext:")
    print(f"  dmoerm compare {model}              # your own prompt and responses")
    print(f"  dmoerm evaluate {model} FILE.jsonl  # agreement with your own preferences")
    print("  dmoerm init my-rm                   # a recipe for your own data")
    return DONE


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else f"{line[:97]}..."
