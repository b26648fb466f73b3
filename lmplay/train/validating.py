"""Pause a training: score the validation documents, record their losses, let the model write samples."""

import gc
import math
import time
from typing import Any, NoReturn, Protocol

import torch

from lmplay.runs.recorder import Recorder
from lmplay.runs.settings import Settings
from lmplay.train.memory import MicroBatches
from lmplay.train.phases import Phase
from lmplay.train.progress import Progress
from lmplay.train.ranks import Ranks
from lmplay.train.samples import samples
from lmplay.train.setup import Setup
from lmplay.train.state import TrainState
from lmplay.train.step import Precision
from lmplay.train.validation import ValidationFeed, scored_documents, validate, validation_row


class Training(Protocol):
    """What is asked of a Trainer here."""

    setup: Setup
    settings: Settings
    state: TrainState
    model: torch.nn.Module
    device: torch.device
    precision: Precision
    micro_batches: MicroBatches
    recorder: Recorder
    progress: Progress
    last_flush: float
    ranks: Ranks

    def note_micro_batches(self) -> None:
        """Say that memory ran out, if it did."""

    def counters(self, phase: Phase) -> dict[str, Any]:
        """Return where the run stands, as the tables have it."""

    def refuse(self, why: str) -> NoReturn:
        """Raise FloatingPointError."""


def validate_midway(trainer: Training, phase: Phase, feed: ValidationFeed) -> None:
    """Score the validation documents, record the losses, and let the model write samples."""
    if not gc.isenabled():  # while graphs are replayed, which leave little to collect
        gc.collect()
    trainer.progress.waiting("validating")
    setup, state, bins = trainer.setup, trainer.state, trainer.settings.loss_by_position
    result = trainer.micro_batches.run(
        lambda size: validate(
            trainer.model,
            feed,
            micro_batch_size=size,
            device=trainer.device,
            precision=trainer.precision,
            by_position=bins > 0,
            ranks=trainer.ranks,
        )
    )
    trainer.note_micro_batches()
    if not math.isfinite(result.loss):
        trainer.refuse(f"the validation loss is not finite ({result.loss})")
    state.note_validation(result.loss, wanted=trainer.settings.keep_best or trainer.settings.early_stop > 0)
    counters = trainer.counters(phase)
    if result.positions is not None and bins:
        trainer.recorder.positions([counters | row for row in result.positions.rows(bins)])
    trainer.recorder.validation(
        counters | {"seconds": round(state.seconds, 4)} | validation_row(result, feed, setup.plan),
        result.losses,
        scored_documents(result, feed),
    )
    trainer.recorder.flush()  # for those who look at the curves before the next checkpoint
    trainer.progress.validated(result.loss, phase.name if len(state.phases) > 1 else "")
    writes = setup.experiment.can_write or setup.experiment.mask_token is not None
    if writes and trainer.ranks.writes and not trainer.ranks.sharded:
        trainer.progress.waiting("sampling")
        trainer.recorder.sample(samples(trainer.model, setup, trainer.precision, feed, state))
    trainer.last_flush = time.perf_counter()
