"""Worker processes: they never run the user's `__main__` again, and they end with their parent."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

_hiding = threading.Lock()


@contextlib.contextmanager
def main_hidden() -> Iterator[None]:
    """Hide within the block what `__main__` was made from, so that a process that starts does not import it.

    multiprocessing imports the parent's `__main__` in each child. There a script without `if __name__ == "__main__"`
    would run again; a prompt and a notebook have no file to import. Nothing that a worker is given lives in `__main__`.
    """
    main = sys.modules["__main__"]
    with _hiding:
        hidden: dict[str, Any] = {
            name: main.__dict__.pop(name) for name in ("__file__", "__spec__") if name in main.__dict__
        }
        main.__spec__ = None  # multiprocessing asks for it without a default
        try:
            yield
        finally:
            del main.__spec__
            main.__dict__.update(hidden)


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Let processes that start within the block hear no Ctrl-C, which reaches each process of a terminal.

    It would meet them as they import. Who has started them hears it, and ends them.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class SpawnedWorker(SpawnProcess):
    """A fresh process that does not import the parent's `__main__`."""

    def start(self) -> None:
        """Start the process."""
        with main_hidden(), _deaf_to_interrupts():
            super().start()


class SpawningContext(SpawnContext):
    """Starts fresh processes: a context for multiprocessing and ProcessPoolExecutor."""

    Process = SpawnedWorker


if sys.platform == "linux":
    from multiprocessing.context import ForkServerContext, ForkServerProcess

    class ForkedWorker(ForkServerProcess):
        """A process that is forked from a clean one, and does not import the parent's `__main__`."""

        def start(self) -> None:
            """Start the process."""
            with main_hidden(), _deaf_to_interrupts():
                super().start()

    class ForkingContext(ForkServerContext):
        """Forks processes from one that has imported the preloaded modules and done nothing else."""

        Process = ForkedWorker


def worker_context(preload: Sequence[str] = ()) -> "SpawningContext | ForkingContext":
    """Return the multiprocessing context for workers.

    With `preload` and where the system allows it, workers are forked from a process that has imported these modules.
    """
    if not preload or sys.platform != "linux":
        return SpawningContext()
    context = ForkingContext()
    context.set_forkserver_preload(list(preload))
    return context


def end_with_parent() -> None:
    """End this worker process, at once, when the process that started it ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # as if it had been killed: the next start goes on from the last checkpoint
