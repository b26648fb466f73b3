"""The commands, a module for each. While their modules are imported, Ctrl-C ends them without a traceback."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

from lmplay.errors import STOPPED


def _leave(number: int, frame: object) -> None:
    os._exit(STOPPED)


def _is_command() -> bool:
    """Tell whether this process runs one of the commands, and not a script or a notebook of somebody's."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    as_module = name == "-m" and any(word.startswith("lmplay.cli.") for word in sys.orig_argv)
    return as_module or name.startswith(("lmp_", "lmp-"))


@contextlib.contextmanager
def interrupts_raised() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt within the block, in a command."""
    if signal.getsignal(signal.SIGINT) is not _leave:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _leave)  # Python ends, and what it takes down may be imported half


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    with contextlib.suppress(ValueError):  # another thread than the main one may not
        signal.signal(signal.SIGINT, _leave)
