"""Pause a training: score the validation documents, record their losses, let the model write samples."""

import gc
import math
import time
from typing import TYPE_CHECKING

from lmplay.train.phases import Phase
from lmplay.train.samples import samples
from lmplay.train.validation import ValidationFeed, scored_documents, validate, validation_row

if TYPE_CHECKING:
    from lmplay.train.loop import Trainer


def validate_midway(trainer: "Trainer", phase: Phase, feed: ValidationFeed) -> None:
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
        )
    )
    trainer.note_micro_batches()
    if not math.isfinite(result.loss):
        trainer.refuse(f"the validation loss is not finite ({result.loss})")
    state.validation_loss = result.loss
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
    if setup.experiment.can_write or setup.experiment.mask_token is not None:
        trainer.progress.waiting("sampling")
        trainer.recorder.sample(samples(trainer.model, setup, trainer.precision, feed, state))
    trainer.last_flush = time.perf_counter()
