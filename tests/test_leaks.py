"""What a run makes of its files: what is dropped is counted, and a test prompt that is also trained on stops it."""

import json

import pytest

from dmoerm.data.sources import load_run_data
from dmoerm.errors import DataError
from dmoerm.recipe import load_recipe


def row(number, chosen="good", rejected="bad"):
    return {"prompt": f"prompt {number}", "chosen": chosen, "rejected": rejected}


@pytest.fixture
def data_of(tmp_path):
    def build(*overrides, **files):
        for name, rows in files.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows), encoding="utf-8")
        lists = ", ".join(f"{name}: [{name}.jsonl]" for name in files)
        (tmp_path / "recipe.yaml").write_text(f"data: {{{lists}}}\n", encoding="utf-8")
        return load_run_data(load_recipe(tmp_path / "recipe.yaml", overrides))

    return build


@pytest.mark.faults("F05")
def test_identical_responses_and_repeats_are_dropped_and_counted(data_of):
    data = data_of("data.test_fraction=0", comparisons=[row(1), row(1), row(2, "same", "same"), row(3)])
    assert [comparison.prompt[0].content for comparison in data.comparisons] == ["prompt 1", "prompt 3"]
    assert {reason: count for reason, count in data.notes.items() if count} == {"identical responses": 1, "repeated comparisons": 1}


@pytest.mark.faults("F05")
@pytest.mark.parametrize("trained_in", ["comparisons", "labels"])
def test_a_test_prompt_that_is_also_trained_on_stops_the_run_unless_allowed(data_of, trained_in):
    files = {"comparisons": [row(1)], "test": [row(8), row(9)]}
    files[trained_in] = [*files.get(trained_in, []), row(8, "another", "pair")]
    with pytest.raises(DataError, match=rf"{trained_in}\.jsonl:\d: this prompt is also in data\.test, as are 0 others"):
        data_of(**files)
    assert data_of("data.allow_overlap=true", **files).notes["test prompts also trained on"] == 1
