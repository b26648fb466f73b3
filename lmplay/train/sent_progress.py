"""Send how a run trains to the process that started it, which shows it beside others."""

import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

from lmplay.train.progress import Progress

SECONDS = 0.5  # between two figures that are sent


@dataclass(frozen=True)
class Shown:
    """How a run trains now, in one line."""

    text: str


class SentProgress(Progress):
    """Sends the line that it would show."""

    def __init__(self, sender: Connection) -> None:
        super().__init__()
        self._sender, self._sent = sender, 0.0
        self._terminal = False

    def note(self, text: str) -> None:
        """Send a line of its own."""
        self._send(text)

    def waiting(self, what: str) -> None:
        """Send what the run is doing while it does not train."""
        if self._bar is not None:
            self._send(self._text(f"{what} | "))

    def _is_due(self) -> bool:
        return time.monotonic() - self._sent >= SECONDS

    def _line(self) -> None:
        self._send(self._text())

    def _send(self, text: str) -> None:
        self._sent = time.monotonic()
        self._sender.send(Shown(text))
