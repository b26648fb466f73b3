"""What is seen while a run trains: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time

from tqdm import tqdm

from lmplay.text import short

LINE_SECONDS = 10.0


class Progress:
    """Shows plan step, loss, accuracy, validation loss, tokens/s, tokens so far and the time left, on stderr."""

    def __init__(self, total: int, done: int, tokens: int):
        self._terminal = sys.stderr.isatty()
        self._started, self._done_before = time.monotonic(), done
        self._tokens_before, self._tokens = tokens, tokens
        self._total, self._done = total, done
        self._last_line = self._started
        self._plan_step, self._facts = "", {}
        self._limit_left: float | None = None
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
        plan_step: str,
        done: int,
        loss: float | None,
        accuracy: float | None,
        tokens: int,
        seconds_left: float | None,
    ) -> None:
        """`done` updates are behind us; the last had a loss, or None. `seconds_left`: of a time limit, if one will end the run first."""
        if loss is not None:
            self._facts |= {"loss": f"{loss:.3f}", "acc": f"{accuracy:.1%}"}
        self._plan_step, self._done, self._tokens, self._limit_left = plan_step, done, tokens, seconds_left
        if self._terminal:
            self._bar.set_description_str(self._text(), refresh=False)
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._line()

    def validated(self, loss: float) -> None:
        self._facts["val"] = f"{loss:.3f}"

    def waiting(self, what: str) -> None:
        """Says what the run is doing while it does not train."""
        if self._terminal:
            self._bar.set_description_str(f"{what} | {self._text()}")

    def close(self, plan_step: str = "") -> None:
        self._plan_step = plan_step or self._plan_step
        if self._terminal:
            self._bar.set_description_str(self._text(), refresh=False)
        elif plan_step:
            self._line()
        self._bar.close()

    def _line(self) -> None:
        self._last_line = time.monotonic()
        print(self._text(), file=sys.stderr, flush=True)

    def _text(self) -> str:
        elapsed = max(time.monotonic() - self._started, 1e-9)
        new = self._done - self._done_before
        left = (self._total - self._done) * elapsed / new if new else None
        if self._limit_left is not None and left is not None:
            left = min(left, self._limit_left)
        facts = " ".join(f"{name} {value}" for name, value in self._facts.items())
        rate = f"{short((self._tokens - self._tokens_before) / elapsed)} tok/s"
        time_left = "" if left is None else f" | {tqdm.format_interval(left)} left"
        return (
            f"{self._plan_step} {self._done}/{self._total}: {facts} | {rate} | {short(self._tokens)} tokens{time_left}"
        )
