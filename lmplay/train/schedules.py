"""Learning-rate schedules: pure functions of how far the training is."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from lmplay.runs.settings import Settings


@dataclass(frozen=True)
class Schedule:
    """The shape of the learning rate, as a fraction of its peak.

    A linear warm-up over `warmup_steps` comes first, then, by `name`:

    constant: the peak. cosine, linear: down to `final` along half a cosine or a line.
    wsd (warm-up, stable, decay; arXiv 2404.06395, 2405.18392): constant, then linearly down to `final` over the last
    `cooldown_fraction` of all steps.
    cosine_restarts (arXiv 1608.03983): half a cosine down to `final` every `restart_steps` steps. Each, `final` too, is
    `restart_shrink` times the one before.

    The warm-up lasts at most a quarter of all steps, and its first step has a rate above 0: 1 / warmup_steps. With
    `warmup_from` it is as in papers instead: from that fraction of the peak at step 0 to the peak at step
    `warmup_steps`, however short the run. A cool-down that comes before its end starts from the rate reached.
    """

    name: str
    warmup_steps: int
    cooldown_fraction: float = 0.2
    final: float = 0.0
    warmup_from: float | None = None
    restart_steps: int = 0
    restart_shrink: float = 1.0

    @classmethod
    def of(cls, settings: Settings) -> "Schedule":
        """Return the schedule of a run's settings."""
        return cls(
            name=settings.lr_schedule,
            warmup_steps=settings.warmup_steps,
            cooldown_fraction=settings.cooldown_fraction,
            final=settings.final_lr_fraction,
            warmup_from=settings.warmup_from,
            restart_steps=settings.restart_steps,
            restart_shrink=settings.restart_shrink,
        )

    def factor(self, step: float, total: float) -> float:
        """Return the fraction of the peak learning rate for step `step` (from 0) of `total`."""
        warmup = self.warmup_steps if self.warmup_from is not None else min(self.warmup_steps, total // 4)
        start = self._cooldown_start(total, warmup) if self.name == "wsd" else warmup
        if step < start or self.name == "constant":
            return self._warming_up(step, warmup)
        if self.name == "cosine_restarts":
            number, since = divmod(step - warmup, self.restart_steps)
            return self.restart_shrink**number * _between(self.final, 1.0, since / self.restart_steps, _half_cosine)
        past = min(max(step - start, 0.0) / max(total - start, 1.0), 1.0)
        peak = self._warming_up(start, warmup) if self.name == "wsd" else 1.0
        return _between(self.final, peak, past, _half_cosine if self.name == "cosine" else _line)

    def before_cooldown(self, step: int, total: float) -> bool:
        """Tell whether step `step` (from 0) of `total` is the first of a wsd schedule's cool-down, after others."""
        warmup = self.warmup_steps if self.warmup_from is not None else min(self.warmup_steps, total // 4)
        return self.name == "wsd" and 0 < step < total and step == math.ceil(self._cooldown_start(total, warmup))

    def _cooldown_start(self, total: float, warmup: float) -> float:
        start = total * (1.0 - self.cooldown_fraction)
        return start if self.warmup_from is not None else max(start, warmup)

    def _warming_up(self, step: float, warmup: float) -> float:
        if self.warmup_from is not None and warmup:
            return self.warmup_from + (1.0 - self.warmup_from) * min(step / warmup, 1.0)
        return min((step + 1) / max(warmup, 1), 1.0)


def cooled_down(level: float, past: float, final: float) -> float:
    """Return the rate on a line from `level` to `final`, `past` (0 to 1) of the way."""
    return _between(final, level, min(past, 1.0), _line)


def _between(low: float, high: float, past: float, shape: Callable[[float], float]) -> float:
    return low + (high - low) * shape(past)


def _half_cosine(past: float) -> float:
    return (1.0 + math.cos(math.pi * past)) / 2.0


def _line(past: float) -> float:
    return 1.0 - past
