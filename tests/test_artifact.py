"""A trained model saved, moved, loaded elsewhere and damaged: equal rewards, or a refusal that names the file."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from dmoerm.data.sources import RunData
from dmoerm.errors import ArtifactError, ConfigError
from dmoerm.modeling.artifact import check_target
from dmoerm.modeling.manifest import MANIFEST
from dmoerm.modeling.peft_export import export_peft
from dmoerm.modeling.reward_model import RewardModel, ScoreRequest, as_messages
from dmoerm.modeling.verification import verify_artifact
from dmoerm.recipe import Recipe
from dmoerm.records import CapabilityLabel, Comparison, Message, Reward, ScoreFailure
from dmoerm.taxonomy import paper_taxonomy

PROMPT = "explain the river and the bank"
RESPONSES = ["a clear answer about water and the bank", "no", "because the big bird can build a bridge"]


def comparisons():
    rows = []
    for number in range(24):
        category = "objective_qa" if number % 2 else "chitchat"
        good, bad = f"a clear and correct answer about number {number}", f"bad bad no {number}"
        capability = "correctness" if number % 2 else "proactivity"
        rows.append(
            Comparison(
                f"c{number}", (Message("user", f"question {number} about the river"),), (good, bad), (1, 2), category,
                (CapabilityLabel(capability, 0, 1),), (None, None),
            )
        )  # fmt: skip
    return tuple(rows)


def train(folder, folds=2, **task_model):
    from dmoerm.training.pipeline import train_model

    recipe = Recipe.model_validate(
        {
            "backbone": {"name": str(folder), "max_length_tokens": 48},
            "data": {"comparisons": ["unused.jsonl"]},
            "task_model": {"depth": 2, "rank": 4, "epochs": 1, "minimum_comparisons": 5, **task_model},
            "experts": {"depth": 1, "rank": 4, "epochs": 1, "minimum_labels": 5},
            "aggregator": {"epochs": 5, "members": 2, "hidden_size": 4, "cross_fit_folds": folds},
            "training": {"precision": "fp32", "device": "cpu"},
        },
        strict=False,
    )
    data = RunData(paper_taxonomy(), comparisons(), (), (), ())
    return train_model(data, recipe).model


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def model(request, tiny_encoder_folder, tiny_decoder_folder):
    return train(tiny_encoder_folder if request.param == "encoder" else tiny_decoder_folder)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    return tmp_path / "copy"


def rewards(model):
    return [result.reward for result in model.score(PROMPT, RESPONSES)]


def test_a_moved_model_gives_the_same_rewards(model, copy):
    assert rewards(RewardModel.from_pretrained(copy)) == pytest.approx(rewards(model), abs=1e-5)


def test_a_trained_model_is_verified_whole_and_a_decoder_is_exported(model, copy, tmp_path):
    pytest.importorskip("peft")
    assert verify_artifact(copy).problems == []
    if model.backbone.pooling == "last":
        export = export_peft(RewardModel.from_pretrained(copy), tmp_path / "peft")
        assert export.largest_difference < 1e-5
        assert {a.category for a in export.adapters} == set(model.inner)
    else:
        with pytest.raises(ConfigError, match=r"pools by '(mean|spread)'"):
            export_peft(model, tmp_path / "peft")


def test_a_new_process_gives_the_same_rewards(model, copy):
    code = f"import sys, json; from dmoerm import RewardModel; m = RewardModel.from_pretrained({str(copy)!r}); " \
           f"print(json.dumps([r.reward for r in m.score({PROMPT!r}, {RESPONSES!r})]))"  # fmt: skip
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out.splitlines()[-1]) == pytest.approx(rewards(model), abs=1e-5)


@pytest.mark.faults("F23")
def test_a_flipped_byte_is_refused_by_name(copy):
    path = next((copy / "categories").rglob("adapter_model.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=rf"{path.relative_to(copy).as_posix()} has changed since it was saved"):
        RewardModel.from_pretrained(copy)


@pytest.mark.faults("F25")
def test_a_wrong_head_is_refused_by_the_canaries_though_its_hash_is_right(copy):
    import hashlib

    name = "categories/objective_qa/experts/correctness/adapter_model.safetensors"
    tensors = load_file(copy / name)
    tensors["base_model.model.score.weight"] = torch.randn_like(tensors["base_model.model.score.weight"])
    save_file(tensors, copy / name)
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["files"][name] = hashlib.sha256((copy / name).read_bytes()).hexdigest()
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"category objective_qa gives a canary the reward .* is not the saved"):
        RewardModel.from_pretrained(copy)


@pytest.mark.faults("F23")
def test_a_missing_and_a_foreign_file_are_named(copy):
    (copy / "router" / "router.safetensors").unlink()
    (copy / "optimizer.pt").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"router/router\.safetensors is missing; optimizer\.pt may carry code and is never loaded"):
        RewardModel.from_pretrained(copy)


@pytest.mark.faults("F27")
def test_a_newer_format_says_which_version_to_install(copy):
    manifest = json.loads((copy / MANIFEST).read_text()) | {"format_version": 99, "dmoerm_version": "9.1"}
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"made by dmoerm 9\.1, format 99; this is dmoerm .*, format <= 2"):
        RewardModel.from_pretrained(copy)


@pytest.mark.faults("F26")
def test_another_backbone_is_refused(copy):
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["backbone"]["sha256"] = "0" * 64
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"its weights hash to .* the model was trained on 000000000000"):
        RewardModel.from_pretrained(copy)


def test_a_folder_that_is_taken_is_never_written_over(saved, tmp_path):
    with pytest.raises(ArtifactError, match="already holds a model"):
        check_target(saved, overwrite=False)
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="holds no dmoerm model"):
        check_target(tmp_path, overwrite=True)


def test_the_artifact_holds_only_json_text_and_safetensors(saved):
    assert {path.suffix for path in saved.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".md", ".jinja", ".txt"}


def test_the_batch_that_a_row_shares_never_moves_its_reward(model):
    alone = model.score_many([ScoreRequest(as_messages(PROMPT), (RESPONSES[0],))])[0][0].reward
    company = [ScoreRequest(as_messages(f"question {n} " * (1 + n % 9)), ("long " * n, "short")) for n in range(1, 30)]
    mixed = model.score_many([*company, ScoreRequest(as_messages(PROMPT), (RESPONSES[0],))])[-1][0].reward
    small = model.score_many([*company, ScoreRequest(as_messages(PROMPT), (RESPONSES[0],))], max_tokens=60)[-1][0].reward
    # Other shapes are added up in another order; the temperature of this hardly trained model multiplies what that moves.
    assert (mixed, small) == pytest.approx((alone, alone), abs=1e-4, rel=1e-4)


def test_a_response_that_cannot_be_scored_leaves_the_others_their_reward(model):
    failed, good = model.score_many([ScoreRequest(as_messages(PROMPT), ("  ", RESPONSES[0]))])[0]
    assert isinstance(failed, ScoreFailure)
    assert "empty" in failed.message
    assert isinstance(good, Reward)
    assert good.reward == pytest.approx(model.score(PROMPT, RESPONSES[0])[0].reward, abs=1e-5, rel=1e-5)


def test_a_reward_explains_itself(model):
    result = model.score(PROMPT, RESPONSES, category="objective_qa")[0]
    assert (result.category, set(result.capabilities), result.category_probability) == ("objective_qa", {"correctness"}, 1.0)
    assert result.capability_spread == 0.0  # one expert cannot disagree with itself
    assert result.uncertainty > 0
    general = model.score(PROMPT, RESPONSES, category="roleplay")[0]
    assert (general.category, set(general.capabilities)) == ("general", {"correctness", "proactivity"})


def test_every_aggregation_of_one_pass_equals_its_own_pass(model):
    request = [ScoreRequest(as_messages(PROMPT), tuple(RESPONSES), "general")]
    together = model.score_by_aggregation(request, ["mlp", "wco"])
    for name, found in zip(("mlp", "wco"), together, strict=True):
        assert [r.reward for r in found[0]] == pytest.approx([r.reward for r in model.score_many(request, aggregation=name)[0]], abs=1e-6)


def test_full_fine_tuning_keeps_its_own_weights_and_reloads(tiny_encoder_folder, tmp_path):
    model = train(tiny_encoder_folder, folds=None, kind="full", depth="all")  # the paper's split, which takes the last epoch
    model.save_pretrained(tmp_path / "full")
    assert (tmp_path / "full" / "categories" / "objective_qa" / "backbone.safetensors").is_file()
    loaded = RewardModel.from_pretrained(tmp_path / "full")
    assert rewards(loaded) == pytest.approx(rewards(model), abs=1e-5)
    trained, bare = loaded.own_backbones["general"].fingerprint(), loaded.backbone.fingerprint()
    assert trained != bare


def test_same_seed_same_model(tiny_encoder_folder):
    assert rewards(train(tiny_encoder_folder)) == rewards(train(tiny_encoder_folder))
