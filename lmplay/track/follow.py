"""Send what a run records to a tracker, while it is trained or afterwards. The training knows nothing of it.

What was sent is noted in the run's folder, so a run that goes on continues the same tracked run.
"""

import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lmplay.errors import Locked, UserError
from lmplay.files import make_folder, read_json, write_json
from lmplay.runs import names
from lmplay.runs.alive import state_of
from lmplay.runs.run import Run, read_run
from lmplay.runs.verdicts import verdicts_on
from lmplay.track.machine_use import machine_use
from lmplay.track.recorded import Event, Recorded, verdict_event
from lmplay.track.trackers import Tracker, open_tracker

POLL_SECONDS = 5.0
MOST_FAILURES = 20  # one after another, before a follower gives up
MOST_AT_END = 2  # of a run that has ended
LOCK_SECONDS = 60.0


@dataclass
class Sent:
    """What a tracker has of a run. id: of the tracked run, None before it is begun. step: the last one that it has."""

    id: str | None = None
    step: int = -1
    verdicts: list[str] = field(default_factory=list)  # their times


class Sender:
    """Sends one run to one tracker."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name
        self.note = folder / names.TRACK / f"{name}.json"
        self.recorded = Recorded(folder)
        if self.note.parent.is_symlink():
            raise UserError(f"{self.note.parent} is a link, and a run is not written through links: remove it")
        self.sent = _read(self.note)
        self.tracker: Tracker | None = None
        self.waiting: list[Event] = []
        self.horizon = -1  # the last step that was there at the last look: all of what belongs to it is written now

    def send(self, run: Run, state: str) -> None:
        """Send what is new. Whatever the tracker raises comes through, and the same is sent at the next call."""
        ended = state != "running"
        self.waiting = sorted([*self.waiting, *self.recorded.read(run, ended)])
        now = [event for event in self.waiting if ended or event.step <= self.horizon]
        last = max([event.step for event in self.waiting], default=self.horizon)
        new = [event for event in now if event.step > self.sent.step]
        if new and not ended:
            new[-1].scalars |= machine_use(run)
        judged = verdicts_on(run, "candidate") if ended else []
        verdicts = [one for one in judged if str(one.get("time")) not in self.sent.verdicts]
        if new or verdicts or self.sent.id is None:
            self._log(run, new, verdicts)
        self.waiting, self.horizon = self.waiting[len(now) :], last

    def _log(self, run: Run, new: list[Event], verdicts: list[dict[str, Any]]) -> None:
        """Send events, and verdicts at the last step; begin the tracked run if need be."""
        if self.tracker is None:
            self.tracker = open_tracker(self.name, run, self.sent.id)
            self.sent.id = self.tracker.id
            self._keep()
        last = max([self.sent.step, *(event.step for event in new)])
        self.tracker.log([*new, *(verdict_event(run, one, last) for one in verdicts)])
        self.sent.step = last
        self.sent.verdicts += [str(one.get("time")) for one in verdicts]
        self._keep()

    def close(self, state: str) -> None:
        """Close the tracked run."""
        if self.tracker is not None:
            self.tracker.close(state)

    def _keep(self) -> None:
        make_folder(self.note.parent)
        write_json(self.note, asdict(self.sent))


def send_run(run: Run, name: str) -> None:
    """Send a run as it stands to a tracker. Raises UserError where the tracker fails."""
    try:
        with _lock(run.folder, name).acquire(timeout=LOCK_SECONDS):
            sender = Sender(run.folder, name)
            state = state_of(run)
            sender.send(run, "stopped" if state == "running" else state)
            sender.close(state)
    except Timeout:
        raise Locked(f"{run.folder} is being sent to {name} by another process: it gets all without you") from None
    except UserError:
        raise
    except Exception as error:  # a tracker may raise anything
        raise UserError(f"{run.folder} can't be sent to {name}: {type(error).__name__}: {error}") from error


def follow(folder: Path, name: str, ended: threading.Event | None = None) -> None:
    """Send a run to a tracker until it has ended. Errors go to stderr, the tracker's log, and it is tried again.

    ended: is set when the training ends, so that the last look comes at once.
    """
    try:
        with _lock(folder, name).acquire(timeout=LOCK_SECONDS):
            _follow(folder, name, ended or threading.Event())
    except Timeout:
        print("another process sends this run already", file=sys.stderr)


def _follow(folder: Path, name: str, ended: threading.Event) -> None:
    sender, failures, state = Sender(folder, name), 0, "running"
    while state == "running" or failures:
        try:
            run = read_run(folder)
            state = state_of(run)
            sender.send(run, state)
            failures = 0
        except Exception:  # a tracker may raise anything
            failures += 1
            print(traceback.format_exc(), file=sys.stderr, flush=True)
            if failures >= (MOST_FAILURES if state == "running" else MOST_AT_END):
                break
        if ended.is_set() and (state == "running" or failures):  # it wakes nobody any more
            time.sleep(POLL_SECONDS)
        elif state == "running" or failures:
            ended.wait(POLL_SECONDS)
    sender.close(state)


def _lock(folder: Path, name: str) -> FileLock:
    locks = folder.absolute().parent / names.LOCKS
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / f"track_{name}_{folder.absolute().name}"[:200])


def _read(note: Path) -> Sent:
    """Return what was noted; nothing was sent if the note can't be read."""
    try:
        content: Any = read_json(note)
        sent = Sent(content["id"], int(content["step"]), [str(one) for one in content["verdicts"]])
    except (OSError, ValueError, LookupError, TypeError, OverflowError):
        return Sent()
    return sent if isinstance(sent.id, str) else Sent()
