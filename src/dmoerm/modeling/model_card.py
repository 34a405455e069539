"""The README.md of a saved model: what it is made of and what was measured in training. Text only; people edit it afterwards."""

from dmoerm.modeling.manifest import Manifest
from dmoerm.modeling.student_card import card_base

__all__ = ["model_card"]


def model_card(manifest: Manifest) -> str:
    """The whole page, with the metadata that the Hub reads on top."""
    rows = []
    metrics = manifest.metadata.get("categories", {})
    for name, entry in manifest.categories.items():
        measured = metrics.get(name, {})
        agreement = measured.get("held_out_accuracy")
        count = measured.get("comparisons", "")
        held = f"{agreement:.3f}" if isinstance(agreement, float) else ""
        rows.append(f"| {name} | {', '.join(entry.capabilities) or 'none (task model alone)'} | {count} | {held} |")
    return "\n".join(
        [
            "---",
            "library_name: dmoerm",
            "tags: [reward-model, preference-learning, mixture-of-experts, lora]",
            *card_base(manifest.backbone.name),
            "---",
            "",
            "# Reward model that routes by task and judges by capability",
            "",
            "```python",
            "from dmoerm import RewardModel",
            "",
            'model = RewardModel.from_pretrained("this folder or its Hub id")',
            'model.score("Write a haiku about rain.", ["Rain taps the window …", "No."])',
            "```",
            "",
            "| category | experts | training comparisons | held-out agreement (cross-fitted) |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Backbone: {manifest.backbone.name}, {manifest.rendering.max_length_tokens} tokens. "
            f"Made with dmoerm {manifest.dmoerm_version}.",
            "Rewards compare responses to one prompt; a difference of 1 means odds of e to 1 on held-out comparisons of that category.",
            "",
        ]
    )
