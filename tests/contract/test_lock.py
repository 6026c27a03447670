"""One writer a run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pico_contract.lock import STALE_SECONDS, LockHeldError, RunLock, is_stale, read_lock

Script = Callable[..., str]

HERE, ELSEWHERE = socket.gethostname(), "elsewhere.example"


def write_lock(path: Path, **changes: Any) -> None:
    """The lock of this live process, with changes."""
    content = {"host": HERE, "pid": os.getpid(), "heartbeat": time.time(), "token": "another"}
    path.write_text(json.dumps({**content, **changes}))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "run.lock"


@pytest.fixture
def existing(path: Path) -> Path:
    path.parent.mkdir()
    return path


@pytest.fixture(scope="module")
def dead_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_lock_says_who_holds_it_and_goes_with_its_holder(path: Path) -> None:
    path.parent.mkdir()
    (path.parent / "run.json").write_text("{}")
    with RunLock(path) as lock:
        held = read_lock(path)
        assert held is not None
        assert (held["host"], held["pid"], held["token"]) == (HERE, os.getpid(), lock.token)
        assert abs(held["heartbeat"] - time.time()) < 60
        assert lock.taken_over is None
    assert [file.name for file in path.parent.iterdir()] == ["run.json"]


def test_a_lock_goes_when_its_holder_fails(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunLock(path):
        _ = 1 / 0
    assert not path.exists()


def test_the_second_writer_is_refused_by_process_and_host(path: Path) -> None:
    """C6.2: it says who holds the lock."""
    with RunLock(path) as first:
        with pytest.raises(LockHeldError, match=f"is being written by process {os.getpid()} on {HERE}") as caught:
            RunLock(path).acquire()
        assert str(path) in str(caught.value)
        assert caught.value.exit_code == 2
        assert (read_lock(path) or {})["token"] == first.token


def test_a_live_process_elsewhere_is_judged_by_its_heartbeat_alone(existing: Path, dead_pid: int) -> None:
    write_lock(existing, host=ELSEWHERE, pid=dead_pid, heartbeat=time.time() - STALE_SECONDS + 60)
    with pytest.raises(LockHeldError, match=f"process {dead_pid} on {ELSEWHERE} \\(last sign of life 84[0-9] s ago"):
        RunLock(existing).acquire()


@pytest.mark.parametrize("content", ["", "[]", '{"host"', "{}"])
def test_a_lock_that_does_not_say_who_holds_it_is_stale(existing: Path, content: str) -> None:
    existing.write_text(content)
    with RunLock(existing) as lock:
        assert (read_lock(existing) or {})["token"] == lock.token


def test_the_lock_of_a_dead_process_is_taken_over(existing: Path, dead_pid: int) -> None:
    write_lock(existing, pid=dead_pid)
    with RunLock(existing) as lock:
        assert lock.taken_over == f"took over the lock of process {dead_pid} on {HERE}, which is gone"
        assert (read_lock(existing) or {})["token"] == lock.token
        assert [p.name for p in existing.parent.iterdir()] == ["run.lock"]


@pytest.mark.parametrize("host", [HERE, ELSEWHERE])
def test_a_lock_without_a_heartbeat_is_taken_over(existing: Path, host: str) -> None:
    """On this host the process id lives, but may have been used again."""
    write_lock(existing, host=host, heartbeat=time.time() - STALE_SECONDS - 1)
    with RunLock(existing) as lock:
        assert lock.taken_over == f"took over the lock of process {os.getpid()} on {host}, which is gone"


def test_the_process_of_another_user_counts_as_alive() -> None:
    assert not is_stale({"host": HERE, "pid": 1, "heartbeat": time.time()})


@pytest.mark.parametrize("pid", [None, "7", 0, -1, 2.5])
def test_what_is_no_process_id_counts_as_dead(pid: Any) -> None:
    assert is_stale({"host": HERE, "pid": pid, "heartbeat": time.time()})


def test_a_takeover_that_was_itself_interrupted_is_no_obstacle(existing: Path, dead_pid: int) -> None:
    write_lock(existing, pid=dead_pid)
    write_lock(existing.with_name("run.lock.takeover"), pid=dead_pid, token="third")
    with RunLock(existing) as lock:
        assert (read_lock(existing) or {})["token"] == lock.token
        assert [p.name for p in existing.parent.iterdir()] == ["run.lock"]


def test_a_takeover_in_progress_is_respected(existing: Path, dead_pid: int) -> None:
    write_lock(existing, pid=dead_pid)
    write_lock(existing.with_name("run.lock.takeover"))
    with pytest.raises(LockHeldError, match=f"process {os.getpid()} on {HERE}"):
        RunLock(existing).acquire()
    assert (read_lock(existing) or {})["token"] == "another"


# Every access to a file takes its time, as over a network, so that processes come between each other's.
RACE = """
import os, random, sys, time
from pathlib import Path
from pico_contract.lock import LockHeldError, RunLock

def slow(operation):
    def run(*arguments, **options):
        time.sleep(random.uniform(0, 0.004))
        try:
            return operation(*arguments, **options)
        finally:
            time.sleep(random.uniform(0, 0.004))
    return run

for name in ("link", "rename", "replace", "unlink"):
    setattr(os, name, slow(getattr(os, name)))
Path.read_text = slow(Path.read_text)

path, dead, processes = Path(sys.argv[1]), sys.argv[2], 12

def compete(gates, results):
    random.seed(os.getpid())
    start, end = gates
    lock = RunLock(path)
    os.read(start, 1)  # returns when the parent closes its end
    try:
        lock.acquire()
        answer = b"w"
    except LockHeldError:
        answer = b"l"
    except BaseException:
        answer = b"e"
    os.write(results, answer)
    os.read(end, 1)  # the winner lives until all have tried
    os._exit(0)

for number in range(25):
    path.write_text('{"host": "%s", "pid": %s, "heartbeat": 0, "token": "stale"}' % (os.uname().nodename, dead))
    (start, go), (end, finish), (answers, results) = os.pipe(), os.pipe(), os.pipe()
    for _ in range(processes):
        if os.fork() == 0:
            os.close(go), os.close(finish)
            compete((start, end), results)
    os.close(go)
    said = b"".join(os.read(answers, 1) for _ in range(processes))
    os.close(finish)
    for _ in range(processes):
        os.wait()
    for descriptor in (start, end, answers, results):
        os.close(descriptor)
    print(said.count(b"w"), said.count(b"l"), sorted(p.name for p in path.parent.iterdir()))
"""


def test_of_many_processes_one_takes_a_stale_lock_over(existing: Path, dead_pid: int, script: Script) -> None:
    rounds = script(RACE, existing, str(dead_pid)).splitlines()
    assert rounds == ["1 11 ['run.lock']"] * 25


def test_a_link_whose_answer_was_lost_counts_as_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As over NFS, where the retry of a link that was made is refused."""
    link = os.link

    def answered_late(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError

    monkeypatch.setattr(os, "link", answered_late)
    with RunLock(path) as lock:
        assert (read_lock(path) or {})["token"] == lock.token


def test_a_draft_that_the_holder_sweeps_away_is_written_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link, swept = os.link, []

    def sweep_first(source: Path, target: Path) -> None:
        if not swept:
            swept.append(source)
            source.unlink()
        link(source, target)

    monkeypatch.setattr(os, "link", sweep_first)
    with RunLock(path) as lock:
        assert (read_lock(path) or {})["token"] == lock.token
    assert len(swept) == 1


def test_a_directory_that_nothing_was_written_to_goes_with_the_lock(path: Path) -> None:
    with RunLock(path):
        assert path.parent.is_dir()
    assert not path.parent.exists()
    with RunLock(path):
        (path.parent / "run.json").write_text("{}")
    assert [file.name for file in path.parent.iterdir()] == ["run.json"]


def test_a_directory_that_was_there_before_stays(existing: Path) -> None:
    existing.parent.chmod(0o770)
    with RunLock(existing):
        pass
    assert existing.parent.stat().st_mode & 0o777 == 0o770


def test_many_processes_that_make_and_remove_the_directory_take_turns(path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from pico_contract.lock import LockHeldError, RunLock
path, end, taken = Path(sys.argv[1]), time.monotonic() + 2, 0
while time.monotonic() < end:
    try:
        with RunLock(path): taken += 1
    except LockHeldError: pass
print(taken)
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) for _ in range(3)]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert (min(map(int, said)) > 0, list(path.parent.glob("*"))) == (True, [])


def test_a_directory_that_goes_with_another_lock_is_made_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link, gone = os.link, []

    def go_first(source: Path, target: Path) -> None:
        if not gone:
            gone.append(source)
            source.unlink()
            path.parent.rmdir()
        link(source, target)

    monkeypatch.setattr(os, "link", go_first)
    with RunLock(path) as lock:
        assert (read_lock(path) or {})["token"] == lock.token


def test_a_beat_renews_the_heartbeat_when_due(path: Path) -> None:
    with RunLock(path) as lock:
        first = read_lock(path)
        assert first is not None
        assert lock.beat() is False
        assert read_lock(path) == first
        assert lock.beat(every=0.0) is True
        second = read_lock(path)
        assert second is not None
        assert second["heartbeat"] > first["heartbeat"]
        assert second["token"] == first["token"]


def test_a_beat_after_a_takeover_raises_and_leaves_the_new_holder_alone(path: Path) -> None:
    """C6.3: the former holder stops."""
    with RunLock(path) as lock:
        write_lock(path, host=ELSEWHERE, pid=4321)
        held = read_lock(path)
        with pytest.raises(LockHeldError, match=f"was taken over by process 4321 on {ELSEWHERE}"):
            lock.beat(every=0.0)
    assert read_lock(path) == held


def test_a_beat_without_a_lock_raises(path: Path) -> None:
    with RunLock(path) as lock:
        path.unlink()
        with pytest.raises(LockHeldError, match="taken over by somebody who removed it"):
            lock.beat(every=0.0)
    assert not path.exists()
