"""What people copy works: the scripts of examples/, the recipes, the code in README and docs, and the links between pages.

The scripts and the code run on a tiny model that the third script trains here.
"""

import json
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dmoerm.data.readers import read_comparisons
from dmoerm.errors import ArtifactError
from dmoerm.recipe import load_recipe
from dmoerm.records import CapabilityLabel

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = {path.name for path in EXAMPLES.glob("*.py")}

TASKS = {
    "chitchat": ("we talk about {} today", "empathy_ability", 10),
    "objective_qa": ("how many {} are there in the world", "correctness", 40),
}
THINGS = "bird dog door city tree house friend river song word egg fish car book child".split()
GOOD, BAD = "yes i see that is a good question", "no never stop this"


def rows():
    """Labelled comparisons, in one category too few for a model of its own; the good answer comes first or second by turns."""
    shuffled = random.Random(0)
    for category, (prompt, capability, count) in TASKS.items():
        for number in range(count):
            thing = THINGS[number % len(THINGS)]
            good = f"{GOOD} the {thing} is {shuffled.choice(THINGS)}"
            bad = f"{BAD} {shuffled.choice(THINGS)}"
            first_is_good = number % 2 == 0
            ranks = [1, 2] if first_is_good else [2, 1]
            yield {
                "id": f"{category}-{number}",
                "prompt": f"{prompt.format(thing)} {number}",
                "responses": [good, bad] if first_is_good else [bad, good],
                "ranks": ranks,
                "category": category,
                "capability_ranks": {capability: ranks},
            }


def run_example(name, arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def trained(tiny_encoder_folder, tmp_path_factory):
    """What 03_train_from_python.py makes of the rows: the model's folder."""
    folder = tmp_path_factory.mktemp("examples")
    comparisons = folder / "comparisons.jsonl"
    comparisons.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["03_train_from_python.py", str(comparisons), str(folder / "model"), str(tiny_encoder_folder)])
        runpy.run_path(str(EXAMPLES / "03_train_from_python.py"), run_name="__main__")
    return folder / "model"


def test_every_example_is_run_here():
    assert SCRIPTS == {
        "01_score.py", "02_compare.py", "03_train_from_python.py", "04_trl_grpo.py", "05_openrlhf_reward.py", "06_verl_reward.py",
        "07_every_dialect.py", "08_openrlhf_remote.py",  # in test_serving_process.py, where a server is
    }  # fmt: skip


def test_training_from_python_writes_a_model_with_experts(trained):
    manifest = json.loads((trained / "dmoerm.json").read_text(encoding="utf-8"))
    capabilities = {name: entry["capabilities"] for name, entry in manifest["categories"].items()}
    assert capabilities == {"objective_qa": ["correctness"], "general": ["correctness"]}


def test_score_prints_a_reward_a_category_and_capabilities_for_both_responses(trained, monkeypatch, capsys):
    printed = run_example("01_score.py", [trained], monkeypatch, capsys)
    assert len(re.findall(r"^  reward [+-]\d+\.\d{3} \(± \d+\.\d{3} ", printed, re.MULTILINE)) == 2
    assert len(re.findall(r"^  judged as (objective_qa|general), router's probability [01]\.\d\d$", printed, re.MULTILINE)) == 2
    assert re.search(r"^  correctness +[+-]\d+\.\d\d$", printed, re.MULTILINE)


def test_compare_ranks_three_responses_and_the_winner_is_at_least_as_likely(trained, monkeypatch, capsys):
    printed = run_example("02_compare.py", [trained], monkeypatch, capsys)
    ranking = re.search(r"^from best to worst: ([ABC]) \((.+?)\) > ([ABC]) \((.+?)\) > ([ABC]) \((.+?)\)$", printed, re.MULTILINE)
    assert sorted(ranking.group(1, 3, 5)) == ["A", "B", "C"]
    assert float(ranking.group(2)) >= float(ranking.group(4)) >= float(ranking.group(6))
    assert float(re.search(r"with probability (\d\.\d\d)", printed).group(1)) >= 0.5


@pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning")  # trl 1.16 under transformers 5.24
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found:UserWarning")
def test_grpo_logs_the_reward_or_the_weighted_capabilities(trained, tiny_policy_folder, monkeypatch, capsys):
    pytest.importorskip("trl")
    printed = run_example("04_trl_grpo.py", [trained, tiny_policy_folder], monkeypatch, capsys)
    steps = re.findall(r"^step (\d): .*rewards/dmoerm/mean -?\d+\.\d+.*dmoerm/uncertainty \d", printed, re.MULTILINE)
    assert steps == ["1", "2"]
    printed = run_example("04_trl_grpo.py", [trained, tiny_policy_folder, "correctness=0.5"], monkeypatch, capsys)
    assert re.search(r"^step 2: rewards/correctness/mean -?\d", printed, re.MULTILINE)


@pytest.mark.parametrize("name", ["05_openrlhf_reward.py", "06_verl_reward.py"])
def test_the_reward_files_of_other_trainers_score_their_sample(name, trained, monkeypatch, capsys):
    from dmoerm import RewardModel

    monkeypatch.setenv("DMOERM_MODEL", str(trained))
    printed = run_example(name, [], monkeypatch, capsys)
    found = float(re.search(r"(?:rewards \[|score )(-?\d+\.\d+)", printed).group(1))
    (reward,) = RewardModel.from_pretrained(trained).score("Why is the sky blue?", ["Air scatters blue light more than red."])
    assert found == pytest.approx(reward.reward, abs=1e-3)


def test_the_overoptimize_recipe_uses_flags_that_there_are(tmp_path):
    """The script is run with a dmoerm that only says how it was called."""
    from dmoerm.cli.main import build_parser

    echo = tmp_path / "dmoerm"
    echo.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n", encoding="utf-8")
    echo.chmod(0o755)
    script = EXAMPLES.parent / "recipes" / "overoptimize_one_gpu.sh"
    found = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GOLD": "gold", "PROMPTS": "prompts.jsonl"}
    words = subprocess.run(["bash", script, "model", "other"], env=found, capture_output=True, text=True, check=True).stdout.split()
    args = build_parser(["overoptimize"]).parse_args(words)
    assert (args.models, args.gold, str(args.prompts), args.lora, args.resume) == (["model", "other"], "gold", "prompts.jsonl", 32, False)
    without_gold = subprocess.run(["bash", script, "model"], env={**found, "GOLD": ""}, capture_output=True, text=True)
    assert without_gold.returncode != 0
    assert "name a gold reward model" in without_gold.stderr


@pytest.mark.parametrize("path", sorted((EXAMPLES.parent / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_loads_with_its_files_named(path):
    recipe = load_recipe(path, check_files=False)
    assert recipe.data.comparisons == (path.parent / "comparisons.jsonl",)


def code_blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (EXAMPLES.parent / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_five_lines_of_the_readme_run(trained, capsys):
    (code,) = code_blocks("README.md", "python")
    exec(code.replace("quickstart/model", str(trained)), {})
    assert re.match(r"-?\d+\.\d+ (objective_qa|general) \{'correctness': ", capsys.readouterr().out)


def test_the_check_of_the_artifact_page_finds_a_changed_file(trained, tmp_path):
    (code,) = code_blocks("docs/artifact.md", "python")
    model = shutil.copytree(trained, tmp_path / "model")
    code = code.replace('"my-model"', repr(str(model)))
    exec(code, {})
    (model / "tokenizer" / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"tokenizer/tokenizer\.json has changed since it was saved"):
        exec(code, {})


def test_the_native_row_of_the_data_page_is_read(tmp_path):
    (row,) = code_blocks("docs/data.md", "json")
    (tmp_path / "row.jsonl").write_text(json.dumps(json.loads(row)) + "\n", encoding="utf-8")
    result = read_comparisons(tmp_path / "row.jsonl")
    assert result.format == "native"
    assert result.comparisons[0].labels == (CapabilityLabel("correctness", preferred=0, other=1),)


@pytest.mark.parametrize("page", sorted([*EXAMPLES.parent.glob("*.md"), *(EXAMPLES.parent / "docs").glob("*.md")]), ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
