"""Train one run in a process of its own: its memory is measured by itself and all given back."""

import os
import signal
from multiprocessing.connection import Connection
from typing import Any

from lmplay.errors import UserError
from lmplay.model.device import prepare_process
from lmplay.output import make_output_last
from lmplay.processes import end_with_parent, worker_context
from lmplay.runs.settings import Settings
from lmplay.train.stopping import Wishes, heard


def train_apart(settings: Settings, command: list[str]) -> str:
    """Train what `settings` say from where it stands, and return how it ended: "finished" or "stopped".

    `command` is what run.json notes. A signal that asks to stop ends the training cleanly; a second wish leaves at
    once, as KeyboardInterrupt. Raises what the trainer raised: UserError where it refused, OSError for a full disk.
    """
    prepare_process()  # its environment is inherited
    # forked from a process that has imported torch, it starts at once (torch's meta device imports torch._dynamo)
    context = worker_context(preload=("lmplay.train.loop", "lmplay.train.validation", "torch._dynamo"))
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_train, args=(settings, command, os.getcwd(), sender))
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
            process.start()
            sender.close()
            outcome = _last_word(receiver)
            process.join()
        finally:
            if process.is_alive():
                process.kill()
    if len(wishes) > 1:
        raise KeyboardInterrupt
    if isinstance(outcome, Exception):
        raise outcome
    if outcome is None and wishes:
        return "stopped"
    if outcome is None:
        raise _unexpected_end(settings, process.exitcode or 0)
    return outcome


def _last_word(receiver: Connection) -> Any:
    """Wait for what the process sends as it ends; None: it ended without a word."""
    try:
        return receiver.recv()
    except EOFError:
        return None


def _unexpected_end(settings: Settings, exit_code: int) -> UserError:
    how = f"killed by signal {-exit_code}" if exit_code < 0 else "its traceback is above"
    hint = ", perhaps with a smaller --micro-batch-size: it may have run out of memory" if exit_code == -9 else ""
    return UserError(
        f"the training of {settings.run_name} ended unexpectedly ({how}): type the command again to go on{hint}"
    )


def _train(settings: Settings, command: list[str], folder: str, sender: Connection) -> None:
    """Train in this process, and send how it ended, or why it did not."""
    if hasattr(signal, "pthread_sigmask"):  # Ctrl-C reaches every process of the terminal: the parent passes it on
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    end_with_parent()
    make_output_last()
    os.chdir(folder)
    prepare_process()
    from lmplay.train.checking import check_setup
    from lmplay.train.loop import Trainer
    from lmplay.train.setup import check_room, set_up

    try:
        setup = set_up(settings, command)
        check_room(setup)
        setup, _ = check_setup(setup)  # who started this has refused what is to be refused
        trainer = Trainer(setup)
        if trainer.finished:
            trainer.note_progress("finished")
        sender.send("finished" if trainer.finished else trainer.train())
    except (UserError, OSError) as error:
        sender.send(error)
