"""Parts of the probes: their alphabet, the assembly of a document, and checks of settings."""

import string
from collections.abc import Callable

from lmplay.data.tasks.task import Settings
from lmplay.data.types import Document

BLANK, MARK, EQUALS = ".", "|", "="
SYMBOLS = (
    string.ascii_letters + string.digits + "".join(c for c in string.punctuation if c not in BLANK + MARK + EQUALS)
)

Part = tuple[str, bool]  # a text, and whether it is scored
Fault = Callable[[Settings], str | None]


def document(*parts: Part) -> Document:
    """Return parts as segments, with neighbors joined that are both scored or both not.

    The last segment is never scored, so that the end of the document is not.
    """
    segments: Document = []
    for text, scored in (*parts, ("", False)):
        if segments and segments[-1][1] == scored:
            segments[-1] = segments[-1][0] + text, scored
        else:
            segments.append((text, scored))
    return segments


def no_entropy(s: Settings) -> float:
    """Return 0 nats: each answer follows from what comes before it."""
    return 0.0


def certain(s: Settings) -> float:
    """Return an accuracy of 1: each answer follows from what comes before it."""
    return 1.0


def at_most(**limits: int) -> Fault:
    """Return a check that settings are not above their limits."""

    def fault(s: Settings) -> str | None:
        return next((f"{name} must be at most {limit}" for name, limit in limits.items() if s[name] > limit), None)

    return fault


def all_of(*faults: Fault) -> Fault:
    """Return a check that reports the first fault that one of several checks finds."""
    return lambda s: next(filter(None, (fault(s) for fault in faults)), None)


def one_of(name: str) -> Callable[[Settings], float]:
    """Return the accuracy of guessing one of as many answers as the setting `name` says."""
    return lambda s: 1 / s[name]
