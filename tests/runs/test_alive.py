"""What run.json says of the process that trains, and whether a run lives."""

import os
import socket
import subprocess
import sys
import time

import pytest

import lmplay
from lmplay.runs import alive
from lmplay.runs.run import Run
from support.making_runs import make_run


def run_of(status="running", **process):
    info = {"status": status}
    alive.note_process(info, 7, ended=False)
    info["process"].update(process)
    return Run(None, info)


def long_ago(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - seconds))


@pytest.fixture(scope="module")
def dead() -> int:
    """The pid of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.process
def test_a_process_that_ended_was_killed(dead):
    assert alive.state_of(run_of(pid=dead)) == "killed"


@pytest.mark.skipif(sys.platform != "linux", reason="the time of a process's start is read from /proc")
def test_another_process_under_the_same_number():
    assert alive.state_of(run_of(clock_ticks=1)) == "killed"


@pytest.mark.parametrize(
    "status, process, state",
    [
        ("running", {}, "running"),
        ("running", {"pid": "nonsense"}, "killed"),
        ("running", {"host": "elsewhere"}, "running"),
        ("running", {"host": "elsewhere", "heartbeat": long_ago(3600)}, "killed"),
        ("running", {"host": "elsewhere", "heartbeat": None}, "killed"),
        ("stopped", {"pid": "nonsense"}, "stopped"),
        ("crashed", {}, "crashed"),
        ("hung", {}, "hung"),
        ("failed", {}, "failed"),
        ("finished", {}, "finished"),
        (None, {}, ""),
    ],
)
def test_states(status, process, state):
    assert alive.state_of(run_of(status, **process)) == state


def test_runs_that_do_not_know_their_process_are_believed():
    for process in (None, {}, 3):
        info = {"status": "running"} if process is None else {"status": "running", "process": process}
        assert alive.state_of(Run(None, info)) == ("killed" if process == {} else "running")


def test_what_is_noted():
    info = {}
    alive.note_process(info, 3, ended=False)
    noted = info["process"]
    assert noted["pid"] == os.getpid() and noted["host"] == socket.gethostname()
    assert noted["step"] == 3 and "ended" not in noted
    alive.note_process(info, 4, ended=True)
    assert noted["step"] == 4 and noted["ended"] == noted["heartbeat"] >= noted["started"]


def test_a_heartbeat_is_written_every_so_often(tmp_path, monkeypatch):
    run = Run(make_run(tmp_path / "run"), {"status": "running"})
    heart = alive.Heartbeat(run)
    before = run.file.read_bytes()
    heart.give(1)
    assert run.file.read_bytes() == before
    monkeypatch.setattr(alive, "HEARTBEAT_SECONDS", 0.0)
    heart.give(2)
    assert b"heartbeat" in run.file.read_bytes()
    run.folder = tmp_path / "gone"
    heart.give(3)  # no room now: it trains on


def test_list_runs_tells_killed(tmp_path):
    make_run(tmp_path / "out" / "run", status="running", process={"pid": 0, "host": socket.gethostname()})
    make_run(tmp_path / "out" / "done")
    found = lmplay.list_runs(tmp_path / "out").set_index("name")["status"]
    assert found["run"] == "killed" and found["done"] == "finished"
