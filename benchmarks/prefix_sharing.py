"""What sharing a prompt saves: K = 5 experts judge 16 responses of 64 tokens to one prompt of 512, plain and shared.

Both ways start from the same token ids and end with the same member vectors (16, 5, D), so collating, planning and laying out the flat
row are timed too. Plain is what scoring does with `share_prompts=False`: one batch, every row whole, top layer at its last token alone.
Nothing is timed before both agree to 1e-5 in fp32. They take turns, in rotating order, after one warm-up each; ratios are taken within a
round. Heads, aggregators and the router are not timed.

    python benchmarks/prefix_sharing.py --quick
    python benchmarks/prefix_sharing.py --threads 2 --output

Shapes: D hidden, K experts.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from expert_cost import EXPERT, K, machine, plain_model, randomise, say, table, take_turns, times
from torch import Tensor

from dmoerm.data.rendering import Rendered, collate
from dmoerm.modeling.backbone import Backbone
from dmoerm.modeling.batching import prompt_groups
from dmoerm.modeling.prefix import flat_row

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 1e-5
TARGET = 3.0
"""Of the whole case; the quick one computes 640 tokens against 256."""
DEPTHS = (1, 2, "third", "all")


def responses_to_a_prompt(responses: int, prompt_tokens: int, response_tokens: int, vocabulary: int) -> list[Rendered]:
    """Random ids, as the renderer would hand them on."""
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(1000, vocabulary, (prompt_tokens,), generator=generator).tolist()
    own = torch.randint(1000, vocabulary, (responses, response_tokens), generator=generator).tolist()
    return [Rendered((*prompt, *row), None, False, False, prompt_tokens) for row in own]


def plain(backbone: Backbone, rendered: list[Rendered], experts: str) -> Tensor:
    return backbone.pooled(collate(rendered, 0), experts=experts)


def shared(backbone: Backbone, rendered: list[Rendered], experts: str) -> Tensor:
    ids = [item.input_ids for item in rendered]
    groups, alone = prompt_groups(ids, [item.response_start for item in rendered])
    assert len(groups) == 1
    assert not alone
    return backbone.pooled_flat(flat_row(ids, groups), experts=experts)


def measure(backbone: Backbone, rendered: list[Rendered], rounds: int, target: float | None) -> list[dict[str, Any]]:
    """One row a depth: both times, how much faster, how far apart the vectors are."""
    runs: list[Callable[[], Tensor]] = []
    agreement = []
    for depth in DEPTHS:
        name = f"depth_{depth}"
        backbone.add_experts(name, K, depth=depth, rank=EXPERT.rank, alpha=EXPERT.alpha, dropout=0.0)
        runs += [lambda name=name: plain(backbone, rendered, name), lambda name=name: shared(backbone, rendered, name)]
    randomise(backbone)
    with torch.inference_mode():
        for depth, one, other in zip(DEPTHS, runs[::2], runs[1::2], strict=True):
            expected = one()
            difference = (other() - expected).abs().max().item()
            if not difference <= TOLERANCE:
                raise SystemExit(f"depth {depth}: shared differs from plain by {difference:.1e}, more than {TOLERANCE:.0e}")
            agreement.append({"largest_difference": difference, "largest_value": expected.abs().max().item()})
            say(f"experts in the top {depth}: equal to {difference:.0e}")
        seconds = take_turns(runs, rounds, [1] * len(runs))
    return [
        {
            "experts_in_top": depth,
            "layers": len(backbone.layers) - backbone.first_layer(depth),
            "plain": times(one),
            "shared": times(other),
            "faster": faster(one, other),
            **found,
            "target": target,
        }
        for depth, one, other, found in zip(DEPTHS, seconds[::2], seconds[1::2], agreement, strict=True)
    ]


def faster(one: dict[int, float], other: dict[int, float]) -> dict[str, float]:
    """Plain over shared within each round: median, least and most."""
    ratios = [one[number] / other[number] for number in one]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def report(rows: list[dict[str, Any]], about: dict[str, object]) -> str:
    """The whole result as Markdown."""
    lines = [
        (
            row["experts_in_top"] if row["experts_in_top"] != "third" else f"third ({row['layers']})",
            row["plain"]["n"],
            *(f"{row[way][key]:.0f}" for way in ("plain", "shared") for key in ("median_ms", "min_ms")),
            f"{row['faster']['median']:.2f} ({row['faster']['least']:.2f} to {row['faster']['most']:.2f})",
            f">= {row['target']:.0f}" if row["target"] else None,
            f"{row['largest_difference']:.1e} of {row['largest_value']:.1f}",
        )
        for row in rows
    ]
    head = ("experts in top", "n", "plain, ms", "min", "shared, ms", "min", "times faster", "target", "largest difference")
    return "\n\n".join(
        [
            "# What sharing a prompt saves",
            "Made by `python benchmarks/prefix_sharing.py`; its head says what is measured and how.",
            "\n".join(f"- {key}: {value}" for key, value in about.items()),
            "Milliseconds a batch; times faster: median over n rounds (least to most). Largest difference: in any component of any vector, "
            "beside the largest component.",
            table(head, lines),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="What sharing a prompt among its responses saves.")
    parser.add_argument("--quick", action="store_true", help="two rounds, 4 responses of 32 tokens to a prompt of 128: does it work?")
    parser.add_argument("--rounds", type=int, help="timed rounds (default 7, quick 2)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's own choice)")
    parser.add_argument(
        "--output", type=Path, nargs="?", const=RESULTS, help=f"write prefix_sharing.md and .json there (default {RESULTS.name}/)"
    )
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (2 if arguments.quick else 7)
    arguments.dtypes = ["fp32"]
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    responses, prompt_tokens, response_tokens = (4, 128, 32) if arguments.quick else (16, 512, 64)
    backbone = Backbone(plain_model("decoder"), name="decoder").eval()
    flat_tokens = prompt_tokens + responses * response_tokens
    about = machine(torch.get_num_threads(), arguments) | {
        "dtypes": "fp32",
        "model": f"Qwen3-shaped decoder, random weights, {len(backbone.layers)} layers, hidden size {backbone.hidden_size}",
        "texts": f"{responses} responses of {response_tokens} tokens to a prompt of {prompt_tokens}",
        "tokens computed": f"plain {responses * (prompt_tokens + response_tokens):,}, shared {flat_tokens:,}",
    }
    rendered = responses_to_a_prompt(responses, prompt_tokens, response_tokens, backbone.model.config.vocab_size)
    rows = measure(backbone, rendered, arguments.rounds, None if arguments.quick else TARGET)
    text = report(rows, about)
    print(text)
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "prefix_sharing.md").write_text(text + "\n", encoding="utf-8")
        record = {"about": about, "sharing": rows}
        (arguments.output / "prefix_sharing.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
