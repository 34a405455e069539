"""Bulk scoring on several processes: the same rewards, every row once, whatever is killed. `dmoerm score` itself: test_cli_verbs.py."""

import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from dmoerm.cli import main as cli
from dmoerm.errors import ConfigError, DataError, DmoermError
from dmoerm.scoring.bulk import ModelSource, score_file
from dmoerm.scoring.dispatch import Died, Dispatcher, Done, Ready
from dmoerm.scoring.scorer import ModelFacts, ScoredShard
from dmoerm.scoring.shards import InputRow, Shard, read_shards, survey

ROWS = 60


@dataclass(frozen=True)
class Poisoned(ModelSource):
    """A model whose process is killed by the first row that says "poison"; once, where a file is named to remember it by."""

    memory: str = ""

    def load(self, device=None):
        model = ModelSource.load(self, device)
        score_many = model.score_many

        def deadly(requests, **options):
            if any("poison" in request.prompt[0].content for request in requests) and not (self.memory and Path(self.memory).exists()):
                if self.memory:
                    Path(self.memory).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return score_many(requests, **options)

        model.score_many = deadly
        return model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from make_artifact_fixture import random_model, tiny_backbone

    folder = tmp_path_factory.mktemp("bulk")
    random_model(str(tiny_backbone(folder / "backbone"))).save_pretrained(folder / "model")
    return str(folder / "model")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Rows with one response and with two, every third without an id, one that fails and one that is broken."""
    lines = []
    for number in range(ROWS):
        row = {"prompt": f"explain {number % 10} river", "responses": ["a clear answer", "big bird"]}
        if number % 2:
            row = {"prompt": f"a poem about {number % 10} again", "response": "rain and " + "bridge " * (number % 7)}
        if number % 3:
            row["id"] = f"row-{number}" if number % 5 else number
        lines.append(json.dumps(row))
    lines[20] = json.dumps({"id": "poison", "prompt": "poison", "response": "water"})
    lines[30] = json.dumps({"id": "hollow", "prompt": "explain", "response": " "})
    lines[40] = '{"id": "cut'
    path = tmp_path_factory.mktemp("input") / "in.jsonl"
    path.write_text("\n".join(lines[:10]) + "\n\n" + "\n".join(lines[10:]) + "\n", encoding="utf-8")  # a blank line is no row
    return path


@pytest.fixture(scope="module")
def plain(model, source):
    """What one process makes of it."""
    target = source.with_name("plain.jsonl")
    result = score_file(ModelSource(model, "cpu"), source, target, shard_responses=8)
    return result, rewards(target)


def read(path):
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    with opened as file:
        return [json.loads(line) for line in file]


def rewards(path):
    """Reward by id and response, None where there is an error; a row that comes twice fails here."""
    rows = read(path)
    found = {(row["id"], row["response_index"]): row.get("reward") for row in rows}
    assert len(found) == len(rows)
    return found


def same(found, expected):
    assert list(found) == list(expected)  # the order of the input, too
    assert [value is None for value in found.values()] == [value is None for value in expected.values()]
    assert [v for v in found.values() if v is not None] == pytest.approx([v for v in expected.values() if v is not None], abs=1e-5)


def shards_of(source, size=8):
    return list(read_shards(source, survey(source), shard_responses=size))


# --- shards ---------------------------------------------------------------------------------------------------------------------------


def test_shards_hold_every_row_once_in_order_and_no_more_than_asked_for(source):
    shards = shards_of(source)
    ids = [row.id for shard in shards for row in shard.rows]
    assert len(ids) == len(set(ids)) == ROWS
    assert ids[:2] == ["in.jsonl:1", "row-1"]
    assert ids[12] == "in.jsonl:14"  # the thirteenth row stands below the blank line
    assert [shard.index for shard in shards] == list(range(len(shards)))
    assert all(8 <= shard.output_rows <= 9 for shard in shards[:-1])
    assert [shard.place for shard in shards[:2]] == ["in.jsonl:1-5", "in.jsonl:6-12"]  # 2 + 1 + 2 + 1 + 2, then 1 + 2 + 1 + 2 + 1 + 2


@pytest.mark.faults("F31")
def test_ids_that_come_twice_are_refused_before_anything_is_loaded(tmp_path):
    rows = [{"id": "a"}, {"id": 1}, {}, {"id": "1"}, {"id": "a"}, {"id": "in.jsonl:3"}]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"prompt": "p", "response": "r", **row}) + "\n" for row in rows))
    with pytest.raises(DataError, match=r'in.jsonl:5: id "a" is that of line 1 already.\n.*in.jsonl:6: id "in.jsonl:3" is that of line 3'):
        score_file(ModelSource("no-model-here"), source, tmp_path / "out.jsonl", workers=2)
    assert os.listdir(tmp_path) == ["in.jsonl"]


def test_an_input_that_changes_while_it_is_read_is_refused(source, tmp_path):
    copy = tmp_path / "in.jsonl"
    copy.write_bytes(source.read_bytes())
    known = survey(copy)
    copy.write_bytes(source.read_bytes().replace(b"bridge", b"bridges", 1))
    with pytest.raises(ConfigError, match="has changed while it was read"):
        list(read_shards(copy, known))


# --- who gets what --------------------------------------------------------------------------------------------------------------------


class ScriptedPool:
    """Processes that score at once, and die when a row's id says so: `deadly` by id how often."""

    slots = 3

    def __init__(self, deadly=(), model=lambda slot: "m"):
        self.deadly, self.model, self.events, self.submitted = dict(deadly), model, [], []

    def start(self, slot):
        self.events.append(Ready(slot, ModelFacts(self.model(slot), "mlp", "1")))

    def submit(self, slot, shard):
        self.submitted.append(shard.index)
        left = self.deadly.get(shard.index, 0)
        self.deadly[shard.index] = left - 1
        self.events.append(Died(slot, "a bullet") if left > 0 else Done(slot, ScoredShard(shard.index, b"", 1, 1, 0)))

    def wait(self):
        return [self.events.pop(0)]

    def close(self):
        pass


def numbered(count, taken=None):
    for index in range(count):
        if taken is not None:
            taken.append(index)
        yield Shard(index, f"in.jsonl:{10 * index}-{10 * index + 9}", (InputRow(index, "unread"),))


def dispatched(pool, shards):
    dispatcher = Dispatcher(pool)
    dispatcher.open()
    return dispatcher, dispatcher.score(shards)


def test_no_more_shards_are_read_than_processes_and_one():
    taken = []
    _, scored = dispatched(ScriptedPool(), numbered(100, taken))
    for count, _ in enumerate(scored, 1):
        assert len(taken) <= count + 3 + 1
    assert count == 100


@pytest.mark.faults("F31")
def test_a_shard_whose_process_dies_goes_to_another_and_comes_once():
    pool = ScriptedPool({4: 2, 7: 1})
    dispatcher, scored = dispatched(pool, numbered(20))
    assert sorted(shard.index for shard in scored) == list(range(20))
    assert dispatcher.deaths == 3
    assert pool.submitted.count(4) == 3


@pytest.mark.faults("F31")
def test_the_third_death_on_one_shard_names_its_lines():
    _, scored = dispatched(ScriptedPool({4: 3}), numbered(20))
    with pytest.raises(DmoermError, match=r"in\.jsonl:40-49: these rows \(shard 4\) ended 3 processes, the last one by: a bullet"):
        list(scored)


def test_processes_that_die_while_they_load_are_not_started_forever():
    class Hopeless(ScriptedPool):
        def start(self, slot):
            self.events.append(Died(slot, "a bullet"))

    with pytest.raises(DmoermError, match="3 processes in a row died before they had loaded the model"):
        dispatched(Hopeless(), numbered(1))


@pytest.mark.faults("F31")
def test_processes_with_different_models_stop_the_run():
    with pytest.raises(ConfigError, match="different ones of a model"):
        list(dispatched(ScriptedPool(model=lambda slot: f"m{slot}"), numbered(20))[1])


# --- real processes -------------------------------------------------------------------------------------------------------------------


@pytest.mark.faults("F31")
def test_two_processes_give_what_one_gives_though_one_is_killed(model, source, plain, tmp_path, caplog):
    seen = []
    result = score_file(
        Poisoned(model, "cpu", memory=str(tmp_path / "memory")),
        source,
        tmp_path / "out.jsonl.gz",
        workers=2,
        shard_responses=8,
        progress=lambda done, total: seen.append((done, total)),
    )
    same(rewards(tmp_path / "out.jsonl.gz"), plain[1])
    assert (result.rows, result.responses, result.failed, result.deaths) == (ROWS, plain[0].responses, 2, 1)
    assert re.search(r"process \d died \(killed by SIGKILL, perhaps for lack of memory\) on in.jsonl:\d+-\d+; trying", caplog.text)
    assert seen[0] == (0, ROWS)
    assert seen[-1] == (ROWS, ROWS)
    assert {path.name for path in tmp_path.iterdir()} == {"memory", "out.jsonl.gz"}


def test_a_model_that_is_not_there_is_the_message_of_the_process_that_looked(source, tmp_path):
    with pytest.raises(DmoermError, match="no-model-here"):
        score_file(ModelSource(str(tmp_path / "no-model-here")), source, tmp_path / "out.jsonl", workers=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.faults("F29", "F31")
def test_a_run_killed_with_all_its_processes_goes_on_with_another_number_of_them(model, source, plain, tmp_path):
    target = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "dmoerm.cli.main", "score", model, source, target, "--workers", "1", "--shard-responses", "8"]
    process = subprocess.Popen(list(map(str, command)), start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    parts = tmp_path / "out.jsonl.parts"
    while len(list(parts.glob("part-*.jsonl"))) < 2 and process.poll() is None:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not target.exists()
    done = len(list(parts.glob("part-*.jsonl")))
    assert 2 <= done < len(shards_of(source))
    result = score_file(ModelSource(model, "cpu"), source, target, shard_responses=8, resume=True)
    same(rewards(target), plain[1])
    assert result.resumed_rows == sum(len(shard.rows) for shard in shards_of(source)[:done])
    assert (result.rows, result.responses, result.failed) == (ROWS, plain[0].responses, 2)
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.faults("F31")
def test_the_engine_without_its_package_is_one_line_with_the_install_command(model, source, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["score", model, str(source), str(tmp_path / "out.jsonl"), "--engine", "ray"]) == cli.FAILED
    assert capsys.readouterr().err == "error: 'ray' is not installed. Install it with: pip install 'dmoerm[ray]'\n"


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_does_not_answer_is_said_at_once(model, source, tmp_path, monkeypatch, scheme):
    """Ray by itself would go on trying for minutes."""
    pytest.importorskip("ray")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"{scheme}127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ConfigError, match=f"RAY_ADDRESS is {address}, where nobody answers"):
            score_file(ModelSource(model, "cpu"), source, tmp_path / "out.jsonl", engine="ray")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.faults("F31")
def test_a_ray_cluster_gives_what_one_process_gives_though_an_actor_is_killed(model, source, plain, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))  # where actors find `Poisoned`
    result = score_file(
        Poisoned(model, "cpu", memory=str(tmp_path / "memory")), source, tmp_path / "out.jsonl", engine="ray", workers=2, shard_responses=8
    )
    same(rewards(tmp_path / "out.jsonl"), plain[1])
    assert (result.rows, result.responses, result.failed, result.deaths) == (ROWS, plain[0].responses, 2, 1)


# --- parts ----------------------------------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.fixture
def stopped(model, source, tmp_path):
    """A folder of parts, the first three of which are there."""

    def stop(done, total):
        if done >= 15:
            raise Stop

    with pytest.raises(Stop):
        score_file(ModelSource(model, "cpu"), source, tmp_path / "out", parts=True, shard_responses=8, progress=stop)
    return tmp_path / "out"


def test_parts_are_left_apart_when_asked_for_and_a_damaged_one_is_made_again(model, source, plain, stopped):
    (stopped / "part-00000001.jsonl").write_bytes((stopped / "part-00000001.jsonl").read_bytes()[:-9])
    (stopped / "part-00000003.jsonl.0123abcd.tmp").write_text('{"half a ro')
    result = score_file(ModelSource(model, "cpu"), source, stopped, parts=True, shard_responses=8, resume=True)
    assert result.resumed_rows == 5 + 6  # of shards 0 and 2
    names = [f"part-{shard.index:08d}.jsonl" for shard in shards_of(source)]
    assert sorted(path.name for path in stopped.iterdir()) == ["lock", *names, "run.json"]
    whole = stopped.with_name("whole.jsonl")
    whole.write_text("".join((stopped / name).read_text(encoding="utf-8") for name in names), encoding="utf-8")
    same(rewards(whole), plain[1])
    assert json.loads((stopped / "run.json").read_text())["finished"]["rows"] == ROWS
    with pytest.raises(ConfigError, match="exists already"):
        score_file(ModelSource(model, "cpu"), source, stopped, parts=True, shard_responses=8, resume=True)


def test_a_second_run_on_the_same_parts_is_told_who_holds_them(model, source, stopped):
    import fcntl

    with (stopped / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=f"in use by process {os.getpid()} on "):
            score_file(ModelSource(model, "cpu"), source, stopped, parts=True, shard_responses=8, resume=True)


def test_a_folder_that_is_not_ours_is_never_cleared(model, source, tmp_path):
    (tmp_path / "out.jsonl.parts").mkdir()
    (tmp_path / "out.jsonl.parts" / "thesis.tex").write_text("years")
    with pytest.raises(ConfigError, match=r"it holds thesis\.tex"):
        score_file(ModelSource(model, "cpu"), source, tmp_path / "out.jsonl", overwrite=True)
    assert (tmp_path / "out.jsonl.parts" / "thesis.tex").read_text() == "years"


@pytest.mark.faults("F29")
def test_a_kill_between_the_merge_and_the_clearing_up_leaves_a_run_that_is_done(model, source, plain, tmp_path, monkeypatch):
    from dmoerm.scoring import parts

    def killed(folder):
        raise Stop

    target = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(parts.PartFolder, "remove", killed)
        with pytest.raises(Stop):
            score_file(ModelSource(model, "cpu"), source, target, shard_responses=8)
    assert len(list(tmp_path.iterdir())) == 2
    result = score_file(ModelSource(model, "cpu"), source, target, shard_responses=8, resume=True)
    assert (result.rows, result.resumed_rows, result.failed) == (ROWS, ROWS, 2)
    same(rewards(target), plain[1])
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.faults("F29")
def test_a_killed_run_that_was_told_to_overwrite_goes_on_and_the_old_output_stays_until_the_end(model, source, plain, tmp_path):
    def stop(done, total):
        if done >= 15:
            raise Stop

    target = tmp_path / "out.jsonl"
    target.write_text("old")
    with pytest.raises(Stop):
        score_file(ModelSource(model, "cpu"), source, target, shard_responses=8, overwrite=True, progress=stop)
    assert target.read_text() == "old"
    result = score_file(ModelSource(model, "cpu"), source, target, shard_responses=8, resume=True)
    assert result.resumed_rows == 5 + 6 + 6
    same(rewards(target), plain[1])
    with pytest.raises(ConfigError, match="exists already"):
        score_file(ModelSource(model, "cpu"), source, target, shard_responses=8, resume=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "workers is 0; expected at least 1"),
        ({"engine": "spark"}, "engine is 'spark'; expected local or ray"),
        ({"shard_responses": 0}, "shard_responses is 0"),
    ],
)
def test_numbers_and_names_that_cannot_be_are_refused_without_a_trace(model, source, tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        score_file(ModelSource(model, "cpu"), source, tmp_path / "out.jsonl", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_several_processes_need_a_saved_model(model, source, tmp_path):
    with pytest.raises(ConfigError, match="ModelSource"):
        score_file(ModelSource(model, "cpu").load(), source, tmp_path / "out.jsonl", workers=2)
