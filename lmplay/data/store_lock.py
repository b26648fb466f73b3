"""Build a store in one process at a time, and clean up after builders that were killed."""

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lmplay.files import locks_needed

PROGRESS = "progress.json"  # in the folder of a store that is being written: how far it is
KEPT_DAYS = 7  # what a killed builder has left, for the next one to go on with


@contextlib.contextmanager
def only_builder(folder: Path, label: str = "", wait: bool = True) -> Iterator[bool]:
    """Hold the lock of `folder`, which the system takes back from a process that dies; yield whether it is held."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        with locks_needed(folder.parent, "set LMPLAY_DATA to a folder on another disk"):
            lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            yield False
            return
        print(f"{label or folder.name}: another process prepares this dataset; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield True
    finally:
        lock.release()


def partial_of(folder: Path) -> Path:
    """Return the folder in which a store is written before it has its name."""
    return folder.with_name(f".{folder.name}.partial")


def remove_leftovers(parent: Path) -> None:
    """Remove what killed builders of any store have left, unless somebody may still go on with it.

    The folders of living builders are locked.
    """
    for partial in parent.glob(".*.partial"):
        with only_builder(parent / partial.name[1 : -len(".partial")], wait=False) as dead:
            if dead and not _can_go_on(partial):
                shutil.rmtree(partial, ignore_errors=True)


def _can_go_on(partial: Path) -> bool:
    try:
        return time.time() - (partial / PROGRESS).stat().st_mtime < KEPT_DAYS * 24 * 3600
    except OSError:
        return False
