"""Synthetic tasks: documents made on the spot from a seed, with what can be reached on them known by construction.

A task is a row of TASKS: a function that makes one document, the settings that make it harder or easier, and its figures. Document
number i depends on the task, its settings, the seed and i only, so that training and validation documents, which have different
numbers, come from the same distribution and are never the same draw.

The tasks of arrows.py have a known arrow of time; those of probes.py tell architectures apart.
"""

import hashlib
import inspect
import random
from collections.abc import Iterator
from itertools import count
from typing import Protocol

from lmplay.data.tasks import arrows, probes
from lmplay.data.tasks.task import MAP_SEED, Document, Task
from lmplay.errors import did_you_mean


class TaskSpec(Protocol):
    """A plan's dataset, as far as a task asks for it: `source` is the task's name."""

    @property
    def source(self) -> str: ...

    @property
    def settings(self) -> dict | None: ...

    @property
    def seed(self) -> int | None: ...


def documents(spec: TaskSpec, start: int, stop: int | None) -> Iterator[tuple[str, Document]]:
    """(where, document) of the documents number `start` to `stop` (None: without end)."""
    task, settings = TASKS[spec.source], full_settings(spec)
    key = f"{spec.source}\0{sorted(settings.items())}\0{spec.seed or 0}"
    for number in count(start) if stop is None else range(start, stop):
        yield spec.source, task.make(settings, random.Random(f"{key}\0{number}"))


def full_settings(spec: TaskSpec) -> dict:
    """The task's settings, those of the plan above the defaults."""
    return TASKS[spec.source].settings | (spec.settings or {})


def entropy(spec: TaskSpec) -> float:
    """Nats a document (see Task)."""
    return TASKS[spec.source].entropy(full_settings(spec))


def chance(spec: TaskSpec) -> float | None:
    """The accuracy of guessing (see Task)."""
    guess = TASKS[spec.source].chance
    return guess and guess(full_settings(spec))


def ceiling(spec: TaskSpec) -> float | None:
    """The best accuracy that is possible (see Task)."""
    best = TASKS[spec.source].ceiling
    return best and best(full_settings(spec))


def check_settings(task: str, given) -> dict:
    """The settings of a plan as they are; raises ValueError with what is wrong with them."""
    if not isinstance(given, dict):
        raise ValueError("must be an object in braces")
    defaults = TASKS[task].settings
    for name, value in given.items():
        if name not in defaults:
            raise ValueError(f"the task {task!r} has no setting {name!r}.{did_you_mean(name, defaults)}")
        if type(value) is not type(defaults[name]):
            raise ValueError(
                f"{name} must be {'true or false' if isinstance(defaults[name], bool) else 'a whole number'}, not {value!r}"
            )
        if value < (name != MAP_SEED) and not isinstance(value, bool):
            raise ValueError(f"{name} must be at least {int(name != MAP_SEED)}, not {value}")
    if fault := TASKS[task].fault(defaults | given):
        raise ValueError(fault)
    return given


def code_of(task: str) -> str:
    """A hash of the file that makes the task's documents."""
    return hashlib.sha256(inspect.getsource(inspect.getmodule(TASKS[task].make)).encode()).hexdigest()


_DETERMINED = {"entropy": lambda settings: 0.0, "ceiling": lambda settings: 1.0}


TASKS: dict[str, Task] = arrows.TASKS | {name: Task(**_DETERMINED | row) for name, row in probes.TASKS.items()}
