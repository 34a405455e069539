"""What K = 5 experts cost: to score with, to train, and in memory. One run prints three tables.

Scoring is measured against ONE PLAIN FORWARD PASS: the unmodified transformers model over all positions. Where one position or a few
are pooled, a fair peer may itself skip the other positions of its top layer; that pass ("plain, pooled positions only": our backbone
without experts) stands beside it. In the same run, on the same rows and the same LoRA weights: a loop over PEFT's `set_adapter`, one
call with PEFT's mixed-batch `adapter_names` (K·B rows), and one by one (each row alone, unpadded, under each adapter). The peers carry
their LoRA in all layers, and once more in the same top layers as ours. Before anything is timed, every variant must agree with PEFT to
1e-4 in fp32.

Variants take turns, in rotating order, after one warm-up each; ratios are taken within a round. The peers cost several plain passes
and join every third round, so their n is smaller. Rows are ragged (90 to 100 % of T tokens, as batches sorted by length are) and padded
on the right. Heads and aggregators are not timed. A CPU without bf16 instructions emulates them, five to eight times slower than fp32:
there bf16 runs on a quarter of the rows, half the rounds and the shorter lengths, and says so in its label.

    python benchmarks/expert_cost.py --quick
    python benchmarks/expert_cost.py --threads 2 --output

glibc's malloc gives large activations back to the system and pays page faults for them; say which settings a run used, for example
MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=2147483648 MALLOC_TOP_PAD_=268435456 (the run reports them).

Shapes: B rows, L tokens, D hidden, K experts.
"""

import argparse
import copy
import gc
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, PreTrainedModel, Qwen3Config
from transformers.utils.logging import disable_progress_bar

from dmoerm.modeling.backbone import Backbone, Pooling, pooled_positions
from dmoerm.modeling.embedded import EMBEDDED_NAME, resolve_source
from dmoerm.modeling.inner import InnerModel
from dmoerm.recipe import MEASURED_LAYERS, AggregatorOptions, ExpertOptions, TaskModelOptions
from dmoerm.taxonomy import paper_taxonomy
from dmoerm.training.losses import ranking_loss

K = 5
EXPERT, TASK, AGGREGATOR = ExpertOptions(), TaskModelOptions(), AggregatorOptions()
RESULTS = Path(__file__).parent / "results"
TOLERANCE = 1e-4
PEERS_EVERY = 3
PLAIN = "plain forward pass"
SKIPPING = "plain, pooled positions only"
Depth = int | str
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A model and a batch shape to measure on."""

    model: str
    rows: int
    tokens: int
    poolings: tuple[Pooling, ...]
    depths: tuple[Depth, ...]


CASES = (
    Case("minilm", 16, 128, ("mean", "spread", "first"), (1, 2, "all")),  # "third" of six layers is two
    Case("minilm", 16, 256, ("mean", "spread", "first"), (1, 2, "all")),
    Case("decoder", 8, 192, ("last",), (1, 2, 3, "all")),  # "third" of eight layers is three
)
THIRD: dict[str, Depth] = {"minilm": 2, "decoder": 3}
TARGETS: dict[tuple[str, str, Depth], float] = {
    ("decoder", "last", 1): 1.05,
    ("decoder", "last", 2): 1.7,
    ("minilm", "mean", 2): 2.5,
    ("minilm", "first", 1): 1.15,
}
MEMORY_TARGETS = {"Qwen3-0.6B": 1.3, "MiniLM": 1.5}


# --- models and rows --------------------------------------------------------------------------------------------------------------------


def plain_model(name: str, attention: str | None = None) -> PreTrainedModel:
    """The unmodified transformers model: MiniLM with its published weights, or a small Qwen3-shaped decoder with random ones."""
    if name == "minilm":
        return AutoModel.from_pretrained(resolve_source(EMBEDDED_NAME), attn_implementation=attention or "sdpa").eval()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=512,
        use_cache=False,
    )
    return AutoModel.from_config(config, attn_implementation=attention or "sdpa").eval()


def backbone_of(name: str) -> Backbone:
    """The same model as ours, with the attention that `Backbone.load` chooses on the CPU; the plain pass is timed with the other too."""
    return Backbone.load(EMBEDDED_NAME) if name == "minilm" else Backbone(plain_model(name), name=name)


def make_batch(case: Case, vocabulary: int) -> dict[str, Tensor]:
    """Random ids, right-padded, each (B, L); lengths from 90 to 100 % of L, the first row full."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1000, vocabulary, (case.rows, case.tokens), generator=generator)
    lengths = torch.randint(round(0.9 * case.tokens), case.tokens + 1, (case.rows,), generator=generator)
    lengths[0] = case.tokens
    mask = (torch.arange(case.tokens) < lengths.unsqueeze(1)).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def pool(hidden_BLD: Tensor, mask_BL: Tensor, pooling: Pooling) -> Tensor:
    """(B, D), the way `Backbone.pooled` reads a row."""
    positions_BP, weights_BP = pooled_positions(mask_BL, pooling)
    weights_BP1 = weights_BP.to(hidden_BLD.dtype).unsqueeze(-1)
    chosen_BPD = hidden_BLD if pooling == "mean" else hidden_BLD[torch.arange(len(hidden_BLD))[:, None], positions_BP]
    return (chosen_BPD * weights_BP1).sum(1) / weights_BP1.sum(1)


def randomise(backbone: Backbone) -> None:
    """Every update away from its zero start, so that agreement with PEFT says something."""
    generator = torch.Generator().manual_seed(2)
    for key in backbone.adapter_config:
        kind, category = key.split("/")
        for update in backbone.adapters(kind, category).values():
            update.b_KOR.data.normal_(std=0.02, generator=generator)


def peft_copy(plain: PreTrainedModel, backbone: Backbone, depth: Depth, *, with_task: bool = False) -> PeftModel:
    """A copy of the plain model under PEFT with the K experts of one depth (adapters expert0 …), weights copied from the backbone."""
    category = f"depth_{depth}"
    paths = list(backbone.adapters("experts", category))  # by name, since layers_to_transform needs a prefix that bare decoders lack
    config = LoraConfig(r=EXPERT.rank, lora_alpha=EXPERT.alpha, lora_dropout=0.0, target_modules=paths)
    model = get_peft_model(copy.deepcopy(plain), config, adapter_name="expert0")
    for expert in range(1, K):
        model.add_adapter(f"expert{expert}", config)
    chosen = [("experts", category, expert, f"expert{expert}") for expert in range(K)]
    if with_task:
        paths = list(backbone.adapters("task", "task"))
        model.add_adapter("task", LoraConfig(r=TASK.rank, lora_alpha=TASK.alpha, lora_dropout=0.0, target_modules=paths))
        chosen.append(("task", "task", 0, "task"))
    for kind, slot, place, name in chosen:
        for path, update in backbone.adapters(kind, slot).items():
            layer = model.base_model.model.get_submodule(path)
            layer.lora_A[name].weight.data.copy_(update.a_KRD.data[place])
            layer.lora_B[name].weight.data.copy_(update.b_KOR.data[place])
    return model.eval()


# --- scoring ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """One way to score a batch; `run` gives (B, K, D), or (B, 1, D) for a pass without experts. `every` n-th round it takes part."""

    name: str
    pooling: str
    depth: Depth | None
    run: Callable[[], Tensor]
    expected: Tensor | None = None
    every: int = 1


def loop_over_adapters(model: PeftModel, batch: dict[str, Tensor], pooling: Pooling, *, with_task: bool = False) -> Tensor:
    vectors = []
    for expert in range(K):
        model.base_model.set_adapter(["task", f"expert{expert}"] if with_task else f"expert{expert}")
        vectors.append(pool(model(**batch).last_hidden_state, batch["attention_mask"], pooling))
    return torch.stack(vectors, 1)


def mixed_batch(model: PeftModel, batch: dict[str, Tensor], pooling: Pooling) -> Tensor:
    rows = len(batch["input_ids"])
    repeated = {key: value.repeat(K, 1) for key, value in batch.items()}
    names = [f"expert{expert}" for expert in range(K) for _ in range(rows)]
    vectors = pool(model(**repeated, adapter_names=names).last_hidden_state, repeated["attention_mask"], pooling)
    return vectors.view(K, rows, -1).transpose(0, 1)


def one_by_one(model: PeftModel, batch: dict[str, Tensor], pooling: Pooling) -> Tensor:
    lengths = batch["attention_mask"].sum(1).tolist()
    vectors = []
    for expert in range(K):
        model.base_model.set_adapter(f"expert{expert}")
        for row, length in enumerate(lengths):
            alone = {key: value[row : row + 1, :length] for key, value in batch.items()}
            vectors.append(pool(model(**alone).last_hidden_state, alone["attention_mask"], pooling)[0])
    return torch.stack(vectors).view(K, len(lengths), -1).transpose(0, 1)


PEERS = {"PEFT set_adapter loop": loop_over_adapters, "PEFT mixed batch": mixed_batch, "one by one (PEFT)": one_by_one}


def scoring_variants(case: Case) -> list[Variant]:
    """Everything that is timed in one group, with what PEFT's loop gives for the same weights."""
    plain, backbone = plain_model(case.model), backbone_of(case.model).eval()
    batch = make_batch(case, plain.config.vocab_size)
    mask_BL, third = batch["attention_mask"], THIRD[case.model]
    backbone.add_task_adapter("task", depth="all", rank=TASK.rank, alpha=TASK.alpha, dropout=0.0)
    for depth in case.depths:
        backbone.add_experts(f"depth_{depth}", K, depth=depth, rank=EXPERT.rank, alpha=EXPERT.alpha, dropout=0.0)
    randomise(backbone)

    other = "sdpa" if plain.config._attn_implementation == "eager" else "eager"
    plain_other = plain_model(case.model, other)
    first = case.poolings[0]
    expected = pool(plain(**batch).last_hidden_state, mask_BL, first).unsqueeze(1)
    variants = [
        Variant(PLAIN, "any", None, lambda: pool(plain(**batch).last_hidden_state, mask_BL, first).unsqueeze(1)),
        Variant(
            f"{PLAIN}, {other}", "any", None, lambda: pool(plain_other(**batch).last_hidden_state, mask_BL, first).unsqueeze(1), expected
        ),
    ]
    for pooling in case.poolings:
        if pooling != "mean":
            bare = pool(plain(**batch).last_hidden_state, mask_BL, pooling).unsqueeze(1)
            variants.append(Variant(SKIPPING, pooling, None, lambda p=pooling: backbone.pooled(batch, pooling=p), bare))
    for depth in case.depths:
        with_task = depth == third
        peft = peft_copy(plain, backbone, depth, with_task=with_task)
        for pooling in case.poolings:
            asked = {"experts": f"depth_{depth}", "pooling": pooling}
            looped = loop_over_adapters(peft, batch, pooling)
            variants.append(Variant("ours", pooling, depth, lambda a=asked: backbone.pooled(batch, **a), looped))
            if with_task:
                served = loop_over_adapters(peft, batch, pooling, with_task=True)
                name = f"ours, on a task adapter (rank {TASK.rank}, all layers)"
                variants.append(Variant(name, pooling, depth, lambda a=asked: backbone.pooled(batch, task="task", **a), served))
        if depth in (third, "all"):
            if with_task:
                peft.delete_adapter("task")
            looped = loop_over_adapters(peft, batch, first)
            for name, peer in PEERS.items():
                # Peers compute every position whatever is pooled, so one pooling speaks for all.
                variants.append(Variant(name, "any", depth, lambda f=peer, m=peft: f(m, batch, first), looped, PEERS_EVERY))
    return variants


def check(variants: Sequence[Variant]) -> float:
    """Largest difference of any variant from PEFT's loop (or from the plain pass), fp32."""
    worst = 0.0
    for variant in variants:
        if variant.expected is not None:
            difference = (variant.run() - variant.expected).abs().max().item()
            worst = max(worst, difference)
            if not difference <= TOLERANCE:
                raise SystemExit(
                    f"{variant.name} ({variant.pooling}, depth {variant.depth}) differs from its reference by {difference:.1e}"
                )
    return worst


def take_turns(runs: Sequence[Callable[[], object]], rounds: int, every: Sequence[int]) -> list[dict[int, float]]:
    """Seconds of each run by round; another one begins every round.

    Each run is warmed up once; not the peers, which take several passes each and have run in the check.
    """
    for run, interval in zip(runs, every, strict=True):
        if interval == 1:
            run()
    seconds: list[dict[int, float]] = [{} for _ in runs]
    for number in range(rounds):
        gc.collect()
        for place in range(len(runs)):
            index = (place + number) % len(runs)
            if number % every[index] == 0:
                began = time.perf_counter()
                runs[index]()
                seconds[index][number] = time.perf_counter() - began
    return seconds


def times(seconds: dict[int, float]) -> dict[str, float]:
    return {"median_ms": 1000 * statistics.median(seconds.values()), "min_ms": 1000 * min(seconds.values()), "n": len(seconds)}


def ratios(seconds: dict[int, float], base: dict[int, float]) -> dict[str, float]:
    """Median of the ratios within each round, and the ratio of the shortest times."""
    return {
        "median": statistics.median(one / base[number] for number, one in seconds.items()),
        "min": min(seconds.values()) / min(base.values()),
    }


def scoring_rows(case: Case, dtype: str, rounds: int) -> list[Row]:
    with torch.inference_mode():
        variants = scoring_variants(case)
        worst = check(variants)
        say(f"{label(case)}: {len(variants)} variants agree with PEFT to {worst:.0e} in fp32")
        with precision(dtype):
            seconds = take_turns([variant.run for variant in variants], rounds, [variant.every for variant in variants])
    say(f"{label(case)}, {dtype}: scoring timed over {rounds} rounds")
    skipping = {v.pooling: taken for v, taken in zip(variants, seconds, strict=True) if v.name == SKIPPING}
    return [
        {
            "case": label(case),
            "dtype": dtype,
            "variant": variant.name,
            "lora_in_top": variant.depth,
            "pooling": variant.pooling,
            **times(taken),
            "to_plain": ratios(taken, seconds[0]),
            "to_skipping": ratios(taken, skipping[variant.pooling]) if variant.pooling in skipping else None,
            "target": TARGETS.get((case.model, variant.pooling, variant.depth or "")) if variant.name == "ours" else None,
            "worst_difference": worst,
        }
        for variant, taken in zip(variants, seconds, strict=True)
    ]


# --- training ---------------------------------------------------------------------------------------------------------------------------


def training_rows(case: Case, dtype: str, rounds: int) -> list[Row]:
    """Everything measured about training: one function for each question, its rows in the same form."""
    return [*step_rows(case, dtype, rounds)]


def step_rows(case: Case, dtype: str, rounds: int) -> list[Row]:
    """One optimiser step of the single model (full, LoRA) and of phase 2 for K experts at once, from stored trunk states."""
    whole, backbone = backbone_of(case.model), backbone_of(case.model)
    batch = make_batch(case, whole.model.config.vocab_size)
    for parameter in whole.base_parameters():
        parameter.requires_grad_(True)
    shape = {"rank": TASK.rank, "alpha": TASK.alpha, "dropout": TASK.dropout}
    backbone.add_task_adapter("single", depth="all", **shape)
    backbone.add_task_adapter("task", depth="all", **shape)
    for update in backbone.adapters("task", "task").values():
        update.requires_grad_(False)  # in phase 2 the task model is frozen
    steps = {
        "full fine-tuning, single model": step(whole, batch, list(whole.base_parameters()), 1),
        "LoRA in all layers, single model": step(backbone, batch, learning(backbone, "task", "single"), 1, task="single"),
    }
    once = {}
    for depth in case.depths:
        backbone.add_experts(f"depth_{depth}", K, depth=depth, rank=EXPERT.rank, alpha=EXPERT.alpha, dropout=EXPERT.dropout)
        start = backbone.first_layer(depth)
        with torch.no_grad():
            hidden_BLD = backbone.eval().trunk(batch, start, task="task")
        top = "all layers" if depth == "all" else f"top {depth}"
        asked = {"task": "task", "experts": f"depth_{depth}", "start": start, "hidden_BLD": hidden_BLD}
        steps[f"phase 2, {K} experts, {top}"] = step(backbone, batch, learning(backbone, "experts", f"depth_{depth}"), K, **asked)
        if depth == THIRD[case.model]:
            once[f"trunk states below the {top}, once a run"] = lambda s=start: trunk_states(backbone, batch, s)
    randomise(backbone)
    whole.train()
    backbone.train()

    runs = {**steps, **once}
    with precision(dtype):
        kept = {name: activation_mib(run, [whole, backbone]) for name, run in steps.items()}
        seconds = dict(zip(runs, take_turns(list(runs.values()), rounds, [1] * len(runs)), strict=True))
    say(f"{label(case)}, {dtype}: training steps timed over {rounds} rounds")
    return [
        {
            "case": label(case),
            "dtype": dtype,
            "variant": name,
            **times(taken),
            "to_full": ratios(taken, seconds["full fine-tuning, single model"]),
            "to_lora": ratios(taken, seconds["LoRA in all layers, single model"]),
            "activation_mib": kept.get(name),
        }
        for name, taken in seconds.items()
    ]


def learning(backbone: Backbone, kind: str, category: str) -> list[nn.Parameter]:
    return [parameter for update in backbone.adapters(kind, category).values() for parameter in update.parameters()]


def step(backbone: Backbone, batch: dict[str, Tensor], parameters: list[nn.Parameter], members: int, **asked: object) -> Callable[[], None]:
    """One step on B / 2 comparisons of two rows, each with a label for every member: forward, loss, backward, clipping, AdamW."""
    rows = len(batch["input_ids"])
    heads_KD = nn.Parameter(torch.randn(members, backbone.hidden_size, generator=torch.Generator().manual_seed(3)) * 0.01)
    parameters = [*parameters, heads_KD]
    optimiser = torch.optim.AdamW(parameters, lr=1e-6)
    chosen_P = torch.arange(0, rows, 2).repeat(members)
    expert_P = torch.arange(members).repeat_interleave(rows // 2)
    weight_P = torch.ones(len(chosen_P))

    def run() -> None:
        rewards_BK = (backbone.pooled(batch, **asked) * heads_KD).sum(-1)
        ranking_loss(rewards_BK, chosen_P, chosen_P + 1, expert_P, weight_P).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()

    return run


def trunk_states(backbone: Backbone, batch: dict[str, Tensor], start: int) -> None:
    with torch.no_grad():
        backbone.trunk(batch, start, task="task")


def activation_mib(run: Callable[[], None], models: Sequence[nn.Module]) -> float:
    """Memory of what autograd keeps for the backward pass, each storage once, parameters left out."""
    parameters = {parameter.untyped_storage().data_ptr() for model in models for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values()) / 2**20


# --- parameters -------------------------------------------------------------------------------------------------------------------------


def memory_configs() -> dict[str, object]:
    return {
        "Qwen3-0.6B": Qwen3Config(
            vocab_size=151936,
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=True,
        ),
        "MiniLM": BertConfig(
            vocab_size=30522,
            hidden_size=384,
            intermediate_size=1536,
            num_hidden_layers=6,
            num_attention_heads=12,
            max_position_embeddings=512,
        ),
    }


def parameter_rows() -> list[Row]:
    """Parameters of the paper's five categories with their 27 experts at the recipe's default ranks and depths, counted on real modules."""
    rows = []
    for name, config in memory_configs().items():
        with torch.device("meta"):
            # MiniLM as the recipe uses it: its lower layers.
            layers = MEASURED_LAYERS[EMBEDDED_NAME] if name == "MiniLM" else None
            backbone = Backbone(AutoModel.from_config(config), name=name, keep_layers=layers)
            base = sum(parameter.numel() for parameter in backbone.base_parameters())
            parts = dict.fromkeys(("task adapters", "experts", "heads and aggregators"), 0)
            for category in paper_taxonomy().categories:
                add_inner_model(backbone, parts, category.name, category.capability_names)
            five = dict(parts)
            add_inner_model(backbone, parts, "general", paper_taxonomy().capability_names)
        for which, counted, target in (
            ("five categories, 27 experts", five, MEMORY_TARGETS[name]),
            ("the same and the fallback (general)", parts, None),
        ):
            rows.append(
                {"backbone": name, "what": which, "base": base, **counted, "ratio": 1 + sum(counted.values()) / base, "target": target}
            )
    return rows


def add_inner_model(backbone: Backbone, parts: dict[str, int], category: str, capabilities: tuple[str, ...]) -> None:
    """Count one category's adapters, heads and aggregators into `parts`."""
    slot = f"category_{category}"
    backbone.add_task_adapter(slot, depth=TASK.depth, rank=TASK.rank, alpha=TASK.alpha, dropout=TASK.dropout)
    members = len(capabilities) + EXPERT.with_task_model
    backbone.add_experts(slot, members, depth=EXPERT.depth, rank=EXPERT.rank, alpha=EXPERT.alpha, dropout=EXPERT.dropout)
    units = backbone.hidden_size if AGGREGATOR.hidden_size == "hidden" else AGGREGATOR.hidden_size
    inner = InnerModel(
        category,
        capabilities,
        backbone.hidden_size,
        units=units,
        copies=1 + AGGREGATOR.members,
        with_task_member=EXPERT.with_task_model,
    )
    parts["task adapters"] += sum(parameter.numel() for parameter in learning(backbone, "task", slot))
    parts["experts"] += sum(parameter.numel() for parameter in learning(backbone, "experts", slot))
    parts["heads and aggregators"] += sum(parameter.numel() for parameter in inner.parameters())


# --- report -----------------------------------------------------------------------------------------------------------------------------


def say(line: str) -> None:
    print(f"[{datetime.now(UTC):%H:%M:%S}] {line}", file=sys.stderr, flush=True)


def label(case: Case) -> str:
    return f"{case.model} B={case.rows} T={case.tokens}"


def precision(dtype: str) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16")


def cpu_info(key: str) -> str:
    """First value of `key` in /proc/cpuinfo, empty where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == key), "")


def has_bf16() -> bool:
    return any(flag in cpu_info("flags").split() for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def plan(arguments: argparse.Namespace) -> list[tuple[Case, str, int]]:
    """(case, dtype, rounds) of everything to measure; smaller where it is only tried, or where bf16 is emulated."""
    measured = []
    for dtype in arguments.dtypes:
        emulated = dtype == "bf16" and not has_bf16()
        share = (2 if arguments.quick else 1) * (4 if emulated else 1)
        rounds = max(1, arguments.rounds // 2) if emulated else arguments.rounds
        for case in CASES:
            if case.model in arguments.models and (case.tokens <= 192 or not (arguments.quick or emulated)):
                measured.append((replace(case, rows=max(2, case.rows // share)), dtype, rounds))
    return measured


def machine(threads: int, arguments: argparse.Namespace) -> dict[str, object]:
    malloc = {key: value for key, value in os.environ.items() if key.startswith("MALLOC_") or key in {"GLIBC_TUNABLES", "LD_PRELOAD"}}
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "cpu": f"{cpu_info('model name') or platform.processor()}, {os.cpu_count()} cores",
        "bf16": "native" if has_bf16() else "emulated",
        "load_at_start": f"{os.getloadavg()[0]:.1f}",
        "threads": threads,
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "dmoerm")),
        "dtypes": ", ".join(arguments.dtypes) + " (bf16: autocast)",
        "rounds": arguments.rounds,
        "malloc": ", ".join(f"{key}={value}" for key, value in sorted(malloc.items())) or "defaults of the C library",
        "experts": f"K = {K}, rank {EXPERT.rank}, on the query and value projections",
    }


def two(value: dict[str, float] | None) -> str:
    """A ratio as median (min)."""
    return "" if value is None else f"{value['median']:.2f} ({value['min']:.2f})"


def target(row: Row) -> str:
    return f"<= {row['target']}" if row["target"] else ""


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head), *(" | ".join("" if x is None else str(x) for x in row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def report(result: dict[str, list[Row]], about: dict[str, object]) -> str:
    """The whole result as Markdown."""
    scoring = [
        (
            *(r[key] for key in ("case", "dtype", "variant", "lora_in_top", "pooling", "n")),
            *(f"{r[key]:.0f}" for key in ("median_ms", "min_ms")),
            two(r["to_plain"]),
            two(r["to_skipping"]),
            target(r),
        )
        for r in result["scoring"]
    ]
    training = [
        (
            *(r[key] for key in ("case", "dtype", "variant", "n")),
            *(f"{r[key]:.0f}" for key in ("median_ms", "min_ms")),
            two(r["to_full"]),
            two(r["to_lora"]),
            "" if r["activation_mib"] is None else f"{r['activation_mib']:.0f}",
        )
        for r in result["training"]
    ]
    parts = ("base", "task adapters", "experts", "heads and aggregators")
    parameters = [
        (r["backbone"], r["what"], *(f"{r[key] / 1e6:.2f}" for key in parts), f"{r['ratio']:.3f}", target(r)) for r in result["parameters"]
    ]
    return "\n\n".join(
        [
            "# What experts cost",
            "Made by `python benchmarks/expert_cost.py`; its head says what is measured and how.",
            "\n".join(f"- {key}: {value}" for key, value in about.items()),
            f"## Scoring with {K} experts\n\nMilliseconds a batch; ratios: median within rounds (in brackets: of the shortest times).",
            table(
                ("case", "dtype", "variant", "LoRA in top", "pooled", "n", "ms", "min", "× plain", "× plain, skipping", "target"), scoring
            ),
            "## Training steps\n\nPhase 2 starts from stored trunk states and teaches all experts at once.",
            table(("case", "dtype", "step", "n", "ms", "min", "× full", "× LoRA", "activations, MiB"), training),
            "## Parameters in memory, millions\n\nAt the recipe's default ranks and depths.",
            table(("backbone", "what", "backbone", "task adapters", "experts", "heads, aggregators", "in all ×", "target"), parameters),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="What K = 5 experts cost to score with, to train and in memory.")
    parser.add_argument("--quick", action="store_true", help="two rounds, half the rows, one length: does it work?")
    parser.add_argument("--models", nargs="+", choices=["minilm", "decoder"], default=["minilm", "decoder"])
    parser.add_argument("--dtypes", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, help="timed rounds (default 7, quick 2)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's own choice)")
    parser.add_argument(
        "--output", type=Path, nargs="?", const=RESULTS, help=f"write expert_cost.md and .json there (default {RESULTS.name}/)"
    )
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (2 if arguments.quick else 7)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)  # PEFT asks by the old name
    disable_progress_bar()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    about = machine(torch.get_num_threads(), arguments)
    measured = plan(arguments)
    result = {
        "parameters": parameter_rows(),
        "scoring": [row for each in measured for row in scoring_rows(*each)],
        "training": [row for each in measured for row in training_rows(*each)],
    }
    text = report(result, about)
    print(text)
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "expert_cost.md").write_text(text + "\n", encoding="utf-8")
        record = {"about": about, **result}
        (arguments.output / "expert_cost.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
