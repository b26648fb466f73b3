"""Take one step: the gradient of a batch, micro-batch by micro-batch, and the change of the weights."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from lmplay.model.adapters import derived_once
from lmplay.model.initial_values import seed_of
from lmplay.model.loss import score
from lmplay.runs.names import EXTRA_PREFIX
from lmplay.runs.settings import Settings
from lmplay.train.batches import Batch
from lmplay.train.optimizers import clip_gradients

Figures = dict[str, Any]  # by name: numbers, or tensors on the device that may still be computed
Precision = Callable[[], AbstractContextManager]


@dataclass
class Step:
    """A step that was taken.

    row: its counters and learning rate, as train.csv has them. first_sample: position of its batch in the phase.
    figures: loss_sum and n_correct over all scored tokens, gradient_norm, and what the experiment reports.
    """

    row: dict[str, Any]
    first_sample: int
    n_scored: int
    n_bytes: float
    figures: Figures


def accumulate_gradients(
    model: torch.nn.Module,
    batch: Batch,
    *,
    micro_batch_size: int,
    device: torch.device,
    precision: Precision,
    scaler: torch.amp.GradScaler,
    seed: int,
    step: int,
) -> Figures:
    """Leave on the parameters the gradient of the mean loss over all scored tokens of the batch; return its figures.

    seed and step decide what is random in a forward pass, so that a resumed run repeats it.
    """
    loss_sum: Any = 0.0
    n_correct: Any = 0
    extras: Figures = {}
    parts = math.ceil(len(batch.inputs) / micro_batch_size)
    rows_at_once = math.ceil(len(batch.inputs) / parts)
    torch.manual_seed(seed_of(seed, "derive", step))
    with derived_once(model, precision):
        for number, (inputs, targets, rows, _) in enumerate(batch.parts(rows_at_once, device)):
            torch.manual_seed(seed_of(seed, "forward", step, number))
            with precision():
                result = score(model, inputs, targets, rows)
            share = len(result.losses) / batch.n_scored
            objective = result.loss_sum / batch.n_scored
            if "loss" in result.extra:
                objective = objective + result.extra["loss"] * share
            scaler.scale(objective).backward()
            loss_sum = loss_sum + result.loss_sum.detach()
            n_correct = n_correct + result.correct.sum()
            for name, value in result.extra.items():
                value = value.detach() if isinstance(value, torch.Tensor) else value
                extras[name] = extras.get(name, 0.0) + value * share
            for name, value in batch.direction_losses(result.losses, rows).items():
                extras[name] = extras.get(name, 0.0) + value
    return {"loss_sum": loss_sum, "n_correct": n_correct} | {EXTRA_PREFIX + name: v for name, v in extras.items()}


def change_weights(
    optimizers: list[torch.optim.Optimizer],
    parameters: Sequence[torch.Tensor],
    scaler: torch.amp.GradScaler,
    settings: Settings,
) -> torch.Tensor:
    """Clip the gradients, step the optimizers and drop the gradients. Returns the norm before clipping."""
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = clip_gradients(parameters, settings.grad_clip or math.inf, settings.clip_value or math.inf)
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    return norm


def read_figures(steps: list[Step], device: torch.device) -> list[dict[str, float]]:
    """Return the figures of each step as numbers. Waits for all that the device has to do, once for all steps."""
    names = list(dict.fromkeys(name for step in steps for name in step.figures))
    table = [
        torch.stack([torch.as_tensor(step.figures.get(name, 0.0), device=device).float().reshape(()) for name in names])
        for step in steps
    ]
    return [
        {name: value for name, value in zip(names, values, strict=True) if name in step.figures}
        for step, values in zip(steps, torch.stack(table).tolist(), strict=True)
    ]


def train_row(step: Step, figures: dict[str, float], *, seconds: float, tokens_per_second: float) -> dict[str, Any]:
    """Return the row of train.csv of a step. Losses of a step that scored no token are None."""
    n_scored = step.n_scored
    reported = {name: value for name, value in figures.items() if name not in ("loss_sum", "n_correct")}
    return step.row | {
        "seconds": round(seconds, 4),
        "loss": figures["loss_sum"] / n_scored if n_scored else None,
        "accuracy": figures["n_correct"] / n_scored if n_scored else None,
        "bits_per_byte": figures["loss_sum"] / math.log(2) / step.n_bytes if n_scored and step.n_bytes else None,
        "tokens_per_second": tokens_per_second,
        **reported,
    }
