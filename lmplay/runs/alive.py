"""Note in run.json which process trains a run, and tell by it whether the run lives."""

import contextlib
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lmplay.runs.names import ERROR, HEARTBEAT, PROCESS, STEP
from lmplay.runs.run import Run

HEARTBEAT_SECONDS = 20.0
FRESH_SECONDS = 300.0  # a run on another machine lives if it was heard of within them
ENDED = "ended"


def this_process() -> dict[str, Any]:
    """Return what run.json holds of the process that trains: its pid, its host, and when it began."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "clock_ticks": _ticks(os.getpid()),
        "started": time_now(),
    }


def note_process(info: dict[str, Any], step: int, *, ended: bool) -> None:
    """Note in the content of run.json that the process of its run lives, at which step, or that it has ended."""
    process = info.setdefault(PROCESS, this_process())
    process |= {HEARTBEAT: time_now(), STEP: step}
    if ended:
        process[ENDED] = process[HEARTBEAT]


class Heartbeat:
    """Writes to run.json every so often that the run lives."""

    def __init__(self, run: Run):
        self._run, self._last = run, time.monotonic()

    def give(self, step: int) -> None:
        """Note that the run lives, at `step`, if that was not noted a moment ago."""
        if time.monotonic() - self._last >= HEARTBEAT_SECONDS:
            self._last = time.monotonic()
            note_process(self._run.info, step, ended=False)
            with contextlib.suppress(OSError):  # a disk that is full now may have room later
                self._run.write()


def state_of(run: Run) -> str:
    """Return what a run is: "finished", "stopped", "failed" (not finite), "crashed", "hung", "running" or "killed".

    A run that says "running" is one whose process lives on this machine, or was heard of a moment ago from another;
    else it was killed. Runs made before the process was noted are believed. "" is a run without a status.
    """
    status = run.get("status")
    process = run.get(PROCESS)
    if status != "running" or not isinstance(process, dict):
        return status if isinstance(status, str) else ""
    if process.get("host") == socket.gethostname() and os.name == "posix":
        return "running" if _lives(process.get("pid"), process.get("clock_ticks")) else "killed"
    return "running" if _age(process.get(HEARTBEAT)) < FRESH_SECONDS else "killed"


def unfinished(run: Run) -> str:
    """Return in a few words how a run ended that did not reach its end, "" for every other run."""
    state, step = state_of(run), run.get("progress", STEP)
    if state not in ("killed", "crashed", "hung"):
        return ""
    process = run.get(PROCESS)
    step = process.get(STEP, step) if isinstance(process, dict) else step
    error = run.get(ERROR)
    return f"{state} after step {step}" + (f": {error}" if isinstance(error, str) and state != "killed" else "")


def time_now() -> str:
    """Return the time as run.json has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _age(written: Any) -> float:
    """Return how many seconds ago a time of run.json was."""
    try:
        return abs((datetime.now(UTC) - datetime.fromisoformat(written)).total_seconds())
    except (TypeError, ValueError):
        return float("inf")


def _lives(pid: Any, ticks: Any) -> bool:
    """Tell whether a process of this machine lives and is the one that began at `ticks`, where that is known."""
    if not isinstance(pid, int) or not 0 < pid < 2**31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    return ticks is None or _ticks(pid) in (ticks, None)


def _ticks(pid: int) -> int | None:
    """Return when a process began, in the system's clock ticks; None where that can't be read, or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
