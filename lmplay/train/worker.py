"""Trains one run in a process of its own: its memory is measured by itself and all given back."""

import os
import signal

from lmplay.errors import UserError
from lmplay.model.device import prepare_process
from lmplay.processes import end_with_parent, worker_context
from lmplay.runs.settings import Settings


def train_apart(settings: Settings, command: list[str]) -> str:
    """Trains what `settings` say from wherever it stands, and returns how it ended: "finished" or "stopped".

    `command` is what run.json notes. Ctrl-C and SIGTERM stop the training cleanly; a second one leaves at once, as
    KeyboardInterrupt. What the trainer refuses, and a full disk, is raised here: UserError, OSError.
    """
    prepare_process()  # its environment is inherited
    # forked from a process that has imported torch, it starts at once (torch's meta device imports torch._dynamo)
    context = worker_context(preload=("lmplay.train.loop", "lmplay.train.validation", "torch._dynamo"))
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_train, args=(settings, command, os.getcwd(), sender))
    signals = []

    def forward(number, frame):
        signals.append(number)
        if process.pid is not None:
            process.terminate()  # SIGTERM: the trainer saves and ends

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        process.start()
        sender.close()
        try:
            outcome = receiver.recv()
        except EOFError:  # it ended without a word
            outcome = None
        process.join()
    finally:
        if process.is_alive():
            process.kill()
        for number, handler in previous.items():
            signal.signal(number, handler)
    if len(signals) > 1:
        raise KeyboardInterrupt
    if isinstance(outcome, Exception):
        raise outcome
    if outcome is None and signals:
        return "stopped"
    if outcome is None:
        how = f"killed by signal {-process.exitcode}" if process.exitcode < 0 else "its traceback is above"
        raise UserError(
            f"the training of {settings.run_name} ended unexpectedly ({how}): type the command again to go on"
            + (
                ", perhaps with a smaller --mini-batch-size: it may have run out of memory"
                if process.exitcode == -9
                else ""
            )
        )
    return outcome


def _train(settings: Settings, command: list[str], folder: str, sender) -> None:
    if hasattr(signal, "pthread_sigmask"):  # Ctrl-C reaches every process of the terminal: lmp_compare passes it on
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    end_with_parent()
    os.chdir(folder)
    prepare_process()
    from lmplay.train.loop import Trainer
    from lmplay.train.setup import check_room, set_up

    try:
        setup = set_up(settings, command)
        check_room(setup)
        trainer = Trainer(setup)
        if trainer.finished:
            trainer.note_progress("finished")
        sender.send("finished" if trainer.finished else trainer.train())
    except (UserError, OSError) as error:
        sender.send(error)
