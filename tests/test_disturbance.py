"""Models on categories apart and together: a matrix worked by hand, equal steps, equal sizes, and the verb from files to page."""

import csv
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from test_cli_verbs import FILLER, GOOD, POOR, read, run, write

from dmoerm.cli import main as cli
from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.bootstrap import Resampling
from dmoerm.evaluation.disturbance import Trained, study_disturbance, write_csv
from dmoerm.evaluation.disturbance_page import disturbance_sections
from dmoerm.evaluation.disturbance_run import DisturbanceOptions
from dmoerm.evaluation.metrics import Scored
from dmoerm.evaluation.report import report_html
from dmoerm.evaluation.sections import Heat
from dmoerm.records import Comparison, Message

# --- from rewards to figures ------------------------------------------------------------------------------------------------------------

TESTS = [Comparison(f"{name}{n}", (Message("user", f"{name} {n}"),), ("x", "y"), (1, 2), name) for name in "abc" for n in (1, 2)]
ROWS = [
    *(Trained(name, (name,), 10, 4, 4.0) for name in "abc"),
    Trained("a + b", ("a", "b"), 20, 4, 2.0),
    Trained("a + c", ("a", "c"), 20, 4, 2.0),
    Trained("b + c", ("b", "c"), 20, 4, 2.0),
    Trained("all categories", ("a", "b", "c"), 30, 4, 4 / 3),
]
RIGHT = {
    "a": "a1 a2 b1",
    "b": "b1 b2",
    "c": "c1",
    "a + b": "a1 b1 b2",
    "a + c": "a2",
    "b + c": "c2",
    "all categories": "b1 b2 c1 c2",
}
"""The test comparisons that each model orders rightly."""


def scored(right, *more_seeds):
    return [[Scored(c, (1.0, 0.0) if c.id in seed.split() else (0.0, 1.0)) for c in TESTS] for seed in (right, *more_seeds)]


def study_of(right, rows=ROWS, **options):
    return study_disturbance(rows, right, seeds=(0,), resampling=Resampling(0, 100), **options)


@pytest.fixture(scope="module")
def worked():
    return study_of({name: scored(ids) for name, ids in RIGHT.items()})


def test_cells_are_agreement_on_a_category_and_its_difference_to_alone(worked):
    assert worked.categories == ("a", "b", "c")
    values = {row.name: [worked.cell(row.name, name).agreement.value for name in "abc"] for row in ROWS}
    assert values["a"] == [1.0, 0.5, 0.0]
    assert values["a + b"] == [0.5, 1.0, 0.0]
    assert values["all categories"] == [0.0, 1.0, 1.0]
    assert worked.cell("a", "a").difference is None
    assert worked.cell("all categories", "a").difference.value == -1.0
    assert worked.cell("all categories", "c").difference.value == 0.5
    assert worked.cell("a", "b").difference.value == -0.5
    assert worked.cell("a", "a").agreement.n_prompts == 2


def test_the_outer_layer_buys_alone_minus_all_over_all_test_comparisons(worked):
    found = {(part.against, part.category): part.difference for part in worked.outer_layer}
    assert [found["all categories", name].value for name in "abc"] == [1.0, 0.0, -0.5]
    assert worked.pooled.value == pytest.approx(1 / 6)  # (2 + 0 - 1) of 6 comparisons
    assert worked.pooled.n_pairs == 6
    assert worked.pooled.low <= 1 / 6 <= worked.pooled.high
    # Pairs are averaged over partners: a is right in 1 of 2 in each; b in 2 and 0 of 2; c in 0 and 1 of 2.
    assert [found["pairs", name].value for name in "abc"] == pytest.approx([0.5, 0.5, 0.25])
    assert found["pairs", None].value == pytest.approx((0.5 + 0.5 + 0.25) / 3)


def test_seeds_are_averaged_pair_by_pair_and_kept_one_by_one():
    right = {name: scored(ids, ids) for name, ids in RIGHT.items()} | {"a": scored("a1 a2", "")}
    found = study_of(right)
    cell = found.cell("a", "a")
    assert cell.agreement.value == 0.5
    assert cell.by_seed == (1.0, 0.0)
    assert found.cell("all categories", "a").difference.value == -0.5


def test_two_categories_have_no_pairs_beside_all():
    rows = [Trained("a", ("a",), 1, 1, 1.0), Trained("b", ("b",), 1, 1, 1.0), Trained("all categories", ("a", "b"), 2, 1, 0.5)]
    right = {name: [[item for item in scored(RIGHT[name])[0] if item.comparison.category != "c"]] for name in ("a", "b", "all categories")}
    found = study_of(right, rows)
    assert {part.against for part in found.outer_layer} == {"all categories"}


def test_a_test_comparison_outside_the_columns_is_refused():
    right = {name: scored(ids) for name, ids in RIGHT.items() if "c" not in name}
    with pytest.raises(DataError, match="test comparison 'c1' has category 'c'; expected a column"):
        study_of(right, [row for row in ROWS if row.name in right])


def test_the_table_marks_intervals_without_zero_and_names_what_is_alike(worked):
    table = worked.as_table()
    line = next(line for line in table.splitlines() if line.startswith("all categories"))
    assert re.search(r"0\.000-.* 1\.000 .* 1\.000$", line)  # -1 for both prompts of a; c has one prompt of each kind
    assert "a: 2 prompts, 2 pairs *" in table
    assert "Every model: the same steps; a smaller set is passed over more often." in table
    assert "Every model: 5 training comparisons" in replace(worked, size=5).as_table()
    assert "Every model: the same passes" in replace(worked, equal="epochs").as_table()


def test_csv_and_page_hold_the_numbers_of_the_matrix(worked, tmp_path):
    cells, outer = write_csv(tmp_path, worked)
    with cells.open(encoding="utf-8") as file:
        lines = {(row["trained_on"], row["category"]): row for row in csv.DictReader(file)}
    assert len(lines) == 21
    assert float(lines["all categories", "a"]["minus_alone"]) == -1.0
    assert lines["a", "a"]["minus_alone"] == ""
    with outer.open(encoding="utf-8") as file:
        assert next(csv.DictReader(file))["alone_minus"] == repr(worked.pooled.value)
    sections = disturbance_sections(worked)
    heat = next(section for section in sections if isinstance(section, Heat))
    assert [share.value for share in dict(heat.rows)["a + b"]] == [0.5, 1.0, 0.0]
    page = report_html("R", sections)
    assert "the interval leaves open which is better" in page
    assert not re.search(r'(src|href)="?http', page)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": 4, "equal": "epochs"}, "exclude each other"),
        ({"steps": 0}, "steps: 0; expected at least 1"),
        ({"seeds": (1, 1)}, "seeds: 1, 1; expected numbers from 0 up, each once"),
        ({"seeds": ()}, "seeds: none"),
    ],
)
def test_impossible_options_are_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        DisturbanceOptions(**options)


# --- training sets ----------------------------------------------------------------------------------------------------------------------

TASKS = {"objective_qa": "explain the number", "roleplay": "play the king", "chitchat": "tell me about your day"}


def rows_of(count, seed=1):
    """Good words win, but in chitchat poor ones do: what one category teaches is wrong in the other."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        category, task = list(TASKS.items())[number % 3]
        words = (POOR, GOOD) if category == "chitchat" else (GOOD, POOR)
        responses = [" ".join(rng.sample(chosen, 6)) for chosen in words]
        prompt = f"{task} {' '.join(rng.sample(FILLER, 2))} {number}"
        rows.append({"id": f"c{number}", "prompt": prompt, "responses": responses, "ranks": [1, 2], "category": category})
    return rows


def comparisons(count, seed=1):
    return [
        Comparison(row["id"], (Message("user", row["prompt"]),), tuple(row["responses"]), (1, 2), row["category"])
        for row in rows_of(count, seed)
    ]


def grouped(made):
    return {name: [c for c in made if c.category == name] for name in TASKS}


@pytest.fixture(scope="module")
def prepared(tiny_encoder_folder):
    """Sixty comparisons on the tiny encoder, their trunk states, and the plan of the recipe."""
    from dmoerm.recipe import DataOptions, Recipe
    from dmoerm.training.checkpoints import RunState
    from dmoerm.training.pipeline import inner_plan, load_backbone, prepare
    from dmoerm.training.progress import RunLog

    recipe = Recipe.model_validate(
        {
            "data": DataOptions(comparisons=(Path("a.jsonl"),)),
            "backbone": {"name": str(tiny_encoder_folder), "max_length_tokens": 48},
            "task_model": {"depth": 1, "rank": 4, "alpha": 4.0, "epochs": 2, "comparisons_per_batch": 4},
            "training": {"device": "cpu", "precision": "fp32"},
        }
    )
    backbone, renderer = load_backbone(recipe)
    ready = prepare(comparisons(60), [], recipe, RunLog(None, quiet=True), backbone=backbone, renderer=renderer, state=RunState(None))
    return ready.work, ready.comparisons, inner_plan(recipe, ready)


def test_categories_are_trained_on_alone_in_pairs_and_together():
    from dmoerm.training.mixtures import mixtures_of

    assert [m.categories for m in mixtures_of("abc")] == [("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]
    assert [m.name for m in mixtures_of("abc", pairs=False)] == ["a", "b", "c", "all categories"]
    assert [m.key for m in mixtures_of("ab")] == ["alone-a", "alone-b", "all"]
    with pytest.raises(ConfigError, match="disturbance between 1 categories"):
        mixtures_of("a")


def test_a_size_is_shared_evenly_nested_seeded_and_in_the_order_of_the_data():
    from dmoerm.training.mixtures import draw, mixtures_of

    made = comparisons(60)
    of_category = grouped(made)
    drawn = {m.key: [c.id for c in draw(of_category, m, 14, 5)] for m in mixtures_of(list(TASKS))}
    assert {len(ids) for ids in drawn.values()} == {14}
    everything = draw(of_category, mixtures_of(list(TASKS))[-1], 14, 5)
    assert [len(own) for own in grouped(everything).values()] == [5, 5, 4]
    assert {c.id for c in everything if c.category == "roleplay"} < set(drawn["alone-roleplay"])
    numbers = [int(id_[1:]) for id_ in drawn["alone-roleplay"]]
    assert numbers == sorted(numbers)
    assert [c.id for c in draw(of_category, mixtures_of(list(TASKS))[0], 14, 6)] != drawn["alone-objective_qa"]
    assert len(draw(of_category, mixtures_of(list(TASKS))[-1], None, 5)) == 60
    with pytest.raises(ConfigError, match="21 comparisons of objective_qa are wanted, 20 are there"):
        draw(of_category, mixtures_of(list(TASKS))[0], 21, 5)


def test_every_set_takes_the_same_steps_and_a_small_one_is_passed_over_more_often(prepared, monkeypatch):
    from dmoerm.training.mixtures import Budget, budget, train_mixture
    from dmoerm.training.trainer import RankingModule

    work, made, plan = prepared
    batches = []
    collate = RankingModule.collate

    def watched(self, items):
        batches.append([item.rows for item in items])
        return collate(self, items)

    monkeypatch.setattr(RankingModule, "collate", watched)
    settings = replace(plan.task_settings, steps=10)
    for count, passes in ((6, 5.0), (20, 2.0)):  # batches of 4: 2 steps a pass, and 5
        batches.clear()
        told = []
        train_mixture(work, made[:count], made[:3], plan, settings, report=lambda step, total, told=told: told.append((step, total)))
        assert told == [(step, 10) for step in range(1, 11)]
        assert budget(count, settings) == Budget(count, 10, passes)
        seen = [rows for batch in batches[:10] for rows in batch]
        assert {seen.count(rows) for rows in set(seen)} == {passes}
        assert len(set(seen)) == count
        assert all(len(set(batch)) == len(batch) for batch in batches)  # a comparison that stands twice in a batch would shrink it


def test_steps_that_make_whole_epochs_train_the_same_model(prepared):
    from dmoerm.training.mixtures import budget, train_mixture

    work, made, plan = prepared
    by_epochs, by_steps = (
        train_mixture(work, made[:18], made[40:], plan, replace(plan.task_settings, steps=steps)) for steps in (None, 2 * 5)
    )
    assert by_epochs == by_steps
    assert budget(18, plan.task_settings).steps == 10
    assert work.backbone.adapter_config == {}
    assert by_steps != train_mixture(work, made[:18], made[40:], plan, replace(plan.task_settings, steps=7))


def test_full_fine_tuning_leaves_the_shared_backbone_as_it_was(prepared):
    from dmoerm.training.mixtures import train_mixture

    work, made, plan = prepared
    before = work.backbone.fingerprint()
    full = replace(plan, task_shape=replace(plan.task_shape, depth=None))
    rewards = train_mixture(work, made[:8], made[40:42], full, replace(plan.task_settings, steps=2))
    assert work.backbone.fingerprint() == before
    assert [len(found) for found in rewards.values()] == [2, 2]


# --- the verb ---------------------------------------------------------------------------------------------------------------------------

RECIPE = """
output: model
backbone: {{name: "{backbone}", max_length_tokens: 48}}
data: {{comparisons: [comparisons.jsonl], test_fraction: 0.3}}
task_model: {{depth: 1, rank: 4, alpha: 4, epochs: 2, minimum_comparisons: 6}}
training: {{device: cpu, precision: fp32}}
evaluation: {{bootstrap_samples: 100, baselines: [random]}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_encoder_folder):
    """Three categories, a fourth with too few comparisons, and two comparisons without a category; what the verb leaves beside them."""
    folder = tmp_path_factory.mktemp("disturbance")
    made = rows_of(150)
    few = [{**row, "id": f"few{n}", "prompt": f"argue {n}", "category": "subjective_qa"} for n, row in enumerate(rows_of(4, 2))]
    for row in made[:2]:
        del row["category"]
    write(folder / "comparisons.jsonl", [*made, *few])
    (folder / "recipe.yaml").write_text(RECIPE.format(backbone=tiny_encoder_folder), encoding="utf-8")
    assert cli.main(["disturbance", str(folder / "recipe.yaml")]) == cli.DONE
    return folder


def result_of(folder):
    return json.loads((folder / "model-disturbance" / "disturbance.json").read_text(encoding="utf-8"))


def test_opposite_tastes_disturb_and_like_ones_do_not(folder):
    found = result_of(folder)
    pooled = next(part["difference"] for part in found["outer_layer"] if part["category"] is None and part["against"] != "pairs")
    assert pooled["low"] > 0
    cells = {(cell["trained_on"], cell["category"]): cell for cell in found["cells"]}
    assert cells["chitchat", "objective_qa"]["agreement"]["value"] < 0.3
    assert cells["roleplay + objective_qa", "objective_qa"]["agreement"]["value"] > 0.8


def test_every_model_took_the_same_steps_and_small_categories_are_named(folder):
    found = result_of(folder)
    models = [row for row in found["rows"] if row["categories"]]
    assert len(models) == 7
    assert len({row["steps"] for row in models}) == 1
    everything = models[-1]
    assert everything["passes"] == 2.0
    assert everything["comparisons"] == sum(row["comparisons"] for row in models[:3])
    assert "fewer than task_model.minimum_comparisons (6)" in found["left_out"]["subjective_qa"]
    assert [row["name"] for row in found["rows"] if not row["categories"]] == ["random"]
    assert (folder / "model-disturbance" / "disturbance.html").is_file()


def test_a_study_that_was_stopped_trains_what_is_missing_to_the_same_figures(folder, capsys):
    kept = folder / "model-disturbance" / "rewards"
    before, stamps = result_of(folder), {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    (kept / "seed-0-all.json").unlink()
    (kept / "seed-0-pair-roleplay+chitchat.json").unlink()
    (kept / "seed-0-alone-roleplay.json").write_text('{"rewards": ', encoding="utf-8")
    assert cli.main(["disturbance", str(folder / "recipe.yaml"), "--json"]) == cli.DONE
    out, err = capsys.readouterr()
    assert json.loads(out) == before
    assert re.search("seed-0-alone-roleplay.json: damaged .* this model is trained again", err)
    after = {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    assert after.keys() == stamps.keys()
    renewed = {name for name in after if after[name] != stamps[name]}
    assert {"seed-0-all.json", "seed-0-alone-roleplay.json"} <= renewed
    assert "seed-0-alone-chitchat.json" not in renewed


def test_a_folder_of_another_study_is_refused_by_name(folder, tmp_path, capsys):
    recipe = folder / "recipe.yaml"
    said = run(capsys, "disturbance", recipe, "--set", "task_model.rank=2", "--sizes-equal", code=cli.FAILED)
    assert "task_model.rank: 4 then, 2 now" in said
    assert "sizes_equal: false then, true now" in said
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert "is not empty and holds no disturbance study" in run(capsys, "disturbance", recipe, "--output", tmp_path, code=cli.FAILED)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_equal_sizes_give_every_model_as_many_comparisons(folder, tmp_path, capsys):
    target = tmp_path / "study"
    arguments = ("--output", target, "--sizes-equal", "--no-pairs", "--steps", 2, "--seeds", 0, 1, "--json")
    found = json.loads(run(capsys, "disturbance", folder / "recipe.yaml", *arguments))
    models = [row for row in found["rows"] if row["categories"]]
    assert {row["comparisons"] for row in models} == {found["size"]}
    assert {row["steps"] for row in models} == {2}
    assert found["seeds"] == [0, 1]
    assert {len(cell["by_seed"]) for cell in found["cells"] if cell["trained_on"] != "random"} == {2}
    assert len(list((target / "rewards").iterdir())) == 8


def test_one_category_is_too_few(folder, tmp_path, capsys):
    write(tmp_path / "one.jsonl", [row for row in read(folder / "comparisons.jsonl") if row.get("category") == "chitchat"])
    recipe = (folder / "recipe.yaml").read_text(encoding="utf-8").replace("comparisons.jsonl", "one.jsonl")
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    said = run(capsys, "disturbance", tmp_path / "recipe.yaml", code=cli.FAILED)
    assert "1 categories can be trained on and measured; disturbance needs two" in said
