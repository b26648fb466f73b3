"""Call a model twice and see whether its logits move."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lmplay.contract import Experiment
from lmplay.errors import UserError
from lmplay.model.adapters import split_output
from lmplay.random_numbers import seed_everything

# A difference of logits, as a part of the largest one. Above SURE they moved. Below NOISE it is rounding. In between
# the answer is that of the same model in float64, where rounding is below EXACT.
SURE, NOISE, EXACT = 1e-3, 1e-6, 1e-9

Pair = Callable[[torch.nn.Module], tuple[Tensor, Tensor]]  # what it gives before and after a change


@dataclass(frozen=True)
class Asked:
    """A model that is asked, and what its experiment and its run say of its tokens.

    clocks: what forward has asked for the time, or for random numbers without a seed, and `FILE:LINE` of it.
    """

    experiment: Experiment
    model: Any
    vocab_size: int
    max_len: int
    bos: int
    device: torch.device
    clocks: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.experiment.name

    def inputs(self, window: Tensor) -> Tensor:
        """Return what the model reads of a window (B, T), on its device."""
        return self.experiment.make_batch(window, self.bos, 0)[0].to(self.device)

    def order(self, window: Tensor) -> Tensor:
        """Return the position in the window of the token that each position predicts, -100 for none: (B, T) int64."""
        positions = torch.arange(window.size(1)).expand_as(window).contiguous()
        labels = self.experiment.make_batch(window, self.bos, 0, positions)[2]
        assert labels is not None
        return labels

    def logits(self, window: Tensor, model: Any = None, seed: int = 0) -> Tensor:
        """Return the logits (B, T, V) for a window, with random numbers of this seed."""
        inputs = self.inputs(window)
        seed_everything(seed)
        return self.checked_output((self.model if model is None else model)(inputs), inputs)

    def checked_output(self, output: Any, inputs: Tensor) -> Tensor:
        """Return the logits of what forward returned. Raises UserError if it is not (B, T, V), or with a dictionary."""
        wanted = (*inputs.shape, self.vocab_size)
        tokens = f"for tokens {tuple(inputs.shape)}"
        logits = split_output(output)[0] if not isinstance(output, tuple) or len(output) == 2 else None
        if not isinstance(logits, Tensor) or (isinstance(output, tuple) and not isinstance(output[1], dict)):
            kinds = [type(part).__name__ for part in output] if isinstance(output, tuple) else [type(output).__name__]
            came = f"({', '.join(kinds)})" if isinstance(output, tuple) else kinds[0]
            raise UserError(
                f"{self.name}: forward returns {came} {tokens}: it must return logits {wanted}, or (logits, dictionary)"
            )
        if tuple(logits.shape) != wanted:
            raise UserError(
                f"{self.name}: forward returns {tuple(logits.shape)} {tokens}: it must return logits {wanted}"
            )
        for key, value in split_output(output)[1].items():
            number = value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, (int, float))
            if not number:
                came = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
                raise UserError(
                    f"{self.name}: {key!r}, which forward returns beside the logits, is {came}: make it a number"
                )
        return logits

    def moved(self, pair: Pair, sure: float = SURE, noise: float = NOISE) -> bool:
        """Tell whether the two results of `pair` differ by more than rounding. What is not finite twice is equal."""
        difference = _difference(*pair(self.model))
        if difference <= noise or difference > sure:
            return difference > sure
        try:
            wide = copy.deepcopy(self.model).double()
            return _difference(*pair(wide)) > EXACT
        except (RuntimeError, TypeError):  # a model, or a device, that knows no float64
            return difference > (sure * noise) ** 0.5

    def caller(self, mode: str) -> "Caller | None":
        """Return what calls the model in this mode so that equal calls give equal logits; None if nothing does."""
        window = random_window(self, rows=2, length=4)
        for afresh in (False, True):
            caller = Caller(self, mode, afresh)

            def twice(model: torch.nn.Module, caller: Caller = caller) -> tuple[Tensor, Tensor]:
                return caller(model, window), caller(model, window)

            if not self.moved(twice):
                return caller
        return None


@dataclass(frozen=True)
class Caller:
    """Calls a model with one and the same state of the random numbers.

    afresh: call a copy each time, since calls leave something behind in the model.
    """

    asked: Asked
    mode: str
    afresh: bool

    def __call__(self, model: torch.nn.Module, window: Tensor) -> Tensor:
        """Return the logits (B, T, V) for a window."""
        return self.asked.logits(window, copy.deepcopy(model) if self.afresh else model)


def _difference(before: Tensor, after: Tensor) -> float:
    """Return the largest difference as a part of the largest value; 0 for what is not finite in both."""
    if torch.equal(before, after):
        return 0.0
    finite = before.isfinite() | after.isfinite()
    before, after = before.where(finite, 0.0).cpu().double(), after.where(finite, 0.0).cpu().double()
    largest = max(before.nan_to_num(0.0, 0.0, 0.0).abs().max().item(), 1e-30)
    difference = (before - after).abs().max().item()
    return difference / largest if difference == difference else float("inf")


def random_window(asked: Asked, *, rows: int, length: int, seed: int = 0) -> Tensor:
    """Return a window of random tokens (rows, at most max_len)."""
    shape = (rows, min(length, asked.max_len))
    return torch.randint(asked.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def changed(asked: Asked, window: Tensor, here: Tensor) -> Tensor:
    """Return the window with another token wherever `here` (B, T) is True."""
    step = torch.randint(1, max(2, asked.vocab_size), window.shape, generator=torch.Generator().manual_seed(7))
    return window.where(~here, (window + step) % asked.vocab_size)
