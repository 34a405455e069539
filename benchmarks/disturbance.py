"""Does a reward model judge a category worse for having learnt other categories too? `dmoerm disturbance` on real preferences.

    python benchmarks/disturbance.py --data DIR [--set task_model.epochs=1 …] [--seeds 0 1 2] [--output]

DIR holds alpaca_eval_pairs.jsonl.gz, each row with a `fold`. Folds 0–3 train, fold 4 tests. The single model of phase 1 is trained on each
category, each pair of categories and all of them; categories with fewer than 60 training pairs are left out. Twice: with the same number of
steps, so that all together has more data as well as other data; and with as many comparisons for every model as the smallest category has.
Each trained model leaves its rewards under --work, so a killed run goes on with the next one.
"""

import argparse
import gzip
import json
import os
import platform
import shlex
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers
from evidence import read_settings, without_places

from dmoerm.evaluation.disturbance import write_csv
from dmoerm.evaluation.disturbance_run import DisturbanceOptions, run_disturbance
from dmoerm.recipe import Recipe, recipe_hash

RESULTS = Path(__file__).parent / "results"

STUDIES = {
    "the same steps": DisturbanceOptions(),
    "the same steps and the same number of comparisons": DisturbanceOptions(sizes_equal=True),
}


def split_files(data: Path, work: Path, test_fold: int) -> tuple[Path, Path]:
    """Rows of the folds that train, and of the one that tests, as files of their own."""
    with gzip.open(data / "alpaca_eval_pairs.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = [(json.loads(line)["fold"], line) for line in file]
    work.mkdir(parents=True, exist_ok=True)
    train, test = work / "train.jsonl", work / "test.jsonl"
    train.write_text("".join(line for fold, line in lines if fold < test_fold), encoding="utf-8")
    test.write_text("".join(line for fold, line in lines if fold == test_fold), encoding="utf-8")
    return train, test


def with_files(recipe: Recipe, train: Path, test: Path) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"comparisons": (train,), "test": (test,)})})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with alpaca_eval_pairs.jsonl.gz")
    parser.add_argument("--work", type=Path, default=Path("runs/disturbance"), help="where the rewards of each model are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--test-fold", type=int, choices=(1, 2, 3, 4), default=4, help="tests; the folds below it train")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="section.key=value of the recipe, JSON values")
    parser.add_argument("--output", type=Path, nargs="?", const=RESULTS, help="write disturbance.md and CSV there (default results/)")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    settings = read_settings(args.overrides, quick=False)
    recipe = with_files(settings, *split_files(args.data, args.work, args.test_fold))
    lines = [
        "# Multi-task disturbance",
        "",
        f"- date: {datetime.now(UTC):%Y-%m-%d}",
        f"- command: {shlex.join(['python', 'benchmarks/disturbance.py', *without_places(sys.argv[1:], args.data)])}",
        f"- machine: {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        f"- versions: torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}",
        f"- recipe: {recipe_hash(settings)}",
    ]
    for name, options in STUDIES.items():
        folder = "sizes-equal" if options.sizes_equal else "steps"
        study = run_disturbance(recipe, args.work / folder, replace(options, seeds=tuple(args.seeds)))
        lines += ["", f"## With {name}", "", "```text", study.as_table(), "```"]
        if args.output:
            write_csv(args.output / "disturbance" / folder, study)
    print("\n".join(lines))
    if args.output:
        (args.output / "disturbance.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
