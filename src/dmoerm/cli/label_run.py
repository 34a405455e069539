"""What `dmoerm label` asks: about comparisons, or for the category of prompts; how a run is shown, ends, and leaves its file."""

import argparse
import asyncio
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from dmoerm.cli.label_text import left_out_lines, named_dict, named_text, progress_text, result_dict, summary_text
from dmoerm.cli.main import DONE, FAILED, INTERRUPTED, PARTLY_DONE, PAUSED
from dmoerm.cli.options import line_writer, print_json

if TYPE_CHECKING:
    from dmoerm.labeling.categories import CategoryPlan
    from dmoerm.labeling.plan import LabelPlan, Plan
    from dmoerm.labeling.run import Progress, RunResult
    from dmoerm.labeling.store import Store
    from dmoerm.recipe import Recipe

__all__ = ["ask_about_comparisons", "ask_for_categories", "progress_printer"]


def ask_about_comparisons(args: argparse.Namespace, recipe: "Recipe") -> int:
    """`dmoerm label RECIPE`: the labels of a recipe's comparisons; the exit code."""
    from dmoerm.data.sources import load_run_data
    from dmoerm.labeling.plan import plan_labels

    plan = plan_labels(recipe, load_run_data(recipe))
    if args.dry_run:
        return _dry_run(args, plan)
    for line in left_out_lines(plan):
        print(line, file=sys.stderr)
    return _asked(args, recipe, plan, lambda store, result: _finish(args, recipe, plan, store, result))


def ask_for_categories(args: argparse.Namespace, recipe: "Recipe") -> int:
    """`dmoerm label categories RECIPE`: the categories of prompts that have none; the exit code."""
    from dmoerm.data.sources import load_run_data
    from dmoerm.labeling.categories import plan_categories

    plan = plan_categories(recipe, load_run_data(recipe, named=False))
    if not plan.prompts:
        print_json({"prompts": 0}) if args.json else print("every comparison has a category: nothing to ask")
        return DONE
    if args.dry_run:
        return _dry_run_categories(args, plan)
    return _asked(args, recipe, plan, lambda store, result: _finish_categories(args, recipe, plan, store, result))


def _asked(args: argparse.Namespace, recipe: "Recipe", plan: "Plan", finish: "Callable[[Store, RunResult], int]") -> int:
    """Ask what a plan asks, and end as `finish` does."""
    from dmoerm.errors import ConfigError
    from dmoerm.labeling.judge import api_key
    from dmoerm.labeling.run import Limits, label
    from dmoerm.labeling.store import Store, network_file_system

    if args.max_cost is not None and plan.prices is None:
        raise ConfigError(
            f"--max-cost: the price of {plan.settings.model} is not known; set labeling.input_price and labeling.output_price "
            "(US dollars a million tokens)"
        )
    key = api_key(recipe.labeling)
    mounted = network_file_system(recipe.labeling.store)
    if mounted is not None:
        print(
            f"warning: {recipe.labeling.store} lies on a network file system ({mounted}); locks and flushes may not hold there. "
            "A local disk is safer",
            file=sys.stderr,
        )
    with Store(recipe.labeling.store, write=True) as store:
        result = asyncio.run(label(plan, store, key, Limits(args.max_cost, args.max_requests), progress=progress_printer(quiet=args.quiet)))
        return finish(store, result)


def _finish(args: argparse.Namespace, recipe: "Recipe", plan: "LabelPlan", store: "Store", result: "RunResult") -> int:
    """Write the labels, and say how the run ended."""
    from dmoerm.labeling.canaries import canary_result
    from dmoerm.labeling.labels import Written, labelled_comparisons, write_labels

    settings = plan.settings.fingerprint
    answers = store.answers(settings)
    output, labelled = recipe.labeling.output, list(labelled_comparisons(plan.pairs, settings, answers))
    # A run that got nothing, with another judge say, must not empty the labels of an earlier one.
    kept = not labelled and output.exists()
    written = Written(output, 0, 0) if kept else write_labels(output, labelled)
    canaries = canary_result(settings, answers, plan.canaries) if plan.canaries else None
    if args.json:
        print_json(result_dict(result) | {"labels": written.labels, "comparisons": written.rows, "output": str(written.path)})
    else:
        print(summary_text(result))
        end = " is left as it was" if kept else ""
        print(f"{written.labels:,} labels on {written.rows:,} comparisons: {written.path}{end}")
    for warning in [] if canaries is None else canaries.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return _ended(result)


def _finish_categories(args: argparse.Namespace, recipe: "Recipe", plan: "CategoryPlan", store: "Store", result: "RunResult") -> int:
    """Write the categories, and say how the run ended."""
    from dmoerm.labeling.categories import named_categories, write_categories

    named, output = named_categories(plan, store.answers(plan.settings.fingerprint)), recipe.labeling.categories
    kept = not named.categories and output.exists()  # as with labels
    if not kept and named.categories:
        write_categories(output, named.categories)
    if args.json:
        print_json(result_dict(result) | named_dict(plan, named, output))
    else:
        print(summary_text(result))
        print(named_text(plan, named, output, kept=kept))
    return _ended(result)


def _ended(result: "RunResult") -> int:
    """Say what the endpoint did not take and why the run stopped; the exit code."""
    now = result.progress
    for part in sorted(result.dropped):
        what = "sent as max_completion_tokens" if part == "max_tokens" else "left out"
        print(f"note: the endpoint does not take {part}; it was {what}", file=sys.stderr)
    if result.ended in ("failed", "paused", "limit"):
        print(f"{'error' if result.ended == 'failed' else result.ended}: {result.reason}. {_NEXT[result.ended]}", file=sys.stderr)
    if result.ended == "done":
        return PARTLY_DONE if now.given_up else DONE
    return {"failed": FAILED, "paused": PAUSED, "limit": PARTLY_DONE, "interrupted": INTERRUPTED}[result.ended]


_NEXT = {
    "failed": "What was answered is kept; the same command goes on once this is put right",
    "paused": "What was answered is kept; come back later with the same command",
    "limit": "What was answered is kept; a larger limit goes on",
}


def _dry_run(args: argparse.Namespace, plan: "LabelPlan") -> int:
    from dmoerm.cli.label_text import estimate_dict, estimate_text
    from dmoerm.labeling.costs import estimate_open

    estimate = estimate_open(plan)
    if args.json:
        print_json(estimate_dict(plan, estimate))
        return DONE
    for line in left_out_lines(plan):
        print(line, file=sys.stderr)
    print(estimate_text(plan, estimate))
    return DONE


def _dry_run_categories(args: argparse.Namespace, plan: "CategoryPlan") -> int:
    from dmoerm.cli.label_text import category_estimate_dict, category_estimate_text
    from dmoerm.labeling.costs import estimate_open

    estimate = estimate_open(plan)
    if args.json:
        print_json(category_estimate_dict(plan, estimate))
    else:
        print(category_estimate_text(plan, estimate))
    return DONE


def progress_printer(*, quiet: bool) -> Callable[["Progress"], None]:
    """A callback that shows how far a run is."""
    write = line_writer(quiet=quiet)
    return lambda now: write(lambda: progress_text(now), now.done + now.given_up >= now.total)
