"""Say in one line what a user did wrong, and how a command ended in a number that a script can read."""

import difflib
from collections.abc import Iterable
from typing import Any

# The exit statuses of all commands; docs/runs.md has them as a table
DONE = 0
BAD_INPUT = 2
CRASHED = 3
DIVERGED = 4
LOCKED = 5
HUNG = 6
OUT_OF_TIME = 7
STOPPED = 130


class UserError(Exception):
    """Bad input. The message is one line: what is wrong and what to do. Commands print it and exit with `status`."""

    status = BAD_INPUT


class ModelCrashed(UserError):
    """The code of an experiment raised an error."""

    status = CRASHED


class Diverged(UserError):
    """The loss or a gradient is not finite."""

    status = DIVERGED


class Locked(UserError):
    """Another process is training the run, or makes what is asked for."""

    status = LOCKED


class Hung(ModelCrashed):
    """A training took no step for so long that it was ended."""

    status = HUNG


class OutOfTime(UserError):
    """A limit of time was reached before what was asked for. `result` is what can be said so far, None if nothing."""

    status = OUT_OF_TIME
    result: Any = None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return the end of an error message about an unknown name: the nearest of `names`, or all of them."""
    names = sorted(names)
    if not names:
        return ""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Known: {', '.join(names)}."


def check_at_least(least: int, **values: int | float | None) -> None:
    """Raise UserError for the first of the flags `values` (by name; None: not given) below `least`."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
