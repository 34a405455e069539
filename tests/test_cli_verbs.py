"""Every verb through `main`, on a model trained here: stdout, exit codes, JSON, and what is refused."""

import gzip
import json
import random

import pytest

from dmoerm.cli import main as cli
from dmoerm.cli.options import AGGREGATIONS

GOOD = "good clear true honest warm exact kind bright".split()
POOR = "bad wrong late cold dark empty slow lost".split()
FILLER = "river stone garden city house road book tree paper glass window water".split()
TASKS = {"objective_qa": "explain the number", "chitchat": "tell me about your day"}


def comparison_rows(count, seed, *, prefix="c"):
    """Two or three responses; what people prefer has good words. Every third comparison is long on the losing side."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        category, task = list(TASKS.items())[number % 2]
        responses = [" ".join(rng.sample(words, 2) + rng.sample(FILLER, 4 + rng.randrange(4))) for words in (GOOD, POOR)]
        ranks = [1, 2]
        if number % 4 == 0:
            responses.append(" ".join(rng.sample(POOR, 3) + rng.sample(FILLER, 3)))
            ranks.append(2)
        if number % 2:
            responses, ranks = responses[::-1], ranks[::-1]
        capabilities = ("correctness", "logic") if category == "objective_qa" else ("empathy",)
        labels = [{"capability": name, "preferred": ranks.index(1), "other": 1 - ranks.index(1)} for name in capabilities]
        rows.append(
            {
                "id": f"{prefix}{number}",
                "prompt": f"{task} {' '.join(rng.sample(FILLER, 3))} {number}",
                "responses": responses,
                "ranks": ranks,
                "category": category,
                "labels": labels,
            }
        )
    return rows


def write(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path):
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    with opened as file:
        return [json.loads(line) for line in file]


RECIPE = """
taxonomy: taxonomy.yaml
output: model
backbone: {{name: "{backbone}", max_length_tokens: 48}}
data: {{comparisons: [comparisons.jsonl], test_fraction: 0.3}}
task_model: {{depth: 1, rank: 4, alpha: 4, epochs: 1, minimum_comparisons: 6}}
experts: {{depth: 1, rank: 4, alpha: 4, epochs: 1, minimum_labels: 6}}
aggregator: {{cross_fit_folds: 2, epochs: 5, hidden_size: 4, members: 2}}
training: {{device: cpu, precision: fp32}}
evaluation: {{bootstrap_samples: 100}}
"""
TAXONOMY = """
categories:
  - name: objective_qa
    description: Questions with an answer.
    capabilities:
      - {name: correctness, description: It is right.}
      - {name: logic, description: It follows.}
  - name: chitchat
    description: Talk.
    capabilities:
      - {name: empathy, description: It is kind.}
"""


@pytest.fixture(scope="session")
def project(tmp_path_factory, tiny_encoder_folder):
    """A folder with recipe, taxonomy and forty comparisons."""
    folder = tmp_path_factory.mktemp("project")
    write(folder / "comparisons.jsonl", comparison_rows(40, 1))
    (folder / "recipe.yaml").write_text(RECIPE.format(backbone=tiny_encoder_folder), encoding="utf-8")
    (folder / "taxonomy.yaml").write_text(TAXONOMY, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def trained(project):
    """What `dmoerm train` leaves, and what it prints."""
    import contextlib
    import io

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(["train", str(project / "recipe.yaml")])
    assert code == cli.DONE, err.getvalue()
    return project / "model", out.getvalue(), err.getvalue()


@pytest.fixture
def model(trained):
    return str(trained[0])


@pytest.fixture
def unseen(tmp_path):
    return write(tmp_path / "unseen.jsonl", comparison_rows(12, 7, prefix="u"))


def run(capsys, *arguments, code=cli.DONE):
    """Standard output of a command that must leave with `code`; with another code than 0, standard error."""
    found = cli.main(list(map(str, arguments)))
    out, err = capsys.readouterr()
    assert found == code, err
    return out if code == cli.DONE else err


# --- check ----------------------------------------------------------------------------------------------------------------------------


def test_check_shows_the_plan_without_training(project, capsys):
    out = run(capsys, "check", project / "recipe.yaml")
    assert "comparisons.jsonl" in out
    assert "2 experts" in next(line for line in out.splitlines() if line.startswith("  objective_qa"))
    assert "Steps at most" in out


def test_check_json_counts_every_comparison_once(project, capsys):
    plan = json.loads(run(capsys, "check", project / "recipe.yaml", "--json"))
    assert plan["train"] + plan["test"] == 40
    categories = {entry["name"]: entry for entry in plan["categories"]}
    assert categories["objective_qa"]["train"] + categories["chitchat"]["train"] == categories["general"]["train"] == plan["train"]


def test_check_shows_what_labelling_would_ask_where_a_judge_is_named(project, capsys):
    assert json.loads(run(capsys, "check", project / "recipe.yaml", "--json"))["labeling"] is None
    judge = ["--set", "labeling.model=judge", "--set", "labeling.canaries=false", "--set", "labeling.input_price=1000000"]
    labels = json.loads(run(capsys, "check", project / "recipe.yaml", *judge, "--set", "labeling.output_price=0", "--json"))["labeling"]
    assert labels["calls"] > labels["pairs"] > 0  # two orders, several points each
    assert labels["cost"] == labels["input_tokens"]  # a dollar a token
    assert f"labelling: {labels['pairs']} pairs, {labels['calls']} calls to judge" in run(capsys, "check", project / "recipe.yaml", *judge)


def test_check_takes_overrides_and_leaves_with_1_on_bad_data(project, tmp_path, capsys):
    broken = write(tmp_path / "broken.jsonl", ['{"prompt": "a", "responses": ["x", ""], "ranks": [1, 2]}\n'])
    err = run(capsys, "check", project / "recipe.yaml", "--set", f"data.comparisons=[{broken}]", code=cli.FAILED)
    assert "broken.jsonl:1" in err


def test_check_names_a_missing_recipe(tmp_path, capsys):
    assert "nothing.yaml" in run(capsys, "check", tmp_path / "nothing.yaml", code=cli.FAILED)


# --- train ----------------------------------------------------------------------------------------------------------------------------


def test_train_prints_agreement_beside_the_baselines_and_writes_it(trained):
    folder, out, err = trained
    for name in ("model/mlp", "model/mean", "random", "longer", "bag_of_words", "Doubt of model/mlp", "Router:"):
        assert name in out
    assert "author_prior (no authors in the data)" in out
    evaluation = json.loads((folder.with_name("model-run") / "evaluation.json").read_text(encoding="utf-8"))
    assert {row["model"] for row in evaluation["rows"]} >= {"model/mlp", "model/mean", "longer"}
    assert set(evaluation["risk_coverage"]) == {"uncertainty", "capability_spread", "margin"}
    assert (folder / "dmoerm.json").is_file()
    assert "phase 1" in err


def test_train_leaves_an_existing_model_alone(project, trained, capsys):
    before = (trained[0] / "dmoerm.json").read_bytes()
    err = run(capsys, "train", project / "recipe.yaml", code=cli.FAILED)
    assert "already holds a model" in err
    assert (trained[0] / "dmoerm.json").read_bytes() == before


def test_train_output_starts_at_the_working_folder_and_no_test_means_no_figures(project, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = run(capsys, "-q", "train", project / "recipe.yaml", "--output", "here", "--set", "data.test_fraction=0", "--device", "cpu")
    assert "nothing was measured" in out
    assert (tmp_path / "here" / "dmoerm.json").is_file()


# --- evaluate -------------------------------------------------------------------------------------------------------------------------


def test_evaluate_prints_a_table_with_categories(model, unseen, capsys):
    out = run(capsys, "evaluate", model, unseen, "--bootstrap-samples", 100)
    for words in ("All: 12 prompts", "chitchat:", "objective_qa:", "model/mlp", "random", "longer", "no training comparisons", "Router:"):
        assert words in out
    assert "bag_of_words  " not in out


def test_evaluate_json_has_rows_baselines_doubt_and_routing(model, project, unseen, capsys):
    arguments = [
        "--train",
        project / "comparisons.jsonl",
        "--aggregation",
        "mean",
        "wco",
        "--bootstrap-samples",
        100,
        "--json",
        "--seed",
        3,
    ]
    result = json.loads(run(capsys, "evaluate", model, unseen, *arguments))
    overall = {row["model"]: row for row in result["rows"] if row["category"] is None}
    assert set(overall) == {"model/mean", "model/wco", "random", "longer", "bag_of_words"}
    assert result["reference"] == result["main"] == "model/mean"
    assert overall["random"]["agreement"]["value"] == 0.5
    assert overall["longer"]["difference"]["n_prompts"] == 12
    assert result["seed"] == 3
    assert result["routing"]["prompts"] == 12
    assert sum(sum(found.values()) for found in result["routing"]["judged_by"].values()) == 12


def test_evaluate_reads_pairs_and_trl_files_together_and_counts_ties(model, tmp_path, capsys):
    pairs = [
        {"id": 1, "prompt": "explain the river", "response_1": "good clear true", "response_2": "bad wrong late", "preference": 1},
        {"id": 2, "prompt": "explain the city", "response_1": "good stone", "response_2": "bad stone", "preference": 0},
    ]
    trl = [
        {"id": 1, "prompt": "tell me about a tree", "chosen": "warm and kind", "rejected": "cold and slow"},
        {
            "chosen": [{"role": "user", "content": "tell me"}, {"role": "assistant", "content": "honest words"}],
            "rejected": [{"role": "user", "content": "tell me"}, {"role": "assistant", "content": "empty"}],
        },
    ]
    files = [write(tmp_path / "pairs.jsonl", pairs), write(tmp_path / "trl.jsonl", trl)]
    result = json.loads(run(capsys, "evaluate", model, *files, "--json", "--bootstrap-samples", 100))
    agreement = next(row["agreement"] for row in result["rows"] if (row["model"], row["category"]) == ("model/mlp", None))
    assert (agreement["n_pairs"], agreement["n_human_ties"]) == (3, 1)
    assert "(pairs)" in result["meta"]["files"]
    assert "(trl)" in result["meta"]["files"]
    assert result["routing"] is None


def test_evaluate_against_another_model_takes_differences_to_it(model, unseen, capsys):
    arguments = ["--against", model, "--aggregation", "mlp", "--json", "--bootstrap-samples", 100]
    result = json.loads(run(capsys, "evaluate", model, unseen, *arguments))
    own = next(row for row in result["rows"] if row["model"] == "model/mlp")
    assert result["reference"] == "against/mlp"
    assert (own["difference"]["value"], own["difference"]["low"], own["difference"]["high"]) == (0.0, 0.0, 0.0)


def test_evaluate_scores_a_benchmark_with_our_model_under_one_aggregation(model, tmp_path, capsys):
    words = ("river", "stone", "garden", "sun", "house")
    rows = [
        {"pair_id": word, "question": f"tell me about the {word}", "response_A": f"good clear {word}", "response_B": "bad", "label": "A>B"}
        for word in words
    ]
    path = tmp_path / "gpt.jsonl"
    path.write_text("\n".join(json.dumps({**row, "source": "livecodebench"}) for row in rows), encoding="utf-8")
    arguments = ["--benchmark", f"judgebench={path}", "--aggregation", "mean", "--json", "--bootstrap-samples", 100]
    (found,) = json.loads(run(capsys, "evaluate", model, *arguments))["benchmarks"]
    assert (found["rows"][0]["n_items"], found["rows"][0]["n_failed"], found["invariance"]["prompts"]) == (5, 0, 5)
    assert found["invariance"]["holds"]


def test_evaluate_writes_a_page_that_asks_for_nothing_outside(model, unseen, tmp_path, capsys):
    run(capsys, "evaluate", model, unseen, "--bootstrap-samples", 100, "--report", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for words in ("Agreement with human preference", "Router", "Errors and doubt", "default-src"):
        assert words in page


def test_evaluate_skips_bad_rows_only_when_told_and_counts_them(model, tmp_path, capsys):
    rows = [*comparison_rows(6, 9), '{"prompt": "x"}\n']
    file = write(tmp_path / "some.jsonl", rows)
    assert "some.jsonl:7" in run(capsys, "evaluate", model, file, code=cli.FAILED)
    out = run(capsys, "evaluate", model, file, "--bad-rows", "skip", "--bootstrap-samples", 100)
    assert "rows skipped: 1" in out


def test_evaluate_leaves_tested_prompts_out_of_the_baselines_training(model, project, capsys):
    file = project / "comparisons.jsonl"
    out = run(capsys, "evaluate", model, file, "--train", file, "--bootstrap-samples", 100)
    assert "left out: 40" in out
    assert "bag_of_words (no training comparisons)" in out


def test_an_aggregation_the_model_lacks_is_refused_before_scoring(model, unseen, capsys):
    err = run(capsys, "evaluate", model, unseen, "--aggregation", "task", code=cli.FAILED)
    assert "experts.with_task_model" in err


@pytest.mark.parametrize("verb", ["evaluate", "score", "compare"])
def test_a_missing_model_is_a_message(verb, unseen, tmp_path, capsys):
    more = {"evaluate": [unseen], "score": [unseen, tmp_path / "out.jsonl"], "compare": ["--prompt", "a", "--response", "b"]}[verb]
    assert "no-model-here" in run(capsys, verb, tmp_path / "no-model-here", *more, code=cli.FAILED)


def test_an_unknown_device_is_a_message(model, unseen, capsys):
    assert "--device abacus: not usable here" in run(capsys, "evaluate", model, unseen, "--device", "abacus", code=cli.FAILED)


def test_the_aggregations_on_the_command_line_are_those_of_the_model():
    from dmoerm.modeling.inner import AGGREGATIONS as IN_MODELING

    assert AGGREGATIONS == IN_MODELING


def test_the_engines_on_the_command_line_are_those_of_bulk_scoring():
    from dmoerm.cli.score import ENGINES
    from dmoerm.scoring import bulk

    assert ENGINES == bulk.ENGINES


# --- the library below evaluate ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def loaded(model):
    from dmoerm import RewardModel

    return RewardModel.from_pretrained(model)


def plain(number, chosen, rejected, category=None):
    from dmoerm.records import Comparison, Message

    prompt = (Message("user", f"explain the number river {number}"),)
    return Comparison(f"p{number}", prompt, (chosen, rejected), (1, 2), category=category)


def test_rows_take_the_own_category_or_else_the_routed_one(loaded):
    from dmoerm.evaluation.run import evaluate_model

    comparisons = [plain(0, "good", "bad", "poetry"), plain(1, "good", "bad"), plain(2, "clear", "late")]
    report = evaluate_model(loaded, comparisons, samples=100)
    routed = {report.results[c.id][0].category for c in comparisons[1:]}
    assert {row.category for row in report.rows} == {None, "poetry"} | routed
    assert report.routing is None  # the model knows no poetry


def test_a_response_that_cannot_be_scored_makes_its_pair_wrong_and_is_counted(loaded):
    from dmoerm.evaluation.run import evaluate_model

    report = evaluate_model(loaded, [plain(0, "good", " "), plain(1, "good", "bad")], samples=100)
    own = report.row("model/mlp").agreement
    assert (own.n_pairs, own.n_failed) == (2, 1)
    assert own.value <= 0.5
    assert report.risk["margin"].pairs == 1


def test_the_error_of_the_doubt_table_is_the_share_of_wrong_pairs(loaded):
    from dmoerm.evaluation.run import evaluate_model

    comparisons = [plain(n, chosen, rejected) for n, (chosen, rejected) in enumerate(zip(GOOD, POOR, strict=True))]
    report = evaluate_model(loaded, comparisons, samples=100)
    margins = [report.results[c.id][0].reward - report.results[c.id][1].reward for c in comparisons]
    wrong = [0.5 - 0.5 * ((margin > 0) - (margin < 0)) for margin in margins]
    risk = report.risk["margin"]
    assert risk.error == pytest.approx(sum(wrong) / len(wrong))
    surest = sorted(zip((-abs(margin) for margin in margins), wrong, strict=True))[:4]
    assert risk.error_at_half == pytest.approx(sum(value for _, value in surest) / 4)
    assert risk.gain == pytest.approx(risk.error - risk.curve.area)


def test_the_name_of_a_baseline_in_recipes_is_understood(loaded):
    from dmoerm.evaluation.run import evaluate_model

    report = evaluate_model(loaded, [plain(0, "good", "bad")], baselines=["length"], aggregations=["mlp"], samples=100)
    assert [row.model for row in report.rows if row.category is None] == ["model/mlp", "longer"]


def test_nothing_to_measure_on_is_an_error(loaded):
    from dmoerm.errors import DataError
    from dmoerm.evaluation.run import evaluate_model

    with pytest.raises(DataError, match="measured on nothing"):
        evaluate_model(loaded, [])


def test_equal_ids_in_two_files_are_kept_apart(tmp_path):
    from dmoerm.evaluation.run import read_files

    first, second = (write(tmp_path / name, comparison_rows(2, seed)) for seed, name in enumerate(("a.jsonl", "b.jsonl")))
    comparisons, formats, _ = read_files([first, second])
    assert [c.id for c in comparisons] == ["c0", "c1", f"{second}/c0", f"{second}/c1"]
    assert formats == {str(first): "native", str(second): "native"}


# --- score ----------------------------------------------------------------------------------------------------------------------------


def score_rows():
    return [
        {"id": "one", "prompt": "explain the number", "response": "good clear true"},
        {"prompt": [{"role": "user", "content": "tell me"}], "responses": ["warm words", {"text": "cold words"}]},
        {"id": 7, "prompt": "explain", "chosen": "exact", "rejected": "wrong"},
    ]


def test_score_gives_one_row_a_response_in_order(model, tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", score_rows())
    summary = json.loads(run(capsys, "score", model, source, tmp_path / "out.jsonl"))
    assert (summary["rows"], summary["responses"], summary["failed"]) == (3, 5, 0)
    rows = read(tmp_path / "out.jsonl")
    assert [(row["id"], row["response_index"]) for row in rows] == [("one", 0), ("in.jsonl:2", 0), ("in.jsonl:2", 1), (7, 0), (7, 1)]
    keys = {"reward", "category", "category_probability", "capabilities", "capability_spread", "uncertainty", "truncated"}
    assert all(keys <= set(row) for row in rows)
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}


def test_score_gives_the_rewards_of_the_library(model, tmp_path, capsys):
    from dmoerm import RewardModel

    source = write(tmp_path / "in.jsonl", score_rows())
    run(capsys, "score", model, source, tmp_path / "out.jsonl.gz", "--aggregation", "mean", "--category", "chitchat")
    expected = RewardModel.from_pretrained(model).score("tell me", ["warm words", "cold words"], category="chitchat", aggregation="mean")
    found = [row for row in read(tmp_path / "out.jsonl.gz") if row["id"] == "in.jsonl:2"]
    assert [row["reward"] for row in found] == pytest.approx([reward.reward for reward in expected], abs=1e-5)
    assert {row["category"] for row in found} == {"chitchat"}


@pytest.mark.faults("F28")
def test_a_row_that_fails_is_reported_and_the_others_are_scored(model, tmp_path, capsys):
    rows = [
        {"id": "a", "prompt": "explain", "response": " "},
        {"id": "b", "prompt": "explain", "responses": ["good", ""]},
        '{"id": "c", broken\n',
        {"id": "d", "text": "neither"},
        {"id": "e", "prompt": "explain", "response": "true"},
    ]
    source = write(tmp_path / "in.jsonl", rows)
    err = run(capsys, "score", model, source, tmp_path / "out.jsonl", code=cli.PARTLY_DONE)
    assert "4 of 6 could not be scored" in err
    found = read(tmp_path / "out.jsonl")
    assert [(row["id"], row["response_index"], "error" in row) for row in found] == [
        ("a", 0, True),
        ("b", 0, False),
        ("b", 1, True),
        ("in.jsonl:3", None, True),
        ("d", None, True),
        ("e", 0, False),
    ]
    assert '"prompt"' in found[4]["error"]


@pytest.mark.faults("F29")
def test_score_leaves_an_existing_output_alone_unless_told_to_overwrite(model, tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", score_rows())
    (tmp_path / "out.jsonl").write_text("mine")
    assert "exists already" in run(capsys, "score", model, source, tmp_path / "out.jsonl", code=cli.FAILED)
    assert (tmp_path / "out.jsonl").read_text() == "mine"
    run(capsys, "score", model, source, tmp_path / "out.jsonl", "--overwrite")
    assert len(read(tmp_path / "out.jsonl")) == 5


def test_score_refuses_a_missing_input_and_an_unknown_category_without_a_trace(model, tmp_path, capsys):
    assert "no such file" in run(capsys, "score", model, tmp_path / "none.jsonl", tmp_path / "out.jsonl", code=cli.FAILED)
    source = write(tmp_path / "in.jsonl", score_rows())
    assert "'poetry'" in run(capsys, "score", model, source, tmp_path / "out.jsonl", "--category", "poetry", code=cli.FAILED)
    array = tmp_path / "array.jsonl"
    array.write_text("[1, 2]\n")
    assert "one JSON array" in run(capsys, "score", model, array, tmp_path / "out.jsonl", code=cli.FAILED)
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "array.jsonl"}


@pytest.fixture
def stopped(model, tmp_path):
    """A run that was interrupted after the first two of three rows."""
    from dmoerm import RewardModel
    from dmoerm.scoring import bulk

    source = write(tmp_path / "in.jsonl", score_rows())

    def interrupt(done, total):
        assert total == 3
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bulk.score_file(RewardModel.from_pretrained(model), source, tmp_path / "out.jsonl", shard_responses=3, progress=interrupt)
    assert not (tmp_path / "out.jsonl").exists()
    return source, tmp_path / "out.jsonl"


@pytest.mark.faults("F29")
def test_a_stopped_run_goes_on_where_it_ended_and_gives_the_same_file(model, stopped, tmp_path, capsys):
    source, target = stopped
    (target.with_name("out.jsonl.parts") / "part-00000001.jsonl.0123abcd.tmp").write_text('{"half a ro')  # killed while it wrote
    assert "--resume" in run(capsys, "score", model, source, target, code=cli.FAILED)
    assert "another shard_responses (then 3, now 512)" in run(capsys, "score", model, source, target, "--resume", code=cli.FAILED)
    summary = json.loads(run(capsys, "score", model, source, target, "--resume", "--shard-responses", 3))
    assert (summary["rows"], summary["resumed_rows"], summary["responses"]) == (3, 2, 5)
    run(capsys, "score", model, source, tmp_path / "whole.jsonl", "--resume", "--shard-responses", 3)  # from the beginning
    assert target.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl", "whole.jsonl"}


@pytest.mark.faults("F29")
def test_resume_refuses_another_setting_and_a_changed_input(model, stopped, capsys):
    source, target = stopped
    assert "another aggregation" in run(capsys, "score", model, source, target, "--resume", "--aggregation", "wco", code=cli.FAILED)
    rows = score_rows()
    write(source, [{**rows[0], "response": "other"}, *rows[1:]])
    assert "another input_sha256" in run(capsys, "score", model, source, target, "--resume", code=cli.FAILED)
    write(source, rows[:1])
    assert "another input_rows (then 3, now 1)" in run(capsys, "score", model, source, target, "--resume", code=cli.FAILED)
    run(capsys, "score", model, source, target, "--overwrite")
    assert len(read(target)) == 1


@pytest.mark.faults("F29")
def test_resume_refuses_another_model(model, stopped, project, tmp_path, capsys):
    from dmoerm import RewardModel

    other = RewardModel.from_pretrained(model)
    other.inner["general"].reference_A.add_(1.0)
    other.save_pretrained(tmp_path / "other")
    source, target = stopped
    assert "another model" in run(capsys, "score", tmp_path / "other", source, target, "--resume", code=cli.FAILED)


def test_score_never_writes_over_its_input(model, tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", score_rows())
    assert "input and output at once" in run(capsys, "score", model, source, source, "--overwrite", code=cli.FAILED)
    assert read(source) == score_rows()


# --- compare --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.faults("F39")
def test_compare_shows_winner_route_and_bars_in_forty_columns(model, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    out = run(capsys, "compare", model, "--prompt", "explain the number", "--response", "good clear true", "--response", "bad wrong late")
    assert "Judged as" in out
    assert " wins by " in out or "tied" in out
    assert max(map(len, out.splitlines())) <= 40


def test_compare_json_has_every_reward_and_the_winner_is_the_highest(model, tmp_path, capsys):
    row = tmp_path / "row.json"
    row.write_text(json.dumps({"prompt": "explain", "responses": ["good", "bad", "river"]}, indent=2), encoding="utf-8")
    found = json.loads(run(capsys, "compare", model, "--file", row, "--json"))
    rewards = [result["reward"] for result in found["results"]]
    assert found["winner"] == max(range(3), key=rewards.__getitem__)
    assert found["margin"] == pytest.approx(max(rewards) - sorted(rewards)[1])


def test_compare_reads_prompt_and_responses_from_standard_input(model, capsys, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("explain the number\ngood clear\nbad late\n\nnot read\n"))
    found = json.loads(run(capsys, "compare", model, "--json", "--category", "chitchat"))
    assert len(found["results"]) == 2
    assert {result["category"] for result in found["results"]} == {"chitchat"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a"], "belong together"),
        (["--response", "a"], "belong together"),
        (["--prompt", "a", "--response", "  "], "empty"),
        (["--file", "none.json"], "none.json"),
        (["--file", "none.json", "--prompt", "a"], "leave out --prompt"),
    ],
)
def test_compare_says_what_is_missing(model, capsys, arguments, message):
    assert message in run(capsys, "compare", model, *arguments, code=cli.FAILED)


# --- quickstart -----------------------------------------------------------------------------------------------------------------------


def test_quickstart_writes_model_and_page_and_ends_with_what_to_try_next(project, tiny_encoder_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sets = [
        f"backbone.name={tiny_encoder_folder}",
        f"data.comparisons=[{project / 'comparisons.jsonl'}]",
        f"taxonomy={project / 'taxonomy.yaml'}",
        "backbone.max_length_tokens=48",
        "task_model.depth=1",
        "task_model.epochs=1",
        "task_model.minimum_comparisons=6",
        "experts.depth=1",
        "experts.epochs=1",
        "experts.minimum_labels=6",
        "aggregator.cross_fit_folds=2",
        "aggregator.epochs=5",
        "evaluation.bootstrap_samples=100",
    ]
    arguments = ["quickstart", "--output", "first", "--seed", "1", *(word for value in sets for word in ("--set", value))]
    out = run(capsys, "-q", *arguments)
    assert out.rstrip().splitlines()[-1].startswith("  dmoerm init my-rm")
    for words in ("model/mlp", "One held-out comparison", "people: rank 1", "dmoerm compare first/model"):
        assert words in out
    assert (tmp_path / "first" / "model" / "dmoerm.json").is_file()
    assert (tmp_path / "first" / "model-run" / "evaluation.json").is_file()
    page = (tmp_path / "first" / "report.html").read_text(encoding="utf-8")
    for words in ("In short", "Router", "By capability", "Errors and doubt"):
        assert words in page
    assert "already" in run(capsys, "-q", *arguments, code=cli.FAILED)
