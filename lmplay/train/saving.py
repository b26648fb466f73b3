"""Save where a training stands."""

import math
import time
from typing import Any, NoReturn, Protocol

import torch

from lmplay.runs import checkpoints
from lmplay.runs.model_state import Outside
from lmplay.runs.names import CHECKPOINTS, NOT_KEPT
from lmplay.runs.recorder import Recorder
from lmplay.runs.run import Run
from lmplay.runs.settings import Settings
from lmplay.text import whole_numbers
from lmplay.train.progress import Progress
from lmplay.train.ranks import Ranks
from lmplay.train.schedules import Schedule
from lmplay.train.setup import Setup
from lmplay.train.state import TrainState
from lmplay.train.watchdog import Watchdog

SAVE_SECONDS = 300.0


class Training(Protocol):
    """What is asked of a Trainer here."""

    setup: Setup
    settings: Settings
    state: TrainState
    model: torch.nn.Module
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    outside: Outside
    recorder: Recorder
    run: Run
    progress: Progress
    watchdog: Watchdog
    ranks: Ranks
    last_flush: float
    last_save: float

    def refuse(self, why: str) -> NoReturn:
        """Raise FloatingPointError."""

    def note_progress(self, status: str) -> None:
        """Write to run.json where the run stands."""


def save_is_due(settings: Settings, state: TrainState, last_save: float) -> bool:
    """Tell whether to save after this step. last_save: when that was done last, by time.perf_counter."""
    step = state.step
    if _is_kept(settings, state):
        return True
    if settings.save_interval:
        return step % settings.save_interval == 0
    return time.perf_counter() - last_save >= SAVE_SECONDS


def save(trainer: Training, status: str, keep: bool = False) -> None:
    """Write a checkpoint, and to run.json that the run is `status`. keep: the checkpoint stays for good.

    Of several ranks one writes, and the others wait.
    """
    trainer.progress.waiting("saving")
    if spoiled := checkpoints.not_finite(dict(trainer.model.named_parameters())):
        trainer.refuse(f"the weights are not finite ({spoiled[0]})")
    state = trainer.state
    record: dict[str, Any] = {
        **state.as_json(),
        "scaler": trainer.scaler.state_dict(),
        "files": trainer.recorder.sizes(),
        "keep": keep or _is_kept(trainer.settings, state),
    }
    kept = trainer.outside.changed(trainer.model)
    if kept.lost and kept.lost != trainer.run.info.get(NOT_KEPT):
        trainer.run.info[NOT_KEPT] = kept.lost
        trainer.progress.note(kept.warning(trainer.setup.experiment.name))
    tensors = trainer.ranks.gathered(trainer.model, trainer.optimizers)
    folder, sums = trainer.setup.folder / CHECKPOINTS, trainer.recorder.checksums
    with trainer.watchdog.resting():
        if trainer.ranks.writes:
            checkpoints.save(folder, state.step, trainer.model, trainer.optimizers, record, sums, kept, tensors)
        trainer.ranks.wait()
    state.saved_step = state.step
    trainer.note_progress(status)
    trainer.last_save = trainer.last_flush = time.perf_counter()


def _is_kept(settings: Settings, state: TrainState) -> bool:
    """Tell whether the checkpoint after this step stays for good: as asked for, or before a cool-down."""
    if settings.backup_interval and state.step % settings.backup_interval == 0:
        return True
    return state.step in (whole_numbers(settings.backup_at) or ()) or before_cooldown(settings, state)


def before_cooldown(settings: Settings, state: TrainState) -> bool:
    """Tell whether the next step is the first of a cool-down: of one that was asked for, or of a wsd schedule."""
    phase, done = state.current, math.ceil(state.position / settings.batch_size)
    if phase is None:
        return False
    if phase.cooldown:
        return done == phase.cooldown.start
    planned = Schedule.of(settings).before_cooldown(done, phase.n_scheduled or phase.n_steps)
    return planned and settings.max_minutes is None
