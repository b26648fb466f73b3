"""Note what the code of an experiment takes from its surroundings: files, the time, random numbers without a seed.

None of these is part of a run. With another file, or at another time, the same code is another model.
"""

import datetime
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lmplay.crashes import PACKAGE

DEPTH = 8  # calls between the experiment's code and what opens the file: np.load, torch.load and the like
OF_TIME = {id(getattr(time, name)): f"time.{name}" for name in (
    "time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time",
    "process_time_ns", "localtime", "gmtime", "ctime", "strftime",
)}  # fmt: skip
OF_DATES = ("datetime.now", "datetime.today", "datetime.utcnow", "date.today")
WITHOUT_SEED = ("os.urandom", "torch.Generator.seed")
CODE_SUFFIXES = (".py", ".pyc", ".so", ".pyd")

_files: dict[str, dict[Path, str]] = {}  # of each package: what it has opened, and where
_noting = 0
_hooked = False


def files_read(package: str) -> dict[Path, str]:
    """Return the files that the code of a package has opened for reading within `files_noted`, and `FILE:LINE` of it.

    Without code, and without what the system or an installed package has brought.
    """
    return dict(_files.get(package, {}))


@contextmanager
def files_noted() -> Iterator[None]:
    """Note within the block which files the code of experiments opens."""
    global _noting, _hooked
    if not _hooked:
        sys.addaudithook(_opened)  # it stays
        _hooked = True
    _noting += 1
    try:
        yield
    finally:
        _noting -= 1


@contextmanager
def clock_noted(noted: dict[str, str]) -> Iterator[None]:
    """Note within the block, in this thread, which clock or source of random numbers the code of experiments asks.

    noted: gets the name of what was asked, and `FILE:LINE`.
    """

    def called(frame: FrameType, event: str, function: Any) -> None:
        if event != "c_call":
            return
        name = _asked(function)
        if name is not None and name not in noted and (caller := _caller(frame)) is not None:
            noted[name] = caller[1]

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        yield
    finally:
        sys.setprofile(before)


def _asked(function: Any) -> str | None:
    """Return what a function that Python calls in C is, if it tells the time or draws random numbers without a seed."""
    name = getattr(function, "__qualname__", "")
    if name in OF_DATES and isinstance(getattr(function, "__self__", None), type(datetime.date)):
        return name
    if function is os.urandom:
        return "os.urandom"
    return "torch.Generator.seed" if name == "Generator.seed" else OF_TIME.get(id(function))


def _opened(event: str, arguments: tuple[Any, ...]) -> None:
    """Take an event of Python's: it calls this for each of them, and for every file that is opened."""
    if not _noting or event != "open":
        return
    path, mode, flags = arguments
    writes = not mode.startswith("r") if isinstance(mode, str) else flags & (os.O_WRONLY | os.O_RDWR)
    if writes or not isinstance(path, (str, bytes)):
        return
    caller = _caller(sys._getframe(1))
    if caller is None:
        return
    file = Path(os.path.abspath(os.fsdecode(path)))
    if file.suffix not in CODE_SUFFIXES and not _of_the_system(file) and os.path.isfile(file):
        _files.setdefault(caller[0], {}).setdefault(file, caller[1])


def _caller(frame: FrameType | None) -> tuple[str, str] | None:
    """Return the package of the experiment's code that is near above a frame, and its `FILE:LINE`; None: none is.

    An import is none of its doing.
    """
    for _ in range(DEPTH):
        if frame is None or frame.f_code.co_filename.startswith("<frozen importlib"):
            return None
        module = frame.f_globals.get("__name__", "")
        if module.startswith(PACKAGE):
            return module.partition(".")[0], f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        frame = frame.f_back
    return None


def _of_the_system(file: Path) -> bool:
    roots = {"/proc", "/sys", "/dev", sys.prefix, sys.base_prefix}
    return any(file.is_relative_to(root) for root in roots)
