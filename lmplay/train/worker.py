"""Train a run, or several together, in a process of its own: its memory is measured by itself, and all given back."""

import contextlib
import io
import math
import os
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmplay import crashes
from lmplay.data.carried import CarriedData
from lmplay.errors import HUNG, Hung, ModelCrashed, UserError
from lmplay.model.device import prepare_process
from lmplay.output import make_output_last
from lmplay.processes import end_with_parent, worker_context
from lmplay.runs.names import ERROR
from lmplay.runs.run import read_run
from lmplay.runs.settings import Settings
from lmplay.train.sent_progress import SentProgress, Shown
from lmplay.train.stopping import Wishes, heard

if TYPE_CHECKING:
    from lmplay.train.loop import Trainer

GRACE_SECONDS = 10.0  # for a training to save and to end, once its time is over


@dataclass(frozen=True)
class Task:
    """What one process trains: a run, or several together, as their settings say.

    kept: the folder of a run whose own copy of the experiment is trained. auto: together only where that is faster.
    quiet: what would be shown is sent to whom started it. carried: data that were prepared on another machine.
    """

    runs: tuple[Settings, ...]
    commands: tuple[tuple[str, ...], ...]  # what run.json notes, of each run
    kept: Path | None = None
    auto: bool = False
    quiet: bool = False
    carried: CarriedData | None = None


@dataclass(frozen=True)
class Apart:
    """Nothing was trained: these runs are not trained together, and why."""

    why: str


Outcome = str | Exception  # "finished" or "stopped", or what the trainer raised


class Worker:
    """A process of its own that trains a task, from `start` on. folder: its current one, by default this process's."""

    def __init__(self, task: Task, folder: Path | None = None) -> None:
        prepare_process()  # its environment is inherited
        # forked from a process that has imported torch, it starts at once
        context = worker_context(preload=("lmplay.train.loop", "lmplay.train.validation"))
        self.task = task
        self.receiver, self.sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_train, args=(task, str(folder or os.getcwd()), self.sender))
        self.shown = ""  # what it sent last of how it trains
        self.said: list[str] = []  # what else is to be said of it: nothing
        self._word: Any = None
        self._ended = False

    def start(self) -> None:
        """Start the process."""
        with contextlib.suppress(EOFError, ConnectionError):  # what starts it was ended by the same signal
            self.process.start()
        self.sender.close()

    def stop(self) -> None:
        """Ask it to save and end."""
        if self.process.pid is not None and self.process.is_alive():
            self.process.terminate()

    def kill(self) -> None:
        """End it at once."""
        if self.process.pid is not None and self.process.is_alive():
            self.process.kill()

    def hear(self) -> bool:
        """Read what it has sent, waiting for it. Returns False once it has ended."""
        try:
            word = self.receiver.recv()
        except (EOFError, OSError):
            word = self._word
        if isinstance(word, Shown):
            self.shown = word.text
            return True
        self._word, self._ended = word, True
        if self.process.pid is not None:
            self.process.join()
        return False

    def hear_out(self, deadline: float) -> None:
        """Wait until it has ended. At the deadline it is made to."""
        for moment, end in ((deadline, self.stop), (deadline + GRACE_SECONDS, self.kill), (math.inf, self.kill)):
            while self.receiver.poll(None if moment == math.inf else max(0.0, moment - time.monotonic())):
                if not self.hear():
                    return
            end()

    def outcomes(self, wished: bool) -> list[Outcome] | Apart:
        """Return how each run ended, after `hear` has returned False. wished: whether it was asked to end."""
        word = self._word
        if isinstance(word, (list, Apart)):
            return word
        if isinstance(word, Exception):
            return [word] * len(self.task.runs)
        if wished:
            return ["stopped"] * len(self.task.runs)
        return [_unexpected_end(settings, self.process.exitcode or 0) for settings in self.task.runs]


def train_apart(settings: Settings, command: list[str], kept: Path | None = None, deadline: float = math.inf) -> str:
    """Train what `settings` say from where it stands, and return how it ended: "finished" or "stopped".

    `command` is what run.json notes. kept: the folder of a run whose own copy of the experiment is trained. A signal
    that asks to stop ends the training cleanly; a second wish leaves at once, as KeyboardInterrupt. Raises what the
    trainer raised: UserError where it refused, OSError for a full disk. deadline: by time.monotonic, when it is asked
    to stop; GRACE_SECONDS later it is ended.
    """
    worker = Worker(Task((settings,), (tuple(command),), kept))
    wishes: list[int] = []

    def stop(number: int) -> None:
        wishes.append(number)
        worker.stop()

    def leave(number: int) -> None:
        wishes.append(number)
        worker.kill()

    with heard(Wishes(stop, leave)):
        try:
            worker.start()
            worker.hear_out(deadline)
        finally:
            worker.kill()
    if len(wishes) > 1:
        raise KeyboardInterrupt
    (outcome,) = single(worker.outcomes(bool(wishes) or time.monotonic() >= deadline))
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def single(outcomes: list[Outcome] | Apart) -> list[Outcome]:
    """Return the outcomes of a task of one run, which is never refused as several are."""
    assert not isinstance(outcomes, Apart)
    return outcomes


def _unexpected_end(settings: Settings, exit_code: int) -> UserError:
    if exit_code == HUNG:
        return Hung(f"the training of {settings.run_name} hung: {_noted(settings)}")
    how = f"killed by signal {-exit_code}" if exit_code < 0 else f"status {exit_code}"
    hint = ", perhaps with a smaller --micro-batch-size: it may have run out of memory" if exit_code == -9 else ""
    return UserError(
        f"the training of {settings.run_name} ended unexpectedly ({how}): type the command again to go on{hint}"
    )


def _noted(settings: Settings) -> str:
    """Return the error that the run's run.json has, if it was begun."""
    try:
        return str(read_run(settings.out_folder / (settings.run_name or "")).get(ERROR))
    except UserError:
        return "before its first step"


def _train(task: Task, folder: str, sender: Connection) -> None:
    """Train in this process, and send how it ended, or why it did not."""
    if hasattr(signal, "pthread_sigmask"):  # Ctrl-C reaches every process of the terminal: the parent passes it on
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    end_with_parent()
    make_output_last()
    os.chdir(folder)
    prepare_process()
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            trainers = [
                _make_trainer(settings, list(command), task)
                for settings, command in zip(task.runs, task.commands, strict=True)
            ]
        for trainer in trainers:
            if text := printed.getvalue():
                trainer.log.write(text)
        if task.quiet:
            trainers[0].progress = SentProgress(sender)
        sender.send(_trained(trainers, task))
    except (UserError, OSError) as error:
        sender.send(error if len(task.runs) == 1 else Apart(str(error)))
    except crashes.RAISED as error:  # the code of an experiment, before its run has a log
        if len(task.runs) > 1:
            sender.send(Apart(crashes.one_line(error)))
            return
        where = f"{crashes.one_line(error)}{crashes.kept(error, printed.getvalue())}"
        sender.send(ModelCrashed(f"the training of {task.runs[0].run_name} crashed: {where}"))


def _trained(trainers: "list[Trainer]", task: Task) -> list[Outcome] | Apart:
    """Train and return how each run ended."""
    if len(trainers) > 1:
        from lmplay.train.stacked_step import NotStackable
        from lmplay.train.together import Together

        try:
            return Together(trainers, task.auto).train()
        except NotStackable as error:
            return Apart(str(error))
    (trainer,) = trainers
    if trainer.finished:
        trainer.note_progress("finished")
        return ["finished"]
    return [trainer.train()]


def _make_trainer(settings: Settings, command: list[str], task: Task) -> "Trainer":
    from lmplay.train.checking import check_setup
    from lmplay.train.loop import Trainer
    from lmplay.train.setup import check_room, set_up
    from lmplay.train.watchdog import hang_seconds

    seconds = hang_seconds()
    setup = set_up(settings, command, kept=task.kept, carried=task.carried)
    check_room(setup)
    try:
        setup, _ = check_setup(setup)  # who started this has refused what is to be refused
    except crashes.RAISED as error:
        if not crashes.is_of_experiment(error):
            raise  # else its training will show where it crashes, and note it
    return Trainer(setup, hang_seconds=seconds, alone=len(task.runs) == 1)
