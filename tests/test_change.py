"""One part of a trained model trained anew, added or removed: what changes, what stays byte for byte, what is refused."""

import hashlib
import json
import re
import shutil

import pytest
from test_cli_verbs import RECIPE, TAXONOMY, comparison_rows, write

from dmoerm import RewardModel
from dmoerm.cli import main as cli
from dmoerm.errors import ConfigError, TrainingError
from dmoerm.modeling.verification import verify_artifact
from dmoerm.recipe import load_recipe
from dmoerm.training.change import Change, Part, change_model, parse_part

THIRD = """  - name: storytelling
    description: Stories.
    capabilities:
      - {name: pace, description: It moves.}
"""


def rows():
    """Forty comparisons of two categories, twenty of a third one, and labels of `warmth` that a later taxonomy knows."""
    made = comparison_rows(40, 1)
    for row in made:
        if row["category"] == "chitchat":
            row["labels"].append({**row["labels"][0], "capability": "warmth"})
    tales = comparison_rows(20, 2, prefix="t")
    for row in tales:
        row["category"] = "storytelling"
        row["prompt"] = row["prompt"].replace("explain the number", "tell a story").replace("tell me about your day", "tell a story of")
        row["labels"] = [{**row["labels"][0], "capability": "pace"}]
    return made, tales


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_encoder_folder):
    """A trained project, and the same project's later taxonomy with one more capability and one more category."""
    folder = tmp_path_factory.mktemp("change")
    made, tales = rows()
    write(folder / "comparisons.jsonl", made)
    write(folder / "more.jsonl", [*made, *tales])
    (folder / "recipe.yaml").write_text(RECIPE.format(backbone=tiny_encoder_folder), encoding="utf-8")
    (folder / "taxonomy.yaml").write_text(TAXONOMY, encoding="utf-8")
    wider = TAXONOMY.rstrip("\n") + "\n      - {name: warmth, description: It is warm.}\n"
    (folder / "wider.yaml").write_text(wider + THIRD, encoding="utf-8")
    assert cli.main(["-q", "train", str(folder / "recipe.yaml")]) == cli.DONE
    return folder


@pytest.fixture
def project(base, tmp_path):
    """A copy of the trained project, to be changed."""
    folder = tmp_path / "project"
    shutil.copytree(base, folder)
    return folder


def recipe_of(project, *overrides):
    return load_recipe(project / "recipe.yaml", ["taxonomy=wider.yaml", "data.comparisons=[more.jsonl]", *overrides])


def hashes(model):
    return {
        path.relative_to(model).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in model.rglob("*") if path.is_file()
    }


def changed_files(before, after):
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}


RECORDS = {"dmoerm.json", "README.md"}


def test_only_one_expert_changes_its_files_and_its_categorys_aggregator(project, capsys):
    before = hashes(project / "model")
    chat = RewardModel.from_pretrained(project / "model").score("tell me", ["good warm kind", "bad cold"], category="chitchat")
    recipe = ["train", str(project / "recipe.yaml"), "--only", "objective_qa/logic", "--set", "experts.learning_rate=0.01"]
    assert cli.main(["-q", *recipe]) == cli.DONE
    folder = "categories/objective_qa"
    allowed = {f"{folder}/experts/logic/adapter_model.safetensors", f"{folder}/aggregator.safetensors"}
    changed = changed_files(before, hashes(project / "model"))
    assert changed - RECORDS == allowed
    model = RewardModel.from_pretrained(project / "model")
    assert model.score("tell me", ["good warm kind", "bad cold"], category="chitchat") == chat
    assert model.metadata["lineage"][-1]["changes"] == [{"action": "train", "part": "objective_qa/logic"}]
    assert model.metadata["lineage"][-1]["parent_manifest_sha256"] == before["dmoerm.json"]
    assert "objective_qa" in capsys.readouterr().out
    assert verify_artifact(project / "model").problems == []


def test_only_one_category_leaves_router_and_the_other_categories(project):
    before = hashes(project / "model")
    recipe = load_recipe(project / "recipe.yaml", ["task_model.learning_rate=0.01"])
    change_model(recipe, [Change("train", Part("chitchat"))], quiet=True)
    changed = changed_files(before, hashes(project / "model")) - RECORDS
    assert changed
    assert all(name.startswith("categories/chitchat/") for name in changed)


def test_training_a_part_anew_on_the_same_recipe_and_data_gives_the_same_category(project):
    before = hashes(project / "model")
    change_model(load_recipe(project / "recipe.yaml"), [Change("train", Part("chitchat"))], quiet=True)
    assert changed_files(before, hashes(project / "model")) <= RECORDS


def test_a_capability_is_added_and_the_other_experts_stay(project):
    before = hashes(project / "model")
    change_model(recipe_of(project, "data.comparisons=[comparisons.jsonl]"), [Change("add", Part("chitchat", "warmth"))], quiet=True)
    model = RewardModel.from_pretrained(project / "model")
    assert model.inner["chitchat"].capabilities == ("empathy", "warmth")
    changed = changed_files(before, hashes(project / "model")) - RECORDS
    assert all(name.startswith(("categories/chitchat/experts/warmth/", "categories/chitchat/aggregator")) for name in changed)
    assert set(model.score("tell me", ["good"], category="chitchat")[0].capabilities) == {"empathy", "warmth"}


def test_a_category_is_added_and_the_router_learns_it(project, capsys):
    before = hashes(project / "model")
    flags = ["--set", "taxonomy=wider.yaml", "--set", "data.comparisons=[more.jsonl]"]
    assert cli.main(["-q", "add-category", str(project / "recipe.yaml"), "storytelling", *flags]) == cli.DONE
    model = RewardModel.from_pretrained(project / "model")
    assert "storytelling" in model.inner
    assert "storytelling" in model.router.categories
    changed = changed_files(before, hashes(project / "model")) - RECORDS
    assert all(name.startswith(("categories/storytelling/", "router/")) for name in changed)


def test_a_capability_is_removed(project):
    before = hashes(project / "model")
    assert cli.main(["-q", "remove", str(project / "recipe.yaml"), "objective_qa/logic"]) == cli.DONE
    model = RewardModel.from_pretrained(project / "model")
    assert model.inner["objective_qa"].capabilities == ("correctness",)
    changed = changed_files(before, hashes(project / "model")) - RECORDS
    assert all(name.startswith(("categories/objective_qa/experts/logic/", "categories/objective_qa/aggregator")) for name in changed)


def test_a_category_is_removed_and_its_prompts_go_elsewhere(project):
    before = hashes(project / "model")
    change_model(load_recipe(project / "recipe.yaml"), [Change("remove", Part("chitchat"))], quiet=True)
    model = RewardModel.from_pretrained(project / "model")
    assert set(model.inner) == {"objective_qa", "general"}
    assert "chitchat" not in model.router.categories
    assert model.score("tell me about your day", ["good warm kind"])[0].category in {"objective_qa", "general"}
    changed = changed_files(before, hashes(project / "model")) - RECORDS
    assert all(name.startswith(("categories/chitchat/", "router/")) for name in changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Change("add", Part("chitchat", "empathy")), "already has chitchat/empathy"),
        (Change("train", Part("storytelling")), "has no storytelling.*add-category RECIPE storytelling"),
        (Change("train", Part("chitchat", "warmth")), "has no chitchat/warmth.*add-capability RECIPE chitchat/warmth"),
        (Change("add", Part("storytelling", "pace")), "has no category storytelling"),
        (Change("remove", Part("general")), "general is the fallback"),
    ],
)
def test_what_cannot_be_changed_is_refused_with_the_command_that_can(base, change, message):
    with pytest.raises(ConfigError, match=re.compile(message, re.DOTALL)):
        change_model(recipe_of(base), [change], quiet=True)


def test_an_expert_of_another_shape_is_refused_and_the_model_stays(project):
    before = hashes(project / "model")
    with pytest.raises(ConfigError, match="rank: 4 in the model, 8 in the recipe"):
        change_model(load_recipe(project / "recipe.yaml", ["experts.rank=8"]), [Change("train", Part("chitchat", "empathy"))], quiet=True)
    assert hashes(project / "model") == before


def test_other_tokens_or_layers_than_the_models_are_refused(project):
    for override in ("backbone.max_length_tokens=32", "backbone.layers=2"):
        with pytest.raises(ConfigError, match="other weights, layers or tokens"):
            change_model(load_recipe(project / "recipe.yaml", [override]), [Change("train", Part("chitchat"))], quiet=True)


def test_an_expert_without_enough_labels_is_refused(project):
    with pytest.raises(TrainingError, match=r"chitchat/empathy: fewer labels than experts\.minimum_labels \(500\)"):
        change_model(
            load_recipe(project / "recipe.yaml", ["experts.minimum_labels=500"]), [Change("train", Part("chitchat", "empathy"))], quiet=True
        )


def test_a_taxonomy_that_lacks_a_part_of_the_model_is_refused(project):
    narrow = (project / "taxonomy.yaml").read_text().replace("      - {name: logic, description: It follows.}\n", "")
    (project / "taxonomy.yaml").write_text(narrow)
    with pytest.raises(ConfigError, match="taxonomy lacks objective_qa/logic"):
        change_model(load_recipe(project / "recipe.yaml"), [Change("train", Part("chitchat"))], quiet=True)


def test_parts_are_named_like_paths(base):
    taxonomy = recipe_of(base)
    from dmoerm.recipe import recipe_taxonomy

    known = recipe_taxonomy(taxonomy)
    assert parse_part("chitchat/warmth", known) == Part("chitchat", "warmth")
    assert str(parse_part("general", known)) == "general"
    with pytest.raises(ConfigError, match=r'no category "chitchatt".*chitchat'):
        parse_part("chitchatt", known)
    with pytest.raises(ConfigError, match=r'no capability "warmt" in chitchat.*warmth'):
        parse_part("chitchat/warmt", known)


def test_the_verbs_say_which_form_they_take(base, capsys):
    assert cli.main(["add-capability", str(base / "recipe.yaml"), "chitchat"]) == cli.FAILED
    assert "expected category/capability" in capsys.readouterr().err
    assert cli.main(["add-category", str(base / "recipe.yaml"), "chitchat/warmth"]) == cli.FAILED
    assert "expected the name of a category" in capsys.readouterr().err


def test_a_run_keeps_its_finished_phases_for_later_changes(base):
    assert (base / "model-run" / "finished-run.json").is_file()
    assert not (base / "model-run" / "run.json").exists()
    assert json.loads((base / "model-run" / "finished-run.json").read_text())["forced"] == []
    assert list((base / "model-run" / "checkpoints" / "chitchat").glob("phase1-fold-1-of-2-*/result/complete.json"))
