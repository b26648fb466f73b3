"""The processes that train one run together, each on a device of its own: what the training asks of the others.

A run alone asks nobody. `train.joined` has the answers of several.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch

from lmplay.runs.settings import Settings
from lmplay.train.batches import Batch

T = TypeVar("T")
Figures = dict[str, Any]  # as train.step has them
OnMatrices = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]


class Word(NamedTuple):
    """What is decided after a step: to stop, to save, and how many seconds of training count as over."""

    stop: bool
    save: bool
    seconds: float


class Ranks:
    """This process among those that train a run: `number` of `size`. Rank 0 alone writes. This is a run alone."""

    number, size = 0, 1
    joined = False  # whether there are others to ask, be it none but this one
    sharded = False  # whether each holds a part of the weights

    @property
    def writes(self) -> bool:
        """Whether this process writes the run's files, and speaks."""
        return self.number == 0

    def waits(self) -> bool:
        """Tell whether this rank waits for the others at this moment."""
        return False

    def share(self, batch: Batch) -> Batch:
        """Return this rank's rows of a step's batch."""
        return batch

    def sum_gradients(self, parameters: Sequence[torch.Tensor], figures: Figures) -> Figures:
        """Leave on the parameters the sums of all ranks' gradients, and return the sums of their figures."""
        return figures

    def agree(self, own: Word, batch: Batch) -> Word:
        """Return what all ranks do after the step of this batch, of which each says its own."""
        return own

    def clock(self, seconds: float) -> float:
        """Return the seconds of training by which all decide; seconds: this rank's own."""
        return seconds

    def add_up(self, *tensors: torch.Tensor) -> None:
        """Put the sums over all ranks into tensors on the CPU."""

    def held(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return what this rank holds of tensors: of sharded ones its rows, in the same memory."""
        return tensors

    def share_out(self, matrices: list[torch.Tensor], work: OnMatrices, n_rows: int) -> list[torch.Tensor]:
        """Return what `work` makes of matrices of one shape (n_rows, C), of which each rank takes some.

        Where a rank holds some rows of each, it gives those, and gets those of the results.
        """
        return work(matrices)

    def place(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model with the weights that this rank is to hold."""
        raise NotImplementedError("only a sharded model is placed")

    def check(self, model: torch.nn.Module, settings: Settings, scaled: bool) -> None:
        """Raise UserError for what these ranks can't train. scaled: whether the loss is, for float16."""

    def meaning(self, error: BaseException) -> BaseException:
        """Return the error that an error stands for: it may be that of another rank."""
        return error

    def explained(self) -> AbstractContextManager:
        """Return a context in which errors of sharded weights become one line."""
        return nullcontext()

    def part_of(self, tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
        """Return what this rank holds of a tensor that belongs to a parameter, as its optimizer's state."""
        return tensor

    def gathered(
        self, model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]
    ) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Return the tensors of a checkpoint, whole, for rank 0 to write; None where nothing needs to be gathered."""
        return None

    def take_weights(self, model: torch.nn.Module) -> None:
        """Take the parameters and buffers of rank 0."""

    def told(self, value: T) -> T:
        """Return the value of rank 0."""
        return value

    def one_first(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, done by rank 0 before the others do it: what it has prepared is there then."""
        return work()

    def wait(self) -> None:
        """Wait until all ranks are here."""

    def described(self) -> Mapping[str, Any]:
        """Return what run.json has of them; nothing of a run alone."""
        return {}


ALONE = Ranks()
