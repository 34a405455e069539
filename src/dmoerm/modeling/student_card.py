"""The README of a student: what it is, how alike it is to its teacher, and the code that uses it. Text only; people edit it afterwards.

It is written from the figures in `dmoerm_export.json`, so it can be written again from that file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["card_base", "student_card"]


def student_card(figures: Mapping[str, Any]) -> str:
    """The whole page, with the metadata that the Hub reads on top.

    Args:
        figures: `StudentExport.as_dict()`.
    """
    return "\n".join([*_head(figures), *_measured(figures), *_taught(figures), *_use(figures)]) + "\n"


def card_base(backbone: str) -> list[str]:
    """The line that names the base model to the Hub; none for a folder, which means nothing elsewhere."""
    owner, slash, name = backbone.partition("/")
    is_hub = not Path(backbone).exists() and bool(owner and slash and name) and "/" not in name and owner not in (".", "..", "~")
    return [f"base_model: {backbone}"] if is_hub else []


def _head(figures: Mapping[str, Any]) -> list[str]:
    return [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-classification",
        "tags: [reward-model, preference-learning, distillation, dmoerm]",
        *card_base(figures["backbone"]),
        "---",
        "",
        "# Reward model, distilled into one sequence classifier",
        "",
        f"`{figures['architecture']}` with one label, {figures['parameters'] / 1e6:.1f} M parameters: one plain forward pass gives the",
        "reward of a response, higher is better. It has learned the rewards of a double-layer mixture-of-experts reward model and needs no",
        "code but transformers. Compare rewards of responses to one prompt; a difference of 1 means odds of e to 1 as the teacher was",
        "calibrated.",
        "",
        "Not in here: category, capability rewards, spread and uncertainty, which the teacher gives.",
        "",
    ]


def _measured(figures: Mapping[str, Any]) -> list[str]:
    rows = [("this student", figures["student"])]
    if figures["reseeded"] is not None:
        rows.append(("the teacher's recipe with another seed", figures["reseeded"]))
    lines = [
        f"| {name} | " + " | ".join(_figure(found[key]) for key in ("kendall", "spearman", "agreement", "margin_r2")) + " |"
        for name, found in rows
    ]
    own = figures["student"]
    notes = [
        f"On {own['n_prompts']:,} prompts that it has not learned from ({own['n_pairs']:,} pairs of responses); means over prompts, 95 % "
        "intervals from a bootstrap over prompts. The reference is the teacher, not people."
    ]
    if figures["difference"] is not None:
        notes.append(f"Kendall's τ of the student less that of the re-seeded teacher: {_figure(figures['difference'])}.")
    return [
        "## Agreement with the teacher",
        "",
        "| beside the teacher | Kendall's τ within a prompt | Spearman's ρ | pairs ordered alike | R² of margins |",
        "|---|---|---|---|---|",
        *lines,
        "",
        *notes,
        "",
    ]


def _figure(found: Mapping[str, float]) -> str:
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _taught(figures: Mapping[str, Any]) -> list[str]:
    options = figures["options"]
    start = "as the teacher's general task model left it" if figures["from_teacher"] else "as it was published"
    base = card_base(figures["backbone"])
    name = figures["backbone"] if base else Path(figures["backbone"]).name
    kept = f"; the state after epoch {figures['epoch']} was kept, nearest to the teacher on other prompts" if figures["errors"] else ""
    passes = f"{figures['epochs']} epochs, peak learning rate {figures['learning_rate']:g}, seed {options['seed']}{kept}"
    if not figures["epochs"]:
        passes = "Fitted in closed form: no weight of the body was trained"
    routed: list[str] = []
    if figures.get("routes"):
        routed = [
            "Some of its layers are written and not trained: they find where the response begins, and route within the forward pass",
            f"between {', '.join(figures['routes'])}. So do not fine-tune it as a whole.",
            "",
        ]
    return [
        "## How it was taught",
        "",
        *routed,
        f"From {name}, {start}, on the teacher's rewards of {figures['train_responses']:,} responses to",
        f"{figures['train_prompts']:,} prompts; no label was read. Loss: squared error of reward differences within a prompt, and",
        f"{options['level_weight']:g} times that of the prompt's mean. {passes}. Made with dmoerm {figures['dmoerm_version']}.",
        "",
    ]


def _use(figures: Mapping[str, Any]) -> list[str]:
    limit, lost = figures["max_length_tokens"], "end" if figures["truncation_side"] == "right" else "beginning"
    return [
        "## Use",
        "",
        "```python",
        "import torch",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        'folder = "."  # or its Hub id',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "model = AutoModelForSequenceClassification.from_pretrained(folder).eval()",
        "",
        'prompt = {"role": "user", "content": "Write a haiku about rain."}',
        'responses = ["Rain taps the window", "No."]',
        'chats = [[prompt, {"role": "assistant", "content": response}] for response in responses]',
        "texts = tokenizer.apply_chat_template(chats, tokenize=False)",
        'batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")',
        "with torch.no_grad():",
        "    print(model(**batch).logits[:, 0].tolist())",
        "```",
        "",
        "The chat template writes the special tokens, and the tokenizer adds none, with `add_special_tokens` or without. Always go through "
        "the template: a bare text is not what the model has learned.",
        "",
        '- `pipeline("text-classification", model=folder)(texts, truncation=True)` gives the same numbers, without a sigmoid '
        "(`problem_type: regression`).",
        "- TRL: `GRPOTrainer(reward_funcs=folder, …)` with conversational prompts.",
        "- vLLM: `vllm serve FOLDER --runner pooling`, then `/classify` with `messages` and `use_activation: false`. This command was not "
        "run when the page was written.",
        "",
        f"It reads {limit} tokens. With `truncation=True` a longer row loses its {lost}; without it, cut prompts yourself, as TRL's "
        "`max_prompt_length` and `max_completion_length` do.",
        "",
    ]
