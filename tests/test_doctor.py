"""The data doctor: each check on a small planted file where it must fire, and on one where it must not."""

import json
import random
import re
from pathlib import Path

import pytest

from dmoerm.cli import main as cli
from dmoerm.data.doctor import Context, brief_text, examine, examine_recipe
from dmoerm.data.doctor.authors import authors
from dmoerm.data.doctor.budget import budget, estimated_tokens
from dmoerm.data.doctor.corpus import LABELS, TEST, TRAIN, read_corpus
from dmoerm.data.doctor.encoding import ODDITIES, oddities
from dmoerm.data.doctor.examine import CHECKS, examine_corpus
from dmoerm.data.doctor.finding import Finding, NotChecked
from dmoerm.data.doctor.labels import halo, judge_against_people, label_counts, repeated_capabilities
from dmoerm.data.doctor.length import length_bias
from dmoerm.data.doctor.near import near_duplicate_groups, normalised, similarity
from dmoerm.data.doctor.orders import order_consistency
from dmoerm.data.doctor.refused import blank_responses, left_out_rows, refused_rows
from dmoerm.data.doctor.repeats import (
    contradictions,
    identical_responses,
    prompts_in_several_files,
    repeated_comparisons,
    same_response_to_many_prompts,
)
from dmoerm.data.doctor.scripts import script_of, scripts
from dmoerm.data.doctor.share import share_of
from dmoerm.data.doctor.sizes import categories, names_that_look_alike, positions, ties
from dmoerm.data.doctor.style import TRAITS, is_refusal, refusals, style
from dmoerm.data.doctor.turns import turns
from dmoerm.data.doctor.twins import near_duplicate_prompts, near_duplicate_responses, nearly_identical_pairs
from dmoerm.data.doctor.wording import percent
from dmoerm.data.doctor.words import words
from dmoerm.data.splits import split_of
from dmoerm.errors import DataError
from dmoerm.recipe import load_recipe
from dmoerm.records import Message
from dmoerm.taxonomy import paper_taxonomy

WORDS = "river stone garden city house road book tree paper glass window water cloud field bread".split()


def trl(number, chosen="a good answer", rejected="some bad answer", **more):
    return {"id": f"r{number}", "prompt": f"prompt {number}", "chosen": chosen, "rejected": rejected, **more}


def native(number, responses=("one answer", "another answer"), ranks=(1, 2), **more):
    return {"id": f"n{number}", "prompt": f"prompt {number}", "responses": list(responses), "ranks": list(ranks), **more}


def sentence(rng, size=8):
    return " ".join(rng.choice(WORDS) for _ in range(size))


@pytest.fixture
def write(tmp_path):
    def build(rows, name="train.jsonl"):
        path = tmp_path / name
        path.write_text("".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        return path

    return build


@pytest.fixture
def look(write):
    """Run one check; returns its findings by name, and what was not checked under its name as well."""

    def run(check, rows, *others, test=(), context=None):
        files = [(write(rows), TRAIN)]
        files += [(write(more, f"more{number}.jsonl"), TRAIN) for number, more in enumerate(others)]
        files += [(write(test, "test.jsonl"), TEST)] if test else []
        return {result.check: result for result in check(read_corpus(files, context))}

    return run


# --- shares and wording ---------------------------------------------------------------------------------------------------------------


def test_a_share_over_independent_prompts_has_the_wilson_interval():
    # Wilson (1927) at 8 of 10 by hand: centre (0.8 + 3.8415 / 20) / 1.38415 = 0.7167, half 1.96 / 1.38415 * sqrt(0.016 + 3.8415 / 400).
    share = share_of([1] * 8 + [0] * 2, range(10))
    # n / (n - 1) of the variance between prompts leaves 9 of the 10 draws.
    centre, half = (0.8 + 3.8415 / 18) / (1 + 3.8415 / 9), 1.96 / (1 + 3.8415 / 9) * (0.16 / 9 + 3.8415 / 324) ** 0.5
    assert (share.value, share.n, share.n_prompts) == (0.8, 10, 10)
    assert (share.low, share.high) == (pytest.approx(centre - half, abs=1e-3), pytest.approx(centre + half, abs=1e-3))


def test_pairs_of_one_prompt_that_agree_count_as_one_draw():
    alone = share_of([1, 0, 1, 1, 0, 1], range(6))
    copied = share_of([1, 0, 1, 1, 0, 1] * 50, list(range(6)) * 50)
    assert (copied.low, copied.high) == (pytest.approx(alone.low), pytest.approx(alone.high))
    assert copied.n == 300


def test_an_interval_has_a_width_at_0_and_1_and_nothing_has_no_share():
    share = share_of([1.0] * 20, range(20))
    assert share.high == 1.0
    assert share.low == pytest.approx(1 / (1 + 3.8415 / 20), abs=1e-3)  # Wilson at n of n
    assert share_of([1, 1], [0, 0]).low < 0.25  # one prompt
    assert share_of([], []) is None


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0%"), (1, "100%"), (0.0004, "<0.1%"), (0.9996, ">99.9%"), (0.034, "3.4%"), (0.5, "50%"), (0.987, "98.7%")]
)
def test_something_is_never_0_percent_and_less_than_all_never_100(value, text):
    assert percent(value) == text


# --- near duplicates ------------------------------------------------------------------------------------------------------------------


def test_similarity_is_the_share_of_common_shingles():
    # "abcdefghij" has 3 windows of 8 bytes, "abcdefghiX" shares 2 of them, 4 in all.
    assert similarity(b"abcdefghij", b"abcdefghiX") == 0.5
    assert similarity(b"same", b"same") == 1.0
    assert normalised("  A\n b\u00a0C ") == b"a b c"


def test_near_duplicates_are_found_in_any_script_and_others_are_not():
    rng = random.Random(0)
    english = [sentence(rng, 40) for _ in range(300)]
    chinese = "请问明天北京的天气怎么样我需要带一把伞吗还是穿一件厚外套就够了谢谢你的回答祝你今天过得愉快"
    texts = [*english, english[7] + "!", english[7].upper(), chinese, chinese + "。"]
    assert near_duplicate_groups(texts) == [[7, 300, 301], [302, 303]]
    assert near_duplicate_groups(texts, sample_every=4) == [[7, 300, 301], [302, 303]]


def test_short_texts_are_near_duplicates_only_up_to_case_and_spaces():
    assert near_duplicate_groups(["Yes.", "yes. ", "yes!", "no"], minimum_bytes=24) == [[0, 1]]


def test_banded_hashing_finds_what_all_pairs_would():
    rng = random.Random(1)
    texts = [sentence(rng, 30) for _ in range(60)]
    texts += [" ".join(word if rng.random() > 0.03 else "changed" for word in text.split()) for text in texts[:40]]
    close = {(a, b) for a in range(100) for b in range(a + 1, 100) if similarity(normalised(texts[a]), normalised(texts[b])) >= 0.8}
    groups = near_duplicate_groups(texts)
    found = {(a, b) for group in groups for a in group for b in group if a < b}
    assert len(close) > 20
    assert close <= found


# --- exact repeats: F05 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.faults("F05")
def test_identical_responses_are_counted_and_those_with_ranks_are_a_problem(look):
    rows = [trl(1, "same", "same"), trl(2), native(3, ("x", "x"), (1, 1)), native(4, ("x", "x", "y"), (1, 1, 2))]
    found = look(identical_responses, [rows[1], rows[0]])["identical_responses"]
    assert (found.severity, found.count, found.total, found.examples) == ("problem", 1, 2, ("train.jsonl:2",))
    tied = look(identical_responses, rows[2:])["identical_responses"]
    assert (tied.severity, tied.count) == ("note", 2)
    assert look(identical_responses, [trl(2)])["identical_responses"].severity == "fine"


@pytest.mark.faults("F05")
def test_a_pair_in_both_directions_is_a_contradiction_with_both_places(look):
    rows = [trl(1, "x", "y"), trl(2), {**trl(3, "y", "x"), "prompt": "prompt 1"}]
    found = look(contradictions, rows)["contradictions"]
    assert (found.severity, found.count, found.total) == ("problem", 1, 2)
    assert found.examples == ("train.jsonl:1 and train.jsonl:3",)
    assert found.share.value == 0.5
    fine = look(contradictions, [trl(1, "x", "y"), trl(2, "y", "x")])
    assert fine["contradictions"].severity == "fine"


@pytest.mark.faults("F05")
def test_a_file_that_turns_the_pairs_of_another_has_swapped_columns(look):
    right = [trl(n, f"good {n}", f"bad {n}") for n in range(12)]
    turned = [trl(n, f"bad {n}", f"good {n}") for n in range(12)]
    found = look(contradictions, right, turned)["swapped_columns"]
    assert found.severity == "problem"
    assert found.table.rows == (("train.jsonl and more0.jsonl", 12, 12),)
    assert "swapped_columns" not in look(contradictions, right, [*right[:11], *turned[11:]])
    assert "swapped_columns" not in look(contradictions, right[:9], turned[:9])  # too few to say so


@pytest.mark.faults("F05")
def test_test_prompts_in_training_files_are_a_problem_with_both_places(look):
    found = look(prompts_in_several_files, [trl(1), trl(2)], test=[trl(2), trl(9)])["leaked_prompts"]
    assert (found.severity, found.count, found.total, found.examples) == ("problem", 1, 2, ("train.jsonl:2 and test.jsonl:1",))
    assert look(prompts_in_several_files, [trl(1)], test=[trl(2)])["leaked_prompts"].severity == "fine"


@pytest.mark.faults("F05")
def test_test_prompts_in_label_files_are_a_leak_too(write):
    files = [(write([trl(1)]), TRAIN), (write([trl(2)], "labels.jsonl"), LABELS), (write([trl(2)], "test.jsonl"), TEST)]
    found = {result.check: result for result in prompts_in_several_files(read_corpus(files))}
    assert found["leaked_prompts"].examples == ("labels.jsonl:1 and test.jsonl:1",)


def test_prompts_of_several_training_files_are_a_note(look):
    found = look(prompts_in_several_files, [trl(1), trl(2)], [trl(2)])["prompts_in_several_files"]
    assert (found.severity, found.count, found.total) == ("note", 1, 2)
    assert look(prompts_in_several_files, [trl(1)], [trl(2)]) == {}


@pytest.mark.faults("F05")
def test_repeats_are_counted_in_whatever_order_the_responses_stand(look):
    rows = [native(1, ("x", "y"), (1, 2)), {**native(2, ("y", "x"), (2, 1)), "prompt": "prompt 1"}, native(3)]
    found = look(repeated_comparisons, rows)["repeated_comparisons"]
    assert (found.severity, found.count, found.examples) == ("warning", 1, ("train.jsonl:1 and train.jsonl:2",))
    assert look(repeated_comparisons, [native(1), native(2)])["repeated_comparisons"].severity == "fine"


def test_one_response_under_many_prompts_is_a_note_with_its_record(look):
    rows = [trl(n, f"answer {n}", "I do not know.") for n in range(6)]
    found = look(same_response_to_many_prompts, rows)["canned_responses"]
    assert found.table.rows == (("I do not know.", 6, 0, 6),)
    assert look(same_response_to_many_prompts, rows[:4])["canned_responses"].severity == "fine"


# --- near duplicates in files ---------------------------------------------------------------------------------------------------------

LONG = "Please explain in simple words how a rainbow comes about after a summer rain"


def prompted(number, prompt, **more):
    return {**trl(number, **more), "prompt": prompt}


def test_nearly_equal_prompts_on_both_sides_of_the_hash_split_are_found(look):
    # Two spellings of one prompt, chosen so that the default split parts them.
    spellings = [LONG + mark for mark in (".", "!", "?", "?!", " ?", "...", ":", ";")]
    held_out = {text: split_side(text) for text in spellings}
    test = next(text for text in spellings if held_out[text])
    train = next(text for text in spellings if not held_out[text])
    found = look(near_duplicate_prompts, [prompted(1, train), prompted(2, test), prompted(3, "Something else entirely")])
    assert (found["near_duplicate_prompts"].count, found["near_duplicate_prompts"].severity) == (2, "note")
    crossing = found["near_duplicates_across_split"]
    assert (crossing.severity, crossing.count) == ("warning", 1)
    assert crossing.examples == ("train.jsonl:2 (test) and train.jsonl:1",)


def split_side(text):
    from dmoerm.data.splits import split_by_prompt
    from dmoerm.records import Comparison

    comparison = Comparison("c", (Message("user", text),), ("a", "b"), (1, 2))
    return bool(split_by_prompt([comparison], Context().test_fraction, 0)[1])


def test_nearly_equal_prompts_of_train_and_test_files_are_found(look):
    found = look(near_duplicate_prompts, [prompted(1, LONG)], test=[prompted(2, LONG + "!"), prompted(3, "Another question")])
    crossing = found["near_duplicates_across_split"]
    assert (crossing.severity, crossing.count, crossing.total) == ("warning", 1, 2)
    fine = look(near_duplicate_prompts, [prompted(1, LONG)], test=[prompted(2, "How do bees find their way home in the evening?")])
    assert {result.severity for result in fine.values()} == {"fine"}


def test_near_duplicates_among_test_prompts_alone_cross_nothing(look):
    found = look(near_duplicate_prompts, [prompted(1, "Another question")], test=[prompted(2, LONG), prompted(3, LONG + "!")])
    assert found["near_duplicate_prompts"].count == 2
    assert found["near_duplicates_across_split"].severity == "fine"


def test_nearly_equal_responses_count_only_under_different_prompts(look):
    rng = random.Random(3)
    long = sentence(rng, 80)
    found = look(near_duplicate_responses, [trl(1, long, "no"), trl(2, long + " indeed", "yes")])["near_duplicate_responses"]
    assert (found.severity, found.count, found.examples) == ("note", 2, ("train.jsonl:1 and train.jsonl:2",))
    same_prompt = [trl(1, long, "no"), {**trl(2, long + " indeed", "yes"), "prompt": "prompt 1"}]
    assert look(near_duplicate_responses, same_prompt)["near_duplicate_responses"].severity == "fine"


def test_a_pair_that_hardly_differs_is_a_note(look):
    long = sentence(random.Random(4), 60)
    found = look(nearly_identical_pairs, [trl(1, long, long + " indeed"), trl(2)])["nearly_identical_pairs"]
    assert (found.severity, found.count, found.examples) == ("note", 1, ("train.jsonl:1",))
    other = sentence(random.Random(5), 60)
    assert look(nearly_identical_pairs, [trl(1, long, other)])["nearly_identical_pairs"].severity == "fine"


# --- rows that cannot be used ---------------------------------------------------------------------------------------------------------


@pytest.mark.faults("F06")
def test_refused_rows_are_counted_by_reason_and_empty_responses_apart(look):
    rows = [trl(1), trl(2, chosen=" "), trl(3, rejected=""), "{broken\n", {"prompt": "x", "chosen": "y"}]
    found = look(refused_rows, rows)["refused_rows"]
    assert (found.severity, found.count, found.total) == ("problem", 4, 5)
    assert "2 of them for an empty prompt or response" in found.summary
    assert found.examples[0] == 'train.jsonl:2: "chosen" is empty; expected an assistant message.'
    assert sum(row[1] for row in found.table.rows) == 4
    twice = look(refused_rows, [trl(1), trl(1), trl(2), trl(2)])["refused_rows"]
    assert [row[1] for row in twice.table.rows] == [2]  # one reason, whatever the id and the line
    assert look(refused_rows, [trl(1)])["refused_rows"].severity == "fine"


def test_rows_without_a_comparison_are_a_note_by_reason(look):
    ratings = {"helpfulness": 4, "correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 1}
    rows = [{"prompt": prompt, "response": "text", **ratings} for prompt in ("a", "a", "alone")]
    found = look(left_out_rows, rows)["left_out_rows"]
    assert (found.severity, found.count, found.total) == ("note", 1, 3)
    assert found.table.rows == (("no other response to the same prompt beside it", 1),)
    assert look(left_out_rows, [trl(1)]) == {}


def test_responses_without_a_letter_are_a_warning(look):
    found = look(blank_responses, [trl(1, rejected="..."), trl(2, rejected="42"), trl(3, rejected="好")])["blank_responses"]
    assert (found.severity, found.count, found.examples) == ("warning", 1, ("train.jsonl:1",))
    assert look(blank_responses, [trl(1)])["blank_responses"].severity == "fine"


# --- sizes ----------------------------------------------------------------------------------------------------------------------------


def test_small_categories_are_named_by_the_threshold_of_the_recipe(look):
    rows = [trl(n, category="big" if n < 5 else "small") for n in range(7)]
    found = look(categories, rows, context=Context(minimum_comparisons=5))["categories"]
    assert (found.severity, found.count, found.total) == ("warning", 1, 2)
    assert "fewer than 5 comparisons with a preference: small" in found.summary
    assert look(categories, rows, context=Context(minimum_comparisons=2))["categories"].severity == "note"
    assert isinstance(look(categories, [trl(1)])["categories"], NotChecked)


@pytest.mark.faults("F05")
def test_a_single_category_leaves_a_router_nothing_to_learn(look):
    assert "single_category" in look(categories, [trl(n, category="one") for n in range(3)])
    assert "single_category" not in look(categories, [trl(n, category="ab"[n % 2]) for n in range(4)])


def test_names_in_two_spellings_are_a_warning(look):
    rows = [trl(1, category="objective_qa"), trl(2, category="Objective-QA"), trl(3, category="chitchat")]
    found = look(names_that_look_alike, rows)["alike_names"]
    assert (found.severity, found.count) == ("warning", 1)
    assert "objective_qa (1) / Objective-QA (1)" in found.summary
    assert look(names_that_look_alike, rows[1:])["alike_names"].severity == "fine"


@pytest.mark.faults("F05")
def test_ties_are_counted_and_a_category_of_ties_alone_is_a_warning(look):
    rows = [native(n, category="a") for n in range(8)]
    assert look(ties, rows)["ties"].severity == "fine"
    found = look(ties, [*rows, native(9, ranks=(1, 1), category="a")])["ties"]
    assert (found.severity, found.count, found.total, found.examples) == ("note", 1, 9, ("train.jsonl:9",))
    found = look(ties, [*rows, native(9, ranks=(1, 1), category="b")])["ties"]
    assert found.severity == "warning"
    assert "nothing but ties: b" in found.summary
    assert look(ties, [native(1, ranks=(1, 1))])["ties"].severity == "problem"


def pair_row(number, preference):
    return {
        "id": number,
        "prompt": f"prompt {number}",
        "response_1": f"one {number}",
        "response_2": f"two {number}",
        "preference": preference,
    }


def test_the_first_place_that_wins_too_often_is_a_position_bias(look):
    found = look(positions, [pair_row(n, 2 if n % 4 == 0 else 1) for n in range(80)])["positions"]
    assert (found.severity, found.share.value, found.share.n) == ("warning", 0.75, 80)
    assert look(positions, [pair_row(n, 1 + n % 2) for n in range(80)])["positions"].severity == "fine"
    assert isinstance(look(positions, [trl(n) for n in range(80)])["positions"], NotChecked)


@pytest.mark.faults("F05")
def test_numbered_pairs_that_all_prefer_one_number_are_of_one_class(look):
    found = look(positions, [pair_row(n, 1) for n in range(30)], [pair_row(n, 1 + n % 2) for n in range(30, 60)])
    assert (found["one_class"].severity, found["one_class"].count) == ("problem", 1)
    assert "every preference in train.jsonl is for" in found["one_class"].summary
    assert "one_class" not in look(positions, [pair_row(n, 1 + (n == 0)) for n in range(30)])


# --- shortcuts ------------------------------------------------------------------------------------------------------------------------


def test_length_bias_is_measured_in_all_and_by_gap(look):
    rows = [trl(n, "x" * 110 if n % 2 else "x" * 300, "y" * 100) for n in range(60)] + [trl(n, "x" * 100, "y" * 300) for n in range(60, 70)]
    found = look(length_bias, rows)["length_bias"]
    assert (found.severity, found.share.value, found.share.n) == ("warning", pytest.approx(60 / 70), 70)
    bins = {row[0]: (row[1].value, row[2]) for row in found.table.rows}
    assert bins == {"up to 10% longer": (1.0, 30), "more than that": (0.75, 40)}
    balanced = [trl(n, "x" * (100 + n % 2 * 50), "y" * (150 - n % 2 * 50)) for n in range(60)]
    assert look(length_bias, balanced)["length_bias"].severity == "fine"
    assert isinstance(look(length_bias, rows[:5])["length_bias"], NotChecked)


def test_one_biased_file_does_not_hide_behind_a_balanced_one(look):
    balanced = [trl(n, "x" * (100 + n % 2 * 50), "y" * (150 - n % 2 * 50)) for n in range(400)]
    found = look(length_bias, balanced, [trl(n, "long" * 9, "short") for n in range(30)])["length_bias"]
    assert found.severity == "warning"
    assert "in more0.jsonl 100%" in found.summary


def test_style_that_wins_is_a_warning_with_its_traits(look):
    rng = random.Random(0)
    rows = []
    for number in range(120):
        plain, listed = sentence(rng), "\n".join(f"- {sentence(rng, 2)}" for _ in range(3))
        rows.append(trl(number, *((listed, plain) if number % 6 else (plain, listed))))
    found = look(style, rows)["style"]
    assert found.severity == "warning"
    assert "bullet points" in found.summary
    traits = {row[0]: (row[1].value, row[2]) for row in found.table.rows}
    assert traits["bullet points"] == (pytest.approx(100 / 120), 120)
    assert found.share.value > 0.75
    plain = [trl(number, sentence(rng) + ".", sentence(rng) + ".") for number in range(120)]
    assert look(style, plain)["style"].severity in ("fine", "note")
    assert isinstance(look(style, rows[:20])["style"], NotChecked)


@pytest.mark.parametrize(
    ("trait", "text", "count"),
    [
        ("bullet points", "- a\n  * b\nc - d", 2),
        ("numbered items", "1. a\n2) b\n3 c", 2),
        ("headings", "# a\n#b\n### c", 2),
        ("bold", "**a** and **b** **", 2),
        ("code blocks", "```\na\n```\n```py\nb\n```", 2),
        ("tables", "| a | b |\n|---|---|\na | b", 2),
        ("links", "see http://a and https://b", 2),
        ("refusal", "I'm sorry, but I can't help with that.", 1),
        ("refusal", "As an AI language model, I like it.", 1),
        ("refusal", "I can write that.", 0),
        ("cut off (no end mark)", "and then", 1),
        ("cut off (no end mark)", "and then. ", 0),
        ("space at the start", " x", 1),
        ("space at the end", "x\n", 1),
    ],
)
def test_traits_count_what_their_name_says(trait, text, count):
    assert TRAITS[trait](text) == count


def test_refusals_that_win_are_a_warning_and_those_that_lose_a_note(look):
    refusal, answer = "I'm sorry, but I cannot help with that.", "Here is how."
    assert is_refusal(refusal)
    assert not is_refusal(answer)
    found = look(refusals, [trl(n, refusal, f"{answer} {n}") for n in range(25)])["refusals"]
    assert (found.severity, found.count, found.share.value) == ("warning", 25, 1.0)
    found = look(refusals, [trl(n, f"{answer} {n}", refusal) for n in range(25)])["refusals"]
    assert (found.severity, found.share.value) == ("note", 0.0)
    found = look(refusals, [trl(1, refusal, refusal + " Sorry."), trl(2, refusal, answer)])["refusals"]
    assert (found.count, found.examples) == (1, ("train.jsonl:2",))
    assert "both refuse in 1" in found.summary
    assert look(refusals, [trl(1)])["refusals"].severity == "fine"


def test_words_that_give_the_winner_away_are_listed(look):
    rng = random.Random(0)
    rows = [trl(n, f"{sentence(rng)} certainly", f"{sentence(rng)} perhaps") for n in range(80)]
    found = look(words, rows)["words"]
    assert (found.severity, found.share.value, found.share.n) == ("warning", 1.0, 80)
    assert found.table.rows[0][1].split()[0] == "certainly"
    assert found.table.rows[1][1].split()[0] == "perhaps"
    noise = [trl(n, sentence(rng), sentence(rng)) for n in range(80)]
    assert look(words, noise)["words"].severity in ("fine", "note")
    assert isinstance(look(words, rows[:10])["words"], NotChecked)


def test_words_without_any_word_are_not_checked(look):
    assert isinstance(look(words, [trl(n, "?" * (n + 1), "!" * (n + 1)) for n in range(60)])["words"], NotChecked)


def test_authors_that_give_the_winner_away_are_named(look):
    rng = random.Random(0)
    names = ["best", "good", "poor"]
    rows = []
    for number in range(90):
        first, second = sorted(rng.sample(range(3), 2))
        rows.append(trl(number, chosen_model=names[first], rejected_model=names[second]))
    found = look(authors, rows)["authors"]
    assert (found.severity, found.share.value) == ("warning", 1.0)
    always = found.summary.partition("always winning or losing: ")[2].partition(";")[0]
    assert set(always.split(", ")) == {"best", "poor"}
    assert {row[0] for row in found.table.rows} == set(names)
    even = [trl(n, chosen_model="ab"[n // 2 % 2], rejected_model="ba"[n // 2 % 2]) for n in range(90)]
    assert look(authors, even)["authors"].severity in ("fine", "note")
    assert isinstance(look(authors, [trl(n) for n in range(90)])["authors"], NotChecked)


# --- labels ---------------------------------------------------------------------------------------------------------------------------


def labelled(number, category="qa", **verdicts):
    """A native row; 1 prefers the better response, -1 the other one."""
    labels = [
        {"capability": name, "preferred": 0 if verdict == 1 else 1, "other": 1 if verdict == 1 else 0} for name, verdict in verdicts.items()
    ]
    return native(number, category=category, labels=labels)


def test_capabilities_with_too_few_labels_are_named(look):
    rows = [labelled(n, logic=1, **({"tone": 1} if n < 3 else {})) for n in range(10)]
    found = look(label_counts, rows, context=Context(minimum_labels=5))["labels"]
    assert (found.severity, found.count, found.total) == ("warning", 1, 2)
    assert "fewer than 5: qa/tone" in found.summary
    assert look(label_counts, rows, context=Context(minimum_labels=3))["labels"].severity == "note"
    assert isinstance(look(label_counts, [trl(1)])["labels"], NotChecked)


@pytest.mark.faults("F05")
def test_labels_that_always_prefer_one_place_are_a_problem(look):
    constant = [
        native(n, ranks=(1, 2) if n % 2 else (2, 1), labels=[{"capability": "logic", "preferred": 0, "other": 1}]) for n in range(25)
    ]
    found = look(label_counts, constant)
    assert (found["constant_labels"].severity, found["constant_labels"].count) == ("problem", 1)
    assert "constant_labels" not in look(label_counts, [labelled(n, logic=1 if n % 3 else -1) for n in range(25)])
    # Where the winner is listed first and the labels follow it, the place says nothing: that is for `halo` to find.
    assert "constant_labels" not in look(label_counts, [labelled(n, logic=1) for n in range(25)])


def test_labels_that_repeat_the_overall_preference_are_a_warning(look):
    rows = [labelled(n, logic=1, tone=1 if n % 4 else -1) for n in range(40)]
    found = look(halo, rows)["halo"]
    assert (found.severity, found.count, found.total) == ("warning", 1, 2)
    assert "qa/logic" in found.summary
    assert found.share.value == pytest.approx(70 / 80)
    assert look(halo, [labelled(n, tone=1 if n % 4 else -1) for n in range(40)])["halo"].severity == "fine"


def test_labels_that_repeat_the_judges_own_verdict_are_a_warning_too(look):
    rows = [labelled(n, overall=1 if n % 4 else -1, logic=1 if n % 4 else -1) for n in range(40)]
    found = look(halo, rows)["halo"]
    (row,) = found.table.rows
    assert (found.severity, row[0], row[1].value, row[2].value) == ("warning", "qa/logic", 0.75, 1.0)


def test_capabilities_that_say_the_same_are_found_beyond_what_both_owe_to_the_overall_preference(look):
    twins = [labelled(n, logic=1 if n % 4 else -1, reason=1 if n % 4 else -1) for n in range(40)]
    found = look(repeated_capabilities, twins)["repeated_capabilities"]
    (row,) = found.table.rows
    assert (found.severity, row[0], row[1].value, row[2], row[3]) == ("warning", "qa/logic = reason", 1.0, 1.0, 40)
    # 38 of 40 agree, but never where either goes against the overall preference: kappa (0.95 - 0.951) / (1 - 0.951) is below 0.
    halo_only = [labelled(n, logic=-1 if n == 0 else 1, reason=-1 if n == 1 else 1) for n in range(40)]
    found = look(repeated_capabilities, halo_only)["repeated_capabilities"]
    assert found.severity == "fine"
    assert found.table.rows[0][2] < 0
    assert isinstance(look(repeated_capabilities, twins[:5])["repeated_capabilities"], NotChecked)


def judged(number, first, second, capabilities=((), ())):
    judgements = [
        {"order": order, "overall": verdict, "capabilities": dict(more)}
        for order, verdict, more in zip(("chosen_first", "rejected_first"), (first, second), capabilities, strict=True)
        if verdict is not None
    ]
    return trl(number, judgements=judgements)


def test_verdicts_that_change_with_the_order_are_counted_with_the_place_they_like(look):
    # Of 40 verdicts on logic 25 go to whichever response is shown first; one comparison was asked in one order only.
    rows = [judged(n, 1, 1, ((("logic", 1),), (("logic", -1 if n < 25 else 1),))) for n in range(40)] + [judged(40, 1, None)]
    found = look(order_consistency, rows)["orders"]
    assert (found.severity, found.count, found.total) == ("warning", 25, 80)
    assert "100% [87, 100] go to the response shown first" in found.summary
    assert {row[0]: (row[1].value, row[2], row[3]) for row in found.table.rows} == {
        "overall": (0.0, 40, 1),
        "logic": (25 / 40, 40, 0),
    }
    assert look(order_consistency, [judged(n, 1, 1) for n in range(5)])["orders"].severity == "fine"
    assert isinstance(look(order_consistency, [trl(1)])["orders"], NotChecked)


def test_a_judge_against_the_ranks_hints_at_swapped_columns(look):
    found = look(judge_against_people, [judged(n, -1, -1) for n in range(30)])["judge_against_ranks"]
    assert (found.severity, found.share.value) == ("problem", 0.0)
    assert "changed places" in found.advice
    assert look(judge_against_people, [judged(n, 1, 1) for n in range(30)])["judge_against_ranks"].severity == "fine"
    assert look(judge_against_people, [trl(1)]) == {}


# --- texts ----------------------------------------------------------------------------------------------------------------------------

PLANTED = {
    "replacement characters": "a caf\ufffd",
    "mojibake": "a cafÃ© and donâ€™t",
    "control characters": "red \x1b[31m text",
    "invisible characters": "zero\u200bwidth",
    "direction marks": "left \u202e right",
    "unusual line ends": "one\u2028two",
    "carriage returns": "one\r\ntwo",
    "HTML entities": "fish &amp; chips",
    "marks of a chat template": "bye<|im_end|>",
    "another turn in a response": "Yes.\n\nHuman: and then?",
}
HARMLESS = "Fuß»; «É» à Ã–zgür? 👩‍👩‍👧 می‌خواهم, ±5 °C, AT&T & R&D; a <b> [1] s> |> x\n\nUser guide: H2O — naïve “quotes”."


@pytest.mark.parametrize("name", ODDITIES)
def test_each_oddity_is_found_where_it_is_planted_and_nowhere_else(name, look):
    found = look(oddities, [trl(1), trl(2, rejected=PLANTED[name])])
    finding = found[name.replace(" ", "_").lower()]
    assert (finding.count, finding.total) == (1, 2)
    assert finding.severity == ODDITIES[name].severity
    assert finding.examples[0].startswith("train.jsonl:2")
    assert [check for check, other in found.items() if other.severity != "fine"] == [finding.check]


def test_oddities_in_prompts_count_but_a_prompt_may_hold_turns(look):
    found = look(oddities, [{**trl(1), "prompt": PLANTED["mojibake"] + PLANTED["another turn in a response"]}])
    assert [check for check, other in found.items() if other.severity != "fine"] == ["mojibake"]


def test_legitimate_text_in_many_scripts_has_no_oddity(look):
    text = HARMLESS.replace("Ã–", "Ö")
    assert {finding.severity for finding in look(oddities, [trl(1, chosen=text)]).values()} == {"fine"}


def test_an_oddity_on_one_side_is_a_warning_with_its_record(look):
    rows = [trl(n, "fine text", f"fish &amp; chips {n}") for n in range(30)]
    found = look(oddities, rows)["html_entities"]
    assert (found.severity, found.share.value, found.share.n) == ("warning", 0.0, 30)
    assert "it wins 0%" in found.summary


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("plain", "Latin"),
        ("élève", "Latin"),
        ("你好，世界", "Chinese"),
        ("今日は良い天気ですね", "Japanese"),
        ("오늘 날씨", "Korean"),
        ("Привет мир", "Cyrillic"),
        ("مرحبا", "Arabic"),
        ("42 !", None),
    ],
)
def test_scripts_are_told_by_the_names_of_the_letters(text, script):
    assert script_of(text) == script


def test_prompts_of_other_scripts_and_answers_in_another_one_are_notes(look):
    rows = [prompted(0, "你好，请问今天天气怎么样", chosen="很好", rejected="It is fine"), *(trl(n) for n in range(1, 10))]
    found = look(scripts, rows)
    assert (found["scripts"].severity, found["scripts"].count, found["scripts"].total) == ("note", 1, 10)
    assert (found["mixed_scripts"].severity, found["mixed_scripts"].count) == ("note", 1)
    assert {finding.severity for finding in look(scripts, [trl(1)]).values()} == {"fine"}


def test_unusual_turns_are_named(look):
    system, user, assistant = ({"role": role, "content": "text"} for role in ("system", "user", "assistant"))
    odd = [[user, assistant], [assistant, user], [user, user], [user, system, user], [{"role": "user", "content": " "}, user]]
    found = look(turns, [{**trl(n), "prompt": prompt} for n, prompt in enumerate(odd)])["turns"]
    assert (found.severity, found.count) == ("warning", 5)
    assert {row[0]: row[1] for row in found.table.rows} == {
        "ends with the assistant": 1,
        "begins with the assistant": 1,
        "one role twice in a row": 3,
        "a system message after the first": 1,
        "an empty message": 1,
    }
    tool = {"role": "tool", "content": "text"}
    found = look(turns, [{**trl(1), "prompt": [user, assistant, tool, tool]}])["turns"]
    assert [row[0] for row in found.table.rows] == ["messages of a tool"]  # several results in a row are as usual
    usual = [[system, user], [user, assistant, user]]
    assert look(turns, [{**trl(n), "prompt": prompt} for n, prompt in enumerate(usual)])["turns"].severity == "fine"


@pytest.mark.faults("F06")
def test_texts_beyond_the_budget_are_counted_by_the_rule_of_rendering(look):
    # 400 characters are about 100 tokens; with 4 for markers, 56 + 4 hold the short row and not the long one.
    rows = [trl(1, "x" * 400, "y"), trl(2, "x" * 40, "y")]
    found = look(budget, rows, context=Context(max_length_tokens=60))["budget"]
    assert (found.count, found.total, found.examples) == (1, 2, ("train.jsonl:1",))
    assert found.severity == "warning"
    assert look(budget, rows, context=Context(max_length_tokens=120))["budget"].severity == "fine"


@pytest.mark.faults("F06")
def test_pairs_that_the_cut_makes_equal_are_a_warning(look):
    rows = [trl(1, "x" * 400 + " yes", "x" * 400 + " no"), *(trl(n) for n in range(2, 9))]
    found = look(budget, rows, context=Context(max_length_tokens=60))["budget"]
    assert found.severity == "warning"
    assert "1 pair of responses are then the same" in found.summary


def test_tokens_are_estimated_by_script():
    assert estimated_tokens("x" * 40) == 10
    assert estimated_tokens("天气" * 5) == 10
    assert estimated_tokens("дома") == 2


# --- the round, the page and the command ----------------------------------------------------------------------------------------------


def healthy(count=80):
    rng = random.Random(9)
    return [
        pair_row(number, 1 + number % 2)
        | {"response_1": sentence(rng) + ".", "response_2": sentence(rng) + ".", "prompt": sentence(rng, 12)}
        for number in range(count)
    ]


def test_healthy_data_have_no_problem_and_no_warning(write):
    report = examine([write(healthy())])
    assert report.as_text().splitlines()[0] == "No problems, no warnings in 80 comparisons"
    assert (report.prompts, report.pairs) == (80, 80)


def test_the_report_begins_with_the_verdict_and_the_most_serious(write):
    report = examine([write([trl(1, "same", "same"), trl(2), trl(2) | {"id": "again"}, trl(3, rejected="...")])])
    severities = [finding.severity for finding in report.findings]
    assert severities == sorted(severities, key=["problem", "warning", "note", "fine"].index)
    lines = report.as_text().splitlines()
    assert lines[0] == "1 problem, 2 warnings in 4 comparisons"
    assert lines.index("PROBLEMS") < lines.index("WARNINGS") < lines.index("FINE") < lines.index("NOT CHECKED")
    assert "    To do: Remove them. Training drops those that repeat every byte; the others" in lines


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_the_page_keeps_to_its_width_and_shows_colours_only_when_told(write, width):
    report = examine([write([trl(n, "I'm sorry, but I cannot help.", "Sure. " * n, category="ab"[n % 2]) for n in range(60)])])
    page = report.as_text(width)
    assert max(map(len, page.splitlines())) <= width
    assert "\x1b" not in page
    assert report.as_text(width, colour=True).replace("\x1b[0m", "").count("\x1b[") > 3


def test_a_place_is_never_broken_over_two_lines(write):
    path = write([trl(1, "same", "same")], f"{'a-very-long-name-' * 4}.jsonl")
    assert f"{path.name}:1" in examine([path]).as_text(40)


def test_text_from_the_files_cannot_steer_the_terminal(write):
    rows = [trl(n, category="a\x1b[2Jb") for n in range(3)]
    assert "\x1b" not in examine([write(rows)]).as_text()


def test_the_report_is_json_and_the_same_every_time(write):
    path = write(healthy())
    first, second = (json.dumps(examine([path]).as_dict(), allow_nan=False) for _ in range(2))
    assert first == second
    assert json.loads(first)["counts"]["problem"] == 0


def test_every_check_stands_an_empty_file_and_a_file_of_bad_rows(write):
    empty = read_corpus([(write([]), TRAIN)])
    assert examine_corpus(empty).comparisons == 0
    report = examine([write(["{broken\n"])])
    assert (report.comparisons, report.finding("refused_rows").severity) == (0, "problem")


def test_every_finding_says_what_to_do_unless_it_is_fine(write):
    rows = [trl(1, "same", "same"), trl(2, chosen=" "), *(trl(n, PLANTED["mojibake"], "x", category="Ab") for n in range(3, 40))]
    for finding in examine([write(rows)]).findings:
        assert isinstance(finding, Finding)
        assert finding.advice or finding.severity in ("note", "fine"), finding.check
        assert "\n" not in finding.summary + finding.advice


def test_checks_have_names_of_their_own(write):
    report = examine([write(healthy())], test=[write(healthy(3), "test.jsonl")])
    names = [item.check for item in (*report.findings, *report.not_checked)]
    assert len(names) == len(set(names)) >= len(CHECKS)


def test_an_unreadable_file_is_an_error(write, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        examine([tmp_path / "nothing.jsonl"])
    with pytest.raises(DataError, match="fits no known format"):
        examine([write([{"text": "x"}])])


def test_files_of_one_name_are_told_apart_by_their_path(write, tmp_path):
    (tmp_path / "other").mkdir()
    files = [write([trl(1, "same", "same")]), write([trl(2)], "other/train.jsonl")]
    assert examine(files).finding("identical_responses").examples == (f"{files[0]}:1",)


def test_a_recipe_gives_its_own_thresholds_split_and_roles(write, tmp_path):
    write([trl(n, category="facts") for n in range(6)], "comparisons.jsonl")
    write([labelled(n, category="facts", logic=1) for n in range(6)], "labels.jsonl")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data: {comparisons: [comparisons.jsonl], labels: [labels.jsonl]}\ntask_model: {minimum_comparisons: 6}\n"
        "experts: {minimum_labels: 7}\nbackbone: {max_length_tokens: 8}\n"
    )
    report = examine_recipe(load_recipe(recipe))
    assert [file.role for file in report.files] == ["train", "labels"]
    assert report.finding("categories").severity == "note"  # six are enough, and those of the label file do not count
    assert report.finding("labels").severity == "warning"
    assert report.finding("prompts_in_several_files") is None  # label files name the prompts of others
    assert report.finding("budget").count == 12
    assert "The full report: dmoerm check c.jsonl" in brief_text(report, "dmoerm check c.jsonl")


def test_a_recipe_names_formats_aspects_and_categories_as_training_does(write, tmp_path):
    category = paper_taxonomy().categories[0]
    capability = category.capability_names[0]
    write([labelled(n, category=category.chinese, honesty=1) for n in range(3)], "comparisons.jsonl")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data: {comparisons: [comparisons.jsonl], formats: {comparisons.jsonl: native}, aspects: {honesty: " + capability + "}}\n", "utf-8"
    )
    report = examine_recipe(load_recipe(recipe))
    assert report.finding("labels").table.rows[0][0] == f"{category.name}/{capability}"


@pytest.mark.parametrize("fixture", sorted((Path(__file__).parent / "fixtures" / "formats").glob("*.jsonl")), ids=lambda path: path.stem)
def test_files_of_every_format_are_read_and_their_places_name_the_row(fixture):
    report = examine([fixture])
    assert report.comparisons > 0
    assert report.files[0].format == fixture.stem
    places = [place for finding in report.findings for place in finding.examples]
    assert all(re.match(rf"{re.escape(fixture.name)}:\d+", place) for place in places)


def test_folds_of_the_doctor_do_not_follow_the_split(write):
    # The sample and its folds are taken from the prompt's hash itself, the split from a hash of it: neither tells the other.
    corpus = read_corpus([(write([trl(n) for n in range(400)]), TRAIN)])
    chosen = corpus.sample(100)
    assert len(chosen) == 100
    many = read_corpus([(write([native(n, ("a", "b", "c"), (1, 2, 3)) for n in range(40)], "native.jsonl"), TRAIN)])
    assert len(many.sample(30)) == 10  # of three pairs each
    held = sum(split_of(corpus.comparisons[n].prompt, 2, 0) for n in chosen)
    assert 30 <= held <= 70


def command(capsys, *arguments, code=cli.DONE):
    found = cli.main(["check", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert found == code, err
    return out if out else err


def test_check_prints_the_page_without_colours_at_the_width_of_the_terminal(write, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    out = command(capsys, write([trl(1, "same", "same"), trl(2)]), "--test", write([trl(2)], "test.jsonl"))
    assert out.splitlines()[0] == "2 problems in 3 comparisons"
    assert "test.jsonl: as test, format trl, comparisons" in out  # a list, as the table does not fit
    assert max(map(len, out.splitlines())) <= 50
    assert "\x1b" not in out


def test_check_is_quiet_about_problems_in_its_exit_code_unless_strict(write, capsys):
    bad, good = write([trl(1, "same", "same")]), write(healthy(), "good.jsonl")
    command(capsys, bad)
    command(capsys, bad, "--strict", code=cli.FAILED)
    command(capsys, good, "--strict")
    command(capsys, write([{"text": "no preference"}], "other.jsonl"), code=cli.FAILED)


def test_check_json_holds_every_finding_with_its_figures(write, capsys):
    report = json.loads(command(capsys, write([trl(1, "x", "y"), {**trl(2, "y", "x"), "prompt": "prompt 1"}]), "--json"))
    finding = next(finding for finding in report["findings"] if finding["check"] == "contradictions")
    assert (finding["severity"], finding["count"], finding["share"]["value"]) == ("problem", 1, 1.0)
    assert {"check", "title", "reason"} == set(report["not_checked"][0])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("recipe.yaml", "train.jsonl"), "a recipe is checked by itself"),
        (("recipe.yaml", "--test", "train.jsonl"), "a recipe is checked by itself"),
        (("recipe.yaml", "--format", "trl"), "the recipe names formats in data.formats"),
        (("train.jsonl", "--set", "seed=1"), "--set changes a value of a recipe, and none was given"),
    ],
)
def test_check_keeps_recipes_and_files_apart(names, message, capsys):
    assert message in command(capsys, *names, code=cli.FAILED)


def test_check_of_a_recipe_shows_the_problems_of_its_files_in_brief(write, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write([trl(1, "x", "y"), {**trl(2, "y", "x"), "prompt": "prompt 1"}, *(trl(n) for n in range(3, 9))], "comparisons.jsonl")
    write([trl(n) for n in range(9, 12)], "held.jsonl")
    (tmp_path / "recipe.yml").write_text("data: {comparisons: [comparisons.jsonl], test: [held.jsonl]}\nbackbone: {name: nobody/nothing}\n")
    out = command(capsys, "recipe.yml")
    assert "Steps at most" in out
    brief = out[out.index("Data: ") :].splitlines()
    assert brief[0] == "Data: 1 problem in 11 comparisons"
    assert brief[1].startswith("  The same pair in both directions: 1 of ")
    assert brief[2] == "  The full report: dmoerm check comparisons.jsonl --test held.jsonl"
    command(capsys, "recipe.yml", "--strict", code=cli.FAILED)
    assert json.loads(command(capsys, "recipe.yml", "--json"))["doctor"]["counts"]["problem"] == 1
