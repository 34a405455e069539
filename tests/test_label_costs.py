"""What labelling costs and may cost, and which stored answers still count: the server's count proves both."""

import json
import re

import pytest
from fake_misbehaviour import Misbehaviour, envelope
from fake_openai import FakeOpenAI
from label_project import KEY, KEY_NAME, TAXONOMY, comparisons, project, text, true_labels


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv(KEY_NAME, KEY)


PRICES = {"input_price": 1000.0, "output_price": 2000.0}  # US dollars a million tokens


def counted(server):
    """US dollars by the server's own count of tokens: a quarter of the characters, rounded down, for each good reply."""
    dollars = 0.0
    for request in server.requests:
        if request.given == "good":
            sent = sum(len(message["content"]) for message in request.body["messages"]) // 4
            received = len(json.dumps(request.answers)) // 4
            dollars += (sent * PRICES["input_price"] + received * PRICES["output_price"]) / 1e6
    return dollars


def run(labelled, capsys, *words):
    capsys.readouterr()
    code = labelled.label("--json", *words)
    return code, json.loads(capsys.readouterr().out)


def status(labelled, capsys, *words):
    capsys.readouterr()
    assert labelled.label("--json", *words, action="status") == 0
    return json.loads(capsys.readouterr().out)


# F14: the price.


@pytest.mark.faults("F14")
def test_max_requests_is_never_overrun_and_counts_those_of_this_run(tmp_path, capsys):
    rows = comparisons(5)
    with FakeOpenAI(latency_s=0.01) as server:
        server.script("prose", times=2)  # a try that brings nothing is a request
        labelled = project(tmp_path / "p", server.base_url, rows)
        code, result = run(labelled, capsys, "--max-requests", "12")
        assert (code, result["ended"], result["requests"]) == (3, "limit", 12)
        assert server.count == 12
        assert labelled.label("--max-requests", "0") == 3
        assert server.count == 12
        code, result = run(labelled, capsys, "--max-requests", "15")
        assert (code, server.count) == (3, 27)
        code, result = run(labelled, capsys, "--max-requests", "15")
        assert (code, result["requests"], server.count) == (0, 5, 32)
    assert set(labelled.labels()) == true_labels(rows)


@pytest.mark.faults("F14")
def test_max_cost_is_never_overrun_also_across_runs(tmp_path, capsys):
    rows = comparisons(20)
    with FakeOpenAI(latency_s=0.02) as server:
        labelled = project(tmp_path / "p", server.base_url, rows, **PRICES)
        code, result = run(labelled, capsys, "--max-cost", "15")
        assert (code, result["ended"]) == (3, "limit")
        assert result["cost"] == pytest.approx(counted(server))
        assert 14 < counted(server) <= 15
        asked = server.count
        assert run(labelled, capsys, "--max-cost", "15")[0] == 3
        assert server.count - asked <= 3  # those that the guesses of the first run left out
        assert counted(server) <= 15
        asked = server.count
        assert run(labelled, capsys, "--max-cost", "15")[0] == 3
        assert server.count == asked
        assert run(labelled, capsys, "--max-cost", "25")[0] == 3
        assert server.count > asked
        assert 24 < counted(server) <= 25
        code, result = run(labelled, capsys, "--max-cost", "1000")
        assert (code, server.count) == (0, 120)
        assert result["cost"] == pytest.approx(counted(server)) == pytest.approx(status(labelled, capsys)["cost"])
        assert result["unknown_usage"] == 0


@pytest.mark.faults("F14")
def test_an_endpoint_that_counts_five_times_as_many_tokens_as_guessed_overruns_the_limit_by_its_first_requests_at_most(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("dmoerm.labeling.pace._OPENING_S", 3600.0)  # however slow the machine, four start before the first reply

    def dear(exchange):
        return envelope(usage={name: 5 * count for name, count in exchange.good["usage"].items()})(exchange)

    with FakeOpenAI(latency_s=0.02) as server:
        server.script(Misbehaviour("dear", "envelope", dear))
        labelled = project(tmp_path / "p", server.base_url, comparisons(40), **PRICES)
        code, result = run(labelled, capsys, "--max-cost", "60")
        assert (code, result["ended"]) == (3, "limit")
    # Four go out before the first count comes back; by then each of them is held to cost what it did.
    assert 50 < result["cost"] <= 60


@pytest.mark.faults("F14")
@pytest.mark.parametrize("usage", ["usage_missing", "usage_null", "usage_strings", "usage_negative"])
def test_tokens_that_nobody_counted_are_unknown_and_estimated_and_hold_the_limit_over_runs(tmp_path, capsys, usage):
    long = " ".join(["word"] * 300)
    rows = [{**row, "prompt": f"{row['prompt']} {long}"} for row in comparisons(10)]
    with FakeOpenAI(latency_s=0.01) as server:
        server.script(usage)
        # The known pairs are short: what was asked must be estimated by its own length.
        labelled = project(tmp_path / "p", server.base_url, rows, canaries=True, **PRICES)
        code, result = run(labelled, capsys, "--max-cost", "30")
        assert (code, result["ended"]) == (3, "limit")
        assert 28 < result["cost"] <= 30
        assert result["unknown_usage"] == server.count
        asked = server.count
        after = status(labelled, capsys)
        assert after["cost"] == pytest.approx(result["cost"])
        assert after["unknown_usage"] == asked
        assert run(labelled, capsys, "--max-cost", "30")[0] == 3
        assert server.count == asked
        # Nor are they forgotten once something else is asked.
        assert run(labelled, capsys, "--max-cost", "30", "--set", "labeling.temperature=1")[0] == 3
        assert server.count <= asked + 8


@pytest.mark.faults("F14")
def test_an_attempt_that_timed_out_or_was_lost_may_have_been_billed(tmp_path, capsys):
    with FakeOpenAI() as server:
        server.script("never_answers", times=1)
        server.script("server_error", times=1)
        server.script("rate_limited_zero", times=1)  # nobody bills for that
        labelled = project(tmp_path / "p", server.base_url, comparisons(1), timeout_s=0.5, **PRICES)
        code, result = run(labelled, capsys)
        assert (code, server.count) == (0, 9)
        assert result["outcomes"] == {"answered": 6, "timeout": 1, "server_error": 1, "rate_limited": 1}
        assert result["unknown_usage"] == 2
        each = counted(server) / 6
        assert result["cost"] == pytest.approx(counted(server) + 2 * each, rel=0.1)
        assert status(labelled, capsys)["cost"] == pytest.approx(result["cost"], rel=0.05)
    assert labelled.label(action="status") == 0
    assert "2 attempts may have been billed without a count of tokens; their cost is estimated" in capsys.readouterr().out


@pytest.mark.faults("F14")
def test_an_endpoint_that_nobody_reached_has_billed_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dmoerm.labeling.run._PATIENCE_S", 0.9)
    monkeypatch.setattr("dmoerm.labeling.run._STREAK", 1)
    with FakeOpenAI() as server:
        address = server.base_url
    # The server is gone, and nothing listens at its address.
    labelled = project(tmp_path / "p", address, comparisons(1), canaries=False, **PRICES)
    code, result = run(labelled, capsys)
    assert code == 75
    assert result["outcomes"].keys() == {"unreached"}
    assert (result["cost"], result["unknown_usage"]) == (0.0, 0)
    now = status(labelled, capsys)
    assert (now["cost"], now["unknown_usage"]) == (0.0, 0)


@pytest.mark.faults("F14")
def test_a_limit_without_a_price_is_refused_and_a_dry_run_sends_nothing(tmp_path, capsys):
    with FakeOpenAI() as server:
        labelled = project(tmp_path / "p", server.base_url, comparisons(2))
        assert labelled.label("--max-cost", "1") == 1
        said = capsys.readouterr().err
        assert "--max-cost: the price of fake-judge is not known; set labeling.input_price and labeling.output_price" in said
        assert labelled.label("--dry-run") == 0
        assert "cost unknown: set labeling.input_price" in capsys.readouterr().out
        prices = [word for name, price in PRICES.items() for word in ("--set", f"labeling.{name}={price}")]
        assert labelled.label("--dry-run", "--json", *prices) == 0
        estimate = json.loads(capsys.readouterr().out)
        assert server.count == 0
        assert not labelled.store.exists()
        assert labelled.label(*prices) == 0
        assert estimate["calls"] == server.count == 12
        assert estimate["cost"] == pytest.approx(counted(server), rel=0.25)
        assert run(labelled, capsys, "--dry-run", *prices)[1]["calls"] == 0


# F15: what changes a question.

OTHER = "labeling.temperature=0.5"


@pytest.mark.faults("F15")
def test_what_changes_the_answer_changes_the_key_and_status_says_what_it_was(tmp_path, capsys):
    with FakeOpenAI() as server:
        labelled = project(tmp_path / "p", server.base_url, comparisons(1))
        assert labelled.label() == 0
        template = tmp_path / "p" / "mine.yaml"
        packaged = labelled.plan().template
        template.write_text(json.dumps({"system": f"{packaged.system} Be strict.", "user": packaged.user}), encoding="utf-8")
        changes = {
            "labeling.model=other-judge": "model (fake-judge before, other-judge now)",
            OTHER: "temperature (0.0 before, 0.5 now)",
            "labeling.temperature=null": "temperature (0.5 before, None now)",
            f"labeling.base_url={server.base_url.replace('127.0.0.1', 'localhost')}": "endpoint (http://127.0.0.1",
            "labeling.template=mine.yaml": "template",
            "labeling.reason=true": "template",
            "labeling.max_tokens=300": "max_tokens (256 before, 300 now)",
            "labeling.response_format=none": "response_format (json_object before, none now)",
            "labeling.soft=true": "soft (False before, True now)",
            "labeling.request={seed: 7}": 'request ({} before, {"seed": 7} now)',
        }
        for number, (change, said) in enumerate(changes.items(), start=1):
            found = status(labelled, capsys, "--set", change)
            assert (found["answered"], found["questions"]) == (0, 6), change
            assert list(found["superseded"].values()) == [6], change
            assert next(iter(found["superseded"])).startswith(said), change
            assert labelled.label("--set", change) == 0
            assert server.count == 6 * (1 + number), change  # nothing is reused
        assert labelled.label("--set", "labeling.max_tokens=301", action="status") == 0
        assert re.search(
            r"6 open questions have an answer that does not count: asked with another max_tokens \(\d+ before, 301 now\)",
            capsys.readouterr().out,
        )
        # All of them are still there.
        for change in [None, *changes]:
            assert labelled.label(*(["--set", change] if change else [])) == 0
        assert server.count == 6 * (1 + len(changes))


@pytest.mark.faults("F15")
def test_another_description_asks_its_capability_anew_and_another_text_its_pair(tmp_path, capsys):
    rows = comparisons(2)
    with FakeOpenAI() as server:
        labelled = project(tmp_path / "p", server.base_url, rows)
        assert labelled.label() == 0
        changed = TAXONOMY.replace("Each step follows.", "No step is missing.")
        (labelled.folder / "taxonomy.yaml").write_text(changed, encoding="utf-8")
        found = status(labelled, capsys)
        assert found["superseded"] == {"the description of the capability": 4}
        assert found["answered"] == 8
        assert labelled.label() == 0
        assert server.count == 12 + 4
        rows[1]["prompt"] += " Please."
        rows[0]["responses"][1] = text("new", 1, correctness=1, logic=1)
        labelled = project(tmp_path / "p", server.base_url, rows)
        (labelled.folder / "taxonomy.yaml").write_text(changed, encoding="utf-8")
        assert status(labelled, capsys)["superseded"] == {}
        assert labelled.label() == 0
        assert server.count == 16 + 12
    assert set(labelled.labels()) == true_labels(rows)


@pytest.mark.faults("F15")
def test_what_does_not_change_the_answer_reuses_all_of_them(tmp_path, capsys, monkeypatch):
    with FakeOpenAI() as server:
        labelled = project(tmp_path / "p", server.base_url, comparisons(2))
        assert labelled.label() == 0
        for change in (
            "labeling.max_in_flight=1",
            "labeling.timeout_s=7",
            "labeling.max_attempts=9",
            "labeling.max_retry_after_s=1",
            "labeling.input_price=1",
            "labeling.output=elsewhere.jsonl",
            f"labeling.base_url={server.base_url}/",  # with a slash at its end
            "seed=5",
        ):
            assert status(labelled, capsys, "--set", change)["answered"] == 12, change
            assert labelled.label("--set", change) == 0
        monkeypatch.setattr("dmoerm.labeling.replies.PARSER_VERSION", 99)
        monkeypatch.setattr("dmoerm.labeling.store.PARSER_VERSION", 99)
        assert labelled.label() == 0
        assert server.count == 12
        # More points in the same call are another question; a new point in its own call leaves the others alone.
        assert labelled.label("--set", "labeling.overall=false") == 0
        assert server.count == 12
