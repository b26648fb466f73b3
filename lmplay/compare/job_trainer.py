"""Train the runs that a comparison lacks, one after another."""

import math
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmplay import crashes
from lmplay.compare.jobs import Job, Stopped, folder_of
from lmplay.errors import BAD_INPUT, Locked, ModelCrashed, UserError
from lmplay.runs.alive import state_of
from lmplay.runs.folder import wait_for_trainer
from lmplay.runs.names import ERROR
from lmplay.runs.settings import Settings
from lmplay.train.stopping import Wishes, heard

RETRY = "--retry-crashed"


@dataclass(frozen=True)
class Progress:
    """How far a comparison is.

    run: what the run is called. state: "begins", or how it ended: "finished", "failed" or "stopped". folder: of the
    run. which: such as "run 1 of 6".
    """

    run: str
    state: str
    folder: Path
    which: str


class JobTrainer:
    """Trains jobs one after another, says on stderr how far it is, and knows how long runs take.

    crashed: {label: why} of the variants whose training ended with an error; they are not trained on. statuses:
    the exit status of each. deadline: by time.monotonic, when the training that goes on is stopped. on_progress: is
    told before and after each run that is trained.
    """

    def __init__(self, deadline: float = math.inf, on_progress: Callable[[Progress], None] | None = None) -> None:
        self.deadline, self.on_progress = deadline, on_progress
        self.crashed: dict[str, str] = {}
        self.statuses: dict[str, int] = {}
        self.seconds: dict[str, list[float]] = {}  # that runs took, by variant

    def train(self, jobs: Sequence[Job], total: str = "", may_crash: Collection[str] = ()) -> None:
        """Train the jobs whose runs are missing. `total` is what "run 1 of" ends with (default: how many are missing).

        may_crash: labels of variants of which an error is noted in `crashed` and said, and the others are trained on.
        Runs that another process trains are waited for when nothing else is left.
        Raises UserError, and Stopped if the user asks to stop.
        """
        for job in jobs:
            self._refuse_crashed(job, may_crash)
        missing = [job for job in jobs if job.is_missing]
        waiting: list[tuple[Job, Settings]] = []
        for number, job in enumerate(missing, 1):
            left = self._time_left(missing[number - 1 :])
            self._train_one(job, f"run {number} of {total or len(missing)}", left, may_crash, waiting)
        for job, settings in waiting:
            while job.is_missing and job.variant.label not in self.crashed:
                print(f"{job.label}: waiting for {folder_of(settings)}", file=sys.stderr, flush=True)
                self._wait(job, settings)
                if job.is_missing:
                    self._train_one(job, "another process has left it", "", may_crash, [])

    @property
    def is_late(self) -> bool:
        """Whether the deadline is past."""
        return time.monotonic() >= self.deadline

    def _tell(self, job: Job, settings: Settings, state: str, which: str) -> None:
        if self.on_progress:
            self.on_progress(Progress(job.label, state, folder_of(settings), which))

    def _wait(self, job: Job, settings: Settings) -> None:
        """Wait until the run of a job is free, and read it. Raises Stopped at a wish to stop and at the deadline."""

        def stop(number: int) -> None:
            raise Stopped

        with heard(Wishes(stop, stop)):
            wait_for_trainer(folder_of(settings), self.deadline)
        if self.is_late:
            raise Stopped(out_of_time=True)
        job.index.take_in(folder_of(settings))

    def note_crash(self, spec: str, label: str, error: Exception) -> None:
        """Note that a variant can't be trained, and say it on stderr."""
        why = str(error) if isinstance(error, UserError) else crashes.one_line(error)
        self.crashed[spec] = why
        of_model = ModelCrashed.status if crashes.is_of_experiment(error) else BAD_INPUT
        self.statuses[spec] = error.status if isinstance(error, UserError) else of_model
        print(f"{label}: {why}; the others go on", file=sys.stderr)

    def _train_one(
        self, job: Job, which: str, left: str, may_crash: Collection[str], waiting: list[tuple[Job, Settings]]
    ) -> None:
        """Train a job's run; if another process has it, note it in `waiting`. left: of the time, to be said."""
        if job.variant.label in self.crashed:
            return
        settings = job.settings
        if self.is_late:
            raise Stopped(out_of_time=True)
        try:
            job.index.look_again(job)
            if not job.is_missing:
                return
            settings = job.index.settings_to_train(job)
            _say_why(job)
            print(f"{which}: {job.label} -> {folder_of(settings)}{left}", file=sys.stderr, flush=True)
            started = time.monotonic()
            self._tell(job, settings, "begins", which)
            outcome = job.train(settings, self.deadline)
        except Locked:
            print(f"{job.label}: another process trains it; what is free comes first", file=sys.stderr)
            waiting.append((job, settings))
            return
        except UserError as error:
            if job.variant.label not in may_crash:
                raise
            self.note_crash(job.variant.label, job.label, error)
            return
        self._tell(job, settings, outcome, which)
        if outcome == "stopped":
            raise Stopped(out_of_time=self.is_late)
        self.seconds.setdefault(job.variant.label, []).append(time.monotonic() - started)

    def _refuse_crashed(self, job: Job, may_crash: Collection[str]) -> None:
        """Note a job whose run crashed before, under the same code. Raises ModelCrashed if that is not allowed."""
        found = job.find()
        if found is None or found.state != "crashed" or job.variant.label in self.crashed:
            return
        error = ModelCrashed(
            f"{found.run.folder} {state_of(found.run)} before, under the same code: {found.run.get(ERROR)}; mend it, "
            f"or type {RETRY} to train it again"
        )
        if job.variant.label not in may_crash:
            raise error
        self.note_crash(job.variant.label, job.label, error)

    def _time_left(self, jobs: Sequence[Job]) -> str:
        """Say how long the jobs will take, by what runs of the same variant took, or else of any."""
        known = {spec: sum(took) / len(took) for spec, took in self.seconds.items()}
        if not known:
            return ""
        seconds = sum(known.get(job.variant.label, sum(known.values()) / len(known)) for job in jobs)
        shown = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
        return f" (all done in about {shown})"


def _say_why(job: Job) -> None:
    """Say why a run that nearly fits is not used."""
    if job.find() is None and (older := job.index.find_outdated(job)):
        print(f"{job.label}: its code changed since {older.folder} was trained; training it again", file=sys.stderr)
    elif miss := job.own_run_unused():
        print(f"{job.label}: not used is {miss}", file=sys.stderr)
