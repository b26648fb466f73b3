"""Take one step: the gradient of a batch, micro-batch by micro-batch, and the change of the weights."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch

from lmplay.initial_values import seed_of
from lmplay.model.adapters import derived_once, offered
from lmplay.model.device import amp_dtype
from lmplay.model.loss import score
from lmplay.random_numbers import seed_everything
from lmplay.runs.names import EXTRA_PREFIX, MFU
from lmplay.runs.settings import Settings
from lmplay.train.batches import Batch
from lmplay.train.group_schedules import decay_apart
from lmplay.train.optimizers import clip_gradients
from lmplay.train.ranks import ALONE, Ranks

Figures = dict[str, Any]  # by name: numbers, or tensors on the device that may still be computed
Precision = Callable[[], AbstractContextManager]


@dataclass
class Packed:
    """Figures of a step as one tensor (len(names),) on the device."""

    names: tuple[str, ...]
    values: torch.Tensor


class Wanted(NamedTuple):
    """A step to take: with this batch, as the run's step number `step`, at `factor` of the learning rates.

    progress: where the schedule stands, from 0 to 1, for what else changes over the steps.
    """

    batch: Batch
    step: int
    factor: float
    progress: float = 0.0


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
    figures: Figures | Packed


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
    rank: int = 0,
) -> Figures:
    """Leave on the parameters the gradient of the mean loss over all scored tokens of the batch; return its figures.

    What the experiment reports counts as a mean over rows. So micro-batches that score no token are run as well if it
    reports anything. seed, step and rank decide what is random in a forward pass, so that a resumed run repeats it. Of
    a rank's part of a batch it is the part of that gradient.
    """
    figures: Figures = {"loss_sum": 0.0, "n_correct": 0}
    if not len(batch.inputs):
        return figures
    if offered(model, "derive") is not None:
        seed_everything(seed_of(seed, "derive", step))
    with derived_once(model, precision):
        size = rows_at_once(batch, micro_batch_size)
        parts = chain(batch.parts(size, device), batch.parts(size, device, scored=False))
        for number, (inputs, targets, rows, _) in enumerate(parts):
            asked = number or not batch.n_scored  # a part of a batch may score nothing, and its first rows tell then
            if asked and rows is not None and not len(rows) and not any(n.startswith(EXTRA_PREFIX) for n in figures):
                break
            seed_everything(seed_of(seed, "forward", step, number, *([rank] if rank else [])))
            more = add_gradient(
                model,
                batch,
                inputs,
                targets,
                rows,
                row_share=batch.share_of(len(inputs)),
                precision=precision,
                scaler=scaler,
            )
            for name, value in more.items():
                figures[name] = figures.get(name, 0.0) + value
    return figures


def accumulate_in_rounds(
    model: torch.nn.Module,
    batch: Batch,
    *,
    count: int,
    device: torch.device,
    precision: Precision,
    scaler: torch.amp.GradScaler,
    seeds: tuple[Any, ...],
) -> Figures:
    """Do the same with a rank's part of a batch in `count` forward passes, as many as all ranks take."""
    figures: Figures = {"loss_sum": 0.0, "n_correct": 0}
    for number, part in enumerate(batch.rounds(count)):
        counts = part.n_rows != 0
        for scored in (True, False):
            for inputs, targets, rows, _ in part.parts(len(part.inputs), device, scored=scored):
                seed_everything(seed_of(*seeds, number))
                share = batch.share_of(len(inputs)) if counts else 0.0
                more = add_gradient(
                    model, batch, inputs, targets, rows, row_share=share, precision=precision, scaler=scaler
                )
                for name, value in more.items():
                    figures[name] = figures.get(name, 0.0) + value
    return figures


def rows_at_once(batch: Batch, micro_batch_size: int) -> int:
    """Return the rows of a micro-batch: the batch in as few parts as may be, all about as long."""
    parts = math.ceil(len(batch.inputs) / micro_batch_size)
    return math.ceil(len(batch.inputs) / parts)


def add_gradient(
    model: torch.nn.Module,
    batch: Batch,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    rows: torch.Tensor | None,
    *,
    row_share: float,
    precision: Precision,
    scaler: torch.amp.GradScaler,
) -> Figures:
    """Add to the parameters' gradients that of a micro-batch; return what it adds to the figures of the batch.

    row_share: the part of the batch's rows that it holds: the weight of what the experiment reports. In a captured step
    (`train.graph`) batch.n_scored is a tensor.
    """
    with precision():
        result = score(model, inputs, targets, rows)
    objective = result.loss_sum / batch.n_scored
    if "loss" in result.extra:
        objective = objective + result.extra["loss"] * row_share
    scaler.scale(objective).backward()
    figures: Figures = {"loss_sum": result.loss_sum.detach(), "n_correct": result.correct.sum()}
    for name, value in result.extra.items():
        figures[EXTRA_PREFIX + name] = (value.detach() if isinstance(value, torch.Tensor) else value) * row_share
    losses = batch.direction_losses(result.losses, rows)
    return figures | {EXTRA_PREFIX + name: value for name, value in losses.items()}


def change_weights(
    optimizers: list[torch.optim.Optimizer],
    parameters: Sequence[torch.Tensor],
    scaler: torch.amp.GradScaler,
    settings: Settings,
) -> torch.Tensor:
    """Clip the gradients, step the optimizers and drop the gradients. Returns the norm before clipping.

    With a scaled loss, a gradient that is not finite keeps every optimizer from its step: the norm, by which all
    gradients are clipped, would carry it from one to the others.
    """
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = clip_gradients(parameters, settings.grad_clip or math.inf, settings.clip_value or math.inf)
    if not (scaler.is_enabled() and overflowed(parameters, norm)):
        for optimizer in optimizers:
            decay_apart(optimizer)
            scaler.step(optimizer)
    scaler.update()
    for parameter in parameters:
        parameter.grad = None
    return norm


def loss_scaler(device: torch.device, amp: bool) -> torch.amp.GradScaler:
    """Return what scales a float16 loss; disabled in other precisions."""
    return torch.amp.GradScaler(device.type, enabled=amp and amp_dtype(device) is torch.float16)


def overflowed(parameters: Sequence[torch.Tensor], norm: torch.Tensor) -> bool:
    """Tell whether a gradient is not finite. Only a norm that is not finite costs more than a look at the norm."""
    if norm.isfinite():
        return False
    gradients = (p.grad.coalesce().values() if p.grad.is_sparse else p.grad for p in parameters if p.grad is not None)
    return not all(bool(gradient.isfinite().all()) for gradient in gradients)


@dataclass
class EagerStep:
    """Takes the steps of a training one operation at a time: what it is made of, first gradients, then the change.

    scaler: of a float16 loss; disabled in other precisions. ranks: who else takes a part of each batch.
    """

    model: torch.nn.Module
    optimizers: list[torch.optim.Optimizer]
    parameters: Sequence[torch.Tensor]
    settings: Settings
    device: torch.device
    precision: Precision
    scaler: torch.amp.GradScaler
    ranks: Ranks = ALONE

    def gradients(self, batch: Batch, step: int, micro_batch_size: int) -> Figures:
        """Leave on the parameters the gradient of this rank's part of a batch for step `step`; return its figures."""
        part = self.ranks.share(batch)
        if self.ranks.sharded and batch.n_scored:
            with self.ranks.explained():
                return accumulate_in_rounds(
                    self.model,
                    part,
                    count=-(-part.most_rows(self.ranks.size) // micro_batch_size),
                    device=self.device,
                    precision=self.precision,
                    scaler=self.scaler,
                    seeds=(self.settings.seed, "forward", step, self.ranks.number),
                )
        return accumulate_gradients(
            self.model,
            part,
            micro_batch_size=micro_batch_size,
            device=self.device,
            precision=self.precision,
            scaler=self.scaler,
            seed=self.settings.seed,
            step=step,
            rank=self.ranks.number,
        )

    def change(self, batch: Batch, figures: Figures) -> Figures:
        """Change the weights by these gradients, if the batch scored a token; return the figures with the norm."""
        norm: Any = 0.0
        if batch.n_scored:
            figures = self.ranks.sum_gradients(self.parameters, figures)
            norm = change_weights(self.optimizers, self.parameters, self.scaler, self.settings)
        return {"gradient_norm": norm, **figures}


def read_figures(steps: list[Step], device: torch.device) -> list[dict[str, float]]:
    """Return the figures of each step as numbers. Waits for all that the device has to do, once for all steps."""
    packed: Packed | None = next((step.figures for step in steps if isinstance(step.figures, Packed)), None)
    if packed is not None and all(isinstance(s.figures, Packed) and s.figures.names == packed.names for s in steps):
        table = torch.stack([step.figures.values for step in steps if isinstance(step.figures, Packed)]).tolist()
        return [dict(zip(packed.names, values, strict=True)) for values in table]
    figures = [_unpacked(step.figures) for step in steps]
    names = list(dict.fromkeys(name for of_step in figures for name in of_step))
    rows = [
        torch.stack([torch.as_tensor(of_step.get(name, 0.0), device=device).float().reshape(()) for name in names])
        for of_step in figures
    ]
    return [
        {name: value for name, value in zip(names, values, strict=True) if name in of_step}
        for of_step, values in zip(figures, torch.stack(rows).tolist(), strict=True)
    ]


def _unpacked(figures: Figures | Packed) -> Figures:
    return dict(zip(figures.names, figures.values, strict=True)) if isinstance(figures, Packed) else figures


def train_row(
    step: Step, figures: dict[str, float], *, seconds: float, tokens_per_second: float, mfu: float
) -> dict[str, Any]:
    """Return the row of train.csv of a step. Losses of a step that scored no token are None."""
    n_scored = step.n_scored
    reported = {name: value for name, value in figures.items() if name not in ("loss_sum", "n_correct")}
    return step.row | {
        "seconds": round(seconds, 4),
        "loss": figures["loss_sum"] / n_scored if n_scored else None,
        "accuracy": figures["n_correct"] / n_scored if n_scored else None,
        "bits_per_byte": figures["loss_sum"] / math.log(2) / step.n_bytes if n_scored and step.n_bytes else None,
        "tokens_per_second": tokens_per_second,
        MFU: mfu,
        **reported,
    }
