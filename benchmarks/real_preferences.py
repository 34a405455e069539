"""The headline measurement: what the double-layer model is worth on real preferences, against what it is made of.

    python benchmarks/real_preferences.py --data DIR [--seeds 0 1 2] [--inner] [--set experts.depth=2 …]

DIR holds alpaca_eval_pairs, capability_judgements, autoj_human_dev and prompt_categories (.jsonl.gz, each row with a `fold`).
Folds 0–3 train and choose (choices are made inside train_inner, by cross-fitting); fold 4 and the human pairs test once. With --inner,
folds 0–2 train and fold 3 tests: for choosing between recipes without touching the test. With `--conditions held` only the models without a
quarter of the authors are trained, and tested on pairs with one of those authors. Every (authors, seed) run is kept under --work
as one JSON of rewards, so an interrupted run goes on where it stopped, and the table can be made again without training.

Rows of the table
    single                  one reward model on all pairs (phase 1 of `general`)
    single + judged         the same, given the judged pairs with the judge's overall verdict as well
    double-layer            router, inner models with capability experts, aggregator (mlp) or mean, wco, uwo of the experts
    … mean + task model     half the task model, half the mean of its experts
    without outer layer     the `general` inner model for everything
    without inner layer     router, then the category's task model alone
    control                 the same as double-layer, every capability label replaced by the judge's overall verdict on that pair
"""

import argparse
import gzip
import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import torch
import transformers

from dmoerm.data.readers import read_comparisons, read_prompts
from dmoerm.evaluation.baselines import score_baselines
from dmoerm.evaluation.bootstrap import Resampling
from dmoerm.evaluation.metrics import accuracy_over_seeds, length_balanced_accuracy, paired_difference_over_seeds
from dmoerm.evaluation.pair_table import Scored
from dmoerm.modeling.inner import aggregate
from dmoerm.modeling.reward_model import prompt_vectors
from dmoerm.modeling.router import Router
from dmoerm.recipe import DataOptions, Recipe, recipe_hash
from dmoerm.records import OVERALL, CapabilityLabel, Comparison, prompt_hash
from dmoerm.taxonomy import GENERAL, paper_taxonomy
from dmoerm.training.checkpoints import RunState, content_key
from dmoerm.training.inner import InnerPlan, InnerResult, Workspace, train_inner
from dmoerm.training.phase1 import task_items, task_vectors, train_task_model
from dmoerm.training.pipeline import Prepared, inner_plan, load_backbone
from dmoerm.training.progress import RunLog
from dmoerm.training.router import RouterData, train_router
from dmoerm.training.rows import Rows, TrunkStates, member_vectors
from dmoerm.training.trainer import restore

CATEGORIES = ("objective_qa", "subjective_qa", "text_creation")
"""Those with enough pairs and labels; chitchat and roleplay go to the fallback."""

Rewards = dict[str, list[float]]


@dataclass(frozen=True)
class Data:
    pairs: list[Comparison]
    judged: list[Comparison]
    test_pairs: list[Comparison]
    human: list[Comparison]
    prompts: RouterData
    held_authors: frozenset[str]


def with_folds(path: Path) -> list[tuple[Comparison, int]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        folds = [json.loads(line)["fold"] for line in file]
    return list(zip(read_comparisons(path).comparisons, folds, strict=True))


def load(folder: Path, *, inner: bool, without_authors: bool) -> Data:
    train_folds, test_fold = ({0, 1, 2}, 3) if inner else ({0, 1, 2, 3}, 4)
    pairs = with_folds(folder / "alpaca_eval_pairs.jsonl.gz")
    judged = [(c, fold) for c, fold in with_folds(folder / "capability_judgements.jsonl.gz") if c.labels]
    human = [c for c, fold in with_folds(folder / "autoj_human_dev.jsonl.gz") if not inner or fold != 4]
    tested = {prompt_hash(c.prompt) for c in human} | {prompt_hash(c.prompt) for c, fold in pairs if fold not in train_folds}
    authors = sorted({author for c, _ in pairs for author in c.authors if author})
    held = frozenset(a for a in authors if int(hashlib.sha256(a.encode()).hexdigest(), 16) % 4 == 0) if without_authors else frozenset()

    def trains(c: Comparison, fold: int) -> bool:
        return fold in train_folds and prompt_hash(c.prompt) not in tested and not held & set(c.authors)

    rows = read_prompts(folder / "prompt_categories.jsonl.gz")
    with gzip.open(folder / "prompt_categories.jsonl.gz", "rt", encoding="utf-8") as file:
        folds = [json.loads(line)["fold"] for line in file]
    routed = [row for row, fold in zip(rows, folds, strict=True) if fold in train_folds and prompt_hash(row[0]) not in tested]
    return Data(
        [c for c, fold in pairs if trains(c, fold)],
        [c for c, fold in judged if trains(c, fold)],
        [c for c, fold in pairs if fold == test_fold],
        human,
        RouterData.of(routed),
        held,
    )


def base_workspace(folder: Path, recipe: Recipe, work: Path) -> Prepared:
    """Backbone, and every row of every file rendered and sent through the frozen trunk once, kept on disk."""
    backbone, renderer = load_backbone(recipe)
    rows = Rows(renderer.tokenizer.pad_token_id)
    for name in ("alpaca_eval_pairs", "capability_judgements", "autoj_human_dev"):
        rows.add(read_comparisons(folder / f"{name}.jsonl.gz").comparisons, renderer)
    layer = min(backbone.first_layer(recipe.task_model.depth), backbone.first_layer(recipe.experts.depth))
    cache = work / f"trunk-{backbone.fingerprint()[:8]}-{renderer.fingerprint()[:8]}-{layer}.pt"
    states = TrunkStates(layer)
    if cache.exists():
        states.of_row = torch.load(cache, weights_only=True)
    else:
        begin = time.monotonic()
        numbers = list(range(len(rows.rendered)))
        states = TrunkStates.compute(backbone, rows, numbers, layer, bf16=False)
        states.of_row = {row: value.half() for row, value in states.of_row.items()}
        torch.save(states.of_row, cache)
        (work / "trunk_seconds.json").write_text(json.dumps({"seconds": time.monotonic() - begin, "rows": len(numbers)}))
    numbers = sorted({r for c in with_folds(folder / "alpaca_eval_pairs.jsonl.gz") for r in rows.of_comparison[c[0].id]})
    numbers = sorted({*numbers, *(r for c in with_folds(folder / "capability_judgements.jsonl.gz") for r in rows.of_comparison[c[0].id])})
    vectors = task_vectors(backbone, rows, numbers, task=None, states=states, bf16=False)
    log = RunLog(work, quiet=False, append=True)
    # Phases are kept by what they depend on, so the control takes over the task models of the experts, and a killed run goes on.
    state, key = RunState(work, say=log.say), content_key(backbone.fingerprint(), recipe.training.sampled_positions)
    return Prepared(backbone, renderer, Workspace(backbone, rows, vectors, states, False, log, state, key), [], [])


def as_control(judged: Sequence[Comparison]) -> list[Comparison]:
    """Each capability label replaced by the judge's overall verdict on the same pair; pairs without a clear verdict fall away."""
    control = []
    for c in judged:
        overall = next((label for label in c.labels if label.capability == OVERALL), None)
        if overall is not None:
            labels = [
                CapabilityLabel(label.capability, overall.preferred, overall.other) for label in c.labels if label.capability != OVERALL
            ]
            control.append(replace(c, labels=tuple(labels)))
    return control


def as_preferences(judged: Sequence[Comparison]) -> list[Comparison]:
    """Judged pairs as comparisons ranked by the judge's overall verdict."""
    ranked = []
    for c in judged:
        overall = next((label for label in c.labels if label.capability == OVERALL), None)
        if overall is not None:
            ranked.append(replace(c, ranks=tuple(1 if index == overall.preferred else 2 for index in range(2))))
    return ranked


def run(prepared: Prepared, data: Data, recipe: Recipe) -> dict[str, Rewards]:
    """Train everything for one seed; rewards of the test comparisons under every row of the table."""
    work, plan = prepared.work, inner_plan(recipe, prepared)
    taxonomy = paper_taxonomy()
    router, _ = train_router(
        prepared.backbone, prepared.renderer, data.prompts, taxonomy.category_names,
        general_below=recipe.router.general_below, finetune=None, rank=8, seed=recipe.seed, log=work.log,
    )  # fmt: skip
    tests = [*data.test_pairs, *data.human]
    routes = route(prepared, router, tests)
    scored: dict[str, Rewards] = {}
    control = as_control(data.judged)
    by_category: dict[str, dict[str, Rewards]] = {}
    for category in CATEGORIES:
        own = [c for c in data.pairs if c.category == category]
        capabilities = taxonomy.category(category).capability_names
        for kind, labelled in (("experts", data.judged), ("control", control)):
            result = train_inner(work, category, own, [c for c in labelled if c.category == category], capabilities, plan)
            by_category.setdefault(kind, {})[category] = judged_rewards(
                work, category, result, [c for c in tests if routes[c.id] == category], plan
            )
    general = train_inner(work, GENERAL, data.pairs, data.judged, taxonomy.capability_names, plan)
    general_rewards = judged_rewards(work, GENERAL, general, tests, plan)
    single_judged = train_single(work, [*data.pairs, *as_preferences(data.judged)], tests, plan, int(general.metrics["task_epochs"]))

    def routed(kind: str, name: str) -> Rewards:
        models = {**by_category[kind], GENERAL: general_rewards}
        return {c.id: models[routes[c.id]][name][c.id] for c in tests}

    scored["single"] = general_rewards["task"]
    scored["single + judged pairs"] = single_judged
    for name in ("mlp", "mean", "wco", "uwo", "mean + task model"):
        scored[f"double-layer, {name}"] = routed("experts", name)
    for name in ("mlp", "mean", "mean + task model"):
        scored[f"without outer layer, {name}"] = general_rewards[name]
    scored["without inner layer"] = routed("experts", "task")
    for name in ("mlp", "mean", "mean + task model"):
        scored[f"control (overall labels), {name}"] = routed("control", name)
    return scored


def judged_rewards(work: Workspace, category: str, result: InnerResult, tests: Sequence[Comparison], plan: InnerPlan) -> dict[str, Rewards]:
    """Rewards of every test comparison under one inner model, by aggregation."""
    numbers = [row for c in tests for row in work.rows.of_comparison[c.id]]
    experts = category if result.inner.capabilities else None
    with torch.no_grad():
        vectors = member_vectors(work.backbone, work.rows, numbers, task=category, experts=experts, states=work.states, bf16=False)
        scalars_BK, _ = result.inner.standardise(vectors)
        raw = result.inner.raw_rewards(vectors, uwo_penalty=plan.aggregator.uwo_penalty)
        task = member_vectors(work.backbone, work.rows, numbers, task=category, experts=None, states=work.states, bf16=False)
        task_B = (task[:, 0] * result.inner.task_head_D).sum(-1)
        mean_B = aggregate(scalars_BK, 0.0)["mean"]
        values = {**{name: value for name, value in raw.items() if name != "mlp"}, "mlp": raw["mlp"][:, 0], "task": task_B}
        values["mean + task model"] = (task_B - task_B.mean()) / task_B.std() + (mean_B - mean_B.mean()) / mean_B.std()
    return {str(name): split(value.tolist(), tests) for name, value in values.items()}


def split(values: list[float], tests: Sequence[Comparison]) -> Rewards:
    rewards, first = {}, 0
    for c in tests:
        rewards[c.id] = values[first : first + len(c.responses)]
        first += len(c.responses)
    return rewards


def train_single(work: Workspace, comparisons: Sequence[Comparison], tests: Sequence[Comparison], plan: InnerPlan, epochs: int) -> Rewards:
    items = task_items([(work.rows.of_comparison[c.id], [(p.chosen, p.rejected) for p in c.pairs()]) for c in comparisons])
    module, results = train_task_model(
        work.backbone, work.rows, "single", items, [], plan.task_shape, plan.task_settings,
        base_vectors=work.base_vectors, states=work.states, stop_after=epochs, report=work.log.stepper("single + judged"),
    )  # fmt: skip
    restore(module, results[-1].weights)
    numbers = [row for c in tests for row in work.rows.of_comparison[c.id]]
    vectors = member_vectors(work.backbone, work.rows, numbers, task="single", experts=None, states=work.states, bf16=False)
    return split((vectors[:, 0] @ module.heads_KD.detach()[0]).tolist(), tests)


def route(prepared: Prepared, router: Router, tests: Sequence[Comparison]) -> dict[str, str]:
    vectors = prompt_vectors(prepared.backbone, prepared.renderer, [c.prompt for c in tests])
    chosen = [name if name in CATEGORIES else GENERAL for name, _ in router.route(vectors)]
    return {c.id: name for c, name in zip(tests, chosen, strict=True)}


# --- the table ------------------------------------------------------------------------------------------------------------------------


def table(
    data: Data, runs: Mapping[str, list[Rewards]], held_runs: Mapping[str, list[Rewards]], held: Data | None
) -> tuple[str, list[dict[str, object]]]:
    """Markdown and records: agreement on test pairs, human pairs and unseen authors, with intervals and paired differences to `single`."""
    human = [c for c in data.human if c.has_preference]
    columns: list[tuple[str, list[Comparison], Mapping[str, list[Rewards]]]] = []
    if runs:
        columns += [("pairs", data.test_pairs, runs), ("human pairs", human, runs)]
    if held is not None and held_runs:
        unseen = [c for c in held.test_pairs if held.held_authors & set(c.authors)]
        columns.append(("unseen authors", unseen, held_runs))
    resampling = Resampling(seed=0, samples=2000, confidence=0.95)
    records: list[dict[str, object]] = []
    lines = [
        "| model | " + " | ".join(f"{name} (n = {sum(len(list(c.pairs())) for c in cs)})" for name, cs, _ in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for model in runs or held_runs:
        cells = []
        for name, comparisons, source in columns:
            scored = [[Scored(c, tuple(rewards[c.id])) for c in comparisons] for rewards in source[model]]
            reference = [[Scored(c, tuple(rewards[c.id])) for c in comparisons] for rewards in source["single"]]
            value = accuracy_over_seeds(scored, resampling=resampling)
            seeds = [accuracy_over_seeds([one]).value for one in scored]
            cell = f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"
            record: dict[str, object] = {
                "model": model,
                "column": name,
                "value": value.value,
                "low": value.low,
                "high": value.high,
                "seeds": seeds,
                "n_pairs": value.n_pairs,
                "n_prompts": value.n_prompts,
            }
            if model != "single":
                difference = paired_difference_over_seeds(scored, reference, resampling=resampling)
                cell += f" ({difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}])"
                record |= {"difference": difference.value, "difference_low": difference.low, "difference_high": difference.high}
            if name == "human pairs":
                record["length_balanced"] = sum(length_balanced_accuracy(one).value for one in scored) / len(scored)
            cells.append(cell)
            records.append(record)
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines), records


def capability_value(runs: Mapping[str, list[Rewards]], data: Data, held: Data | None, held_runs: Mapping[str, list[Rewards]]) -> str:
    """What capability labels are worth: double-layer minus control, paired."""
    resampling = Resampling(seed=0, samples=2000, confidence=0.95)
    sets: list[tuple[str, list[Comparison], Mapping[str, list[Rewards]]]] = []
    if runs:
        sets += [("pairs", data.test_pairs, runs), ("human pairs", [c for c in data.human if c.has_preference], runs)]
    if held is not None and held_runs:
        sets.append(("unseen authors", [c for c in held.test_pairs if held.held_authors & set(c.authors)], held_runs))
    lines = [
        "| capability labels minus overall labels | " + " | ".join(name for name, _, _ in sets) + " |",
        "|---" * (len(sets) + 1) + "|",
    ]
    for name in ("mlp", "mean", "mean + task model"):
        cells = []
        for _, comparisons, source in sets:
            ours, theirs = (
                [[Scored(c, tuple(rewards[c.id])) for c in comparisons] for rewards in source[model]]
                for model in (f"double-layer, {name}", f"control (overall labels), {name}")
            )
            d = paired_difference_over_seeds(ours, theirs, resampling=resampling)
            cells.append(f"{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def baselines(data: Data) -> dict[str, list[Rewards]]:
    tests = [*data.test_pairs, *(c for c in data.human if c.has_preference)]
    answers = score_baselines(data.pairs, tests)
    return {
        f"baseline: {name}": [{s.comparison.id: [float(r) for r in s.rewards if r is not None] for s in scored}]
        for name, scored in answers.items()
    }


def main(clock: Callable[[], float] = time.monotonic) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the four .jsonl.gz files")
    parser.add_argument("--work", type=Path, default=Path("runs/real_preferences"), help="where stored states and finished runs are kept")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="where the table goes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--held-seeds", type=int, nargs="+", help="seeds of the condition held; default: those of --seeds")
    parser.add_argument("--inner", action="store_true", help="choose on inner folds: train on folds 0–2, test on fold 3")
    parser.add_argument(
        "--conditions", nargs="+", default=["all", "held"], choices=["all", "held"], help="all authors; a quarter of them held out"
    )
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="section.key=value of the recipe, JSON values")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    args.work.mkdir(parents=True, exist_ok=True)
    sections: dict[str, dict[str, object]] = {}
    for override in args.overrides:
        key, _, text = override.partition("=")
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = json.loads(text)
    recipe = Recipe.model_validate({"data": DataOptions(comparisons=(Path("alpaca_eval_pairs.jsonl.gz"),)), **sections})
    prepared: Prepared | None = None
    results: dict[str, dict[str, list[Rewards]]] = {}
    seconds: dict[str, float] = {}
    tag = f"{'inner' if args.inner else 'test'}-{recipe_hash(recipe)}"
    seeds = {"all": args.seeds, "held": args.held_seeds or args.seeds}
    for condition in args.conditions:
        for seed in seeds[condition]:
            finished = args.work / f"{tag}-{condition}-{seed}.json"
            if not finished.exists():
                prepared = prepared or base_workspace(args.data, recipe, args.work)
                begin = clock()
                data = load(args.data, inner=args.inner, without_authors=condition == "held")
                print(
                    f"{condition}, seed {seed}: {len(data.pairs)} pairs, {len(data.judged)} judged, {len(data.test_pairs)} test pairs",
                    flush=True,
                )
                rewards = run(prepared, data, recipe.model_copy(update={"seed": seed}))
                finished.write_text(json.dumps({"rewards": rewards, "seconds": clock() - begin}))
            stored = json.loads(finished.read_text())
            seconds[f"{condition}-{seed}"] = stored["seconds"]
            for model, value in stored["rewards"].items():
                results.setdefault(condition, {}).setdefault(model, []).append(value)
    data = load(args.data, inner=args.inner, without_authors=False)
    held = load(args.data, inner=args.inner, without_authors=True) if "held" in results else None
    runs, held_runs = results.get("all", {}), results.get("held", {})
    if runs:
        runs |= baselines(data)
    if held is not None:
        held_runs |= baselines(held)
    text, records = table(data, runs, held_runs, held)
    worth = capability_value(runs, data, held, held_runs)
    versions = (
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    folds = "inner folds" if args.inner else "test folds"
    minutes = sum(seconds.values()) / 60
    trained = "; ".join(f"{condition}: seeds {seeds[condition]}" for condition in args.conditions)
    header = (
        f"Date {date.today()}, {versions}. Recipe {recipe_hash(recipe)}, {trained}; {folds}; "
        f"training {minutes:.0f} minutes in all. "
        "Brackets: 95 % bootstrap over prompts; in parentheses the paired difference to `single`."
    )
    page = f"# Real preferences\n\n{header}\n\n{text}\n\n{worth}\n"
    print(page)
    args.output.mkdir(parents=True, exist_ok=True)
    stem = args.output / f"real_preferences{'_inner' if args.inner else ''}{'' if runs else '_unseen_authors'}"
    stem.with_suffix(".md").write_text(page, encoding="utf-8")
    stem.with_suffix(".json").write_text(
        json.dumps({"header": header, "recipe": recipe.model_dump(mode="json"), "rows": records, "seconds": seconds}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
