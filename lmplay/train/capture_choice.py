"""Choose before the first step whether a run's steps are replayed as CUDA graphs, and keep the choice.

Tried is what would be done: a few steps eagerly and a few as graphs, from the same weights, on the same sequences. They
are replayed where both come to the same. Nothing of the trial stays. run.json has the choice and why, and a run that
goes on keeps it.
"""

import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any

import torch

from lmplay.errors import UserError
from lmplay.model.adapters import sparse_parameters
from lmplay.model.shortcuts import shadow
from lmplay.random_numbers import apart_from_global_numbers
from lmplay.runs.settings import Settings
from lmplay.train.batches import Batch
from lmplay.train.capture_checks import check_repeats
from lmplay.train.captured_memory import untouched
from lmplay.train.captured_step import CapturedStep, NotCapturable
from lmplay.train.step import EagerStep, Step, read_figures

TRIAL_STEPS = 3
EQUAL = 1e-3  # relative difference of losses and gradient norms; sums on a GPU may come in another order
TAKEN = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop)

Note = dict[str, Any]  # run.json's: "mode" on or off, "why", and "difference" of the trial


def choose(
    eager: EagerStep, batch: Batch, *, micro_batch_size: int, before: Note | None, resumed: bool
) -> tuple[CapturedStep | None, Note | None]:
    """Return what takes the steps, None for eager ones, and the note for run.json, None where there is no choice.

    batch: on which it is tried. before: the note of the run that goes on; `resumed` and no note: it is of an
    earlier version, which took every step eagerly. Raises UserError for --cuda-graph on where there is no CUDA device.
    """
    asked, device = eager.settings.cuda_graph, eager.device
    check_asked(eager.settings, device)
    if device.type != "cuda":
        return None, None
    if asked == "off":
        return None, {"mode": "off", "why": "--cuda-graph off"}
    if asked == "auto" and resumed and (before is None or before["mode"] == "off"):
        return None, before or {"mode": "off", "why": "the run was begun without"}
    why = known_obstacle(eager)
    captured = None
    if why is None:
        captured = CapturedStep(eager, micro_batch_size)
        with apart_from_global_numbers():
            why, difference = trial(captured, batch)
    if captured is not None and why is None:
        return captured, {"mode": "on", "why": "equal to eager steps in a trial", "difference": difference}
    if captured is not None:
        captured.release()
        del captured
        torch.cuda.empty_cache()
    print(f"steps are taken one operation at a time, without a CUDA graph: {why}", file=sys.stderr)
    return None, {"mode": "off", "why": why}


def check_asked(settings: Settings, device: torch.device) -> None:
    """Raise UserError for --cuda-graph on where there is no CUDA device."""
    if settings.cuda_graph == "on" and device.type != "cuda":
        raise UserError(f"--cuda-graph on: {device} has no CUDA graphs; leave the flag out, or use --device cuda")


def known_obstacle(eager: EagerStep) -> str | None:
    """Return why the steps can't be replayed, as far as it is known without a trial; None if nothing is."""
    from lmplay.train.muon import Muon

    if eager.scaler.is_enabled():
        return "the loss is scaled for float16, and whether a step counts is asked each time"
    if sparse_parameters(eager.model):
        return "a table has row-sparse gradients, as long as the batch has different tokens"
    if any(p.device != eager.device for p in eager.parameters):
        return "not all parameters are on the GPU"
    for optimizer in eager.optimizers:
        if not isinstance(optimizer, (*TAKEN, Muon)):
            return f"{type(optimizer).__name__} counts its steps outside of the GPU"
    return None


def trial(captured: CapturedStep, batch: Batch) -> tuple[str | None, float]:
    """Take a few steps eagerly and as graphs. Return why not to replay them, or None, and the largest difference."""
    optimizers = captured.optimizers
    fresh = not any(optimizer.state for optimizer in optimizers)
    why, difference = None, 0.0
    try:
        rehearse(captured, batch)
        eager = _figures(captured, batch, captured.eagerly)
        replayed = _figures(captured, batch, captured)
        difference = _largest_difference(eager, replayed)
        if not difference <= EQUAL:
            why = f"its losses are not those of eager steps (they differ by {difference:.1g} of their size)"
    except NotCapturable as error:
        why = str(error)
    except (RuntimeError, TypeError, ValueError) as error:  # of a capture: it leaves the generator unusable
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        _renew_generator(captured.device)
    if why is not None and fresh:
        for optimizer in optimizers:
            optimizer.state.clear()
    return why, difference


def rehearse(captured: CapturedStep, batch: Batch) -> None:
    """Look at each operation of a step. Raises NotCapturable.

    The step is that of a copy which shares the parameters: what a model counts in Python stays as it was.
    """
    asked = shadow(captured.model)
    eager = dataclasses.replace(captured.eager, model=asked)
    try:
        step = CapturedStep(eager, captured.micro_batch_size, capture=False)
        with untouched(asked, captured.optimizers):
            check_repeats(step.rehearsal(batch), captured.device, asked)
    finally:
        captured.rates.bind()


def _figures(captured: CapturedStep, batch: Batch, take: Callable[[Batch, int], Any]) -> list[dict[str, float]]:
    """Return the figures of a few steps, each on other rows and at another rate, without a lasting effect."""
    steps = []
    with untouched(captured.model, captured.optimizers):
        for number in range(TRIAL_STEPS):
            moved = batch.moved(number * batch.n_directions)
            captured.set_rates(0.1 * (1 + number))
            figures = take(moved, number)
            steps.append(Step(row={}, first_sample=0, n_scored=batch.n_scored, n_bytes=0.0, figures=figures))
        return read_figures(steps, captured.device)


def _largest_difference(some: list[dict[str, float]], others: list[dict[str, float]]) -> float:
    """Return the largest difference of losses and norms, as a part of their size; infinite where one is no number."""
    pairs = [
        (one[name], other[name])
        for one, other in zip(some, others, strict=True)
        for name in ("loss_sum", "gradient_norm")
    ]
    differences = [abs(a - b) / max(abs(a), abs(b), 1e-30) if math.isfinite(a - b) else math.inf for a, b in pairs]
    return max(differences)


def _renew_generator(device: torch.device) -> None:
    """Give the device's generator a state of its own: that of a capture that failed takes no seed any more."""
    if device.type != "cuda":
        return
    fresh = torch.Generator(device)
    torch.cuda.default_generators[device.index or 0].graphsafe_set_state(fresh.graphsafe_get_state())
