"""The evidence of docs/results.md: every claim of the paper, measured on real preferences, headline first, in pieces.

    make evidence DATA=DIR
    python benchmarks/evidence.py --data DIR [--seeds 0 1 2] [--set experts.depth=2 …] [--quick]

DIR holds alpaca_eval_pairs, alpaca_eval_pool, capability_judgements, autoj_human_dev and prompt_categories (.jsonl.gz, each row with a
`fold`). Folds 0–3 train and choose, fold 4 and the human pairs test, pools are those of fold 4. Categories with fewer than 60 training
pairs, or without capability labels, go to the fallback.

In this order: agreement, selection, RL frontier and probes of the first seed; the same seed with a tenth, a quarter and two fifths of the
preferences flipped; the further seeds; last, a training without a quarter of the authors, tested on pairs with one of them. Each trained
model is a piece of its own under --work, so a killed run goes on; the results are written anew whenever all models of one training set are
there. --quick runs all of it on a tenth of the data, to see that it works: its numbers mean nothing.
"""

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from real_preferences import Data, load, with_folds

from dmoerm.data.sources import RunData
from dmoerm.evaluation.contest import Contest, ContestPlan, Piece
from dmoerm.evaluation.contest_report import ContestReport, write_contest_csv
from dmoerm.evaluation.pools import Pool, read_pools
from dmoerm.labeling.judged import read_judged
from dmoerm.recipe import DataOptions, Recipe, dump_recipe, recipe_hash
from dmoerm.records import Comparison, prompt_hash
from dmoerm.taxonomy import paper_taxonomy
from dmoerm.training.contenders import CONTENDERS

MINIMUM_COMPARISONS = 60
QUICK: dict[str, dict[str, Any]] = {
    "task_model": {"epochs": 1, "minimum_comparisons": 20},
    "experts": {"epochs": 1, "minimum_labels": 10},
    "aggregator": {"epochs": 5},
    "evaluation": {"bootstrap_samples": 200},
}


def read_settings(overrides: Sequence[str], *, quick: bool) -> Recipe:
    """The default recipe with section.key=JSON texts put in."""
    sections: dict[str, dict[str, Any]] = {"task_model": {"minimum_comparisons": MINIMUM_COMPARISONS}}
    for section, values in QUICK.items() if quick else ():
        sections.setdefault(section, {}).update(values)
    for override in overrides:
        key, _, text = override.partition("=")
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = json.loads(text)
    return Recipe.model_validate({"data": DataOptions(comparisons=(Path("alpaca_eval_pairs.jsonl.gz"),)), **sections})


def thinned(data: Data) -> Data:
    """A fifth of the training pairs, all judged pairs being few already, and a few tests of each kind."""
    return replace(data, pairs=data.pairs[::5], judged=data.judged[::3], test_pairs=data.test_pairs[::10], human=data.human[::20])


def run_data(data: Data, tests: Sequence[Comparison]) -> RunData:
    """As `dmoerm train` would read it."""
    prompts = tuple(zip(data.prompts.prompts, data.prompts.categories, strict=True))
    return RunData(paper_taxonomy(), tuple(data.pairs), tuple(data.judged), prompts, tuple(tests))


def judged_tests(folder: Path, pairs: Sequence[Comparison], *, quick: bool) -> list[Comparison]:
    """Judged pairs of fold 4 that are not among the test pairs, without their labels: where the LLM judge has a row."""
    known = {(prompt_hash(c.prompt), frozenset(c.responses)) for c in pairs}
    found = [replace(c, labels=()) for c, fold in with_folds(folder / "capability_judgements.jsonl.gz") if fold == 4]
    new = [c for c in found if (prompt_hash(c.prompt), frozenset(c.responses)) not in known]
    return new[::10] if quick else new


def read_test_pools(folder: Path, *, quick: bool) -> tuple[Pool, ...]:
    """Pools of fold 4; a quick run takes eight responses of four of them."""
    pools = read_pools(folder / "alpaca_eval_pool.jsonl.gz", only={"fold": {"4"}}, limit=4 if quick else None)
    if not quick:
        return tuple(pools)
    return tuple(replace(p, responses=p.responses[:8], gold=p.gold[:8], authors=p.authors[:8]) for p in pools)


def write_results(output: Path, name: str, title: str, report: ContestReport, facts: dict[str, str], recipe: Recipe) -> None:
    """`name`.md, `name`.json and a folder of CSV files."""
    output.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    page = f"# {title}\n\n{lines}\n\n```text\n{report.as_table()}\n```\n\nRecipe:\n\n```yaml\n{dump_recipe(recipe)}```\n"
    document = json.dumps({**facts, **report.as_dict()}, separators=(",", ":"), allow_nan=False)
    for path, text in ((output / f"{name}.md", page), (output / f"{name}.json", document + "\n")):
        unfinished = path.with_name(f"{path.name}.part")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    write_contest_csv(output / name, report)


def without_places(words: Sequence[str], data: Path) -> list[str]:
    """The command line that others can repeat: DIR for the data, no other folders of this machine."""
    kept, words = [], iter(words)
    for word in words:
        if word in ("--work", "--output"):
            next(words, None)
        elif not word.startswith(("--work=", "--output=")):
            kept.append(word.replace(str(data), "DIR"))
    return kept


def run(contest: Contest, args: argparse.Namespace, name: str, title: str) -> None:
    """Every piece, and the results whenever a training set is complete."""

    def write(piece: Piece | None) -> None:
        if piece is not None and any((one.flip, one.seed) == (piece.flip, piece.seed) for one in contest.pending()):
            return
        now = datetime.now(UTC)
        facts = {
            "date": f"{now:%Y-%m-%d %H:%M} UTC",
            "command": shlex.join(["python", "benchmarks/evidence.py", *without_places(sys.argv[1:], args.data)]),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {contest.device}",
            "versions": f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}",
            "recipe": recipe_hash(contest.recipe),
            "training": f"{len(contest.data.comparisons):,} pairs, {len(contest.data.labels):,} judged pairs",
            "pending": f"{len(contest.pending())} of {len(contest.pieces())} pieces",
        }
        write_results(args.output, name, title, contest.report(), facts, contest.recipe)

    contest.run_all(after=write)
    write(None)
    print(contest.report().as_table(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the five .jsonl.gz files")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"), help="where pieces are kept")
    parser.add_argument("--output", type=Path, help="where results go; default: benchmarks/results, of a quick run the work folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--flip", type=float, nargs="*", default=[0.1, 0.25, 0.4], help="shares of flipped preferences")
    parser.add_argument("--flip-seeds", type=int, nargs="+", help="seeds that are trained with them; default: the first one")
    parser.add_argument("--held-seeds", type=int, nargs="*", default=[0], help="seeds without a quarter of the authors; none leaves it out")
    parser.add_argument("--models", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--members", type=int, default=5, help="of the ensemble")
    parser.add_argument("--probe", type=int, default=100, help="prompts to probe")
    parser.add_argument("--model", action="append", default=[], help="NAME=PATH of a published reward model; may be repeated")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="section.key=value of the recipe, JSON values")
    parser.add_argument("--quick", action="store_true", help="a small proof on a part of the data, one seed")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if args.quick:
        args.seeds, args.flip, args.members, args.probe, args.work = args.seeds[:1], args.flip[:1], 2, 4, args.work / "quick"
    args.output = args.output or (args.work if args.quick else Path("benchmarks/results"))
    recipe = read_settings(args.overrides, quick=args.quick)
    data = load(args.data, inner=False, without_authors=False)
    data = thinned(data) if args.quick else data
    tests = {
        "pairs": data.test_pairs,
        "human pairs": data.human,
        "judged pairs": judged_tests(args.data, data.test_pairs, quick=args.quick),
    }
    plan = ContestPlan(
        models=tuple(name for name in CONTENDERS if name in args.models),
        seeds=tuple(args.seeds),
        flips=tuple(args.flip),
        flip_seeds=tuple(args.flip_seeds or args.seeds[:1]),
        members=args.members,
        others=dict(text.split("=", 1) for text in args.model),
        pools=read_test_pools(args.data, quick=args.quick),
        probe_prompts=args.probe,
    )
    folder = args.work / recipe_hash(recipe)
    asked = {c.id for c in tests["judged pairs"]}  # the few judged pairs that are test pairs as well would make a table of their own
    judge = {"LLM": [one for one in read_judged(args.data / "capability_judgements.jsonl.gz") if one.id in asked]}
    everything = [c for comparisons in tests.values() for c in comparisons]
    run(Contest(recipe, run_data(data, everything), folder / "all", plan, tests=tests, judges=judge), args, "evidence", "Evidence")
    if args.held_seeds:
        held = load(args.data, inner=False, without_authors=True)
        held = replace(held, pairs=held.pairs[::5], judged=held.judged[::3]) if args.quick else held
        unseen = [c for c in held.test_pairs if held.held_authors & set(c.authors)]
        plan = replace(plan, seeds=tuple(args.held_seeds), flips=(), flip_seeds=None, pools=(), probe_prompts=None)
        contest = Contest(recipe, run_data(held, unseen), folder / "held", plan, tests={"unseen authors": unseen})
        run(contest, args, "evidence_unseen_authors", "Evidence: authors that no training pair shows")


if __name__ == "__main__":
    main()
