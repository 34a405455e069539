"""docs/labeling.md works as it is written: from comparisons without a label to a trained and measured model, command by command."""

import json
import random
import re
import shlex
from pathlib import Path

import pytest
from fake_judge import ScriptedJudge
from fake_openai import FakeOpenAI

from dmoerm import RewardModel
from dmoerm.cli.main import main

PAGE = (Path(__file__).parent.parent / "docs" / "labeling.md").read_text(encoding="utf-8")
FILLER = "river stone garden city house road book tree paper glass window water".split()
GOOD, POOR = "good clear true honest warm exact".split(), "bad wrong late cold dark empty".split()


def comparisons(count, seed):
    """Pairs whose better response has good words and a higher hidden marker."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        category, task = (("chitchat", "tell me about your day"), ("objective_qa", "explain the number"))[number % 2]
        responses = [
            " ".join(rng.sample(words, 3) + rng.sample(FILLER, 4)) + f" [quality {quality}]"
            for words, quality in ((GOOD, 0.9), (POOR, 0.2))
        ]
        ranks = [1, 2]
        if rng.random() < 0.5:
            responses, ranks = responses[::-1], ranks[::-1]
        prompt = f"{task} {' '.join(rng.sample(FILLER, 3))} {number + 1000 * seed}"
        rows.append({"prompt": prompt, "responses": responses, "ranks": ranks, "category": category})
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def known_winner(body, criterion):
    """The canaries carry no markers: their better response is recognised by its words."""
    better = ("Canberra", "90 km/h", "lost the key", "so sorry", "taps the pane", "boiling water")
    shown_first = body["messages"][-1]["content"].partition("response B begins")[0]
    return "A" if any(words in shown_first for words in better) else "B"


@pytest.fixture
def commands(tmp_path, monkeypatch, tiny_encoder_folder):
    """The page's recipe and files in an empty folder, its commands as lists of words, and the endpoint."""
    recipe = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1]
    script = next(block for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) if "--dry-run" in block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUDGE_KEY", "sk-a-key-of-the-docs")
    write(tmp_path / "comparisons.jsonl", comparisons(80, 1))
    write(tmp_path / "test.jsonl", comparisons(30, 2))
    with FakeOpenAI(ScriptedJudge(position_bias=0.1, noise=0.05, default=known_winner)) as server:
        small = f"backbone: {{name: {json.dumps(str(tiny_encoder_folder))}, max_length_tokens: 48}}\n"
        (tmp_path / "recipe.yaml").write_text(recipe.replace("http://127.0.0.1:8000/v1", server.base_url) + small, encoding="utf-8")
        yield [shlex.split(line) for line in script.strip().splitlines()], server


def test_the_commands_of_the_page_lead_from_comparisons_to_a_measured_model(commands, tmp_path, capsys):
    script, server = commands
    printed = {}
    for words in script:
        assert words[0] == "dmoerm"
        assert main(["--quiet", *words[1:]]) == 0, words
        printed[" ".join(words[1:4])] = capsys.readouterr().out
        if "--dry-run" in words:
            assert server.count == 0
    assert "questions answered, 0 open" in printed["label status recipe.yaml"]
    assert re.search(r"known pairs: right on (9|1[0-2]) of 12 presentations", printed["label status recipe.yaml"])
    labels = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {label["capability"] for row in labels for label in row["labels"]} >= {"correctness", "conversational_sense", "overall"}
    assert (tmp_path / "labels.html").stat().st_size > 5_000
    trained = RewardModel.from_pretrained(tmp_path / "model").inner
    assert "correctness" in trained["objective_qa"].capabilities, "experts were trained from the labels alone"
    assert "judge/judge-model" in printed["evaluate model test.jsonl"]
    assert server.count == server.distinct, "no question was sent twice"
    assert b"sk-a-key" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_second_run_asks_nothing_and_a_changed_description_asks_that_capability_anew(commands, tmp_path, capsys):
    script, server = commands
    assert main(["-q", *script[1][1:]]) == 0
    asked = server.count
    assert main(["-q", *script[1][1:]]) == 0
    assert server.count == asked
    assert main(["-q", "label", "status", "recipe.yaml", "--set", "labeling.temperature=0.7"]) == 0
    assert "answer that does not count: asked with another temperature (0.0 before, 0.7 now)" in capsys.readouterr().out


def test_exported_judgements_answer_another_store_without_a_call(commands, tmp_path, capsys):
    script, server = commands
    assert main(["-q", *script[1][1:]]) == 0
    first = (tmp_path / "labels.jsonl").read_bytes()
    assert main(["label", "export", "recipe.yaml", "--to", "judgements", "--output", "all.jsonl.gz"]) == 0
    asked = server.count
    other = ["--set", "labeling.store=other.db", "--set", "labeling.canaries=false"]
    assert main(["label", "import", "recipe.yaml", "all.jsonl.gz", *other]) == 0
    assert main(["-q", "label", "recipe.yaml", *other]) == 0
    assert server.count == asked
    assert (tmp_path / "labels.jsonl").read_bytes() == first


def test_a_flag_of_another_action_and_a_missing_word_are_refused(commands, capsys):
    assert main(["label", "status", "recipe.yaml", "--max-cost", "3"]) == 1
    assert "--max-cost is for dmoerm label run or categories, and this is status" in capsys.readouterr().err
    assert main(["label", "import", "recipe.yaml"]) == 1
    assert "expected a recipe and a judgement file, got 1" in capsys.readouterr().err


def test_a_run_without_an_answer_leaves_the_labels_of_an_earlier_one(commands, tmp_path, capsys):
    script, _ = commands
    assert main(["-q", *script[1][1:]]) == 0
    before = (tmp_path / "labels.jsonl").read_bytes()
    capsys.readouterr()
    assert main(["-q", "label", "recipe.yaml", "--max-requests", "0", "--set", "labeling.temperature=0.5"]) == 3
    assert "labels.jsonl is left as it was" in capsys.readouterr().out
    assert (tmp_path / "labels.jsonl").read_bytes() == before
