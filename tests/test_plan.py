"""The plan of a run, counted by hand on small files."""

import json
import subprocess
import sys

import pytest

from dmoerm.data.cost import backbone_size, estimate_memory, inner_steps
from dmoerm.data.plan import length_bias, plan_run
from dmoerm.data.splits import split_of
from dmoerm.errors import DataError
from dmoerm.recipe import load_recipe
from dmoerm.records import CapabilityLabel, Comparison, Message

TAXONOMY = """
categories:
  - {name: facts, description: d, capabilities: [{name: correctness, description: d}, {name: logic, description: d}]}
  - {name: talk, description: d, capabilities: [{name: empathy, description: d}]}
"""


def row(number, *, category="facts", ranks=(1, 2), responses=("short", "a longer one"), labels=()):
    return {
        "id": f"{category}{number}",
        "prompt": f"prompt {category} {number}",
        "responses": list(responses),
        "ranks": list(ranks),
        **({} if category is None else {"category": category}),
        "labels": [{"capability": name, "preferred": first, "other": 1 - first} for name, first in labels],
    }


@pytest.fixture
def plan_of(tmp_path):
    """Write rows and a recipe, and plan it."""

    def build(rows, *overrides, **files):
        for name, content in {"comparisons": rows, **files}.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in content), encoding="utf-8")
        (tmp_path / "taxonomy.yaml").write_text(TAXONOMY, encoding="utf-8")
        named = "".join(f"  {name}: [{name}.jsonl]\n" for name in files)
        (tmp_path / "recipe.yaml").write_text(
            f"taxonomy: taxonomy.yaml\nbackbone: {{name: nobody/nothing}}\ndata:\n  comparisons: [comparisons.jsonl]\n{named}",
            encoding="utf-8",
        )
        return plan_run(load_recipe(tmp_path / "recipe.yaml", ["data.test_fraction=0", *overrides]))

    return build


def by_name(plan):
    return {category.name: category for category in plan.categories}


def comparison(number, chosen="a", rejected="b", labels=(), ranks=(1, 2)):
    return Comparison(f"c{number}", (Message("user", f"p{number}"),), (chosen, rejected), ranks, labels=labels)


@pytest.mark.faults("F20")
def test_categories_experts_and_the_fallback_follow_the_rules_of_training(plan_of):
    facts = [row(n, labels=[("correctness", 0), *([("logic", 1)] if n < 4 else [])]) for n in range(6)]
    talk = [row(n, category="talk", labels=[("empathy", n % 2)]) for n in range(3)]
    plan = plan_of([*facts, *talk], "task_model.minimum_comparisons=4", "experts.minimum_labels=5")
    found = by_name(plan)
    assert list(found) == ["facts", "talk", "general"]
    assert (found["facts"].own_model, found["talk"].own_model, found["general"].own_model) == (True, False, True)
    assert {name: count.labels for name, count in found["facts"].labels.items()} == {"correctness": 6, "logic": 4}
    assert found["facts"].experts == ("correctness",)
    assert found["facts"].labels["logic"].against_overall == 4
    assert found["general"].train == 9
    text = "\n".join(plan.warnings)
    assert "talk: 3 comparisons with a preference, 4 are needed" in text
    assert "facts: too few labels for an expert, 5 are needed (experts.minimum_labels): logic (4)" in text
    assert "nothing is held out" in text


def test_ties_do_not_count_as_comparisons_with_a_preference(plan_of):
    plan = plan_of([*(row(n) for n in range(3)), row(9, ranks=(1, 1))])
    assert (plan.train, plan.tied, by_name(plan)["facts"].preferred) == (4, 1, 3)


def test_files_are_counted_by_role_and_side(plan_of):
    plan = plan_of(
        [row(n) for n in range(5)],
        test=[row(n, category="talk") for n in range(2)],
        labels=[row(8, labels=[("logic", 0)])],
        prompts=[{"prompt": f"x{n}", "category": "talk"} for n in range(3)],
    )
    assert [(file.role, file.format, file.train, file.test) for file in plan.files] == [
        ("comparisons", "native", 5, 0),
        ("labels", "native", 1, 0),
        ("prompts", "prompts", 3, 0),
        ("test", "native", 0, 2),
    ]
    assert plan.router_prompts == {"facts": 6, "talk": 3}
    assert "2 held-out prompts: intervals are too narrow below 30" in plan.warnings[0]


def test_the_router_needs_prompts_of_two_categories(plan_of):
    plan = plan_of([row(n, category=None) for n in range(3)])
    assert plan.uncategorised == 3
    assert any("fewer than two categories have router prompts" in warning for warning in plan.warnings)


def test_labels_that_only_follow_the_overall_preference_are_named(plan_of):
    plan = plan_of([row(n, labels=[("correctness", 0)]) for n in range(25)])
    assert any("facts, correctness: all 25 labels follow the overall preference" in warning for warning in plan.warnings)


@pytest.mark.faults("F20")
def test_labels_that_always_prefer_the_first_response_are_named(plan_of):
    rows = [row(n, ranks=(1, 2) if n % 2 else (2, 1), labels=[("correctness", 0)]) for n in range(25)]
    assert any("all 25 labels prefer the response listed first: constant labels" in warning for warning in plan_of(rows).warnings)


def test_labels_of_foreign_capabilities_are_counted_but_overall_is_none(plan_of):
    plan = plan_of([row(1, labels=[("empathy", 0), ("overall", 0)]), *(row(n) for n in range(2, 5))])
    assert any("their category does not have: empathy (1)." in warning for warning in plan.warnings)
    assert not any("overall (" in warning for warning in plan.warnings)


def test_length_bias_counts_pairs_of_unequal_length_only():
    bias = length_bias([comparison(0, "long one", "short"), comparison(1, "a", "bb"), comparison(2, "aaa", "b"), comparison(3, "a", "b")])
    assert (bias.pairs, bias.longer_wins) == (3, pytest.approx(2 / 3))
    assert length_bias([comparison(0)]) is None


def test_a_strong_length_bias_is_a_warning(plan_of):
    plan = plan_of([row(n, ranks=(2, 1) if n < 18 else (1, 2)) for n in range(24)])
    assert any("the longer response wins 75% of 24 training pairs" in warning for warning in plan.warnings)


def test_a_category_in_one_fold_only_is_a_warning(plan_of):
    alike = [row(n, category="talk") for n in range(200)]
    same = [item for item in alike if split_of((Message("user", item["prompt"]),), 2, 0) == 0][:20]
    plan = plan_of([*same, *(row(n) for n in range(20))])
    assert any("talk: all comparisons fall into one of 2 folds" in warning for warning in plan.warnings)


def test_bad_data_is_an_error_and_not_a_warning(plan_of):
    with pytest.raises(DataError, match="not in the taxonomy"):
        plan_of([row(1, category="poetry")])


def test_steps_are_those_of_every_fold_and_of_the_final_run(tmp_path):
    comparisons = [comparison(n, labels=(CapabilityLabel("logic", 0, 1),) if n < 5 else ()) for n in range(10)]
    recipe = steps_recipe(tmp_path, "aggregator.cross_fit_folds=2", "task_model.comparisons_per_batch=4", "experts.comparisons_per_batch=2")
    first = sum(split_of(c.prompt, 2, 0) == 0 for c in comparisons)
    labelled = sum(split_of(c.prompt, 2, 0) == 0 for c in comparisons[:5])

    def steps(counts, batch, epochs):
        return sum(-(-count // batch) * epochs for count in counts)

    found = inner_steps(recipe, comparisons, comparisons[:5], ["logic"])
    assert found.phase_1 == steps([10 - first, first, 10], 4, 2)
    assert found.phase_2 == steps([5 - labelled, labelled, 5], 2, 2)
    assert inner_steps(recipe, comparisons, comparisons[:5], []).phase_2 == 0


def test_the_papers_schedule_runs_phase_1_once_on_what_is_not_held_out(tmp_path):
    comparisons = [comparison(n) for n in range(50)]
    recipe = steps_recipe(tmp_path, "schedule=paper", "task_model.comparisons_per_batch=1", "task_model.epochs=1")
    kept = sum(split_of(c.prompt, 100, 0, "holdout") >= 40 for c in comparisons)
    assert inner_steps(recipe, comparisons, [], []).phase_1 == kept


def steps_recipe(folder, *overrides):
    (folder / "none.jsonl").write_text("")
    (folder / "recipe.yaml").write_text("data: {comparisons: [none.jsonl]}\nbackbone: {name: ./model}\n")
    (folder / "model").mkdir(exist_ok=True)
    return load_recipe(folder / "recipe.yaml", overrides)


def test_memory_of_adapters_is_the_formula_of_lora(tmp_path):
    # Grouped attention: query 64 -> 64, value 64 -> 16; a LoRA of rank 1 has 64 + 64 + 64 + 16 = 208 numbers a layer.
    recipe = steps_recipe(
        tmp_path, "task_model.rank=8", "task_model.depth=all", "experts.rank=4", "experts.depth=third", "backbone.max_length_tokens=32"
    )
    config = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"0" * 2**20)
    rows = [comparison(0, "x" * 40, "y" * 400)]
    memory = estimate_memory(recipe, rows, [rows], [3])
    assert memory.backbone == 1.0
    assert memory.trained == pytest.approx((3 * (4 * 208 * 2 + 64) + 8 * 208 * 6 + 64) * 4 / 2**20)
    # The task adapters reach down to the first layer, so only the states below the experts are kept: 14 and 32 tokens of 64 floats.
    assert memory.trunk_states == pytest.approx((14 + 32) * 64 * 4 / 2**20)


def test_states_over_the_budget_are_not_counted_and_said(tmp_path):
    recipe = steps_recipe(tmp_path, "training.trunk_cache_mib=0")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4}))
    rows = [comparison(0)]
    memory = estimate_memory(recipe, rows, [rows], [3])
    assert (memory.trunk_states, memory.backbone) == (0.0, None)
    assert "exceed training.trunk_cache_mib" in memory.note


def test_a_backbone_that_is_not_here_has_no_size(tmp_path):
    assert backbone_size("nobody/nothing") is None
    assert backbone_size(str(tmp_path)) is None
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    assert backbone_size(str(tmp_path)) is None


def test_the_plan_as_text_and_as_json_hold_the_same_counts(plan_of):
    plan = plan_of([row(n, labels=[("logic", n % 2)]) for n in range(30)])
    assert json.loads(json.dumps(plan.as_dict()))["categories"][0]["labels"]["logic"]["labels"] == 30
    text = plan.as_text()
    assert "logic 30" in text
    assert "backbone unknown" in text
    assert max(map(len, text.split("Warnings")[0].splitlines())) <= 110


def test_planning_loads_no_torch(plan_of, tmp_path):
    plan_of([row(n) for n in range(5)])
    script = (
        "import sys\nfrom dmoerm.cli.main import main\n"
        f"assert main(['check', {str(tmp_path / 'recipe.yaml')!r}]) == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
