"""Public benchmarks score by the rules of their authors, on cases worked by hand; a batch that moves rewards is found out.

Here a response is the reward that it gets, written out ("3", "-1.5"), "failed" or "nan", so that every case can be read off its rows.
"""

import json
import math

import pytest

from dmoerm.cli import main as cli
from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.batch_invariance import check_batch_invariance
from dmoerm.evaluation.benchmarks import BENCHMARKS, run_benchmark
from dmoerm.evaluation.benchmarks.figures import Credit, Figure, figure_values, mean_of, measure
from dmoerm.evaluation.benchmarks.reward_bench import SECTIONS
from dmoerm.evaluation.benchmarks.reward_bench_2 import best_of
from dmoerm.evaluation.benchmarks.rm_bench import difficulties
from dmoerm.evaluation.benchmarks.run import parse_requests, read_benchmark
from dmoerm.evaluation.bootstrap import Resampling
from dmoerm.evaluation.scorers import Candidates, Longest
from dmoerm.records import Message


class Written:
    """Reads the reward that is written in the response."""

    name = "written"

    def score(self, candidates):
        return [[None if text == "failed" else float(text) for text in one.responses] for one in candidates]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(json.dumps(row) for row in rows)
    path.write_text(json.dumps(rows) if path.suffix == ".json" else lines, encoding="utf-8")
    return path


def scored(name, *paths, **options):
    return run_benchmark(Written(), name, paths, samples=100, **options)


def values(report):
    return {row.name: pytest.approx(row.value) for row in report.rows}


# --- RewardBench ----------------------------------------------------------------------------------------------------------------------


def pair(subset, chosen, rejected, number=0):
    return {
        "id": number,
        "prompt": f"question {subset} {number}",
        "chosen": chosen,
        "rejected": rejected,
        "chosen_model": "a",
        "rejected_model": "b",
        "subset": subset,
    }


def test_rewardbench_weighs_subsets_by_upstreams_prompts_and_sections_alike(tmp_path):
    rows = [
        pair("alpacaeval-easy", "2", "1", 1),
        pair("alpacaeval-easy", "1", "1", 2),  # a tie is wrong
        pair("mt-bench-med", "3", "-1", 3),
        pair("math-prm", "0", "1", 4),
        pair("hep-cpp", "1", "0", 5),
    ]
    report = scored("rewardbench", write(tmp_path / "core.jsonl", rows))
    found = values(report)
    assert found["Chat"] == (0.5 * 100 + 1.0 * 40) / 140
    assert found["Reasoning"] == (0.0 * 984 + 1.0 * 164) / (984 + 164)
    assert found["overall"] == (90 / 140 + 164 / 1148) / 2
    assert (report.row("Chat").n_items, report.row("Chat").n_ties, report.row("overall").n_items) == (3, 1, 5)
    assert "donotanswer" in report.missing
    assert "PARTIAL: no rows of alpacaeval-length" in report.as_table()


def test_the_whole_rewardbench_has_23_subsets_and_its_weights():
    assert {name: sum(subsets.values()) for name, subsets in SECTIONS.items()} == {
        "Chat": 358,
        "Chat Hard": 456,
        "Safety": 740,
        "Reasoning": 984 + 6 * 164,
    }
    assert sum(len(subsets) for subsets in SECTIONS.values()) == 23


def test_a_failed_or_undefined_reward_is_wrong_and_counted_and_never_zero(tmp_path):
    rows = [pair("math-prm", "failed", "-5", 1), pair("math-prm", "-4", "nan", 2), pair("math-prm", "-4", "-5", 3)]
    row = scored("rewardbench", write(tmp_path / "core.jsonl", rows)).row("math-prm")
    assert row.value == pytest.approx(1 / 3)
    assert (row.n_items, row.n_failed, row.n_ties) == (3, 2, 0)


# --- RewardBench 2 --------------------------------------------------------------------------------------------------------------------


def many(subset, chosen, rejected, number):
    return {
        "id": number,
        "prompt": f"question {number} of {subset}",
        "chosen": chosen,
        "rejected": rejected,
        "num_correct": len(chosen),
        "total_completions": len(chosen) + len(rejected),
        "subset": subset,
    }


@pytest.mark.parametrize(
    ("rewards", "earned"),
    [
        ([1.0, 0.0, 0.0, 0.0], 1.0),
        ([1.0, 1.0, 0.0, 0.0], 1 / 2),
        ([1.0, 1.0, 1.0, 1.0], 1 / 4),
        ([0.0, 1.0, 0.0, 0.0], 0.0),
        ([1.0, 2.0, 2.0, 0.0], 0.0),
        ([1.0, None, 0.0, 0.0], 0.0),
        ([None, None, None, None], 0.0),
    ],
)
def test_best_of_four_gives_one_over_k_for_k_equal_highest_rewards(rewards, earned):
    assert best_of(rewards, 0) == earned


TIES = [
    many("Ties", ["3"], ["1", "0"], "ref:1"),  # gap 2
    many("Ties", ["5", "4"], ["1"], "tied:1"),  # gap 3, spread 1: tanh(2/1 - 1)
    many("Ties", ["1"], ["2"], "ref:2"),  # gap -1: not accurate
    many("Ties", ["6", "2"], ["1"], "tied:2"),  # gap 1, spread 4: tanh(-1/4 - 1)
    many("Ties", ["2"], ["1"], "ref:3"),  # gap 1
    many("Ties", ["2", "2"], ["2"], "tied:3"),  # gap 0, spread 0: not accurate, no margin
]


def test_the_ties_of_rewardbench_2_follow_the_composite_worked_by_hand(tmp_path):
    report = scored("rewardbench2", write(tmp_path / "ties.jsonl", TIES))
    found = values(report)
    margin = (math.tanh(1.0) + math.tanh(-1.25)) / 2
    assert found["Ties: ref accuracy"] == 2 / 3
    assert found["Ties: tied accuracy"] == 2 / 3
    assert found["Ties: preferred"] == 1 / 3
    assert found["Ties: preferred hard"] == 1 / 3
    assert found["Ties: margin"] == margin
    assert found["Ties"] == 0.3 * 2 / 3 + 0.3 * 2 / 3 + 0.2 / 3 + 0.2 / 3 + 0.01 * margin
    assert found["Ties"] == 0.5328998859
    assert report.row("Ties").n_items == 6
    assert report.row("Ties").n_prompts == 3  # ref:N and tied:N are drawn together


def test_a_question_without_its_partner_counts_in_its_accuracy_alone(tmp_path):
    rows = [*TIES, many("Ties", ["1", "2"], ["0"], "tied:9")]
    found = values(scored("rewardbench2", write(tmp_path / "ties.jsonl", rows)))
    assert found["Ties: tied accuracy"] == 3 / 4
    assert found["Ties: preferred"] == 1 / 3


def test_a_failed_response_makes_its_ties_question_inaccurate(tmp_path):
    rows = [many("Ties", ["3"], ["failed"], "ref:1"), many("Ties", ["5", "4"], ["1"], "tied:1")]
    report = scored("rewardbench2", write(tmp_path / "ties.jsonl", rows))
    found = values(report)
    assert (found["Ties: ref accuracy"], found["Ties: preferred"], found["Ties: preferred hard"]) == (0.0, 1.0, 0.0)
    assert "Ties: margin" not in found
    assert found["Ties"] == 0.3 + 0.2
    assert report.row("Ties").n_failed == 1


def test_rewardbench_2_overall_is_the_unweighted_mean_of_the_subsets(tmp_path):
    rows = [
        many("Factuality", ["4"], ["1", "2", "3"], "f1"),
        many("Factuality", ["3"], ["3", "2", "1"], "f2"),
        many("Factuality", ["0"], ["1", "2", "3"], "f3"),  # (1 + 1/2 + 0) / 3 = 1/2
        many("Precise IF", ["1"], ["0", "0", "0"], "p"),
        many("Math", ["0"], ["1", "0", "0"], "m"),
        many("Safety", ["1"], ["0", "0", "0"], "s"),
        many("Focus", ["1"], ["1", "1", "1"], "o"),
        *TIES,
    ]
    report = scored("rewardbench2", write(tmp_path / "test.jsonl", rows))
    assert values(report)["overall"] == (0.5 + 1.0 + 0.0 + 1.0 + 0.25 + 0.5328998859) / 6
    assert report.missing == ()


# --- RM-Bench -------------------------------------------------------------------------------------------------------------------------


def styles(domain, chosen, rejected, number):
    return {"id": f"{domain}{number}", "prompt": f"{domain} {number}", "chosen": chosen, "rejected": rejected, "domain": domain}


def test_the_rm_bench_matrix_is_hard_above_normal_on_and_easy_below_the_diagonal():
    # Rows (chosen 3, 0, 1) against columns (rejected 2, 1, 0): 1 1 1 / 0 0 0 / 0 0 1; equal rewards lose.
    won = difficulties([3.0, 0.0, 1.0, 2.0, 1.0, 0.0])
    assert won == {"hard": pytest.approx(2 / 3), "normal": pytest.approx(2 / 3), "easy": 0.0}


def test_rm_bench_halves_safety_and_averages_four_domains(tmp_path):
    right, wrong = (["1", "1", "1"], ["0", "0", "0"]), (["0", "0", "0"], ["1", "1", "1"])
    rows = [
        styles("chat", ["3", "0", "1"], ["2", "1", "0"], 1),
        styles("code", *right, 1),
        styles("math", *wrong, 1),
        styles("safety-refuse", *right, 1),
        styles("safety-response", *wrong, 1),
        styles("safety-response", *wrong, 2),
    ]
    found = values(scored("rm-bench", write(tmp_path / "total_dataset.json", rows)))
    assert found["chat"] == 4 / 9
    assert found["safety"] == 0.5  # not 1/3: each half weighs the same
    assert found["overall"] == (4 / 9 + 1 + 0 + 0.5) / 4
    assert found["hard"] == (2 / 3 + 1 + 0 + 0.5) / 4
    assert found["easy"] == (0 + 1 + 0 + 0.5) / 4
    assert found["chat, normal"] == 2 / 3


def test_rm_bench_takes_an_undivided_safety_domain(tmp_path):
    found = values(scored("rm-bench", write(tmp_path / "s.json", [styles("safety", ["1"] * 3, ["0"] * 3, 1)])))
    assert found["safety"] == found["overall"] == 1.0


def test_a_failed_style_loses_its_cells_only():
    assert difficulties([1.0, None, 1.0, 0.0, 0.0, 0.0]) == {name: pytest.approx(2 / 3) for name in ("hard", "normal", "easy")}


# --- JudgeBench -----------------------------------------------------------------------------------------------------------------------


def judged(source, first, second, label, number):
    return {
        "pair_id": f"p{number}",
        "source": source,
        "question": f"question {number}",
        "response_model": "m",
        "response_A": first,
        "response_B": second,
        "label": label,
    }


def test_judgebench_reads_a_tie_as_b_and_reports_micro_and_macro(tmp_path):
    rows = [
        judged("mmlu-pro-law", "2", "1", "A>B", 1),
        judged("mmlu-pro-law", "1", "1", "B>A", 2),  # right by the letter of upstream
        judged("mmlu-pro-law", "1", "1", "A>B", 3),
        judged("livebench-math", "failed", "0", "B>A", 4),
        judged("livecodebench", "0", "1", "B>A", 5),
    ]
    report = scored("judgebench", write(tmp_path / "gpt.jsonl", rows))
    found = values(report)
    assert found["overall"] == 3 / 5
    assert found["knowledge"] == 2 / 3
    assert found["macro"] == (2 / 3 + 0 + 1) / 3
    assert (report.row().n_ties, report.row().n_failed, report.missing) == (2, 1, ("reasoning",))


# --- LLMBar ---------------------------------------------------------------------------------------------------------------------------


def output(first, second, label):
    return {"input": f"do {first} {second} {label}", "output_1": first, "output_2": second, "label": label}


def test_llmbar_reads_its_folder_and_averages_the_sets(tmp_path):
    sets = {
        "Natural": [output("1", "0", 1)],
        "Adversarial/Neighbor": [output("1", "1", 1)],  # a tie is one half
        "Adversarial/GPTInst": [output("1", "0", 2)],
        "Adversarial/GPTOut": [output("0", "1", 2)],
        "Adversarial/Manual": [output("2", "1", 1), output("2", "1", 2)],
    }
    for name, rows in sets.items():
        write(tmp_path / name / "dataset.json", rows)
        write(tmp_path / name / "evaluators" / "result.json", rows)  # upstream keeps judgements beside the data
    found = values(scored("llmbar", tmp_path))
    assert found["adversarial"] == (0.5 + 0 + 1 + 0.5) / 4
    assert found["overall"] == (1 + 0.5 + 0 + 1 + 0.5) / 5
    assert found["all pairs"] == (1 + 0.5 + 0 + 1 + 1 + 0) / 6


# --- PPE ------------------------------------------------------------------------------------------------------------------------------


def vote(first, second, winner, **flags):
    return {"question_id": f"{first}{second}{winner}", "prompt": "p", "response_1": first, "response_2": second, "winner": winner, **flags}


def test_ppe_votes_leave_ties_out_and_flags_overlap(tmp_path):
    rows = [
        vote("2", "1", "model_a", hard_prompt=True, is_code=True),
        vote("2", "1", "model_b", hard_prompt=True, is_code=False),
        vote("1", "1", "model_b"),
        vote("2", "1", "tie"),
        vote("2", "1", "tie (bothbad)"),
    ]
    report = scored("ppe-human", write(tmp_path / "test.jsonl", rows))
    found = values(report)
    assert (found["overall"], found["hard_prompt"], found["is_code"]) == ((1 + 0 + 0.5) / 3, 0.5, 1.0)
    assert report.left_out == {"people called it a tie": 2}
    assert report.row().n_prompts == 1


def answers(rewards, scores, pairs=None):
    named = {f"response_{number}": reward for number, reward in enumerate(rewards, 1)}
    return {"question_id": "".join(rewards), "prompt": f"q {rewards}", **named, "scores": scores, "sampled_conflict_pairs": pairs}


def test_ppe_correctness_pools_the_conflict_pairs_of_a_set_and_averages_sets(tmp_path):
    first = [
        # right over wrong: 3 over 1, 2 over 3 (lost), 3 over 3 (tie); the fifth answer is in no pair
        answers(["3", "1", "3", "2", "9"], [True, False, False, True, True], [[0, 1], [2, 3], [0, 2]]),
        answers(["1", "0"], [True, False]),
        answers(["1", "0"], [True, True]),
    ]
    second = [answers(["0", "1"], [True, False], [[1, 0]])]
    paths = write(tmp_path / "PPE-GPQA-Best-of-K.jsonl", first), write(tmp_path / "PPE-math-Best-of-K.jsonl", second)
    report = scored("ppe-correctness", *paths)
    found = values(report)
    assert found["GPQA"] == (1 + 0 + 0.5 + 1) / 4
    assert found["MATH"] == 0.0
    assert found["overall"] == 0.625 / 2
    assert report.left_out == {"no right answer beside a wrong one": 1}
    items = read_benchmark("ppe-correctness", paths).items
    assert items[0].responses == ("3", "1", "3", "2")
    assert items[0].compared == ((0, 1), (3, 2), (0, 2))


# --- figures --------------------------------------------------------------------------------------------------------------------------


def test_an_interval_covers_the_value_and_draws_prompts_not_items():
    credits = [Credit("a", float(number % 2), (number,), f"prompt {number // 4}") for number in range(160)]
    (row,) = measure([Figure("all", ((1.0, "a"),))], credits, [False] * 160, [False] * 160, Resampling(0, 200))
    # Every prompt earns one half, so drawing prompts moves nothing; drawing items would.
    assert (row.value, row.low, row.high, row.n_items, row.n_prompts) == (0.5, 0.5, 0.5, 160, 40)


def test_a_mean_is_over_the_parts_that_are_there_and_a_sum_is_not_stretched():
    credits = [Credit("a", 1.0, (0,), "x"), Credit("b", 0.5, (1,), "y")]
    figures = [
        mean_of("mean", ["a", "b", "absent"]),
        Figure("sum", ((0.3, "a"), (0.7, "absent")), normalised=False),
        mean_of("none", ["c"]),
    ]
    assert figure_values(figures, credits) == {"mean": 0.75, "sum": pytest.approx(0.3)}


def test_a_benchmark_of_nothing_has_no_figures():
    with pytest.raises(DataError, match="a benchmark of nothing has no figures"):
        measure([Figure("all", ((1.0, "a"),))], [], [], [], Resampling())


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_says_its_rule_its_source_and_how_to_get_it(name):
    definition = BENCHMARKS[name]
    assert "arXiv" in definition.citation
    assert definition.rule
    assert definition.get[0].isupper()
    assert all(source.startswith("hub:") for source in definition.sources)


# --- faulty rows and names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("rewardbench", pair("math-prn", "1", "0"), r'rows\.jsonl:1: "subset" is \'math-prn\', did you mean "math-prm"\?'),
        ("rewardbench", {"prompt": "p", "chosen": "a", "rejected": "b"}, '"chosen_model" is missing'),
        ("rewardbench2", many("Tie", ["1"], ["0"], "x"), '"subset" is \'Tie\', did you mean "Ties"'),
        ("rewardbench2", many("Ties", ["1"], ["0"], "tied-1"), r"\"id\" is 'tied-1'; expected ref:N or tied:N"),
        ("rewardbench2", many("Math", ["1"], ["0"], "m") | {"num_correct": 2}, '"num_correct" is 2'),
        ("rm-bench", styles("chat", ["1", "2"], ["0"] * 3, 1), '"chosen" has 2 items; expected 3'),
        ("rm-bench", styles("chats", ["1"] * 3, ["0"] * 3, 1), 'did you mean "chat"'),
        ("judgebench", judged("livecodebench", "1", "0", "A=B", 1), r'"label" is \'A=B\'; expected "A>B" or "B>A"'),
        ("llmbar", output("1", "0", 3), '"label" is 3; expected 1 or 2'),
        ("llmbar", output("1", "0", 1), "nothing tells the set"),
        ("ppe-human", vote("1", "0", "a"), '"winner" is \'a\'; expected "model_a"'),
        ("ppe-correctness", answers(["1", "0"], [True]), '"scores" has 1 items for 2 responses'),
        ("ppe-correctness", answers(["1", "0"], [True, 0.5]), '"scores", item 2 is 0.5; expected true or false'),
        ("ppe-correctness", answers(["1", "0"], [True, False], [[0, 2]]), r"item 1 is \[0, 2\]; expected two indices from 0 to 1"),
        ("ppe-correctness", answers(["1", "0"], [True, True], [[0, 1]]), "of a right answer and a wrong one"),
    ],
)
def test_a_faulty_row_is_refused_with_its_place(name, row, message, tmp_path):
    path = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError, match=message):
        scored(name, path)


def test_faulty_rows_can_be_skipped_and_are_counted(tmp_path):
    path = write(tmp_path / "rows.jsonl", [pair("math-prm", "1", "0", 1), pair("nowhere", "1", "0", 2)])
    report = scored("rewardbench", path, bad_rows="skip")
    assert report.skipped_rows == 1
    assert "1 rows could not be used" in report.as_table()


def test_one_ties_id_twice_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"the id 'ref:1' of the subset Ties is there twice"):
        scored("rewardbench2", write(tmp_path / "ties.jsonl", [TIES[0], TIES[0]]))


def test_repeated_items_are_counted(tmp_path):
    rows = [pair("math-prm", "1", "0", 1), pair("math-prm", "1", "0", 1)]
    assert scored("rewardbench", write(tmp_path / "rows.jsonl", rows)).repeated == 1


def test_data_that_cannot_be_had_names_the_way_to_give_a_copy(tmp_path):
    with pytest.raises(DataError, match=r"(?s)reward-bench-2.*Name a copy of the split test.*--benchmark rewardbench2=PATH"):
        scored("rewardbench2")
    with pytest.raises(ConfigError, match=r"LLMBar has no default source.*--benchmark llmbar=PATH"):
        scored("llmbar")
    with pytest.raises(DataError, match="no such file"):
        scored("rewardbench2", tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match="a folder without the files of RewardBench 2; expected a file, or hub:"):
        scored("rewardbench2", tmp_path)
    with pytest.raises(DataError, match=r"no item in .*votes\.jsonl"):
        scored("ppe-human", write(tmp_path / "votes.jsonl", [vote("1", "0", "tie")]))


def test_requests_name_benchmarks_and_their_sources():
    assert parse_requests(["rm-bench", "ppe-correctness=a.jsonl", "ppe-correctness=hub:o/n::s"]) == {
        "rm-bench": [],
        "ppe-correctness": ["a.jsonl", "hub:o/n::s"],
    }
    with pytest.raises(ConfigError, match='no benchmark is named "rm_bench", did you mean "rm-bench"'):
        parse_requests(["rm_bench"])
    with pytest.raises(ConfigError, match="expected a file, a folder or hub:ORG/NAME after the ="):
        parse_requests(["rm-bench="])


def test_a_scorer_that_loses_a_response_is_refused(tmp_path):
    class Short(Written):
        def score(self, candidates):
            return [given[:1] for given in super().score(candidates)]

    path = write(tmp_path / "rows.jsonl", [pair("math-prm", "1", "0", 1)])
    with pytest.raises(DataError, match=r"gave \[1\] rewards for \[2\] responses"):
        run_benchmark(Short(), "rewardbench", [path], samples=100)


# --- batch invariance -----------------------------------------------------------------------------------------------------------------


CANDIDATES = [Candidates((Message("user", f"question {number}"),), ("1", "2", "2.0001")) for number in range(40)]


class Crowded(Written):
    """Every prompt beside it adds to a reward of the first response, as bad padding would."""

    def __init__(self, share):
        self.share = share

    def score(self, candidates):
        return [[first + self.share * (len(candidates) - 1), *rest] for first, *rest in super().score(candidates)]


def test_rewards_that_ignore_the_batch_are_invariant():
    found = check_batch_invariance(Written(), CANDIDATES, Written().score(CANDIDATES), prompts=10)
    assert found.holds
    assert (found.prompts, found.responses, found.largest_difference) == (10, 30, 0.0)
    assert (found.changed_rankings, found.rankings) == (0, 2 * 10 * 2)  # the third margin, 0.0001, is within the tolerance


def test_rewards_that_depend_on_the_batch_are_found_out():
    slight = Crowded(0.001)
    found = check_batch_invariance(slight, CANDIDATES, slight.score(CANDIDATES), prompts=10)
    assert not found.holds
    assert found.largest_difference == pytest.approx(0.039)  # 39 neighbours in the run, none alone
    assert found.changed_rankings == 0
    strong = Crowded(0.05)  # first: 1 + 39 * 0.05 = 2.95 in the run, 1 alone, 1.45 among ten
    found = check_batch_invariance(strong, CANDIDATES, strong.score(CANDIDATES), prompts=10)
    assert found.changed_rankings == 2 * 10 * 2
    assert "DOES NOT HOLD" in found.as_text()
    assert "40 of 40 rankings" in found.as_text()


def test_a_failure_that_comes_or_goes_with_the_batch_is_found_out():
    rewards = [[None, *rest] for _, *rest in Written().score(CANDIDATES)]
    found = check_batch_invariance(Written(), CANDIDATES, rewards, prompts=5)
    assert (found.changed_failures, found.holds) == (10, False)


def test_the_sample_is_drawn_by_its_seed():
    class Memory(Written):
        def __init__(self):
            self.seen = []

        def score(self, candidates):
            self.seen.append([one.prompt for one in candidates])
            return super().score(candidates)

    def seen(seed):
        scorer = Memory()
        check_batch_invariance(scorer, CANDIDATES, Written().score(CANDIDATES), prompts=5, seed=seed)
        return scorer.seen

    assert seen(1) == seen(1) != seen(2)
    assert [len(call) for call in seen(1)] == [1, 1, 1, 1, 1, 5]


def test_a_check_of_nothing_is_refused():
    with pytest.raises(DataError, match="No prompts to score again"):
        check_batch_invariance(Written(), [], [])
    with pytest.raises(ConfigError, match="expected at least 1 prompt and a tolerance >= 0"):
        check_batch_invariance(Written(), CANDIDATES, Written().score(CANDIDATES), tolerance=math.nan)


# --- report and command line ----------------------------------------------------------------------------------------------------------


def test_a_report_shows_baselines_rule_data_and_invariance(tmp_path):
    path = write(tmp_path / "rows.jsonl", [pair("math-prm", "10", "9", 1), pair("math-prm", "2", "10", 2)])
    report = scored("rewardbench", path)
    assert report.longest["overall"] == 0.5
    assert 0.0 <= report.random["overall"] <= 1.0
    table = report.as_table()
    for line in ("RewardBench: written", "Rule: strictly higher reward", f"Data: {path}", "Batch invariance: holds", "* fewer than 30"):
        assert line in table
    assert json.loads(json.dumps(report.as_dict(), allow_nan=False))["rows"][0]["longest"] == 0.5


def run_cli(capsys, code, *arguments):
    assert cli.main(["evaluate", *map(str, arguments), "--quiet", "--bootstrap-samples", "100"]) == code
    return capsys.readouterr()


def test_the_command_scores_several_benchmarks_with_the_longest_response(tmp_path, capsys):
    first = write(tmp_path / "core.jsonl", [pair("math-prm", "longer", "short", 1)])
    second = write(tmp_path / "gpt.jsonl", [judged("livecodebench", "longer", "short", "B>A", 1)])
    asked = ["longest", "--benchmark", f"rewardbench={first}", "--benchmark", f"judgebench={second}"]
    found = json.loads(run_cli(capsys, cli.DONE, *asked, "--json").out)["benchmarks"]
    assert [(one["benchmark"], one["rows"][0]["value"]) for one in found] == [("rewardbench", 1.0), ("judgebench", 0.0)]
    assert found[0]["sources"] == {str(first): None}
    table = run_cli(capsys, cli.DONE, *asked).out
    assert table.count("Batch invariance: holds") == 2


def test_the_command_refuses_what_does_not_go_together(tmp_path, capsys):
    path = write(tmp_path / "core.jsonl", [pair("math-prm", "longer", "short", 1)])
    benchmark = ("--benchmark", f"rewardbench={path}")
    assert "expected FILE … or --benchmark NAME" in run_cli(capsys, cli.FAILED, "longest").err
    assert "FILE, --against: not used with --benchmark" in run_cli(capsys, cli.FAILED, "longest", path, *benchmark, "--against", "x").err
    assert "has one reward and no aggregations" in run_cli(capsys, cli.FAILED, "longest", *benchmark, "--aggregation", "mean").err
    assert "under one" in run_cli(capsys, cli.FAILED, "longest", *benchmark, "--aggregation", "mean", "mlp").err


def test_a_published_classifier_is_a_model_too(tmp_path, tiny_decoder_folder, capsys):
    import torch
    from transformers import AutoConfig, AutoTokenizer, Qwen3ForSequenceClassification

    tokenizer, config = AutoTokenizer.from_pretrained(tiny_decoder_folder), AutoConfig.from_pretrained(tiny_decoder_folder)
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    torch.manual_seed(0)
    Qwen3ForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    words = ["river", "stone", "garden", "sun", "house", "bird", "king", "music", "bread", "snow"]
    rows = [pair("math-prm", f"the {word} is good", "a cold long road to the old town", number) for number, word in enumerate(words)]
    path = write(tmp_path / "core.jsonl", rows)
    shown = run_cli(capsys, cli.DONE, tmp_path / "classifier", "--benchmark", f"rewardbench={path}", "--json").out
    (found,) = json.loads(shown)["benchmarks"]
    assert (found["model"], found["rows"][0]["n_items"], found["invariance"]["holds"]) == ("classifier", 10, True)


def test_longest_is_a_scorer_for_benchmarks(tmp_path):
    path = write(tmp_path / "core.jsonl", [pair("math-prm", "aa", "a", 1)])
    report = run_benchmark(Longest(), "rewardbench", [path], samples=100)
    assert report.row().value == report.longest["overall"] == 1.0
