"""The README of a PEFT export: what each adapter judges, the code that loads it, the command that serves it. Text only."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dmoerm.modeling.peft_export import PeftExport

__all__ = ["export_readme", "vllm_rank"]

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank."""


def vllm_rank(rank: int) -> int | None:
    """The smallest maximum that vLLM takes for adapters of this rank; None where it takes none."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)


def export_readme(export: "PeftExport") -> str:
    """The whole page."""
    return "\n".join([*_what(export), *_table(export), *_peft(export), *_vllm(export)]) + "\n"


def _what(export: "PeftExport") -> list[str]:
    if export.largest_difference is None:
        checked = "PEFT was not asked whether it gives the same values (it was not installed, or the comparison was left out)."
    else:
        checked = (
            f"When this was written, stock PEFT gave the same values for {export.texts} texts in one padded batch; "
            f"largest difference {export.largest_difference:.1g}, relative to max(1, value), in float32."
        )
    tokens = (
        f"The chat template here gives the model's own tokens for {export.texts - export.texts_differing} of {export.texts} texts compared."
    )
    return [
        "# Judges of single capabilities, as PEFT adapters",
        "",
        f"Written by dmoerm from a model on {export.backbone}.",
        "Each folder under `adapters/` is one LoRA of task type SEQ_CLS with its head: it gives the scalar r of one capability in one",
        "category, higher is better, for a conversation that ends with the response. `task_model` is the response as a whole, as the first",
        "phase of training learned it.",
        "",
        "Not in here: the router, which picks the category; the aggregator, which makes one reward of the capabilities; calibration and",
        "uncertainty. `(r - mean) / std` of the table is what `RewardModel` reports for a capability. Compare r within one prompt only.",
        "",
        checked,
        tokens,
        f"The model was trained with {export.max_length_tokens} tokens for prompt and response; what is longer, cut before you send it.",
        "",
    ]


def _table(export: "PeftExport") -> list[str]:
    rows = []
    for a in export.adapters:
        cells = (a.category, a.capability, a.folder or f"none: `{a.base}` by itself", str(a.rank or ""), _number(a.mean), _number(a.std))
        rows.append(f"| {' | '.join(cells)} |")
    return ["| category | capability | adapter | rank | mean | std |", "|---|---|---|---|---|---|", *rows, ""]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _peft(export: "PeftExport") -> list[str]:
    first = next(a for a in export.adapters if a.folder is not None) if any(a.folder for a in export.adapters) else export.adapters[0]
    copied = export.has_weights or first.base != "base"
    source = f'"{first.base}"' if copied else f'"{export.backbone}"'
    revision = "" if copied or export.revision is None else f'revision="{export.revision}", '
    adapter = f'model = PeftModel.from_pretrained(base, "{first.folder}").eval()' if first.folder else "model = base.eval()"
    return [
        "## With PEFT",
        "",
        "Run it in this folder." + ("" if copied else " A note that `score.weight` is new is right: the adapter brings it."),
        "",
        "```python",
        "import torch",
        *(["from peft import PeftModel"] if first.folder else []),
        "from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{first.base}")',
        f'config = AutoConfig.from_pretrained("{first.base}")  # one label, and a padding token that is not the end token',
        f"base = AutoModelForSequenceClassification.from_pretrained({source}, {revision}config=config, dtype=torch.float32)",
        adapter,
        "",
        'prompt = {"role": "user", "content": "Write a haiku about rain."}',
        'responses = ["Rain taps the window", "No."]',
        'chats = [[prompt, {"role": "assistant", "content": response}] for response in responses]',
        "texts = tokenizer.apply_chat_template(chats, tokenize=False)",
        'batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")',
        "with torch.no_grad():",
        "    print(model(**batch).logits[:, 0].tolist())",
        "```",
        "",
    ]


def _vllm(export: "PeftExport") -> list[str]:
    lines = [
        "## With vLLM",
        "",
        "One server holds all adapters of a base; the name of an adapter is the name of the model in a request. Needed: a vLLM with pull",
        "request 53555 (August 2026; heads in `modules_to_save`), and a base with weights.",
        "",
    ]
    for base in dict.fromkeys(a.base for a in export.adapters):
        if base == "base" and not export.has_weights:
            lines += ["`base/` has none here: write the export again with `--with-base`, then:", ""]
        served = [a for a in export.adapters if a.base == base and a.folder is not None]
        rank = vllm_rank(max((a.rank for a in served), default=0))
        if rank is None:
            lines += [f"The adapters on `{base}` have a higher rank than vLLM takes ({VLLM_RANKS[-1]}): retrain with a lower one.", ""]
            continue
        lines += ["```bash", f"vllm serve {base} --runner pooling --dtype float32" + (" \\" if served else "")]
        if served:
            lines += [
                f"  --enable-lora --max-loras {len(served)} --max-lora-rank {rank} --lora-modules \\",
                *(f"  {a.category}.{a.capability}={a.folder}" + (" \\" if a is not served[-1] else "") for a in served),
            ]
        lines += ["```", ""]
    name = next((f"{a.category}.{a.capability}" for a in export.adapters if a.folder), export.adapters[0].base)
    return [
        *lines,
        "```bash",
        "curl -s localhost:8000/classify -H 'Content-Type: application/json' -d '{",
        f'  "model": "{name}", "use_activation": false,',
        '  "messages": [{"role": "user", "content": "Write a haiku about rain."},',
        '               {"role": "assistant", "content": "Rain taps the window"}]}\'',
        "```",
        "",
        "The scalar is `data[0].probs[0]`. Without `use_activation: false` some versions put a sigmoid over it.",
    ]
