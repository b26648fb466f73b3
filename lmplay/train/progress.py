"""Show how a run trains: a bar on a terminal, a plain line now and then elsewhere."""

import os
import sys
import threading
import time
from collections import deque

from tqdm import tqdm

from lmplay.text import count

LINE_SECONDS = 10.0
RECENT_SECONDS = 20.0  # over which the rate and the time left are taken
SMOOTHING = 0.9  # the weight of the losses before, at each step
UNKNOWN_WIDTH = 80
BAR, NO_BAR = "{percentage:3.0f}%|{bar:12}| {desc}", "{desc}"
BAR_COLUMNS = 19  # of the bar and the percentage before the text
# What a narrow terminal leaves out, the least important first. The count of steps and the loss stay.
LEAST_IMPORTANT = ("mfu", "tokens", "accuracy", "phase", "rate", "bar", "validation", "left")


class Progress:
    """Shows phase, loss, accuracy, validation loss, tokens per second, tokens so far and the time left, on stderr.

    The loss is a mean over the last steps, the rate that of the last seconds.

    Until it is started, and after it was closed, it shows nothing.
    """

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._terminal = sys.stderr.isatty()
        self._phase = ""
        self._facts: dict[str, str] = {}
        self._limit_left: float | None = None
        self._done = self._tokens = self._total = 0
        self._loss = self._weight = 0.0
        self._recent: deque[tuple[float, int, int]] = deque()  # (when, steps, tokens)

    def start(self, total: int, done: int, tokens: int, of_a_token: float = 0.0) -> None:
        """Start the clock after `done` of `total` steps, with `tokens` trained on so far.

        of_a_token: the seconds that a token takes at the machine's peak; 0: it is not known.
        """
        self._of_a_token = of_a_token
        self._total, self._done, self._done_before = total, done, done
        self._tokens, self._tokens_before = tokens, tokens
        self._started = self._last_line = time.monotonic()
        tqdm.set_lock(threading.RLock())  # its own lock is one of processes, which a killed one would leave behind
        self._bar = tqdm(
            total=total,
            initial=done,
            dynamic_ncols=terminal_columns() > 0,
            nrows=20,  # tqdm shows nothing in a terminal of 0 rows
            ncols=UNKNOWN_WIDTH,  # where the terminal does not say how wide it is, as in some containers
            disable=not self._terminal,
            leave=True,
            bar_format=BAR,
            mininterval=0.2,
            file=sys.stderr,
        )

    def update(
        self,
        phase: str,
        done: int,
        *,
        loss: float | None,
        accuracy: float | None,
        tokens: int,
        seconds_left: float | None,
    ) -> None:
        """Show that `done` steps are taken. loss: of the last, None if it scored no token; a mean over steps is shown.

        seconds_left: until a time limit ends the run, None without one.
        """
        if loss is not None:
            self._smooth(loss)
            self._facts |= {"loss": f"{self._loss / self._weight:.3f}", "accuracy": f"{accuracy:.1%}"}
        self._phase, self._done, self._tokens, self._limit_left = phase, done, tokens, seconds_left
        self._total = max(self._total, done)  # a time limit may let a run go on beyond its plan
        if self._bar is None:
            return
        if self._terminal:
            self._bar.set_description_str(self._text(), refresh=False)
            self._bar.update(done - self._bar.n)
        elif self._is_due():
            self._line()

    def validated(self, loss: float, phase: str = "", part: bool = False) -> None:
        """Show this validation loss from now on.

        phase: whose documents it is of, where phases have their own. part: only some of them were scored.
        """
        of = ", ".join(filter(None, (phase, "part" if part else "")))
        self._facts["validation"] = f"{f'({of}) ' if of else ''}{loss:.3f}"

    def waiting(self, what: str) -> None:
        """Say what the run is doing while it does not train."""
        if self._bar is not None and self._terminal:
            self._bar.set_description_str(self._text(f"{what} | "))

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        with tqdm.external_write_mode(sys.stderr):
            print(text, file=sys.stderr, flush=True)

    def close(self, phase: str = "") -> None:
        """Show the last figures and leave them there. `phase`: the one trained last, "" if none was."""
        if self._bar is None:
            return
        self._phase = phase or self._phase
        if self._terminal:
            self._bar.set_description_str(self._text(), refresh=False)
        elif phase:
            self._line()
        self._bar.close()
        self._bar = None

    def _is_due(self) -> bool:
        return time.monotonic() - self._last_line >= LINE_SECONDS

    def _line(self) -> None:
        self._last_line = time.monotonic()
        print(self._text(), file=sys.stderr, flush=True)

    def _smooth(self, loss: float) -> None:
        """Take a loss into the exponential mean, whose weights add up to 1 from the first step on."""
        self._loss = SMOOTHING * self._loss + (1 - SMOOTHING) * loss
        self._weight = SMOOTHING * self._weight + 1 - SMOOTHING

    def _rates(self) -> tuple[float, float]:
        """Return (steps, tokens) per second over the last RECENT_SECONDS."""
        now = time.monotonic()
        if not self._recent:
            self._recent.append((self._started, self._done_before, self._tokens_before))
        self._recent.append((now, self._done, self._tokens))
        while len(self._recent) > 2 and self._recent[1][0] <= now - RECENT_SECONDS:
            self._recent.popleft()
        then, done, tokens = self._recent[0]
        elapsed = max(now - then, 1e-9)
        return (self._done - done) / elapsed, (self._tokens - tokens) / elapsed

    def _text(self, doing: str = "") -> str:
        """Return all figures; on a terminal as many as fit. doing: what is said before them."""
        per_second, tokens_per_second = self._rates()
        left = (self._total - self._done) / per_second if per_second else None
        if self._limit_left is not None and left is not None:
            left = min(left, self._limit_left) if left else self._limit_left
        parts = {
            "bar": " " * BAR_COLUMNS if self._terminal else "",  # in its place
            "doing": doing,
            "phase": f"{self._phase} ",
            "steps": f"{self._done}/{self._total}:",
            "loss": f" loss {self._facts['loss']}" if "loss" in self._facts else "",
            "accuracy": f" acc {self._facts['accuracy']}" if "accuracy" in self._facts else "",
            "validation": f" val {self._facts['validation']}" if "validation" in self._facts else "",
            "rate": f" | {count(tokens_per_second)} tok/s",
            "mfu": f", MFU {tokens_per_second * self._of_a_token:.1%}" if self._of_a_token else "",
            "tokens": f" | {count(self._tokens)} tokens",
            "left": "" if left is None else f" | {tqdm.format_interval(left)} left",
        }
        width = (terminal_columns() or UNKNOWN_WIDTH) - 1 if self._terminal else None
        kept = fitted(parts, width)
        has_bar = bool(kept.pop("bar", ""))
        if self._bar is not None:
            self._bar.bar_format = BAR if has_bar else NO_BAR
        return "".join(kept.values())[:width]


def terminal_columns() -> int:
    """Return how many columns the terminal says that it has; 0 if it does not."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 0


def fitted(parts: dict[str, str], width: int | None) -> dict[str, str]:
    """Return the parts of a line without the LEAST_IMPORTANT ones that do not fit into `width` (None: any)."""
    kept = dict(parts)
    for name in LEAST_IMPORTANT:
        if width is None or sum(map(len, kept.values())) <= width:
            break
        kept.pop(name, None)
    return kept
