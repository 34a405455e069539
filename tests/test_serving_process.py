"""The server as a process, on a real socket: it drains on SIGTERM, says what is wrong with its model, and shows its page in Chromium."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from browser_page import OVERFLOW, UNREACHABLE, WIDTHS, chromium

pytest.importorskip("uvicorn")

from test_cli_verbs import project, trained  # noqa: F401

from dmoerm.cli import main as cli

EXAMPLES = Path(__file__).parent.parent / "examples"
HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=1</script> [a](javascript:alert(1)) \u202eabc\u200b'


class Process:
    """`dmoerm serve` on a free port."""

    def __init__(self, folder, *flags):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dmoerm.cli.main", "serve", str(folder), "--port", "0", *flags],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        line = self.process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        self.url = found[0] if found else line

    def get(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def ready(self):
        for _ in range(600):
            if self.get("/health/ready")[0] == 200:
                return self
            time.sleep(0.1)
        raise AssertionError("not ready")

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


@pytest.mark.faults("F36")
def test_sigterm_answers_what_is_under_way_and_ends_with_0_and_no_text_in_the_log(trained):  # noqa: F811
    server = Process(trained[0]).ready()
    answers = []

    def ask(number):
        body = {"prompt": f"secret {number}", "responses": [f"secret answer {i} " + "river stone " * 40 for i in range(200)]}
        answers.append(server.get("/v1/reward", body))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while not re.search(rb"dmoerm_queue_requests [1-9]", server.get("/metrics")[1]):
        time.sleep(0.005)
    time.sleep(0.05)
    code, err = server.end()
    for thread in threads:
        thread.join(60)
    assert [status for status, _ in answers] == [200] * 4
    assert all(len(json.loads(body)["results"]) == 200 for _, body in answers)
    assert code == 0
    assert err.endswith("stopped\n")
    assert "secret" not in err


@pytest.mark.faults("F36")
def test_a_model_with_missing_or_changed_weights_ends_the_server_with_its_message(trained, tmp_path, capsys):  # noqa: F811
    import shutil

    shutil.copytree(trained[0], tmp_path / "broken")
    victim = next((tmp_path / "broken").glob("categories/*/aggregator.safetensors"))
    victim.unlink()
    assert cli.main(["serve", str(tmp_path / "broken"), "--port", "0"]) == cli.FAILED
    assert "aggregator.safetensors" in capsys.readouterr().err


def test_a_taken_port_is_one_line(trained, capsys):  # noqa: F811
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert cli.main(["serve", str(trained[0]), "--port", str(taken.getsockname()[1])]) == cli.FAILED
    assert "Choose another port" in capsys.readouterr().err


@pytest.fixture(scope="module")
def server(trained):  # noqa: F811
    process = Process(trained[0]).ready()
    yield process
    process.end()


@pytest.mark.skipif(sys.platform != "linux", reason="the environment of a process is read from /proc")
def test_the_command_runs_without_glibc_s_cache_of_small_blocks_under_its_own_number(server):
    environment = Path(f"/proc/{server.process.pid}/environ").read_bytes().split(b"\0")
    assert b"GLIBC_TUNABLES=glibc.malloc.tcache_count=0" in environment


# --- clients ----------------------------------------------------------------------------------------------------------------------------


def example(name):
    """The names of an example that is not run yet."""
    return runpy.run_path(str(EXAMPLES / name), run_name="example")


def test_every_dialect_of_a_running_server_gives_the_same_reward(server, capsys):
    found = example("07_every_dialect.py")
    assert found["main"](server.url + "/") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "all dialects agree"
    assert len(lines) == 2 + 1 + len(found["DIALECTS"]) + 2 + 1
    _, body = server.get("/v1/reward", {"prompt": found["PROMPT"], "responses": [found["RESPONSE"]]})
    reward = json.loads(body)["results"][0]["reward"]
    shown = {line[21:43].strip(): float(line[43:52]) for line in lines if re.search(r"[+-]\d+\.\d{5}", line)}
    assert set(shown) == {route for _, route, _, _ in found["DIALECTS"]}
    assert all(value == pytest.approx(reward, abs=2e-3 * max(1.0, abs(reward))) for value in shown.values())


def test_a_dialect_that_gives_another_reward_is_told(server, capsys):
    found = example("07_every_dialect.py")
    route, place = "/v1/score/evaluation", lambda answer: answer["scores"][0] + 0.01
    found["DIALECTS"][-1] = ("another", route, found["DIALECTS"][-1][2], place)
    assert found["main"](server.url) == 1
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith("DIFFERENT")] == ["another"]


def test_an_openrlhf_client_gets_the_rewards_of_a_policy_s_samples(server, trained, tiny_policy_folder, monkeypatch, capsys):  # noqa: F811
    from dmoerm import RewardModel

    example("08_openrlhf_remote.py")["main"](server.url + "/get_reward", str(tiny_policy_folder))
    *rows, last = capsys.readouterr().out.splitlines()
    assert re.match(r"6 rewards, mean [+-]\d+\.\d{4}; dmoerm_uncertainty \d.*dmoerm_split 1\.000, dmoerm_failed 0\.000; 0 times full", last)
    example("08_openrlhf_remote.py")["main"](server.url + "/get_reward")
    *rows, last = capsys.readouterr().out.splitlines()
    model = RewardModel.from_pretrained(trained[0])
    found = example("08_openrlhf_remote.py")
    expected = [model.score(prompt, [response])[0].reward for prompt in found["PROMPTS"] for response in found["RESPONSES"]]
    assert [float(row.split()[0]) for row in rows] == pytest.approx(expected, abs=1e-3)
    assert f"{len(expected)} rewards" in last


class Slow:
    """The model, which takes a while."""

    def __init__(self, model):
        self.model = model

    def __getattr__(self, name):
        return getattr(self.model, name)

    def score_by_aggregation(self, *args, **kwargs):
        time.sleep(0.2)
        return self.model.score_by_aggregation(*args, **kwargs)


@pytest.mark.faults("F33")
def test_an_openrlhf_client_comes_back_to_a_full_server_when_it_is_told_to(trained):  # noqa: F811
    import uvicorn

    from dmoerm import RewardModel
    from dmoerm.serving.app import build_server
    from dmoerm.serving.settings import Limits, ServerSettings

    model = Slow(RewardModel.from_pretrained(trained[0]))
    app = build_server(lambda: model, ServerSettings(limits=Limits(open_requests=2)))
    running = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on", ws="none"))
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        while not (running.started and app.queue.ready):
            time.sleep(0.01)
        port = running.servers[0].sockets[0].getsockname()[1]
        found = example("08_openrlhf_remote.py")
        queries, prompts = found["written"]()
        rewards, logs, refused = found["remote_rewards"](f"http://127.0.0.1:{port}/get_reward", queries, prompts, [None] * len(queries))
    finally:
        running.should_exit = True
        thread.join(20)
    assert refused > 0
    expected = [model.score(prompt, [response])[0].reward for prompt in found["PROMPTS"] for response in found["RESPONSES"]]
    assert rewards == pytest.approx(expected, abs=1e-3)
    assert {len(values) for values in logs.values()} == {len(rewards)}


# --- the page ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if chromium() is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield opened
        opened.close()


def open_page(browser, server, width=1280, **context):
    page = browser.new_context(viewport={"width": width, "height": 900}, **context).new_page()
    page.faults = []
    page.on("console", lambda message: page.faults.append(message.text))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith((server.url, "data:")) else page.faults.append(request.url))
    page.goto(server.url)
    return page


@pytest.mark.slow
@pytest.mark.faults("F37", "F38")
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_compares_by_keyboard_shows_hostile_text_as_text_and_survives_a_reload(browser, server, width):
    page = open_page(browser, server, width)
    shots = os.environ.get("DMOERM_SHOTS")
    page.locator("#model", has_text="tokens").wait_for()
    if shots:
        page.screenshot(path=f"{shots}/empty-{width}.png", full_page=True)
    page.focus("#prompt")
    page.keyboard.type("explain the number river")
    page.focus("#response-0")
    page.keyboard.insert_text("good clear water\n" + HOSTILE)
    page.focus("#response-1")
    page.keyboard.insert_text("bad wrong stone")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#found h2")
    status, body = server.get(
        "/v1/compare", {"prompt": "explain the number river", "responses": ["good clear water\n" + HOSTILE, "bad wrong stone"]}
    )
    found = json.loads(body)
    assert status == 200
    assert page.inner_text("#found h2").startswith("AB"[found["winner"]])
    assert HOSTILE in {words.text_content().partition("\n")[2] for words in page.locator(".words").all()}
    assert page.locator("#found img, #found script, #found a").count() == 0
    assert page.title() != "1"
    bars = page.locator(".chart rect").count()
    assert bars == sum(len(result["capabilities"]) for result in found["results"])
    for result, letter in zip(found["results"], "AB", strict=True):
        for value in result["capabilities"].values():
            shown = f"{letter} {'−' if value < 0 else '+'}{abs(value):.2f}"
            assert page.locator(".chart .value", has_text=shown).count() >= 1, shown
    assert page.evaluate(OVERFLOW) == []
    assert page.evaluate(UNREACHABLE) == []
    if shots:
        page.screenshot(path=f"{shots}/found-{width}.png", full_page=True)
    page.reload()
    assert page.input_value("#response-1") == "bad wrong stone"
    assert page.faults == []


@pytest.mark.slow
@pytest.mark.faults("F38")
def test_two_clicks_ask_once_and_a_lost_server_loses_no_text(browser, server):
    page = open_page(browser, server)
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "compare" in request.url else None)
    page.click("text=comfort")
    page.wait_for_selector("#found h2")
    assert page.locator("#found .card").count() == 3
    assert len(asked) == 1
    page.dblclick("#compare")
    page.wait_for_selector("#found h2")
    assert len(asked) in (2, 3)  # the second click comes while the first is worked on, unless that was quick
    page.route("**/v1/compare", lambda route: route.abort())
    page.click("#compare")
    page.wait_for_selector(".state.failed")
    assert "cannot be reached" in page.inner_text(".state")
    page.unroute("**/v1/compare")
    page.click("text=Try again")
    page.wait_for_selector("#found h2")
    assert page.input_value("#prompt").startswith("My cat died")
    page.fill("#response-0", "x")
    page.click("[aria-label='Remove response A']")
    assert len(page.locator("textarea").all()) == 3


@pytest.mark.slow
@pytest.mark.faults("F37")
def test_a_response_of_a_megabyte_is_shown_in_a_box(browser, server):
    page = open_page(browser, server, 390)
    page.fill("#prompt", "q")
    page.evaluate("document.getElementById('response-0').value = 'word '.repeat(150000)")
    page.fill("#response-1", "no")
    page.click("#compare")
    page.wait_for_selector("#found h2")
    assert page.locator(".card").first.bounding_box()["height"] < 400
    assert "Cut to fit" in page.inner_text("#found")
    assert page.evaluate(OVERFLOW) == []
