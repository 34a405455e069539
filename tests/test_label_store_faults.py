"""Kills, interrupts, a second run, a damaged file, a full disk: what was acknowledged is kept, and nothing of it is asked again."""

import asyncio
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time

import pytest
from fake_openai import FakeOpenAI, fake_openai_process
from label_project import KEY, KEY_NAME, comparisons, project, true_labels

from dmoerm.errors import LabelError
from dmoerm.labeling.run import label
from dmoerm.labeling.store import Store, network_file_system, salvage


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv(KEY_NAME, KEY)


def ended(process, timeout_s=30.0):
    """Exit code, stdout and stderr of a run in its own process."""
    out, err = process.communicate(timeout=timeout_s)
    return process.returncode, out, err


# F12: killed and interrupted.


@pytest.mark.faults("F12")
def test_five_kills_lose_no_answer_and_cost_only_the_requests_under_way(tmp_path):
    rows, rng, in_flight = comparisons(22), random.Random(12), 6
    with fake_openai_process(tmp_path / "requests.jsonl", "--latency-s", "0.03", "--jitter-s", "0.03") as server:
        labelled = project(tmp_path / "p", server.base_url, rows, max_in_flight=in_flight)
        lost, answered, kept = 0, 0, {}
        for kill in range(5):
            running = labelled.start()
            server.wait_for(min(120, len(server.requests) + rng.randrange(1, 25)))
            time.sleep(rng.random() * 0.03)
            running.kill()
            assert ended(running)[0] == -signal.SIGKILL, f"the run ended before kill {kill}"
            time.sleep(0.1)  # what it had sent has arrived
            replies = dict(labelled.rows("SELECT id, body FROM attempts WHERE body IS NOT NULL"))
            under_way = len(server.requests) - len(replies) - lost
            assert 0 <= under_way <= in_flight
            assert kept.items() <= replies.items()  # whatever was stored before the last kill is as it was
            lost, answered, kept = lost + under_way, len(replies), replies
        assert labelled.label() == 0
        assert len(server.requests) == 132 + lost
        assert 0 < answered < 132
        # Each question has one reply, and each label is there once.
        assert labelled.rows("SELECT count(*), count(DISTINCT key) FROM attempts WHERE body IS NOT NULL") == [(132, 132)]
        lines = (labelled.folder / "labels.jsonl").read_text(encoding="utf-8")
        undisturbed = project(tmp_path / "q", server.base_url, rows, max_in_flight=in_flight)
        assert undisturbed.label() == 0
    assert set(labelled.labels()) == true_labels(rows)
    assert sum(len(json.loads(line)["labels"]) for line in lines.splitlines()) == len(true_labels(rows))
    assert lines == (undisturbed.folder / "labels.jsonl").read_text(encoding="utf-8")


@pytest.mark.faults("F12")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_lets_what_is_under_way_come_back_and_exits_with_130(tmp_path, number):
    with fake_openai_process(tmp_path / "requests.jsonl", "--latency-s", "0.4") as server:
        labelled = project(tmp_path / "p", server.base_url, comparisons(10), max_in_flight=8)
        running = labelled.start()
        server.wait_for(10)
        running.send_signal(number)
        code, out, _ = ended(running)
        assert code == 130
        asked = len(server.requests)
        assert asked <= 16
        assert labelled.outcomes() == {"answered": asked}
        assert f"{asked} of 60 questions answered" in out
        assert labelled.label() == 0
        assert len(server.requests) == 60


@pytest.mark.faults("F12")
def test_the_second_signal_ends_the_run_at_once_and_loses_nothing_that_was_acknowledged(tmp_path):
    with fake_openai_process(tmp_path / "requests.jsonl", "--latency-s", "0.1", "--misbehave", "never_answers=0.3") as server:
        rows = comparisons(10)
        labelled = project(tmp_path / "p", server.base_url, rows, max_in_flight=8)
        running = labelled.start()
        server.wait_for(12)
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert running.poll() is None  # it waits for the ones that never come
        began = time.monotonic()
        running.send_signal(signal.SIGINT)
        assert ended(running)[0] == 130
        assert time.monotonic() - began < 10
        hung = sum(request["given"] == "never_answers" for request in server.requests)
        asked = len(server.requests)
        assert labelled.outcomes() == {"answered": asked - hung, "under_way": hung}


@pytest.mark.faults("F12")
def test_replies_that_were_stored_and_not_read_are_read_by_the_next_run_without_a_request(tmp_path):
    rows = comparisons(3)
    with FakeOpenAI() as server:
        labelled = project(tmp_path / "p", server.base_url, rows)
        assert labelled.label() == 0
        connection = sqlite3.connect(labelled.store)
        with connection:
            connection.execute("DELETE FROM verdicts")
            connection.execute("UPDATE attempts SET outcome = 'unread', input_tokens = NULL, parser = NULL")
        connection.close()
        assert labelled.label() == 0
        assert server.count == 18
    assert set(labelled.labels()) == true_labels(rows)


@pytest.mark.faults("F12")
def test_a_run_that_was_killed_while_it_made_the_store_can_be_started_again(tmp_path):
    empty = tmp_path / "empty.db"
    empty.touch()
    nothing = tmp_path / "nothing.db"
    connection = sqlite3.connect(nothing)
    connection.executescript("CREATE TABLE x (y); DROP TABLE x;")  # pages, but no tables
    connection.close()
    for path in (empty, nothing):
        with pytest.raises(LabelError, match="there are no answers yet"):
            Store(path, write=False)
        with Store(path, write=True) as store:
            assert len(store.secret()) == 16
        with Store(path, write=False) as store:
            assert store.answers() == {}


@pytest.mark.faults("F12", "F13")
def test_after_a_crash_in_the_middle_of_a_write_status_and_salvage_read_what_was_there_before(tmp_path):
    path, crashed = tmp_path / "labels.db", tmp_path / "crashed.db"
    with Store(path, write=True) as store:
        secret = store.secret()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript("PRAGMA journal_mode = TRUNCATE; PRAGMA cache_size = 2; BEGIN IMMEDIATE; DELETE FROM store;")
    connection.executemany("INSERT INTO settings VALUES (?, ?)", [(str(number), "x" * 3000) for number in range(50)])
    for suffix in ("", "-journal"):  # as a power cut would leave them
        shutil.copyfile(f"{path}{suffix}", f"{crashed}{suffix}")
        shutil.copyfile(f"{path}{suffix}", f"{crashed}2{suffix}")
    connection.close()
    assert os.path.getsize(f"{crashed}-journal") > 0
    with Store(crashed, write=False) as store:
        assert store.secret() == secret
    twice = tmp_path / "crashed.db2"
    assert salvage(twice) == {"store": 1, "settings": 0, "questions": 0, "attempts": 0, "verdicts": 0}
    with Store(twice, write=False) as store:
        assert store.secret() == secret
    assert sorted(file.name for file in tmp_path.glob("crashed.db2*")) == [
        "crashed.db2",
        "crashed.db2.bad",
        "crashed.db2.bad-journal",
        "crashed.db2.lock",
    ]


# F13: the store.


@pytest.mark.faults("F13")
def test_a_second_run_on_the_same_store_is_told_who_holds_it_and_sends_nothing(tmp_path, capsys):
    with fake_openai_process(tmp_path / "requests.jsonl", "--misbehave", "never_answers") as server:
        labelled = project(tmp_path / "p", server.base_url, comparisons(2), max_in_flight=2)
        running = labelled.start()
        server.wait_for(2)
        try:
            assert labelled.label() == 1
            said = capsys.readouterr().err
            assert f"labels.db: in use by process {running.pid} on {socket.gethostname()}. Wait for it, or stop it" in said
            assert len(server.requests) == 2
            for action in ("reparse", "salvage"):
                assert labelled.label(action=action) == 1
                assert f"in use by process {running.pid}" in capsys.readouterr().err
            assert labelled.label("--json", action="status") == 0  # reading needs no lock
            assert json.loads(capsys.readouterr().out)["lost"] == 2
        finally:
            running.kill()
            running.communicate()


def filled(folder, server, count=25):
    """A project with `6 * count` answers, and its labels."""
    labelled = project(folder, server.base_url, comparisons(count))
    assert labelled.label() == 0
    return labelled, labelled.labels()


@pytest.mark.faults("F13")
@pytest.mark.parametrize("spoil", ["a page of replies", "the end", "the header", "the first page"])
def test_a_damaged_store_is_refused_unchanged_and_salvaged_beside_itself(tmp_path, capsys, spoil):
    with FakeOpenAI() as server:
        labelled, expected = filled(tmp_path / "p", server)
        data = bytearray(labelled.store.read_bytes())
        page = 4096
        if spoil == "a page of replies":
            place = data.index(b'"choices"', len(data) // 2) // page * page
            data[place : place + page] = os.urandom(page)
        elif spoil == "the end":
            del data[len(data) * 3 // 4 // page * page :]
        elif spoil == "the header":
            data[:16] = b"<!doctype html>\n"
        else:
            data[100:page] = bytes(page - 100)
        labelled.store.write_bytes(data)
        asked = server.count
        for action in ("run", "status"):
            assert labelled.label(action=action) == 1
            said = capsys.readouterr().err
            assert re.search(r"labels\.db: damaged \(.+\)\. Nothing was changed\. dmoerm label salvage keeps it as labels\.db\.bad", said)
        assert labelled.store.read_bytes() == data
        assert labelled.label("--json", action="salvage") == 0
        counts = json.loads(capsys.readouterr().out)
        assert (labelled.folder / "labels.db.bad").read_bytes() == data
        assert not (labelled.folder / "labels.db.salvaged").exists()
        assert labelled.label(action="reparse") == 0
        saved = labelled.rows("SELECT count(*) FROM verdicts")[0][0]
        if spoil in ("a page of replies", "the end"):
            assert counts["attempts"] >= 75
            assert saved >= 40
        assert labelled.label() == 0
        assert server.count == asked + 150 - saved
        assert labelled.labels() == expected


@pytest.mark.faults("F13")
def test_a_salvage_that_has_no_room_changes_nothing_and_says_so(tmp_path):
    with FakeOpenAI() as server:
        labelled, _ = filled(tmp_path / "p", server, 12)
    before = labelled.store.read_bytes()
    script = (
        "import resource, sys; from pathlib import Path; from dmoerm.labeling.store import salvage\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (32768, 32768))\n"
        "try: salvage(Path(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(labelled.store)], capture_output=True, text=True, timeout=60)
    assert re.search(r"LabelError .*labels\.db\.salvaged: cannot be written \(.+\)\. Nothing was changed", done.stdout), done
    assert labelled.store.read_bytes() == before
    assert {file.name for file in labelled.folder.glob("labels.db*")} == {"labels.db", "labels.db-journal", "labels.db.lock"}


@pytest.mark.faults("F13")
def test_a_full_disk_stops_the_questions_before_the_next_request(tmp_path):
    with FakeOpenAI() as server:
        labelled = project(tmp_path / "p", server.base_url, comparisons(20), max_in_flight=4)
        with Store(labelled.store, write=True) as store:
            # SQLite's own limit gives the same error as a full disk.
            store._writer.put(lambda connection: connection.execute("PRAGMA max_page_count = 25").fetchall(), None)
            with pytest.raises(LabelError, match=r"labels\.db: the disk is full: answers cannot be stored, so no further question is sent"):
                asyncio.run(label(labelled.plan(), store, KEY))
        asked = server.count
        assert 10 < asked < 120
        ((begun, replies),) = labelled.rows("SELECT count(*), count(body) FROM attempts")
        assert asked <= begun <= asked + 4  # no request without its row on disk
        assert asked - replies <= 4  # and only those under way have no reply
        assert labelled.label() == 0
        assert server.count == asked + 120 - replies


@pytest.mark.faults("F13")
def test_a_file_that_may_not_grow_ends_the_run_with_1_and_what_was_stored_stays(tmp_path):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, 70_000))

    with fake_openai_process(tmp_path / "requests.jsonl") as server:
        rows = comparisons(12)
        labelled = project(tmp_path / "p", server.base_url, rows, max_in_flight=1)
        code, _, err = ended(labelled.start(preexec_fn=limited))
        assert code == 1, err
        assert "so no further question is sent" in err
        assert "Traceback" not in err
        asked = len(server.requests)
        ((begun, replies),) = labelled.rows("SELECT count(*), count(body) FROM attempts")
        assert begun == asked > 20
        assert asked - replies <= 1
        assert labelled.label() == 0
        assert len(server.requests) == asked + 72 - replies
    assert set(labelled.labels()) == true_labels(rows)


MOUNTS = r"""
/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
//server/share /home/me/my\040share cifs rw 0 0
/dev/sdb1 /home/me/local ext4 rw 0 0
me@host: /mnt/there fuse.sshfs rw 0 0
overlay /mnt/over ext4 rw 0 0
server:/x /mnt/over nfs rw 0 0
"""


@pytest.mark.faults("F13")
@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/labels.db", None),
        ("/homework/labels.db", None),
        ("/home/me/labels.db", "nfs4"),
        ("/home/me/my share/run/labels.db", "cifs"),
        ("/home/me/local/labels.db", None),
        ("/mnt/there/labels.db", "fuse.sshfs"),
        ("/mnt/over/labels.db", "nfs"),
    ],
)
def test_the_nearest_mount_tells_whether_a_store_lies_on_a_network(path, kind):
    from pathlib import Path

    assert network_file_system(Path(path), MOUNTS) == kind


@pytest.mark.faults("F13")
def test_a_link_to_a_network_file_system_is_followed_and_nothing_mounted_is_nothing_known(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far")
    mounts = f"/dev/sda1 / ext4 rw 0 0\nserver:/x {(tmp_path / 'far').resolve()} nfs rw 0 0\n"
    assert network_file_system(tmp_path / "near" / "labels.db", mounts) == "nfs"
    assert network_file_system(tmp_path / "near" / "labels.db", "") is None


@pytest.mark.faults("F13")
def test_a_store_never_uses_write_ahead_logging_and_flushes_every_commit(tmp_path):
    with Store(tmp_path / "labels.db", write=True) as store:
        assert store._all("PRAGMA journal_mode") == [("truncate",)]
        assert store._all("PRAGMA synchronous") == [(2,)]  # FULL


@pytest.mark.faults("F13")
def test_an_old_sqlite_and_a_store_of_another_version_are_refused_by_name(tmp_path, monkeypatch):
    path = tmp_path / "labels.db"
    Store(path, write=True).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    for write in (True, False):
        with pytest.raises(LabelError, match=r"made by another version of dmoerm \(store version 99; this one reads 1\)"):
            Store(path, write=write)
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 22, 0))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.22.0")
    with pytest.raises(LabelError, match=r"SQLite 3\.22\.0 is too old; expected 3\.24 or newer"):
        Store(path, write=True)
    monkeypatch.undo()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    Store(path, write=True).close()  # the refused ones have let go of the lock


@pytest.mark.faults("F13")
def test_a_run_that_is_cancelled_while_the_disk_is_busy_leaves_the_store_whole(tmp_path):
    with FakeOpenAI(latency_s=0.05) as server:
        labelled = project(tmp_path / "p", server.base_url, comparisons(20))
        with Store(labelled.store, write=True) as store:

            async def cancelled():
                running = asyncio.create_task(label(labelled.plan(), store, KEY))
                await asyncio.to_thread(server.wait_for, 40)
                store._writer.put(lambda connection: time.sleep(0.3), None)
                await asyncio.sleep(0.1)
                running.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await running

            asyncio.run(cancelled())
            assert len(store.answers()) > 0
        replies = labelled.rows("SELECT count(*) FROM attempts WHERE body IS NOT NULL")[0][0]
        asked = server.count
        assert labelled.label() == 0
        assert server.count == asked + 120 - replies
