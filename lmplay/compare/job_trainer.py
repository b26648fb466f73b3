"""Train the runs that a comparison lacks: one after another, side by side, or seeds together."""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lmplay import crashes
from lmplay.compare.backends import ALONE, How
from lmplay.compare.board import Board
from lmplay.compare.jobs import Job, Stopped, folder_of
from lmplay.compare.sites import Running
from lmplay.data.carried import CarriedData
from lmplay.errors import BAD_INPUT, Hung, Locked, ModelCrashed, UserError
from lmplay.runs.alive import state_of
from lmplay.runs.folder import wait_for_trainer
from lmplay.runs.names import ERROR
from lmplay.runs.settings import Settings
from lmplay.train.settings import as_flags
from lmplay.train.stopping import Wishes, heard
from lmplay.train.worker import GRACE_SECONDS, Apart, Outcome, Task

RETRY = "--retry-crashed"
LOOK_SECONDS = 5.0  # between two looks at whether there is room for one more


@dataclass
class _Started:
    """Jobs that are trained in one task."""

    jobs: list[Job]
    settings: list[Settings]
    which: list[str]  # such as "run 1 of 6"
    running: Running
    began: float
    stopped: bool = False


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
    """Trains jobs, says on stderr how far it is, and knows how long runs take.

    crashed: {label: why} of the variants whose training ended with an error; they are not trained on. statuses:
    the exit status of each. deadline: by time.monotonic, when the training that goes on is stopped. on_progress: is
    told before and after each run that is trained.
    """

    def __init__(
        self,
        how: How = ALONE,
        deadline: float = math.inf,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.how, self.deadline, self.on_progress = how, deadline, on_progress
        self.crashed: dict[str, str] = {}
        self.statuses: dict[str, int] = {}
        self.seconds: dict[str, list[float]] = {}  # that runs took, by variant
        self._apart: set[str] = set()  # variants whose seeds are not trained together
        self._wishes: list[int] = []
        self._started: list[_Started] = []
        self._board = Board()

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
        names = {id(job): f"run {n} of {total or len(missing)}" for n, job in enumerate(missing, 1)}
        self._train(missing, names, may_crash, waiting)
        for job, settings in waiting:
            while job.is_missing and job.variant.label not in self.crashed:
                print(f"{job.label}: waiting for {folder_of(settings)}", file=sys.stderr, flush=True)
                self._wait(job, settings)
                if job.is_missing:
                    self._train([job], {id(job): "another process has left it"}, may_crash, [])

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

    def note_crash(self, spec: str, label: str, error: BaseException) -> None:
        """Note that a variant can't be trained, and say it on stderr."""
        why = str(error) if isinstance(error, UserError) else crashes.one_line(error)
        self.crashed[spec] = why
        of_model = ModelCrashed.status if crashes.is_of_experiment(error) else BAD_INPUT
        self.statuses[spec] = error.status if isinstance(error, UserError) else of_model
        self._board.say(f"{label}: {why}; the others go on")

    def _train(
        self,
        jobs: Sequence[Job],
        names: dict[int, str],
        may_crash: Collection[str],
        waiting: list[tuple[Job, Settings]],
    ) -> None:
        """Train jobs, as many at once as there is room for. `waiting` takes those that another process has."""
        left = list(jobs)
        wrong: Exception | None = None
        with self._hearing():
            try:
                while (left and not self._is_ending(wrong)) or self._started:
                    try:
                        while left and not self._is_ending(wrong) and self._has_room():
                            self._start(left, names, waiting)
                        # of a variant that has crashed nothing is started: there may be nothing to wait for
                        for started in self._ended(bool(left)) if self._started else ():
                            self._take_in(started, left, may_crash, waiting)
                    except (UserError, OSError) as error:
                        wrong = wrong or error
                        self._stop()
            finally:
                for started in self._started:
                    started.running.kill()
                self._started.clear()
                self._board.close()
        if len(self._wishes) > 1:
            raise KeyboardInterrupt
        if wrong is not None:
            raise wrong
        if self._is_ending(None) and (self._wishes or any(job.is_missing for job in jobs)):
            raise Stopped(out_of_time=self.is_late)

    def _is_ending(self, wrong: Exception | None) -> bool:
        """Whether nothing more is started: after a wish to stop, an error, and when it is late."""
        return bool(self._wishes) or wrong is not None or self.is_late

    def _has_room(self) -> bool:
        return self.how.site.has_room(len(self._started))

    def _start(self, left: list[Job], names: dict[int, str], waiting: list[tuple[Job, Settings]]) -> None:
        """Start the first of the jobs that are left, with others of its arm if they may be trained together."""
        chosen = self._group(left)
        time_left = self._time_left(left)
        for job in chosen:
            left.remove(job)
        jobs, settings = list[Job](), list[Settings]()
        for job in chosen:
            if job.variant.label in self.crashed:
                continue
            if begun := job.index.look_again(job):
                self._leave(job, dataclasses.replace(job.settings, run_name=begun.name), waiting)
                continue
            if not job.is_missing:
                continue
            jobs.append(job)
            settings.append(job.index.settings_to_train(job))
            _say_why(job)
            self._board.say(f"{names[id(job)]}: {job.label} -> {folder_of(settings[-1])}{time_left}")
        if not jobs:
            return
        commands = tuple(("lmp_trainer", *as_flags(one)) for one in settings)
        which = [names[id(job)] for job in jobs]
        for job, own, name in zip(jobs, settings, which, strict=True):
            self._tell(job, own, "begins", name)
        task = Task(tuple(settings), commands, jobs[0].variant.kept, auto=self.how.auto, quiet=self.how.site.several)
        data = CarriedData.of(jobs[0].index.plan, jobs[0].index.data)
        self._started.append(_Started(jobs, settings, which, self.how.site.start(task, data), time.monotonic()))

    def _group(self, left: Sequence[Job]) -> list[Job]:
        """Return the first job, and those of its arm that differ in the seed alone, as many as may be together."""
        first = left[0]
        if self.how.together < 2 or first.variant.label in self._apart:
            return [first]
        alike = [job for job in left if job.differs_in_seed_alone(first)]
        return alike[: self.how.together]

    def _ended(self, more: bool) -> list[_Started]:
        """Wait until a task says something, or, with `more` to start, for a while; return those that have ended."""
        site = self.how.site
        seconds = LOOK_SECONDS if more and site.several else math.inf
        for moment, end in ((self.deadline, self._stop), (self.deadline + GRACE_SECONDS, self._kill)):
            if time.monotonic() >= moment:
                end()
            else:
                seconds = min(seconds, moment - time.monotonic())
        ended = site.ended([one.running for one in self._started], None if seconds == math.inf else seconds)
        for one in self._started if site.several else ():
            label = ", ".join(job.label for job in one.jobs)
            while one.running.said:
                self._board.say(f"{label}: {one.running.said.pop(0)}")
            self._board.show(label, one.running.shown)
        found = [one for one in self._started if any(one.running is running for running in ended)]
        self._started = [one for one in self._started if one not in found]
        return found

    def _take_in(
        self,
        started: _Started,
        left: list[Job],
        may_crash: Collection[str],
        waiting: list[tuple[Job, Settings]],
    ) -> None:
        """Take in what a task has come to. Raises UserError for a run that failed where it may not."""
        outcomes = started.running.outcomes(bool(self._wishes) or self.is_late)
        self._board.drop(", ".join(job.label for job in started.jobs))
        if isinstance(outcomes, Apart):
            spec = started.jobs[0].variant.label
            self._apart.add(spec)
            self._board.say(f"the seeds of {spec} are trained one by one: {outcomes.why}")
            left[:0] = started.jobs
            return
        wrong: UserError | None = None
        runs = zip(started.jobs, started.settings, started.which, outcomes, strict=True)
        for job, settings, which, outcome in runs:
            try:
                self._judge(job, settings, which, outcome=outcome, waiting=waiting)
            except UserError as error:
                if job.variant.label not in may_crash:
                    wrong = wrong or error
                elif job.variant.label not in self.crashed:
                    self.note_crash(job.variant.label, job.label, error)
        if wrong is not None:
            raise wrong
        seconds = (time.monotonic() - started.began) / len(started.jobs)
        self.seconds.setdefault(started.jobs[0].variant.label, []).append(seconds)

    def _judge(
        self, job: Job, settings: Settings, which: str, *, outcome: Outcome, waiting: list[tuple[Job, Settings]]
    ) -> None:
        """Take a run in. Raises UserError where it failed."""
        try:
            ended = job.take_in(settings, outcome)
        except Locked:
            self._leave(job, settings, waiting)
            return
        self._tell(job, settings, ended, which)
        if ended == "stopped" and not self._wishes and not self.is_late:
            self._wishes.append(0)  # somebody has stopped the trainer itself

    def _leave(self, job: Job, settings: Settings, waiting: list[tuple[Job, Settings]]) -> None:
        """Leave a run to the process that has it."""
        self._board.say(f"{job.label}: another process trains it; what is free comes first")
        waiting.append((job, settings))

    @contextmanager
    def _hearing(self) -> Iterator[None]:
        """Pass wishes to stop on to what is being trained: the first lets it save, the second ends it at once."""

        def first(number: int) -> None:
            self._wishes.append(number)
            self._stop()

        def second(number: int) -> None:
            self._wishes.append(number)
            self._kill()

        with heard(Wishes(first, second)):
            yield

    def _stop(self) -> None:
        for started in self._started:
            if not started.stopped:
                started.stopped = True
                started.running.stop()

    def _kill(self) -> None:
        for started in self._started:
            started.running.kill()

    def _refuse_crashed(self, job: Job, may_crash: Collection[str]) -> None:
        """Note a job whose run crashed before, under the same code. Raises ModelCrashed if that is not allowed."""
        found = job.find()
        if found is None or found.state != "crashed" or job.variant.label in self.crashed:
            return
        state = state_of(found.run)
        error = (Hung if state == "hung" else ModelCrashed)(
            f"{found.run.folder} {state} before, under the same code: {found.run.get(ERROR)}; mend it, "
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
        seconds /= max(1, len(self._started) + 1)
        shown = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
        return f" (all done in about {shown})"


def _say_why(job: Job) -> None:
    """Say why a run that nearly fits is not used."""
    if job.find() is None and (older := job.index.find_outdated(job)):
        print(f"{job.label}: its code changed since {older.folder} was trained; training it again", file=sys.stderr)
    elif miss := job.own_run_unused():
        print(f"{job.label}: not used is {miss}", file=sys.stderr)
