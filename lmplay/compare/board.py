"""Show several trainings at once on stderr: a line for each on a terminal, elsewhere a line now and then."""

import sys
import time

from lmplay.train.progress import UNKNOWN_WIDTH, terminal_columns

LINE_SECONDS = 10.0


class Board:
    """The lines of what is being trained, by label. It shows nothing until `show` is called."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}
        self._drawn = 0  # lines on the terminal
        self._last: dict[str, float] = {}
        self._printed: dict[str, str] = {}
        self._terminal = sys.stderr.isatty()

    def show(self, label: str, text: str) -> None:
        """Show how a training stands."""
        before = self._lines.get(label)
        if not text or before == text:
            return
        self._lines[label] = text
        if self._terminal:
            self._draw()
        elif time.monotonic() - self._last.get(label, -LINE_SECONDS) >= LINE_SECONDS:
            self._last[label], self._printed[label] = time.monotonic(), text
            print(f"{label}: {text}", file=sys.stderr, flush=True)

    def drop(self, label: str) -> None:
        """Leave the last line of a training that has ended above the others."""
        text = self._lines.pop(label, "")
        self._last.pop(label, None)
        if text and text != self._printed.pop(label, ""):
            self.say(f"{label}: {text}")

    def say(self, text: str) -> None:
        """Print a line above the others."""
        self._clear()
        print(text, file=sys.stderr, flush=True)
        self._draw()

    def close(self) -> None:
        """Take the lines away."""
        self._clear()
        self._lines.clear()

    def _clear(self) -> None:
        if self._drawn:
            sys.stderr.write(f"\x1b[{self._drawn}F\x1b[J")
            self._drawn = 0

    def _draw(self) -> None:
        if not self._terminal or not self._lines:
            return
        self._clear()
        width = (terminal_columns() or UNKNOWN_WIDTH) - 1
        for label, text in self._lines.items():
            sys.stderr.write(fitted(f"{label}: ", text, width) + "\n")
        sys.stderr.flush()
        self._drawn = len(self._lines)


def fitted(label: str, text: str, width: int) -> str:
    """Return a line of at most `width` columns: without the figures after the loss, the last first, then cut."""
    parts = text.split(" | ")
    for number in range(len(parts) - 2, 0, -1):  # the time left is the last
        if len(label) + len(" | ".join(parts)) > width and "loss" not in parts[number]:
            del parts[number]
    return (label + " | ".join(parts))[:width]
