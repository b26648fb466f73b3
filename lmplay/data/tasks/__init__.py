"""Synthetic tasks: documents made on the spot from a seed, with their entropy and best accuracy known by construction.

A task is a row of TASKS: a function that makes one document, the settings that make it harder or easier, and its
figures. Document number i depends on the task, its settings, the seed and i only. Training and validation documents
have different numbers. So they come from the same distribution and are never the same draw.

The tasks of arrows.py have a known arrow of time; those of probes.py and reasoning.py tell architectures apart.
"""

import hashlib
import inspect
import random
from collections.abc import Iterator
from itertools import count
from typing import Any

from lmplay.data.tasks import arrows, parts, probes, reasoning, task
from lmplay.data.tasks.task import MAP_SEED, Settings, Task
from lmplay.data.types import Document
from lmplay.errors import did_you_mean

TASKS: dict[str, Task] = arrows.TASKS | probes.TASKS | reasoning.TASKS


def documents(
    name: str, settings: Settings | None, seed: int | None, start: int, stop: int | None
) -> Iterator[tuple[str, Document]]:
    """Yield (task, document) for the documents number `start` to `stop` (None: without end)."""
    full = full_settings(name, settings)
    key = f"{name}\0{sorted(full.items())}\0{seed or 0}"
    for number in count(start) if stop is None else range(start, stop):
        yield name, TASKS[name].make(full, random.Random(f"{key}\0{number}"))


def full_settings(name: str, settings: Settings | None) -> Settings:
    """Return a task's settings: those of the plan above the defaults."""
    return TASKS[name].settings | (settings or {})


def entropy(name: str, settings: Settings | None) -> float:
    """Return the entropy in nats per document (see Task)."""
    return TASKS[name].entropy(full_settings(name, settings))


def chance(name: str, settings: Settings | None) -> float | None:
    """Return the accuracy of guessing (see Task)."""
    guess = TASKS[name].chance
    return guess and guess(full_settings(name, settings))


def ceiling(name: str, settings: Settings | None) -> float | None:
    """Return the best possible accuracy (see Task)."""
    best = TASKS[name].ceiling
    return best and best(full_settings(name, settings))


def check_settings(name: str, given: Any) -> Settings:
    """Return a plan's settings of a task as they are. Raises ValueError with what is wrong with them."""
    if not isinstance(given, dict):
        raise ValueError("must be an object in braces")
    defaults = TASKS[name].settings
    for key, value in given.items():
        if key not in defaults:
            raise ValueError(f"the task {name!r} has no setting {key!r}.{did_you_mean(key, defaults)}")
        if type(value) is not type(defaults[key]):
            wanted = "true or false" if isinstance(defaults[key], bool) else "a whole number"
            raise ValueError(f"{key} must be {wanted}, not {value!r}")
        least = 0 if key == MAP_SEED else 1
        if value < least and not isinstance(value, bool):
            raise ValueError(f"{key} must be at least {least}, not {value}")
    if fault := TASKS[name].fault(defaults | given):
        raise ValueError(fault)
    return given


def code_of(name: str) -> str:
    """Return a hash of the source that makes the task's documents: its own module and what the tasks share."""
    own = inspect.getmodule(TASKS[name].make)
    assert own is not None
    return hashlib.sha256("".join(inspect.getsource(module) for module in (own, parts, task)).encode()).hexdigest()
