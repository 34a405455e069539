"""One run in two processes (gloo, no GPU), as `accelerate launch` and `torchrun` start them."""

import json
import os
import subprocess
import sys

import pytest
from test_cli_verbs import RECIPE, TAXONOMY, comparison_rows, write

from dmoerm import RewardModel
from dmoerm.cli import main as cli


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_encoder_folder):
    folder = tmp_path_factory.mktemp("processes")
    write(folder / "comparisons.jsonl", comparison_rows(120, 1))
    text = RECIPE.format(backbone=tiny_encoder_folder).replace("epochs: 1", "epochs: 3, comparisons_per_batch: 4, learning_rate: 0.003")
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    (folder / "taxonomy.yaml").write_text(TAXONOMY, encoding="utf-8")
    return folder


def agreement(output):
    report = json.loads((output.with_name(f"{output.name}-run") / "evaluation.json").read_text())
    return next(row["agreement"]["value"] for row in report["rows"] if row["model"] == "model/mlp" and row["category"] is None)


def launched(project, output, *flags):
    """`dmoerm train` in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dmoerm.cli.main"]
    command = [*launcher, "train", str(project / "recipe.yaml"), "--output", str(output), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


@pytest.fixture(scope="module")
def two(project):
    """What two processes leave."""
    return launched(project, project / "two")


def test_two_processes_train_to_the_agreement_of_one(project, two):
    assert cli.main(["-q", "train", str(project / "recipe.yaml"), "--output", str(project / "one")]) == cli.DONE
    assert two.returncode == 0, two.stderr
    assert abs(agreement(project / "two") - agreement(project / "one")) <= 0.05
    assert agreement(project / "two") > 0.8
    assert two.stdout.count("Model: ") == 1  # the first process alone tells and writes
    assert RewardModel.from_pretrained(project / "two").score("explain the number", ["good true"])[0].category


@pytest.mark.faults("F19")
def test_a_run_of_two_processes_is_not_resumed_by_one_without_saying_so(project, two, capsys):
    run = json.loads((project / "two-run" / "finished-run.json").read_text())
    assert run["fingerprint"]["processes"] == 2
    (project / "two-run" / "run.json").write_text(json.dumps(run))
    code = cli.main(["train", str(project / "recipe.yaml"), "--output", str(project / "two"), "--resume", "--overwrite"])
    assert code == cli.FAILED
    assert "processes: 2 then, 1 now" in capsys.readouterr().err
