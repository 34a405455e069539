"""Reading a reply: exactly the verdicts that were asked for, or one typed outcome; never an exception, never a guess."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmoerm.labeling.replies import Outcome, Usage, read_reply

ASKED = ("correctness", "logic")
GOOD = '{"correctness": "A", "logic": "tie"}'


def reply(content, *, finish_reason="stop", logprobs=None, usage=None, **message):
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish_reason}
    body = {"object": "chat.completion", "choices": [choice | ({"logprobs": logprobs} if logprobs is not None else {})]}
    return json.dumps(body | ({"usage": usage} if usage is not None else {})).encode()


@pytest.mark.faults("F10")
@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        '\n {"logic":"tie","correctness":"A"}\n',
        f"```json\n{GOOD}\n```",
        f"```\n{GOOD}\n```",
        f'<think>B? {{"correctness": "B"}} no.</think>\n{GOOD}',
        '{"reason": "The other one is B.", "correctness": "A", "logic": "tie"}',
    ],
)
def test_an_object_of_the_asked_verdicts_is_an_answer_also_behind_a_thought_or_in_a_fence(content):
    reading = read_reply(reply(content), ASKED)
    assert reading.outcome == Outcome.ANSWERED
    assert reading.verdicts == {"correctness": "A", "logic": "tie"}
    assert reading.preference_A == {}


@pytest.mark.faults("F10")
@pytest.mark.parametrize(
    ("content", "detail"),
    [
        ("A", "not valid JSON"),
        ("A is the clearer one, but overall I prefer B.", "not valid JSON"),
        (f"My verdict: {GOOD}", "not valid JSON"),
        (f"{GOOD} I hope this helps!", "not valid JSON"),
        (f"{GOOD}\n{GOOD}", "not valid JSON"),
        (f"{GOOD} \\ud800", "not valid JSON"),
        ("```json\n" + GOOD, "not valid JSON"),
        (f"[{GOOD}]", "expected an object, got a list"),
        ('{"correctness": "A"}', "keys not as asked: without 'logic'"),
        ('{"correctness": "A", "logic": "B", "charm": "A"}', "keys not as asked: unasked 'charm'"),
        ('{"verdict": "A"}', "without 'correctness', 'logic'; unasked 'verdict'"),
        ('{"correctness": "A", "logic": "B", "logic": "A"}', "the key 'logic' comes twice"),
        ('{"correctness": "a", "logic": "A"}', 'correctness is "a"; expected A, B or tie'),
        ('{"correctness": " A ", "logic": "A"}', 'correctness is " A "'),
        ('{"correctness": "A or B", "logic": "A"}', 'correctness is "A or B"'),
        ('{"correctness": "Response A", "logic": "A"}', "expected A, B or tie"),
        ('{"correctness": null, "logic": "A"}', "correctness is null"),
        ('{"correctness": NaN, "logic": "A"}', "NaN is not a JSON number"),
        ('{"correctness": ["A"], "logic": "A"}', r'correctness is ["A"]'),
        ('{"correctness": {"verdict": "A"}, "logic": "A"}', "expected A, B or tie"),
        ('{"correctness": true, "logic": "A"}', "correctness is true"),
        ('{"a":' * 20_000, "nested deeper"),
    ],
)
def test_anything_else_is_unparsed_and_the_detail_says_what_is_wrong(content, detail):
    reading = read_reply(reply(content), ASKED)
    assert reading.outcome == Outcome.UNPARSED
    assert reading.verdicts == {}
    assert detail in reading.detail
    assert len(reading.detail) <= 300


@pytest.mark.faults("F09")
@pytest.mark.parametrize(
    ("body", "outcome", "detail"),
    [
        (b"", Outcome.BAD_REPLY, "no body"),
        (b"<!DOCTYPE html><html>", Outcome.BAD_REPLY, "HTML instead of JSON"),
        (reply(GOOD)[:-9], Outcome.BAD_REPLY, "not JSON: not valid JSON"),
        (b"null", Outcome.BAD_REPLY, "expected an object, got null"),
        (b"[" * 100_000, Outcome.BAD_REPLY, "nested deeper"),
        (b'{"choices": null}', Outcome.BAD_REPLY, "choices is null"),
        (b'{"choices": []}', Outcome.BAD_REPLY, "choices is a list without an object"),
        (b'{"choices": [{"message": null}]}', Outcome.BAD_REPLY, "message is null"),
        (b'{"error": {"code": 502, "message": "no"}}', Outcome.BAD_REPLY, "an error with status 200: 502"),
        (json.dumps({"error": {"code": "x" * 5000}}).encode(), Outcome.BAD_REPLY, "an error with status 200: xxx"),
        (reply(GOOD).replace(b"stop", b"\xff\xfe"), Outcome.BAD_REPLY, "not UTF-8"),
        (reply(f"{GOOD} \ud800"), Outcome.BAD_REPLY, "unpaired surrogate"),
        (reply([{"type": "text", "text": GOOD}]), Outcome.BAD_REPLY, "content is a list"),
        (reply(None), Outcome.EMPTY, "no text"),
        (reply(" \n\t"), Outcome.EMPTY, "no text"),
        (reply("", reasoning_content=GOOD), Outcome.EMPTY, "no text"),
        (reply(None, finish_reason="tool_calls", tool_calls=[]), Outcome.EMPTY, "no text"),
        (reply(GOOD, finish_reason="length"), Outcome.TRUNCATED, "labeling.max_tokens"),
        (reply(None, refusal="I cannot."), Outcome.REFUSED, "the judge declined"),
        (reply(GOOD, finish_reason="content_filter"), Outcome.REFUSED, "content filter"),
    ],
)
def test_a_reply_without_a_complete_answer_has_its_own_outcome(body, outcome, detail):
    reading = read_reply(body, ASKED)
    assert (reading.outcome, reading.verdicts) == (outcome, {})
    assert detail in reading.detail
    assert len(reading.detail) <= 300


@pytest.mark.faults("F10")
def test_a_point_that_is_called_reason_is_a_point():
    assert read_reply(reply('{"reason": "B"}'), ("reason",)).verdicts == {"reason": "B"}
    assert read_reply(reply('{"reason": "because"}'), ("reason",)).outcome == Outcome.UNPARSED


@pytest.mark.faults("F14")
@pytest.mark.parametrize(
    ("usage", "read"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 0}, Usage(7, 0)),
        ({"prompt_tokens": "7", "completion_tokens": 3}, None),
        ({"prompt_tokens": 7.0, "completion_tokens": 3}, None),
        ({"prompt_tokens": True, "completion_tokens": 3}, None),
        ({"prompt_tokens": -1, "completion_tokens": 3}, None),
        ({"prompt_tokens": 7}, None),
        ({"prompt_tokens": 10**30, "completion_tokens": 3}, None),  # would not fit into the store
        ([7, 3], None),
        (None, None),
    ],
)
def test_usage_that_is_not_two_counts_is_unknown_and_not_zero(usage, read):
    assert read_reply(reply(GOOD, usage=usage), ASKED).usage == read


# Whatever comes.

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["A", "B", "tie", "correctness", GOOD]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*ASKED, "choices", "message", "content", "usage", "error", "reason", "logprobs", "token"])
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
verdict_like = st.dictionaries(st.sampled_from([*ASKED, "reason", "x"]), st.sampled_from(["A", "B", "tie", "a", "", None, 1, ["A"]]))
contents = st.text() | values.map(json.dumps) | verdict_like.map(json.dumps)
tokens = st.dictionaries(
    st.sampled_from(["token", "logprob", "top_logprobs"]),
    values | st.lists(st.dictionaries(st.sampled_from(["token", "logprob"]), values, max_size=2), max_size=3),
)


def check(body):
    reading = read_reply(body, ASKED)
    if reading.outcome == Outcome.ANSWERED:
        assert tuple(reading.verdicts) == ASKED
        assert set(reading.verdicts.values()) <= {"A", "B", "tie"}
    else:
        assert reading.verdicts == reading.preference_A == {}
    assert all(0 <= probability <= 1 for probability in reading.preference_A.values())
    assert len(reading.detail) <= 300
    reading.detail.encode()


@pytest.mark.faults("F09", "F10")
@settings(max_examples=200, deadline=None)
@given(st.binary() | values.map(lambda value: json.dumps(value).encode()))
def test_no_body_raises_or_gives_a_verdict_that_was_not_asked(body):
    check(body)


@pytest.mark.faults("F09", "F10")
@settings(max_examples=300, deadline=None)
@given(contents, st.lists(values | tokens, max_size=4) | values, values)
def test_no_content_log_probability_or_usage_raises(content, listed, usage):
    check(reply(content, logprobs={"content": listed}, usage=usage))
    check(reply(GOOD, logprobs={"content": [{"token": GOOD, "top_logprobs": listed}]}, usage=usage))


# The judge's own probability.


def with_tokens(pieces):
    """A reply cut into tokens, each with its alternatives, as (token, {alternative: probability})."""
    listed = [
        {
            "token": token,
            "logprob": -0.1,
            "top_logprobs": [{"token": text, "logprob": math.log(chance)} for text, chance in alternatives.items()],
        }
        for token, alternatives in pieces
    ]
    return "".join(token for token, _ in pieces), {"content": listed}


def preference(pieces, asked=("logic",)):
    content, logprobs = with_tokens(pieces)
    return read_reply(reply(content, logprobs=logprobs), asked).preference_A


def test_the_probability_of_a_is_its_share_of_the_three_verdicts_and_ties_are_shared_out():
    # 0.6 for A, 0.2 for B, 0.1 for tie, begun as "t"; the other 0.1 is no verdict: (0.6 + 0.05) / 0.9.
    pieces = [('{"', {}), ("logic", {}), ('": "', {}), ("A", {"A": 0.6, "B": 0.2, "t": 0.1, "Both": 0.06, "a": 0.04}), ('"}', {})]
    assert preference(pieces)["logic"] == pytest.approx(0.65 / 0.9)


def test_several_tokens_of_the_same_verdict_add_up():
    pieces = [('{"logic": "', {}), ("B", {"B": 0.5, 'B"': 0.1, "A": 0.2, "tie": 0.1, 'tie"}': 0.1}), ('"}', {})]
    assert preference(pieces)["logic"] == pytest.approx((0.2 + 0.1) / 1.0)


def test_a_token_that_begins_with_the_quotation_mark_is_read_behind_it():
    # Alternatives without the same beginning say something else.
    pieces = [('{"logic":', {}), (' "A', {' "A': 0.3, ' "B': 0.3, "A": 0.2, " null": 0.2}), ('"}', {})]
    assert preference(pieces)["logic"] == pytest.approx(0.5)


def test_each_point_has_the_probability_of_its_own_token():
    pieces = [('{"correctness": "', {}), ("A", {"A": 0.9, "B": 0.1}), ('", "logic": "', {}), ("B", {"A": 0.2, "B": 0.8}), ('"}', {})]
    assert preference(pieces, ASKED) == {"correctness": pytest.approx(0.9), "logic": pytest.approx(0.2)}


HEAD, TAIL = {"token": '{"logic": "', "top_logprobs": []}, {"token": '"}', "top_logprobs": []}
A = {"token": "A", "logprob": -0.1}


@pytest.mark.faults("F10")
@pytest.mark.parametrize(
    "listed",
    [
        None,
        [],
        "tokens",
        [HEAD, TAIL],  # of another text
        [HEAD, {"token": "A"}, TAIL],
        [HEAD, {"token": "A", "top_logprobs": None}, TAIL],
        [HEAD, {"token": "A", "top_logprobs": []}, TAIL],
        [HEAD, {"token": "A", "top_logprobs": [None]}, TAIL],
        [HEAD, {"token": "A", "top_logprobs": [{"token": "A"}]}, TAIL],
        [HEAD, {"token": "A", "top_logprobs": [{"token": 5, "logprob": -1}]}, TAIL],
        [HEAD, {"token": "A", "top_logprobs": [{"token": "A", "logprob": "-1"}]}, TAIL],
        [HEAD, {"token": "A", "top_logprobs": [{"token": "A", "logprob": True}]}, TAIL],
        [HEAD, {"token": "A", "top_logprobs": [{"token": "A", "logprob": 0.5}]}, TAIL],  # no probability
        [HEAD, {"token": "A", "top_logprobs": [{"token": "A", "logprob": 1e300}]}, TAIL],
        [HEAD, {"token": "A", "top_logprobs": [{"token": "A", "logprob": 10**400}]}, TAIL],
        [HEAD, {"token": "A", "top_logprobs": [{"token": "A", "logprob": -9999.0}]}, TAIL],
        [HEAD, {"token": "A", "top_logprobs": [{"token": "?", "logprob": -0.1}]}, TAIL],
        [HEAD, "A", {"token": "A", "top_logprobs": [A]}, TAIL],
        [HEAD, {"text": "x"}, {"token": "A", "top_logprobs": [A]}, TAIL],
        [{"token": 1}, HEAD, {"token": "A", "top_logprobs": [A]}, TAIL],
    ],
)
def test_log_probabilities_that_do_not_fit_give_no_probability_and_keep_the_verdict(listed):
    reading = read_reply(reply('{"logic": "A"}', logprobs={"content": listed}), ("logic",))
    assert (reading.verdicts, reading.preference_A) == ({"logic": "A"}, {})


def test_a_point_named_twice_in_the_text_gives_no_probability():
    content, logprobs = with_tokens([('<think>"logic": "B"</think>{"logic": "', {}), ("A", {"A": 0.9, "B": 0.1}), ('"}', {})])
    reading = read_reply(reply(content, logprobs=logprobs), ("logic",))
    assert (reading.verdicts, reading.preference_A) == ({"logic": "A"}, {})
