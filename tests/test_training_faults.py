"""What goes wrong in training: numbers that are not finite, memory that runs out, data that are too few, phases out of order."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from test_cli_verbs import RECIPE, TAXONOMY, comparison_rows, write

from dmoerm.cli import main as cli
from dmoerm.errors import TrainingError
from dmoerm.modeling.backbone import Backbone
from dmoerm.recipe import load_recipe
from dmoerm.training import trainer
from dmoerm.training.phase2 import ExpertShape, train_experts
from dmoerm.training.pipeline import train_recipe
from dmoerm.training.rows import Rows
from dmoerm.training.trainer import LONGEST_ROW, _Sampler, is_out_of_memory


@pytest.fixture
def project(tmp_path, tiny_encoder_folder):
    """A folder with recipe, taxonomy and forty comparisons, not trained."""
    write(tmp_path / "comparisons.jsonl", comparison_rows(40, 1))
    text = RECIPE.format(backbone=tiny_encoder_folder).replace("epochs: 1", "epochs: 1, comparisons_per_batch: 4")
    (tmp_path / "recipe.yaml").write_text(text.replace("precision: fp32", "precision: fp32, checkpoint_steps: 1"), encoding="utf-8")
    (tmp_path / "taxonomy.yaml").write_text(TAXONOMY, encoding="utf-8")
    return tmp_path


@pytest.mark.faults("F16")
def test_a_loss_that_is_not_finite_stops_with_step_batch_and_the_last_finite_loss(project):
    recipe = load_recipe(project / "recipe.yaml", ["task_model.learning_rate=1e30", "task_model.warmup_fraction=0"])
    with pytest.raises(TrainingError) as caught:
        train_recipe(recipe, quiet=True)
    message = str(caught.value)
    assert re.search(r"step \d", message)
    assert re.search(r"rows of up to \d+ tokens \(c\d", message)  # ids of comparisons
    assert "the last finite loss was" in message
    assert "Lower the learning rate" in message
    for stored in (project / "model-run").rglob("*.safetensors"):
        assert all(torch.isfinite(value).all() for value in load_file(stored).values()), stored
    assert not (project / "model").exists()


@pytest.mark.faults("F17")
def test_memory_that_runs_out_names_batch_length_and_what_to_change(project, monkeypatch):
    def full(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(trainer.RankingModule, "rewards", full)  # the device's fault, injected where the backbone runs
    monkeypatch.setattr(trainer.RankingModule, "measure", lambda self, items, *, bf16: (0.0, 0.0, 0))
    with pytest.raises(TrainingError) as caught:
        train_recipe(load_recipe(project / "recipe.yaml"), quiet=True)
    message = str(caught.value)
    assert re.search(r"out of memory on cpu; the batch has \d+ rows of up to \d+ tokens", message)
    assert "comparisons_per_batch: 2, gradient_accumulation_steps: 2" in message
    assert "gradient_checkpointing" in message


@pytest.mark.faults("F17")
def test_the_longest_item_comes_in_the_first_batch():
    lengths = [5, 9, 3, 700, 8, 2, 6, 4, LONGEST_ROW + 30, LONGEST_ROW + 10]
    order = list(_Sampler(lengths, 2, seed=0, epoch=lambda: 0))
    assert sorted(order) == list(range(10))
    assert 3 in order[:2]  # 700 tokens; the two last ones are another group, not longer rows


def test_batches_hold_items_of_like_length_and_change_with_the_epoch_alone():
    lengths = [(index * 37) % 101 for index in range(60)]
    first, again, second = (list(_Sampler(lengths, 6, seed=1, epoch=lambda epoch=epoch: epoch)) for epoch in (0, 0, 1))
    assert first == again != second
    spans = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in (first[j : j + 6] for j in range(0, 60, 6))]
    assert max(spans) < 20  # of 100: all sixty are sorted as one pool


def test_a_short_last_batch_stays_last():
    order = list(_Sampler([1] * 7, 3, seed=0, epoch=lambda: 3))
    assert sorted(order) == list(range(7))
    assert len(_Sampler([1] * 7, 3, seed=0, epoch=lambda: 3)) == 7


def test_host_and_device_run_out_of_memory_in_different_words():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


@pytest.mark.faults("F20")
def test_what_is_too_small_to_train_is_named_in_the_plan_before_training(project, capsys):
    rows = comparison_rows(40, 1)
    for number, row in enumerate(rows):
        if row["category"] == "chitchat" and number > 10:
            row["category"] = "objective_qa"
            row["labels"] = []
    write(project / "comparisons.jsonl", rows)
    assert cli.main(["check", str(project / "recipe.yaml"), "--json"]) == cli.DONE
    plan = json.loads(capsys.readouterr().out)
    text = json.dumps(plan)
    assert "chitchat" in text
    assert any("chitchat" in warning and ("fallback" in warning or "general" in warning) for warning in plan["warnings"])


@pytest.mark.faults("F20")
def test_phase_2_without_phase_1_is_refused(tiny_encoder_folder):
    backbone = Backbone.load(str(tiny_encoder_folder))
    shape = ExpertShape(depth=1, rank=2, alpha=2.0, dropout=0.0, task_member=False, fit_heads=False)
    with pytest.raises(TrainingError, match="phase 2 of talk needs the task model of phase 1"):
        train_experts(
            backbone, Rows(0), "talk", ("logic",), torch.zeros(32), [], [], shape, None, task="talk", states=None, vectors=dict,
        )  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.faults("F20")
def test_labels_that_never_prefer_anything_train_no_expert(project):
    rows = comparison_rows(40, 1)
    for row in rows:
        row["labels"] = [label for label in row["labels"] if label["capability"] != "logic"]
        if row["category"] == "objective_qa":
            row["capability_ranks"] = {"logic": [1] * len(row["responses"])}  # all equal
    write(project / "comparisons.jsonl", rows)
    result = train_recipe(load_recipe(project / "recipe.yaml"), quiet=True)
    assert result.model.inner["objective_qa"].capabilities == ("correctness",)


@pytest.mark.faults("F21")
def test_padding_with_the_end_token_moves_no_reward(tiny_decoder_folder):
    # What is read is decided by the mask, never by comparing ids: a last token that equals the padding is still read.
    backbone = Backbone.load(str(tiny_decoder_folder)).eval()
    end = 3
    short, long = [5, 6, 7, end], [8, 9, 10, 11, 12, end]
    batch = {
        "input_ids": torch.tensor([[*short, end, end], long]),
        "attention_mask": torch.tensor([[1] * 4 + [0] * 2, [1] * 6]),
    }
    alone = {"input_ids": torch.tensor([short]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with torch.no_grad():
        assert torch.allclose(backbone.pooled(batch)[0], backbone.pooled(alone)[0], atol=1e-5)


def test_more_layers_than_the_backbone_has_are_refused(tiny_encoder_folder):
    from dmoerm.errors import ConfigError

    with pytest.raises(ConfigError, match=r"backbone\.layers is 9, but .* has 4 layers"):
        Backbone.load(str(tiny_encoder_folder), keep_layers=9)


def test_a_cut_backbone_gives_what_the_whole_one_computes_at_that_layer(tiny_encoder_folder):
    batch = {"input_ids": torch.tensor([[2, 9, 8, 3, 7, 3]]), "attention_mask": torch.ones(1, 6, dtype=torch.long)}
    whole, cut = Backbone.load(str(tiny_encoder_folder)).eval(), Backbone.load(str(tiny_encoder_folder), keep_layers=2).eval()
    with torch.no_grad():
        entering_BLD = whole.trunk(batch, 2)  # what enters the third layer is what the second one gave
        assert torch.allclose(cut.pooled(batch)[:, 0], entering_BLD.mean(1), atol=1e-6)
    assert len(cut.layers) == 2
    assert cut.fingerprint() != whole.fingerprint()


def test_sampled_positions_give_the_mean_on_average(tiny_encoder_folder):
    backbone = Backbone.load(str(tiny_encoder_folder))
    backbone.sampled_positions = 4
    ids = torch.tensor([[2, *range(10, 33), 3], [2, 40, 41, 3] + [0] * 21])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    torch.manual_seed(0)
    with torch.no_grad():
        mean = backbone.eval().pooled(batch)
        backbone.train()
        drawn = torch.stack([backbone.pooled(batch) for _ in range(400)])
    assert torch.allclose(drawn[:, 1], mean[1].expand(400, -1, -1), atol=1e-5)  # four tokens: all of them, always
    assert drawn[:, 0].std(0).max() > 0.01
    error = (drawn[:, 0].mean(0) - mean[0]).abs()
    assert (error < 5 * drawn[:, 0].std(0) / 400**0.5 + 1e-4).all()


@pytest.mark.parametrize(
    ("environment", "name"), [({"ACCELERATE_USE_FSDP": "true"}, "FSDP"), ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "stage 3")]
)
def test_launchers_that_split_the_weights_are_refused_with_those_that_do_not(environment, name):
    with pytest.raises(TrainingError, match=rf"{name}.*ddp\.yaml"):
        trainer.refuse_split_weights(environment)
    trainer.refuse_split_weights({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"})
