"""What a model keeps outside of its parameters: found where it changes, written, and put back into a new model."""

import itertools
import random
from collections import defaultdict, deque

import numpy as np
import pytest
import torch
from torch import nn

from lmplay.errors import UserError
from lmplay.runs import checkpoints
from lmplay.runs.model_state import Outside, read, restore

HERE = __name__


class Tally:
    """An object that counts."""

    def __init__(self):
        self.seen, self.sums = 0, {"a": torch.zeros(2)}


class Slots:
    __slots__ = ("seen",)

    def __init__(self):
        self.seen = 0


def step_of_deque(values):
    values.append(values[-1] + 1)


def drawn(generator):
    """Go on by one draw."""
    if isinstance(generator, torch.Generator):
        return torch.rand(1, generator=generator)
    return generator.random()


# What a model holds at first, and what training does with it; where the value is replaced, that returns the new one
KINDS = {
    "number": (lambda: 3, lambda v: v + 1),
    "float": (lambda: 0.1, lambda v: v / 3),
    "not a number": (lambda: 0.1, lambda v: float("nan")),
    "string": (lambda: "warm-up", lambda v: "main"),
    "switch": (lambda: False, lambda v: True),
    "none": (lambda: None, lambda v: torch.arange(3.0)),
    "list": (lambda: [1, 2.0, "a"], lambda v: v.append(None)),
    "list of tensors": (lambda: [torch.zeros(2), torch.ones(3)], lambda v: v[1].mul_(4) is None or None),
    "tuple": (lambda: (1, 2), lambda v: (2, 3)),
    "dict": (lambda: {"a": 1, 2: [3]}, lambda v: v.update({(1, "b"): 4})),
    "dict with a default": (lambda: defaultdict(int), lambda v: v.update(x=1)),
    "deque": (lambda: deque([1, 2], maxlen=2), step_of_deque),
    "set": (lambda: {1, 2}, lambda v: v.add(5)),
    "tensor": (lambda: torch.zeros(2, 3), lambda v: v.add_(1)),
    "tensor of another shape": (lambda: torch.zeros(0), lambda v: torch.ones(2, dtype=torch.bfloat16)),
    "data of a tensor": (lambda: torch.zeros(2, 3), lambda v: v.data.fill_(2) is None or None),
    "array": (lambda: np.zeros(3), lambda v: v.__setitem__(1, 4.0)),
    "numpy number": (lambda: np.float32(1), lambda v: np.float32(v / 3)),
    "python generator": (lambda: random.Random(1), lambda v: drawn(v) and None),
    "torch generator": (lambda: torch.Generator().manual_seed(1), lambda v: drawn(v) is None or None),
    "numpy generator": (lambda: np.random.default_rng(1), lambda v: drawn(v) and None),
    "numpy random state": (lambda: np.random.RandomState(1), lambda v: drawn(v) is None or None),
    "object": (Tally, lambda v: (v.sums["a"].add_(1), setattr(v, "seen", 7)) and None),
    "object with slots": (Slots, lambda v: setattr(v, "seen", 7)),
    "frozen layer": (
        lambda: [nn.Linear(2, 2).requires_grad_(False)],
        lambda v: v[0].weight.data.fill_(3.0) is None or None,
    ),
}
LOST = {
    "iterator": (lambda: itertools.count(), lambda v: next(v) is None or None),
    "generator under way": (lambda: (n for n in range(9)), lambda v: next(v) is None or None),
    "function": (lambda: len, lambda v: max),
    "much": (lambda: None, lambda v: torch.zeros((1 << 26) // 4 + 1)),
    "long": (lambda: [], lambda v: v.extend(range(1 << 20))),
}


class Model(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.inner.kept = value  # of a module inside


def change(model, kind):
    value = kind(model.inner.kept)
    if value is not None:
        model.inner.kept = value


def prints(model):
    return Outside(model, HERE).of_modules


@pytest.mark.parametrize("kind", KINDS)
def test_what_changes_is_put_back(kind, tmp_path):
    first, then = KINDS[kind]
    torch.manual_seed(0)
    model = Model(first())
    outside = Outside(model, HERE)
    assert not outside.changed(model).attributes and not outside.changed(model).lost, "nothing has changed yet"
    change(model, then)
    kept = outside.changed(model)
    assert not kept.lost and len(kept.attributes) == 1
    saved = checkpoints.save(tmp_path, 1, model, [], {"keep": False}, kept=kept)
    torch.manual_seed(0)
    other = Model(first())
    before = other.inner.kept
    checkpoints.load_weights(saved, other)
    assert prints(other) == prints(model) != outside.of_modules
    assert type(other.inner.kept) is type(model.inner.kept)
    if isinstance(before, (list, dict, deque, Tally, random.Random, torch.Generator)):
        assert other.inner.kept is before, "others may refer to it"
    change(model, then), change(other, then)
    assert prints(other) == prints(model), "it goes on alike"


@pytest.mark.parametrize("kind", LOST)
def test_what_can_not_be_kept_is_named(kind):
    first, then = LOST[kind]
    model = Model(first())
    outside = Outside(model, HERE)
    change(model, then)
    kept = outside.changed(model)
    assert kept.lost == ["inner.kept"] and not kept.attributes
    line = kept.warning("mine")
    assert "inner.kept" in line and "register_buffer" in line and "\n" not in line


def test_buffers_and_modes(tmp_path):
    """A buffer that is not persistent, one that was shared, and a layer that a forward pass left in eval mode."""

    def build():
        model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
        model.register_buffer("average", torch.zeros(2), persistent=False)
        model.register_buffer("mask", torch.ones(2), persistent=False)
        model.again = model.average
        return model

    model = build()
    outside = Outside(model, HERE)
    model.average += 1
    model[1].eval()
    kept = outside.changed(model)
    assert sorted(name for _, name, _ in kept.attributes) == ["again", "average", "training"] and not kept.lost
    other = build()
    kept.write(tmp_path / "file")
    assert restore(read(tmp_path / "file"), other) == []
    assert other.average.tolist() == [1, 1] and other.again is other.average
    assert other.training and other[0].training and not other[1].training


def test_parts_of_the_model_are_no_state():
    """References to parameters, modules and persistent buffers: a checkpoint has them anyway."""
    model = Model(None)
    model.register_buffer("count", torch.zeros(1))
    model.refer = [model.inner, model.inner.weight, {"count": model.count}]
    outside = Outside(model, HERE)
    with torch.no_grad():
        model.inner.weight.fill_(1), model.count.add_(1)
    assert not outside.changed(model).attributes and not outside.changed(model).lost


def test_without_changes_there_is_no_file(tmp_path):
    model = Model([1])
    saved = checkpoints.save(tmp_path, 1, model, [], {"keep": False}, kept=Outside(model, HERE).changed(model))
    assert sorted(path.name for path in saved.iterdir()) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    checkpoints.load_weights(saved, Model([1]))


def test_what_has_no_place_is_left_out(tmp_path):
    model = Model(0)
    outside = Outside(model, HERE)
    model.inner.kept, model.tally = 1, Tally()
    outside.changed(model).write(tmp_path / "file")
    assert restore(read(tmp_path / "file"), Model(0)) == ["tally"]
    assert restore(read(tmp_path / "file"), nn.Linear(2, 2)) == ["tally", "inner.kept"]


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\x10\0\0\0\0\0\0\0{}",
        [["inner", "kept", ["tensor", 9]]],
        [["inner", "kept", ["random", 3, [1, 2], None]]],
        [["inner", "kept", ["list", ["nothing known"]]]],
        [["inner", "kept", ["again", 4]]],
        [["inner", 3]],
        {"a": 1},
        [["inner", "kept", ["float", "much"]]],
    ],
    ids=repr,
)
def test_damage_is_one_line(damage, tmp_path):
    from safetensors.torch import save_file

    model = Model(0)
    saved = checkpoints.save(tmp_path, 1, model, [], {"keep": False})
    path = saved / "attributes.safetensors"
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    else:
        import json

        save_file({}, path, metadata={"attributes": json.dumps(damage)})
    with pytest.raises(UserError, match=r"attributes.safetensors can't be read .*damaged"):
        checkpoints.load_weights(saved, model)


@pytest.mark.parametrize("name", ["forward", "__class__", "to"])
def test_a_strangers_file_replaces_no_method(name, tmp_path):
    from safetensors.torch import save_file

    save_file({}, tmp_path / "file", metadata={"attributes": f'[["inner", "{name}", 3]]'})
    model = Model(0)
    assert restore(read(tmp_path / "file"), model) == [f"inner.{name}"] and callable(model.inner.forward)
