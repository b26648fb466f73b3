"""Show how a run trains: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import threading
import time

from tqdm import tqdm

from lmplay.text import count

LINE_SECONDS = 10.0


class Progress:
    """Shows phase, loss, accuracy, validation loss, tokens per second, tokens so far and the time left, on stderr.

    Until it is started, and after it was closed, it shows nothing.
    """

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._terminal = sys.stderr.isatty()
        self._phase = ""
        self._facts: dict[str, str] = {}
        self._limit_left: float | None = None
        self._done = self._tokens = 0

    def start(self, total: int, done: int, tokens: int) -> None:
        """Start the clock after `done` of `total` steps, with `tokens` trained on so far."""
        self._total, self._done, self._done_before = total, done, done
        self._tokens, self._tokens_before = tokens, tokens
        self._started = self._last_line = time.monotonic()
        tqdm.set_lock(threading.RLock())  # its own lock is one of processes, which a killed one would leave behind
        self._bar = tqdm(
            total=total,
            initial=done,
            dynamic_ncols=True,
            disable=not self._terminal,
            leave=True,
            bar_format="{percentage:3.0f}%|{bar:12}| {desc}",
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
        """Show that `done` steps are taken. loss: of the last, None if it scored no token.

        seconds_left: until a time limit ends the run, None without one.
        """
        if loss is not None:
            self._facts |= {"loss": f"{loss:.3f}", "acc": f"{accuracy:.1%}"}
        self._phase, self._done, self._tokens, self._limit_left = phase, done, tokens, seconds_left
        self._total = max(self._total, done)  # a time limit may let a run go on beyond its plan
        if self._bar is None:
            return
        if self._terminal:
            self._bar.set_description_str(self._text(), refresh=False)
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._line()

    def validated(self, loss: float, phase: str = "") -> None:
        """Show this validation loss from now on. phase: whose documents it is of, where phases have their own."""
        self._facts["val"] = f"{f'({phase}) ' if phase else ''}{loss:.3f}"

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        tqdm.write(line, file=sys.stderr)

    def waiting(self, what: str) -> None:
        """Say what the run is doing while it does not train."""
        if self._bar is not None and self._terminal:
            self._bar.set_description_str(f"{what} | {self._text()}")

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

    def _line(self) -> None:
        self._last_line = time.monotonic()
        print(self._text(), file=sys.stderr, flush=True)

    def _text(self) -> str:
        elapsed = max(time.monotonic() - self._started, 1e-9)
        new = self._done - self._done_before
        left = (self._total - self._done) * elapsed / new if new else None
        if self._limit_left is not None and left is not None:
            left = min(left, self._limit_left) if left else self._limit_left
        facts = " ".join(f"{name} {value}" for name, value in self._facts.items())
        rate = f"{count((self._tokens - self._tokens_before) / elapsed)} tok/s"
        time_left = "" if left is None else f" | {tqdm.format_interval(left)} left"
        return f"{self._phase} {self._done}/{self._total}: {facts} | {rate} | {count(self._tokens)} tokens{time_left}"
