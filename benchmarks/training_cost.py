"""What a whole training costs: router aside, all three phases of the double layer against one single-model training.

    python benchmarks/training_cost.py [--quick] [--threads 2] [--output]

Everything learns from the same comparisons of random tokens (time does not care what they say), two responses each, every one with a
label for each of K = 5 capabilities: the most that phase 2 can cost. Peers: one reward model with all weights fine-tuned over all layers,
and one with a LoRA in all layers, each for the same number of epochs. Ours: `train_inner` at the recipe's defaults: frozen states,
two cross-fitting folds and the final run of phases 1 and 2, vectors, aggregator with its bootstrap copies, calibration. The backbone is
MiniLM as the defaults cut it (three of six layers), MiniLM whole, and a small Qwen3-shaped decoder. Runs take turns; n is the
number of rounds.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from expert_cost import machine, plain_model, say, table

from dmoerm.data.rendering import Rendered
from dmoerm.modeling.backbone import Backbone
from dmoerm.modeling.embedded import EMBEDDED_NAME
from dmoerm.recipe import MEASURED_LAYERS, DataOptions, Recipe
from dmoerm.records import CapabilityLabel, Comparison, Message
from dmoerm.training.inner import Workspace, train_inner
from dmoerm.training.phase1 import TaskModelShape, task_items, task_vectors, train_task_model
from dmoerm.training.pipeline import Prepared, inner_plan
from dmoerm.training.progress import RunLog
from dmoerm.training.rows import Rows, TrunkStates

CAPABILITIES = ("correctness", "logic", "depth", "clarity", "tone")
RESULTS = Path(__file__).parent / "results"


def invented(count: int, tokens: int, vocabulary: int) -> tuple[list[Comparison], Rows]:
    """Comparisons with two rows of 50 to 100 % of `tokens` random ids, and a label for every capability."""
    rng = random.Random(0)
    rows, comparisons = Rows(0), []
    for number in range(count):
        for _ in range(2):
            ids = tuple(rng.randrange(1000, vocabulary) for _ in range(rng.randrange(tokens // 2, tokens)))
            rows.rendered.append(Rendered(ids, None, False, False, 1))
        labels = tuple(CapabilityLabel(name, better, 1 - better) for name in CAPABILITIES for better in (rng.randrange(2),))
        name = f"c{number}"
        comparisons.append(Comparison(name, (Message("user", name),), ("a", "b"), (1, 2), "objective_qa", labels))
        rows.of_comparison[name] = (2 * number, 2 * number + 1)
    return comparisons, rows


def backbones() -> dict[str, Callable[[], Backbone]]:
    return {
        "MiniLM, three layers (default)": lambda: Backbone.load(EMBEDDED_NAME, keep_layers=MEASURED_LAYERS[EMBEDDED_NAME]),
        "MiniLM, six layers": lambda: Backbone.load(EMBEDDED_NAME),
        "8-layer decoder": lambda: Backbone(plain_model("decoder"), name="decoder"),
    }


def double_layer(backbone: Backbone, comparisons: list[Comparison], rows: Rows, recipe: Recipe) -> None:
    numbers = list(range(len(rows.rendered)))
    layer = backbone.first_layer(recipe.task_model.depth)
    states = TrunkStates.compute(backbone, rows, numbers, layer, bf16=False) if layer else None
    vectors = task_vectors(backbone, rows, numbers, task=None, states=states, bf16=False)
    work = Workspace(backbone, rows, vectors, states, False, RunLog(None, quiet=True))
    plan = inner_plan(recipe, Prepared(backbone, None, work, [], []))  # type: ignore[arg-type]
    train_inner(work, "objective_qa", comparisons, comparisons, CAPABILITIES, plan)


def single_model(backbone: Backbone, comparisons: list[Comparison], rows: Rows, recipe: Recipe, *, full: bool) -> None:
    work = Workspace(backbone, rows, {}, None, False, RunLog(None, quiet=True))
    plan = inner_plan(recipe, Prepared(backbone, None, work, [], []))  # type: ignore[arg-type]
    shape = TaskModelShape(None if full else "all", 32, 32.0, 0.05, fit_head=False)
    settings = replace(plan.task_settings, learning_rate=1e-5)
    items = task_items([(rows.of_comparison[c.id], [(0, 1)]) for c in comparisons])
    train_task_model(backbone, rows, "single", items, [], shape, settings, base_vectors={}, states=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the comparisons, one round: does it work?")
    parser.add_argument("--comparisons", type=int, default=192)
    parser.add_argument("--tokens", type=int, default=192, help="longest row")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path, nargs="?", const=RESULTS, help="write training_cost.md there (default results/)")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.dtypes = ["fp32"]
    about = machine(torch.get_num_threads(), args)
    count, rounds = (args.comparisons // 4, 1) if args.quick else (args.comparisons, args.rounds)
    recipe = Recipe.model_validate({"data": DataOptions(comparisons=(Path("invented.jsonl"),))})
    head = ("backbone", "run", "n", "seconds", "× full fine-tuning of the same layers", "× LoRA in all layers", "target")
    lines: list[tuple[object, ...]] = []
    for name, made in backbones().items():
        comparisons, rows = invented(count, args.tokens, 8000)
        seconds: dict[str, list[float]] = {"full": [], "lora": [], "ours": []}
        for _ in range(rounds):
            for kind in seconds:
                backbone = made()
                backbone.sampled_positions = recipe.training.sampled_positions if kind == "ours" else None
                begin = time.monotonic()
                if kind == "ours":
                    double_layer(backbone, comparisons, rows, recipe)
                else:
                    single_model(backbone, comparisons, rows, recipe, full=kind == "full")
                seconds[kind].append(time.monotonic() - begin)
                say(f"{name}, {kind}: {seconds[kind][-1]:.1f} s")
        words = {"full": "single model, all weights", "lora": "single model, LoRA in all layers", "ours": "double layer, all three phases"}
        for kind, taken in seconds.items():
            ratio = [statistics.median(a / b for a, b in zip(taken, seconds[peer], strict=True)) for peer in ("full", "lora")]
            lines.append(
                (
                    name,
                    words[kind],
                    rounds,
                    f"{statistics.median(taken):.1f}",
                    *(f"{r:.2f}" for r in ratio),
                    "<= 2" if kind == "ours" else "",
                )
            )
    epochs = recipe.task_model.epochs
    what = f"{count} comparisons, two responses of up to {args.tokens} tokens, {len(CAPABILITIES)} labels each, {epochs} epochs."
    page = "\n\n".join(
        [
            "# What a whole training costs",
            "Made by `python benchmarks/training_cost.py`; its head says what is measured and how.",
            "\n".join(f"- {key}: {value}" for key, value in about.items()),
            what,
            table(head, lines),
        ]
    )
    print(page)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "training_cost.md").write_text(page + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
