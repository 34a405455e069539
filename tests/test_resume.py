"""A run that is killed, stopped or changed: what is kept, what is taken up again, and what is refused by name."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from test_cli_verbs import RECIPE, TAXONOMY, comparison_rows, write

from dmoerm.cli import main as cli
from dmoerm.errors import TrainingError
from dmoerm.training.checkpoints import COMPLETE, EpochResult, RunState, Unit, content_key, read_complete, seal

# Runs `dmoerm` in this process and kills it with SIGKILL at a chosen event: a training step, or a file or folder made safe on disk.
KILLER = """
import os, signal, sys
from dmoerm.training import checkpoints, trainer

at, count = int(sys.argv[1]), 0

def counted(function):
    def call(*args, **kwargs):
        global count
        count += 1
        if count == at:
            os.kill(os.getpid(), getattr(signal, sys.argv[2]))
        return function(*args, **kwargs)
    return call

trainer.RankingModule.forward = counted(trainer.RankingModule.forward)
checkpoints._to_disk = counted(checkpoints._to_disk)
from dmoerm.cli.main import main
code = main(sys.argv[3:])
print(f"events {count}", file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory, tiny_encoder_folder):
    """A folder with a run of two epochs a phase that stores every second step."""
    folder = tmp_path_factory.mktemp("resume")
    write(folder / "comparisons.jsonl", comparison_rows(40, 1))
    text = RECIPE.format(backbone=tiny_encoder_folder).replace("epochs: 1", "epochs: 2, comparisons_per_batch: 4")
    (folder / "recipe.yaml").write_text(text.replace("precision: fp32", "precision: fp32, checkpoint_steps: 2"), encoding="utf-8")
    (folder / "taxonomy.yaml").write_text(TAXONOMY, encoding="utf-8")
    return folder


def train(folder, output, *flags, at=0, kill="SIGKILL"):
    """One process that trains into `output`, killed at event `at`; returns its exit code and what it said."""
    command = ["train", str(folder / "recipe.yaml"), "--output", str(output), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KILLER, str(at), kill, *command], capture_output=True, text=True, env=environment)
    return done.returncode, done.stderr


def weights_of(model):
    return {path.relative_to(model).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in model.rglob("*.safetensors")}


@pytest.fixture(scope="module")
def undisturbed(small):
    code, said = train(small, small / "undisturbed")
    assert code == cli.DONE, said
    return weights_of(small / "undisturbed"), int(said.rpartition("events ")[2])


@pytest.fixture(scope="module")
def killed_early(small, undisturbed):
    """A run that was killed after a quarter of its events, to be copied."""
    train(small, small / "killed" / "model", at=undisturbed[1] // 4)
    return small / "killed"


@pytest.mark.faults("F18")
def test_a_run_killed_at_five_random_moments_ends_with_the_same_weights(small, undisturbed):
    weights, events = undisturbed
    # Counts begin anew in each process: later ones pass over what is finished, so their range is what the first one had left.
    moments = sorted(random.Random(7).sample(range(events // 8, events // 3), 5))
    for moment in moments:
        code, said = train(small, small / "killed", "--resume", at=moment)
        assert code == -signal.SIGKILL, said
        assert not (small / "killed").exists()
    code, said = train(small, small / "killed", "--resume")
    assert code == cli.DONE, said
    assert weights_of(small / "killed") == weights
    assert int(said.rpartition("events ")[2]) < events  # what the killed ones had finished was not done again


@pytest.mark.faults("F18")
def test_sigterm_stores_the_running_step_and_the_resumed_run_ends_with_the_same_weights(small, undisturbed):
    weights, events = undisturbed
    code, said = train(small, small / "stopped", at=events // 3, kill="SIGTERM")
    assert code == cli.INTERRUPTED, said
    assert "Traceback" not in said
    code, said = train(small, small / "stopped", "--resume")
    assert code == cli.DONE, said
    assert weights_of(small / "stopped") == weights


@pytest.mark.faults("F19")
def test_a_resume_with_another_rank_seed_or_data_is_refused_field_by_field(small, killed_early, tmp_path, capsys):
    shutil.copytree(killed_early, tmp_path, dirs_exist_ok=True)
    recipe = small / "recipe.yaml"
    assert cli.main(["train", str(recipe), "--output", str(tmp_path / "model")]) == cli.FAILED
    assert "unfinished run" in capsys.readouterr().err
    changed = ["--set", "experts.rank=2", "--set", "seed=3", "--set", "data.test_fraction=0.25"]
    assert cli.main(["train", str(recipe), "--output", str(tmp_path / "model"), "--resume", *changed]) == cli.FAILED
    message = capsys.readouterr().err
    assert "experts.rank: 4 then, 2 now" in message
    assert "seed: 0 then, 3 now" in message
    assert "data.comparisons:" in message
    assert "--force-resume" in message
    assert cli.main(["train", str(recipe), "--output", str(tmp_path / "model"), "--force-resume", *changed]) == cli.DONE
    forced = json.loads((tmp_path / "model-run" / "finished-run.json").read_text())["forced"]
    assert forced[0]["experts.rank"] == [4, 2]


def test_training_settings_that_move_no_weight_do_not_stand_in_the_way_of_a_resume(small, undisturbed, killed_early, tmp_path):
    shutil.copytree(killed_early, tmp_path, dirs_exist_ok=True)
    flags = ["--resume", "--set", "training.checkpoint_steps=50", "--set", "evaluation.bootstrap_samples=200"]
    code, said = train(small, tmp_path / "model", *flags)
    assert code == cli.DONE, said
    assert weights_of(tmp_path / "model") == undisturbed[0]


# --- folders that are whole or not there ----------------------------------------------------------------------------------------------


def results(count=2):
    return [EpochResult(epoch, {"w": torch.full((2, 3), float(epoch))}, 0.5, 0.75, 8) for epoch in range(count)]


def test_a_stored_result_comes_back_as_it_was(tmp_path):
    unit = Unit(tmp_path / "unit")
    assert unit.result() is None
    unit.finish(results())
    found = unit.result()
    assert [r.epoch for r in found] == [0, 1]
    assert torch.equal(found[1].weights["w"], torch.ones(2, 3))
    assert (found[1].loss, found[1].accuracy, found[1].pairs) == (0.5, 0.75, 8)


@pytest.mark.faults("F22")
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / COMPLETE).unlink(), "unfinished"),
        (lambda folder: (folder / "epoch-1.safetensors").unlink(), r"epoch-1\.safetensors is missing"),
        (lambda folder: os.truncate(folder / "epoch-1.safetensors", 40), r"epoch-1\.safetensors is not the file"),
        (lambda folder: (folder / "epochs.json").write_text(""), r"epochs\.json is not the file"),
        (lambda folder: (folder / COMPLETE).write_text("{"), "damaged"),
    ],
)
def test_a_damaged_result_is_named_and_not_used(tmp_path, damage, reason):
    said = []
    unit = Unit(tmp_path / "unit", say=said.append)
    unit.finish(results())
    damage(tmp_path / "unit" / "result")
    assert unit.result() is None
    assert not unit.finished
    assert len(said) == 1
    assert re.search(reason, said[0])


def write_step(unit, number, *, whole=True):
    step = unit.steps_folder() / f"checkpoint-{number}"
    step.mkdir(parents=True)
    save_file({"w": torch.ones(2)}, step / "trained.safetensors")
    if whole:
        unit.step_written(step)
    return step


@pytest.mark.faults("F22")
def test_a_half_written_step_is_passed_over_for_the_older_whole_one(tmp_path):
    said = []
    unit = Unit(tmp_path / "unit", say=said.append)
    older = write_step(unit, 9)
    write_step(unit, 10, whole=False)
    assert unit.last_step() == older
    assert "checkpoint-10: unfinished" in said[0]


def test_an_older_step_goes_only_when_the_newer_one_is_whole(tmp_path):
    unit = Unit(tmp_path / "unit")
    older = write_step(unit, 2)
    newer = write_step(unit, 10, whole=False)
    assert older.is_dir()
    unit.step_written(newer)
    assert not older.exists()
    assert unit.last_step() == newer


def test_a_sealed_folder_knows_every_byte(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    seal(tmp_path)
    assert read_complete(tmp_path) is None
    (tmp_path / "a").write_bytes(b"onf")
    assert "a is not the file that was written" in read_complete(tmp_path)


def test_equal_content_has_equal_keys_and_other_content_another():
    one = content_key("x", {"b": torch.ones(2), "a": [1, 2]})
    assert one == content_key("x", {"a": [1, 2], "b": torch.ones(2)})
    assert one != content_key("x", {"a": [1, 2], "b": torch.ones(2).bfloat16()})
    assert content_key(["ab"]) != content_key(["a", "b"])
    assert content_key([1, [2]]) != content_key([[1], 2])
    assert content_key(1) != content_key("1")


def test_a_unit_with_another_key_is_another_unit(tmp_path):
    state = RunState(tmp_path)
    state.unit("logic/phase1", "a" * 64).finish(results())
    assert state.unit("logic/phase1", "a" * 64).finished
    assert not state.unit("logic/phase1", "b" * 64).finished


@pytest.mark.faults("F19")
def test_a_fingerprint_that_differs_lists_its_fields(tmp_path):
    RunState(tmp_path).begin({"seed": 1, "rank": 8}, resume=False)
    with pytest.raises(TrainingError, match=r"rank: 8 then, 16 now"):
        RunState(tmp_path).begin({"seed": 1, "rank": 16}, resume=True)
    RunState(tmp_path).begin({"seed": 1, "rank": 16}, resume=True, force=True)
    assert json.loads((tmp_path / "run.json").read_text())["forced"] == [{"rank": [8, 16]}]


def test_beginning_anew_forgets_the_units(tmp_path):
    state = RunState(tmp_path)
    state.begin({"seed": 1}, resume=False)
    state.unit("x", "k" * 64).finish(results())
    state.begin({"seed": 1}, resume=True)
    assert state.unit("x", "k" * 64).finished
    state.begin({"seed": 1}, resume=False)
    assert not state.unit("x", "k" * 64).finished
