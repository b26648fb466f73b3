"""Draw initial values that depend on the seed and on a parameter's name, not on what was created before it.

Two experiments that differ in one module then start from the same numbers everywhere else. These are common random
numbers, which narrow the difference of two simulations (P. Glasserman, D. D. Yao, Management Science 38, 1992).
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode  # private to torch, like func._schema; tried on 2.13

from lmplay.random_numbers import seed_everything


def storage_id(tensor: Tensor) -> int:
    """Return what tells a tensor's memory from that of others, as long as it is alive: views share it."""
    return tensor.untyped_storage()._cdata  # private to torch; tried on 2.13


def seed_of(*parts: object) -> int:
    """Return a 63-bit seed that depends on the `repr` of all parts, and is the same everywhere."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


# In-place operations that leave nothing of what was there before.
OVERWRITING = {
    "normal_",
    "uniform_",
    "random_",
    "exponential_",
    "log_normal_",
    "cauchy_",
    "geometric_",
    "copy_",
    "fill_",
    "zero_",
}


def build_by_name(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return `build()` with initial values drawn for each parameter and buffer by itself.

    The model is built twice. The first time, every random number from torch's CPU generator is followed through the
    operations that it enters to the parameter that it ends up in. The second time the generator is seeded before each
    draw: with the seed, the name of that parameter, and the number of draws that went into it before.

    So the values keep the distribution and structure that the experiment's own code gives them. Parameters of the same
    name, shape and way of drawing are equal across experiments; constants stay as they are. A parameter that is tied or
    drawn together with others goes by the first name.
    """
    seed_everything(seed)
    with _Trace() as trace:
        model = build()
    keys = trace.keys(model)
    del model
    seed_everything(seed)
    with _Reseed(seed, keys):
        model = build()
    torch.manual_seed(seed)
    return model


class _Draws(TorchDispatchMode):
    """Counts the operations that draw from torch's CPU generator; `draw` is called before each."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: to hide from a compiler, torch imports it, which takes as long as its own import."""
        return False

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        random = torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None
        if random:
            self.draw(self.count)
            self.count += 1
        result = func(*args, **kwargs)
        self.done(func, args, kwargs, result, self.count - 1 if random else None)
        return result

    def draw(self, number: int) -> None:
        """Prepare the draw of this number."""

    def done(self, func: Any, args: tuple, kwargs: dict, result: Any, number: int | None) -> None:
        """Note an operation and its result; `number` is that of its draw, if it drew."""


class _Trace(_Draws):
    """Notes for each storage the numbers of the draws that its content was made from."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: dict[int, frozenset[int]] = {}

    def done(self, func: Any, args: tuple, kwargs: dict, result: Any, number: int | None) -> None:
        name, arguments = func.overloadpacket.__name__, func._schema.arguments
        values = {argument.name: value for argument, value in zip(arguments, args, strict=False)} | kwargs
        written = [values.get(a.name) for a in arguments if a.alias_info is not None and a.alias_info.is_write]
        inputs = list(_tensors(values))
        if name in OVERWRITING and _is_whole(args[0]):
            inputs = [tensor for tensor in inputs if tensor is not args[0]]
        # torch.tensor makes a storage out of sight, and lifts it: what was at its address before does not count
        known = set() if name == "lift_fresh" else {storage_id(tensor) for tensor in _tensors(values)}
        inputs = [] if name == "lift_fresh" else inputs
        made_of: frozenset[int] = frozenset() if number is None else frozenset([number])
        made_of = made_of.union(*(self.sources.get(storage_id(tensor), ()) for tensor in inputs))
        for tensor in _tensors(written):
            self.sources[storage_id(tensor)] = made_of
        for tensor in _tensors(result):
            if storage_id(tensor) not in known:  # a view has the sources of what it looks at
                self.sources[storage_id(tensor)] = made_of

    def keys(self, model: nn.Module) -> dict[int, tuple[str, int]]:
        """Return for each draw that matters the name of its parameter, and which of that parameter's draws it is."""
        keys: dict[int, tuple[str, int]] = {}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            mine = sorted(self.sources.get(storage_id(tensor), frozenset()) - keys.keys())
            keys |= {number: (name, k) for k, number in enumerate(mine)}
        return keys


class _Reseed(_Draws):
    """Seeds the generator before each draw, by the parameter that it goes into."""

    def __init__(self, seed: int, keys: dict[int, tuple[str, int]]):
        super().__init__()
        self.seed, self.keys = seed, keys

    def draw(self, number: int) -> None:
        torch.default_generator.manual_seed(seed_of("initial", self.seed, *self.keys.get(number, ("", number))))


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _is_whole(tensor: Tensor) -> bool:
    """Whether the tensor is all of its storage."""
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
