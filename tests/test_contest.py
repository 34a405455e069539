"""Every contender on one tiny training set: pieces that are trained once, rows that score everything, and tables worked by hand."""

import gc
import json
import math
import random
import shutil
from dataclasses import replace

import pytest
from test_cli_verbs import FILLER, GOOD, POOR, RECIPE, TASKS, TAXONOMY, comparison_rows, run, write

from dmoerm.cli.baselines import CONTENDERS as CLI_CONTENDERS
from dmoerm.data.sources import load_run_data
from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.bootstrap import Resampling
from dmoerm.evaluation.contest import Contest, ContestPlan, Piece
from dmoerm.evaluation.contest_report import contest_report, write_contest_csv
from dmoerm.evaluation.pools import Pool
from dmoerm.labeling.judged import JudgedPair, response_hash
from dmoerm.recipe import load_recipe
from dmoerm.records import OVERALL, Comparison, Message, prompt_hash

ROWS = (
    *("double-layer/mlp", "double-layer/mean", "double-layer/wco", "double-layer/uwo", "without-outer/mlp", "without-outer/mean"),
    *("without-inner", "single", "single-judged", "ensemble/mean", "ensemble/wco", "ensemble/uwo", "multi-head"),
)


def pools():
    rng = random.Random(3)
    made = []
    for number, task in enumerate(TASKS.values()):
        texts = [" ".join(rng.sample(words, 2) + rng.sample(FILLER, 4)) for words in (GOOD, POOR, GOOD)]
        made.append(
            Pool(f"p{number}", (Message("user", f"{task} pool {number}"),), (*texts, ""), (0.9, 0.2, 0.7, 0.0), ("a", "b", "c", "d"))
        )
    return made


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_encoder_folder):
    """Recipe and data of forty comparisons, each with the verdict of a judge besides its capability labels."""
    folder = tmp_path_factory.mktemp("contest")
    rows = comparison_rows(40, 1)
    for row in rows:
        row["labels"].append({**row["labels"][0], "capability": OVERALL})
        row["responses"] = [f"{text} {row['id'].replace('c', ' ')}" for text in row["responses"]]
    write(folder / "comparisons.jsonl", rows)
    (folder / "recipe.yaml").write_text(RECIPE.format(backbone=tiny_encoder_folder), encoding="utf-8")
    (folder / "taxonomy.yaml").write_text(TAXONOMY, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def setting(project):
    recipe = load_recipe(project / "recipe.yaml")
    return recipe, load_run_data(recipe)


@pytest.fixture(scope="module", autouse=True)
def frozen_objects():
    """Each phase ends in a full garbage collection (accelerate), which need not look at every object of every library again."""
    gc.freeze()
    yield
    gc.unfreeze()


def plan(**changes):
    made = {"models": CLI_CONTENDERS, "members": 2, "pools": tuple(pools()), "probe_prompts": 3}
    return ContestPlan(**{**made, **changes})


@pytest.fixture(scope="module")
def finished(setting, project, tiny_classifier_folder):
    """The folder of a contest that has run, and its report."""
    contest = Contest(*setting, project / "all", plan(others={"published": str(tiny_classifier_folder)}), quiet=True)
    contest.run_all()
    return project / "all", contest.report()


@pytest.fixture(scope="module")
def noisy(setting, project):
    """The same of one contender, a quarter of its preferences flipped."""
    contest = Contest(*setting, project / "noisy", ContestPlan(models=("single",), flips=(0.25,)), quiet=True)
    contest.run_all()
    return project / "noisy", contest.report()


def stored(folder, model, flip=0, seed=0):
    return json.loads((folder / "pieces" / f"{model}-flip-{flip:g}-seed-{seed}.json").read_text(encoding="utf-8"))


# --- what is trained ------------------------------------------------------------------------------------------------------------------


def test_every_row_scores_tests_pools_and_probes(finished):
    _, report = finished
    trained = [*ROWS, "published"]
    overall = [row.model for row in report.rows if row.category is None]
    assert set(overall) == {*trained, "random", "longer", "bag_of_words"}
    assert all(report.row(model).agreement.n_failed == 0 for model in overall)
    study, probes = report.pools[0], report.probes[0]
    assert [row.name for row in study.best_of_n if row.name in trained] == trained
    assert {row.name for row in study.frontier} >= set(trained)
    # Our models refuse the two empty members of the pools; the classifier rewards whatever it gets.
    assert [row.failed for row in study.best_of_n if row.name in trained] == [2] * len(ROWS) + [0]
    assert probes.models == [*trained, "bag_of_words", "longest"]


def test_the_names_of_the_command_line_are_those_of_the_library():
    from dmoerm.training.contenders import CONTENDERS

    assert tuple(CONTENDERS) == CLI_CONTENDERS
    assert [row for rows, _ in CONTENDERS.values() for row in rows] == list(ROWS)


def test_single_is_a_task_model_trained_alone(setting, finished):
    from dmoerm.training.checkpoints import RunState
    from dmoerm.training.inner import task_epochs
    from dmoerm.training.phase1 import task_items, train_task_model
    from dmoerm.training.pipeline import inner_plan, load_backbone, prepare
    from dmoerm.training.progress import RunLog
    from dmoerm.training.rows import member_vectors

    recipe, data = setting
    backbone, renderer = load_backbone(recipe)
    log = RunLog(None, quiet=True)
    prepared = prepare(data.comparisons, data.labelled, recipe, log, backbone=backbone, renderer=renderer, state=RunState(None))
    work, phases = prepared.work, inner_plan(recipe, prepared)
    epochs = task_epochs(work, "general", prepared.comparisons, phases)
    items = task_items([(work.rows.of_comparison[c.id], [(p.chosen, p.rejected) for p in c.pairs()]) for c in prepared.comparisons])
    module, _ = train_task_model(
        backbone, work.rows, "alone", items, [], phases.task_shape, phases.task_settings,
        base_vectors=work.base_vectors, states=work.states, stop_after=epochs,
    )  # fmt: skip
    work.rows.add(data.test, renderer)
    (rewards,) = (found["single"] for key, found in stored(finished[0], "single")["rewards"].items() if key.startswith("test"))
    for comparison, given in zip(data.test, rewards, strict=True):
        numbers = work.rows.of_comparison[comparison.id]
        vectors = member_vectors(backbone, work.rows, numbers, task="alone", experts=None, states=None, bf16=False)
        assert given == pytest.approx((vectors[:, 0] @ module.heads_KD.detach()[0]).tolist(), abs=1e-5)


def test_the_double_layer_is_what_dmoerm_train_gives(setting, finished, tmp_path):
    from dmoerm.modeling.reward_model import ScoreRequest
    from dmoerm.training.checkpoints import RunState
    from dmoerm.training.pipeline import train_model

    recipe, data = setting
    units = shutil.copytree(finished[0] / "units" / "flip-0-seed-0", tmp_path / "run")  # phases 1 and 2 are found there by their content
    model = train_model(data, recipe, state=RunState(units), resume=True).model
    (found,) = (value for key, value in stored(finished[0], "double-layer")["rewards"].items() if key.startswith("test"))
    (outer,) = (value for key, value in stored(finished[0], "without-outer")["rewards"].items() if key.startswith("test"))
    for category, aggregation, rewards in ((None, "wco", found["double-layer/wco"]), ("general", "mlp", outer["without-outer/mlp"])):
        requests = [ScoreRequest(c.prompt, c.responses, category) for c in data.test]
        for results, given in zip(model.score_many(requests, aggregation=aggregation), rewards, strict=True):
            assert given == pytest.approx([one.reward for one in results], abs=1e-4)


def test_flipped_preferences_change_what_is_learned_and_nothing_of_the_test(noisy):
    clean, flipped = (stored(noisy[0], "single", flip)["rewards"] for flip in (0, 0.25))
    assert clean.keys() == flipped.keys()
    (key,) = clean
    assert clean[key]["single"] != flipped[key]["single"]
    assert [(row.model, row.share) for row in noisy[1].noise] == [
        (model, share) for model in ("single", "random", "longer", "bag_of_words") for share in (0.0, 0.25)
    ]
    assert [path.name for path in (noisy[0] / "units").iterdir()] == ["flip-0-seed-0"]  # the others are not asked for again


def test_heads_that_categories_share_see_the_same_preferences_as_the_rest(setting, noisy):
    contest = Contest(*setting, noisy[0], ContestPlan(models=("single",), flips=(0.25,)), quiet=True)
    clean, flipped = (contest._course_of(share, 0).work.everyone for share in (0.0, 0.25))
    changed = [before.id for before, after in zip(clean.comparisons, flipped.comparisons, strict=True) if before.ranks != after.ranks]
    assert len(changed) == math.floor(0.25 * len(setting[1].comparisons) + 0.5)
    assert clean.key != flipped.key
    assert flipped.heads == {}


# --- pieces ---------------------------------------------------------------------------------------------------------------------------


def test_a_contest_goes_on_where_it_stopped_and_trains_nothing_twice(setting, finished, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    assert Contest(*setting, folder, plan(), quiet=True).pending() == []
    lost, damaged = (folder / "pieces" / f"{name}-flip-0-seed-0.json" for name in ("single", "ensemble"))
    before = json.loads(lost.read_text(encoding="utf-8"))["rewards"]
    lost.unlink()
    damaged.write_text("{", encoding="utf-8")
    contest = Contest(*setting, folder, plan(), quiet=True)
    assert contest.pending() == [Piece("single", 0.0, 0), Piece("ensemble", 0.0, 0)]
    monkeypatch.setattr("dmoerm.training.rows.TrunkStates.compute", _only_for_scoring())  # the trunk of the training rows was kept
    contest.run(Piece("single", 0.0, 0))
    after = json.loads(lost.read_text(encoding="utf-8"))["rewards"]
    assert after.keys() == before.keys()
    for key in before:
        for first, second in zip(before[key]["single"], after[key]["single"], strict=True):
            assert second == pytest.approx(first, abs=1e-5)
    assert contest.pending() == [Piece("ensemble", 0.0, 0)]


def _only_for_scoring():
    from dmoerm.training.rows import TrunkStates

    compute = TrunkStates.compute

    def refuse(backbone, rows, numbers, layer, **options):
        assert not rows.of_comparison, "training rows go through the trunk once"
        return compute(backbone, rows, numbers, layer, **options)

    return staticmethod(refuse)


def test_more_texts_and_seeds_leave_pieces_of_them_to_do(setting, finished):
    more = Contest(*setting, finished[0], plan(seeds=(0, 1), probe_prompts=2), quiet=True).pending()
    assert [piece for piece in more if piece.seed == 0] == [Piece(name, 0.0, 0) for name in CLI_CONTENDERS]  # other probes
    assert len([piece for piece in more if piece.seed == 1]) == len(CLI_CONTENDERS)


def test_the_first_seed_comes_first_then_its_flips_then_further_seeds(setting, tmp_path):
    asked = ContestPlan(models=("single",), seeds=(2, 5), flips=(0.4, 0.1), flip_seeds=(2,))
    order = [(piece.flip, piece.seed) for piece in Contest(*setting, tmp_path, asked, quiet=True).pieces()]
    assert order == [(0.0, 2), (0.1, 2), (0.4, 2), (0.0, 5)]


def test_a_folder_of_another_recipe_or_data_is_refused_by_field(setting, finished):
    recipe, data = setting
    other = recipe.model_copy(update={"task_model": recipe.task_model.model_copy(update={"rank": 8})})
    with pytest.raises(ConfigError, match=r"made with something else:\n  task_model\.rank: 4 then, 8 now\n"):
        Contest(other, data, finished[0], plan(), quiet=True)
    with pytest.raises(ConfigError, match="members: 2 then, 3 now"):
        Contest(recipe, data, finished[0], plan(members=3), quiet=True)
    with pytest.raises(ConfigError, match=r"others: .*published"):
        Contest(recipe, data, finished[0], plan(others={"published": "elsewhere"}), quiet=True)


def test_what_cannot_be_compared_is_refused_before_anything_is_trained(setting, tmp_path):
    recipe, data = setting
    bare = [Comparison(c.id, c.prompt, c.responses, c.ranks, c.category) for c in data.comparisons]
    unlabelled = type(data)(data.taxonomy, tuple(bare), (), (), data.test)
    with pytest.raises(ConfigError, match="single-judged cannot be trained on this data: no overall verdicts"):
        Contest(recipe, unlabelled, tmp_path, plan(), quiet=True)
    full = recipe.model_copy(update={"task_model": recipe.task_model.model_copy(update={"kind": "full"})})
    with pytest.raises(ConfigError, match="share one backbone"):
        Contest(full, data, tmp_path, plan(), quiet=True)
    trained = Pool("p", data.comparisons[0].prompt, ("a", "b"), (0.0, 1.0), (None, None))
    with pytest.raises(DataError, match="all 1 pools have prompts that are trained on"):
        Contest(recipe, data, tmp_path, plan(pools=(trained,)), quiet=True)
    blind = tuple(replace(pool, gold=(None,) * 4) for pool in pools())
    with pytest.raises(DataError, match="no response of the pools has a gold score"):
        Contest(recipe, data, tmp_path, plan(pools=blind), quiet=True)
    with pytest.raises(ConfigError, match="seeds: 0, 0; each may be named once"):
        plan(seeds=(0, 0))
    with pytest.raises(DataError, match="no seed is finished"):
        Contest(recipe, data, tmp_path / "new", plan(), quiet=True).report()


# --- tables by hand -------------------------------------------------------------------------------------------------------------------

RESAMPLING = Resampling(seed=0, samples=200)


def four_pairs():
    """Four pairs of two categories; the first response wins."""
    return [
        Comparison(f"t{number}", (Message("user", f"prompt {number}"),), ("the winner", "no"), (1, 2), "ab"[number // 2])
        for number in range(4)
    ]


def rewards(*margins):
    return {f"t{number}": [margin, 0.0] for number, margin in enumerate(margins)}


RUNS = {
    0.0: {
        "other": [rewards(1, 1, -1, -1), rewards(1, 1, 1, -1)],  # 2 of 4, 3 of 4
        "double-layer/mlp": [rewards(1, 1, 1, -1), rewards(1, 1, 1, 1)],  # 3 of 4, 4 of 4
        "judge": [rewards(1, 0, 0, 0)],  # one right, three halves: 2.5 of 4
    },
    0.4: {"other": [rewards(-1, -1, 1, 1)], "double-layer/mlp": [rewards(1, -1, -1, -1)]},
}


def test_a_table_worked_by_hand():
    report = contest_report({"main": four_pairs()}, RUNS, resampling=RESAMPLING)
    assert report.reference == "double-layer/mlp"
    assert report.row("other").agreement.value == pytest.approx(5 / 8)
    assert report.row("other").by_seed == (0.5, 0.75)
    assert report.row("double-layer/mlp").agreement.value == pytest.approx(7 / 8)
    assert report.row("double-layer/mlp").difference is None
    assert report.row("other").difference.value == pytest.approx(-1 / 4)
    assert report.row("judge").agreement.value == pytest.approx(2.5 / 4)
    assert report.row("judge").difference.value == pytest.approx(2.5 / 4 - 7 / 8)
    assert report.row("other", category="b").agreement.value == pytest.approx(1 / 4)
    assert report.row("double-layer/mlp", category="b").agreement.value == pytest.approx(3 / 4)
    noise = {(row.model, row.share): row for row in report.noise}
    assert set(noise) == {(model, share) for model in ("other", "double-layer/mlp") for share in (0.0, 0.4)}  # the judge learns nothing
    # One seed has the share, so the change is to the same seed: 2 of 4 both, and 1 of 4 after 3 of 4.
    assert noise["other", 0.4].change.value == pytest.approx(0.0)
    assert noise["double-layer/mlp", 0.4].change.value == pytest.approx(-0.5)
    assert noise["double-layer/mlp", 0.0].change is None
    assert noise["double-layer/mlp", 0.4].difference is None
    assert noise["other", 0.4].difference.value == pytest.approx(0.25)  # 2 of 4, the reference 1 of 4
    # What stands beside the flipped seed is the same seed without flips, not the mean of both.
    assert [noise[model, 0.0].agreement.value for model in ("other", "double-layer/mlp")] == [0.5, 0.75]
    assert noise["other", 0.0].seeds == 1
    assert noise["other", 0.0].difference.value == pytest.approx(-0.25)
    text = report.as_table()
    assert "main: 4 prompts, 4 pairs *" in text
    assert "main: minus double-layer/mlp that learned from the same flipped preferences" in text
    assert next(line for line in text.splitlines() if line.startswith("other")).split()[:4] == ["other", "0.625", "[0.250,", "1.000]"]


def test_a_row_that_is_silent_on_a_test_has_no_row_there():
    runs = {0.0: {**RUNS[0.0], "judge": [{"t0": [1.0, 0.0]}]}}
    report = contest_report({"main": four_pairs(), "judged": four_pairs()[:1]}, runs, resampling=RESAMPLING)
    assert {row.model for row in report.rows if row.test == "main"} == {"other", "double-layer/mlp"}
    assert report.row("judge", "judged").agreement.value == 1.0


def test_figures_are_written_as_csv(tmp_path):
    report = contest_report({"main": four_pairs()}, RUNS, resampling=RESAMPLING)
    paths = write_contest_csv(tmp_path, report)
    assert [path.name for path in paths] == ["agreement.csv", "noise.csv"]
    lines = [line.split(",") for line in paths[0].read_text(encoding="utf-8").splitlines()]
    other = dict(zip(lines[0], lines[1], strict=True))
    assert (other["model"], float(other["agreement"]), other["pairs"], other["seed_2"]) == ("other", 0.625, "4", "0.75")
    assert float(other["difference"]) == -0.25
    json.dumps(report.as_dict(), allow_nan=False)


def test_a_judge_stands_where_it_has_seen_every_pair(setting, tmp_path):
    recipe, data = setting
    seen = [c for c in data.test if c.has_preference and len(c.responses) == 2][:4]
    judged = [
        JudgedPair(c.id, prompt_hash(c.prompt), tuple(map(response_hash, c.responses)), c.category, "j", None, (1, 1), {OVERALL: (1, 1)})
        for c in seen
    ]
    contest = Contest(recipe, data, tmp_path, plan(models=("single",)), judges={"j": judged}, quiet=True)
    assert list(contest.tests) == ["test", "test, judged by j"]
    assert [c.id for c in contest.tests["test, judged by j"]] == [c.id for c in seen]


# --- the command ----------------------------------------------------------------------------------------------------------------------


def test_the_command_prints_one_table_and_goes_on(project, tmp_path, capsys):
    pool = write(
        tmp_path / "pool.jsonl",
        [
            {
                "prompt": one.prompt[0].content,
                "responses": [{"text": t, "gold": g, "model": m} for t, g, m in zip(one.responses, one.gold, one.authors, strict=True)],
                "fold": number,
            }
            for number, one in enumerate(pools())
        ],
    )
    asked = ["baselines", project / "recipe.yaml", "--output", tmp_path / "out", "--models", "single", "--pool", pool, "--only", "fold=1"]
    text = run(capsys, *asked)
    assert "minus single" in text
    assert "Agreement of every row: test" in (tmp_path / "out" / "baselines.html").read_text(encoding="utf-8")
    assert "Selection and the RL frontier, training seed 0" in text
    before = (tmp_path / "out" / "pieces" / "single-flip-0-seed-0.json").stat().st_mtime_ns
    found = json.loads(run(capsys, *asked, "--json"))
    assert (tmp_path / "out" / "pieces" / "single-flip-0-seed-0.json").stat().st_mtime_ns == before
    assert found["kind"] == "baselines"
    assert found["pools"]["0"]["prompts"] == 1
    assert all(math.isfinite(row["agreement"]["value"]) for row in found["rows"])
    assert (tmp_path / "out" / "pool-seed-0" / "frontier.csv").is_file()
    assert "expected NAME=PATH" in run(capsys, *asked, "--model", "oops", code=1)
