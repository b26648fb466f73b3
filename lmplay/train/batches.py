"""Make training batches and cut them into micro-batches."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmplay.contract import NOT_SCORED, Experiment
from lmplay.data.order import SampleOrder
from lmplay.initial_values import seed_of


@dataclass
class Batch:
    """Windows to read and to predict.

    inputs, targets: (B, T) int64 on the CPU; targets are -100 where they are not scored. n_bytes: UTF-8 bytes of the
    scored text, scaled by the fraction of targets that are scored. labels: (B, T), the document of each scored token.
    directions: names of the directions in which each window is read, if there is more than one. Rows are grouped by
    window: window 0 in every direction, then window 1, ... n_rows: of a part of a batch, the rows of the whole; then
    n_scored and n_bytes are the whole's, too.
    """

    inputs: Tensor
    targets: Tensor
    n_scored: int
    n_bytes: float
    labels: Tensor | None = None
    directions: tuple[str, ...] = ()
    n_rows: int | None = None

    @property
    def n_windows(self) -> int:
        """Windows of text, each counted once."""
        return len(self.inputs) // self.n_directions

    @property
    def n_directions(self) -> int:
        """In how many directions each window is read."""
        return len(self.directions) or 1

    def share_of(self, n: int) -> float:
        """Return what part `n` rows are of the whole batch."""
        return n / (self.n_rows or len(self.inputs))

    def most_rows(self, size: int) -> int:
        """Return the rows of the largest of `size` parts of a batch, of which this is one."""
        return -(-(self.n_rows or 0) // (self.n_directions * size)) * self.n_directions

    def part(self, number: int, size: int) -> "Batch":
        """Return the rows of part `number` of `size`: whole windows, in order. The first parts have one more."""
        each, more = divmod(self.n_windows, size)
        first = number * each + min(number, more)
        rows = slice(first * self.n_directions, (first + each + (number < more)) * self.n_directions)
        return dataclasses.replace(
            self,
            inputs=self.inputs[rows],
            targets=self.targets[rows],
            labels=None if self.labels is None else self.labels[rows],
            n_rows=len(self.inputs),
        )

    def rounds(self, count: int) -> Iterator["Batch"]:
        """Yield the rows in `count` parts; one that would be empty is a window of which nothing is scored or counts."""
        for number in range(count):
            part = dataclasses.replace(self.part(number, count), n_rows=self.n_rows)
            if not len(part.inputs):
                nothing = self.inputs.new_zeros(self.n_directions, self.inputs.size(1))
                unscored = torch.full_like(nothing, NOT_SCORED)
                labels = None if self.labels is None else unscored
                part = dataclasses.replace(part, inputs=nothing, targets=unscored, labels=labels, n_rows=0)
            yield part

    def moved(self, n: int) -> "Batch":
        """Return the batch with its rows moved on by `n`, the last ones first."""
        return dataclasses.replace(self, inputs=self.inputs.roll(n, 0), targets=self.targets.roll(n, 0), labels=None)

    def direction_losses(self, losses: Tensor, rows: Tensor | None) -> dict[str, Tensor]:
        """Return what a micro-batch adds to the mean loss of each direction, by "loss_<direction>".

        losses: of its scored tokens; rows: their indices, None for all.
        """
        if not self.directions:
            return {}
        n = len(self.directions)
        index = torch.arange(len(losses), device=losses.device) if rows is None else rows
        direction = index // self.inputs.size(1) % n
        sums = losses.new_zeros(n).index_add_(0, direction, losses)  # each direction scores the same tokens
        named = zip(self.directions, sums, strict=True)
        return {f"loss_{name}": total * n / self.n_scored for name, total in named}

    def parts(
        self, size: int, device: torch.device, scored: bool = True
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
        """Yield micro-batches of `size` rows: inputs, targets, indices of scored tokens (on `device`), labels (CPU).

        Micro-batches without a scored token are left out; `scored` False yields just these. Indices are None if every
        token is scored.
        """
        all_scored = self.n_rows is None and self.n_scored == self.targets.numel()
        if all_scored and not scored:
            return
        size += -size % self.n_directions  # no window is parted
        for start in range(0, len(self.inputs), size):
            inputs, targets = self.inputs[start : start + size], self.targets[start : start + size]
            labels = None if self.labels is None else self.labels[start : start + size].flatten()
            rows = None
            mask = None if all_scored else targets.flatten() != NOT_SCORED
            if mask is not None and not mask.all():
                rows = mask.nonzero().squeeze(1)
                labels = None if labels is None else labels[rows]
            if mask is None or bool(mask.any()) == scored:
                yield _to(inputs, device), _to(targets, device), None if rows is None else _to(rows, device), labels


class TrainingFeed:
    """The batches of one phase of a plan."""

    def __init__(self, experiment: Experiment, order: SampleOrder, bos: int, seed: int) -> None:
        self.experiment, self.order, self.bos, self.seed = experiment, order, bos, seed

    def batch(self, first: int, count: int) -> Batch:
        """Return the samples at positions `first` to `first + count - 1`, always the same for the same seed."""
        windows = self.order.windows(first, count)
        labels, offered = None, windows.tokens.size
        if windows.scored is not None:
            labels, offered = torch.from_numpy(np.where(windows.scored, 0, NOT_SCORED)), int(windows.scored.sum())
        inputs, targets, labels = self.experiment.make_batch(
            torch.from_numpy(windows.tokens), self.bos, seed_of(self.seed, "make_batch", first), labels
        )
        n_scored = int((targets != NOT_SCORED).sum())
        return Batch(
            inputs=inputs,
            targets=targets,
            n_scored=n_scored,
            n_bytes=float(windows.bytes.sum()) * (n_scored / offered if offered else 1.0),
            directions=self.experiment.direction_names,
        )


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
