"""Whether one plain classifier follows the double-layer model as closely as that model follows itself, trained with another seed.

    python benchmarks/student.py --data DIR [--work runs/evidence] [--set experts.depth=2 …] [--output]

The teacher is the double-layer model of benchmarks/evidence.py with seed 0, the re-seeded teacher that of seed 1, both trained on folds
0–3; phases that a run of the evidence with the same settings has kept under --work are taken from there. The student learns the
teacher's rewards for responses of the pools of folds 0–3 and is measured, as it was written to disk, on those of fold 4: Kendall's
tau with the teacher within each prompt, beside that of the re-seeded teacher, difference paired by prompt; and agreement of all
three with the gold scores of those pools (pairs whose gold differs by more than 0.1).
"""

import argparse
import json
import platform
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers
from evidence import read_settings, run_data
from real_preferences import load

from dmoerm.data.sources import RunData
from dmoerm.evaluation.bootstrap import Resampling
from dmoerm.evaluation.metrics import accuracy_over_seeds, paired_difference_over_seeds
from dmoerm.evaluation.pair_table import Scored
from dmoerm.evaluation.pools import Pool, read_pools
from dmoerm.evaluation.scorers import Candidates, ClassifierScorer, ModelScorer, Rewards
from dmoerm.evaluation.student_export import StudentOptions, export_student
from dmoerm.modeling.reward_model import RewardModel
from dmoerm.recipe import Recipe, recipe_hash
from dmoerm.records import Comparison
from dmoerm.training.checkpoints import RunState
from dmoerm.training.contenders import Course
from dmoerm.training.pipeline import load_backbone, prepare
from dmoerm.training.progress import RunLog

RESULTS = Path(__file__).parent / "results"
GOLD_GAP = 0.1


def trained(data: RunData, recipe: Recipe, folder: Path) -> RewardModel:
    """The double-layer model, from phases kept in `folder` where they are there."""
    backbone, renderer = load_backbone(recipe)
    log = RunLog(None, quiet=False)
    prepared = prepare(
        data.comparisons, data.labelled, recipe, log, backbone=backbone, renderer=renderer, state=RunState(None), keep=folder / "trunk"
    )
    state = RunState(folder / "units" / f"flip-0-seed-{recipe.seed}", say=log.say)
    return Course(prepared, data, recipe, state=state).model


def thinned(pools: Sequence[Pool], most: int) -> list[Pool]:
    """At most `most` responses of each pool, drawn with a fixed seed."""
    rng, found = random.Random(0), []
    for pool in pools:
        places = sorted(rng.sample(range(len(pool.responses)), min(most, len(pool.responses))))
        responses, gold = (tuple(values[place] for place in places) for values in (pool.responses, pool.gold))
        found.append(replace(pool, responses=responses, gold=gold, authors=tuple(pool.authors[place] for place in places)))
    return found


def candidates(pools: Sequence[Pool]) -> list[Candidates]:
    return [Candidates(pool.prompt, pool.responses) for pool in pools]


def gold_pairs(pools: Sequence[Pool], rewards: Sequence[Rewards]) -> list[Scored]:
    """One comparison for each two responses of a pool whose gold differs enough."""
    scored = []
    for number, (pool, values) in enumerate(zip(pools, rewards, strict=True)):
        gold = [value for value in pool.gold if value is not None]
        for first in range(len(gold)):
            for second in range(first):
                better, worse = (first, second) if gold[first] > gold[second] else (second, first)
                if gold[better] - gold[worse] > GOLD_GAP:
                    texts = (pool.responses[better], pool.responses[worse])
                    pair = Comparison(f"{number}-{first}-{second}", pool.prompt, texts, (1, 2))
                    scored.append(Scored(pair, (values[better], values[worse])))
    return scored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the .jsonl.gz files")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"), help="where benchmarks/evidence.py keeps phases")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="section.key=value of the recipe, JSON values")
    parser.add_argument("--responses", type=int, default=8, help="a prompt, to learn from")
    parser.add_argument("--test-responses", type=int, default=16, help="a prompt, to measure on")
    parser.add_argument("--epochs", type=int, help="default: that of dmoerm export")
    parser.add_argument("--learning-rate", type=float, help="default: that of dmoerm export")
    parser.add_argument("--limit", type=int, help="pools of each kind, to see that it works")
    parser.add_argument("--output", type=Path, nargs="?", const=RESULTS, help="write student.md and .json there (default results/)")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    recipe = read_settings(args.overrides, quick=False)
    folder = args.work / recipe_hash(recipe) / "all"
    loaded = load(args.data, inner=False, without_authors=False)
    data = run_data(loaded, [*loaded.test_pairs, *loaded.human])
    teacher, again = (trained(data, recipe.model_copy(update={"seed": seed}), folder) for seed in (0, 1))
    path = args.data / "alpaca_eval_pool.jsonl.gz"
    learn = thinned(list(read_pools(path, only={"fold": {"0", "1", "2", "3"}}, limit=args.limit)), args.responses)
    test = thinned(list(read_pools(path, only={"fold": {"4"}}, limit=args.limit)), args.test_responses)
    resampling = Resampling(seed=0, samples=2000, confidence=0.95)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        made = export_student(
            teacher, Path(scratch) / "student", candidates(learn), test=candidates(test), reseeded=again,
            options=StudentOptions(epochs=args.epochs, learning_rate=args.learning_rate), resampling=resampling,
            progress=lambda what, done, total: print(f"{what} {done} of {total}", flush=True) if done % 64 == 0 or done == total else None,
        )  # fmt: skip
        minutes = (time.monotonic() - begin) / 60
        student = ClassifierScorer(str(made.folder), device="cpu", max_length_tokens=made.max_length_tokens)
        rewards = {name: scorer.score(candidates(test)) for name, scorer in
                   (("teacher", ModelScorer(teacher)), ("re-seeded teacher", ModelScorer(again)), ("student", student))}  # fmt: skip
    pairs = {name: gold_pairs(test, found) for name, found in rewards.items()}
    gold = []
    for name, scored in pairs.items():
        value = accuracy_over_seeds([scored], resampling=resampling)
        line = f"| {name} | {value.value:.3f} [{value.low:.3f}, {value.high:.3f}] |"
        if name != "teacher":
            d = paired_difference_over_seeds([scored], [pairs["teacher"]], resampling=resampling)
            line += f" {d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}] |"
        gold.append(line if name != "teacher" else f"{line} |")
    how = f"{made.epochs} epochs at {made.learning_rate:g} ({made.epoch} kept)" if made.epochs else "fitted in closed form"
    page = "\n".join(
        [
            "# One plain classifier in place of the double layer",
            "",
            "Made by `python benchmarks/student.py`; its head says what is measured.",
            "",
            f"Date {datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
            f"transformers {transformers.__version__}. Recipe {recipe_hash(recipe)}; {made.train_prompts} prompts with "
            f"{made.train_responses:,} responses, {how}, {minutes:.0f} "
            f"minutes with all scoring; {made.parameters / 1e6:.1f} M parameters.",
            "",
            "```text",
            made.as_table(),
            "```",
            "",
            f"Kendall's tau of the student less that of the re-seeded teacher: {made.difference}",
            "",
            f"| agreement with gold, {len(pairs['teacher']):,} pairs of {len(test)} pools | value | minus teacher |",
            "|---|---|---|",
            *gold,
        ]
    )
    print(page)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "student.md").write_text(page + "\n", encoding="utf-8")
        (args.output / "student.json").write_text(json.dumps(made.as_dict(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
