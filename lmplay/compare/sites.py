"""Where runs are trained: here, one process after another or several side by side.

A site starts tasks and says which has something to say. Whoever asks for runs knows no more of it, so that a site on
other machines needs this interface only.
"""

import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Protocol

from lmplay.data.carried import CarriedData
from lmplay.machine import cores, free_memory
from lmplay.runs.settings import Settings
from lmplay.train.worker import Apart, Outcome, Task, Worker

BUSY = 90.0  # percent of the time in which a GPU has something to do: another process would wait for it
SETTLED_SECONDS = 20.0  # after which a new process shows what it takes of a GPU
MOST = 8  # processes that `auto` starts on a GPU


class Running(Protocol):
    """A task that is being trained somewhere."""

    shown: str  # how it trains now, in one line
    said: list[str]  # what else is to be said of it, each line once

    def stop(self) -> None:
        """Ask it to save and end."""

    def kill(self) -> None:
        """End it at once."""

    def outcomes(self, wished: bool) -> list[Outcome] | Apart:
        """Return how each of its runs ended, once it has. wished: whether it was asked to end."""


class Site(Protocol):
    """Where tasks are trained."""

    @property
    def several(self) -> bool:
        """Whether tasks may run side by side; else each shows itself how it trains."""

    def has_room(self, running: int) -> bool:
        """Whether a task may be started beside those that run."""

    def start(self, task: Task, data: CarriedData) -> Running:
        """Start a task. data: what it trains on, for a machine that cannot prepare it."""

    def ended(self, running: Sequence[Running], seconds: float | None) -> list[Running]:
        """Wait until one of them says something, for at most `seconds`; return those that have ended."""


@dataclass
class Processes:
    """Processes of this machine, at most `n` at once; with `gpu` as many as pay on the GPU, at most `n`."""

    n: int = 1
    gpu: bool = False
    last_start: float = -1e9

    @property
    def several(self) -> bool:
        """Whether more than one may run."""
        return self.n > 1

    def has_room(self, running: int) -> bool:
        """Whether a process may be started beside those that run."""
        if not running or running >= self.n or not self.gpu:
            return running < self.n
        if time.monotonic() - self.last_start < SETTLED_SECONDS:
            return False
        busy, free, used = gpu_load()
        return busy < BUSY and free > 1.5 * used / running

    def start(self, task: Task, data: CarriedData) -> Worker:
        """Start a process. It prepares the data itself: they are there."""
        self.last_start = time.monotonic()
        worker = Worker(task)
        worker.start()
        return worker

    def ended(self, running: Sequence[Running], seconds: float | None) -> list[Running]:
        """Wait until one of them says something, for at most `seconds`; return those that have ended."""
        workers = [worker for worker in running if isinstance(worker, Worker)]
        heard = wait([worker.receiver for worker in workers], seconds)
        return [worker for worker in workers if worker.receiver in heard and not worker.hear()]


def processes(jobs: int | None, settings: Settings) -> Processes:
    """Return the site of --jobs: that number of processes; None (auto): as many as the machine has room for."""
    if jobs is not None:
        return Processes(jobs)
    if settings.device != "cpu" and shutil.which("nvidia-smi") and gpu_load()[1]:
        return Processes(min(MOST, cores()), gpu=True)
    room = max(1, free_memory() // 2**30)  # at least one GiB for each
    return Processes(max(1, min(cores() // max(1, settings.threads), room)))


def threads_of(site: Processes, settings: Settings) -> int:
    """Return how many threads each of the processes gets: --threads, else its share of the cores; 0: left to torch."""
    return settings.threads or (max(1, cores() // site.n) if site.several else 0)


def gpu_load() -> tuple[float, float, float]:
    """Return how busy the first GPU is in percent, its free memory and what is used of it in MiB; (0, 0, 0): none."""
    asked = "--query-gpu=utilization.gpu,memory.free,memory.used"
    try:
        done = subprocess.run(
            ["nvidia-smi", asked, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        busy, free, used = map(float, done.stdout.splitlines()[0].split(","))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0.0, 0.0, 0.0
    return busy, free, used
