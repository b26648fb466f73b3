"""Stop a training whose loss, gradient or weights are not finite."""

import math
from pathlib import Path
from typing import NoReturn

import torch

from lmplay.runs import checkpoints
from lmplay.runs.names import CHECKPOINTS, PLAN_STEP, STEP
from lmplay.train.step import Step

LEAST_SCALE = 2.0**-16  # of a float16 loss: below it, every step for long has overflowed


def check_finite(step: Step, loss: float, norm: float, scaler: torch.amp.GradScaler, folder: Path) -> None:
    """Raise FloatingPointError if the loss or the gradient's norm of a step is not finite. folder: that of the run."""
    # float16 steps over a gradient that overflowed, and scales the loss down; not for ever
    steps_over = scaler.is_enabled() and scaler.get_scale() >= LEAST_SCALE
    if math.isfinite(loss) and (steps_over or math.isfinite(norm)):
        return
    what, value = ("gradient", norm) if math.isfinite(loss) else ("loss", loss)
    refuse_to_go_on(
        folder,
        f"the {what} is not finite ({value}) at step {step.row[STEP]}, on the samples from position "
        f"{step.first_sample} of phase {step.row[PLAN_STEP]!r} on",
    )


def refuse_to_go_on(folder: Path, why: str) -> NoReturn:
    """Raise FloatingPointError, with what is kept of the run in `folder` and what to try."""
    last = checkpoints.latest(folder / CHECKPOINTS)
    nothing = "nothing was saved before it, so that no finite weights are kept (--save-interval N saves every N steps)"
    kept = f"the checkpoint {last.name} is kept" if last else nothing
    raise FloatingPointError(
        f"{why}: stopped, {kept}; try a lower --lr, a longer --warmup-steps or a smaller --grad-clip under "
        "another --run-name"
    )
