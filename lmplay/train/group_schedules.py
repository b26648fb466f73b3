"""What changes within a group of parameters besides its rate: the momentum and the weight decay, over the steps.

A group gives points (share of the schedule's steps, value) where it could give a number. Between two points the value
is on a line, before the first and after the last it is theirs. The points are data, so that a captured step can have
the values on its device.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch

from lmplay.errors import UserError

Points = tuple[tuple[float, float], ...]
POINTS = "points"  # of a group: its points by the key that holds the value of the moment
DECAY = "decay_apart"  # the weight decay of the moment of a group whose optimizer takes a number only
SCHEDULED = {"momentum": 1.0, "weight_decay": math.inf}  # what may have points, and what it stays below


def value_at(points: Points, progress: float) -> float:
    """Return the value at a share of the schedule, from 0 to 1."""
    before = [point for point in points if point[0] <= progress]
    if not before:
        return points[0][1]
    (start, low), after = before[-1], points[len(before) :]
    if not after:
        return low
    end, high = after[0]
    return low + (high - low) * (progress - start) / (end - start)


def with_points(group: dict[str, Any], *, muon: bool) -> dict[str, Any]:
    """Return a group whose points, if it has any, are apart, and whose values are those of the first step.

    muon: whether Muon takes it, which reads both values itself. Another optimizer has no use for a schedule of
    momentum, and its decay is taken apart. Raises UserError for points that are none.
    """
    found = {key: _read(key, group[key]) for key in SCHEDULED if isinstance(group.get(key), Sequence)}
    changed = {key: value for key, value in group.items() if key not in found}
    if not muon:
        decay = found.get("weight_decay")
        found = {DECAY: decay} if decay else {}
        changed |= {"weight_decay": 0.0} if decay else {}
    if not found:
        return changed
    return changed | {key: points[0][1] for key, points in found.items()} | {POINTS: found}


def set_values(optimizers: Sequence[torch.optim.Optimizer], progress: float) -> None:
    """Set each value that has points to that at a share of the schedule, from 0 to 1."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for key, points in group.get(POINTS, {}).items():
                group[key] = value_at(points, progress)


def decay_apart(optimizer: torch.optim.Optimizer) -> None:
    """Shrink the weights of groups whose decay has points, as AdamW does before its step (arXiv 1711.05101)."""
    for group in optimizer.param_groups:
        there = [p for p in group["params"] if p.grad is not None] if DECAY in group else []
        if there:
            with torch.no_grad():
                torch._foreach_mul_(there, 1 - group["lr"] * group[DECAY])


class ValuesOnDevice:
    """The values that have points, in memory that a captured step reads."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], device: torch.device) -> None:
        self.scheduled: list[tuple[Points, torch.Tensor]] = []
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for key, points in group.get(POINTS, {}).items():
                    group[key] = torch.full((), points[0][1], device=device)
                    self.scheduled.append((points, group[key]))

    def set(self, progress: float) -> None:
        """Set each value to that at a share of the schedule, without waiting for the device."""
        for points, value in self.scheduled:
            value.fill_(value_at(points, progress))


def _read(key: str, given: Sequence[Any]) -> Points:
    """Return the points of a group's value. Raises UserError where they are none."""
    try:
        points = tuple((float(share), float(value)) for share, value in given)
    except (TypeError, ValueError):
        points = ()
    shares, values = [share for share, _ in points], [value for _, value in points]
    rising = all(a < b for a, b in itertools.pairwise(shares))
    if not (points and rising and all(0 <= s <= 1 for s in shares) and all(0 <= v < SCHEDULED[key] for v in values)):
        raise UserError(
            f"param_groups: {key} takes a number or points (share of the steps, value) whose shares rise from 0 to 1, "
            f"not {given!r}"
        )
    return points
