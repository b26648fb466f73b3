"""Lay out the phases of a plan in windows and steps, with their learning rates."""

import math
from dataclasses import dataclass

from lmplay.data.order import SampleOrder
from lmplay.data.plan_spec import Plan
from lmplay.data.plans import load_plan, plan_from_files
from lmplay.data.prepare import Prepared
from lmplay.runs.settings import Settings
from lmplay.train.schedules import cooled_down, learning_rate_factor


@dataclass
class Phase:
    """One step of the plan as this run trains it: `n_windows` of `order`, in `n_updates` updates.

    Its learning rates are laid out for `n_scheduled` updates, if not for all. `cooldown`: the linear one that was called for: over
    `updates`, from `level` at update `start` on, so that the step ends after `windows`.
    """

    name: str
    datasets: list[str]
    order: SampleOrder
    n_windows: int
    n_updates: int
    n_scheduled: int | None = None
    cooldown: dict | None = None


def choose_plan(settings: Settings) -> Plan:
    """The plan of --training-plan, or one made of --data."""
    return plan_from_files(list(settings.data)) if settings.data else load_plan(settings.training_plan)


def lay_out(settings: Settings, plan: Plan, data: Prepared, context_len: int) -> list[Phase]:
    """The plan's steps in windows and updates, cut where --max-tokens or --max-steps ends; the last goes on for --extra-steps."""
    windows_left = math.inf if settings.max_tokens is None else math.ceil(settings.max_tokens / context_len)
    updates_left = math.inf if settings.max_steps is None else settings.max_steps
    phases = []
    for spec in plan.phases:
        order = SampleOrder(spec, data.train, context_len, settings.seed, settings.shuffle)
        n_windows = min(order.n_windows, windows_left, updates_left * settings.batch_size)
        if n_windows < 1:
            break
        n_updates = math.ceil(n_windows / settings.batch_size)
        phases.append(Phase(spec.name, spec.datasets, order, int(n_windows), n_updates))
        windows_left -= n_windows
        updates_left -= n_updates
    if phases:
        phases[-1].n_windows += settings.extra_steps * settings.batch_size
        phases[-1].n_updates += settings.extra_steps
    return phases


def rate(settings: Settings, phase: Phase, step: int, position: float | None = None) -> float:
    """The part of the peak learning rate for update `step` of a phase; `position`: where its schedule stands, if not there."""
    if phase.cooldown and step >= phase.cooldown["start"]:
        return cooled_down(
            phase.cooldown["level"],
            (step - phase.cooldown["start"]) / phase.cooldown["updates"],
            settings.final_lr_fraction,
        )
    return scheduled_factor(settings, step if position is None else position, phase.n_scheduled or phase.n_updates)


def same_rates(settings: Settings, one: int, other: int, n_updates: int) -> bool:
    return one == other or all(
        math.isclose(scheduled_factor(settings, step, one), scheduled_factor(settings, step, other), rel_tol=1e-9)
        for step in range(n_updates)
    )


def scheduled_factor(settings: Settings, step: float, total: float) -> float:
    return learning_rate_factor(
        settings.lr_schedule,
        step,
        total,
        settings.warmup_steps,
        settings.cooldown_fraction,
        settings.final_lr_fraction,
        settings.warmup_from,
        settings.restart_steps,
        settings.restart_shrink,
    )
