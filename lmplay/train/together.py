"""Train several runs side by side in one process, their steps in one stack: seeds of one experiment, same settings."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from lmplay import crashes
from lmplay.errors import UserError
from lmplay.runs.names import COMPILED, CUDA_GRAPH, TOGETHER
from lmplay.text import counted
from lmplay.train.compile_choice import Note, choose_compiled
from lmplay.train.loop import Trainer
from lmplay.train.memory import micro_batch_size
from lmplay.train.saving import SAVE_SECONDS
from lmplay.train.stacked_choice import PAYS, StackedStepper
from lmplay.train.stacked_step import NotStackable
from lmplay.train.step import Wanted
from lmplay.train.stopping import Wishes, heard, leave, say

Outcome = str | Exception  # how a run ended, "finished" or "stopped", or the error that ended it


def check_alike(trainers: Sequence[Trainer]) -> None:
    """Raise NotStackable where runs don't take the same steps at the same time."""
    first = trainers[0]
    if first.settings.max_minutes is not None:
        raise NotStackable("--max-minutes ends each run at a step of its own")
    for other in trainers[1:]:
        phases = [[(p.name, p.end, p.n_steps) for p in trainer.state.phases] for trainer in (first, other)]
        if phases[0] != phases[1]:
            raise NotStackable("the seeds' phases are not of one length")
        if (other.state.step, other.state.position) != (first.state.step, first.state.position):
            raise NotStackable(f"they stand at different steps ({first.state.step} and {other.state.step})")


class Together:
    """Trains runs together. Each has its own folder, order of data, checkpoints and validations.

    trainers: made with `alone` False. auto: only where the stack is faster than one run after the other.
    """

    def __init__(self, trainers: Sequence[Trainer], auto: bool = False) -> None:
        check_alike(trainers)
        self.trainers, self.auto = list(trainers), auto
        self.outcomes: dict[int, Outcome] = {}
        self.wanted: dict[int, Wanted] = {}
        self.steps = {number: trainer.steps() for number, trainer in enumerate(trainers)}
        self.last_save = time.perf_counter()

    def train(self) -> list[Outcome]:
        """Train all of them and return how each ended. Raises NotStackable before the first step."""
        first = self.trainers[0]
        first.progress.start(first.state.n_steps, first.state.step, first.state.tokens, first.use.of_a_token)
        try:
            with heard(Wishes(self._stop, leave)), first.watchdog():
                for number in self.steps:
                    self._go_on(number, self.steps[number].send, None)
                if len(self.wanted) == len(self.trainers):
                    self._train()
        finally:
            for trainer in self.trainers:
                trainer.state.release()
        return [self.outcomes[number] for number in range(len(self.trainers))]

    def _train(self) -> None:
        there, stepper = list(self.wanted), self._stepper(first=True)
        while self.wanted:
            if there != list(self.wanted):  # one has ended before the others
                stepper.release()
                there, stepper = list(self.wanted), self._stepper()
            try:
                figures = stepper([self.wanted[number] for number in there])
            except crashes.RAISED as error:
                for number in there:
                    self._go_on(number, self.steps[number].throw, error)
                continue
            self._save_at_one_step()
            for number, of_seed in zip(there, figures, strict=True):
                self._go_on(number, self.steps[number].send, of_seed)

    def _stepper(self, first: bool = False) -> StackedStepper:
        """Return what takes the steps of the runs that still train. first: try it. Raises NotStackable."""
        trainers = [self.trainers[number] for number in self.wanted]
        size = micro_batch_size(trainers[0].setup, trainers[0].device, seeds=len(trainers))
        compiled = self._compiled(trainers[0])
        if compiled is not None:
            for trainer in trainers:
                trainer.run.info[COMPILED] = compiled
        on = compiled is not None and compiled["mode"] == "on"
        stepper = StackedStepper([trainer.eager for trainer in trainers], size, on)
        note = {}
        with contextlib.nullcontext() if first else contextlib.suppress(NotStackable):
            note = stepper.choose(list(self.wanted.values()), PAYS if self.auto and first else 0.0)
        for trainer in trainers:
            if first:
                trainer.run.info[TOGETHER] = note
            if first and trainer.device.type == "cuda":
                trainer.run.info[CUDA_GRAPH] = {"mode": "on" if note["graph"] else "off", "why": "seeds together"}
            trainer.last_flush = time.perf_counter()
        if first:
            trainers[0].progress.note(f"{counted(len(trainers), 'seed')} together; shown is the first")
        return stepper

    def _compiled(self, trainer: Trainer) -> Note | None:
        """Return whether the models are compiled, as it is chosen for a run alone."""
        return choose_compiled(
            trainer.eager,
            self.wanted[self.trainers.index(trainer)].batch,
            micro_batch_size=trainer.micro_batches.size,
            before=trainer.run.info.get(COMPILED) or trainer.state.compiled,
            length=trainer.use.length(trainer.state),
        )

    def _go_on(self, number: int, resume: Callable[[Any], Wanted], given: Any) -> None:
        """Let a run go on to its next step, or to its end: `resume` its steps with what is given."""
        trainer = self.trainers[number]
        self.wanted.pop(number, None)
        try:
            with trainer.log.printed():
                self.wanted[number] = resume(given)
        except StopIteration as end:
            self.outcomes[number] = end.value
        except (UserError, OSError) as error:
            self.outcomes[number] = error
        for other in self.trainers:
            other.last_flush += trainer.paused if other is not trainer else 0.0
        trainer.paused = 0.0

    def _save_at_one_step(self) -> None:
        """Let all save after the same step, so that they can go on together."""
        due = time.perf_counter() - self.last_save >= SAVE_SECONDS
        if due:
            self.last_save = time.perf_counter()
        for trainer in self.trainers:
            trainer.last_save = -math.inf if due else math.inf

    def _stop(self, number: int) -> None:
        for trainer in self.trainers:
            trainer.stopping = True
        self.trainers[0].watchdog.hurry()
        if self.trainers[0].watchdog.says:
            say(b"\nstopping after this step; once more leaves at once\n")
