"""Keep what the model prints, and settle how an error or a hang ends a training: run.json, the log, one line."""

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, Protocol

from lmplay import crashes
from lmplay.errors import HUNG, STOPPED, Diverged, ModelCrashed, UserError
from lmplay.output import LastingText
from lmplay.runs.alive import time_now
from lmplay.runs.names import ERROR, LOG
from lmplay.runs.recorder import Recorder
from lmplay.runs.run import Run
from lmplay.train.memory import is_out_of_memory
from lmplay.train.setup import Setup
from lmplay.train.state import TrainState
from lmplay.train.stopping import say

NO_LINKS = getattr(os, "O_NOFOLLOW", 0)


class Log(io.TextIOBase):
    """A run's train.log. It is made when the first text comes; where it can't be written, the text is dropped.

    of_prints: whether it keeps what the model prints; of several ranks one does.
    """

    def __init__(self, folder: Path, of_prints: bool = True):
        super().__init__()
        self._folder, self._of_prints = folder, of_prints
        self._file: LastingText | None = None

    def write(self, text: str) -> int:
        """Add text, which each process puts below a line with the time."""
        if self._file is None:
            try:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | NO_LINKS
                descriptor = os.open(self._folder / LOG, flags, 0o666)
            except OSError:
                descriptor = os.open(os.devnull, os.O_WRONLY)
            self._file = LastingText(descriptor)
            self._file.write(f"=== {time_now()}, process {os.getpid()}\n")
        self._file.write(text)
        self._file.flush()
        return len(text)

    def writable(self) -> bool:
        """Return True."""
        return True

    @contextlib.contextmanager
    def printed(self) -> Iterator[None]:
        """Keep what is printed within the block."""
        with contextlib.redirect_stdout(self) if self._of_prints else contextlib.nullcontext():
            yield


class Training(Protocol):
    """What is asked of a Trainer here."""

    setup: Setup
    state: TrainState
    run: Run
    recorder: Recorder
    log: Log
    stopping: bool

    def note_progress(self, status: str) -> None:
        """Write to run.json where the run stands."""


def end_with(trainer: Training, error: BaseException) -> NoReturn:
    """Note in run.json which error ended a training, and raise what is to be said.

    What an experiment's code raised is a ModelCrashed, whose traceback goes into the log. A loss that is not finite is
    a Diverged. Other errors are no fault of the model: the run is stopped and can go on.
    """
    status, raised = "stopped", error
    if isinstance(error, FloatingPointError) and not crashes.is_of_experiment(error):
        status, raised = "failed", Diverged(str(error))
    elif is_out_of_memory(error):  # not in a micro-batch, which would have been halved
        raised = UserError(
            "out of memory: free some, or type the command again with a smaller --micro-batch-size or --context-len"
        )
    elif crashes.is_of_experiment(error) or not isinstance(error, (UserError, OSError)):
        trainer.log.write(crashes.full(error))
        status, raised = "crashed", ModelCrashed(_crash(trainer, error))
    trainer.run.info[ERROR] = str(raised) if status != "crashed" else crashes.one_line(error)
    with contextlib.suppress(OSError):
        trainer.recorder.flush()
    with contextlib.suppress(OSError):
        trainer.note_progress(status)
    raise raised from (None if raised is error else error)


def _crash(trainer: Training, error: BaseException) -> str:
    where = f"{trainer.setup.folder / LOG} has the traceback"
    return f"{trainer.setup.entry.name} crashed in step {trainer.state.step + 1}: {crashes.one_line(error)} ({where})"


def end_hung(trainer: Training, thread: int, seconds: float) -> NoReturn:
    """End a process whose training hangs, from another thread than the one that trains: note where, and leave."""
    position, frame = crashes.position_of_thread(thread), sys._current_frames().get(thread)
    trainer.log.write("".join(traceback.format_stack(frame)) if frame else "")
    said = f"no step for {seconds:.0f} s after step {trainer.state.step}: it hung at {position}"
    trainer.run.info[ERROR] = said
    with contextlib.suppress(OSError):
        trainer.note_progress("stopped" if trainer.stopping else "hung")
    where = f"{trainer.setup.folder / LOG} has the traceback; the last checkpoint is kept"
    sys.stderr.flush()
    say(
        f"\n{trainer.setup.folder.name}: {said} ({where})\n".encode(errors="backslashreplace")
    )  # also where a rank prints nothing else
    os._exit(STOPPED if trainer.stopping else HUNG)
