"""What it is worth to fit the heads of a category near those of all categories together (`training.share_heads`).

    python benchmarks/shared_heads.py --data DIR [--output]

Heads on frozen vectors alone: no adapter, no aggregator, so that a minute answers. Folds 0–3 of alpaca_eval_pairs and
capability_judgements train in turn without one of them; its pairs and the human pairs of the same fold are ordered. Nothing of fold 4 is
looked at. Prompts go to the category that the file names.

Rows of the table
    one head                    a head on all pairs
    experts of all categories   no outer layer: mean of the experts of every capability, each on all its labels
    task, alone                 a head on the category's own pairs
    task, near all              the same, fitted near the one head
    task, near consensus        the same, fitted cautiously near the experts of all categories: what training.share_heads does
    experts, alone              mean of the category's experts, each fitted near its task head to its own labels
    experts, near all           the same, each near the head of its capability over all categories
    experts, near consensus     the same, each cautiously near the experts of all categories: what training.share_heads does
"""

import argparse
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import torch
import transformers
from real_preferences import CATEGORIES, with_folds
from torch import Tensor

from dmoerm.evaluation.bootstrap import Resampling
from dmoerm.evaluation.metrics import accuracy_over_seeds, paired_difference_over_seeds
from dmoerm.evaluation.pair_table import Scored
from dmoerm.recipe import DataOptions, Recipe
from dmoerm.records import Comparison, prompt_hash
from dmoerm.taxonomy import paper_taxonomy
from dmoerm.training.phase1 import fit_head, task_items, task_vectors
from dmoerm.training.phase2 import expert_items
from dmoerm.training.pipeline import load_backbone
from dmoerm.training.rows import Rows

FOLDS = range(4)
MINIMUM_LABELS = 20
HOW = ("alone", "near all", "near consensus")
RESULTS = Path(__file__).parent / "results"

Heads = dict[str, Tensor]
Rewards = dict[str, dict[str, tuple[float, ...]]]
"""By row of the table and id of the comparison."""


class Vectors:
    """Frozen vectors of every response, and heads fitted on them."""

    def __init__(self, comparisons: Sequence[Comparison]) -> None:
        backbone, renderer = load_backbone(Recipe.model_validate({"data": DataOptions(comparisons=(Path("pairs.jsonl"),))}))
        rows = Rows(renderer.tokenizer.pad_token_id)
        rows.add(comparisons, renderer)
        self.of_row = task_vectors(backbone, rows, range(len(rows.rendered)), task=None, states=None, bf16=False)
        self.rows = rows.of_comparison

    def task(self, comparisons: Sequence[Comparison], prior_D: Tensor | None = None, *, cautious: bool = False) -> Tensor:
        items = task_items([(self.rows[c.id], [(pair.chosen, pair.rejected) for pair in c.pairs()]) for c in comparisons])
        return fit_head(self.of_row, items, prior_D=prior_D, cautious=cautious)

    def experts(
        self,
        labelled: Sequence[Comparison],
        names: Sequence[str],
        task_D: Tensor,
        near: Mapping[str, Tensor] = {},
        *,
        cautious: bool = False,
    ) -> Heads:
        items = expert_items([(self.rows[c.id], c.labels) for c in labelled], names, task_member=False)
        heads = {}
        for member, name in enumerate(names):
            own = [item for item in items if member in item.members()]
            if len(own) >= MINIMUM_LABELS:
                heads[name] = fit_head(self.of_row, own, member=member, prior_D=near.get(name, task_D), cautious=cautious)
        return heads

    def rewards(self, head_D: Tensor, comparisons: Sequence[Comparison]) -> dict[str, tuple[float, ...]]:
        return {c.id: tuple(float(self.of_row[row] @ head_D) for row in self.rows[c.id]) for c in comparisons}

    def mean(self, heads: Heads, over: Sequence[Comparison]) -> Tensor:
        """One head that gives the mean of standardised experts."""
        rows_BD = torch.stack([self.of_row[row] for row in sorted({row for c in over for row in self.rows[c.id]})])
        return torch.stack([head_D / (rows_BD @ head_D).std() for head_D in heads.values()]).mean(0)


def fold_rewards(vectors: Vectors, pairs: Sequence[Comparison], judged: Sequence[Comparison], tests: Sequence[Comparison]) -> Rewards:
    """Rewards of `tests` under every row of the table, trained on the rest."""
    taxonomy = paper_taxonomy()
    one_D = vectors.task(pairs)
    everyone = vectors.experts(judged, taxonomy.capability_names, one_D)
    everyone_D = vectors.mean(everyone, pairs)
    found: Rewards = {"one head": vectors.rewards(one_D, tests)}
    found["experts of all categories"] = vectors.rewards(everyone_D, tests)
    heads = {f"{what}, {how}": head_D for what, head_D in (("task", one_D), ("experts", everyone_D)) for how in HOW}
    elsewhere = [c for c in tests if c.category not in CATEGORIES]
    for name, head_D in heads.items():
        found[name] = vectors.rewards(head_D, elsewhere)
    for category in CATEGORIES:
        own, labels, asked = ([c for c in rows if c.category == category] for rows in (pairs, judged, tests))
        names = taxonomy.category(category).capability_names
        alone_D, near_D = vectors.task(own), vectors.task(own, one_D)
        heads = {
            "task, alone": alone_D,
            "task, near all": near_D,
            "task, near consensus": vectors.task(own, everyone_D, cautious=True),
            "experts, alone": vectors.mean(vectors.experts(labels, names, alone_D), own),
            "experts, near all": vectors.mean(vectors.experts(labels, names, near_D, everyone), own),
            "experts, near consensus": vectors.mean(vectors.experts(labels, names, everyone_D, cautious=True), own),
        }
        for name, head_D in heads.items():
            found[name] |= vectors.rewards(head_D, asked)
    return found


def table(rewards: Rewards, columns: Mapping[str, Sequence[Comparison]]) -> str:
    """Agreement with intervals; in parentheses the paired difference to `alone`."""
    resampling = Resampling(seed=0, samples=2000, confidence=0.95)
    heads = [f"{name} (n = {sum(len(list(c.pairs())) for c in rows)})" for name, rows in columns.items()]
    lines = ["| heads | " + " | ".join(heads) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, found in rewards.items():
        cells = []
        for comparisons in columns.values():
            scored = [Scored(c, found[c.id]) for c in comparisons]
            value = accuracy_over_seeds([scored], resampling=resampling)
            cell = f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"
            what, _, how = name.partition(", ")
            if how in HOW[1:]:
                alone = [Scored(c, rewards[f"{what}, alone"][c.id]) for c in comparisons]
                d = paired_difference_over_seeds([scored], [alone], resampling=resampling)
                cell += f" ({d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}])"
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the .jsonl.gz files")
    parser.add_argument("--output", type=Path, nargs="?", const=RESULTS, help="write shared_heads.md there (default results/)")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    pairs, judged, human = (
        [(c, fold) for c, fold in with_folds(args.data / f"{name}.jsonl.gz") if fold in FOLDS]
        for name in ("alpaca_eval_pairs", "capability_judgements", "autoj_human_dev")
    )
    judged = [(c, fold) for c, fold in judged if c.labels]
    human = [(c, fold) for c, fold in human if c.has_preference]
    vectors = Vectors([c for c, _ in (*pairs, *judged, *human)])
    rewards: Rewards = {}
    for held in FOLDS:
        tests = [c for c, fold in (*pairs, *human) if fold == held]
        tested = {prompt_hash(c.prompt) for c in tests}
        train, labels = ([c for c, fold in rows if fold != held and prompt_hash(c.prompt) not in tested] for rows in (pairs, judged))
        for name, found in fold_rewards(vectors, train, labels, tests).items():
            rewards.setdefault(name, {}).update(found)
        print(f"fold {held} is done", flush=True)
    head = (
        f"Date {date.today()}, {platform.machine()}, torch {torch.__version__}. Folds 0–3, each ordered by heads of the other three. "
        "Brackets: 95 % bootstrap over prompts; in parentheses the paired difference to `alone`."
    )
    body = table(rewards, {"pairs": [c for c, _ in pairs], "human pairs": [c for c, _ in human]})
    made = "Made by `python benchmarks/shared_heads.py`; its head says what is measured."
    page = "\n\n".join(["# Heads near those of all categories", made, head, body]) + "\n"
    print(page)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "shared_heads.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
