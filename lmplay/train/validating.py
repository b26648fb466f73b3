"""Pause a training: score the validation documents, record their losses, let the model write samples."""

import gc
import math
import time
from typing import Any, NoReturn, Protocol

import torch

from lmplay.data.plan_spec import NEWEST_ORDER
from lmplay.runs.recorder import Recorder
from lmplay.runs.settings import Settings
from lmplay.train.memory import MicroBatches
from lmplay.train.phases import Phase
from lmplay.train.progress import Progress
from lmplay.train.ranks import Ranks
from lmplay.train.samples import sample_interval, samples
from lmplay.train.setup import Setup
from lmplay.train.state import TrainState
from lmplay.train.step import Precision
from lmplay.train.validation import ValidationFeed, ValidationResult, scored_documents, validate, validation_row


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


def feed_of(setup: Setup, phase: Phase) -> ValidationFeed:
    """Return the validation documents of a phase."""
    return ValidationFeed(
        setup.experiment,
        {name: setup.data.validation[name] for name in phase.datasets},
        context_len=setup.context_len,
        bos=setup.data.tokenizer.eot,
        max_tokens=setup.settings.validation_tokens,
        data_order=setup.settings.data_order or NEWEST_ORDER,
        midway_tokens=setup.settings.midway_tokens or 0,
    )


def validate_run(trainer: Training, phase: Phase, feed: ValidationFeed, at_end: bool) -> None:
    """Score validation documents, record the losses, and let the model write samples.

    at_end: of the phase, all documents are scored; else those that are scored midway, and all if the run ends early.
    """
    result = _scored(trainer, feed, midway=feed.has_part and not at_end)
    state, settings = trainer.state, trainer.settings
    of_all_times = result.midway or result  # what was scored at all times is what compares
    state.note_validation(of_all_times.loss, wanted=settings.keep_best or settings.early_stop > 0)
    if feed.has_part and not at_end and state.waited_for(settings.early_stop):
        result = _scored(trainer, feed, midway=False)
    state.validation_loss = result.loss
    _record(trainer, phase, feed, result)
    writes = trainer.setup.experiment.can_write or trainer.setup.experiment.mask_token is not None
    due = at_end or state.step % sample_interval(settings, state.n_steps) == 0
    if due and writes and trainer.ranks.writes and not trainer.ranks.sharded:
        trainer.progress.waiting("sampling")
        trainer.recorder.sample(samples(trainer.model, trainer.setup, trainer.precision, feed, state))
    trainer.last_flush = time.perf_counter()


def _scored(trainer: Training, feed: ValidationFeed, midway: bool) -> ValidationResult:
    """Return what scoring the documents finds: all, or those that are scored midway."""
    if not gc.isenabled():  # while graphs are replayed, which leave little to collect
        gc.collect()
    trainer.progress.waiting("validating")
    result = trainer.micro_batches.run(
        lambda size: validate(
            trainer.model,
            feed,
            micro_batch_size=size,
            device=trainer.device,
            precision=trainer.precision,
            by_position=trainer.settings.loss_by_position > 0,
            ranks=trainer.ranks,
            midway=midway,
        )
    )
    trainer.note_micro_batches()
    if not math.isfinite(result.loss):
        trainer.refuse(f"the validation loss is not finite ({result.loss})")
    return result


def _record(trainer: Training, phase: Phase, feed: ValidationFeed, result: ValidationResult) -> None:
    setup, state, bins = trainer.setup, trainer.state, trainer.settings.loss_by_position
    counters = trainer.counters(phase)
    if result.positions is not None and bins:
        trainer.recorder.positions([counters | row for row in result.positions.rows(bins)])
    trainer.recorder.validation(
        counters | {"seconds": round(state.seconds, 4)} | validation_row(result, feed, setup.plan),
        result.losses,
        scored_documents(feed),
    )
    trainer.recorder.flush()  # for those who look at the curves before the next checkpoint
    part = feed.has_part and result.midway is None
    trainer.progress.validated(result.loss, phase.name if len(state.phases) > 1 else "", part)
