"""Train a task on another machine than the one that asked for it, and say what becomes of it, bit by bit.

The task brings its code; prepared data come once per machine. Nothing here knows what carries it there and back.
"""

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lmplay import registry
from lmplay.data.carried import PIECE, CarriedData, Packed, unpack, unpack_store
from lmplay.errors import UserError
from lmplay.files import is_gone
from lmplay.runs import trust
from lmplay.runs.mirror import Change, Piece, Watched
from lmplay.runs.names import CODE, RUN_JSON
from lmplay.runs.run import read_run
from lmplay.runs.settings import NO_RECIPE, OWN_RECIPE, TUNED_RECIPE, Settings
from lmplay.train.worker import Apart, Outcome, Task, Worker

SECONDS = 2.0  # between two looks at what has changed
WORK = "lmplay-work"  # beside the system's temporary files: folders of tasks, by their processes' ids
RUNS = "runs"
EXPERIMENTS = "experiments"
KEPT = "kept"

Fetch = Callable[[object], bytes]


@dataclass(frozen=True)
class Trip:
    """A task with all that it takes along.

    code: {path: bytes} of its experiments, or of a run whose own copy is trained. runs: what there is of each run, and
    of the run that it begins with. stores: the prepared data, once a machine has asked for them.
    """

    task: Task
    data: CarriedData
    code: dict[str, bytes]
    runs: dict[str, list[Packed]]
    stores: dict[str, list[Packed]]


@dataclass(frozen=True)
class Lacking:
    """Nothing was trained: these stores are not on the machine, and the task has not brought them."""

    stores: list[str]


@dataclass(frozen=True)
class Ended:
    """How each run has ended."""

    outcomes: list[Outcome] | Apart


@dataclass(frozen=True)
class News:
    """How a task trains now, on which machine, and what has changed in the folders of its runs."""

    machine: str
    shown: str
    changes: list[tuple[str, Change]]


def train_away(trip: Trip, fetch: Fetch, wished: Callable[[], bool]) -> Iterator[News | Lacking | Ended]:
    """Train a task here, and yield what is new until its end.

    fetch: returns the bytes of what `put` made of them. wished: whether it is asked to save and end.
    """
    lacking = trip.data.lacking()
    if any(name not in trip.stores for name in lacking):
        yield Lacking(lacking)
        return
    for name in lacking:
        unpack_store(name, trip.stores[name], fetch)
    with _work_folder() as work:
        for path, content in trip.code.items():
            _write(work / path, content)
        for name, files in trip.runs.items():
            unpack(files, work / RUNS / name, fetch)
        if trip.task.kept is not None:
            trust.remember(work / KEPT / trip.task.kept.name)
        yield from _train(_here(trip, work), work, wished)


def _train(task: Task, work: Path, wished: Callable[[], bool]) -> Iterator[News | Lacking | Ended]:
    """Train in a process, and look every SECONDS at what it has written."""
    folders = {str(settings.run_name): work / RUNS / str(settings.run_name) for settings in task.runs}
    watched = {name: Watched(folder) for name, folder in folders.items()}
    worker, machine, asked = Worker(task, work), socket.gethostname(), False
    try:
        worker.start()
        alive = True
        while alive:
            until = time.monotonic() + SECONDS
            while alive and worker.receiver.poll(max(0.0, until - time.monotonic())):
                alive = worker.hear()
            if not asked and wished():
                asked = True
                worker.stop()
            changes = ((name, change) for name, one in watched.items() for change in one.changes())
            for some in _in_batches(changes):
                yield News(machine, worker.shown, some)
        yield Ended(worker.outcomes(asked))
    finally:
        worker.kill()


def _in_batches(changes: Iterable[tuple[str, Change]]) -> Iterator[list[tuple[str, Change]]]:
    """Yield changes in lists of at most about PIECE bytes each, at least one list."""
    some: list[tuple[str, Change]] = []
    size = 0
    for name, change in changes:
        length = len(change.content) if isinstance(change, Piece) else 0
        if some and size + length > PIECE:
            yield some
            some, size = [], 0
        some.append((name, change))
        size += length
    yield some


def _here(trip: Trip, work: Path) -> Task:
    """Return the task as it is trained in the folder `work`."""
    task, runs = trip.task, str(work / RUNS)
    kept = work / KEPT / task.kept.name if task.kept else None
    settings = tuple(replace(one, out=runs, device=one.device.partition(":")[0]) for one in task.runs)
    return replace(task, runs=settings, kept=kept, quiet=True, carried=trip.data)


@contextmanager
def _work_folder() -> Iterator[Path]:
    """Make a folder for this process, and remove those of processes that have been killed."""
    parent = Path(tempfile.gettempdir()) / f"{WORK}-{os.getuid() if hasattr(os, 'getuid') else 0}"
    parent.mkdir(mode=0o700, exist_ok=True)
    for left in parent.iterdir():
        process = left.name.partition("-")[0]
        if process.isdigit() and is_gone(None, int(process)):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def code_of(task: Task) -> dict[str, bytes]:
    """Return {path: bytes} of the code that a task takes along: the experiments that its settings name.

    Of a task that trains a run's own copy that copy.
    """
    code = _kept_code(task.kept) if task.kept else {}
    for entry in _entries(task.runs[0]):
        for path in _files(entry.folder):
            code[f"{EXPERIMENTS}/{entry.name}/{path.relative_to(entry.folder).as_posix()}"] = path.read_bytes()
    return code


def _files(folder: Path) -> list[Path]:
    """Return the files in a folder and below it, but hidden ones and bytecode."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [p for p in found if not any(part.startswith((".", "__pycache__")) for part in p.relative_to(folder).parts)]


def code_folder(task: Task) -> Path:
    """Return the folder of the experiment that a task trains, on the machine that asked for it. Raises UserError."""
    entry = read_run(task.kept).code if task.kept else None
    return (entry or registry.find(task.runs[0].exp)[0]).folder


def _kept_code(run: Path) -> dict[str, bytes]:
    paths = [run / RUN_JSON, *_files(run / CODE)]
    return {f"{KEPT}/{run.name}/{path.relative_to(run).as_posix()}": path.read_bytes() for path in paths}


def _entries(settings: Settings) -> Iterator[registry.Entry]:
    """Yield the experiment of the settings, its parents, and the one whose recipe is asked for, where they are here."""
    names, seen = [settings.exp], set[str]()
    if settings.recipe not in (OWN_RECIPE, TUNED_RECIPE, NO_RECIPE):
        names.append(settings.recipe)
    while names:
        try:
            entry, _ = registry.find(names.pop())
        except UserError:
            continue
        if entry.name not in seen:
            seen.add(entry.name)
            yield entry
            names += [entry.parent] if entry.parent else []
