"""What a user did wrong, said in one line."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message is one line that says what is wrong and what to do; commands print it and exit with status 2."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest of `names`, or all of them."""
    names = sorted(names)
    if not names:
        return ""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Known: {', '.join(names)}."
