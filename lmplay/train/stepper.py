"""Change the weights by one batch after another: eagerly, or as a replayed graph where that was chosen."""

import gc
import time
from dataclasses import dataclass, replace

from lmplay.runs.names import COMPILED, CUDA_GRAPH
from lmplay.runs.run import Run
from lmplay.train.batches import Batch
from lmplay.train.build import compile_model
from lmplay.train.capture_choice import Note, choose
from lmplay.train.captured_step import CapturedStep
from lmplay.train.compile_choice import Length, choose_compiled
from lmplay.train.memory import MicroBatches
from lmplay.train.optimizers import set_rates
from lmplay.train.ranks import ALONE
from lmplay.train.step import EagerStep, Figures, Packed

SHARED = {"mode": "off", "why": "several processes share out each step"}  # a note, of what all would have to choose


@dataclass
class Stepper:
    """Takes the steps of a run.

    run: whose run.json gets the notes about graphs and compiling. before, compiled_before: the notes of a run that goes
    on; resumed: whether it does. length: what is left of the run.
    captured: what replays steps, None where each is taken eagerly; chosen at the first whole batch.
    """

    eager: EagerStep
    micro_batches: MicroBatches
    run: Run
    before: Note | None
    compiled_before: Note | None
    resumed: bool
    length: Length
    captured: CapturedStep | None = None
    chosen: bool = False
    choosing_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.before is not None:
            self.run.info[CUDA_GRAPH] = self.before
        if self.compiled_before is not None:
            self.run.info[COMPILED] = self.compiled_before

    def __call__(self, batch: Batch, step: int, factor: float, progress: float = 0.0) -> Figures | Packed:
        """Take step `step` with a batch, at `factor` of the learning rates, and return its figures.

        progress: where the schedule stands, from 0 to 1.
        """
        if not self.chosen and batch.n_windows == self.eager.settings.batch_size and batch.n_scored:
            self._choose(batch)
        if self.captured is None:
            set_rates(self.eager.optimizers, factor, progress)
        else:
            self.captured.set_rates(factor, progress)
            if self.captured.takes(batch):
                return self.captured(batch, step)
        figures = self.micro_batches.run(lambda size: self.eager.gradients(batch, step, size))
        return self.eager.change(batch, figures)

    def spent_on_choosing(self) -> float:
        """Return the seconds that were spent on choosing since the last call."""
        seconds, self.choosing_seconds = self.choosing_seconds, 0.0
        return seconds

    def _choose(self, batch: Batch) -> None:
        started, self.chosen = time.perf_counter(), True
        ranks = self.eager.ranks
        compiled = choose_compiled(
            replace(self.eager, ranks=ALONE),  # what is tried is not trained
            ranks.share(batch),
            micro_batch_size=self.micro_batches.size,
            before=self.compiled_before or (dict(SHARED) if ranks.joined else None),
            length=self.length,
        )
        if compiled is not None and compiled["mode"] == "on":
            compile_model(self.eager.model)
        note: Note | None = dict(SHARED)
        if not ranks.joined:
            self.captured, note = choose(
                self.eager,
                batch,
                micro_batch_size=self.micro_batches.size,
                before=self.before,
                resumed=self.resumed,
            )
        notes = {name: one for name, one in ((COMPILED, compiled), (CUDA_GRAPH, note)) if one is not None}
        if notes:
            self.run.info |= notes
            self.run.write()
        if self.captured is not None:
            gc.disable()  # until the training ends: a pause would be longer than a step
        self.choosing_seconds += time.perf_counter() - started
