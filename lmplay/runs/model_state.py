"""Keep what a model holds outside of its parameters, where training changes it, and put it back.

A checkpoint has it in a file of its own, only if there is any: the values as JSON in the header, and tensors. Nothing
in it can be run.
"""

import json
import random
import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmplay.attributes import Known, Plain, Walk, of_files, of_modules

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

HEADER = "attributes"  # key in the file's header
OF_TORCH = "__composable_api_state_key"  # begins the names of what FSDP2 keeps on a module
MOST_TEXT = 1 << 20  # characters of the values of one attribute
MOST_BYTES = 1 << 26  # of all tensors, or as many as the parameters have


@dataclass
class Kept:
    """What a checkpoint keeps of it.

    attributes: (path of the module, name, value by `lmplay.attributes`). tensors: (attribute, number) -> tensor.
    lost: what training changes and can't be kept, as a message names it.
    """

    attributes: list[tuple[str, str, Plain]] = field(default_factory=list)
    tensors: "dict[tuple[int, int], Tensor]" = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    def warning(self, experiment: str) -> str:
        """Return a sentence that says what is lost and what to do."""
        more = f" and {len(self.lost) - 3} more" if self.lost[3:] else ""
        return (
            f"warning: {experiment}: training changes {', '.join(self.lost[:3])}{more}, which no checkpoint can keep: "
            "a run that is stopped and continued ends with other weights; keep it in a buffer (self.register_buffer), "
            "or as numbers, strings, lists or dicts in an attribute of the model"
        )

    def write(self, path: Path) -> None:
        """Write the file, unless there is nothing to keep."""
        from safetensors.torch import save_file

        if self.attributes:
            tensors = {f"{one}/{number}": tensor for (one, number), tensor in self.tensors.items()}
            save_file(tensors, str(path), metadata={HEADER: json.dumps(self.attributes)})


class Outside:
    """What a new model holds outside of its parameters: later values are compared with it."""

    def __init__(self, model: "nn.Module", package: str) -> None:
        """Take the fingerprints of a model that was just built. package: that of its experiment's files."""
        self.package = package
        known = Known(model, package)
        self.of_modules = {(path, name): Walk(known, value).fingerprint() for path, name, value in of_modules(model)}
        self.of_files = {path: Walk(known, value).fingerprint() for path, value in of_files(package)}

    def changed(self, model: "nn.Module") -> Kept:
        """Return what has changed since."""
        kept, known = Kept(), Known(model, self.package)
        room = max(MOST_BYTES, sum(parameter.nbytes for parameter in model.parameters()))
        for path, name, value in of_modules(model):
            walk = Walk(known, value)
            if walk.fingerprint() == self.of_modules.get((path, name)) or name.startswith(OF_TORCH):
                continue
            size = sum(tensor.nbytes for tensor in walk.tensors)
            if not walk.whole or size > room or len(json.dumps(walk.plain)) > MOST_TEXT:
                kept.lost.append(f"{path}.{name}" if path else name)
                continue
            room -= size
            number = len(kept.attributes)
            kept.attributes.append((path, name, walk.plain))
            kept.tensors |= {(number, i): t.cpu().contiguous().clone() for i, t in enumerate(walk.tensors)}
        kept.lost += [
            path
            for path, value in of_files(self.package)
            if path in self.of_files and Walk(known, value).fingerprint() != self.of_files[path]
        ]
        return kept


def read(path: Path) -> Kept:
    """Return what `Kept.write` wrote. Raises OSError, ValueError and SafetensorError for a damaged file."""
    from safetensors import safe_open

    tensors = {}
    with safe_open(str(path), "pt") as file:
        attributes = json.loads((file.metadata() or {})[HEADER])
        for name in list(file.keys()):
            one, number = map(int, name.split("/"))
            tensors[one, number] = file.get_tensor(name)
    if not isinstance(attributes, list) or not all(isinstance(one, list) and len(one) == 3 for one in attributes):
        raise ValueError("its header is not what lmplay writes")
    return Kept([(str(path), str(name), plain) for path, name, plain in attributes], tensors)


def restore(kept: Kept, model: "nn.Module") -> list[str]:
    """Put it back into a new model, in place where that can be. Return the names of what this model does not have.

    Raises ValueError for what `lmplay.attributes` does not write.
    """
    modules, homeless = dict(model.named_modules()), []
    for number, (path, name, plain) in enumerate(kept.attributes):
        module = modules.get(path)
        if module is None or name.startswith("__") or callable(getattr(type(module), name, None)):
            homeless.append(f"{path}.{name}" if path else name)
            continue
        tensors = {i: tensor for (one, i), tensor in kept.tensors.items() if one == number}
        try:
            value = _Restored(model, tensors).value(plain, getattr(module, name, None))
        except _NotRestorable:
            homeless.append(f"{path}.{name}" if path else name)
            continue
        except (TypeError, KeyError, IndexError, AttributeError, RuntimeError, RecursionError) as error:
            raise ValueError(f"{name}: {error}") from error
        setattr(module, name, value)
    return homeless


class _NotRestorable(Exception):
    """A value that can't be made anew: an object that the new model does not have."""


class _Restored:
    """Makes values of what `lmplay.attributes` made of them."""

    def __init__(self, model: "nn.Module", tensors: "dict[int, Tensor]") -> None:
        self.tensors = tensors
        self.device = next((parameter.device for parameter in model.parameters()), None)
        self.parts = {
            "parameter": dict([*model.named_parameters(), *model.named_buffers()]),
            "module": dict(model.named_modules()),
        }
        self._met: list[Any] = []

    def value(self, plain: Plain, current: Any) -> Any:
        """Return the value; `current`, what is there, is changed in place and returned if it is of the same kind."""
        if not isinstance(plain, list):
            return plain
        kind, *parts = plain
        if kind == "float":
            return float.fromhex(parts[0])
        if kind == "again":
            return self._met[parts[0]]
        if kind in self.parts:
            return self.parts[kind][parts[0]]
        number = len(self._met)
        self._met.append(current)
        self._met[number] = result = getattr(self, f"_{kind.replace(' ', '_')}", self._unknown)(parts, current)
        return result

    def _unknown(self, parts: list, current: Any) -> Any:
        raise ValueError("a value of a kind that is not known")

    def _tensor(self, parts: list, current: Any) -> "Tensor":
        import torch

        tensor = self.tensors[parts[0]]
        if isinstance(current, torch.Tensor) and (current.shape, current.dtype) == (tensor.shape, tensor.dtype):
            with torch.no_grad():
                return current.copy_(tensor)
        return tensor.to(current.device if isinstance(current, torch.Tensor) else self.device)

    def _members(self, parts: list, current: Any) -> list[Any]:
        there = list(current) if isinstance(current, (list, tuple, deque)) else []
        return [self.value(part, there[i] if i < len(there) else None) for i, part in enumerate(parts)]

    def _list(self, parts: list, current: Any) -> list:
        result = current if isinstance(current, list) else []
        result[:] = self._members(parts, current)
        return result

    def _tuple(self, parts: list, current: Any) -> tuple:
        return tuple(self._members(parts, current))

    def _deque(self, parts: list, current: Any) -> deque:
        members, result = self._members(parts, current), current if isinstance(current, deque) else deque()
        result.clear()
        result.extend(members)
        return result

    def _set(self, parts: list, current: Any) -> set:
        members, result = self._members(parts, None), current if isinstance(current, set) else set()
        result.clear()
        result.update(members)
        return result

    def _dict(self, parts: list, current: Any) -> dict:
        result = current if isinstance(current, dict) else {}
        members = {}
        for key, part in parts:
            name = self.value(key, None)
            members[name] = self.value(part, result.get(name))
        result.clear()
        result.update(members)
        return result

    def _object(self, parts: list, current: Any) -> Any:
        if not hasattr(current, "__dict__") and not hasattr(type(current), "__slots__"):
            raise _NotRestorable
        for name, part in parts:
            if name.startswith("__") or callable(getattr(type(current), name, None)):
                raise _NotRestorable
            object.__setattr__(current, name, self.value(part, getattr(current, name, None)))
        return current

    def _state(self, parts: list, current: Any) -> Any:
        import torch

        if not isinstance(current, torch.nn.Module):
            raise _NotRestorable
        there = current.state_dict()
        for name, plain in parts:
            self._tensor(plain[1:], there[name])
        return current

    def _torch_generator(self, parts: list, current: Any) -> "torch.Generator":
        import torch

        result = current if isinstance(current, torch.Generator) else torch.Generator()
        return result.set_state(self.tensors[parts[0][1]])

    def _random(self, parts: list, current: Any) -> random.Random:
        result = current if isinstance(current, random.Random) else random.Random()
        version, numbers, second = parts
        result.setstate((version, tuple(numbers), None if second is None else float.fromhex(second)))
        return result

    def _numpy_generator(self, parts: list, current: Any) -> Any:
        state = self.value(parts[0], None)
        if not hasattr(current, "bit_generator"):
            raise _NotRestorable
        current.bit_generator.state = state
        return current

    def _numpy_random_state(self, parts: list, current: Any) -> Any:
        state = self.value(parts[0], None)
        if not isinstance(current, sys.modules["numpy"].random.RandomState):
            raise _NotRestorable
        current.set_state(state)
        return current

    def _array(self, parts: list, current: Any) -> Any:
        scalar, plain = parts
        array = self.tensors[plain[1]].numpy()
        there = getattr(current, "shape", None) == array.shape and getattr(current, "dtype", None) == array.dtype
        if there and not scalar:
            current[...] = array
            return current
        return array[()] if scalar else array
