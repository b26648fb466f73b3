"""Find out without a GPU whether a step can be recorded: each of its operations is looked at.

A recorded step does the same operations on the same memory each time. So none may wait for a number, have a shape that
depends on numbers, copy between devices, or draw from the CPU's random numbers. And two rounds must do the same: what
a model counts in Python, or draws with Python's `random`, would stand still.
"""

import random
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode  # private to torch; tried on 2.11 and 2.13

from lmplay.attributes import Known, Walk, of_modules
from lmplay.train.captured_step import NotCapturable

WAITS = {"_local_scalar_dense": "it asks for a number on the device (.item(), float(), bool() or a branch on a tensor)"}
SHAPES = {
    name: f"the shape of what {name} returns depends on numbers"
    for name in ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "argwhere")
}
REFUSED = WAITS | SHAPES
LOOKS_AT_MASK = {"index", "index_put", "index_put_", "_unsafe_index"}


class Operations(TorchDispatchMode):
    """Notes each operation in `log`. Raises NotCapturable at one that can't be recorded.

    device: on which the model computes.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: to hide from a compiler, torch imports it, which takes as long as its own import."""
        return False

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.log: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in REFUSED:
            raise NotCapturable(REFUSED[name])
        if name in LOOKS_AT_MASK and any(t.dtype in (torch.bool, torch.uint8) for t in _tensors(args[1])):
            raise NotCapturable("it takes elements by a mask, whose number depends on numbers")
        given = [*_tensors(args), *_tensors(kwargs)]
        result = func(*args, **kwargs)
        made = _tensors(result)
        self._check_devices(func, given, made)
        shapes = [(tuple(t.shape), t.dtype) for t in given]
        if func.namespace == "profiler":
            return result
        self.log.append(f"{func} {shapes} {_plain(args)} {_plain(kwargs)}")
        return result

    def _check_devices(self, func: Any, given: list[Tensor], made: list[Tensor]) -> None:
        kinds = {t.device.type for t in [*given, *made] if t.ndim or t.device.type == self.device.type}
        if len(kinds) > 1 and func.overloadpacket.__name__ in ("_to_copy", "copy_", "_copy_from"):
            raise NotCapturable("it copies between the devices (.cpu(), .to(), torch.tensor on the GPU)")
        drawn_here = not made or any(t.device == self.device for t in made)  # beside a seed and an offset on the CPU
        if torch.Tag.nondeterministic_seeded in func.tags and not drawn_here:
            raise NotCapturable("it draws random numbers on the CPU")


def check_repeats(body: Callable[[], None], device: torch.device, model: torch.nn.Module | None = None) -> None:
    """Run `body` and look at it twice. Raises NotCapturable if it can't be recorded, or differs the second time.

    model: whose attributes stay as they are, tensors in them aside.
    """
    logs = []
    body()  # what is made once
    for _ in range(2):
        before, kept = _python_numbers(), _attributes(model)
        with Operations(device) as operations:
            body()
        if _python_numbers() != before:
            raise NotCapturable("it draws random numbers in Python or numpy")
        if changed := [name for name, value in _attributes(model).items() if kept.get(name) != value]:
            raise NotCapturable(f"it changes {changed[0]} in each step")
        logs.append(operations.log)
    if logs[0] != logs[1]:
        raise NotCapturable("it does not do the same in each step")


def _python_numbers() -> tuple[Any, ...]:
    """Return the states of the random numbers of Python and numpy."""
    numpy = sys.modules.get("numpy")
    of_numpy = None if numpy is None else str(numpy.random.get_state())
    return random.getstate(), of_numpy


def _attributes(model: torch.nn.Module | None) -> dict[str, Any]:
    """Return by name what the modules keep in attributes, without the numbers in tensors."""
    if model is None:
        return {}
    known = Known(model, type(model).__module__.rpartition(".")[0])
    return {f"{path}.{name}" if path else name: Walk(known, value).plain for path, name, value in of_modules(model)}


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in _tensors(item)] if isinstance(value, (list, tuple)) else []


def _plain(value: Any) -> Any:
    """Return the arguments that are no tensors."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return "tensor" if isinstance(value, Tensor) else repr(value)
