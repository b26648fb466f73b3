"""Lay out the phases of a plan in windows and steps, with their learning rates."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from lmplay.data.order import SampleOrder
from lmplay.data.plan_spec import Plan
from lmplay.data.plans import load_plan, plan_from_files
from lmplay.data.prepare import Prepared
from lmplay.runs.names import COOLDOWN, COOLDOWN_STEPS, N_SCHEDULED, N_STEPS
from lmplay.runs.settings import Settings
from lmplay.train.schedules import Schedule, cooled_down


@dataclass(frozen=True)
class Cooldown:
    """A linear cool-down that was asked for.

    start: its first step, in its phase. n_steps: its length. level: the fraction of the peak learning rate at which it
    starts. windows: where the phase then ends.
    """

    start: int
    n_steps: int
    level: float
    windows: int

    def as_json(self) -> dict[str, Any]:
        """Return what run.json holds of it."""
        return {"start": self.start, COOLDOWN_STEPS: self.n_steps, "level": self.level, "windows": self.windows}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Cooldown":
        """Read what run.json holds of it."""
        return cls(
            start=record["start"], n_steps=record[COOLDOWN_STEPS], level=record["level"], windows=record["windows"]
        )


@dataclass(frozen=True)
class Phase:
    """A phase of the plan as this run trains it: `n_windows` of `order`, in `n_steps` steps.

    n_scheduled: length of the learning-rate schedule in steps, if it differs from n_steps.
    """

    name: str
    datasets: list[str]
    order: SampleOrder
    n_windows: int
    n_steps: int
    n_scheduled: int | None = None
    cooldown: Cooldown | None = None

    def as_json(self) -> dict[str, Any]:
        """Return what run.json holds of it."""
        record = {"name": self.name, N_STEPS: self.n_steps}
        if self.n_scheduled not in (None, self.n_steps):
            record[N_SCHEDULED] = self.n_scheduled
        return record | ({COOLDOWN: self.cooldown.as_json()} if self.cooldown else {})

    def rate(self, settings: Settings, step: int, position: float | None = None) -> float:
        """Return the fraction of the peak learning rate for step `step` of this phase.

        position: where its schedule stands, in steps, if not at `step`.
        """
        if self.cooldown and step >= self.cooldown.start:
            past = (step - self.cooldown.start) / self.cooldown.n_steps
            return cooled_down(self.cooldown.level, past, settings.final_lr_fraction)
        return Schedule.of(settings).factor(step if position is None else position, self.n_scheduled or self.n_steps)


def choose_plan(settings: Settings) -> Plan:
    """Return the plan of --training-plan, or one made of --data."""
    return plan_from_files(list(settings.data)) if settings.data else load_plan(settings.training_plan)


def lay_out(settings: Settings, plan: Plan, data: Prepared, context_len: int) -> list[Phase]:
    """Return the plan's phases, cut where --max-tokens or --max-steps ends; the last goes on for --extra-steps."""
    windows_left = math.inf if settings.max_tokens is None else math.ceil(settings.max_tokens / context_len)
    steps_left = math.inf if settings.max_steps is None else settings.max_steps
    phases: list[Phase] = []
    for phase in plan.phases:
        order = SampleOrder(phase, data.train, context_len, settings.seed, settings.shuffle)
        n_windows = min(order.n_windows, windows_left, steps_left * settings.batch_size)
        if n_windows < 1:
            break
        n_steps = math.ceil(n_windows / settings.batch_size)
        phases.append(
            Phase(name=phase.name, datasets=phase.datasets, order=order, n_windows=int(n_windows), n_steps=n_steps)
        )
        windows_left -= n_windows
        steps_left -= n_steps
    if phases:
        last = phases[-1]
        phases[-1] = dataclasses.replace(
            last,
            n_windows=last.n_windows + settings.extra_steps * settings.batch_size,
            n_steps=last.n_steps + settings.extra_steps,
        )
    return phases
