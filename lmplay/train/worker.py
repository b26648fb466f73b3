"""Train one run in a process of its own: its memory is measured by itself and all given back."""

import contextlib
import io
import math
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmplay import crashes
from lmplay.errors import HUNG, Hung, ModelCrashed, UserError
from lmplay.model.device import prepare_process
from lmplay.output import make_output_last
from lmplay.processes import end_with_parent, worker_context
from lmplay.runs.names import ERROR
from lmplay.runs.run import read_run
from lmplay.runs.settings import Settings
from lmplay.train.stopping import Wishes, heard

if TYPE_CHECKING:
    from lmplay.train.loop import Trainer

GRACE_SECONDS = 10.0  # for a training to save and to end, once its time is over


def train_apart(settings: Settings, command: list[str], kept: Path | None = None, deadline: float = math.inf) -> str:
    """Train what `settings` say from where it stands, and return how it ended: "finished" or "stopped".

    `command` is what run.json notes. kept: the folder of a run whose own copy of the experiment is trained. A signal
    that asks to stop ends the training cleanly; a second wish leaves at once, as KeyboardInterrupt. Raises what the
    trainer raised: UserError where it refused, OSError for a full disk. deadline: by time.monotonic, when it is asked
    to stop; GRACE_SECONDS later it is ended.
    """
    prepare_process()  # its environment is inherited
    # forked from a process that has imported torch, it starts at once
    context = worker_context(preload=("lmplay.train.loop", "lmplay.train.validation"))
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_train, args=(settings, command, os.getcwd(), kept, sender))
    wishes: list[int] = []

    def stop(number: int) -> None:
        wishes.append(number)
        if process.pid is not None:
            process.terminate()  # SIGTERM: the trainer saves and ends

    def leave(number: int) -> None:
        wishes.append(number)
        if process.pid is not None:
            process.kill()

    with heard(Wishes(stop, leave)):
        try:
            outcome = None
            with contextlib.suppress(EOFError, ConnectionError):  # what starts it was ended by the same signal
                process.start()
                sender.close()
                outcome = _last_word(receiver, process, deadline)
                process.join()
        finally:
            if process.is_alive():
                process.kill()
    if len(wishes) > 1:
        raise KeyboardInterrupt
    if isinstance(outcome, Exception):
        raise outcome
    if outcome is None and (wishes or time.monotonic() >= deadline):
        return "stopped"
    if outcome is None:
        raise _unexpected_end(settings, process.exitcode or 0)
    return outcome


def _last_word(receiver: Connection, process: BaseProcess, deadline: float) -> Any:
    """Wait for what the process sends as it ends; None: it ended without a word. At the deadline it is made to end."""
    try:
        if deadline < math.inf:
            for moment, end in ((deadline, process.terminate), (deadline + GRACE_SECONDS, process.kill)):
                if receiver.poll(max(0.0, moment - time.monotonic())):
                    break
                end()
        return receiver.recv()
    except EOFError:
        return None


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


def _train(settings: Settings, command: list[str], folder: str, kept: Path | None, sender: Connection) -> None:
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
            trainer = _make_trainer(settings, command, kept)
        if text := printed.getvalue():
            trainer.log.write(text)
        if trainer.finished:
            trainer.note_progress("finished")
        sender.send("finished" if trainer.finished else trainer.train())
    except (UserError, OSError) as error:
        sender.send(error)
    except (Exception, SystemExit) as error:  # the code of an experiment, before its run has a log
        print(printed.getvalue(), crashes.full(error), sep="", file=sys.stderr)
        sender.send(ModelCrashed(f"the training of {settings.run_name} crashed: {crashes.one_line(error)}"))


def _make_trainer(settings: Settings, command: list[str], kept: Path | None) -> "Trainer":
    from lmplay.train.checking import check_setup
    from lmplay.train.loop import Trainer
    from lmplay.train.setup import check_room, set_up
    from lmplay.train.watchdog import hang_seconds

    seconds = hang_seconds()
    setup = set_up(settings, command, kept=kept)
    check_room(setup)
    try:
        setup, _ = check_setup(setup)  # who started this has refused what is to be refused
    except Exception as error:
        if not crashes.is_of_experiment(error):
            raise  # else its training will show where it crashes, and note it
    return Trainer(setup, hang_seconds=seconds)
