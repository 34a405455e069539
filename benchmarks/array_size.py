"""How wide the arrays of a CPU pass should be at most: where `CPU_ARRAY_BYTES` of modeling/backbone.py comes from.

    python benchmarks/array_size.py [--rounds 5] [--threads 2] [--mib 2 8 16 32 64] [--output]

The cases of benchmarks/expert_cost.py, K = 5 experts, each size in turn with the plain pass; ratios are taken within a round.
"""

import argparse
import statistics
from pathlib import Path

import torch
from expert_cost import EXPERT, Case, K, backbone_of, machine, make_batch, plain_model, pool, precision, randomise, take_turns
from transformers.utils.logging import disable_progress_bar

from dmoerm.modeling import backbone as backbones

RESULTS = Path(__file__).parent / "results"
CASES = (
    Case("minilm", 16, 128, ("mean",), (2,)),
    Case("minilm", 16, 256, ("mean",), (2,)),
    Case("decoder", 8, 192, ("last",), (2,)),
    Case("decoder", 8, 192, ("last",), (1,)),
)


def ratios(case: Case, dtype: str, sizes: list[int], rounds: int) -> list[float]:
    """Median time of a pass with experts in passes of the plain model, for each size in MiB."""
    (pooling,), (depth,) = case.poolings, case.depths
    plain, backbone = plain_model(case.model), backbone_of(case.model).eval()
    batch = make_batch(case, plain.config.vocab_size)
    backbone.add_experts("experts", K, depth=depth, rank=EXPERT.rank, alpha=EXPERT.alpha, dropout=0.0)
    randomise(backbone)

    def ours(size: int) -> torch.Tensor:
        backbones.CPU_ARRAY_BYTES = size * 2**20 - 2**12  # less a header
        return backbone.pooled(batch, experts="experts", pooling=pooling)

    runs = [lambda: pool(plain(**batch).last_hidden_state, batch["attention_mask"], pooling), *(lambda s=s: ours(s) for s in sizes)]
    with torch.inference_mode(), precision(dtype):
        base, *seconds = take_turns(runs, rounds, [1] * len(runs))
    return [statistics.median(one / base[number] for number, one in found.items()) for found in seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, nargs="+", default=[2, 4, 8, 16, 24, 32, 64])
    parser.add_argument("--dtypes", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's own choice)")
    parser.add_argument("--output", type=Path, nargs="?", const=RESULTS, help="write array_size.md there (default results/)")
    args = parser.parse_args()
    disable_progress_bar()
    if args.threads:
        torch.set_num_threads(args.threads)
    about = "\n".join(f"- {key}: {value}" for key, value in machine(torch.get_num_threads(), args).items())
    lines = ["| case | experts in the top | dtype | " + " | ".join(f"{size} MiB" for size in args.mib) + " |"]
    lines.append("|---" * (len(args.mib) + 3) + "|")
    for dtype in args.dtypes:
        for case in CASES:
            found = ratios(case, dtype, args.mib, args.rounds)
            cells = " | ".join(f"{ratio:.2f}" for ratio in found)
            lines.append(f"| {case.model} B={case.rows} T={case.tokens} | {case.depths[0]} | {dtype} | {cells} |")
            print(lines[-1], flush=True)
    page = "\n".join(["# Widest array of a pass", "", "Made by `python benchmarks/array_size.py`.", "", about, "", *lines, ""])
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "array_size.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
