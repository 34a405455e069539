"""What `dmoerm label report` says of labels: every figure worked out by hand, or recovered from a judge whose faults are known."""

import json
import re
from itertools import product

import numpy as np
import pytest

from dmoerm.errors import DataError
from dmoerm.evaluation.label_page import format_sections, label_sections
from dmoerm.evaluation.report import report_html, write_report
from dmoerm.labeling.agreement import Outcomes, label_report
from dmoerm.labeling.alpha import alpha_difference, alpha_figure, krippendorff_alpha, value_counts
from dmoerm.labeling.draws import Draws, share_difference
from dmoerm.labeling.formats import compare_formats
from dmoerm.labeling.halo import cohen_kappa
from dmoerm.labeling.judged import JudgedPair, consistent, read_judged, response_hash, state
from dmoerm.labeling.position import bias_and_noise, label_slips, position_bias
from dmoerm.records import OVERALL, Message, prompt_hash

DRAWS = Draws(seed=0, samples=400)


def judged(number, verdicts, *, judge="judge", category="qa", preference=1, lengths=(10, 20), responses=None):
    texts = responses or (f"good {number}", f"bad {number}")
    hashes = tuple(map(response_hash, texts))
    return JudgedPair(f"p{number}", f"prompt {number}", hashes, category, judge, preference, lengths, verdicts)


# Judged pairs


@pytest.mark.parametrize(
    ("verdicts", "expected", "label"),
    [
        ((1, 1), "consistent", 1),
        ((-1, -1), "consistent", -1),
        ((0, 0), "tie", None),
        ((1, -1), "inconsistent", None),
        ((0, 1), "inconsistent", None),
        ((1, None), "incomplete", None),
        ((None, None), "incomplete", None),
    ],
)
def test_two_verdicts_make_a_label_only_where_both_name_one_response(verdicts, expected, label):
    assert (state(verdicts), consistent(verdicts)) == (expected, label)


@pytest.fixture
def write(tmp_path):
    def write_file(*rows, name="some-judge.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write_file


ROW = {"id": "a", "prompt": "Is 91 prime?", "chosen": "No: 7 times 13.", "rejected": "Yes.", "category": "objective_qa"}


def orders(first, second):
    return [{"order": "chosen_first", **first}, {"order": "rejected_first", **second}]


def test_a_file_of_judgements_is_read_with_the_verdicts_that_are_no_labels(write):
    first = {"overall": 1, "capabilities": {"logic": 1, "correctness": 0, "objectiveness": None}}
    second = {"overall": None, "capabilities": {"logic": -1, "correctness": 0}}
    (pair,) = read_judged(write({**ROW, "judgements": orders(first, second)}))
    assert pair.verdicts == {OVERALL: (1, None), "logic": (1, -1), "correctness": (0, 0), "objectiveness": (None, None)}
    assert (pair.id, pair.category, pair.judge, pair.preference, pair.lengths) == ("a", "objective_qa", "some-judge", 1, (15, 4))
    assert pair.prompt == prompt_hash((Message("user", "Is 91 prime?"),))
    assert pair.responses == (response_hash("No: 7 times 13."), response_hash("Yes."))


def test_a_verdict_that_was_not_asked_is_not_there(write):
    (pair,) = read_judged(write({**ROW, "judgements": [{"order": "rejected_first", "capabilities": {"logic": 1}}]}), judge="anna")
    assert (dict(pair.verdicts), pair.judge) == ({"logic": (None, 1)}, "anna")


def test_a_faulty_row_of_judgements_is_named_by_its_place(write):
    good, bad = {**ROW, "judgements": []}, {**ROW, "judgements": orders({"overall": 2}, {})}
    with pytest.raises(DataError, match=r'some-judge\.jsonl:2: "overall" of "judgements", item 1 is 2; expected 1 \(chosen is better\)'):
        read_judged(write(good, bad))


# Position bias and noise


def outcomes(to_first, to_second, first, second):
    """Verdict columns of so many pairs of each outcome, each pair with a prompt of its own."""
    one = np.repeat([1, -1, 1, -1], (to_first, to_second, first, second))
    two = np.repeat([-1, 1, 1, -1], (to_first, to_second, first, second))
    return one, two, np.arange(len(one))


def test_bias_and_noise_follow_from_the_expected_shares_by_hand():
    # b = 0.3, e = 0.2: p = 0.3 + 0.7 * 0.8 = 0.86, q = 0.3 + 0.7 * 0.2 = 0.44; first twice p q = 0.3784, second twice 0.14 * 0.56 = 0.0784.
    bias, noise = bias_and_noise(3784, 784, 4816 + 616)
    assert (float(bias), float(noise)) == pytest.approx((0.3, 0.2))
    # A label for the better one comes with 0.86 * 0.56 = 0.4816, for the worse one with 0.44 * 0.14 = 0.0616.
    assert float(label_slips(0.3, 0.2)) == pytest.approx(0.0616 / 0.5432)


def test_a_leaning_to_the_second_place_is_the_mirror_image():
    bias, noise = bias_and_noise(784, 3784, 5432)
    assert (float(bias), float(noise)) == pytest.approx((-0.3, 0.2))


@pytest.mark.parametrize(("counts", "expected"), [((0, 0, 10), (0.0, 0.0)), ((25, 25, 50), (0.0, 0.5)), ((40, 40, 20), (0.0, 0.5))])
def test_the_ends_of_bias_and_noise(counts, expected):
    assert tuple(map(float, bias_and_noise(*counts))) == expected  # the last one changes more often than guessing: held at guessing


def test_where_position_decides_all_there_is_no_noise_to_tell():
    bias, noise = bias_and_noise(10, 0, 0)
    assert float(bias) == 1.0
    assert np.isnan(noise)


def test_ranks_split_the_noise_against_people_into_slips_and_settled_opinions():
    # The shares of the hand-worked case at 1,250 pairs, four times; in one of the four people prefer what the judge's opinion is against.
    one, two, _ = outcomes(473, 98, 602, 77)
    people = np.repeat([1, 1, 1, -1], 1250)
    found = position_bias(np.tile(one, 4), np.tile(two, 4), people, np.arange(5000), DRAWS)
    # h = e + d (1 - 2e) = 0.2 + 0.25 * 0.6
    assert found.noise_against_people.value == pytest.approx(0.35)
    assert found.settled_against_people.value == pytest.approx(0.25)
    assert found.bias.value == pytest.approx(0.3)
    assert found.changed.value == pytest.approx(571 / 1250)
    assert found.to_first.value == pytest.approx(473 / 571)


def test_verdicts_of_no_difference_leave_bias_and_noise_alone():
    one, two, prompts = outcomes(473, 98, 602, 77)
    plain = position_bias(one, two, np.zeros_like(one), prompts, DRAWS)
    ties = np.zeros(500, dtype=np.int64)
    more = position_bias(np.append(one, ties), np.append(two, ties), np.zeros(1750, dtype=np.int64), np.append(prompts, ties + 5000), DRAWS)
    assert plain == more
    assert plain.noise_against_people is None


def simulated_judge(rng, n, bias, noise, per_prompt):
    """A judge that names the first shown with probability `bias` regardless, and else errs with `noise`, in each order anew."""
    truth = rng.choice([1, -1], n)
    verdicts = []
    for shown_first in (1, -1):
        opinion = np.where(rng.random(n) < noise, -truth, truth)
        verdicts.append(np.where(rng.random(n) < bias, shown_first, opinion))
    return (*verdicts, truth, np.arange(n) // per_prompt)


@pytest.mark.parametrize("per_prompt", [1, 3])
def test_known_bias_and_noise_lie_in_their_intervals_as_often_as_promised(per_prompt):
    covered = np.zeros(5)
    runs = 200
    for seed in range(runs):
        one, two, truth, prompts = simulated_judge(np.random.default_rng(seed), 390, 0.3, 0.2, per_prompt)
        found = position_bias(one, two, truth, prompts, Draws(seed, 300))
        figures = (found.bias, found.noise, found.slips, found.noise_against_people)
        for number, (figure, value) in enumerate(zip(figures, (0.3, 0.2, 0.0616 / 0.5432, 0.2), strict=True)):
            covered[number] += figure.low <= value <= figure.high
        covered[4] += found.settled_against_people.low <= 0.0
    # 95 % of 200 is 190, with a standard deviation of 3.1.
    assert (covered[:4] >= 181).all(), covered
    assert (covered[:4] <= 199).all(), covered
    assert covered[4] >= 181


def test_a_judge_without_faults_still_has_an_interval():
    one, two, prompts = outcomes(0, 0, 20, 20)
    found = position_bias(one, two, np.zeros_like(one), prompts, DRAWS)
    assert (found.bias.value, found.noise.value, found.noise.low) == (0.0, 0.0, 0.0)
    assert found.bias.low < 0.0 < found.bias.high < 0.1
    assert 0.0 < found.noise.high < 0.1


def test_fewer_than_five_pairs_say_nothing_of_bias():
    one, two, prompts = outcomes(1, 0, 2, 1)
    found = position_bias(one, two, one, prompts, DRAWS)
    assert (found.bias, found.noise, found.noise_against_people) == (None, None, None)
    assert found.changed.value == 0.25


# Krippendorff's alpha

TWELVE = """
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 .
"""


def counts_of(table, values):
    answers = [line.split() for line in table.split("\n") if line]
    return np.array([[column.count(value) for value in values] for column in zip(*answers, strict=True)])


def test_alpha_of_two_judges_is_the_textbook_value():
    # Krippendorff (2011), section B: 6 of 10 units agree, 14 zeros and 6 ones, so (19 * 12 - (14*13 + 6*5)) / (20 * 19 - 212) = 16 / 168.
    counts = counts_of("0 1 0 0 0 0 0 0 1 0\n1 1 1 0 0 1 0 0 0 0", "01")
    assert krippendorff_alpha(counts) == pytest.approx(16 / 168)
    assert round(krippendorff_alpha(counts), 3) == 0.095


def test_alpha_with_missing_answers_is_the_textbook_value():
    # Krippendorff (2011), section C. The unit with one answer drops out; equal pairs over (m - 1) by unit: 3 2 4 4 4 0 4 2 4 3 2 = 32;
    # values 9 13 10 5 3, in all 40; (39 * 32 - 344) / (40 * 39 - 344) = 904 / 1216.
    counts = counts_of(TWELVE, "12345")
    assert krippendorff_alpha(counts) == pytest.approx(904 / 1216)
    assert round(krippendorff_alpha(counts), 3) == 0.743


def test_alpha_is_one_for_full_agreement_and_undefined_for_a_single_value():
    assert krippendorff_alpha([[2, 0, 0], [0, 0, 2]]) == 1.0
    assert np.isnan(krippendorff_alpha([[2, 0, 0], [2, 0, 0]]))
    assert np.isnan(krippendorff_alpha([[1, 0, 0]]))


# Two judges on ten pairs, 8 of them agreed on; one says "no difference" twice.
TEN = value_counts([(1, 1)] * 6 + [(-1, -1)] * 2 + [(0, 1)] * 2)


def test_alpha_does_not_depend_on_which_response_is_called_the_first():
    # With mirror images: 16 of 20 agree, values 1 18, 0 4, -1 18; (39 * 32 - (306 + 12 + 306)) / (40 * 39 - 624) = 624 / 936.
    prompts = np.arange(10)
    turned = TEN.copy()
    turned[:2] = turned[:2, ::-1]
    assert alpha_figure(TEN, prompts, DRAWS).value == pytest.approx(624 / 936)
    assert alpha_figure(turned, prompts, DRAWS) == alpha_figure(TEN, prompts, DRAWS)
    assert krippendorff_alpha(turned) != pytest.approx(krippendorff_alpha(TEN))


def test_the_interval_of_alpha_is_wide_with_few_units_and_narrow_with_many():
    few = alpha_figure(TEN, np.arange(10), DRAWS)
    many = alpha_figure(np.tile(TEN, (50, 1)), np.arange(500), DRAWS)
    assert (few.n, few.n_prompts) == (10, 10)
    assert few.low < few.value < few.high
    assert many.high - many.low < (few.high - few.low) / 4


def test_a_difference_of_alpha_to_itself_is_nothing_in_every_draw():
    prompts = np.arange(10)
    found = alpha_difference(TEN, prompts, TEN, prompts, DRAWS)
    assert (found.value, found.low, found.high) == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)
    assert alpha_difference(TEN, prompts, TEN[:0], prompts[:0], DRAWS) is None


def test_answers_are_counted_by_value_and_anything_else_is_missing():
    assert value_counts([[1, 1, -1], [0, 9, 9]]).tolist() == [[2, 0, 1], [0, 1, 0]]


def test_a_paired_difference_of_shares_takes_what_prompts_share_out_of_the_interval():
    hits = np.random.default_rng(0).random(100) < 0.5
    prompts = np.arange(100)
    paired = share_difference(hits, prompts, hits, prompts, DRAWS)
    apart = share_difference(hits, prompts, hits, prompts + 100, DRAWS)
    assert (paired.low, paired.high) == pytest.approx((0.0, 0.0), abs=1e-12)
    assert apart.low < -0.1
    assert apart.high > 0.1


# The report of one judge

EIGHT = [
    {"logic": (1, 1), OVERALL: (1, 1)},
    {"logic": (-1, -1), OVERALL: (1, 1)},
    {"logic": (0, 0), OVERALL: (1, 1)},
    {"logic": (1, -1), OVERALL: (-1, -1)},
    {"logic": (-1, 1), OVERALL: (-1, -1)},
    {"logic": (1, 0), OVERALL: (1, 1)},
    {"logic": (1, None), OVERALL: (1, 1)},
    {"logic": (1, 1), OVERALL: (1, -1)},
]


def eight():
    return [judged(number, verdicts, lengths=(20, 10) if number == 0 else (10, 20)) for number, verdicts in enumerate(EIGHT)]


def test_every_count_and_share_of_a_capability_by_hand():
    (judge,) = label_report(eight()).judges
    overall, row = judge.questions
    assert (overall.capability, row.category, row.capability) == (OVERALL, "qa", "logic")
    assert row.outcomes == Outcomes(8, incomplete=1, first=2, second=1, tied=1, to_first_shown=1, to_second_shown=1, half_tied=1)
    assert (row.outcomes.complete, row.outcomes.labels) == (7, 3)
    assert row.consistency.value == pytest.approx(4 / 7)
    assert row.ties.value == pytest.approx(3 / 14)
    assert row.kept.value == pytest.approx(3 / 8)
    # Labels 1, -1, 1 against ranks that prefer the first: the first of them is the longer one once, the second one twice.
    assert row.people.value == pytest.approx(2 / 3)
    assert row.people_balanced.value == pytest.approx((1 / 1 + 1 / 2) / 2)
    assert row.longer.value == pytest.approx(2 / 3)
    assert row.people_longer.value == pytest.approx(1 / 3)
    assert row.follows_overall.value == 0.5
    assert (row.against_overall, row.beside_overall) == (1, 1)
    assert overall.follows_overall is None
    assert overall.outcomes == Outcomes(8, incomplete=0, first=5, second=2, tied=0, to_first_shown=1, to_second_shown=0, half_tied=0)
    # Two orders of `logic` as two judges: 4 of 7 agree, values 1 7, 0 3, -1 4; with the mirror images 8 of 14, values 11, 6, 11:
    # (27 * 16 - (110 + 30 + 110)) / (28 * 27 - 250) = 182 / 506.
    assert row.order_alpha.value == pytest.approx(182 / 506)


def test_capabilities_of_all_categories_are_taken_together_by_name():
    pairs = [*eight(), *(judged(10 + number, {"logic": (1, 1), "tone": (1, 1)}, category="chat") for number in range(3))]
    (judge,) = label_report(pairs).judges
    assert [(row.category, row.capability) for row in judge.questions] == [
        ("chat", "logic"),
        ("chat", "tone"),
        ("qa", OVERALL),
        ("qa", "logic"),
    ]
    assert {row.capability: row.outcomes.asked for row in judge.capabilities} == {"logic": 11, "tone": 3}
    assert (judge.all_capabilities.outcomes.asked, judge.overall.outcomes.asked) == (14, 8)


def test_capabilities_and_overall_are_compared_on_the_same_pairs():
    # Overall answered in both orders on pairs 0 to 3; the capability of pair 4 does not count.
    steady, unsteady = {"logic": (1, 1), OVERALL: (1, 1)}, {"logic": (-1, -1), OVERALL: (1, -1)}
    pairs = [
        judged(0, steady),
        judged(1, unsteady),
        judged(2, unsteady),
        judged(3, steady),
        judged(4, {"logic": (1, -1), OVERALL: (1, None)}),
    ]
    found = label_report(pairs).judges[0].steadiness
    assert (found.pairs, found.capabilities.value, found.overall.value) == (4, 1.0, 0.5)
    assert found.consistency_difference.value == 0.5
    # Overall: 2 of 4 agree, with mirror images 4 of 8, values 8 and 8, so (15 * 8 - 112) / (16 * 15 - 112) = 1/16; the capability is 1.
    assert found.overall_alpha.value == pytest.approx(1 / 16)
    assert found.alpha_difference.value == pytest.approx(15 / 16)


def test_wavering_to_no_difference_is_told_from_changing_sides():
    # Capability: 20 the same, 20 between a response and no difference. Overall: 30 the same, 10 change sides.
    pairs = [judged(number, {"logic": (1, 1 if number < 20 else 0), OVERALL: (1, 1 if number < 30 else -1)}) for number in range(40)]
    report = label_report(pairs)
    found = report.judges[0].steadiness
    assert found.consistency_difference.value == -0.25
    assert (found.capabilities_named.value, found.overall_named.value, found.named_difference.value) == (1.0, 0.75, 0.25)
    finding = next(finding for finding in report.findings() if finding.check == "steadiness")
    assert finding.title == "Capabilities change to no difference more often than the whole, and change sides less often"
    assert "of 30 that change, 20 are between a response and no difference" in " ".join(report.as_text().split())


def halo_pairs(follows, n=40):
    """`echo` says what overall says; `flair` does so in `follows` of n pairs. Overall alternates, so that nothing is constant."""
    pairs = []
    for number in range(n):
        overall = 1 if number % 2 else -1
        flair = overall if number < follows else -overall
        pairs.append(judged(number, {OVERALL: (overall,) * 2, "echo": (overall,) * 2, "flair": (flair,) * 2, "mirror": (flair,) * 2}))
    return pairs


def test_a_capability_that_repeats_overall_is_named_and_others_are_not():
    (finding,) = [finding for finding in label_report(halo_pairs(30)).findings() if finding.check == "halo"]
    assert finding.severity == "warning"
    assert finding.summary.endswith("95.0% or more: qa/echo")
    # 40 of echo, 30 of flair and 30 of mirror follow
    assert "83% [" in finding.summary
    assert "20 go against it" in finding.summary


def test_two_capabilities_that_say_the_same_are_named_and_an_echo_of_overall_is_not_their_twin():
    (judge,) = label_report(halo_pairs(30)).judges
    assert [(pair.one, pair.other) for pair in judge.twins if pair.same] == [("flair", "mirror")]
    pair = next(pair for pair in judge.twins if (pair.one, pair.other) == ("echo", "flair"))
    assert (pair.agree.value, pair.correlation.value) == (0.75, 0.5)  # 30 of 40; both labels are even, so phi is 2 * 0.75 - 1
    assert pair.beyond_overall == 0.0


def test_kappa_by_hand():
    one, other = np.array([1, 1, 1, -1]), np.array([1, 1, -1, -1])
    # Agree 3/4; by chance 3/4 * 1/2 + 1/4 * 1/2 = 1/2.
    assert cohen_kappa(one, other) == pytest.approx(0.5)
    assert cohen_kappa(one[:2], other[:2]) is None
    assert cohen_kappa(one[:0], other[:0]) is None


def test_capabilities_with_too_few_labels_are_named():
    report = label_report(eight(), minimum_labels=3)
    assert report.judges[0].few == ()
    report = label_report(eight(), minimum_labels=4)
    assert report.judges[0].few == (("qa", "logic"),)
    assert "fewer than 4 labels: qa/logic" in report.as_text()
    assert label_report(eight()).minimum_labels == 20


def test_a_judge_that_leans_to_the_first_place_is_told_so():
    one, two, truth, _ = simulated_judge(np.random.default_rng(1), 600, 0.3, 0.05, 1)
    pairs = [judged(n, {OVERALL: (int(a), int(b))}, preference=int(t)) for n, (a, b, t) in enumerate(zip(one, two, truth, strict=True))]
    finding = next(finding for finding in label_report(pairs).findings() if finding.check == "position")
    assert (finding.severity, finding.title) == ("warning", "The place of a response decides")
    assert re.search(r"overall: names the response shown first regardless in (2[6-9]|3[0-4])% \[", finding.summary)


def test_a_single_capability_that_leans_is_named():
    pairs = [judged(n, {"logic": (1, 1 if n % 5 else -1), "tone": (1, 1)}) for n in range(60)]
    finding = next(finding for finding in label_report(pairs).findings() if finding.check == "position")
    assert finding.title == "Some leaning to a place"
    assert finding.summary.endswith("5.0% or more: logic")


def test_labels_against_the_ranks_are_a_problem():
    pairs = [judged(number, {"logic": (-1, -1)}) for number in range(30)]
    finding = label_report(pairs).findings()[0]
    assert (finding.check, finding.severity) == ("people", "problem")


# Several judges


def two_judges():
    """Judge b holds each pair the other way round, agrees on `logic` always and overall in three of four."""
    pairs = []
    for number in range(40):
        better = 1 if number % 2 else -1
        texts = (f"x{number}", f"y{number}")
        overall = -better if number % 4 else better
        pairs.append(judged(number, {OVERALL: (better,) * 2, "logic": (better,) * 2}, judge="a", responses=texts))
        pairs.append(judged(number, {OVERALL: (overall,) * 2, "logic": (-better,) * 2}, judge="b", responses=texts[::-1]))
    return pairs


def test_judges_are_compared_on_the_same_pairs_whichever_way_round_each_holds_them():
    found = label_report(two_judges()).several
    assert (found.items, found.capabilities.value, [row.capability for row in found.rows]) == (40, 1.0, ["logic"])
    (pair,) = found.pairs
    assert (pair.one, pair.other, pair.capabilities.value, pair.overall.value) == ("a", "b", 1.0, 0.75)
    assert found.difference.value == pytest.approx(1.0 - found.overall.value)
    assert found.difference.low > 0.0


def test_the_alpha_of_judges_by_hand():
    # Overall: 30 of 40 agree; with mirror images 60 of 80, values 80 and 80: (159 * 120 - 12640) / (160 * 159 - 12640), chance being half.
    found = label_report(two_judges()).several
    assert found.overall.value == pytest.approx(6440 / 12800)


def test_annotators_of_one_order_count_and_a_changing_verdict_of_a_judge_does_not():
    pairs = []
    for number in range(10):
        pairs.append(judged(number, {"logic": (1, None)}, judge="anna"))
        pairs.append(judged(number, {"logic": (None, 1 if number < 5 else -1)}, judge="ben"))
        pairs.append(judged(number, {"logic": (1, -1)}, judge="machine"))
    found = label_report(pairs).several
    assert [(pair.one, pair.other, pair.capabilities.value) for pair in found.pairs] == [("anna", "ben", 0.5)]
    assert found.capabilities.n == 10
    assert found.overall is None
    assert found.difference is None


def test_of_a_question_that_a_judge_answers_twice_the_first_answer_counts():
    pairs = [judged(n, {"logic": (value,) * 2}, judge=judge) for n in range(6) for judge, value in (("a", 1), ("a", -1), ("b", 1))]
    (pair,) = label_report(pairs).several.pairs
    assert pair.capabilities.value == 1.0


def test_many_annotators_are_taken_together():
    pairs = [judged(number % 5, {"logic": (1, 1)}, judge=f"w{number}") for number in range(20)]
    report = label_report(pairs)
    assert [judge.judge for judge in report.judges] == ["all 20 judges"]
    assert len(report.several.judges) == 20


# Formats


def test_formats_are_compared_on_the_questions_that_both_asked():
    one, many = halo_pairs(30), halo_pairs(38)
    many[0] = judged(0, {"tone": (1, 1)})
    found = compare_formats(one, many)
    row = next(row for row in found.rows if row.capability == "flair")
    # 39 common pairs: flair follows in 29 of one a call, in 37 of all in one.
    assert (found.items, row.questions) == (39, 39)
    assert (row.one_follows.value, row.many_follows.value) == pytest.approx((29 / 39, 37 / 39))
    assert row.follows_difference.value == pytest.approx(8 / 39)
    assert row.follows_difference.low > 0.0
    assert row.same.value == pytest.approx(31 / 39)
    assert found.overall.same.value == 1.0
    assert found.capabilities.questions == 3 * 39
    assert "Asking everything in one call adds halo" in found.as_text(60)


def test_formats_without_a_common_question_have_nothing_to_compare():
    found = compare_formats([judged(0, {"logic": (1, 1)})], [judged(1, {"logic": (1, 1)})])
    assert (found.items, found.capabilities, found.rows) == (0, None, ())
    assert "share no question" in found.as_text()
    assert compare_formats([], []).items == 0
    report_html("Formats", format_sections(found))


# Little or nothing to look at, and how it looks

LITTLE = {
    "nothing": [],
    "no question": [judged(0, {})],
    "one pair": [judged(0, {"logic": (1, 1), OVERALL: (1, 1)})],
    "only incomplete": [judged(number, {"logic": (1, None), OVERALL: (None, None)}) for number in range(30)],
    "only ties": [judged(number, {"logic": (0, 0), OVERALL: (0, 0)}) for number in range(30)],
    "no category": [judged(number, {"logic": (1, 1)}, category=None, preference=None) for number in range(30)],
    "no capability": [judged(number, {OVERALL: (1, 1)}) for number in range(30)],
    "eight": eight(),
    "halo": halo_pairs(30),
    "two judges": two_judges(),
}


@pytest.mark.parametrize(("name", "width"), list(product(LITTLE, (40, 80, 110))))
def test_the_text_keeps_to_its_width(name, width):
    text = label_report(LITTLE[name]).as_text(width)
    assert max(map(len, text.splitlines())) <= width
    assert not re.search(r"\bnan\b", text)


@pytest.mark.parametrize("name", LITTLE)
def test_the_page_and_the_json_are_made_of_any_input(name, tmp_path):
    report = label_report(LITTLE[name])
    page = write_report(tmp_path / "labels.html", "Labels", label_sections(report)).read_text(encoding="utf-8")
    assert "What the labels are worth" in page
    assert not re.search(r"\bnan\b", page)
    assert json.loads(json.dumps(report.as_dict(), allow_nan=False))["pairs"] == len(LITTLE[name])


def test_nothing_to_look_at_is_said():
    assert "there are no judged pairs" in label_report([]).as_text()
    assert "No question was answered in both orders" in label_report(LITTLE["only incomplete"]).as_text()


def test_names_from_files_cannot_steer_a_terminal_or_a_page():
    name = "<script>\x1b[31m"
    report = label_report([judged(number, {name: (1, 1), OVERALL: (1, 1)}) for number in range(30)])
    assert "\x1b" not in report.as_text()
    page = report_html("Labels", label_sections(report))
    assert "<script>" not in page
    assert "\x1b" not in page


def test_the_same_verdicts_and_seed_give_the_same_report():
    assert label_report(halo_pairs(30)) == label_report(halo_pairs(30))
    assert label_report(halo_pairs(30), seed=1) != label_report(halo_pairs(30))


def test_the_page_says_first_what_the_labels_are_worth_and_what_to_do():
    sections = label_sections(label_report(halo_pairs(30)))
    assert [section.title for section in sections][:3] == ["What the labels are worth", "What to do", "Verdicts that hold in both orders"]
    assert sections[0].paragraphs[0].startswith("Warning. ")
    matrix = next(section for section in sections if section.title == "Halo within qa")
    assert matrix.columns == ("", OVERALL, "echo", "flair", "mirror")
    assert [cell and cell.value for cell in matrix.rows[1][1:]] == [1.0, None, 0.5, 0.5]
    assert sections[-1].title == "Made with"


def test_a_hundred_thousand_verdicts_take_seconds():
    rng = np.random.default_rng(0)
    names = [f"capability {number}" for number in range(5)]
    verdicts = rng.choice([1, -1], (8334, 6, 2)).tolist()
    pairs = [judged(number, dict(zip([OVERALL, *names], map(tuple, rows), strict=True))) for number, rows in enumerate(verdicts)]
    report = label_report(pairs, samples=200)
    assert report.judges[0].all_capabilities.outcomes.asked == 41670
