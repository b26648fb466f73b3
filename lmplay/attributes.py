"""Look through what a model keeps outside of its parameters and persistent buffers.

That is: buffers that are not persistent, and whatever Python holds in attributes of its modules, in containers and
objects in them, in classes and globals of the experiment's files. The walk turns it into plain values and a list of
tensors. It goes into objects of the experiment's own classes, not into those of libraries.
"""

import functools
import hashlib
import random
import sys
import types
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

Plain = Any  # None, bool, int, float, str, and lists of them: what JSON can hold
SMALL = (bool, int, str, type(None))


class Known:
    """What torch knows of a model, by id: the names of its parameters and persistent buffers, and of its modules.

    package: that of the experiment's files.
    """

    def __init__(self, model: "nn.Module", package: str) -> None:
        self.package = package
        self.tensors = {id(tensor): name for name, tensor in [*model.named_parameters(), *persistent(model)]}
        self.modules = {id(module): name for name, module in model.named_modules()}


class Walk:
    """One walk over a value, which becomes `plain`: lists that JSON can hold.

    tensors: those met, in order; `plain` has their numbers. layers: the trainable parameters met that are no part of
    the model, each once. whole: whether `restored` can put everything back that was met.
    """

    def __init__(self, known: Known, value: Any) -> None:
        self.known = known
        self.tensors: list[Tensor] = []
        self.layers: dict[int, Tensor] = {}
        self.whole = True
        self._met: dict[int, int] = {}  # what may refer to itself, by id
        self._alive: list[Any] = []  # an id is that of one object only as long as it lives
        try:
            self.plain = self._plain(value)
        except RecursionError:  # a chain of objects without end
            self.plain = self._odd(type(value).__qualname__)

    def fingerprint(self) -> str:
        """Return what is equal for equal values, within a process."""
        digest = hashlib.blake2b(repr(self.plain).encode(), digest_size=16)
        for tensor in self.tensors:
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(memoryview(raw_bytes(tensor)))
        return digest.hexdigest()

    def _plain(self, value: Any) -> Plain:
        """Return a value as lists that begin with what it is; numbers and strings as they are."""
        import torch

        if isinstance(value, SMALL) and type(value) in SMALL:
            return value
        if isinstance(value, float):
            return ["float", value.hex()]
        if id(value) in self._met:
            return ["again", self._met[id(value)]]
        if id(value) not in self.known.tensors and id(value) not in self.known.modules:
            self._met[id(value)] = len(self._met)
            self._alive.append(value)
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, torch.nn.Module):
            return self._module(value)
        if type(value) in (list, tuple, deque, set) or isinstance(value, list):
            kind = next(kind for kind in (list, tuple, deque, set) if isinstance(value, kind))
            members = sorted(value, key=repr) if kind is set else list(value)
            return [kind.__name__, *map(self._plain, members)]
        if isinstance(value, dict):
            return ["dict", *([self._plain(key), self._plain(member)] for key, member in list(value.items()))]
        generator = self._generator(value)
        return self._other(value) if generator is None else generator

    def _tensor(self, tensor: "Tensor") -> Plain:
        if id(tensor) in self.known.tensors:
            return ["parameter", self.known.tensors[id(tensor)]]
        if tensor.requires_grad and tensor.is_leaf:
            self.layers[id(tensor)] = tensor
        strided = str(tensor.layout) == "torch.strided" and not tensor.is_meta and not tensor.is_complex()
        if not strided or tensor.is_quantized:
            return self._odd(f"{tensor.layout} {tensor.dtype} {tuple(tensor.shape)} {tensor._version}")
        self.tensors.append(tensor.detach())
        return ["tensor", len(self.tensors) - 1]

    def _module(self, module: "nn.Module") -> Plain:
        if id(module) in self.known.modules:
            return ["module", self.known.modules[id(module)]]
        return ["state", *([name, self._tensor(tensor)] for name, tensor in module.state_dict(keep_vars=True).items())]

    def _generator(self, value: Any) -> Plain:
        """Return the state of a generator of random numbers, or of an array; None for anything else."""
        import torch

        numpy = sys.modules.get("numpy")
        if isinstance(value, torch.Generator):
            return ["torch generator", self._tensor(value.get_state())]
        if isinstance(value, random.Random):
            version, numbers, second = value.getstate()
            return ["random", version, list(numbers), None if second is None else second.hex()]
        if numpy is None:
            return None
        if isinstance(value, numpy.random.Generator):
            return ["numpy generator", self._plain(value.bit_generator.state)]
        if isinstance(value, numpy.random.RandomState):
            return ["numpy random state", self._plain(value.get_state(legacy=False))]
        if isinstance(value, (numpy.ndarray, numpy.generic)) and value.dtype.kind in "biuf":
            return ["array", isinstance(value, numpy.generic), self._tensor(torch.from_numpy(numpy.array(value)))]
        return None

    def _other(self, value: Any) -> Plain:
        """Return what is known of a function, a generator that is under way, an object."""
        if isinstance(value, types.MethodType):
            value = value.__func__
        if isinstance(value, types.FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
            inside = [value.__defaults__, value.__kwdefaults__, cells, vars(value)]
            return self._odd(
                value.__qualname__, *inside if (value.__module__ or "").startswith(self.known.package) else ()
            )
        if isinstance(value, functools.partial):
            return self._odd(value.func, value.args, value.keywords)
        if isinstance(value, types.GeneratorType):
            frame = value.gi_frame
            return self._odd(value.__qualname__, frame and frame.f_lasti, dict(frame.f_locals) if frame else None)
        if isinstance(value, Iterator):
            return self._odd(repr(value) if type(value).__module__ == "itertools" else type(value).__qualname__)
        kind = type(value)
        if not (kind.__module__.startswith(self.known.package) or kind is types.SimpleNamespace):
            return self._odd(getattr(value, "__qualname__", kind.__qualname__))
        slots = [name for one in kind.__mro__ for name in getattr(one, "__slots__", ()) if hasattr(value, name)]
        content = {name: getattr(value, name) for name in slots} | getattr(value, "__dict__", {})
        return ["object", *([name, self._plain(member)] for name, member in content.items())]

    def _odd(self, *parts: Any) -> Plain:
        self.whole = False
        return ["odd", *map(self._plain, parts)]


def persistent(model: "nn.Module") -> "list[tuple[str, Tensor]]":
    """Return the buffers that a checkpoint has anyway."""
    return [
        (f"{path}.{name}" if path else name, buffer)
        for path, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    ]


def of_modules(model: "nn.Module") -> Iterator[tuple[str, str, Any]]:
    """Yield (path of the module, name, value) of what the modules of a model keep, `training` included."""
    import torch

    own = vars(torch.nn.Module()).keys() - {"training"}
    for path, module in model.named_modules():
        for name, value in list(vars(module).items()):
            method = callable(getattr(type(module), name, None))  # one that was compiled stands in the instance
            if name not in own and not name.startswith("_compiled") and not method:
                yield path, name, value
        for name in sorted(module._non_persistent_buffers_set):
            yield path, name, module._buffers.get(name)


def of_files(package: str) -> Iterator[tuple[str, Any]]:
    """Yield (what a message calls it, value) of the globals, classes and default arguments of an experiment's files."""
    for name, file in list(sys.modules.items()):
        if not name.startswith(f"{package}."):
            continue
        for key, value in list(vars(file).items()):
            if key.startswith("__") or isinstance(value, types.ModuleType):
                continue
            if isinstance(value, type):
                if value.__module__ == name:
                    yield from _of_class(value)
            elif isinstance(value, types.FunctionType):
                if value.__module__ == name:
                    yield from _defaults(key, value)
            elif type(value).__module__ != "typing":
                yield f"the global {key} of {name.rpartition('.')[2]}.py", value


def _of_class(kind: type) -> Iterator[tuple[str, Any]]:
    for key, value in list(vars(kind).items()):
        if isinstance(value, types.FunctionType):
            yield from _defaults(f"{kind.__name__}.{key}", value)
        elif not key.startswith("__") and not isinstance(value, (property, classmethod, staticmethod, type)):
            yield f"{kind.__name__}.{key} of the class", value


def _defaults(name: str, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    own = {key: value for key, value in vars(function).items() if not key.startswith("_")}
    if function.__defaults__ or function.__kwdefaults__ or own:
        yield f"a default argument of {name}", [function.__defaults__, function.__kwdefaults__, own]


def raw_bytes(tensor: "Tensor") -> Any:
    """Return the content of a tensor as a numpy array of bytes."""
    import torch

    return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()
