"""Writes tests/fixtures/artifact_vN: a tiny model in today's format with its backbone and the rewards it gives.

    python tests/make_artifact_fixture.py

Run it once when `FORMAT_VERSION` rises, and commit the new folder; the older ones stay as they are, for every later version must read
them (test_artifact_formats.py). Weights are random and seeded: a fixture proves reading, not learning.
"""

import json
import os
import sys
from pathlib import Path

from conftest import WORDS, build_tokenizer, save_model

FIXTURES = Path(__file__).parent / "fixtures"
PROMPTS = ("explain the river and the bank", "hello , how are you ?", "write a short poem about rain")
RESPONSES = ("a clear answer about water", "no", "because the big bird can build a bridge")


def tiny_config(vocabulary, family="qwen3", **changes):
    """A decoder of hidden size 16 with 2 layers, padding token 0, end token 3."""
    from transformers import LlamaConfig, Qwen3Config

    settings = {
        "vocab_size": vocabulary, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 128, "initializer_range": 0.2, "pad_token_id": 0,
        "eos_token_id": 3, "bos_token_id": None, **changes,
    }  # fmt: skip
    return {"qwen3": Qwen3Config, "llama": LlamaConfig}[family](**settings)


def tiny_backbone(folder, family="qwen3", **changes):
    """The decoder with random weights and a chat tokenizer of 120 words, saved as `transformers` would."""
    tokenizer = build_tokenizer(chat=True, words=WORDS[:120])
    return save_model(folder, tiny_config(len(tokenizer), family, **changes), tokenizer)


def random_model(backbone_name, *, full=True, task_depth=2, expert_depth=1, seed=7, **load):
    """An untrained reward model with every part an artifact can hold: a fine-tuned router, categories with and without experts, with a
    task adapter and (where `full`) with weights of their own.
    """
    import torch

    from dmoerm.data.rendering import Renderer
    from dmoerm.modeling.backbone import Backbone, load_tokenizer
    from dmoerm.modeling.inner import InnerModel
    from dmoerm.modeling.reward_model import RewardModel
    from dmoerm.modeling.router import ROUTER, Router
    from dmoerm.taxonomy import Taxonomy

    generator = torch.Generator().manual_seed(seed)

    def randomise(module):
        for parameter in module.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        for name, buffer in module.named_buffers() if not isinstance(module, Backbone) else ():
            low = 0.5 if "std" in name or "temperature" in name else -0.5
            buffer.copy_(low + torch.rand(buffer.shape, generator=generator))

    experts = {"objective_qa": ("correctness", "logic"), "chitchat": (), "general": ("correctness", "empathy")}
    backbone = Backbone.load(backbone_name, **load)
    own, inner = {}, {}
    for name, capabilities in experts.items():
        home = backbone
        if full and name == "chitchat":
            home = own[name] = Backbone.load(backbone_name, **load)
            randomise(home)
        else:
            home.add_task_adapter(name, depth=task_depth, rank=4, alpha=8.0, dropout=0.05)
        inner[name] = InnerModel(name, capabilities, backbone.hidden_size, units=4, copies=3, with_task_member=name == "general")
        randomise(inner[name])
        if inner[name].with_task_member:
            inner[name].heads_KD.data[0] = inner[name].task_head_D.data
        if capabilities:
            home.add_experts(name, len(inner[name].members), depth=expert_depth, rank=2, alpha=3.0, dropout=0.05)
    router = Router(("objective_qa", "chitchat"), backbone.hidden_size, general_below=0.6, finetuned=True)
    randomise(router)
    backbone.add_task_adapter(ROUTER, depth=1, rank=2, alpha=2.0, dropout=0.0)
    for low_rank in (low_rank for _, low_rank in backbone._low_ranks()):
        randomise(low_rank)
    for low_rank in backbone.adapters("experts", "general").values():
        low_rank.b_KOR.data[0] = 0.0  # the task model as a member: no update
    taxonomy = Taxonomy.model_validate_json(
        json.dumps(
            {
                "categories": [
                    {
                        "name": "objective_qa",
                        "description": "Questions with an answer.",
                        "capabilities": [
                            {"name": "correctness", "description": "It is right."},
                            {"name": "logic", "description": "It follows."},
                        ],
                    },
                    {
                        "name": "chitchat",
                        "description": "Talk.",
                        "capabilities": [{"name": "empathy", "description": "It is kind."}],
                    },
                ]
            }
        )
    )
    renderer = Renderer(load_tokenizer(backbone_name), 64)
    return RewardModel(backbone, renderer, router, inner, own_backbones=own, taxonomy=taxonomy, metadata={"seed": seed})


def expected_rewards(model):
    """Reward, category and capabilities of every prompt and response, routed and by every category."""
    rows = []
    for category in (None, *model.inner):
        for prompt in PROMPTS:
            for response, result in zip(RESPONSES, model.score(prompt, RESPONSES, category=category), strict=True):
                rows.append(
                    {
                        "prompt": prompt,
                        "response": response,
                        "category": category,
                        "judged_by": result.category,
                        "reward": result.reward,
                        "capabilities": dict(result.capabilities),
                        "uncertainty": result.uncertainty,
                    }
                )
    return rows


def main():
    import torch

    from dmoerm.modeling.manifest import FORMAT_VERSION

    torch.set_num_threads(1)
    folder = FIXTURES / f"artifact_v{FORMAT_VERSION}"
    if folder.exists():
        sys.exit(f"{folder} exists. A fixture is written once and then only read; raise FORMAT_VERSION first.")
    folder.mkdir(parents=True)
    os.chdir(folder)  # so that the manifest names the backbone without a path of this machine
    tiny_backbone(Path("backbone"))
    model = random_model("backbone")
    model.save_pretrained("model")
    (folder / "rewards.json").write_text(json.dumps(expected_rewards(model), indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"wrote {folder}\n")


if __name__ == "__main__":
    main()
