"""A judge with known faults, asked through the real client: the report finds its bias and its noise."""

import json

import pytest
from fake_judge import ScriptedJudge
from fake_openai import FakeOpenAI

from dmoerm.cli.main import main


@pytest.fixture
def report(tmp_path, capsys):
    """Labels `pairs` pairs by a scripted judge and gives the report as data."""

    def run(judge, pairs, **labeling):
        rows = [
            {
                "prompt": f"Question {number}?",
                "responses": [f"one way to say {number} [quality {0.9 - 0.6 * (number % 2)}]", f"another way {number} [quality 0.6]"],
                "ranks": [1 + number % 2, 2 - number % 2],
                "category": "objective_qa",
            }
            for number in range(pairs)
        ]
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        with FakeOpenAI(judge) as server:
            options = {"base_url": server.base_url, "model": "judge", "api_key_env": None, "canaries": False, **labeling}
            recipe = {"data": {"comparisons": ["pairs.jsonl"], "test_fraction": 0.0}, "labeling": options}
            (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
            assert main(["-q", "label", str(tmp_path / "recipe.yaml")]) == 0
            assert server.count == server.distinct
        capsys.readouterr()
        assert main(["label", "report", str(tmp_path / "recipe.yaml"), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_the_report_recovers_a_bias_of_30_and_a_noise_of_20_per_cent(report):
    found = report(ScriptedJudge(position_bias=0.3, noise=0.2, seed=4), 150, calls="all_capabilities")
    judge = found["judges"][0]
    for row in (judge["overall"], judge["all_capabilities"]):
        bias, noise = row["position"]["bias"], row["position"]["noise"]
        assert bias["low"] < 0.3 < bias["high"]
        assert noise["low"] < 0.2 < noise["high"]
    # Six capabilities on 150 pairs say more than one verdict on each.
    capabilities, overall = (judge[name]["position"]["bias"] for name in ("all_capabilities", "overall"))
    assert capabilities["high"] - capabilities["low"] < 0.7 * (overall["high"] - overall["low"])


def test_a_judge_without_faults_has_none_and_keeps_every_label(report):
    found = report(ScriptedJudge(), 60, calls="all_capabilities")["judges"][0]
    assert found["all_capabilities"]["kept"]["value"] == 1.0
    assert found["all_capabilities"]["consistency"]["value"] == 1.0
    assert found["all_capabilities"]["position"]["bias"]["value"] == 0.0
    assert found["overall"]["people"]["value"] == 1.0
