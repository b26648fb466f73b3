"""The memory of captured steps: where a micro-batch is read from, and what a trial leaves untouched."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lmplay.contract import NOT_SCORED
from lmplay.train.batches import Batch

SIZES = 8  # of the lists of scored tokens: a longer list is padded to the next eighth of all tokens

Part = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # as Batch.parts yields it
Key = tuple[int, int, int | None, int | None]  # rows, tokens, length of the list of scored tokens, n_scored if fixed


def key_of(batch: Batch, part: Part) -> Key:
    """Return the shape of a micro-batch, by which its memory and its graph are found."""
    _, targets, rows, _ = part
    everything = batch.n_scored == batch.targets.numel()
    n_listed: int | None = None
    if rows is not None:
        size = -(-targets.numel() // SIZES)
        n_listed = -(-len(rows) // size) * size
        n_listed = n_listed if n_listed < targets.numel() else None
    return targets.size(0), targets.size(1), n_listed, batch.n_scored if everything else None


class Slot:
    """The memory of a micro-batch of one shape, from which its graph reads. `batch` is what `add_gradient` sees of it.

    Where every token of the batch is scored, their number is part of the shape. Else it is read from memory, like the
    list of scored tokens, which is padded with a token that is not scored.
    """

    def __init__(self, key: Key, batch: Batch, device: torch.device) -> None:
        n_rows, length, self.n_listed, n_fixed = key
        self.device, n, self.row_share = device, n_rows * length, n_rows / len(batch.inputs)
        self.flat = torch.zeros(2 * n + (self.n_listed or 0) + 1, dtype=torch.int64, device=device)
        self.inputs = self.flat[:n].view(n_rows, length)
        self.targets = self.flat[n : 2 * n].view(n_rows, length)
        self.rows = None if self.n_listed is None else self.flat[2 * n : -1]
        n_scored: Any = self.flat[-1] if n_fixed is None else n_fixed
        self.batch = Batch(self.inputs, self.targets, n_scored=n_scored, n_bytes=0.0, directions=batch.directions)

    def fill(self, part: Part, n_scored: int) -> None:
        """Put a micro-batch there, in one copy that the device makes when it gets to it."""
        inputs, targets, rows, _ = part
        n = targets.numel()
        there = torch.empty(len(self.flat), dtype=torch.int64, pin_memory=self.device.type == "cuda")
        there[:n] = inputs.flatten()
        there[n : 2 * n] = targets.flatten()
        if rows is not None and self.n_listed is not None:
            there[2 * n : 2 * n + len(rows)] = rows
            there[2 * n + len(rows) : -1] = int((targets.flatten() == NOT_SCORED).int().argmax())
        there[-1] = n_scored
        self.flat.copy_(there, non_blocking=True)


@contextmanager
def untouched(model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> Iterator[None]:
    """Put parameters, buffers and the state of optimizers back after the block, in the memory where they are.

    State that an optimizer makes within the block becomes zero, which is how every optimizer here begins.
    """
    there = [*model.parameters(), *model.buffers(), *_state_of(optimizers)]
    here = _fits_twice(there)
    copies = [tensor.detach().clone() if here else tensor.detach().to("cpu", copy=True) for tensor in there]
    try:
        yield
    finally:
        known = {id(tensor) for tensor in there}
        with torch.no_grad():
            for tensor, saved in zip(there, copies, strict=True):
                tensor.copy_(saved)
            for tensor in _state_of(optimizers):
                if id(tensor) not in known:
                    tensor.zero_()


def _state_of(optimizers: list[torch.optim.Optimizer]) -> list[Tensor]:
    """Return the tensors that the optimizers remember."""
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]


def _fits_twice(tensors: list[Tensor]) -> bool:
    """Whether the device has room for a copy of the tensors, and as much again."""
    device = tensors[0].device
    needed = sum(tensor.nbytes for tensor in tensors)
    return device.type != "cuda" or 2 * needed < torch.cuda.mem_get_info(device)[0]
