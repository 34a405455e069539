import json

import pytest

from dmoerm.data.readers import FORMATS, read_comparisons, read_prompts, to_native
from dmoerm.errors import ConfigError, DataError
from dmoerm.records import OVERALL, CapabilityLabel, Message

USER = {"role": "user", "content": "Hi?"}
YES = {"role": "assistant", "content": "Yes."}
NO = {"role": "assistant", "content": "No."}
PAIR = {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}
NATIVE = {"prompt": "Hi?", "responses": ["a", "b", "c"], "ranks": [1, 2, 2]}
NUMBERED = {"prompt": "Hi?", "response_1": "a", "response_2": "b", "preference": 1}


@pytest.fixture
def read(tmp_path):
    def go(*rows, format="auto", **options):
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return read_comparisons(path, format, **options)

    return go


def test_a_native_row_becomes_a_comparison(read):
    row = {
        **NATIVE,
        "id": "n1",
        "prompt": [{"role": "system", "content": "Be brief."}, USER],
        "responses": ["a", {"text": "b", "author": "model-b"}, {"text": "c"}],
        "category": "chitchat",
        "fold": 3,
        "source": "ignored",
    }
    result = read(row)
    (one,) = result.comparisons
    assert (result.format, result.rows, result.rejected) == ("native", 1, 0)
    assert one.id == "n1"
    assert one.prompt == (Message("system", "Be brief."), Message("user", "Hi?"))
    assert one.responses == ("a", "b", "c")
    assert one.ranks == (1, 2, 2)
    assert one.category == "chitchat"
    assert one.authors == (None, "model-b", None)
    assert one.source.endswith("data.jsonl:1")


def test_capability_ranks_label_every_two_responses_of_different_known_rank(read):
    # 2 beats 0; 1 is unknown to logic. All three tie on tone.
    (one,) = read({**NATIVE, "capability_ranks": {"logic": [2, None, 1], "tone": [1, 1, 1]}}).comparisons
    assert one.labels == (CapabilityLabel("logic", 2, 0),)
    (three,) = read({**NATIVE, "capability_ranks": {"logic": [3, 1, 2]}}).comparisons
    assert set(three.labels) == {CapabilityLabel("logic", 1, 0), CapabilityLabel("logic", 2, 0), CapabilityLabel("logic", 1, 2)}


def test_a_comparison_written_as_native_reads_back_the_same(read):
    (one,) = read({**NATIVE, "id": "x", "category": "c", "capability_ranks": {"logic": [1, 2, None], OVERALL: [2, 1, 1]}}).comparisons
    (back,) = read(to_native(one)).comparisons
    assert back == one
    (pair,) = read({**PAIR, "chosen_model": "A"}).comparisons
    (back,) = read(to_native(pair)).comparisons
    assert back == pair


def test_an_id_is_made_of_file_and_line_where_the_row_has_none(read):
    assert [one.id for one in read(PAIR, {**PAIR, "id": 7}).comparisons] == ["data.jsonl:1", "7"]


def test_an_id_used_twice_is_a_bad_row(read):
    with pytest.raises(DataError, match=r":2: \"id\" 'a' is already used in line 1"):
        read({**PAIR, "id": "a"}, {**PAIR, "id": "a"})


def test_strings_are_kept_byte_for_byte(read):
    odd = " 2024-01-02T03:04:05\u2028\r\n\t "
    (one,) = read({"prompt": odd, "chosen": odd + "x", "rejected": odd + "y"}).comparisons
    assert one.prompt[0].content == odd
    assert one.responses == (odd + "x", odd + "y")


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
        {"prompt": "Hi?", "chosen": [YES], "rejected": [NO]},
        {"prompt": "Hi?", "chosen": [USER, YES], "rejected": [USER, NO]},
        {"chosen": [USER, YES], "rejected": [USER, NO]},
        {"chosen": "\n\nHuman: Hi?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Hi?\n\nAssistant: No."},
        {**PAIR, "prompt": None, "chosen": [USER, YES], "rejected": [USER, NO], "margin": 0.3},
    ],
)
def test_all_writings_of_a_trl_row_give_the_same_comparison(read, row):
    result = read(row)
    assert result.format == ("hh" if str(row["chosen"]).startswith("\n\nHuman:") else "trl")
    (one,) = result.comparisons
    assert one.prompt == (Message("user", "Hi?"),)
    assert one.responses == ("Yes.", "No.")
    assert one.ranks == (1, 2)
    assert one.authors == (None, None)


def test_trl_rows_carry_category_and_authors(read):
    (one,) = read({**PAIR, "category": "objective_qa", "chosen_model": "A", "rejected_model": "B", "gold_gap": 0.5}).comparisons
    assert (one.category, one.authors) == ("objective_qa", ("A", "B"))


def test_transcripts_are_cut_at_the_last_common_assistant_turn(read):
    head = "\n\nHuman: One?\n\nAssistant: 1\n\nHuman: Two?\n\nAssistant:"
    (one,) = read({"chosen": head + " Two it is.", "rejected": head + " Twice."}).comparisons
    assert one.prompt == (Message("user", "One?"), Message("assistant", "1"), Message("user", "Two?"))
    assert one.responses == ("Two it is.", "Twice.")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "Hi? Yes.", "rejected": "Hi? No."}, 'nothing says where the prompt ends. Add "prompt"'),
        ({"chosen": "x\n\nAssistant: a", "rejected": "x\n\nAssistant: b"}, "does not begin with"),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: s", "rejected": "\n\nHuman: q\n\nAssistant: b"},
            '"chosen" has more turns after the point where the two part',
        ),
        ({"chosen": [USER, YES], "rejected": [{"role": "user", "content": "Other?"}, NO]}, "do not share all messages but the last"),
        ({"chosen": [YES], "rejected": [NO]}, "do not share all messages but the last"),
        ({"chosen": "a", "rejected": [NO]}, '"chosen" is a string, "rejected" is a list; expected two strings or two lists'),
        ({**PAIR, "chosen": [YES, USER]}, "holds assistant, user after the prompt; expected one assistant message"),
        ({**PAIR, "chosen": " \n"}, '"chosen" is empty; expected an assistant message'),
        ({**PAIR, "chosen": None}, '"chosen" is null; expected a string or a list of messages'),
        ({**PAIR, "chosen": ["a"]}, '"chosen", message 1 is a string; expected an object with "role" and "content"'),
        ({**PAIR, "prompt": ""}, '"prompt" is empty'),
        ({**PAIR, "prompt": []}, '"prompt" is empty'),
        ({**PAIR, "prompt": [{"from": "human", "value": "x"}]}, '"prompt", message 1 has "from", "value"; expected "role" and "content"'),
        ({**PAIR, "prompt": [{"role": "human", "content": "x"}]}, "has the role 'human'; expected one of system, user, assistant, tool"),
        ({**PAIR, "prompt": [{"role": ["user"], "content": "x"}]}, "has the role \\['user'\\]"),
        ({**PAIR, "prompt": [{**USER, "tool_calls": [1]}]}, "carries tool calls"),
        ({**PAIR, "prompt": [{"role": "user", "content": None}]}, '"content" of "prompt", message 1 is null; expected a string'),
        ({**PAIR, "category": 3}, '"category" is a number; expected a string'),
        ({**PAIR, "category": ""}, '"category" is blank'),
        ({**PAIR, "categry": "x"}, '"categry" is not a known field: did you mean "category"'),
        ({**PAIR, "id": True}, '"id" is a boolean; expected a string'),
        ({**PAIR, "id": ""}, '"id" is blank'),
    ],
)
def test_a_trl_row_that_cannot_be_used_is_refused_by_name(read, row, message):
    with pytest.raises(DataError, match=message):
        read(row)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"responses": ["a"]}, '"responses" has 1; expected two or more'),
        ({"responses": "ab"}, '"responses" is a string; expected a list'),
        ({"responses": ["a", "b", 3]}, '"responses", item 3 is a number; expected a string or an object with "text"'),
        ({"responses": ["a", "b", {"txt": "c"}]}, '"text" is missing .there is "txt": did you mean "text"'),
        ({"responses": ["a", "b", " "]}, '"responses", item 3 is empty'),
        ({"ranks": [1, 2]}, '"ranks" has 2 items for 3 responses'),
        ({"ranks": [0, 1, 2]}, '"ranks" holds 0; expected whole numbers from 1'),
        ({"ranks": [1, True, 2]}, '"ranks" holds True'),
        ({"ranks": [1, 2.5, 2]}, '"ranks" holds 2.5'),
        ({"capability_ranks": {"logic": [1, 2]}}, '"capability_ranks", "logic" has 2 items'),
        ({"capability_ranks": [1]}, '"capability_ranks" is a list; expected an object'),
        ({"capability_rank": {}}, 'did you mean "capability_ranks"'),
        ({"labels": [{"capability": "x", "preferred": 0, "other": 3}]}, "is 3; expected the number of a response, 0 to 2"),
        ({"labels": [{"capability": "x", "preferred": 1, "other": 1}]}, "prefers response 1 to itself"),
        ({"labels": [{"capability": "x", "preferred": 1}]}, '"other" is missing'),
    ],
)
def test_a_native_row_that_cannot_be_used_is_refused_by_name(read, change, message):
    with pytest.raises(DataError, match=message):
        read({**NATIVE, **change})


@pytest.mark.parametrize(("preference", "ranks"), [(1, (1, 2)), (2, (2, 1)), (0, (1, 1))])
def test_the_preferred_response_of_a_pair_has_rank_one_and_zero_is_a_tie(read, preference, ranks):
    result = read({**NUMBERED, "preference": preference, "scenario": "s"})
    assert (result.format, result.comparisons[0].ranks) == ("pairs", ranks)
    assert result.comparisons[0].responses == ("a", "b")


@pytest.mark.parametrize("preference", [3, "1", True, None, 1.0])
def test_any_other_preference_is_refused(read, preference):
    with pytest.raises(DataError, match=r'"preference" is .*; expected 1 .response_1 is better., 2, or 0'):
        read({**NUMBERED, "preference": preference})


def judged(*judgements):
    return {**PAIR, "judgements": [{"order": order, "overall": overall, "capabilities": c} for order, overall, c in judgements]}


def test_a_verdict_becomes_a_label_only_where_both_orders_give_it(read):
    row = judged(
        ("chosen_first", 1, {"logic": -1, "tone": 1, "facts": 0, "wit": 1, "depth": None}),
        ("rejected_first", 1, {"logic": -1, "tone": -1, "facts": 0, "depth": 1}),
    )
    result = read(row)
    assert result.format == "judgements"
    assert result.comparisons[0].labels == (CapabilityLabel(OVERALL, 0, 1), CapabilityLabel("logic", 1, 0))
    assert result.comparisons[0].ranks == (1, 2)


def test_a_pair_judged_in_one_order_only_has_no_label(read):
    (one,) = read(judged(("chosen_first", 1, {"logic": 1}))).comparisons
    assert one.labels == ()


@pytest.mark.parametrize(
    ("judgements", "message"),
    [
        ([("chosen_first", 1, {}), ("chosen_first", 1, {})], "item 2 judges the order 'chosen_first' a second time"),
        ([("first", 1, {})], "has the order 'first'; expected 'chosen_first' or 'rejected_first'"),
        ([("chosen_first", 2, {})], '"overall" of "judgements", item 1 is 2; expected 1'),
        ([("chosen_first", 1, {"logic": True})], '"logic" of "judgements", item 1 is True'),
        ([("chosen_first", 1, {OVERALL: 1})], "which is the name of the verdict beside it"),
    ],
)
def test_a_judgement_that_cannot_be_used_is_refused_by_name(read, judgements, message):
    with pytest.raises(DataError, match=message):
        read(judged(*judgements))


@pytest.mark.faults("F03")
def test_a_file_that_fits_no_format_says_what_was_tried_and_the_nearest_name(read):
    with pytest.raises(DataError, match="fits no known format") as caught:
        read({"prompt": "Hi?", "choosen": "a", "rejected": "b"})
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == list(FORMATS)
    assert '  trl: "chosen" is missing (there is "choosen": did you mean "chosen"?)' in lines


@pytest.mark.faults("F03")
def test_one_misspelt_row_is_a_bad_row_and_does_not_change_the_format(read):
    with pytest.raises(DataError, match=r':1: "chosen" is missing \(there is "choosen"'):
        read({"prompt": "Hi?", "choosen": "a", "rejected": "b"}, PAIR, PAIR)


def test_bad_rows_of_any_kind_can_be_skipped_and_are_counted(read, tmp_path):
    result = read(PAIR, {**PAIR, "chosen": ""}, {**PAIR, "rejected": 1}, bad_rows="skip", rejected_dir=tmp_path / "run")
    assert (len(result.comparisons), result.rows, result.rejected) == (1, 3, 2)
    assert result.rejected_path is not None
    assert len(result.rejected_path.read_bytes().splitlines()) == 2


@pytest.mark.faults("F02")
def test_an_empty_file_gives_no_comparisons(read):
    result = read()
    assert (result.comparisons, result.rows, result.rejected) == ([], 0, 0)


def test_a_named_format_is_used_without_looking(read):
    with pytest.raises(DataError, match='"response_1" is missing'):
        read(PAIR, format="pairs")
    with pytest.raises(ConfigError, match=r"format is 'csv'; expected auto, native, pairs, .* trl\."):
        read(PAIR, format="csv")
    with pytest.raises(ConfigError, match='did you mean "helpsteer2"'):
        read(PAIR, format="helpster2")


def test_transcripts_may_also_be_named_trl(read):
    row = {"chosen": "\n\nHuman: Hi?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Hi?\n\nAssistant: No."}
    assert read(row, format="trl").comparisons == read(row, format="hh").comparisons


def test_a_margin_is_kept_and_must_be_a_number(read):
    assert [one.margin for one in read({**PAIR, "margin": 2}, PAIR, {**PAIR, "margin": None}).comparisons] == [2.0, None, None]
    with pytest.raises(DataError, match='"margin" is a string; expected a number'):
        read({**PAIR, "margin": "2"})
    (one,) = read({**NUMBERED, "responses": ["a", "b"], "ranks": [1, 2], "margin": 1.5, "subset": "Ties"}, format="native").comparisons
    assert (one.margin, one.subset) == (1.5, "Ties")
    assert read(to_native(one)).comparisons == [one]
    with pytest.raises(DataError, match='"margin" stands beside 3 responses; expected it with two only'):
        read({**NATIVE, "margin": 1})


def test_prompts_for_the_router_come_with_their_category(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a", "category": "x", "fold": 1}\n{"prompt": [{"role": "user", "content": "b"}], "category": "y"}\n')
    assert read_prompts(path) == [((Message("user", "a"),), "x"), ((Message("user", "b"),), "y")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"prompt": "a"}', '"category" is missing'),
        ('{"prompt": "a", "category": null}', '"category" is null'),
        ('{"category": "x"}', "prompt"),
    ],
)
def test_a_router_row_without_prompt_or_category_is_refused(tmp_path, row, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(row + "\n")
    with pytest.raises(DataError, match=message):
        read_prompts(path)
