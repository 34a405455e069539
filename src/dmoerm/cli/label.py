"""`dmoerm label RECIPE`: ask the judge about comparisons.

`dmoerm label categories RECIPE`: about the category of prompts. `dmoerm label status | report | export | import | reparse | salvage
RECIPE`: what came of it.
"""

import argparse
import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dmoerm.cli.label_run import ask_about_comparisons, ask_for_categories
from dmoerm.cli.label_text import status_text
from dmoerm.cli.main import DONE
from dmoerm.cli.options import print_json, read_recipe, terminal_colours

if TYPE_CHECKING:
    from dmoerm.labeling.formats import FormatComparison
    from dmoerm.labeling.judged import JudgedPair
    from dmoerm.labeling.plan import LabelPlan
    from dmoerm.recipe import Recipe

__all__ = ["ACTIONS", "add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmoerm label`."""
    parser.add_argument(
        "words",
        metavar="[ACTION] RECIPE|FILE",
        nargs="+",
        help="a recipe with labeling.model. ACTION: run (when left out), categories (let the judge name those of prompts that have none), "
        "status, report (of judgement files, too, and of several judges beside each other), export, import (a judgement file after the "
        "recipe), reparse (read stored replies again), salvage (a damaged store)",
    )
    parser.add_argument(
        "--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="replace one value of the recipe; may be repeated"
    )
    parser.add_argument("--dry-run", action="store_true", help="run, categories: show calls, tokens and cost, send nothing")
    parser.add_argument(
        "--max-cost", metavar="USD", type=float, help="run, categories: stop before the store has cost more, earlier runs counted"
    )
    parser.add_argument("--max-requests", metavar="N", type=int, help="run, categories: stop after this many requests of this run")
    parser.add_argument("--output", metavar="FILE", type=Path, help="export: another file than labeling.output")
    parser.add_argument(
        "--to",
        choices=("labels", "judgements"),
        help="export: labels for training (when left out), or every verdict in both orders, as a file of two-order judgements",
    )
    parser.add_argument(
        "--against", metavar="SECTION.KEY=VALUE", help="report: compare with the same pairs labelled under this other setting"
    )
    parser.add_argument("--html", metavar="PAGE.html", type=Path, help="report: also write a page")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Do what the first word says.

    Raises:
        ConfigError: too few or too many words for that action, a flag of another one, or a limit that is none.
    """
    from dmoerm.errors import ConfigError

    action, *paths = args.words if args.words[0] in ACTIONS else ["run", *args.words]
    for flag, owners in _FLAGS.items():
        if getattr(args, flag) not in (None, False) and action not in owners:
            raise ConfigError(f"--{flag.replace('_', '-')} is for dmoerm label {' or '.join(owners)}, and this is {action}. Leave it out")
    if args.max_cost is not None and not args.max_cost > 0:
        raise ConfigError(f"--max-cost {args.max_cost:g}: expected US dollars above 0")
    if action == "report":
        return _report(args, list(map(Path, paths)))
    expected = 2 if action == "import" else 1
    if len(paths) != expected:
        what = "a recipe and a judgement file" if action == "import" else "one recipe"
        raise ConfigError(f"dmoerm label {action}: expected {what}, got {len(paths)} ({', '.join(paths) or 'nothing'})")
    return ACTIONS[action](args, read_recipe(Path(paths[0]), args.set), *map(Path, paths[1:]))


def _status(args: argparse.Namespace, recipe: "Recipe") -> int:
    from dmoerm.labeling.status import label_status
    from dmoerm.labeling.store import Store

    plan = _plan(recipe)
    with Store(recipe.labeling.store, write=False) as store:
        status = label_status(plan, store)
    if args.json:
        print_json(status.as_dict())
    else:
        print(status_text(status))
    return DONE


def _export(args: argparse.Namespace, recipe: "Recipe") -> int:
    from dmoerm.labeling.labels import labelled_comparisons, write_judgements, write_labels
    from dmoerm.labeling.store import Store

    plan = _plan(recipe)
    settings = plan.settings.fingerprint
    with Store(recipe.labeling.store, write=False) as store:
        answers = store.answers(settings)
    if args.to != "judgements":
        path = args.output or recipe.labeling.output
        written = write_labels(path, labelled_comparisons(plan.pairs, settings, answers))
    else:
        path = args.output or recipe.labeling.output.with_name("judgements.jsonl.gz")
        written = write_judgements(path, plan.pairs, settings, answers)
    if args.json:
        print_json({"output": str(written.path), "rows": written.rows, "labels": written.labels, "left_out": written.left_out})
    else:
        print(f"{written.labels:,} labels in {written.rows:,} rows: {written.path}")
        if written.left_out:
            print(f"{written.left_out:,} pairs without a preference were left out: this format names a chosen and a rejected response")
    return DONE


def _import(args: argparse.Namespace, recipe: "Recipe", path: Path) -> int:
    from dmoerm.labeling.imports import import_judgements
    from dmoerm.labeling.judged import read_judged
    from dmoerm.labeling.store import Store

    plan = _plan(recipe)
    judged = read_judged(path)
    with Store(recipe.labeling.store, write=True) as store:
        count = asyncio.run(import_judgements(plan, store, judged, path.name))
    if args.json:
        print_json({"imported": count, "pairs": len(judged)})
    else:
        print(f"{count:,} questions of the recipe are answered by {path}; dmoerm label asks the rest")
    return DONE


def _reparse(args: argparse.Namespace, recipe: "Recipe") -> int:
    from dmoerm.labeling.imports import reparse
    from dmoerm.labeling.store import Store

    with Store(recipe.labeling.store, write=True) as store:
        before, after, replies = reparse(store)
    if args.json:
        print_json({"replies": replies, "answered_before": before, "answered": after})
    else:
        print(f"{replies:,} stored replies read again, nothing sent: {after:,} questions answered, {before:,} before")
    return DONE


def _salvage(args: argparse.Namespace, recipe: "Recipe") -> int:
    from dmoerm.labeling.store import salvage

    counts = salvage(recipe.labeling.store)
    if args.json:
        print_json(counts)
    else:
        print(
            f"{recipe.labeling.store}: {counts['attempts']:,} attempts and {counts['verdicts']:,} verdicts could be read; the damaged file "
            "is kept beside it. dmoerm label reparse makes verdicts from the attempts"
        )
    return DONE


def _report(args: argparse.Namespace, paths: list[Path]) -> int:
    from dmoerm.errors import ConfigError
    from dmoerm.evaluation.label_page import format_sections, label_sections
    from dmoerm.evaluation.report import write_report
    from dmoerm.evaluation.result_files import result_document
    from dmoerm.labeling.agreement import label_report

    recipes = [path for path in paths if path.suffix.lower() in (".yaml", ".yml")]
    if not paths or len(recipes) > 1:
        raise ConfigError("dmoerm label report: expected a recipe, judgement files, or a recipe and judgement files of other judges")
    pairs, minimum = _judged(recipes, [path for path in paths if path not in recipes], args.set)
    report = label_report(pairs, minimum_labels=minimum)
    formats = _formats(args, recipes)
    if args.json:
        print_json(result_document("labels", report.as_dict() | ({"formats": formats.as_dict()} if formats else {})))
    else:
        width, colour = shutil.get_terminal_size().columns, terminal_colours()
        print(report.as_text(width, colour=colour))
        if formats:
            print(formats.as_text(width, colour=colour))
    if args.html:
        sections = [*label_sections(report), *(format_sections(formats) if formats else ())]
        write_report(args.html, "What the labels are worth", sections, subtitle=", ".join(map(str, paths)))
    return DONE


def _judged(recipes: list[Path], files: list[Path], overrides: list[str]) -> tuple[list["JudgedPair"], int]:
    """The judged pairs of a recipe's store and of judgement files, and how many labels an expert needs."""
    from dmoerm.labeling.judged import read_judged
    from dmoerm.recipe import ExpertOptions

    pairs = [pair for path in files for pair in read_judged(path)]
    minimum = ExpertOptions().minimum_labels
    for path in recipes:
        recipe = read_recipe(path, overrides)
        pairs += _stored(recipe)
        minimum = recipe.experts.minimum_labels
    return pairs, minimum


def _stored(recipe: "Recipe") -> list["JudgedPair"]:
    from dmoerm.labeling.labels import judged_pairs
    from dmoerm.labeling.store import Store

    plan = _plan(recipe)
    settings = plan.settings.fingerprint
    with Store(recipe.labeling.store, write=False) as store:
        return judged_pairs(plan.pairs, settings, store.answers(settings), plan.settings.model)


def _formats(args: argparse.Namespace, recipes: list[Path]) -> "FormatComparison | None":
    """One call a capability against one call for all, where --against names the other of the two."""
    from dmoerm.errors import ConfigError
    from dmoerm.labeling.formats import compare_formats

    if args.against is None:
        return None
    if len(recipes) != 1:
        raise ConfigError("--against compares two ways of asking under one recipe; name a recipe")
    sides = [read_recipe(recipes[0], [*args.set, *extra]) for extra in ([], [args.against])]
    if {side.labeling.calls for side in sides} != {"one_capability", "all_capabilities"}:
        raise ConfigError(
            f"--against {args.against}: expected the other value of labeling.calls (one_capability or all_capabilities): that is what is "
            "compared"
        )
    one, many = sorted(sides, key=lambda side: side.labeling.calls == "all_capabilities")
    return compare_formats(_stored(one), _stored(many))


def _plan(recipe: "Recipe") -> "LabelPlan":
    from dmoerm.data.sources import load_run_data
    from dmoerm.labeling.plan import plan_labels

    return plan_labels(recipe, load_run_data(recipe))


ACTIONS: dict[str, Callable[..., int]] = {
    "run": ask_about_comparisons,
    "categories": ask_for_categories,
    "status": _status,
    "report": _report,
    "export": _export,
    "import": _import,
    "reparse": _reparse,
    "salvage": _salvage,
}
"""What the first word may be. Each takes the arguments and the recipe."""

_FLAGS = {
    "dry_run": ("run", "categories"),
    "max_cost": ("run", "categories"),
    "max_requests": ("run", "categories"),
    "output": ("export",),
    "to": ("export",),
    "against": ("report",),
    "html": ("report",),
}
"""The actions for which a flag means something."""
