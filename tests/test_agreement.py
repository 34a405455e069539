import json
import math

import pytest

from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.agreement import evaluate_agreement
from dmoerm.evaluation.metrics import Scored
from dmoerm.records import Comparison, Message


def model(*margins: float | None, categories: tuple[str | None, ...] = (), ties: tuple[int, ...] = ()) -> list[Scored]:
    """One pair a margin; winners are longer and shorter in turn."""
    made = []
    for i, margin in enumerate(margins):
        category = categories[i % len(categories)] if categories else None
        texts = ("longer", "short") if i % 2 else ("short", "longer")
        pair = Comparison(f"c{i}", (Message("user", f"p{i}"),), texts, (1, 1) if i in ties else (1, 2), category)
        made.append(Scored(pair, (margin, None if margin is None else 0.0)))
    return made


def test_every_model_has_a_row_overall_and_in_each_category():
    models = {name: model(1.0, -1.0, 1.0, 1.0, categories=("qa", "chat")) for name in ("ours", "single")}
    report = evaluate_agreement(models, samples=100)
    keys = [(row.category, row.model) for row in report.rows]
    assert keys == [(None, "ours"), (None, "single"), ("chat", "ours"), ("chat", "single"), ("qa", "ours"), ("qa", "single")]
    # chat holds margins -1 and 1, qa 1 and 1.
    assert [report.row("ours", category).agreement.value for category in (None, "chat", "qa")] == [0.75, 0.5, 1.0]


def test_differences_are_taken_to_the_reference_and_not_for_itself():
    report = evaluate_agreement({"ours": model(1.0, 1.0), "single": model(1.0, -1.0)}, "single", samples=100)
    difference = report.row("ours").difference
    assert difference is not None
    assert difference.value == 0.5
    assert report.row("single").difference is None


def test_comparisons_without_category_make_no_category_rows():
    assert [row.category for row in evaluate_agreement({"ours": model(1.0, 1.0)}, samples=100).rows] == [None]


def test_figures_that_do_not_exist_are_none_and_not_zero():
    row = evaluate_agreement({"broken": model(None)}, samples=100).row("broken")
    assert (row.agreement.value, row.agreement.n_failed) == (0.0, 1)
    assert (row.length_balanced, row.calibration_error, row.calibration_floor, row.log_loss) == (None, None, None, None)


def test_a_category_tied_throughout_is_named_as_left_out():
    report = evaluate_agreement({"ours": model(1.0, 1.0, categories=("qa", "chat"), ties=(1,))}, samples=100)
    assert report.skipped_categories == ("chat",)
    assert [row.category for row in report.rows] == [None, "qa"]
    assert "Without a ranked pair, left out: chat." in report.as_table()


def test_the_dict_is_strict_json_with_seed_version_and_meta():
    report = evaluate_agreement({"ours": model(1.0, None, 0.5)}, seed=7, samples=150, confidence=0.9, meta={"recipe_hash": "ab12"})
    loaded = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert (loaded["seed"], loaded["samples"], loaded["confidence"], loaded["meta"]) == (7, 150, 0.9, {"recipe_hash": "ab12"})
    assert loaded["version"]
    agreement = loaded["rows"][0]["agreement"]
    assert (agreement["n_pairs"], agreement["n_failed"]) == (3, 1)
    assert agreement["value"] == pytest.approx(2 / 3)


def test_the_table_shows_figures_and_stays_within_100_columns():
    models = {
        "double-layer": model(1.0, 1.0, -1.0, None),
        "single": model(-1.0, 1.0, -1.0, 1.0),
        "a name far too long to fit": model(*[-900.0] * 4),
    }
    table = evaluate_agreement(models, "single", samples=100, meta={"recipe": "ab12"}).as_table()
    assert max(len(line) for line in table.splitlines()) <= 100
    assert table.startswith("All: 4 prompts, 4 pairs *\n")
    ours = next(line for line in table.splitlines() if line.startswith("double-layer"))
    assert "0.500 [" in ours
    assert "+0.000 [" in ours
    assert "a name far too long to fit\n" in table
    assert ">=100" in table
    assert "* fewer than 30 prompts" in table
    assert "recipe: ab12" in table


def test_names_from_data_cannot_steer_the_terminal():
    table = evaluate_agreement({"ours\x1b[31m": model(1.0, categories=("q\x07a",))}, samples=100).as_table()
    assert "\x1b" not in table
    assert "q?a: 1 prompt, 1 pair" in table


def test_the_same_call_gives_the_same_report():
    models = {"ours": model(1.0, -0.2, 0.3, math.pi)}
    assert evaluate_agreement(models, seed=5, samples=100) == evaluate_agreement(models, seed=5, samples=100)


def test_arguments_that_cannot_work_are_refused():
    with pytest.raises(DataError, match="No models were given"):
        evaluate_agreement({})
    with pytest.raises(ConfigError, match="reference 'singel' is not among the models; expected one of ours"):
        evaluate_agreement({"ours": model(1.0)}, "singel")
    with pytest.raises(ConfigError, match="meta cannot be written as JSON"):
        evaluate_agreement({"ours": model(1.0)}, meta={"x": math.nan})
    with pytest.raises(DataError, match="Agreement of 'ours' and 'single': the models scored different comparisons"):
        evaluate_agreement({"ours": model(1.0), "single": model(1.0, 1.0)})
    with pytest.raises(ConfigError, match="No row for model 'x'"):
        evaluate_agreement({"ours": model(1.0)}, samples=100).row("x")
