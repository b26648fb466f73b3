"""Count without torch._dynamo, torch's compiler, whose import takes as long as torch's own.

Functions of torch that hide from the compiler import it when they are first called, just to hide. Where it has not been
imported, they find a stand-in that lets them be called as they are. The names are private to torch, tried on 2.11 and
2.13; were they others, only the time would be lost.
"""

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import torch

from lmplay.crashes import PACKAGE

NAME = "torch._dynamo"
P = ParamSpec("P")
R = TypeVar("R")

_one_thread = threading.RLock()  # another one would take the stand-in for the compiler


class Needed(Exception):
    """Something asks for more of the compiler than to hide from it."""


class _StandIn(ModuleType):
    """What is imported as torch._dynamo. Its config is the real one, which fake tensors read."""

    def __init__(self) -> None:
        super().__init__(NAME)
        self.__path__ = [str(Path(torch.__file__).with_name("_dynamo"))]
        self.hiding: list[Any] = []

    def disable(self, function: Any, *args: Any, **options: Any) -> Any:
        """Return a function that hides from the compiler: as it is."""
        self.hiding.append(function)
        return function

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise Needed(name)


@contextmanager
def _stand_in() -> Iterator[None]:
    there = _StandIn()
    sys.modules[NAME] = there
    try:
        yield
    finally:
        for function in there.hiding:
            function.__dict__.pop("__dynamo_disable", None)
            package = function.__module__.partition(".")[0]
            if package.startswith(PACKAGE):  # an experiment that was loaded meanwhile hides from nothing: forget it
                for name in [name for name in sys.modules if name.partition(".")[0] == package]:
                    del sys.modules[name]
        for name in [name for name in sys.modules if name == NAME or name.startswith(f"{NAME}.")]:
            del sys.modules[name]
        torch.__dict__.pop("_dynamo", None)


def without_compiler(work: Callable[P, R]) -> Callable[P, R]:
    """Return `work` so that it does without the compiler where that has not been imported, if it can."""

    @functools.wraps(work)
    def spared(*args: P.args, **kwargs: P.kwargs) -> R:
        with _one_thread:
            if NAME in sys.modules:
                return work(*args, **kwargs)
            try:
                with _stand_in():
                    return work(*args, **kwargs)
            except Needed:
                return work(*args, **kwargs)

    return spared
