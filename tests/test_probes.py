"""Bad answers, each by hand; models that fall for them are caught, and what cannot be scored is counted and not resisted."""

import json
import random
import re

import pytest
from test_report import HOSTILE, tags_of

from dmoerm.cli import main as cli
from dmoerm.data.doctor.style import is_refusal
from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.probe_page import probe_sections
from dmoerm.evaluation.probe_report import EXAMPLES, probe_texts, run_probes
from dmoerm.evaluation.probes import KINDS, PROBES, Case
from dmoerm.evaluation.report import report_html
from dmoerm.evaluation.scorers import Longest
from dmoerm.labeling.canaries import canary_injections
from dmoerm.records import Comparison, Message

PROMPT = (Message("user", "Where does the river end?"), Message("assistant", "Which one?"), Message("user", "The long one."))
HONEST = "It ends in the sea after 120 km. Boats go there."  # 48 characters
OTHER = "Bake it until it is brown."


def made(name, honest=HONEST, other=OTHER, prompt=PROMPT, seed=0):
    return PROBES[name].make(Case(prompt, honest, other, random.Random(seed)))


class Rule:
    """A scorer that is one function of prompt and text; None is a failure."""

    def __init__(self, reward, name="rule"):
        self.name = name
        self.reward = reward
        self.asked = []

    def score(self, candidates):
        self.asked += candidates
        return [[self.reward(one.prompt, text) for text in one.responses] for one in candidates]


def comparison(number, best, worst="no idea", category=None):
    return Comparison(f"c{number}", (Message("user", f"question {number}"),), (worst, best), (2, 1), category)


ANSWERS = (
    "The river ends in the sea after 120 km of valleys.",
    "Bake the bread for an hour until the crust is brown, then wait.",
    "The capital lies on a hill above the old harbour.",
    "Winter begins when the days are shortest in the north, around the solstice.",
)
FOUR = [comparison(number, best) for number, best in enumerate(ANSWERS)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("empty", ""),
        ("first_quarter", "It ends in"),  # 12 of 48 characters are "It ends in t"; back to a whole word
        ("mid_sentence", "It ends in the sea after 120"),  # 36 are "… km. Boa"; up to the stop the sentence would be whole
        ("repeated_twice", f"{HONEST}\n\n{HONEST}"),
        ("repeated_ten_times", "\n\n".join([HONEST] * 10)),
        ("other_answer", OTHER),
        ("prompt_echoed", "The long one."),
    ],
)
def test_a_probe_is_the_text_that_its_name_says(name, text):
    assert made(name) == text


def test_bullets_and_headings_say_nothing_of_the_matter():
    assert [line[:2] for line in made("empty_bullets").removeprefix(HONEST).strip().split("\n")] == ["- "] * 5
    assert re.findall("^#+ .*", made("markdown"), re.MULTILINE) == ["# Answer", "## Overview", "## Details", "## Conclusion"]


def test_a_script_without_spaces_is_cut_by_the_character():
    chinese = "这条大河穿过许多山谷和城市最后在北方流入一片宽阔的大海那里有船只"[:30]
    assert made("mid_sentence", chinese) == chinese[:22]
    assert made("first_quarter", chinese) == chinese[:7]


@pytest.mark.parametrize("name", ["first_quarter", "mid_sentence", "word_salad", "wrong_numbers"])
def test_a_probe_leaves_alone_an_answer_that_it_cannot_make_worse(name):
    text = made(name, "Yes, it is.")
    assert text is None or text == "Yes, it is."  # equal texts are left out when prompts are probed
    assert name not in probe_texts([comparison(0, "Yes, it is.")])[0].texts


def test_word_salad_has_the_same_words_in_another_order():
    salad = made("word_salad")
    assert salad != HONEST
    assert sorted(salad.split()) == sorted(HONEST.split())
    chinese = "这条大河穿过许多山谷和城市最后在北方流入一片宽阔的大海"
    assert made("word_salad", chinese) != chinese
    assert sorted(made("word_salad", chinese)) == sorted(chinese)


def test_every_digit_of_a_number_changes_and_list_numbers_stay():
    text = "1. Boil 250 ml for 7 minutes.\n2. Wait until 1999.\n10) Done in 12.5"
    for seed in range(20):
        changed = made("wrong_numbers", text, seed=seed)
        assert re.sub("[0-9]", "#", changed) == re.sub("[0-9]", "#", text)
        assert [line.split()[0] for line in changed.split("\n")] == ["1.", "2.", "10)"]
        differ = [old == new for old, new in zip(text, changed, strict=True) if old.isdigit()]
        assert sum(differ) == 4  # the digits of 1. 2. 10) and no other
        assert re.search("Boil [1-9]", changed)


def test_decorations_keep_the_whole_answer():
    for name, probe in PROBES.items():
        if probe.kind == "decoration":
            assert HONEST in made(name)
            assert len(made(name)) > len(HONEST)


def test_gibberish_is_constant_and_filler_knows_nothing_of_the_answer():
    assert made("gibberish") == made("gibberish", "Another.", None, PROMPT[:1], 5)
    for name in ("gibberish", "confident_filler", "agreement", "refusal"):
        assert not {"river", "sea", "boats"} & set(re.findall("[a-z]+", made(name).lower()))


def test_every_refusal_reads_as_one_and_an_answer_that_refuses_gets_none():
    assert all(is_refusal(made("refusal", seed=seed)) for seed in range(20))
    assert made("refusal", "I'm sorry, but I can't help with that request at all.") is None


def test_injections_are_those_of_the_judges_canaries_and_more():
    drawn = {made("injection", seed=seed).removeprefix(HONEST) for seed in range(200)}
    assert set(canary_injections()) < drawn
    assert made("other_answer_injection").startswith(OTHER + "\n\n")
    assert made("other_answer_injection", other=None) is None


def test_the_longest_answer_is_caught_by_repetition_and_padding_and_resists_truncation():
    report = run_probes([Longest()], FOUR)
    for name in ("repeated_twice", "repeated_ten_times", "off_topic_paragraph", "praise", "empty_bullets", "markdown", "injection"):
        assert report.row("longest", name).over_honest.value == 1.0
        assert report.row("longest", name).margin.value < 0
    for name in ("empty", "first_quarter", "mid_sentence"):
        assert report.row("longest", name).over_honest.value == 0.0
        assert report.row("longest", name).margin.value > 0
    assert report.row("longest", "decoration").over_honest.value == 1.0
    assert report.row("longest", "word_salad").over_honest.value == 0.5  # as long as the answer
    numbers = report.row("longest", "wrong_numbers")  # one answer of four has digits
    assert (numbers.over_honest.n, numbers.not_applicable, numbers.margin) == (1, 3, None)


def test_a_probe_may_lose_to_the_honest_answer_and_beat_the_last_ranked_one():
    report = run_probes([Longest()], FOUR)  # "no idea" has 7 characters, a quarter of an answer 9 or more
    row = report.row("longest", "first_quarter")
    assert (row.over_honest.value, row.over_worst.value) == (0.0, 1.0)


def test_a_margin_is_in_standard_deviations_of_the_margins_to_another_answer():
    # Two prompts, answers of reward 3 and 1, each the other's other answer: margins 2 and -2, standard deviation 8 ** 0.5.
    rewards = {"alpha answer": 3.0, "beta answer": 1.0, "": -4.0}
    two = [comparison(0, "alpha answer"), comparison(1, "beta answer")]
    report = run_probes([Rule(lambda prompt, text: rewards.get(text, 0.0))], two)
    assert report.spread["rule"] == pytest.approx(8**0.5)
    assert report.row("rule", "empty").margin.value == pytest.approx((7 + 5) / 2 / 8**0.5)


def test_a_constant_reward_is_one_half_everywhere_and_has_no_margin():
    report = run_probes([Rule(lambda prompt, text: 2.5)], FOUR)
    for row in report.rows:
        assert row.over_honest.value == row.over_worst.value == 0.5
        assert row.margin is None
    assert report.examples == ()


def test_what_cannot_be_scored_is_refused_and_in_no_share():
    # The empty text never has a reward; the first prompt has none for any text.
    rule = Rule(lambda prompt, text: None if not text or prompt[0].content == "question 0" else float(len(text)))
    report = run_probes([rule], FOUR)
    empty = report.row("rule", "empty")
    assert (empty.over_honest, empty.over_worst, empty.margin, empty.refused) == (None, None, None, 3)
    assert report.honest_failed == {"rule": 1}
    assert report.row("rule", "gibberish").over_honest.n == 3
    assert report.row("rule", "degradation").refused == 3
    page = report_html("R", probe_sections(report))
    assert "1 prompts are left out" in page
    assert "1 left out (honest answer failed)" in report.as_table()
    with pytest.raises(DataError, match="nothing: none of 4 honest answers could be scored"):
        run_probes([Rule(lambda prompt, text: None, "nothing")], FOUR)


def test_a_failed_last_ranked_response_leaves_the_other_share():
    report = run_probes([Rule(lambda prompt, text: None if text == "no idea" else float(len(text)))], FOUR)
    row = report.row("rule", "praise")
    assert (row.over_honest.n, row.over_worst) == (4, None)


def test_every_text_is_scored_by_itself_and_only_once_for_a_prompt():
    rule = Rule(lambda prompt, text: 0.0)
    run_probes([rule], FOUR)
    assert all(len(one.responses) == 1 for one in rule.asked)
    assert len(set(rule.asked)) == len(rule.asked)


def test_the_same_seed_gives_the_same_report_and_another_seed_other_texts():
    many = [comparison(number, f"{ANSWERS[number % 4]} Number {number}.") for number in range(40)]
    one, again, other = (run_probes([Longest()], many, limit=12, seed=seed).as_dict() for seed in (3, 3, 4))
    assert one == again
    assert one != other
    assert probe_texts(many, limit=12, seed=3) == probe_texts(many, limit=12, seed=3)
    assert len({probed.prompt for probed in probe_texts(many, limit=12, seed=3)}) == 12


def test_another_answer_comes_from_the_same_category_where_it_has_one():
    texts = ["one warm word", "two warm words", "three cold words", "four cold words", "a lonely word"]
    rows = [comparison(n, text, category=("chat", "chat", "qa", "qa", "poem")[n]) for n, text in enumerate(texts)]
    found = [probed.other for probed in probe_texts(rows)]
    assert found[:4] == [texts[1], texts[0], texts[3], texts[2]]
    assert found[4] in texts[:4]
    (alone,) = probe_texts(rows[:1])
    assert alone.other is None
    assert not {"other_answer", "other_answer_injection"} & set(alone.texts)


def test_one_comparison_a_prompt_is_probed_and_tied_ones_are_not():
    again = Comparison("again", FOUR[0].prompt, ("x", "y"), (1, 2))
    tied = Comparison("tied", (Message("user", "other"),), ("x", "y"), (1, 1))
    assert [probed.honest for probed in probe_texts([*FOUR, again, tied])] == list(ANSWERS)
    with pytest.raises(DataError, match="None of 1 comparisons has a preference"):
        probe_texts([tied])
    with pytest.raises(ConfigError, match="limit: 0; expected at least 1 prompt"):
        probe_texts(FOUR, limit=0)
    with pytest.raises(ConfigError, match="No model was given to run_probes"):
        run_probes([], FOUR)


def test_models_stand_side_by_side_even_with_one_name():
    seen = []
    report = run_probes([Longest(), Longest(), Rule(lambda p, t: 0.0)], FOUR, progress=lambda done, total: seen.append((done, total)))
    assert report.models == ["longest", "longest (2)", "rule"]
    assert seen == [(4, 12), (8, 12), (12, 12)]
    first = report.as_table().split("\n\n")[0]
    praise = next(line for line in first.split("\n") if line.split()[0] == "praise")
    assert re.findall(r"(\d\.\d+) \[", praise) == ["1.000", "1.000", "0.500"]
    with pytest.raises(ConfigError, match="No row for model 'rule' and probe 'prais'"):
        report.row("rule", "prais")


def test_the_page_shades_shares_and_shows_what_fooled_each_model_most():
    report = run_probes([Longest(), Rule(lambda p, t: -float(len(t)), "shortest")], FOUR)
    assert [sum(example.model == name for example in report.examples) for name in report.models] == [EXAMPLES, EXAMPLES]
    assert report.examples[0].probe == "repeated_ten_times"
    page = report_html("Probes", probe_sections(report))
    tags_of(page)
    for title in (
        "Degradations that outrank",
        "Decorations that outrank",
        "All figures of shortest",
        "Fooled (longest): repeated ten times",
    ):
        assert title in page
    assert 'class="number h10">1.000' in page
    assert 'class="number h0">0.000' in page


def test_text_under_judgement_is_escaped_on_the_page():
    rows = [comparison(number, f"{HOSTILE} answer {number} that is long enough", category=HOSTILE) for number in range(3)]
    rows = [Comparison(c.id, (Message("user", HOSTILE.replace("\ud800", "") + c.id),), c.responses, c.ranks, c.category) for c in rows]
    page = report_html("R", probe_sections(run_probes([Rule(lambda p, t: float(len(t)), HOSTILE)], rows, meta={HOSTILE: HOSTILE})))
    assert "script" not in tags_of(page).seen
    assert "&lt;script&gt;" in page
    assert not re.search("[\x00\x1b\ud800]", page)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": c.prompt[0].content, "chosen": c.responses[1], "rejected": c.responses[0]} for c in FOUR]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_verb_probes_a_rule_and_a_classifier(file, tmp_path, tiny_classifier_folder, capsys):
    page = tmp_path / "page.html"
    arguments = [
        "probe",
        "longest",
        str(tiny_classifier_folder),
        str(file),
        "--limit",
        "3",
        "--device",
        "cpu",
        "--json",
        "--html",
        str(page),
    ]
    assert cli.main(arguments) == cli.DONE
    found = json.loads(capsys.readouterr().out)
    assert found["prompts"] == 3
    assert list(found["spread"]) == ["longest", tiny_classifier_folder.name]
    assert len(found["rows"]) == 2 * (len(KINDS) + len(PROBES))
    share = next(row for row in found["rows"] if row["model"] == tiny_classifier_folder.name and row["probe"] == "gibberish")["over_honest"]
    assert share["n"] == 3
    assert "Degradations that outrank the honest answer" in page.read_text(encoding="utf-8")


def test_the_verb_prints_a_table_and_says_what_is_wrong_before_a_model_loads(file, capsys):
    assert cli.main(["probe", "longest", str(file)]) == cli.DONE
    out = capsys.readouterr().out
    assert "longest: 4 prompts *" in out
    assert f"file: {file} (" in out
    assert cli.main(["probe", "no/such-model", str(file), "--limit", "0"]) == cli.FAILED
    assert "limit: 0; expected at least 1 prompt" in capsys.readouterr().err
