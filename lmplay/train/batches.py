"""Make training batches and cut them into micro-batches."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmplay.contract import NOT_SCORED, Experiment
from lmplay.model.initial_values import seed_of


@dataclass
class Batch:
    """inputs and targets (B, T) int64 on the CPU; targets are -100 where they are not scored. n_bytes: of the scored text;
    where the experiment hides some of its targets, their share of it. ways: names of the ways in which each window is read, where
    there are several; the rows are then those of the first window, in their order, those of the second, ..."""

    inputs: Tensor
    targets: Tensor
    n_scored: int
    n_bytes: float
    labels: Tensor | None = None
    ways: tuple[str, ...] = ()

    @property
    def n_windows(self) -> int:
        return len(self.inputs) // self.n_ways

    @property
    def n_ways(self) -> int:
        return len(self.ways) or 1

    def way_losses(self, losses: Tensor, rows: Tensor | None) -> dict[str, Tensor]:
        """Of a part's losses and indices of scored tokens: what they add to the mean loss of each way, by "loss_<way>"."""
        if not self.ways:
            return {}
        index = torch.arange(len(losses), device=losses.device) if rows is None else rows
        way = index // self.inputs.size(1) % len(self.ways)
        sums = losses.new_zeros(len(self.ways)).index_add_(0, way, losses)  # each way scores the same tokens
        return {f"loss_{name}": total * len(self.ways) / self.n_scored for name, total in zip(self.ways, sums)}

    def parts(self, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
        """The batch `size` rows at a time, on `device`: inputs, targets, indices of the scored tokens, their labels (CPU).

        Parts without a scored token are left out. Indices and labels are None where every token is scored, or unlabelled.
        """
        size += -size % self.n_ways  # no window is parted
        for start in range(0, len(self.inputs), size):
            inputs, targets = self.inputs[start : start + size], self.targets[start : start + size]
            labels = None if self.labels is None else self.labels[start : start + size].flatten()
            rows = None
            mask = targets.flatten() != NOT_SCORED
            if not mask.all():
                rows = mask.nonzero().squeeze(1)
                if not len(rows):
                    continue
                labels = None if labels is None else labels[rows]
            yield _to(inputs, device), _to(targets, device), None if rows is None else _to(rows, device), labels


class TrainingFeed:
    """The batches of one step of a plan. `order` is a lmplay.data.order.SampleOrder."""

    def __init__(self, experiment: Experiment, order, bos: int, seed: int):
        self.experiment, self.order, self.bos, self.seed = experiment, order, bos, seed

    def batch(self, first: int, count: int) -> Batch:
        """The samples at positions `first` to `first + count - 1`: always the same for the same seed."""
        windows = self.order.windows(first, count)
        labels, offered = None, windows.tokens.size
        if windows.scored is not None:
            labels, offered = torch.from_numpy(np.where(windows.scored, 0, NOT_SCORED)), int(windows.scored.sum())
        inputs, targets, labels = self.experiment.make_batch(
            torch.from_numpy(windows.tokens), self.bos, seed_of(self.seed, "make_batch", first), labels
        )
        n_scored = int((targets != NOT_SCORED).sum())
        return Batch(
            inputs,
            targets,
            n_scored,
            float(windows.bytes.sum()) * (n_scored / offered if offered else 1.0),
            ways=self.experiment.direction_names,
        )


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
