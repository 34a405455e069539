"""The data of a recipe: formats by name, aspects to capabilities, categories in Chinese, and how much may be bad."""

import json
from pathlib import Path

import pytest

from dmoerm.data.plan import plan_run
from dmoerm.data.sources import load_run_data
from dmoerm.errors import ConfigError, DataError
from dmoerm.recipe import dump_recipe, load_recipe
from dmoerm.records import CapabilityLabel

FIXTURES = Path(__file__).parent / "fixtures" / "formats"
ROW = {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [1, 2, 3]}


@pytest.fixture
def recipe(tmp_path):
    """Load a recipe with this `data` section; files are written beside it, and nothing is held out."""

    def make(data, files=(), *, check_files=True):
        for name, rows in dict(files).items():
            (tmp_path / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        path = tmp_path / "recipe.yaml"
        path.write_text(f"data:\n  test_fraction: 0.0\n{data}", encoding="utf-8")
        return load_recipe(path, check_files=check_files)

    return make


def labels(data):
    return [comparison.labels for comparison in data.comparisons]


def ranked(**aspects):
    return {**ROW, "capability_ranks": aspects}


def test_aspects_count_to_the_capabilities_that_the_recipe_names(recipe):
    found = load_run_data(
        recipe(
            f"  comparisons: ['{FIXTURES}/helpsteer2.jsonl']\n"
            "  aspects: {correctness: correctness, coherence: logic, helpfulness: null, complexity: null, verbosity: null}\n"
        )
    )
    parser, basil = labels(found)
    assert parser == (CapabilityLabel("correctness", 0, 1),)  # coherence is 4 and 4, helpfulness counts to nothing
    assert basil == (CapabilityLabel("correctness", 0, 1), CapabilityLabel("logic", 0, 1))
    assert parser[0].capability in found.taxonomy.capability_names


def test_without_a_table_an_aspect_counts_to_the_capability_of_its_name_and_others_are_reported(recipe):
    made = recipe(f"  comparisons: ['{FIXTURES}/helpsteer2.jsonl']\n")
    found = load_run_data(made)
    assert [label.capability for label in labels(found)[0]] == ["helpfulness", "correctness", "complexity", "verbosity"]
    (warning,) = [line for line in plan_run(made, found).warnings if line.startswith("labels of capabilities")]
    assert "helpfulness (1), complexity (1), verbosity (1)" in warning.replace("coherence (1), ", "")
    assert "correctness" not in warning
    assert "Map them in data.aspects" in warning


def test_two_aspects_of_one_capability_give_one_label_and_none_where_they_disagree(recipe):
    # honest and truthful agree that 0 beats 1; they disagree on 0 and 2; on 1 and 2 only honest differs.
    made = recipe(
        "  comparisons: [a.jsonl]\n  aspects: {honest: correctness, truthful: correctness}\n",
        {"a.jsonl": [ranked(honest=[2, 3, 1], truthful=[1, 2, 2])]},
    )
    assert set(labels(load_run_data(made))[0]) == {CapabilityLabel("correctness", 0, 1), CapabilityLabel("correctness", 2, 1)}


@pytest.mark.faults("F03")
def test_an_aspect_that_no_file_has_and_a_capability_that_the_taxonomy_lacks_are_refused(recipe):
    files = {"a.jsonl": [ranked(honesty=[1, 2, 3])]}
    with pytest.raises(DataError, match=r'data\.aspects maps "honsty", but no label of the files has that name, did you mean "honesty"'):
        load_run_data(recipe("  comparisons: [a.jsonl]\n  aspects: {honsty: objectiveness}\n", files))
    with pytest.raises(DataError, match="they carry no labels at all"):
        load_run_data(recipe("  comparisons: [a.jsonl]\n  aspects: {honesty: objectiveness}\n", {"a.jsonl": [ROW]}))
    with pytest.raises(ConfigError, match=r'recipe\.yaml:5: .*"honesty" to "objectivness", which is no capability .*"objectiveness"'):
        recipe("  comparisons: [a.jsonl]\n  aspects:\n    honesty: objectivness\n", files)
    with pytest.raises(ConfigError, match=r'data\.aspects maps "overall", which is the verdict on the whole response'):
        recipe("  comparisons: [a.jsonl]\n  aspects: {overall: correctness}\n", files)
    with pytest.raises(ConfigError, match=r"data\.aspects\.honesty is 3; expected lines of the form NAME: VALUE, each value text or null"):
        recipe("  comparisons: [a.jsonl]\n  aspects: {honesty: 3}\n", files)


def test_the_format_of_one_file_can_be_named(recipe, tmp_path):
    text = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    files = {"a.jsonl": [text], "b.jsonl": [{"prompt": "x", "chosen": "y", "rejected": "z"}]}
    made = recipe("  comparisons: [a.jsonl, b.jsonl]\n  formats: {./a.jsonl: trl}\n", files)
    assert load_run_data(made).formats == {str(tmp_path / "a.jsonl"): "trl", str(tmp_path / "b.jsonl"): "trl"}
    assert load_run_data(recipe("  comparisons: [a.jsonl, b.jsonl]\n")).formats[str(tmp_path / "a.jsonl")] == "hh"
    with pytest.raises(DataError, match=r'b\.jsonl:1: "responses" is missing'):
        load_run_data(recipe("  comparisons: [a.jsonl, b.jsonl]\n  formats: {b.jsonl: native}\n"))
    with pytest.raises(ConfigError, match=r"recipe\.yaml:4: data\.formats names c\.jsonl, which is in none of data\.comparisons"):
        recipe("  comparisons: [a.jsonl, b.jsonl]\n  formats: {c.jsonl: native}\n")
    with pytest.raises(ConfigError, match=r'data\.formats\.a\.jsonl is "hhh"; expected lines of the form NAME: VALUE, each value "native"'):
        recipe("  comparisons: [a.jsonl]\n  formats: {a.jsonl: hhh}\n")


def test_a_recipe_with_named_formats_and_aspects_is_dumped_and_loaded_to_the_same(recipe, tmp_path):
    data = "  comparisons: [a.jsonl, 'hub:org/name@v1:easy:train']\n  formats: {a.jsonl: mtmc, 'hub:org/name@v1:easy:train': trl}\n"
    made = recipe(data + "  aspects: {honesty: objectiveness, tone: null}\n  rank_order: larger_is_better\n", {"a.jsonl": []})
    assert [str(path) for path in made.data.comparisons] == [str(tmp_path / "a.jsonl"), "hub:org/name@v1:easy:train"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "dumped.yaml").write_text(dump_recipe(made), encoding="utf-8")
    assert load_recipe(tmp_path / "other" / "dumped.yaml") == made


def test_a_malformed_hub_name_and_a_missing_hub_folder_stop_with_their_lines(recipe):
    with pytest.raises(ConfigError, match=r'recipe\.yaml:3: "hub:name" names no data set; expected hub:ORG/NAME'):
        recipe("  comparisons: ['hub:name']\n")
    with pytest.raises(ConfigError, match=r"recipe\.yaml:3: data\.comparisons names .*/nothing, which is not a folder"):
        recipe("  comparisons: ['hub:./nothing:easy']\n")


def test_a_hub_folder_beside_the_recipe_is_read_and_counted(recipe, tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"prompt": "x", "chosen": "y", "rejected": "z"}\n')
    made = recipe("  comparisons: ['hub:./set']\n")
    (file,) = plan_run(made).files
    assert (file.path, file.format, file.train) == (f"hub:{tmp_path}/set", "trl", 1)


def test_chinese_labels_of_mtmc_become_categories_and_unknown_ones_are_left_to_the_router(recipe):
    found = load_run_data(recipe(f"  comparisons: ['{FIXTURES}/mtmc.jsonl']\n"))
    assert [comparison.category for comparison in found.comparisons] == ["chitchat", "objective_qa", None]
    assert found.notes['labels of the unknown category "其他" (the router decides instead)'] == 1
    assert found.comparisons[0].ranks == (1, 3, 2)
    turned = load_run_data(recipe(f"  comparisons: ['{FIXTURES}/mtmc.jsonl']\n  rank_order: larger_is_better\n"))
    assert turned.comparisons[0].ranks == (3, 1, 2)


def test_an_unknown_category_of_any_other_format_stops(recipe):
    with pytest.raises(DataError, match=r'a\.jsonl:1: category "chitchatt" is not in the taxonomy, did you mean "chitchat"'):
        load_run_data(recipe("  comparisons: [a.jsonl]\n", {"a.jsonl": [{**ROW, "category": "chitchatt"}]}))
    found = load_run_data(recipe("  comparisons: [a.jsonl]\n", {"a.jsonl": [{**ROW, "category": "闲聊"}]}))
    assert found.comparisons[0].category == "chitchat"


@pytest.mark.faults("F01")
@pytest.mark.faults("F06")
def test_more_bad_rows_than_the_limit_stop_although_they_may_be_skipped(recipe, tmp_path):
    good = [{**ROW, "prompt": str(number)} for number in range(98)]
    bad = [{**ROW, "responses": ["a", " ", "c"]}, {**ROW, "ranks": [1]}]
    data = "  comparisons: [a.jsonl]\n  bad_rows: skip\n"
    made = recipe(data, {"a.jsonl": [*good, *bad]})
    with pytest.raises(
        DataError, match=r"2 of 100 rows were bad, more than data\.max_drop_fraction \(0\.01\): .*a\.jsonl \(2\).*raise that limit"
    ):
        load_run_data(made)
    found = load_run_data(recipe(data + "  max_drop_fraction: 0.02\n"))
    assert (len(found.comparisons), found.notes["rows rejected"]) == (98, 2)
    assert len((tmp_path / "a.rejected.jsonl").read_text().splitlines()) == 2
    assert load_run_data(recipe(data, {"a.jsonl": [*good, {**ROW, "prompt": "98"}, bad[0]]})).notes["rows rejected"] == 1


def test_skipped_rows_of_prompt_files_are_counted_too(recipe):
    files = {"a.jsonl": [ROW], "p.jsonl": [{"prompt": "x", "category": "闲聊"}, {"prompt": "y"}]}
    made = recipe("  comparisons: [a.jsonl]\n  prompts: [p.jsonl]\n  bad_rows: skip\n  max_drop_fraction: 0.5\n", files)
    found = load_run_data(made)
    assert [category for _, category in found.prompts] == ["chitchat"]
    assert found.notes["rows rejected"] == 1


def test_rows_without_a_comparison_are_counted_and_are_no_bad_rows(recipe):
    found = load_run_data(recipe(f"  comparisons: ['{FIXTURES}/arena.jsonl']\n"))
    assert len(found.comparisons) == 3
    (reason,) = [note for note in found.notes if note.startswith("rows without a comparison: several turns")]
    assert found.notes[reason] == 1


def test_comparisons_of_three_files_with_one_name_keep_apart(recipe, tmp_path):
    for folder in "abc":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.jsonl").write_text(json.dumps({**ROW, "prompt": folder}) + "\n")
    found = load_run_data(recipe("  comparisons: [a/t.jsonl, b/t.jsonl, c/t.jsonl]\n"))
    assert len({comparison.id for comparison in found.comparisons}) == 3


@pytest.mark.faults("F06")
def test_what_cannot_be_rendered_is_counted_up_to_the_limit_and_stops_the_run_above_it(recipe, tiny_encoder_folder):
    import dataclasses
    import io

    from dmoerm.errors import TrainingError
    from dmoerm.training.checkpoints import RunState
    from dmoerm.training.pipeline import load_backbone, prepare
    from dmoerm.training.progress import RunLog

    rows = [{"prompt": f"say {number}", "responses": ["good " * 40, "bad"], "ranks": [1, 2]} for number in range(20)]
    backbone = f"backbone: {{name: '{tiny_encoder_folder}', max_length_tokens: 16}}\n"
    made = recipe(f"  comparisons: [a.jsonl]\n  max_drop_fraction: 0.05\n{backbone}", {"a.jsonl": rows})
    whole = load_run_data(made).comparisons
    # Readers refuse an empty response; one built in Python, or one that the tokenizer swallows, is met here.
    blank = [dataclasses.replace(comparison, responses=("good", " ")) for comparison in whole[:2]]
    said = io.StringIO()
    loaded, renderer = load_backbone(made)
    parts = {"backbone": loaded, "renderer": renderer, "state": RunState(None)}
    prepared = prepare([blank[0], *whole[1:]], [], made, RunLog(None, stream=said), **parts)
    assert len(prepared.comparisons) == 19
    assert [line.split() for line in said.getvalue().splitlines()[1:]] == [
        ["kept", "38"],
        ["prompt", "cut", "0"],
        ["response", "cut", "19"],
        ["dropped", "2"],
        [*"Response N of N is empty".split(), "2"],
    ]
    message = r"2 of 20 comparisons cannot be rendered, more than data\.max_drop_fraction \(0\.05\)(.|\n)*Response N of N is empty +4"
    with pytest.raises(TrainingError, match=message):
        prepare([*blank, *whole[2:]], [], made, RunLog(None, quiet=True), **parts)


def test_an_id_that_stands_for_other_texts_in_a_label_file_is_renamed_and_an_equal_one_kept(recipe):
    label = [{"capability": "logic", "preferred": 0, "other": 1}]
    own = {"id": "7", "prompt": "x", "responses": ["a", "b"], "ranks": [1, 2], "labels": label}
    other = {"id": "8", "prompt": "x", "responses": ["c", "d"], "ranks": [1, 2], "labels": label}
    files = {"a.jsonl": [{**own, "labels": []}, {**own, "id": "8", "prompt": "y"}], "judged.jsonl": [own, other]}
    data = load_run_data(recipe("  comparisons: [a.jsonl]\n  labels: [judged.jsonl]\n", files))
    assert [comparison.id for comparison in data.labels] == ["7", "judged/8"]


def test_what_the_judge_has_written_is_read_as_labels_once_it_is_there(tmp_path):
    row = {"prompt": "x", "responses": ["a", "b"], "ranks": [1, 2]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(
        "data: {comparisons: [a.jsonl], test_fraction: 0.0}\nlabeling: {model: judge}\n", encoding="utf-8"
    )
    assert load_run_data(load_recipe(tmp_path / "recipe.yaml")).labels == ()
    labelled = {**row, "labels": [{"capability": "logic", "preferred": 0, "other": 1, "probability": 0.75}]}
    (tmp_path / "labels.jsonl").write_text(json.dumps(labelled) + "\n", encoding="utf-8")
    (found,) = load_run_data(load_recipe(tmp_path / "recipe.yaml")).labels
    assert found.labels[0].probability == 0.75
