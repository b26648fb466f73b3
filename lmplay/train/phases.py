"""Lay out the phases of a plan in windows and steps, with their learning rates."""

import dataclasses
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lmplay.data.order import SampleOrder
from lmplay.data.plan_spec import NEWEST_ORDER, PhaseSpec, Plan
from lmplay.data.plans import load_plan, plan_from_files
from lmplay.data.prepare import Prepared
from lmplay.data.prompts import read_prompts
from lmplay.errors import UserError
from lmplay.runs.names import COOLDOWN, COOLDOWN_STEPS, N_SCHEDULED, N_STEPS
from lmplay.runs.setting import flag_of
from lmplay.runs.settings import Settings
from lmplay.train.schedules import Schedule, cooled_down

DATA_SETTINGS = ("data_separator", "text_column", "validation_data")


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

    n_scheduled: length of the learning-rate schedule in steps, if it differs from n_steps. n_in_plan: the windows that
    the plan gives it. is_open: only a time limit ends it; n_steps are then those of the plan.
    """

    name: str
    datasets: list[str]
    order: SampleOrder
    n_windows: int
    n_steps: int
    n_scheduled: int | None = None
    cooldown: Cooldown | None = None
    n_in_plan: int | None = None
    is_open: bool = False

    @property
    def end(self) -> float:
        """The windows after which it ends; infinity if only a time limit ends it."""
        return math.inf if self.is_open else self.n_windows

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

    def progress(self, position: float) -> float:
        """Return what share of its schedule is past at a position of it, in steps: 0 to 1."""
        return min(1.0, position / (self.n_scheduled or self.n_steps))

    def schedule_position(self, step: int, seconds: float, max_minutes: float | None) -> float:
        """Return where the schedule stands: at `step`, or where a time limit has it that ends the run before the data.

        seconds: of training so far. In a phase that nothing else ends, the time decides alone.
        """
        if max_minutes is None:
            return step
        by_time = self.n_steps * min(1.0, seconds / (max_minutes * 60))
        return by_time if self.is_open else max(step, by_time)


def multiplied(plan: Plan, times: float | None) -> list[PhaseSpec]:
    """Return the phases, those in epochs `times` as long. Raises UserError where none is, or its text has no more."""
    if times is None:
        return plan.phases
    if not any(phase.epochs for phase in plan.phases):
        raise UserError(f"--epochs: no phase of the plan {plan.name} is given in epochs; --max-tokens sets its length")
    for phase in plan.phases:
        if phase.epochs and times > 1 and (task := _task_of(plan, phase)):
            raise UserError(f"--epochs: {task} is a synthetic task, which is not repeated: raise its 'max_documents'")
    return [
        dataclasses.replace(phase, epochs=float(Fraction(str(phase.epochs)) * Fraction(str(times))))
        if phase.epochs
        else phase
        for phase in plan.phases
    ]


def _task_of(plan: Plan, phase: PhaseSpec) -> str | None:
    """Return the name of a phase's first dataset that a synthetic task makes, None if there is none."""
    return next((name for name in phase.datasets if plan.datasets[name].kind == "synthetic"), None)


def choose_plan(settings: Settings) -> Plan:
    """Return the plan of --training-plan, or one made of --data, with the prompts of --prompts.

    Raises UserError, also for a flag that goes with --data.
    """
    plan = _named_plan(settings)
    if settings.prompts is None:
        return plan
    if settings.prompts == "-":
        raise UserError("--prompts takes a file: a run that goes on reads it again")
    return dataclasses.replace(plan, prompts=tuple(read_prompts(settings.prompts)))


def _named_plan(settings: Settings) -> Plan:
    if settings.data:
        return plan_from_files(
            list(settings.data),
            separator=settings.data_separator,
            column=settings.text_column,
            held_out=settings.validation_data,
        )
    for name in DATA_SETTINGS:
        if getattr(settings, name) not in (None, ()):
            raise UserError(f"{flag_of(name)} goes with --data: a plan's file says the same of its datasets")
    return load_plan(settings.training_plan)


def lay_out(settings: Settings, plan: Plan, data: Prepared, context_len: int) -> list[Phase]:
    """Return the plan's phases as a budget has them: cut where it ends, or the last one lengthened to reach it.

    A lengthened phase goes on into further epochs. That of a synthetic task ends where its data do, and so do all in a
    run of the first data order. The last phase goes on for --extra-steps. Raises UserError.
    """
    windows_left = math.inf if settings.max_tokens is None else -(-settings.max_tokens // context_len)
    steps_left = math.inf if settings.max_steps is None else settings.max_steps
    version = settings.data_order or NEWEST_ORDER
    specs = multiplied(plan, settings.epochs)
    phases: list[Phase] = []
    for spec in specs:
        order = SampleOrder(spec, data.train, context_len, settings.seed, shuffle=settings.shuffle, version=version)
        goes_on = spec is specs[-1] and version > 1 and not _task_of(plan, spec)
        budget = min(windows_left, steps_left * settings.batch_size)
        n_windows = budget if goes_on and budget < math.inf else min(order.n_windows, budget)
        if n_windows < 1:
            break
        n_steps = -(-int(n_windows) // settings.batch_size)
        phases.append(
            Phase(
                name=spec.name,
                datasets=spec.datasets,
                order=order,
                n_windows=int(n_windows),
                n_steps=n_steps,
                n_in_plan=order.n_windows,
                is_open=goes_on and budget == math.inf and settings.max_minutes is not None,
            )
        )
        windows_left -= n_windows
        steps_left -= n_steps
    if phases and settings.extra_steps:
        phases[-1] = _longer(phases[-1], settings.extra_steps, settings.batch_size)
    return phases


def _longer(phase: Phase, n_steps: int, batch_size: int) -> Phase:
    """Return the phase with more steps."""
    return dataclasses.replace(phase, n_windows=phase.n_windows + n_steps * batch_size, n_steps=phase.n_steps + n_steps)
