"""Every format on a fixture written for this project: how it is read, and how the same file with one fault in it is refused."""

import copy
import json
import typing
from pathlib import Path

import pytest

from dmoerm.data.readers import FORMATS, read_comparisons
from dmoerm.errors import ConfigError, DataError
from dmoerm.recipe import FormatName
from dmoerm.records import OVERALL, CapabilityLabel, Message

FIXTURES = Path(__file__).parent / "fixtures" / "formats"


def load(name, **options):
    return read_comparisons(FIXTURES / f"{name}.jsonl", **options)


def rows_of(name):
    return [json.loads(line) for line in (FIXTURES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def user(text):
    return Message("user", text)


def assistant(text):
    return Message("assistant", text)


def test_every_format_has_a_fixture_and_a_name_in_the_recipe():
    assert {path.stem for path in FIXTURES.glob("*.jsonl")} == set(FORMATS)
    assert typing.get_args(FormatName) == tuple(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_of_each_format_is_recognised_and_reads_the_same_when_it_is_named(name):
    sniffed, named = load(name), load(name, format=name)
    assert sniffed.format == name
    assert sniffed == named
    assert sniffed.rejected == 0
    assert sniffed.comparisons
    for number, comparison in enumerate(sniffed.comparisons):
        assert comparison.source.startswith(f"{FIXTURES / name}.jsonl:")
        assert len(comparison.authors) == len(comparison.ranks) == len(comparison.responses) >= 2
        assert comparison.id not in {other.id for other in sniffed.comparisons[:number]}


# format, the row (from 1), the path of keys to what is changed, the new value (GONE: the key is taken away), what the message says.
GONE = object()
FAULTS = [
    ("native", 1, ["ranks"], [1, 2], r'"ranks" has 2 items for 3 responses; expected one a response'),
    ("native", 2, ["responses", 1], "  ", r'"responses", item 2 is empty; expected an assistant message'),
    ("pairs", 2, ["preference"], "1", r'"preference" is \'1\'; expected 1 \(response_1 is better\), 2, or 0 for a tie'),
    ("judgements", 2, ["judgements", 0, "order"], "first", r"\"judgements\", item 1 has the order 'first'; expected 'chosen_first'"),
    ("ultrafeedback", 2, ["completions", 0, "annotations", "honesty", "Rating"], "7", r'"honesty" of .*item 1 is 7.*from 1 to 5'),
    ("ultrafeedback", 1, ["completions", 3, "annotations", "honesty", "Rating"], "good", r"is 'good'; expected a number from 1 to 5"),
    ("ultrafeedback", 2, ["completions", 1, "annotations"], GONE, r'"annotations" is missing'),
    ("helpsteer2", 4, ["correctness"], 5, r'"correctness" is 5; expected a number from 0 to 4'),
    ("helpsteer2", 1, ["helpfulness"], [3, 3, 4], r'"helpfulness" is a list; expected a number from 0 to 4'),
    ("helpsteer2", 2, ["helpfulness"], None, r'"helpfulness" is null; expected a number from 0 to 4, by which'),
    ("helpsteer2", 3, ["prompt"], "a\n<extra_id_1>User\nb", r'"prompt" holds the turns user, user; expected user and assistant in turn'),
    ("helpsteer2_preference", 1, ["preference_strength"], -4, r'"preference_strength" is -4; expected a whole number from -3'),
    ("helpsteer3", 2, ["overall_preference"], 1.5, r'"overall_preference" is 1\.5; expected a whole number from -3'),
    ("helpsteer3", 1, ["context", 1, "role"], "bot", r"\"context\", message 2 has the role 'bot'; expected one of system, user"),
    ("reward_bench", 2, ["rejected"], None, r'"rejected" is null; expected a string or a list of messages'),
    ("reward_bench_2", 2, ["num_correct"], 1, r'"num_correct" is 1, but "chosen" hold 2; expected the same number\. Fix the row'),
    ("reward_bench_2", 1, ["rejected"], [], r'"rejected" has 0 items; expected at least 1'),
    ("rm_bench", 1, ["rejected", 2], GONE, r'"rejected" has 2 items; expected 3: concise, detailed plain, detailed Markdown'),
    ("judge_bench", 1, ["label"], "A=B", r"\"label\" is 'A=B'; expected \"A>B\" or \"B>A\""),
    ("arena", 1, ["winner_tie"], 1, r"winner_model_a, winner_model_b, winner_tie are 1, 0, 1; expected exactly one"),
    ("arena", 2, ["response_b"], '["Hello!"]', r'"response_b" has 1 turns and "prompt" 2; expected as many'),
    ("arena", 3, ["prompt"], "[Hi]", r'"prompt" holds no list of turns: not valid JSON .* Expected a JSON list of strings, as text'),
    ("arena", 4, ["response_a"], "[null]", r'"response_a", item 1 is null; expected a string'),
    ("llama_factory_alpaca", 2, ["history", 0], ["Only one."], r'"history", item 1 has 1 texts; expected two, of the user and of'),
    ("llama_factory_alpaca", 1, ["chosen"], {"value": "x"}, r'"chosen" is an object; expected a string'),
    ("llama_factory_sharegpt", 1, ["conversations", 2, "from"], "tool", r"\"conversations\", item 3 is 'tool'; expected one of"),
    ("llama_factory_sharegpt", 2, ["chosen", "from"], "human", r"\"chosen\" is from 'human'; expected gpt"),
    ("ms_swift", 1, ["messages"], [{"role": "user", "content": "x"}], r'"messages" does not end with a reply of the assistant'),
    ("ms_swift", 1, ["rejected_response"], GONE, r'"rejected_response" and "rejected_messages" are not there; expected one of them'),
    ("ms_swift", 2, ["rejected_messages", 0, "content"], "Other", r'"rejected_messages" do not share all messages but the last'),
    ("ms_swift", 1, ["margin"], "0.7", r'"margin" is a string; expected a number'),
    ("mtmc", 1, ["tgt"], [], r'"src" has 2 turns and "tgt" 0; expected one more in "src"'),
    ("mtmc", 2, ["rank"], [1], r'"rank" has 1 items for 2 responses; expected one a response'),
    ("hh", 2, ["chosen"], "Human: x", r"Add \"prompt\", or write both as lists of messages"),
    ("trl", 2, ["chosen"], "", r'"chosen" is empty; expected an assistant message'),
    ("trl", 1, ["rejected"], GONE, r'"rejected" is missing'),
]  # fmt: skip


@pytest.mark.faults("F03")
@pytest.mark.parametrize(("name", "number", "keys", "value", "message"), FAULTS, ids=lambda value: value if isinstance(value, str) else "")
def test_the_same_file_with_one_fault_is_refused_with_file_line_field_and_remedy(tmp_path, name, number, keys, value, message):
    rows = rows_of(name)
    inner = rows[number - 1]
    for key in keys[:-1]:
        inner = inner[key]
    if value is GONE:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError, match=rf"^{path}:{number}: .*{message}"):
        read_comparisons(path, format=name)
    assert read_comparisons(path, format=name, bad_rows="skip").rejected == 1


@pytest.mark.faults("F03")
@pytest.mark.parametrize("name", FORMATS)
def test_every_required_field_that_is_missing_or_misspelt_is_named(tmp_path, name):
    path = tmp_path / "x.jsonl"
    row = rows_of(name)[0]
    for field in FORMATS[name].required:
        misspelt = field[0] + field
        broken = {misspelt if key == field else key: value for key, value in copy.deepcopy(row).items()}
        path.write_text(json.dumps(broken) + "\n", encoding="utf-8")
        with pytest.raises(DataError, match=rf'x\.jsonl:1: .*"{field}" is missing \(there is "{misspelt}": did you mean "{field}"\?\)'):
            read_comparisons(path, format=name)


@pytest.mark.faults("F01")
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_in_its_last_line_is_refused_with_that_line(tmp_path, name):
    path = tmp_path / "cut.jsonl"
    content = (FIXTURES / f"{name}.jsonl").read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(DataError, match=rf"cut\.jsonl:{len(rows_of(name))}: not (valid JSON|UTF-8)"):
        read_comparisons(path)


def test_ultrafeedback_ranks_by_the_mean_over_aspects_that_all_completions_have(tmp_path):
    result = load("ultrafeedback")
    leaves, wall = result.comparisons
    # Honesty is "N/A" for the second completion and does not count: 5+5+4, 4+3+2, 4+1+2, 5+5+4 over three aspects each.
    assert leaves.ranks == (1, 2, 3, 1)
    assert leaves.authors == ("heron-2", "wren-1", "crow-7", "finch-3")
    assert wall.ranks == (2, 1)
    assert dict(result.left_out) == {"fewer than two completions": 1}
    # overall_score is 10 in all of them, the published fault: it has no say.


def test_a_missing_rating_gives_no_label_and_equal_ratings_give_none():
    leaves = load("ultrafeedback").comparisons[0]
    honesty = [(label.preferred, label.other) for label in leaves.labels if label.capability == "honesty"]
    # Ratings 5, N/A, 2, 5: the first and the last beat the third, and that is all.
    assert honesty == [(0, 2), (3, 2)]
    following = [(label.preferred, label.other) for label in leaves.labels if label.capability == "instruction_following"]
    assert following == [(0, 1), (0, 2), (3, 1), (3, 2)]  # 5, 4, 4, 5


def test_ultrafeedback_without_an_aspect_rated_everywhere_is_left_out_and_counted(tmp_path):
    row = rows_of("ultrafeedback")[1]
    for aspect, annotation in row["completions"][0]["annotations"].items():
        annotation["Rating"] = "N/A" if aspect in ("honesty", "helpfulness") else annotation["Rating"]
    for aspect in ("truthfulness", "instruction_following"):
        row["completions"][1]["annotations"][aspect]["Rating"] = "N/A"
    path = tmp_path / "u.jsonl"
    path.write_text(json.dumps(row) + "\n")
    result = read_comparisons(path)
    assert (result.comparisons, dict(result.left_out)) == ([], {"no aspect is rated in every completion": 1})


def test_rows_of_helpsteer2_that_follow_each_other_with_one_prompt_are_compared():
    result = load("helpsteer2")
    parser, basil = result.comparisons
    assert parser.ranks == (1, 2)
    assert parser.id == "helpsteer2.jsonl:1"
    assert basil.source.endswith("helpsteer2.jsonl:3")
    assert basil.prompt == (
        user("I planted basil indoors."),
        assistant("Nice! Which window is it in?"),
        user("The north one, and it wilts. Why?"),
    )
    assert basil.ranks == (1, 1)  # as helpful as each other
    # correctness 4 and 0, coherence 4 and 3; complexity and verbosity are equal.
    assert basil.labels == (CapabilityLabel("correctness", 0, 1), CapabilityLabel("coherence", 0, 1))
    assert dict(result.left_out) == {"no other response to the same prompt beside it": 1}


def test_a_bad_row_of_helpsteer2_leaves_its_partner_alone(tmp_path):
    rows = rows_of("helpsteer2")
    rows[0]["response"] = ""
    path = tmp_path / "h.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = read_comparisons(path, bad_rows="skip")
    assert (len(result.comparisons), result.rows, result.rejected) == (1, 5, 1)
    assert dict(result.left_out) == {"no other response to the same prompt beside it": 2}


def test_a_negative_strength_prefers_the_first_response():
    assert [one.ranks for one in load("helpsteer2_preference").comparisons] == [(1, 2), (2, 1), (1, 1)]
    assert [one.ranks for one in load("helpsteer3").comparisons] == [(1, 2), (2, 1)]
    assert [message.role for message in load("helpsteer3").comparisons[0].prompt] == ["user", "assistant", "user"]


def test_benchmark_rows_keep_their_subset():
    egg, function = load("reward_bench").comparisons
    assert (egg.id, egg.subset, egg.authors) == ("30", "alpacaeval-easy", ("heron-2", "crow-7"))
    assert function.subset == "hep-python"
    planet, colour = load("reward_bench_2").comparisons
    assert (planet.ranks, planet.subset) == ((1, 2, 2, 2), "Factuality")
    assert (colour.ranks, colour.subset, colour.id) == ((1, 1, 2), "Ties", "tied:3")
    assert load("judge_bench").comparisons[1].id == "b6c2"
    assert [one.ranks for one in load("judge_bench").comparisons] == [(1, 2), (2, 1)]


def test_the_nine_pairs_of_rm_bench_are_the_cells_of_its_matrix():
    sums, _ = load("rm_bench").comparisons
    assert {(pair.chosen, pair.rejected) for pair in sums.pairs()} == {(c, r) for c in range(3) for r in range(3, 6)}
    assert sums.subset == "math-hard"


def test_a_trl_row_with_a_domain_is_not_taken_for_rm_bench(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt": "p", "chosen": "a", "rejected": "b", "domain": "math"}\n')
    assert read_comparisons(path).format == "trl"


def test_arena_compares_last_turns_only_where_the_earlier_ones_are_equal():
    result = load("arena")
    rhyme, who, drink = result.comparisons
    assert rhyme.responses == ('Hardly anything; "sporange" does.', "Banana.")
    assert rhyme.authors == ("heron-2", "crow-7")
    assert who.prompt == (user("Hi"), assistant("Hello!"), user("Who are you?"))
    assert who.ranks == (2, 1)
    assert drink.ranks == (1, 1)
    assert dict(result.left_out) == {"several turns in which the models answered differently before the last": 1}


def test_llama_factory_rows_keep_system_history_input_and_the_replies_of_tools():
    short, three = load("llama_factory_alpaca").comparisons
    assert short.prompt[0] == Message("system", "You are an editor.")
    assert short.prompt[1].content == "Sum up the text in five words.\nThe bridge was closed after the storm, and the ferry ran all night."
    assert [message.role for message in three.prompt] == ["user", "assistant", "user"]
    assert three.prompt[-1].content == "And in three?"  # an empty input adds no line
    oslo, _ = load("llama_factory_sharegpt").comparisons
    assert [message.role for message in oslo.prompt] == ["system", "user", "assistant", "tool"]
    assert oslo.responses == ("It is minus three degrees in Oslo.", "I cannot know.")


def test_both_forms_of_ms_swift_and_its_margin():
    wine, rhythm = load("ms_swift").comparisons
    assert [message.role for message in wine.prompt] == ["system", "user"]
    assert wine.responses == ("Blot it, then use salt and cold water.", "Rub it in with hot water.")
    assert (wine.margin, rhythm.margin) == (0.7, None)
    assert rhythm.responses == ("r-h-y-t-h-m", "r-y-t-h-m")


def test_ranks_of_mtmc_are_smaller_is_better_unless_they_are_turned_round():
    tired, water, _ = load("mtmc").comparisons
    assert (tired.ranks, water.ranks) == ((1, 3, 2), (2, 1))
    assert [message.role for message in tired.prompt] == ["user", "assistant", "user"]
    assert tired.category == "闲聊"  # the taxonomy gives it our name, see test_sources.py
    turned = load("mtmc", rank_order="larger_is_better").comparisons
    assert [one.ranks for one in turned] == [(3, 1, 2), (1, 2), (1, 1)]
    with pytest.raises(ConfigError, match="rank_order is 'up'; expected smaller_is_better or larger_is_better"):
        load("mtmc", rank_order="up")


def test_the_order_of_ranks_turns_no_other_format():
    assert load("native", rank_order="larger_is_better") == load("native")


def test_judgements_that_agree_in_both_orders_are_labels():
    assert load("judgements").comparisons[0].labels == (CapabilityLabel(OVERALL, 0, 1), CapabilityLabel("correctness", 0, 1))


@pytest.mark.faults("F03")
def test_a_file_that_fits_no_format_says_for_each_one_where_it_failed(tmp_path):
    path = tmp_path / "odd.jsonl"
    path.write_text('{"prompt": "p", "completion": "c", "label": true}\n')
    with pytest.raises(
        DataError, match=r'odd\.jsonl:1: fits no known format\. Its keys: "prompt", "completion", "label"\. Tried:'
    ) as caught:
        read_comparisons(path)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == list(FORMATS)
    assert all("is missing" in line for line in lines)


def test_formats_that_share_their_keys_are_told_apart_by_what_the_keys_hold(tmp_path):
    path = tmp_path / "odd.jsonl"
    path.write_text('{"messages": [], "chosen": 1}\n')
    with pytest.raises(DataError, match='ms_swift: "rejected_response" or "rejected_messages" is missing'):
        read_comparisons(path)


@pytest.mark.faults("F03")
@pytest.mark.parametrize("name", ["hh", "trl", "ultrafeedback", "helpsteer2", "arena", "mtmc"])
def test_text_like_a_date_survives_every_reader_byte_for_byte(tmp_path, name):
    # What `datasets` turns into "2024-01-02 03:04:05" where a whole column looks like it.
    odd = "2024-01-02T03:04:05"
    row = {
        "hh": {"chosen": f"\n\nHuman: {odd}\n\nAssistant: {odd}", "rejected": f"\n\nHuman: {odd}\n\nAssistant: 1e5"},
        "trl": {"prompt": odd, "chosen": odd, "rejected": "1e5"},
        "ultrafeedback": {
            "instruction": odd,
            "completions": [{"response": text, "annotations": {"honesty": {"Rating": "3"}}} for text in (odd, "1e5")],
        },
        "helpsteer2": {"prompt": odd, "response": odd, "helpfulness": 3, "correctness": 3, "coherence": 3, "complexity": 3, "verbosity": 3},
        "arena": {
            "prompt": json.dumps([odd]),
            "response_a": json.dumps([odd]),
            "response_b": '["1e5"]',
            "winner_model_a": 1,
            "winner_model_b": 0,
            "winner_tie": 0,
        },
        "mtmc": {"src": [odd], "tgt": [], "response": [odd, "1e5"], "rank": [1, 2]},
    }[name]
    rows = [row, {**row, "response": "1e5"}] if name == "helpsteer2" else [row]
    path = tmp_path / "dates.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (one,) = read_comparisons(path).comparisons
    assert one.prompt[0].content == odd
    assert one.responses == (odd, "1e5")


def test_a_row_of_any_format_can_be_scored_and_one_without_a_comparison_says_why():
    from dmoerm.data.jsonl import Row
    from dmoerm.scoring.requests import read_request

    for name in FORMATS:
        path = FIXTURES / f"{name}.jsonl"
        request = read_request(Row(1, rows_of(name)[0]), path)
        # HelpSteer2 rows hold one response, which is scored by itself.
        assert request.responses == load(name).comparisons[0].responses[: len(request.responses)]
        assert len(request.responses) == (1 if name == "helpsteer2" else len(load(name).comparisons[0].responses))
    with pytest.raises(DataError, match="the row holds no comparison: several turns in which the models answered differently"):
        read_request(Row(3, rows_of("arena")[2]), FIXTURES / "arena.jsonl")
