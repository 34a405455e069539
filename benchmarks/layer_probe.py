"""Which layer of a frozen backbone orders responses best: the measurement behind `backbone.layers: auto`.

    python benchmarks/layer_probe.py --pairs alpaca_eval_pairs.jsonl.gz [--backbone NAME] [--prompts prompt_categories.jsonl.gz]

For every layer: the mean of its output over a text's tokens, a linear head on differences of responses (the head with which phase 1
starts, its strength chosen inside the training part), tested on each fold in turn. Rows with a `fold` of 4 are left out: they are for
final tests. With --prompts also the router: accuracy of a logistic regression on the mean vectors of prompts, cross-validated.
Intervals: 95 %, bootstrap over prompts.
"""

import argparse
import gzip
import json
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
import transformers

from dmoerm.data.readers import read_comparisons, read_prompts
from dmoerm.data.rendering import Renderer
from dmoerm.evaluation.bootstrap import Resampling
from dmoerm.evaluation.metrics import accuracy_over_seeds
from dmoerm.evaluation.pair_table import Scored
from dmoerm.modeling.backbone import Backbone, load_tokenizer
from dmoerm.modeling.batching import token_batches
from dmoerm.records import Comparison
from dmoerm.taxonomy import paper_taxonomy
from dmoerm.training.phase1 import fit_head, task_items
from dmoerm.training.progress import RunLog
from dmoerm.training.router import RouterData, train_router
from dmoerm.training.rows import Rows

FOLDS = (0, 1, 2, 3)


def read_with_folds(path: Path) -> list[tuple[Comparison, int]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        folds = [json.loads(line)["fold"] for line in file]
    return [(c, fold) for c, fold in zip(read_comparisons(path).comparisons, folds, strict=True) if fold in FOLDS and c.has_preference]


def means_by_layer(backbone: Backbone, rows: Rows, max_tokens: int = 8192) -> torch.Tensor:
    """Mean over tokens of what leaves each layer, shape (layers, rows, D)."""
    layers, count = len(backbone.layers), len(rows.rendered)
    means_NBD = torch.zeros(layers, count, backbone.hidden_size)
    outputs: dict[int, torch.Tensor] = {}
    hooks = [
        layer.layer.register_forward_hook(lambda module, args, output, index=index: outputs.__setitem__(index, output))
        for index, layer in enumerate(backbone.layers)
    ]
    lengths = rows.lengths(range(count))
    for picked in token_batches(lengths, max_tokens):
        batch = rows.batch(picked)
        with torch.no_grad():
            backbone.model(**batch)
        mask_BL1 = batch["attention_mask"].float().unsqueeze(-1)
        for index, hidden_BLD in outputs.items():
            means_NBD[index, picked] = (hidden_BLD.float() * mask_BL1).sum(1) / mask_BL1.sum(1)
    for hook in hooks:
        hook.remove()
    return means_NBD


def agreement_of(vectors_BD: torch.Tensor, rows: Rows, data: list[tuple[Comparison, int]]) -> list[Scored]:
    """Every comparison judged by the head of the folds it is not in."""
    vectors = dict(enumerate(vectors_BD))

    def items(chosen: list[Comparison]) -> list:  # type: ignore[type-arg]
        return task_items([(rows.of_comparison[c.id], [(p.chosen, p.rejected) for p in c.pairs()]) for c in chosen])

    scored = []
    for fold in FOLDS:
        head_D = fit_head(vectors, items([c for c, other in data if other != fold]))
        for comparison, other in data:
            if other == fold:
                scored.append(Scored(comparison, tuple(float(vectors[row] @ head_D) for row in rows.of_comparison[comparison.id])))
    return scored


def router_accuracy(name: str, layers: int, prompts: Path, renderer: Renderer) -> float:
    with gzip.open(prompts, "rt", encoding="utf-8") as file:
        folds = [json.loads(line)["fold"] for line in file]
    labelled = [row for row, fold in zip(read_prompts(prompts), folds, strict=True) if fold in FOLDS]
    _, metrics = train_router(
        Backbone.load(name, keep_layers=layers), renderer, RouterData.of(labelled), paper_taxonomy().category_names,
        general_below=0.5, finetune=None, rank=8, seed=0, log=RunLog(None, quiet=True),
    )  # fmt: skip
    return float(metrics["held_out_accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="comparisons, gzip, each row with a fold")
    parser.add_argument("--prompts", type=Path, help="prompts with category and fold, gzip")
    parser.add_argument("--backbone", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--max-length-tokens", type=int, default=256)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    begin = time.monotonic()
    data = read_with_folds(args.pairs)
    backbone = Backbone.load(args.backbone).eval()
    renderer = Renderer(load_tokenizer(args.backbone), args.max_length_tokens)
    rows = Rows(renderer.tokenizer.pad_token_id)
    rows.add([c for c, _ in data], renderer)
    resampling = Resampling(seed=0, samples=2000, confidence=0.95)
    lines = ["| layers used | agreement | router |", "|---|---|---|"]
    records = []
    for index, vectors_BD in enumerate(means_by_layer(backbone, rows)):
        value = accuracy_over_seeds([agreement_of(vectors_BD, rows, data)], resampling=resampling)
        routed = router_accuracy(args.backbone, index + 1, args.prompts, renderer) if args.prompts else None
        lines.append(
            f"| {index + 1} | {value.value:.3f} [{value.low:.3f}, {value.high:.3f}] | {'' if routed is None else f'{routed:.3f}'} |"
        )
        records.append({"layers": index + 1, "agreement": value.value, "low": value.low, "high": value.high, "router": routed})
        print(lines[-1], flush=True)
    header = (
        f"Date {date.today()}, {args.backbone}, {args.max_length_tokens} tokens, {len(data)} pairs, {value.n_prompts} prompts (folds 0–3), "
        f"torch {torch.__version__}, transformers {transformers.__version__}, numpy {np.__version__}; {time.monotonic() - begin:.0f} s."
    )
    page = "\n".join(
        ["# Layer by layer", "", header, "Mean pooling, a linear head on frozen vectors, cross-validated by prompt.", "", *lines, ""]
    )
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "layer_probe.md").write_text(page, encoding="utf-8")
    (args.output / "layer_probe.json").write_text(json.dumps({"header": header, "rows": records}, indent=1) + "\n", encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
