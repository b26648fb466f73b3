"""Fit a training into memory: refuse what can't fit, choose the micro-batch, know a failed allocation."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lmplay.errors import UserError
from lmplay.model.cost import activation_bytes, derived_bytes, training_bytes
from lmplay.model.device import free_memory
from lmplay.runs.settings import OPTIMIZERS
from lmplay.text import mebibytes
from lmplay.train.setup import Setup

CPU_TOKENS_AT_ONCE = 8192
SHARE = 0.7  # of the free memory: the estimate is not exact, and validation and saving need some, too


def check_memory(setup: Setup, device: torch.device) -> None:
    """Raise UserError where the model and one sequence do not fit into main memory.

    Nothing is built for it. A system ends a process that takes too much, and says nothing. A GPU says no by itself.
    """
    if device.type != "cpu":
        return
    free, taken = free_memory(device), _taken(setup)
    if taken + setup.cost.kept_bytes <= free:
        return
    needed = taken + _bytes_per_sequence(setup)
    if needed > free:
        raise UserError(
            f"training this model on sequences of {setup.context_len:,} tokens takes about {mebibytes(needed)}, one "
            f"sequence at a time, and {mebibytes(free)} of memory are free: choose a shorter --context-len or a "
            "smaller variant"
        )


def micro_batch_size(setup: Setup, device: torch.device, seeds: int = 1) -> int:
    """Return --micro-batch-size, or a size chosen from memory, in sequences; the weights must be on the device.

    seeds: N runs take that many sequences each at the same time, and share what one alone would take.

    70% of the free memory is used. On a CPU more than CPU_TOKENS_AT_ONCE tokens do not pay.
    """
    settings = setup.settings
    if settings.mini_batch_size:
        return max(1, min(settings.mini_batch_size // seeds, settings.batch_size))
    most = settings.batch_size if device.type == "cuda" else CPU_TOKENS_AT_ONCE // (seeds * setup.context_len)
    most = max(1, min(most, settings.batch_size))
    if device.type not in ("cuda", "cpu"):
        return most
    # the weights are there already; gradients and optimizer come
    room = int(SHARE * free_memory(device)) // seeds - (_taken(setup) - 4 * setup.cost.parameters)
    if most * setup.cost.kept_bytes <= room:  # at most as much as this, so that nothing needs to be counted
        return most
    room -= derived_bytes(setup.experiment, setup.config, settings.amp)
    return max(1, min(room // _bytes_per_sequence(setup), most))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory could not be taken, a GPU's or main memory."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


class MicroBatches:
    """The size of micro-batches in sequences: as chosen, and half of it each time that memory runs out.

    halved: whether it was since that was last asked. fixed: it is the same for all ranks, and never halved.
    """

    def __init__(
        self, size: int, parameters: Sequence[torch.Tensor], device: torch.device, fixed: bool = False
    ) -> None:
        self.fixed = fixed
        self.size, self.parameters, self.device = size, parameters, device
        self.halved = False

    def run(self, work: Callable[[int], Any]) -> Any:
        """Return work(size). Where memory runs out, the gradients are dropped and all of it is done again with half.

        Raises UserError where a single sequence doesn't fit.
        """
        while True:
            try:
                return work(self.size)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self._halve()  # not in the block above: there the exception still holds what the work had taken

    def _halve(self) -> None:
        if self.fixed:
            raise UserError(
                f"out of memory with {self.size} sequences per micro-batch: type a smaller --micro-batch-size"
            )
        if self.size == 1:
            raise UserError(
                "out of memory with a single sequence: choose a shorter --context-len, a smaller variant, or --amp"
            )
        self.size //= 2
        self.halved = True
        for parameter in self.parameters:
            parameter.grad = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _taken(setup: Setup) -> int:
    """Return the bytes of weights, gradients and optimizer."""
    return training_bytes(setup.cost, 0, 0, OPTIMIZERS[setup.settings.optimizer].states)


def _bytes_per_sequence(setup: Setup) -> int:
    return activation_bytes(setup.experiment, setup.config, setup.settings.amp)
