"""The fake endpoint keeps its own promises: what it says, what it counts, and that every misbehaviour is what its name claims.

The client is the real one. Labelling is tested against this server elsewhere; here only the server is.
"""

import asyncio
import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

import fake_openai
import pytest
from fake_judge import ScriptedJudge, Verdict, asked_criteria, completion, draw, markers, request_key
from fake_misbehaviour import HUGE_BYTES, MISBEHAVIOURS, Misbehaviour, drip, rate_limited
from fake_openai import FakeOpenAI, fake_openai_process, read_log

openai = pytest.importorskip("openai")

NAMES = ("correctness", "logic")
FIRST_BETTER = ("[quality 0.8]", "[quality 0.3]")


def question(number=0, worths=FIRST_BETTER, names=NAMES, **parameters):
    """A body as the labelling sends it; A is the better response unless told otherwise."""
    lines = "\n".join(f"- {name}: whether it is so" for name in names)
    content = f"Which response is better?\n{lines}\n\nQuestion {number}\n\nResponse A\n{worths[0]}\n\nResponse B\n{worths[1]}"
    return {
        "model": "fake-judge",
        "messages": [{"role": "system", "content": "Judge."}, {"role": "user", "content": content}],
        **parameters,
    }


def run(url, act, timeout_s=5.0, max_retries=0):
    """What `act(client)` returns, with a client of its own, closed afterwards."""

    async def inside():
        async with openai.AsyncOpenAI(base_url=url, api_key="sk-secret-1", max_retries=max_retries, timeout=timeout_s) as client:
            return await act(client)

    return asyncio.run(inside())


def ask(server, body=None, **options):
    return run(server.base_url, lambda client: client.chat.completions.create(**(body or question())), **options)


def ask_all(server, bodies, **options):
    async def act(client):
        return await asyncio.gather(*(client.chat.completions.create(**body) for body in bodies), return_exceptions=True)

    return run(server.base_url, act, **options)


def answers(reply):
    return json.loads(reply.choices[0].message.content)


def judged(judge, body):
    return {name: verdict.answer for name, verdict in judge.verdicts(body, request_key(body)).items()}


def raw_reply(server, body, timeout_s=30.0):
    """Status line and headers, and the bytes after them until the server closes; no client library in between."""
    data = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout_s) as connection:
        head = f"POST {server.prefix}/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        received = b""
        while part := connection.recv(65_536):
            received += part
    head, _, rest = received.partition(b"\r\n\r\n")
    return head.decode("latin-1"), rest


# The judge.


def test_the_marker_of_a_criterion_goes_before_quality():
    body = question(worths=("[quality 0.8] [logic 0.1]", "[quality 0.3] [logic 0.2]"))
    assert judged(ScriptedJudge(), body) == {"correctness": "A", "logic": "B"}


def test_swapping_the_responses_swaps_the_answer():
    assert judged(ScriptedJudge(), question(worths=FIRST_BETTER[::-1])) == {"correctness": "B", "logic": "B"}


def test_a_full_halo_lets_quality_decide_every_criterion():
    body = question(worths=("[quality 0.8] [logic 0.1]", "[quality 0.3] [logic 0.2]"))
    assert judged(ScriptedJudge(halo=1), body) == {"correctness": "A", "logic": "A"}


def test_close_markers_are_a_tie_and_noise_leaves_it_alone():
    body = question(worths=("[quality 0.50]", "[quality 0.56]"))
    assert judged(ScriptedJudge(tie_below=0.1, noise=1), body) == {"correctness": "tie", "logic": "tie"}
    assert judged(ScriptedJudge(tie_below=0.05), body) == {"correctness": "B", "logic": "B"}
    assert judged(ScriptedJudge(), question(worths=("[quality 0.5]",) * 2)) == {"correctness": "tie", "logic": "tie"}


def test_full_bias_answers_a_whatever_is_shown():
    assert judged(ScriptedJudge(position_bias=1, noise=1), question(worths=FIRST_BETTER[::-1])) == {"correctness": "A", "logic": "A"}


def test_full_noise_answers_the_opposite():
    assert judged(ScriptedJudge(noise=1), question()) == {"correctness": "B", "logic": "B"}


@pytest.mark.parametrize("worths", [("", ""), ("[quality 0.8]", ""), ("much longer " * 9, "short")])
def test_without_two_markers_of_a_kind_the_default_answers(worths):
    assert judged(ScriptedJudge(), question(worths=worths)) == {"correctness": "A", "logic": "A"}
    by_name = ScriptedJudge(default=lambda body, criterion: "tie" if criterion == "logic" else "B")
    assert judged(by_name, question(worths=worths)) == {"correctness": "B", "logic": "tie"}


def test_a_marker_shown_once_gives_way_to_quality():
    assert judged(ScriptedJudge(), question(worths=("[quality 0.2]", "[quality 0.3] [logic 0.1]"))) == {"correctness": "B", "logic": "B"}


def test_the_faults_have_their_rates_and_are_independent_of_each_other_and_of_the_order():
    # 4000 requests of 2 criteria, B better: P(A) = 0.3 + 0.7 * 0.2 = 0.44. Of 8000 draws, 4 standard errors are 0.022.
    judge = ScriptedJudge(position_bias=0.3, noise=0.2, seed=5)
    hidden = [judged(judge, question(number, FIRST_BETTER[::-1])) for number in range(4000)]
    shown = [judged(judge, question(number, FIRST_BETTER)) for number in range(4000)]
    wrong = [[reply[name] == "A" for reply in hidden for name in NAMES], [reply[name] == "B" for reply in shown for name in NAMES]]
    assert sum(wrong[0]) / 8000 == pytest.approx(0.44, abs=0.022)
    assert sum(wrong[1]) / 8000 == pytest.approx(0.7 * 0.2, abs=0.016)
    both = sum(one and other for one, other in zip(*wrong, strict=True)) / 8000
    assert both == pytest.approx(0.44 * 0.14, abs=0.011)
    across = sum(reply["correctness"] == reply["logic"] == "A" for reply in hidden) / 4000
    assert across == pytest.approx(0.44**2, abs=0.025)


def test_the_answer_depends_on_seed_and_request_alone():
    bodies = [question(number) for number in range(50)]
    first = [judged(ScriptedJudge(noise=0.5, seed=1), body) for body in bodies]
    again = [judged(ScriptedJudge(noise=0.5, seed=1), body) for body in reversed(bodies)]
    assert first == again[::-1]
    assert first != [judged(ScriptedJudge(noise=0.5, seed=2), body) for body in bodies]


def test_only_the_last_user_message_is_asked_and_each_criterion_once():
    body = question(names=("logic", "logic", "style_2"))
    body["messages"].insert(1, {"role": "user", "content": "- earlier: no"})
    body["messages"].append({"role": "assistant", "content": "- later: no"})
    assert asked_criteria(body) == ("logic", "style_2")
    assert asked_criteria({"messages": [{"role": "user", "content": [{"type": "text", "text": "- logic: sound\n - indented: no"}]}]}) == (
        "logic",
    )


def test_markers_are_differences_of_the_first_two():
    assert markers("[quality 1] [depth 2.5] [quality -0.5] [other 3] [depth 2]") == {"quality": 1.5, "depth": 0.5}


def test_the_key_of_a_request_does_not_depend_on_the_order_of_its_fields():
    body = question(temperature=0)
    assert request_key(body) == request_key(dict(reversed(body.items())))
    assert request_key(body) != request_key({**body, "temperature": 1})


def test_a_question_has_one_name_whatever_the_word_of_its_fences():
    def body(word, response="No."):
        text = f"The word is {word}.\n[{word} response A begins]\n{response}\n[{word} response A ends]"
        return {"messages": [{"role": "user", "content": text}]}

    assert request_key(body("0123456789ab")) == request_key(body("fedcba987654"))
    assert request_key(body("0123456789ab")) != request_key(body("0123456789ab", response="Yes."))


def test_draws_are_uniform_enough():
    drawn = [draw("seed", number) for number in range(10_000)]
    assert 0 <= min(drawn) < max(drawn) < 1
    assert sum(drawn) / 10_000 == pytest.approx(0.5, abs=4 / math.sqrt(12 * 10_000))


# The good reply.


def test_a_good_reply_is_complete():
    with FakeOpenAI() as server:
        reply = ask(server)
    assert answers(reply) == {"correctness": "A", "logic": "A"}
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].logprobs is None
    sent = sum(len(message["content"]) for message in question()["messages"]) // 4
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (sent, len('{"correctness": "A", "logic": "A"}') // 4)
    assert (reply.model, reply.object) == ("fake-judge", "chat.completion")


def test_log_probabilities_cover_the_content_and_each_verdict_is_a_token():
    with FakeOpenAI() as server:
        choice = ask(server, question(logprobs=True, top_logprobs=3)).choices[0]
    tokens = choice.logprobs.content
    assert "".join(token.token for token in tokens) == choice.message.content
    assert bytes(byte for token in tokens for byte in token.bytes).decode() == choice.message.content
    verdicts = [token for token in tokens if token.token == "A"]
    assert len(verdicts) == 2
    # Tie has 0.02; the rest is shared by a sigmoid of 5 * (0.8 - 0.3).
    first = 0.98 / (1 + math.exp(-2.5))
    assert math.exp(verdicts[0].logprob) == pytest.approx(first)
    assert [(item.token, pytest.approx(math.exp(item.logprob))) for item in verdicts[0].top_logprobs] == [
        ("A", first),
        ("B", 0.98 - first),
        ("tie", 0.02),
    ]


@pytest.mark.parametrize("lean", [-300.0, -0.4, -1e-9, 1e-9, 0.4, 300.0])
@pytest.mark.parametrize("tie", [False, True])
def test_the_answer_is_the_most_probable_and_probabilities_sum_to_one(lean, tie):
    verdict = Verdict("tie" if tie else "A" if lean > 0 else "B", lean)
    assert sum(verdict.probabilities.values()) == pytest.approx(1)
    assert max(verdict.probabilities, key=verdict.probabilities.get) == verdict.answer


def test_as_many_alternatives_come_as_are_asked_for():
    for top in (0, 1, 20):
        reply = completion(question(logprobs=True, top_logprobs=top), {"logic": Verdict("B", -0.2)}, 0)
        tokens = reply["choices"][0]["logprobs"]["content"]
        assert {len(token["top_logprobs"]) for token in tokens} == {top}
        assert all(token["top_logprobs"][:1] == [{k: token[k] for k in ("token", "logprob", "bytes")}] for token in tokens if top)


def test_models_are_listed_and_other_paths_are_not_found():
    with FakeOpenAI(models=("one", "two")) as server:

        async def act(client):
            models = [model.id async for model in client.models.list()]
            with pytest.raises(openai.NotFoundError, match="Nothing at POST /v1/embeddings"):
                await client.embeddings.create(model="one", input="x")
            with pytest.raises(openai.NotFoundError, match="No model named three"):
                await client.chat.completions.create(**{**question(), "model": "three"})
            return models

        assert run(server.base_url, act) == ["one", "two"]
        assert [request.path for request in server.other_requests] == ["/v1/models", "/v1/embeddings"]
        assert [request.given for request in server.requests] == ["invalid"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": []}, "list of messages"),
        ({"stream": True}, "does not stream"),
        ({"top_logprobs": 5}, "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "between 0 and 20"),
    ],
)
def test_an_impossible_request_is_refused_and_counted(change, message):
    with FakeOpenAI() as server, pytest.raises(openai.BadRequestError, match=message):
        ask(server, {**question(), **change})
    assert server.given == {"invalid": 1}


def test_a_chunked_body_and_requests_on_one_connection_are_understood():
    data = json.dumps(question()).encode()
    head = b"POST /v1/chat/completions?x=1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    chunks = b"%x;note=1\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (10, data[:10], len(data) - 10, data[10:])
    with FakeOpenAI() as server, socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(head + b"\r\n" + chunks + head + b"Connection: close\r\n\r\n" + chunks)
        received = b""
        while part := connection.recv(65_536):
            received += part
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert server.count == 2
    assert server.distinct == 1


@pytest.mark.parametrize(
    "sent", [b"", b"GET", b"\x16\x03\x01 nonsense\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"x" * 200_000]
)
def test_what_is_not_http_ends_the_connection_and_nothing_else(sent):
    with FakeOpenAI() as server:
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection,
            contextlib.suppress(ConnectionError),
        ):
            connection.sendall(sent)
            with contextlib.suppress(OSError):  # the server may have left by now
                connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100) == b""
        assert answers(ask(server)) == {"correctness": "A", "logic": "A"}


# Counting.


def test_requests_are_counted_by_question_and_attempt():
    with FakeOpenAI() as server:
        ask_all(server, [question(1), question(2)])
        ask_all(server, [question(1)])
    assert (server.count, server.distinct) == (3, 2)
    assert [request.attempt for request in server.requests] == [1, 1, 2]
    assert server.requests[0].asked == NAMES
    assert server.requests[0].answers == {"correctness": "A", "logic": "A"}
    assert server.headers_seen["authorization"] == {"Bearer sk-secret-1"}
    assert server.requests[0].arrived == pytest.approx(time.time(), abs=60)


def test_what_makes_a_question_the_same_can_be_told():
    with FakeOpenAI(key=lambda body: body["messages"][-1]["content"].partition("Question")[0]) as server:
        ask_all(server, [question(1), question(2), question(3, names=("logic",))])
    assert (server.count, server.distinct) == (3, 2)


def ask_and_leave(server, count):
    """`count` different questions at once; once all have come, the client leaves. Returns what those answered by then got."""

    async def act(client):
        tasks = [asyncio.create_task(client.chat.completions.create(**question(number))) for number in range(count)]
        await asyncio.to_thread(server.wait_for, count)
        done, waiting = await asyncio.wait(tasks, timeout=0.3)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return [task.exception() or task.result() for task in done]

    return run(server.base_url, act)


def until_idle(server, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while server.in_flight:
        assert time.monotonic() < deadline, f"{server.in_flight} still in flight"
        time.sleep(0.01)


def test_the_peak_is_the_number_of_requests_at_once():
    with FakeOpenAI() as server:
        server.script("never_answers", times=12)
        assert ask_and_leave(server, 12) == []
        until_idle(server)
        ask(server)
    assert server.peak_in_flight == 12
    assert server.requests[-1].in_flight == 1


def test_one_after_the_other_is_never_two_at_once():
    with FakeOpenAI() as server:

        async def act(client):
            for number in range(50):
                await client.chat.completions.create(**question(number))

        run(server.base_url, act)
    assert server.peak_in_flight == 1


def test_above_max_in_flight_comes_429_at_once():
    with FakeOpenAI(max_in_flight=3, busy_retry_after="0.25") as server:
        server.script("never_answers")
        refused = ask_and_leave(server, 8)
    assert {(type(error), error.response.headers["retry-after"]) for error in refused} == {(openai.RateLimitError, "0.25")}
    assert server.given == {"never_answers": 3, "busy": 5}
    assert server.peak_in_flight == 4


def test_above_a_rate_comes_429_until_time_has_passed():
    with FakeOpenAI(max_per_s=4) as server:
        ask_all(server, [question(number) for number in range(20)])
        first = server.given["good"]
        time.sleep(0.6)
        ask_all(server, [question(number) for number in range(20)])
        assert server.given["good"] >= first + 2
    assert first >= 4  # what a quiet second gathers
    took_s = server.requests[-1].arrived - server.requests[0].arrived
    assert server.given["good"] <= 4 + 4 * took_s
    assert server.given["good"] + server.given["busy"] == 40


def test_a_latency_is_waited_and_an_error_comes_at_once():
    with FakeOpenAI(latency_s=0.4) as server:
        start = time.monotonic()
        ask(server)
        assert time.monotonic() - start >= 0.4
        server.script("server_error")
        start = time.monotonic()
        raw_reply(server, question())
        assert time.monotonic() - start < 0.4


def test_waiting_for_requests_that_do_not_come_says_how_many_came():
    with FakeOpenAI() as server:
        ask(server)
        server.wait_for(1)
        with pytest.raises(TimeoutError, match=r"1 of 2 requests came within 0\.05 s"):
            server.wait_for(2, timeout_s=0.05)


# Rules.


def test_a_rule_strikes_as_often_as_it_is_told_and_the_first_one_decides():
    with FakeOpenAI() as server:
        server.script("server_error", times=2)
        server.script("overloaded_529", times=1)
        given = [raw_reply(server, question())[0].split(" ")[1] for _ in range(4)]
        assert given == ["500", "500", "529", "200"]
        server.script("forbidden")
        server.behave()
        ask(server)
    assert server.given == {"server_error": 2, "overloaded_529": 1, "good": 2}


def test_a_rule_may_depend_on_the_body():
    with FakeOpenAI() as server:
        server.script("refused", when=lambda body: "Question 3" in body["messages"][-1]["content"])
        ask_all(server, [question(number) for number in range(5)])
    assert [request.given for request in server.requests if "Question 3" in request.body["messages"][-1]["content"]] == ["refused"]
    assert server.given == {"good": 4, "refused": 1}


def test_a_rule_may_strike_only_first_attempts():
    with FakeOpenAI() as server:
        server.script("server_error", first_attempts=2)
        ask_all(server, [question(number) for number in range(3)], max_retries=2)
    assert server.given == {"server_error": 6, "good": 3}


def test_chance_is_the_same_for_the_same_seed_whatever_the_order_and_new_for_each_attempt():
    def struck(order, seed):
        with FakeOpenAI() as server:
            server.script("fenced", chance=0.3, seed=seed)
            for _ in range(2):
                ask_all(server, [question(number) for number in order])
            return {(request.key, request.attempt): request.given for request in server.requests}

    first = struck(range(40), 7)
    assert first == struck(range(39, -1, -1), 7)
    assert first != struck(range(40), 8)
    # 80 draws of 0.3: 24 expected, 4 standard deviations are 16.
    assert 8 <= list(first.values()).count("fenced") <= 40
    attempts = [{key for (key, attempt), given in first.items() if attempt == number and given == "fenced"} for number in (1, 2)]
    assert attempts[0] != attempts[1]


def test_a_misbehaviour_of_ones_own_needs_no_row():
    with FakeOpenAI() as server:
        server.script(Misbehaviour("mine", "limit", rate_limited("7")))
        with pytest.raises(openai.RateLimitError) as caught:
            ask(server)
    assert caught.value.response.headers["retry-after"] == "7"
    assert server.given == {"mine": 1}


def test_a_misspelt_misbehaviour_is_refused_at_once():
    with FakeOpenAI() as server, pytest.raises(KeyError, match="rate_limted"):
        server.script("rate_limted")


def test_an_error_in_the_judge_surfaces_at_the_end_of_the_block():
    def broken(body, criterion):
        raise ZeroDivisionError("in the test's own default")

    with pytest.raises(ZeroDivisionError, match="own default"), FakeOpenAI(ScriptedJudge(default=broken)) as server:
        with pytest.raises(openai.APIConnectionError):
            ask(server, question(worths=("", "")))


# Each misbehaviour is what its name says.


def test_names_and_kinds_are_in_order():
    assert all(name == row.name for name, row in MISBEHAVIOURS.items())
    assert all((row.reply is None) != (row.wire is None) for row in MISBEHAVIOURS.values())
    kinds = {row.kind for row in MISBEHAVIOURS.values()}
    assert kinds == {"limit", "refusal", "parameter", "server", "envelope", "content", "logprobs", "wire"}
    assert all((row.wire is not None) == (row.kind == "wire") for row in MISBEHAVIOURS.values())


EVERYTHING = {"response_format": {"type": "json_object"}, "max_tokens": 50, "logprobs": True, "top_logprobs": 5, "temperature": 0}


@pytest.mark.parametrize("name", [name for name, row in MISBEHAVIOURS.items() if row.kind != "wire"])
def test_a_whole_reply_has_the_status_its_kind_promises(name):
    with FakeOpenAI() as server:
        server.script(name)
        head, rest = raw_reply(server, question(**EVERYTHING))
    status, kind = int(head.split(" ")[1]), MISBEHAVIOURS[name].kind
    allowed = {
        "limit": [429],
        "refusal": [401, 402, 403, 404, 429],
        "parameter": [400, 422],
        "server": [302, 307, 408, 500, 502, 503, 504, 529],
    }
    assert status in allowed.get(kind, [200])
    assert server.given == {name: 1}
    if "content-length" in head.lower():
        assert int(head.lower().partition("content-length: ")[2].split("\r\n")[0]) == len(rest)


@pytest.mark.parametrize("name", [name for name, row in MISBEHAVIOURS.items() if row.kind in ("content", "logprobs")])
def test_spoilt_content_comes_in_a_sound_envelope_that_the_client_parses(name):
    with FakeOpenAI() as server:
        good = ask(server, question(**EVERYTHING)).model_dump(warnings=False)
        server.script(name)
        spoilt = ask(server, question(**EVERYTHING)).model_dump(warnings=False)
    assert spoilt["choices"] != good["choices"]
    assert spoilt["usage"] == good["usage"]


@pytest.mark.parametrize("name", [name for name, row in MISBEHAVIOURS.items() if row.kind == "content"])
def test_log_probabilities_cover_spoilt_content_too(name):
    with FakeOpenAI() as server:
        server.script(name)
        choice = ask(server, question(**EVERYTHING)).choices[0]
    if isinstance(choice.message.content, str):
        assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
    else:
        assert choice.logprobs is None


def test_a_verdict_in_a_fence_keeps_its_alternatives():
    with FakeOpenAI() as server:
        server.script("fenced")
        tokens = ask(server, question(**EVERYTHING)).choices[0].logprobs.content
    assert [[item.token for item in token.top_logprobs][:3] for token in tokens if token.token == "A"] == [["A", "B", "tie"]] * 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rate_limited", None),
        ("rate_limited_1s", "1"),
        ("rate_limited_float", "0.05"),
        ("rate_limited_hour", "3600"),
        ("rate_limited_zero", "0"),
        ("rate_limited_negative", "-5"),
        ("rate_limited_garbage", "soon"),
        ("rate_limited_nan", "nan"),
        ("rate_limited_endless", "inf"),
        ("rate_limited_ms", None),
    ],
)
def test_retry_after_is_sent_as_named(name, value):
    with FakeOpenAI() as server:
        server.script(name)
        with pytest.raises(openai.RateLimitError) as caught:
            ask(server)
    assert caught.value.response.headers.get("retry-after") == value
    assert caught.value.response.headers.get("retry-after-ms") == ("50" if name == "rate_limited_ms" else None)
    assert caught.value.code == "rate_limit_exceeded"


@pytest.mark.parametrize(("name", "seconds"), [("rate_limited_date", 2), ("rate_limited_past_date", -60), ("rate_limited_hour_date", 3600)])
def test_retry_after_as_a_date_is_so_many_seconds_from_now(name, seconds):
    with FakeOpenAI() as server:
        server.script(name)
        with pytest.raises(openai.RateLimitError) as caught:
            ask(server)
    date = parsedate_to_datetime(caught.value.response.headers["retry-after"])
    assert date.timestamp() - time.time() == pytest.approx(seconds, abs=2)


@pytest.mark.parametrize(
    ("name", "status", "code", "param"),
    [
        ("insufficient_quota", 429, "insufficient_quota", None),
        ("wrong_key", 401, "invalid_api_key", None),
        ("unknown_model", 404, "model_not_found", None),
        ("context_too_long", 400, "context_length_exceeded", "messages"),
        ("response_format_unsupported", 400, "unsupported_parameter", "response_format"),
        ("max_tokens_unsupported", 400, "unsupported_parameter", "max_tokens"),
        ("logprobs_unsupported", 400, "unsupported_parameter", "logprobs"),
        ("temperature_unsupported", 400, "unsupported_value", "temperature"),
    ],
)
def test_an_error_carries_the_code_and_parameter_of_openai(name, status, code, param):
    with FakeOpenAI() as server:
        server.script(name)
        with pytest.raises(openai.APIStatusError) as caught:
            ask(server, question(**EVERYTHING))
    assert (caught.value.status_code, caught.value.code, caught.value.param) == (status, code, param)


@pytest.mark.parametrize("name", [name for name, row in MISBEHAVIOURS.items() if name.endswith("_unsupported") or row.kind == "logprobs"])
def test_a_parameter_that_is_not_sent_is_not_refused(name):
    with FakeOpenAI() as server:
        server.script(name)
        ask(server)
    assert server.given == {"good": 1}


@pytest.mark.parametrize("name", ["wrong_key", "forbidden"])
def test_the_key_is_echoed(name):
    with FakeOpenAI() as server:
        server.script(name)
        with pytest.raises(openai.APIStatusError, match="sk-secret-1"):
            ask(server)


def content_given(name):
    with FakeOpenAI() as server:
        server.script(name)
        return ask(server).choices[0]


GOOD = '{"correctness": "A", "logic": "A"}'
OPPOSITE = '{"correctness": "B", "logic": "B"}'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("content_null", None),
        ("content_empty", ""),
        ("prose", "Response A is better."),
        ("both_verdicts", '{"correctness": "A or B", "logic": "A or B"}'),
        ("missing_key", '{"logic": "A"}'),
        ("extra_key", '{"correctness": "A", "logic": "A", "charm": "A"}'),
        ("duplicate_keys", '{"correctness": "A", "logic": "A", "correctness": "B", "logic": "B"}'),
        ("lower_case", '{"correctness": "a", "logic": "a"}'),
        ("values_null", '{"correctness": null, "logic": null}'),
        ("values_nan", '{"correctness": NaN, "logic": NaN}'),
        ("two_objects", f"{GOOD}\n\nOn reflection:\n{OPPOSITE}"),
        ("fenced", f"```json\n{GOOD}\n```"),
        ("thought_first", f"<think>\nAt first {OPPOSITE}.\n</think>\n{GOOD}"),
        ("wrapped_in_prose", f"My verdict: {GOOD} I hope this helps!"),
        ("surrogate", f"{GOOD} \ud800"),
        ("truncated", GOOD[:17]),
    ],
)
def test_content_is_as_named(name, content):
    assert content_given(name).message.content == content


def test_finish_reasons_and_refusals_are_as_named():
    assert content_given("truncated").finish_reason == "length"
    assert content_given("truncated_in_thought").finish_reason == "length"
    assert content_given("content_filter").finish_reason == "content_filter"
    refusal = content_given("refused")
    assert (refusal.message.content, refusal.message.refusal) == (None, "I cannot help with that.")


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("choices_null", lambda reply: reply["choices"] is None),
        ("choices_empty", lambda reply: reply["choices"] == []),
        ("choices_missing", lambda reply: "choices" not in reply),
        ("error_in_200", lambda reply: list(reply) == ["error"]),
        ("usage_missing", lambda reply: "usage" not in reply),
        ("usage_null", lambda reply: reply["usage"] is None),
        ("usage_strings", lambda reply: reply["usage"]["completion_tokens"] == "8"),
        ("other_model", lambda reply: reply["model"] != "fake-judge"),
        ("nan_in_json", lambda reply: math.isnan(reply["score"])),
    ],
)
def test_an_envelope_is_as_named(name, check):
    with FakeOpenAI() as server:
        server.script(name)
        assert check(json.loads(raw_reply(server, question())[1]))


@pytest.mark.parametrize(
    ("name", "error"), [("cut_json", json.JSONDecodeError), ("invalid_utf8", UnicodeDecodeError), ("empty_body", json.JSONDecodeError)]
)
def test_an_envelope_that_is_not_json_is_not(name, error):
    with FakeOpenAI() as server:
        server.script(name)
        with pytest.raises(error):
            json.loads(raw_reply(server, question())[1].decode())


def test_logprobs_merged_carry_the_quote_and_still_cover_the_content():
    with FakeOpenAI() as server:
        server.script("logprobs_merged")
        choice = ask(server, question(logprobs=True, top_logprobs=3)).choices[0]
    tokens = choice.logprobs.content
    assert "".join(token.token for token in tokens) == choice.message.content
    verdicts = [token for token in tokens if token.token == ' "A']
    assert [item.token for item in verdicts[0].top_logprobs] == [' "A', ' "B', ' "tie']


@pytest.mark.parametrize(
    "name", ["not_gzip", "reset", "closed_before_reply", "closed_mid_headers", "closed_mid_body", "not_http", "redirect_loop"]
)
def test_a_broken_transport_is_a_connection_error_to_the_client(name):
    with FakeOpenAI() as server:
        server.script(name)
        with pytest.raises(openai.APIConnectionError):
            ask(server)
    assert server.count == (21 if name == "redirect_loop" else 1)  # the client follows 20 redirects


def test_a_redirect_elsewhere_leads_to_a_path_that_is_not_found():
    with FakeOpenAI() as server:
        server.script("redirect_elsewhere")
        with pytest.raises(openai.NotFoundError, match="Nothing at GET /v1/elsewhere"):
            ask(server)
    assert (server.count, len(server.other_requests)) == (1, 1)


def test_a_reset_comes_before_the_first_byte():
    with FakeOpenAI() as server:
        server.script("reset")
        with pytest.raises(ConnectionResetError):
            raw_reply(server, question())


@pytest.mark.parametrize("name", ["never_answers", "slow_drip", "vast_length_declared"])
def test_a_client_that_gives_up_is_noticed_and_the_server_goes_on(name):
    with FakeOpenAI() as server:
        server.script(name, times=1)

        async def act(client):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.chat.completions.create(**question()), 0.3)
            return await client.chat.completions.create(**question())

        assert answers(run(server.base_url, act)) == {"correctness": "A", "logic": "A"}
        until_idle(server)
    assert [request.client_left for request in server.requests] == [True, False]


def test_a_drip_evades_a_timeout_by_read_and_arrives_whole():
    with FakeOpenAI() as server:
        server.script(Misbehaviour("quick_drip", "wire", wire=drip(0.001)))
        start = time.monotonic()
        assert answers(ask(server, timeout_s=0.3)) == {"correctness": "A", "logic": "A"}
        assert time.monotonic() - start > 0.3


def test_a_client_that_leaves_during_the_latency_frees_its_place():
    with FakeOpenAI(latency_s=30, max_in_flight=1) as server:
        with pytest.raises(openai.APITimeoutError):
            ask(server, timeout_s=0.2)
        server.latency_s = 0
        until_idle(server)
        ask(server)
    assert [request.client_left for request in server.requests] == [True, False]


def test_a_huge_body_can_be_left_in_the_middle():
    with FakeOpenAI() as server:
        server.script("huge_body")
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            data = json.dumps(question()).encode()
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data))
            received = sum(len(connection.recv(65_536)) for _ in range(20))
        assert 0 < received < HUGE_BYTES
        until_idle(server)
    assert server.requests[0].client_left


@pytest.mark.parametrize("name", ["huge_body", "gzip_bomb"])
def test_a_huge_body_is_a_good_answer_after_much_blank(name):
    with FakeOpenAI() as server:
        server.script(name)
        raw = run(server.base_url, lambda client: client.chat.completions.with_raw_response.create(**question()), timeout_s=60)
    assert len(raw.content) > HUGE_BYTES
    assert answers(raw.parse()) == {"correctness": "A", "logic": "A"}


def test_the_server_stops_quickly_with_requests_in_flight_and_leaves_no_thread():
    with FakeOpenAI(latency_s=60) as server:
        clients = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(20)]
        data = json.dumps(question()).encode()
        for client in clients:
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data))
        server.wait_for(20)
        start = time.monotonic()
    assert time.monotonic() - start < 2
    assert not [thread for thread in threading.enumerate() if thread.name == "fake-openai"]
    for client in clients:
        client.close()


def test_the_server_stops_cleanly_while_clients_go_on_connecting():
    data = json.dumps(question()).encode()

    def hammer(port, stop):
        while not stop.is_set():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
                connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data))
                connection.recv(10)

    for round_ in range(10):
        stop = threading.Event()
        with FakeOpenAI(latency_s=0.001 * (round_ % 3)) as server:
            threads = [threading.Thread(target=hammer, args=(server.port, stop)) for _ in range(6)]
            for thread in threads:
                thread.start()
            server.wait_for(20)
        stop.set()
        for thread in threads:
            thread.join()
        assert server.in_flight == 0


def test_a_port_in_use_is_said_at_the_start():
    with FakeOpenAI() as server, pytest.raises(OSError, match="address already in use"):
        FakeOpenAI(port=server.port).__enter__()


# As a process.


def test_the_process_logs_each_request_before_it_answers_and_outlives_a_killed_client(tmp_path):
    client = f"""
import asyncio, openai
async def main():
    async with openai.AsyncOpenAI(base_url=%r, api_key="k", max_retries=0) as client:
        await asyncio.gather(*(client.chat.completions.create(**{{**{question()!r}, "seed": n}}) for n in range(30)))
asyncio.run(main())
"""
    with fake_openai_process(tmp_path / "log.jsonl", "--latency-s", "30") as server:
        with subprocess.Popen([sys.executable, "-c", client % server.base_url]) as process:
            server.wait_for(30)
            os.kill(process.pid, signal.SIGKILL)
        assert len(server.requests) == 30
        assert len({request["key"] for request in server.requests}) == 30
        assert {request["given"] for request in server.requests} == {"good"}
        assert {request["attempt"] for request in server.requests} == {1}
        assert server.requests[0]["asked"] == list(NAMES)


def test_the_process_ends_with_the_one_that_started_it(tmp_path):
    log = tmp_path / "log.jsonl"
    starter = f"""
import os, sys
sys.path.insert(0, {str(Path(fake_openai.__file__).parent)!r})
from pathlib import Path
from fake_openai import fake_openai_process
with fake_openai_process(Path({str(log)!r})) as server:
    print(server.base_url, flush=True)
    os._exit(0)
"""
    base_url = subprocess.run([sys.executable, "-c", starter], capture_output=True, text=True, check=True).stdout
    port = int(base_url.rpartition(":")[2].partition("/")[0])
    deadline = time.monotonic() + 10
    with contextlib.suppress(ConnectionRefusedError):
        while True:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            assert time.monotonic() < deadline, "it still accepts connections"
            time.sleep(0.05)


def test_a_restarted_process_goes_on_counting_attempts_and_gives_the_same_answers(tmp_path):
    options = ("--noise", "0.5", "--position-bias", "0.2", "--seed", "3", "--misbehave", "refused=0.0")
    replies = []
    for _ in range(2):
        with fake_openai_process(tmp_path / "log.jsonl", *options) as server:
            replies.append([answers(reply) for reply in ask_all(server, [question(number) for number in range(20)])])
    assert replies[0] == replies[1]
    assert sorted(request["attempt"] for request in read_log(tmp_path / "log.jsonl")) == [1] * 20 + [2] * 20


def test_the_process_misbehaves_on_demand_and_refuses_what_it_does_not_know(tmp_path):
    with fake_openai_process(tmp_path / "log.jsonl", "--max-in-flight", "5", "--misbehave", "insufficient_quota") as server:
        with pytest.raises(openai.RateLimitError, match="quota"):
            ask(server)
    assert [request["given"] for request in server.requests] == ["insufficient_quota"]
    with pytest.raises(RuntimeError, match="did not start"), fake_openai_process(tmp_path / "other.jsonl", "--misbehave", "nonsense"):
        pass
