"""Choose before the first step whether a run's model is compiled, and keep the choice.

Compiling takes up to minutes and makes each step shorter. How much of both is measured once for a machine and a model,
in a run that is long enough, and kept for later runs. Measured is a copy that shares the parameters: nothing stays.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch

from lmplay.model.measured import keep, known, wait_for
from lmplay.model.shortcuts import shadow
from lmplay.random_numbers import apart_from_global_numbers
from lmplay.train.batches import Batch
from lmplay.train.build import compile_model
from lmplay.train.capture_choice import known_obstacle, trial
from lmplay.train.captured_memory import untouched
from lmplay.train.captured_step import CapturedStep
from lmplay.train.optimizers import set_rates
from lmplay.train.step import EagerStep

LONG = {"cpu": 1800.0, "cuda": 600.0}  # seconds of a run in which measuring may pay
LEAST_PEAK = 0.05  # part of the peak by which it is guessed whether a run may be long
EQUAL = 0.05  # relative difference of losses; a compiled model draws other dropout masks
COMPILES = 4  # shapes that a run has: whole and short batches, in training and validation
SECONDS, TURNS, STEPS = 3.0, 5, 10  # of a timing: at most, at most, and on a GPU in each turn

Note = dict[str, Any]  # run.json's: "mode" on or off, "why", and "factor", by which a step is shorter


@dataclass(frozen=True)
class Length:
    """What is left of a run: steps, and the seconds that they take at most, by LEAST_PEAK.

    key: of machine, model and shapes.
    """

    steps: int
    most_seconds: float
    key: str


def choose_compiled(
    eager: EagerStep, batch: Batch, *, micro_batch_size: int, before: Note | None, length: Length
) -> Note | None:
    """Return whether the model is to be compiled, and why; None where nothing could compile it and nobody asked.

    before: the note of the run that goes on.
    """
    asked, device = eager.settings.compile, eager.device
    if asked == "off":
        return {"mode": "off", "why": "--no-compile"}
    if asked == "auto" and (before is not None or not compiler_for(device)):
        return before
    try:
        if asked == "on":
            with _copied(eager, compiled=False) as plain:
                loss = _take(plain, batch, micro_batch_size)
            with _copied(eager, compiled=True) as compiled:
                _check_loss(_take(compiled, batch, micro_batch_size), loss)
            return {"mode": "on", "why": "--compile"}
        timing = known("compiled", length.key)
        if not _is_timing(timing):
            enough = length.most_seconds >= LONG[device.type]
            timing = measured(eager, batch, micro_batch_size, length.steps) if enough else None
            if timing is None:
                return {"mode": "off", "why": "the run is too short to find out whether it pays"}
            keep("compiled", length.key, timing)
    except _NotCompiled as error:
        print(f"the model is not compiled: {error}", file=sys.stderr)
        return {"mode": "off", "why": str(error)}
    return by_timing(timing, length.steps)


def by_timing(timing: dict[str, float], steps: int) -> Note:
    """Return whether it pays in `steps` steps. timing: seconds of a step, plain and compiled, and of the start."""
    factor = timing["plain_s"] / timing["compiled_s"]
    gain = steps * (timing["plain_s"] - timing["compiled_s"])
    pays = gain > COMPILES * timing["start_s"]
    why = f"a step is {factor:.2f} times as fast" + ("" if pays else ", which does not pay in this run")
    return {"mode": "on" if pays else "off", "why": why, "factor": round(factor, 3)}


def compiler_for(device: torch.device) -> bool:
    """Whether torch.compile finds here what it needs: a C++ compiler for a CPU, Triton and a C compiler for a GPU."""
    if device.type not in LONG:
        return False
    names = [os.environ.get("CXX", ""), "g++", "clang++", "cl"] if device.type == "cpu" else ["gcc", "cc", "clang"]
    there = any(name and shutil.which(name) for name in names)
    return there and (device.type == "cpu" or find_spec("triton") is not None)


def measured(eager: EagerStep, batch: Batch, micro_batch_size: int, steps: int) -> dict[str, float] | None:
    """Return the seconds of a step, plain and compiled, and of the start; None if `steps` are too few for it."""
    with _copied(eager, compiled=False) as plain:
        loss = _take(plain, batch, micro_batch_size)
        plain_s = _seconds(plain, batch, micro_batch_size)
    if plain_s * steps < LONG[eager.device.type]:
        return None
    print("compiling, to see whether it pays in this run ...", file=sys.stderr)
    with _copied(eager, compiled=True) as compiled:
        started = time.perf_counter()
        _check_loss(_take(compiled, batch, micro_batch_size), loss)
        start_s = time.perf_counter() - started - plain_s
        return {
            "plain_s": plain_s,
            "compiled_s": _seconds(compiled, batch, micro_batch_size),
            "start_s": max(0.0, start_s),
        }


class _NotCompiled(Exception):
    """Why the model can't be compiled."""


@contextmanager
def _copied(eager: EagerStep, compiled: bool) -> Iterator[EagerStep]:
    """Yield what takes the steps of a copy of the model; parameters and optimizers are as before after the block.

    Raises _NotCompiled for what fails in the block.
    """
    model = shadow(eager.model)
    if model is eager.model:
        raise _NotCompiled("it can't be copied")
    fresh = not any(optimizer.state for optimizer in eager.optimizers)
    try:
        with apart_from_global_numbers(), untouched(model, eager.optimizers):
            if compiled:
                compile_model(model)
            yield replace(eager, model=model)
    except Exception as error:  # the compiler runs the model's code, and raises what it likes
        raise _NotCompiled(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}") from error
    finally:
        for p in eager.parameters:
            p.grad = None
        if fresh:
            for optimizer in eager.optimizers:
                optimizer.state.clear()


def _take(eager: EagerStep, batch: Batch, micro_batch_size: int) -> float:
    """Take a step and return its summed loss."""
    return float(eager.change(batch, eager.gradients(batch, 0, micro_batch_size))["loss_sum"])


def _check_loss(compiled: float, plain: float) -> None:
    """Raise _NotCompiled for a loss that is another one, as far as other dropout masks allow to tell."""
    if not abs(compiled - plain) <= EQUAL * abs(plain):
        raise _NotCompiled(f"compiled, its loss is another one ({compiled:.6g} instead of {plain:.6g}, summed)")


def _seconds(eager: EagerStep, batch: Batch, micro_batch_size: int) -> float:
    """Return the seconds of a step, as a graph where the run replays graphs."""
    graphs = eager.device.type == "cuda" and eager.settings.cuda_graph != "off" and known_obstacle(eager) is None
    captured = CapturedStep(eager, micro_batch_size) if graphs else None
    try:
        if captured is not None and trial(captured, batch)[0] is None:
            captured.set_rates(0.1)
            return _timed(lambda: captured(batch, 0), eager.device)
        set_rates(eager.optimizers, 0.1)
        return _timed(lambda: _take(eager, batch, micro_batch_size), eager.device)
    finally:
        if captured is not None:
            captured.release()


def _timed(step: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of the fastest of a few turns of steps."""
    step()
    best, turns, begun = float("inf"), 0, time.perf_counter()
    while not turns or (turns < TURNS and time.perf_counter() - begun < SECONDS):
        wait_for(device)
        start = time.perf_counter()
        for _ in range(STEPS if device.type == "cuda" else 1):
            step()
        wait_for(device)
        best = min(best, (time.perf_counter() - start) / (STEPS if device.type == "cuda" else 1))
        turns += 1
    return best


def _is_timing(found: Any) -> bool:
    """Whether what was kept is a timing."""
    names = ("plain_s", "compiled_s", "start_s")
    return isinstance(found, dict) and all(isinstance(found.get(n), float) and found[n] >= 0 for n in names)
