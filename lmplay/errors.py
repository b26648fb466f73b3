"""Say in one line what a user did wrong."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message is one line: what is wrong and what to do. Commands print it and exit with status 2."""


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
