"""What can happen to a saved model on its way: cut, changed, swapped, replaced by something that carries code. Each case is named."""

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from make_artifact_fixture import PROMPTS, RESPONSES, random_model, tiny_backbone
from safetensors.torch import load_file, save_file

from dmoerm.cli import main as cli
from dmoerm.errors import ArtifactError, ConfigError
from dmoerm.modeling.backbone import Backbone
from dmoerm.modeling.canaries import CANARIES
from dmoerm.modeling.manifest import MANIFEST, read_manifest
from dmoerm.modeling.reward_model import RewardModel
from dmoerm.modeling.verification import verify_artifact

EXPERT = "categories/objective_qa/experts/logic"


class Planted:
    """A pickle that would leave a trace where it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (os.system, (f"touch {self.trace}",))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a backbone and a model on it."""
    folder = tmp_path_factory.mktemp("home")
    tiny_backbone(folder / "backbone")
    random_model(str(folder / "backbone")).save_pretrained(folder / "model")
    return folder


@pytest.fixture
def copy(home, tmp_path):
    return shutil.copytree(home / "model", tmp_path / "copy")


def edit_manifest(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def rehash(folder, name):
    """What a forger, or a tool that means well, does after changing a file."""
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    edit_manifest(folder, lambda manifest: manifest["files"].update({name: digest}))


def edit_tensors(folder, name, change):
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)
    rehash(folder, name)


def edit_json(folder, name, **changes):
    value = json.loads((folder / name).read_text(encoding="utf-8"))
    (folder / name).write_text(json.dumps({**value, **changes}), encoding="utf-8")
    rehash(folder, name)


def refused(folder, match, error=ArtifactError):
    """Loading refuses it, and verify finds the same."""
    with pytest.raises(error, match=match):
        RewardModel.from_pretrained(folder)
    with pytest.raises(ArtifactError, match=match):
        verify_artifact(folder).require()


# --- whole, and always the same -------------------------------------------------------------------------------------------------------


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_saving_twice_and_saving_what_was_loaded_give_the_same_bytes(home, tmp_path):
    model = random_model(str(home / "backbone"))
    model.save_pretrained(tmp_path / "first")
    model.save_pretrained(tmp_path / "second")
    RewardModel.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "third")
    first = contents(tmp_path / "first")
    assert contents(tmp_path / "second") == first
    assert contents(tmp_path / "third") == first
    assert len(first) == 24


def test_the_model_card_may_be_edited_and_hidden_files_may_lie_beside(copy):
    (copy / "README.md").write_text("a better card", encoding="utf-8")
    (copy / ".gitattributes").write_text("*.safetensors filter=lfs", encoding="utf-8")
    (copy / ".cache").mkdir()
    (copy / ".cache" / "note.json").write_text("{}", encoding="utf-8")
    assert verify_artifact(copy).problems == []


def test_verify_and_loading_take_a_backbone_that_has_moved(home, copy, tmp_path):
    moved = shutil.copytree(home / "backbone", tmp_path / "elsewhere")
    edit_manifest(copy, lambda manifest: manifest["backbone"].update(name="/gone/backbone"))
    for name in read_manifest(copy).adapters():
        edit_json(copy, f"{name}/adapter_config.json", base_model_name_or_path="/gone/backbone")
    refused(copy, r"backbone /gone/backbone: no model found there .* name the place \(backbone, --backbone\)", ConfigError)
    assert verify_artifact(copy, backbone=moved).problems == []
    expected = RewardModel.from_pretrained(home / "model").score(PROMPTS[0], RESPONSES)
    assert RewardModel.from_pretrained(copy, backbone=moved).score(PROMPTS[0], RESPONSES) == expected


def test_another_backbone_given_by_hand_is_refused(copy, tmp_path):
    other = tiny_backbone(tmp_path / "other", rms_norm_eps=1e-6, initializer_range=0.1)
    with pytest.raises(ArtifactError, match=r"its weights hash to .* the model was trained on"):
        RewardModel.from_pretrained(copy, backbone=other)


# --- F22 ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.faults("F22")
def test_a_folder_without_its_marker_is_half_written(copy):
    (copy / MANIFEST).unlink()
    with pytest.raises(ArtifactError, match=r"there is no dmoerm\.json\. It was copied or written in part: copy the model again"):
        RewardModel.from_pretrained(copy)
    result = verify_artifact(copy)
    assert [check.name for check in result.checks] == ["manifest"]
    assert "written in part" in result.problems[0]


@pytest.mark.faults("F22")
@pytest.mark.parametrize("text", ["", "{", "[]", '{"format_version": 2', "null", "[" * 100_000])
def test_a_cut_marker_is_no_manifest(copy, text):
    (copy / MANIFEST).write_text(text, encoding="utf-8")
    refused(copy, r"dmoerm\.json: not a manifest .* Copy the model again")


@pytest.mark.faults("F22")
@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_truncated_weights_are_named_even_where_the_hash_was_made_afterwards(copy, size):
    name = f"{EXPERT}/adapter_model.safetensors"
    (copy / name).write_bytes((copy / name).read_bytes()[:size])
    refused(copy, rf"{name} has changed since it was saved")
    rehash(copy, name)
    refused(copy, rf"{name}(: not| is not) a whole safetensors file")


@pytest.mark.faults("F22")
def test_a_save_that_fails_leaves_the_old_model_and_nothing_else(home, copy):
    model = RewardModel.from_pretrained(copy)
    before = contents(copy)
    model.inner["general"].reference_A[:] = torch.nan
    with pytest.raises(ArtifactError, match=r"category general gives a canary the reward nan, so nothing was saved"):
        model.save_pretrained(copy, overwrite=True)
    assert contents(copy) == before
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


KILLED = """
import os, signal, sys
from pathlib import Path
from dmoerm.modeling.manifest import MANIFEST, read_manifest
from dmoerm.modeling.reward_model import RewardModel
model = RewardModel.from_pretrained(sys.argv[1])
rename, calls = Path.rename, []
def dies(self, target):
    calls.append(self)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.rename = dies
model.save_pretrained(sys.argv[1], overwrite=True)
"""


@pytest.mark.faults("F22")
@pytest.mark.parametrize("rename", [1, 2])
def test_a_process_killed_while_saving_loses_no_model(copy, rename):
    before = contents(copy)
    done = subprocess.run([sys.executable, "-c", KILLED, str(copy), str(rename)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    if rename == 1:  # the new one is whole beside it, the old one in place
        assert contents(copy) == before
        return
    with pytest.raises(ArtifactError, match=r"copy: no such folder\. .*/\.copy\.old-\d+ is what had this name .* rename it to copy"):
        RewardModel.from_pretrained(copy)
    (old,) = copy.parent.glob(".copy.old-*")
    assert contents(old) == before
    old.rename(copy)
    assert verify_artifact(copy).problems == []


# --- F23 ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.faults("F23")
def test_a_flipped_bit_in_any_file_is_found_and_the_file_named(copy, capsys):
    names = sorted(read_manifest(copy).files)
    assert len(names) == 22
    for name in names:
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(bytes(data))
        assert cli.main(["verify", str(copy), "--no-load"]) == cli.FAILED
        assert f"{name} has changed since it was saved" in capsys.readouterr().out
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(bytes(data))
    assert cli.main(["verify", str(copy), "--no-load"]) == cli.DONE


@pytest.mark.faults("F23")
def test_a_foreign_and_a_missing_file_are_named(copy):
    (copy / "categories" / "notes.txt").write_text("mine", encoding="utf-8")
    (copy / EXPERT / "adapter_model.safetensors").unlink()
    refused(copy, rf"{EXPERT}/adapter_model\.safetensors is missing; categories/notes\.txt does not belong to the model")


@pytest.mark.faults("F23")
def test_verify_prints_what_it_checked_and_json_holds_the_same(home, capsys):
    assert cli.main(["verify", str(home / "model")]) == cli.DONE
    text = capsys.readouterr().out
    assert [line.split()[:2] for line in text.splitlines()] == [
        ["ok", name] for name in ("manifest", "files", "configs", "weights", "loading", "canaries")
    ]
    assert "22 files" in text
    assert "14 scored on cpu; largest difference" in text
    assert cli.main(["verify", str(home / "model"), "--json"]) == cli.DONE
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], len(found["checks"])) == (True, 6)


@pytest.mark.faults("F23")
def test_verify_in_json_names_the_fault_and_fails(copy, capsys):
    (copy / "router" / "router.safetensors").unlink()
    assert cli.main(["verify", str(copy), "--json"]) == cli.FAILED
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert [check["problems"] for check in found["checks"] if not check["ok"]] == [["router/router.safetensors is missing"]]


def test_verify_of_nothing_is_a_message(tmp_path, capsys):
    assert cli.main(["verify", str(tmp_path / "no-model-here")]) == cli.FAILED
    assert "no-model-here: no such folder" in capsys.readouterr().err
    assert cli.main(["verify", str(tmp_path)]) == cli.FAILED
    assert "Name the folder that `dmoerm train` wrote" in capsys.readouterr().out


# --- F24 ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.faults("F24")
@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt", "model.pkl", ".hidden.pickle", "modeling.py"])
def test_a_file_that_can_carry_code_is_refused_by_name(copy, tmp_path, name):
    (copy / EXPERT / name).write_bytes(pickle.dumps(Planted(tmp_path / "trace")))
    refused(copy, rf"{EXPERT}/{name} may carry code and is never loaded")
    rehash(copy, f"{EXPERT}/{name}")  # its hash in the manifest makes it no better
    refused(copy, rf"{EXPERT}/{name} may carry code and is never loaded")
    assert not (tmp_path / "trace").exists()


@pytest.mark.faults("F24")
@pytest.mark.parametrize(
    "name", ["router/router.safetensors", "categories/chitchat/backbone.safetensors", f"{EXPERT}/adapter_model.safetensors"]
)
def test_a_pickle_by_the_name_of_a_safetensors_file_is_never_unpickled(copy, tmp_path, name):
    (copy / name).write_bytes(pickle.dumps(Planted(tmp_path / "trace")))
    rehash(copy, name)
    refused(copy, rf"{name}(: not| is not) a whole safetensors file")
    with pytest.raises(ArtifactError, match=rf"{name}: not a whole safetensors file"):
        RewardModel.from_pretrained(copy, check=False)
    assert not (tmp_path / "trace").exists()


@pytest.mark.faults("F24")
def test_an_adapter_as_bin_alone_is_not_taken_in_place_of_safetensors(copy, tmp_path):
    (copy / EXPERT / "adapter_model.safetensors").unlink()
    (copy / EXPERT / "adapter_model.bin").write_bytes(pickle.dumps(Planted(tmp_path / "trace")))
    with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors is missing"):
        RewardModel.from_pretrained(copy, check=False)
    assert not (tmp_path / "trace").exists()


# --- F25 ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.faults("F25")
def test_there_are_eight_canaries_through_the_router_and_two_for_each_category(home):
    entries = read_manifest(home / "model").canaries
    assert len(CANARIES) == 8
    assert [entry.category for entry in entries] == [None] * 8 + ["objective_qa"] * 2 + ["chitchat"] * 2 + ["general"] * 2
    assert len({entry.reward for entry in entries if entry.category is None}) == 8


@pytest.mark.faults("F25")
def test_two_experts_that_changed_places_are_found_by_the_canaries(copy):
    names = [f"categories/general/experts/{name}/adapter_model.safetensors" for name in ("correctness", "empathy")]
    first, second = ((copy / name).read_bytes() for name in names)
    (copy / names[0]).write_bytes(second)
    (copy / names[1]).write_bytes(first)
    for name in names:
        rehash(copy, name)
    refused(copy, r"category general gives a canary the (reward|correctness) .* a head, adapter or aggregator is not the saved one")


@pytest.mark.faults("F25")
def test_a_router_that_lost_its_weights_is_found_by_the_canaries(copy):
    edit_tensors(copy, "router/router.safetensors", lambda tensors: tensors["weight_TD"].zero_())
    refused(copy, r"(the router sends a canary to|gives a canary the router probability)")


@pytest.mark.faults("F25")
@pytest.mark.parametrize(
    ("name", "key"),
    [
        (f"{EXPERT}/adapter_model.safetensors", "base_model.model.score.weight"),
        (f"{EXPERT}/adapter_model.safetensors", "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"),
        ("categories/general/task_adapter/adapter_model.safetensors", "base_model.model.score.weight"),
        ("categories/general/aggregator.safetensors", "task_head_D"),
        ("categories/general/aggregator.safetensors", "scalar_mean_K"),
        ("categories/chitchat/backbone.safetensors", "norm.weight"),
        ("router/router.safetensors", "bias_T"),
    ],
)
def test_a_missing_an_extra_and_a_misshapen_weight_are_errors(copy, name, key):
    kept = (copy / name).read_bytes()
    edit_tensors(copy, name, lambda tensors: tensors.pop(key))
    refused(copy, rf"{name}: {key} is missing")
    (copy / name).write_bytes(kept)
    edit_tensors(copy, name, lambda tensors: tensors.update({"head.weight": torch.zeros(1)}))
    refused(copy, rf"{name}: head\.weight does not belong there")
    (copy / name).write_bytes(kept)
    edit_tensors(copy, name, lambda tensors: tensors.update({key: torch.zeros(3, 5)}))
    refused(copy, rf"{name}: {key} has shape \(3, 5\), expected")


@pytest.mark.faults("F25")
def test_a_task_head_that_differs_between_its_two_files_is_refused(copy):
    name = "categories/general/task_adapter/adapter_model.safetensors"
    edit_tensors(copy, name, lambda tensors: tensors["base_model.model.score.weight"].mul_(2.0))
    refused(copy, r"task_adapter: its head is not the one of aggregator\.safetensors")


# --- F26 ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.faults("F26")
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"base_model_name_or_path": "evil/model"}, r'says "base_model_name_or_path" is "evil/model"; the manifest says "/'),
        ({"base_model_name_or_path": "../../outside"}, r'says "base_model_name_or_path" is "\.\./\.\./outside"'),
        ({"revision": "main"}, r'says "revision" is "main"; the manifest says null'),
        ({"auto_map": {"AutoModel": "evil--x.Model"}}, r'has the key "auto_map", which dmoerm does not write'),
        ({"_attn_implementation_internal": "evil/kernel"}, r'has the key "_attn_implementation_internal", which dmoerm does not write'),
        ({"use_dora": True}, r'has the key "use_dora", which dmoerm does not write'),
        ({"lora_alpha": 64}, r'says "lora_alpha" is 64; the manifest says 3\.0'),
        ({"layers_to_transform": [0]}, r'says "layers_to_transform" is \[0\]; the manifest says \[1\] and so on upwards'),
        ({"layers_to_transform": None}, r"is no adapter config \(TypeError"),
    ],
)
def test_an_adapter_config_that_says_something_else_than_the_manifest_is_refused(copy, changes, match):
    edit_json(copy, f"{EXPERT}/adapter_config.json", **changes)
    refused(copy, rf"{EXPERT}/adapter_config\.json {match}")


@pytest.mark.faults("F26")
def test_an_adapter_config_that_lacks_a_key_or_is_no_json_is_refused(copy):
    name = f"{EXPERT}/adapter_config.json"
    value = json.loads((copy / name).read_text(encoding="utf-8"))
    del value["modules_to_save"]
    (copy / name).write_text(json.dumps(value), encoding="utf-8")
    rehash(copy, name)
    refused(copy, rf'{name} lacks the key "modules_to_save"')
    (copy / name).write_text("{", encoding="utf-8")
    rehash(copy, name)
    refused(copy, rf"{name} is no adapter config")


@pytest.mark.faults("F26")
def test_a_tokenizer_that_asks_for_code_is_refused(copy):
    edit_json(copy, "tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    refused(copy, r'tokenizer/tokenizer_config\.json has the key "auto_map", which asks for code to be run')


@pytest.mark.faults("F26")
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m["categories"].update({"../outside": m["categories"].pop("objective_qa")}), r"categories\.\.\./outside.*pattern"),
        (lambda m: m["categories"]["objective_qa"].update(capabilities=["../../x", "logic"]), r"capabilities\.0: .*pattern"),
        (lambda m: m["files"].update({"../secret": "0" * 64}), r'"\.\./secret" is no plain path inside the model\'s folder'),
        (lambda m: m["files"].update({"/etc/passwd": "0" * 64}), r'"/etc/passwd" is no plain path inside'),
        (lambda m: m["backbone"].update(attention="evil/kernel"), r"backbone\.attention: .*pattern"),
        (lambda m: m["backbone"].update(trust_remote_code=True), r"backbone\.trust_remote_code: Extra inputs are not permitted"),
        (lambda m: m["backbone"].pop("sha256"), r"backbone\.sha256: Field required"),
        (lambda m: m["categories"].pop("general"), r'categories lacks "general", the fallback'),
        (lambda m: m["files"].pop("router/router.safetensors"), r"files lacks router/router\.safetensors"),
        (lambda m: m["categories"]["general"]["experts"].update(copies=2), r"experts\.copies is 2, but there are 3 members"),
        (lambda m: m["categories"]["chitchat"].update(full=False), r"either a backbone of its own \(full\) or a task_adapter"),
        (lambda m: m.update(canaries=[]), r"canaries: .*at least 1 item"),
    ],
)
def test_a_manifest_that_leads_outside_or_contradicts_itself_is_refused_even_unchecked(copy, change, match):
    edit_manifest(copy, change)
    refused(copy, match)
    with pytest.raises(ArtifactError, match=match):
        RewardModel.from_pretrained(copy, check=False)


@pytest.mark.faults("F26")
def test_a_backbone_whose_config_asks_for_code_is_refused(home, tmp_path):
    folder = shutil.copytree(home / "backbone", tmp_path / "backbone")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "_attn_implementation_internal": "evil/kernel"}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.json sets _attn_implementation_internal to 'evil/kernel'"):
        Backbone.load(str(folder))
    foreign = {**config, "model_type": "evil", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(foreign), encoding="utf-8")
    (folder / "code.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"no model found there"):
        Backbone.load(str(folder))
    assert not (tmp_path / "trace").exists()


@pytest.mark.faults("F22")
def test_a_backbone_with_truncated_weights_is_a_config_error(home, tmp_path):
    folder = shutil.copytree(home / "backbone", tmp_path / "backbone")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"backbone .*: its weights cannot be read"):
        Backbone.load(str(folder))


def test_a_model_may_be_saved_into_the_folder_one_stands_in(home, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    RewardModel.from_pretrained(home / "model").save_pretrained(".")
    assert contents(tmp_path / "here") == contents(home / "model")
