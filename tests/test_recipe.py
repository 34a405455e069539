"""A recipe is read strictly, completed from one set of defaults, and refused with line and advice."""

import re

import pytest

from dmoerm.errors import ConfigError
from dmoerm.recipe import PAPER_SCHEDULE, DataOptions, LabelingOptions, Recipe, dump_recipe, load_recipe, recipe_hash, recipe_taxonomy
from dmoerm.taxonomy import paper_taxonomy, paper_taxonomy_text

MINIMAL = "data:\n  comparisons: [train.jsonl]\n"


@pytest.fixture
def recipe_file(tmp_path):
    (tmp_path / "train.jsonl").write_text("")

    def write(text=MINIMAL):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_one_file_of_comparisons_is_a_whole_recipe(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file())
    labeling = LabelingOptions(store=tmp_path / "labels.db", output=tmp_path / "labels.jsonl", categories=tmp_path / "categories.jsonl")
    assert recipe == Recipe(data=DataOptions(comparisons=(tmp_path / "train.jsonl",)), output=tmp_path / "model", labeling=labeling)


@pytest.mark.faults("F39")
def test_relative_paths_start_at_the_folder_of_the_recipe(recipe_file, tmp_path, monkeypatch):
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "recipe.yaml").write_text(
        "output: ./out\ntaxonomy: ../t.yaml\ndata: {comparisons: [../train.jsonl]}\nbackbone: {name: ../bb}\n"
    )
    recipe_file()
    (tmp_path / "t.yaml").write_text(paper_taxonomy_text(), encoding="utf-8")
    (tmp_path / "bb").mkdir()
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("inner/recipe.yaml")
    assert recipe.data.comparisons == (tmp_path / "train.jsonl",)
    assert recipe.taxonomy == tmp_path / "t.yaml"
    assert recipe.output == inner / "out"
    assert recipe.backbone.name == str(tmp_path / "bb")
    assert recipe_taxonomy(recipe) == paper_taxonomy()


def test_an_absolute_path_and_a_hub_id_stay_as_they_are(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file(f"data: {{comparisons: ['{tmp_path}/train.jsonl']}}\nbackbone: {{name: some-org/some-model}}\n"))
    assert recipe.data.comparisons == (tmp_path / "train.jsonl",)
    assert recipe.backbone.name == "some-org/some-model"


def test_a_section_with_nothing_below_it_has_its_defaults(recipe_file):
    assert load_recipe(recipe_file(MINIMAL + "experts:\nrouter:\n")) == load_recipe(recipe_file())


@pytest.mark.faults("F39")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("experts: {learning_rte: 1e-5}", r'recipe\.yaml:3: unknown key "learning_rte" in experts, did you mean "learning_rate"\?'),
        ("exprts: {rank: 3}", r'recipe\.yaml:3: unknown key "exprts", did you mean "experts"\?'),
        ("rank: 3", r'recipe\.yaml:3: unknown key "rank"; it belongs under task_model or experts'),
        ("experts: {learning_rate: fast}", r'recipe\.yaml:3: experts\.learning_rate is "fast"; expected a number above 0$'),
        ("experts: {learning_rate: '5e-5'}", r'experts\.learning_rate is "5e-5"; expected a number above 0\. Take away the quotes'),
        ("experts: {learning_rate: 0}", r"experts\.learning_rate is 0; expected a number above 0"),
        ("experts: {learning_rate: .inf}", r"experts\.learning_rate is \.inf; expected a number above 0"),
        ("experts: {depth: half}", r'experts\.depth is "half"; expected a whole number of at least 1 or "all", "third" or "sixth"'),
        ("experts: {rank: true}", r"experts\.rank is true; expected a whole number of at least 1"),
        ("experts: {rank: 4.5}", r"experts\.rank is 4\.5; expected a whole number of at least 1"),
        ("training: {gradient_checkpointing: no}", r'gradient_checkpointing is "no"; expected true or false$'),
        ("backbone: {revision: 123}", r"backbone\.revision is 123; expected text or null\. Put it in quotes"),
        ("training: {report_to: tensorboard}", r"expected a list of texts\. Put it in brackets: \[tensorboard\]"),
        (
            "evaluation: {baselines: [length, rndom]}",
            r'evaluation\.baselines\[1\] is "rndom"; expected an entry of a list of "random", "length"',
        ),
        ("experts: 3", r"recipe\.yaml:3: experts is 3; expected a group with the keys depth, rank"),
        ("aggregator: {cross_fit_folds: 1}", r"cross_fit_folds is 1; expected a whole number of at least 2 or null"),
        ("seed: -1", r"recipe\.yaml:3: seed is -1; expected a whole number of at least 0"),
    ],
)
def test_a_wrong_line_is_refused_with_place_value_and_expectation(recipe_file, line, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe_file(MINIMAL + line + "\n"))


def test_all_problems_come_together_in_the_order_of_the_file(recipe_file):
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe_file("seed: x\n" + MINIMAL + "router: {epochs: 0}\nbackbone: {nme: y}\n"))
    assert [line.split("recipe.yaml:")[1].split(":")[0] for line in str(caught.value).splitlines()] == ["1", "4", "5"]


@pytest.mark.parametrize("text", ["", "seed: 1\n", "data:\n", "data: {comparisons: []}\n"])
def test_a_recipe_without_comparisons_is_refused(recipe_file, text):
    with pytest.raises(
        ConfigError, match=r"(data is missing; expected a group with the keys comparisons|comparisons is .*at least one entry)"
    ):
        load_recipe(recipe_file(text))


def test_a_recipe_that_is_a_list_is_refused(recipe_file):
    with pytest.raises(ConfigError, match=r'expected lines of the form "key: value", got \[1, 2\]'):
        load_recipe(recipe_file("- 1\n- 2\n"))


@pytest.mark.faults("F39")
def test_missing_files_are_refused_with_their_lines(recipe_file):
    path = recipe_file("taxonomy: t.yaml\ndata:\n  comparisons:\n    - train.jsonl\n    - gone.jsonl\nbackbone: {name: ./bb}\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert re.search(r"recipe\.yaml:5: data\.comparisons names .*gone\.jsonl, which is not a file", str(caught.value))
    assert re.search(r"recipe\.yaml:1: taxonomy names .*t\.yaml, which is not a file", str(caught.value))
    assert re.search(r"recipe\.yaml:6: backbone\.name is .*bb, which is not a folder", str(caught.value))
    assert load_recipe(path, check_files=False).data.comparisons[1].name == "gone.jsonl"


def test_a_wrong_taxonomy_file_stops_the_recipe(recipe_file, tmp_path):
    (tmp_path / "t.yaml").write_text("categories: []\n")
    with pytest.raises(ConfigError, match=r"t\.yaml:1: categories is \[\]"):
        load_recipe(recipe_file("taxonomy: t.yaml\n" + MINIMAL))


def test_the_same_file_for_training_and_test_is_refused_unless_overlap_is_allowed(recipe_file):
    text = MINIMAL + "  test: [./train.jsonl]\n"
    with pytest.raises(ConfigError, match=r"recipe\.yaml:3: .*train\.jsonl is in data\.test and in data\.comparisons"):
        load_recipe(recipe_file(text))
    assert load_recipe(recipe_file(text + "  allow_overlap: true\n")).data.allow_overlap


def test_a_file_named_twice_is_refused(recipe_file):
    with pytest.raises(ConfigError, match=r"data\.comparisons names .*train\.jsonl twice"):
        load_recipe(recipe_file("data: {comparisons: [train.jsonl, ./train.jsonl]}\n"))


def test_an_override_replaces_adds_and_is_read_as_strict_yaml(recipe_file):
    path = recipe_file("seed: 1\n" + MINIMAL)
    recipe = load_recipe(path, ["seed=2", "experts.learning_rate=5e-5", "aggregator.cross_fit_folds=null", "data.labels=[train.jsonl]"])
    assert recipe.seed == 2
    assert recipe.experts.learning_rate == 5e-5
    assert recipe.aggregator.cross_fit_folds is None
    assert recipe.data.labels == recipe.data.comparisons


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("experts.learning_rte=1", r'^--set experts\.learning_rte=1: unknown key "learning_rte" in experts, did you mean'),
        ("experts.rank=many", r'^--set experts\.rank=many: experts\.rank is "many"; expected a whole number'),
        ("experts.rank", r"^--set experts\.rank: expected section\.key=value"),
        ("experts..rank=3", r"expected section\.key=value"),
        ("seed.deep=3", r"^--set seed\.deep=3: there is no key below 1; expected section\.key=value"),
        ("seed=[", r"^--set seed=\[:1: not valid YAML"),
    ],
)
def test_a_wrong_override_is_named_as_it_was_typed(recipe_file, override, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe_file("seed: 1\n" + MINIMAL), [override])


def test_the_paper_schedule_sets_every_value_of_the_paper(recipe_file):
    recipe = load_recipe(recipe_file("schedule: paper\n" + MINIMAL))
    assert (recipe.task_model.kind, recipe.task_model.depth) == ("full", "all")
    assert (recipe.experts.depth, recipe.experts.rank, recipe.experts.alpha, recipe.experts.dropout) == ("all", 32, 32, 0.05)
    assert (recipe.aggregator.cross_fit_folds, recipe.aggregator.holdout_fraction) == (None, 0.4)
    assert recipe.aggregator.hidden_size == "hidden"


def test_the_paper_schedule_agrees_with_the_same_value_and_refuses_another_one(recipe_file):
    load_recipe(recipe_file("schedule: paper\n" + MINIMAL + "experts: {rank: 32, alpha: 32.0}\n"))
    with pytest.raises(ConfigError, match=r"recipe\.yaml:4: experts\.rank is 64, but schedule paper means 32\. Take away this line"):
        load_recipe(recipe_file("schedule: paper\n" + MINIMAL + "experts: {rank: 64}\n"))
    with pytest.raises(ConfigError, match=r"^--set aggregator\.cross_fit_folds=3: .* but schedule paper means null"):
        load_recipe(recipe_file("schedule: paper\n" + MINIMAL), ["aggregator.cross_fit_folds=3"])


def test_a_recipe_built_in_python_cannot_claim_the_paper_schedule_with_other_values():
    with pytest.raises(ValueError, match=r"schedule paper needs backbone\.layers: all"):
        Recipe(schedule="paper", data=DataOptions(comparisons=("a.jsonl",)))
    assert Recipe.model_validate({"schedule": "paper", "data": {"comparisons": ["a.jsonl"]}, **PAPER_SCHEDULE}).experts.rank == 32


@pytest.mark.parametrize("schedule", ["crossfit", "paper"])
def test_a_dumped_recipe_loads_to_an_equal_recipe_with_the_same_hash(recipe_file, tmp_path, schedule):
    recipe = load_recipe(recipe_file(f"schedule: {schedule}\n" + MINIMAL + "backbone: {revision: '1e-5'}\n"))
    dumped = tmp_path / "resolved.yaml"
    dumped.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(dumped) == recipe
    assert recipe_hash(load_recipe(dumped)) == recipe_hash(recipe)


def test_the_hash_knows_every_value_but_the_output(recipe_file):
    path = recipe_file()
    base = recipe_hash(load_recipe(path))
    assert re.fullmatch(r"[0-9a-f]{12}", base)
    assert recipe_hash(load_recipe(path, ["output=elsewhere"])) == base
    assert recipe_hash(load_recipe(path, ["experts.alpha=32"])) == base  # the default, written as a whole number
    assert recipe_hash(load_recipe(path, ["seed=1"])) != base
    assert recipe_hash(load_recipe(path, ["evaluation.confidence=0.9"])) != base


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Recipe(data=DataOptions(comparisons=("a.jsonl",))).seed = 3
