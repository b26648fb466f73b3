"""Understand the signals that ask a training to stop: a first wish, and a second one, of which it leaves at once."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from lmplay.errors import STOPPED

# Ctrl-C, kill and timeout, a closed terminal, a scheduler's warning. Windows has the first two only.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
ONE_WISH_SECONDS = 1.0  # what comes within them is one wish: `timeout` signals a group, and a parent passes it on


class Wishes:
    """Counts the wishes to stop; signals that come close together are one.

    first, second: what is called as the first and as each further wish comes, with the signal's number.
    """

    def __init__(self, first: Callable[[int], None], second: Callable[[int], None]):
        self._first, self._second = first, second
        self._since: float | None = None  # when the last wish began

    def __call__(self, number: int, frame: FrameType | None = None) -> None:
        """Take a signal."""
        since, now = self._since, time.monotonic()
        if since is not None and now - since < ONE_WISH_SECONDS:
            return
        self._since = now
        (self._first if since is None else self._second)(number)


@contextlib.contextmanager
def heard(wishes: Wishes) -> Iterator[None]:
    """Send the signals that ask to stop to `wishes` within the block.

    A hang-up that is ignored stays ignored: nohup asks for that. Python lets only the main thread hear signals, so in
    another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {
        number: handler
        for number in SIGNALS
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN or number in (signal.SIGINT, signal.SIGTERM)
    }
    for number in kept:
        signal.signal(number, wishes)
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def say(text: bytes) -> None:
    """Write to the terminal from within a signal's handler, where print could fail; without a reader nothing is said.

    What is printed while a signal comes is interrupted, so it goes straight to the terminal.
    """
    with contextlib.suppress(OSError):
        os.write(2, text)


def leave(number: int) -> NoReturn:
    """End the process at once."""
    os._exit(STOPPED)
