"""End a training that hangs, and say where it does."""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from lmplay import crashes
from lmplay.errors import HUNG, STOPPED, Hung, UserError
from lmplay.train.guard import Guard, guard
from lmplay.train.stopping import Wishes, say

SECONDS = 1800.0  # without a sign of life
AFTER_WISH = 60.0  # the same, once the training is to stop
UNHEARD = 1.0  # seconds of a wish that nobody has heard: what is computed takes long
TIMES_WAITING = 3  # as long for a process that waits for another: that one hangs, and is to say so
TIMES_LONGEST = 10  # what took 1 minute before may take 10 now
VARIABLE = "LMPLAY_HANG_SECONDS"


def hang_seconds() -> float:
    """Return after how many seconds without a sign of life a training hangs; 0: never. Raises UserError."""
    text = os.environ.get(VARIABLE, "")
    try:
        seconds = float(text or SECONDS)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise UserError(f"{VARIABLE} is the number of seconds after which a training hangs, 0 for never, not {text!r}")
    return seconds


class Watchdog:
    """Watches a training in a thread of its own.

    seconds: without a beat for so long the training hangs, or for 10 times the longest time between two beats so far;
    0: it never does. hangs: called in that thread, with the seconds; it ends the process. what: begins the line that is
    said where that thread can't run any more and another process ends this one, "": none does; folder: of the run, None
    where another process writes it. waits: tells whether this process waits for another one. says: whether this
    process says that it stops late.
    """

    def __init__(
        self,
        seconds: float,
        hangs: Callable[[float], None],
        *,
        what: str = "",
        folder: Path | None = None,
        waits: Callable[[], bool] = lambda: False,
        says: bool = True,
    ):
        self.seconds, self._hangs, self._waits = seconds, hangs, waits
        self._what, self._folder = what, folder
        self._wished: float | None = None  # when a wish to stop came that nobody has heard yet
        self.says = says
        self._beats = 0
        self._longest = 0.0
        self._resting = False
        self._ended = threading.Event()

    def beat(self) -> None:
        """Give a sign of life."""
        self._beats += 1

    def hurry(self) -> None:
        """Allow less time from now on: the training has heard that it is to stop."""
        self.seconds = min(self.seconds, AFTER_WISH)
        self._wished = None

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Expect no sign of life within the block, where no model computes."""
        self._resting = True
        try:
            yield
        finally:
            self._resting = False
            self.beat()

    def watching(self, context: Callable[[], AbstractContextManager]) -> Callable[[], AbstractContextManager]:
        """Return `context` so that entering it is a sign of life."""

        def enter() -> AbstractContextManager:
            self.beat()
            return context()

        return enter

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Watch within the block."""
        with _signals_to_read() as signals:
            if not self.seconds and signals is None:
                yield
                return
            listening = guard(self.seconds, self._what, self._folder) if self._what and self.seconds else None
            thread = threading.Thread(target=self._watch, args=(signals, listening), daemon=True)
            thread.start()
            try:
                yield
            finally:
                self._ended.set()
                if signals is not None:
                    signals.wake()
                thread.join()
                if listening is not None:
                    listening.end()

    def _watch(self, signals: "_Signals | None", listening: Guard | None) -> None:
        """Count the time without a beat, in ticks: a process that was halted has not hung meanwhile."""
        wishes = Wishes(self._wish, lambda number: os._exit(STOPPED))
        tick = min(1.0, self.seconds / 8) if self.seconds else 1.0
        heard, still, last = self._beats, 0.0, time.monotonic()
        while not self._ended.is_set():
            numbers = signals.wait(tick) if signals is not None else b""
            if signals is None:
                self._ended.wait(tick)
            if listening is not None:
                listening.beat()
            for number in numbers:
                wishes(number)  # where C code keeps the training from hearing them itself
            now = time.monotonic()
            self._say_late(now)
            still, last = still + min(now - last, 2 * tick), now
            if self._resting or heard != self._beats:
                self._longest = max(self._longest, 0.0 if self._resting else still)
                heard, still = self._beats, 0.0
            elif self._is_hang(still):
                self.says = False  # who ends it says why, and may signal it
                self._hangs(still)
                still = 0.0

    def _is_hang(self, still: float) -> bool:
        if not self.seconds:
            return False
        return still > max(self.seconds, TIMES_LONGEST * self._longest) * (TIMES_WAITING if self._waits() else 1)

    def _wish(self, number: int) -> None:
        self._wished = time.monotonic()

    def _say_late(self, now: float) -> None:
        """Say that a wish to stop waits for what is computed, once."""
        if self._wished is None or now - self._wished < UNHEARD:
            return
        self._wished = None
        if self.says:
            self.says = False
            say(b"\nstopping once what is computed now is done; once more leaves at once\n")


@contextlib.contextmanager
def watched(what: str) -> Iterator[None]:
    """Watch a block that gives no sign of life. Raises Hung if it hangs, and ends the process if that does not help."""
    positions: list[str] = []
    thread = threading.get_ident()

    def interrupt(seconds: float) -> None:
        positions.append(crashes.position_of_thread(thread))
        if len(positions) > 1 or not hasattr(signal, "pthread_kill"):
            print(f"{what} hung at {positions[0]}", file=sys.stderr, flush=True)
            os._exit(HUNG)
        signal.pthread_kill(thread, signal.SIGINT)  # KeyboardInterrupt in the main thread

    try:
        with Watchdog(hang_seconds(), interrupt, what=what)():
            yield
    except KeyboardInterrupt:
        if positions:
            raise Hung(f"{what} hung at {positions[0]}") from None
        raise


class _Signals:
    """The signals that come to this process, as they come: Python's own handlers wait for the main thread."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        for end in (self.reader, self.writer):
            os.set_blocking(end, False)

    def wait(self, seconds: float) -> bytes:
        """Return the numbers of the signals that have come, or none after `seconds`."""
        select.select([self.reader], [], [], seconds)
        try:
            return os.read(self.reader, 64).replace(b"\0", b"")
        except BlockingIOError:
            return b""

    def wake(self) -> None:
        """End the waiting."""
        with contextlib.suppress(OSError):  # full of signals: it has woken
            os.write(self.writer, b"\0")


@contextlib.contextmanager
def _signals_to_read() -> Iterator[_Signals | None]:
    """Yield the signals that come within the block, None where the system or the thread allows none."""
    if os.name != "posix" or threading.current_thread() is not threading.main_thread():
        yield None
        return
    signals = _Signals()
    before = signal.set_wakeup_fd(signals.writer, warn_on_full_buffer=False)
    try:
        yield signals
    finally:
        signal.set_wakeup_fd(before)
        os.close(signals.reader)
        os.close(signals.writer)
