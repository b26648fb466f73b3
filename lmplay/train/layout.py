"""What a run will train on and be called, found out without loading its experiment or torch."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

from lmplay.data.order import SampleOrder
from lmplay.data.plans import Plan, load_plan, plan_from_files
from lmplay.data.prepare import Prepared
from lmplay.train.settings import Settings

LONGEST_NAME = 200


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
    for step in plan.steps:
        order = SampleOrder(step, data.train, context_len, settings.seed, settings.shuffle)
        n_windows = min(order.n_windows, windows_left, updates_left * settings.batch_size)
        if n_windows < 1:
            break
        n_updates = math.ceil(n_windows / settings.batch_size)
        phases.append(Phase(step.name, step.datasets, order, int(n_windows), n_updates))
        windows_left -= n_windows
        updates_left -= n_updates
    if phases:
        phases[-1].n_windows += settings.extra_steps * settings.batch_size
        phases[-1].n_updates += settings.extra_steps
    return phases


def run_name(settings: Settings, name: str, variant: str, plan: str) -> str:
    """The experiment, its variant, the plan, and whatever decides the result and is not as by default."""
    return file_name([f"{name}-{variant}", plan, *not_by_default(settings)])


def not_by_default(settings: Settings) -> list[str]:
    """The settings that decide the result and are not as by default, in words for a file's name."""
    parts = [*settings.set]
    if settings.context_len:
        parts.append(f"context-len={settings.context_len}")
    if settings.tokenizer:
        parts.append(Path(settings.tokenizer).name)
    if settings.initial_model:
        source = Path(settings.initial_model)
        of_run = f"{source.parent.parent.name}-" if source.parent.name == "checkpoints" else ""
        parts.append(f"from={of_run}{source.name}")
    for key, value in settings.identity.items():
        if key not in ("exp", "amp", "initial_model") and value != getattr(Settings(), key):
            parts.append(
                f"{key.replace('_', '-')}={value:g}" if isinstance(value, float) else f"{key.replace('_', '-')}={value}"
            )
    if settings.amp:
        parts.append("amp")
    return parts


def budgets(settings: Settings) -> list[str]:
    """The limits that were set, in words for a file's name."""
    return [
        f"{key.replace('_', '-')}={value:g}"
        for key in ("max_tokens", "max_steps", "max_minutes", "extra_steps")
        if (value := getattr(settings, key))
    ]


def file_name(parts: list[str]) -> str:
    """The parts as one name that every disk takes, not too long."""
    name = "".join(c if c.isalnum() or c in "._=-+" else "-" for c in "_".join(parts))
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
