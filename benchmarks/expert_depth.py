"""In how many top layers should experts differ, and how wide should they be? Agreement against cost, on inner folds.

    python benchmarks/expert_depth.py --data DIR [--categories objective_qa …] [--test-fold 3]

DIR holds alpaca_eval_pairs and capability_judgements (.jsonl.gz, each row with a `fold`). Folds 0 to 3 without the test fold train; fold
4 is never read. For each backbone (the first three layers of MiniLM, all six, three layers pooled at the first token) and category one
task model is trained; then experts of every depth and rank learn the same labels on top of it, one epoch from cached trunk states.

    pairs          agreement of the mean of the standardised experts with the preference, on pairs of the test fold
    own label      how often an expert orders a judged pair as its capability's label does
    discordant     the same, only where the label differs from the judge's overall verdict: following overall scores 0 there
    cost           seconds to score the same rows with six experts, over one plain pass of six-layer MiniLM, taking turns at the end

Intervals: 95 %, bootstrap over prompts; differences to the default (depth 1, rank 32, three layers) are paired.
"""

import argparse
import gzip
import json
import os
import pickle
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import torch
import transformers

from dmoerm.data.readers import read_comparisons
from dmoerm.evaluation.bootstrap import Resampling
from dmoerm.evaluation.metrics import accuracy_over_seeds, paired_difference_over_seeds
from dmoerm.evaluation.pair_table import Scored
from dmoerm.recipe import DataOptions, Recipe
from dmoerm.records import OVERALL, Comparison
from dmoerm.taxonomy import paper_taxonomy
from dmoerm.training.inner import Workspace
from dmoerm.training.phase1 import task_items, task_vectors, train_task_model
from dmoerm.training.phase2 import expert_items, train_experts
from dmoerm.training.pipeline import Prepared, inner_plan, load_backbone
from dmoerm.training.progress import RunLog
from dmoerm.training.rows import Rows, TrunkStates, member_vectors
from dmoerm.training.trainer import restore


@dataclass(frozen=True)
class Case:
    """One way to build experts. `layers` and `pooling` make the backbone, the rest the experts on its task model."""

    layers: int | str
    pooling: str
    depth: int | str
    rank: int

    @property
    def name(self) -> str:
        of = {3: "3 layers", "all": "6 layers"}[self.layers]
        return f"{of}{', first token' if self.pooling == 'first' else ''}, experts in top {self.depth}, rank {self.rank}"


DEFAULT = Case(3, "mean", 1, 32)
CASES = (
    DEFAULT,
    Case(3, "mean", 1, 8),
    Case(3, "mean", 2, 32),
    Case(3, "mean", "all", 32),
    Case(3, "mean", "all", 8),
    Case(3, "first", 1, 32),
    Case("all", "mean", 1, 32),
    Case("all", "mean", 2, 32),
    Case("all", "mean", 3, 32),
    Case("all", "mean", "all", 32),
)


@dataclass
class Measured:
    """What one case gave, over all categories."""

    scored: list[Scored]
    own: list[Scored]
    discordant: list[Scored]
    train_s: float


def with_folds(path: Path) -> list[tuple[Comparison, int]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        folds = [json.loads(line)["fold"] for line in file]
    return [(c, fold) for c, fold in zip(read_comparisons(path).comparisons, folds, strict=True) if fold != 4]


def measure(
    cases: list[Case], pairs: list[tuple[Comparison, int]], judged: list[tuple[Comparison, int]], args: argparse.Namespace
) -> dict[Case, Measured]:
    """All cases of one backbone."""
    options = {"backbone": {"layers": cases[0].layers, "pooling": cases[0].pooling}}
    sections = {"task_model": {"learning_rate": 3e-4, "epochs": 1}, "experts": {"learning_rate": 3e-4, "epochs": 1}}
    recipe = Recipe.model_validate({"data": DataOptions(comparisons=(Path("pairs.jsonl"),)), **options, **sections})
    backbone, renderer = load_backbone(recipe)
    rows = Rows(renderer.tokenizer.pad_token_id)
    rows.add([c for c, _ in [*pairs, *judged]], renderer)
    log = RunLog(args.work, quiet=False, append=True)
    work = Workspace(backbone, rows, {}, None, False, log)
    plan = inner_plan(recipe, Prepared(backbone, renderer, work, [], []))
    taxonomy = paper_taxonomy()
    found = {case: Measured([], [], [], 0.0) for case in cases}
    # What is measured is kept, so that a killed run goes on with the next case.
    kept = {case: args.work / f"{'-'.join(args.categories)}_{args.test_fold}_{case.name.replace(' ', '_')}.pickle" for case in cases}
    if all(path.exists() for path in kept.values()):
        return {case: pickle.loads(path.read_bytes()) for case, path in kept.items()}
    for category in args.categories:
        own_pairs = [(c, fold) for c, fold in pairs if c.category == category]
        own_judged = [(c, fold) for c, fold in judged if c.category == category and c.labels]
        train, test = ([c for c, fold in own_pairs if (fold == args.test_fold) == tested] for tested in (False, True))
        labelled, told = ([c for c, fold in own_judged if (fold == args.test_fold) == tested] for tested in (False, True))
        numbers = sorted({row for c in [*train, *test, *labelled, *told] for row in rows.of_comparison[c.id]})
        learned = sorted({row for c in train for row in rows.of_comparison[c.id]})
        bottom = TrunkStates.compute(backbone, rows, numbers, backbone.first_layer(1), bf16=False)
        vectors = task_vectors(backbone, rows, learned, task=None, states=bottom, bf16=False)
        items = task_items([(rows.of_comparison[c.id], [(p.chosen, p.rejected) for p in c.pairs()]) for c in train])
        task, results = train_task_model(
            backbone, rows, category, items, [], plan.task_shape, plan.task_settings, base_vectors=vectors, states=bottom,
            report=log.stepper(f"task model, {category}"),
        )  # fmt: skip
        restore(task, results[-1].weights)
        capabilities = taxonomy.category(category).capability_names
        label_items = expert_items([(rows.of_comparison[c.id], c.labels) for c in labelled], capabilities, task_member=False)
        for case in cases:
            if kept[case].exists():
                continue
            begin = time.monotonic()
            slot = f"{category}_{case.depth}_{case.rank}"
            layer = backbone.first_layer(case.depth)
            states = TrunkStates.compute(backbone, rows, numbers, layer, task=category, bf16=False)
            of_labels = sorted({row for c in labelled for row in rows.of_comparison[c.id]})

            def pooled(of_labels: list[int] = of_labels, category: str = category, states: TrunkStates = states) -> dict[int, torch.Tensor]:
                return task_vectors(backbone, rows, of_labels, task=category, states=states, bf16=False)

            begin = time.monotonic()
            module, results = train_experts(
                backbone, rows, slot, capabilities, task.heads_KD.detach()[0], label_items, [],
                replace(plan.expert_shape, depth=case.depth, rank=case.rank, alpha=float(case.rank)), plan.expert_settings,
                task=category, states=states, vectors=pooled, report=log.stepper(f"{case.name}, {category}"),
            )  # fmt: skip
            restore(module, results[-1].weights)
            found[case].train_s += time.monotonic() - begin
            score(found[case], module.heads_KD.detach().cpu(), work, slot, category, states, capabilities, test, told)
            log.say(f"{case.name}, {category}: trained in {time.monotonic() - begin:.0f} s with scoring")
            if category == args.categories[-1]:
                kept[case].write_bytes(pickle.dumps(found[case]))
    return {case: pickle.loads(path.read_bytes()) for case, path in kept.items()}


def score(
    into: Measured, heads_KD: torch.Tensor, work: Workspace, slot: str, task: str, states: TrunkStates, capabilities: tuple[str, ...],
    test: list[Comparison], told: list[Comparison],
) -> None:  # fmt: skip
    numbers = [row for c in [*test, *told] for row in work.rows.of_comparison[c.id]]
    vectors = member_vectors(work.backbone, work.rows, numbers, task=task, experts=slot, states=states, bf16=False)
    scalars_BK = (vectors * heads_KD).sum(-1)
    scalars_BK = (scalars_BK - scalars_BK.mean(0)) / scalars_BK.std(0)
    place = 0
    for c in test:
        into.scored.append(Scored(c, tuple(scalars_BK[place : place + len(c.responses)].mean(1).tolist())))
        place += len(c.responses)
    for c in told:
        values_BK = scalars_BK[place : place + len(c.responses)]
        place += len(c.responses)
        overall = next((label.preferred for label in c.labels if label.capability == OVERALL), None)
        for label in c.labels:
            if label.capability in capabilities:
                ranks = tuple(1 if index == label.preferred else 2 for index in range(2))
                as_label = replace(c, id=f"{c.id}/{label.capability}", ranks=ranks, labels=())
                one = Scored(as_label, tuple(values_BK[:, capabilities.index(label.capability)].tolist()))
                into.own.append(one)
                if overall is not None and overall != label.preferred:
                    into.discordant.append(one)


def costs(cases: list[Case], pairs: list[tuple[Comparison, int]], args: argparse.Namespace, rounds: int = 5) -> dict[Case | None, float]:
    """Fastest of some rounds to score the same 64 rows from the tokens, the cases taking turns; None: one plain pass of the whole backbone.

    What the adapters have learned costs nothing, so they are new ones here.
    """
    passes: dict[Case | None, Callable[[], object]] = {None: one_pass(Case("all", "mean", 1, 1), pairs, None)}
    passes |= {case: one_pass(case, pairs, "experts") for case in cases}
    times: dict[Case | None, list[float]] = {case: [] for case in passes}
    for _ in range(rounds):
        for case, run in passes.items():
            begin = time.monotonic()
            run()
            times[case].append(time.monotonic() - begin)
    return {case: min(taken[1:]) for case, taken in times.items()}


def one_pass(case: Case, pairs: list[tuple[Comparison, int]], experts: str | None, copies: int = 6) -> Callable[[], object]:
    options = {"backbone": {"layers": case.layers, "pooling": case.pooling}}
    backbone, renderer = load_backbone(Recipe.model_validate({"data": DataOptions(comparisons=(Path("pairs.jsonl"),)), **options}))
    rows = Rows(renderer.tokenizer.pad_token_id)
    rows.add([c for c, _ in pairs[:32]], renderer)
    if experts is not None:
        backbone.add_task_adapter("task", depth=1, rank=64, alpha=64.0, dropout=0.0)
        backbone.add_experts(experts, copies, depth=case.depth, rank=case.rank, alpha=float(case.rank), dropout=0.0)
    task = None if experts is None else "task"
    return lambda: member_vectors(backbone, rows, list(range(64)), task=task, experts=experts, states=None, bf16=False)


def table(found: dict[Case, Measured], seconds: dict[Case | None, float]) -> tuple[str, list[dict[str, object]]]:
    resampling = Resampling(seed=0, samples=2000, confidence=0.95)
    base = found[DEFAULT]
    lines = ["| experts | pairs | minus default | own label | discordant | cost | training, s |", "|---|---|---|---|---|---|---|"]
    records: list[dict[str, object]] = []
    for case, one in found.items():
        agreement = accuracy_over_seeds([one.scored], resampling=resampling)
        own = accuracy_over_seeds([one.own], resampling=resampling)
        discordant = accuracy_over_seeds([one.discordant], resampling=resampling)
        cell = ""
        record: dict[str, object] = {
            "case": case.name,
            "layers": case.layers,
            "pooling": case.pooling,
            "depth": case.depth,
            "rank": case.rank,
        }
        if case != DEFAULT:
            difference = paired_difference_over_seeds([one.scored], [base.scored], resampling=resampling)
            cell = f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
            record |= {"difference": difference.value, "difference_low": difference.low, "difference_high": difference.high}
        cost = seconds[case] / seconds[None]
        lines.append(
            f"| {case.name} | {agreement.value:.3f} [{agreement.low:.3f}, {agreement.high:.3f}] | {cell} | "
            f"{own.value:.3f} [{own.low:.3f}, {own.high:.3f}] | {discordant.value:.3f} [{discordant.low:.3f}, {discordant.high:.3f}] | "
            f"{cost:.2f} | {one.train_s:.0f} |"
        )
        for name, figure in (("pairs", agreement), ("own", own), ("discordant", discordant)):
            record |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high, f"{name}_n": figure.n_pairs}
        records.append(record | {"cost": cost, "train_s": one.train_s})
    n = len(base.scored), len(base.own), len(base.discordant)
    head = f"n = {n[0]} pairs, {n[1]} labels, {n[2]} of them discordant."
    return f"{head}\n\n" + "\n".join(lines), records


def plot(records: list[dict[str, object]], path: Path) -> None:
    """Agreement on pairs (with its interval) against cost, as an SVG that stands by itself."""
    width, height, left, right, top, bottom = 760, 420, 60, 250, 20, 50
    costs = [float(str(r["cost"])) for r in records]
    lows, highs = [float(str(r["pairs_low"])) for r in records], [float(str(r["pairs_high"])) for r in records]
    x_most, y_least, y_most = max(costs) * 1.08, min(lows) - 0.01, max(highs) + 0.01

    def x(value: float) -> float:
        return left + (width - left - right) * value / x_most

    def y(value: float) -> float:
        return top + (height - top - bottom) * (y_most - value) / (y_most - y_least)

    colours = {"3mean": "#1f5fbf", "3first": "#c2571a", "allmean": "#4a7a35"}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<path d="M{left} {top}V{height - bottom}H{width - right}" fill="none" stroke="#555"/>',
        f'<text x="{(left + width - right) / 2:.0f}" y="{height - 12}" text-anchor="middle">cost, plain passes of six layers</text>',
        f'<text transform="translate(16 {(top + height - bottom) / 2:.0f}) rotate(-90)" text-anchor="middle">agreement on pairs</text>',
    ]
    for tick in range(int(x_most) + 1):
        parts.append(f'<text x="{x(tick):.1f}" y="{height - bottom + 16}" text-anchor="middle">{tick}</text>')
    for step in range(int(y_least * 50) + 1, int(y_most * 50) + 1):
        parts.append(f'<text x="{left - 6}" y="{y(step / 50) + 4:.1f}" text-anchor="end">{step / 50:.2f}</text>')
    for number, (record, cost) in enumerate(zip(records, costs, strict=True), 1):
        colour = colours[f"{record['layers']}{record['pooling']}"]
        low, high, value = (y(float(str(record[name]))) for name in ("pairs_low", "pairs_high", "pairs"))
        parts.append(f'<path d="M{x(cost):.1f} {low:.1f}V{high:.1f}" stroke="{colour}" stroke-opacity=".35"/>')
        parts.append(f'<circle cx="{x(cost):.1f}" cy="{value:.1f}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{x(cost) + 6:.1f}" y="{value - 5:.1f}" fill="{colour}">{number}</text>')
        text = str(record["case"]).replace("experts in ", "")
        parts.append(f'<text x="{width - right + 12}" y="{top + 10 + 18 * number}" fill="{colour}">{number} {text}</text>')
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the .jsonl.gz files")
    parser.add_argument("--categories", nargs="+", default=["objective_qa", "subjective_qa", "text_creation"])
    parser.add_argument("--test-fold", type=int, default=3, choices=range(4))
    parser.add_argument("--skip", type=int, nargs="+", default=[], help="numbers of cases, from 1, to leave out")
    parser.add_argument("--work", type=Path, default=Path("runs/expert_depth"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    args.work.mkdir(parents=True, exist_ok=True)
    pairs, judged = (with_folds(args.data / f"{name}.jsonl.gz") for name in ("alpaca_eval_pairs", "capability_judgements"))
    cases = [case for number, case in enumerate(CASES, 1) if number not in args.skip]
    found: dict[Case, Measured] = {}
    for shape in dict.fromkeys((case.layers, case.pooling) for case in cases):
        found |= measure([case for case in cases if (case.layers, case.pooling) == shape], pairs, judged, args)
    text, records = table({case: found[case] for case in cases}, costs(cases, pairs, args))
    header = (
        f"Date {date.today()}, {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}. Categories {', '.join(args.categories)}; test fold {args.test_fold}, other inner folds "
        "train; seed 0. Cost 1 is one plain pass of six-layer MiniLM."
    )
    page = f"# Depth, rank and pooling of experts\n\n{header}\n\n{text}\n"
    print(page)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "expert_depth.md").write_text(page, encoding="utf-8")
    (args.output / "expert_depth.json").write_text(json.dumps({"header": header, "rows": records}, indent=1) + "\n")
    plot(records, args.output / "expert_depth.svg")


if __name__ == "__main__":
    main()
