import json
import shutil

import pytest
import torch
from safetensors.torch import save_model
from torch import nn

from lmplay.errors import UserError
from lmplay.runs import checkpoints, names
from lmplay.runs.settings import OPTIMIZERS
from lmplay.train.optimizers import make_optimizers

STATE = {"step": 3, "keep": False, "seconds": 1 / 3, "none": None}


class Model(nn.Module):
    def __init__(self, seed=0, width=8):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.inner, self.head = (
            nn.Embedding(11, width),
            nn.Linear(width, width),
            nn.Linear(width, 11, bias=False),
        )
        self.head.weight = self.embedding.weight  # tied
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, tokens):
        return self.head(self.inner(self.embedding(tokens)))


def trained(name="adamw", seed=0, updates=2):
    model = Model(seed)
    optimizers = make_optimizers(model, name, 0.01, 0.1, (0.9, 0.95), 1e-8)
    for _ in range(updates):
        go_on(model, optimizers)
    model.count += 5
    return model, optimizers


def go_on(model, optimizers):
    tokens = torch.arange(11)
    nn.functional.cross_entropy(model(tokens), tokens.flip(0)).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_to_the_bit(name, tmp_path):
    model, optimizers = trained(name)
    saved = checkpoints.save(tmp_path, 3, model, optimizers, STATE)
    other, others = trained(name, seed=1, updates=0)
    assert checkpoints.load(saved, other, others) == STATE
    for _ in range(2):
        go_on(model, optimizers)
        go_on(other, others)
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))
    assert other.head.weight is other.embedding.weight and other.count == 5


def in_one_block(model):
    """The inner layer's weight and bias in one piece of memory, as cuDNN keeps those of recurrent layers."""
    block = torch.cat([p.detach().flatten() for p in model.inner.parameters()])
    for p, part in zip(model.inner.parameters(), block.split([p.numel() for p in model.inner.parameters()])):
        p.data = part.view_as(p)
    return model


def test_weights_that_share_a_block_of_memory(tmp_path):
    model, optimizers = trained()
    plain = checkpoints.save(tmp_path / "plain", 3, model, optimizers, STATE) / names.MODEL
    saved = checkpoints.save(tmp_path / "block", 3, in_one_block(model), optimizers, STATE)
    assert (saved / names.MODEL).read_bytes() == plain.read_bytes()
    other, others = trained(seed=1, updates=0)
    checkpoints.load(saved, in_one_block(other), others)
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))
    assert other.inner.weight.untyped_storage().data_ptr() == other.inner.bias.untyped_storage().data_ptr()
    assert other.head.weight is other.embedding.weight


def test_a_checkpoint_of_an_earlier_version(tmp_path):
    """They were written by safetensors' own save_model, tied weights under one name of its choice."""
    model, _ = trained()
    save_model(model, str(tmp_path / names.MODEL))
    other = Model(seed=1)
    checkpoints.load_weights(tmp_path, other)
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))
    assert other.head.weight is other.embedding.weight


def test_before_the_first_update(tmp_path):
    model, optimizers = trained(updates=0)
    saved = checkpoints.save(tmp_path, 0, model, optimizers, STATE)
    other, others = trained(seed=1, updates=0)
    checkpoints.load(saved, other, others)
    go_on(model, optimizers)
    go_on(other, others)
    assert other.inner.weight.equal(model.inner.weight)


def test_which_are_kept(tmp_path):
    model, optimizers = trained()
    for step in range(1, 7):
        checkpoints.save(tmp_path, step, model, optimizers, {"step": step, "keep": step == 2})
    assert [p.name for p in checkpoints.find_all(tmp_path)] == ["step_00000002", "step_00000005", "step_00000006"]
    assert checkpoints.latest(tmp_path).name == "step_00000006"
    assert sorted(p.name for p in tmp_path.iterdir()) == [p.name for p in checkpoints.find_all(tmp_path)]
    assert checkpoints.latest(tmp_path / "nothing") is None


def test_saved_again_it_stays_kept(tmp_path):
    """The end of a plan's step is marked; a run that stops just there must not unmark it."""
    model, optimizers = trained()
    saved = checkpoints.save(tmp_path, 3, model, optimizers, {"step": 3, "keep": True})
    weights = (saved / "model.safetensors").read_bytes()
    checkpoints.save(tmp_path, 3, model, optimizers, {"step": 3, "keep": False, "seconds": 2.0})
    assert checkpoints.read_state(saved) == {"step": 3, "keep": True, "seconds": 2.0}
    assert checkpoints.damage_in(saved) is None
    assert (saved / "model.safetensors").read_bytes() == weights


def test_unfinished_ones_are_passed_over(tmp_path):
    model, optimizers = trained()
    saved = checkpoints.save(tmp_path, 3, model, optimizers, STATE)
    shutil.copytree(saved, tmp_path / ".step_00000009.77.tmp")
    (tmp_path / "step_00000007").mkdir()
    assert checkpoints.find_all(tmp_path) == [saved]


@pytest.mark.parametrize("file", [names.MODEL, names.OPTIMIZER, names.STATE])
@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.write_bytes(p.read_bytes()[:-9]),
        lambda p: p.write_bytes(b""),
        lambda p: p.unlink(),
        lambda p: p.write_bytes(b"\xff" * 100),
    ],
    ids=["cut", "empty", "gone", "overwritten"],
)
def test_damage_is_said(tmp_path, file, damage):
    model, optimizers = trained()
    saved = checkpoints.save(tmp_path, 3, model, optimizers, STATE)
    damage(saved / file)
    with pytest.raises(UserError, match=f"{file} can't be read .*the checkpoint is damaged") as error:
        checkpoints.load(saved, *trained())
    assert "\n" not in str(error.value)


def test_weights_of_another_architecture(tmp_path):
    model, optimizers = trained()
    saved = checkpoints.save(tmp_path, 3, model, optimizers, STATE)
    deeper, shallower = Model(), Model()
    deeper.more, shallower.inner = nn.Linear(3, 3), nn.Identity()
    for other, why in (
        (Model(width=16), "size mismatch for"),
        (deeper, "it lacks more.weight and 1 more"),
        (shallower, "it has inner.bias and 1 more"),
        (nn.Linear(8, 8), "it lacks weight"),
    ):
        with pytest.raises(UserError, match=f"its weights don't fit this model .{why}") as error:
            checkpoints.load_weights(saved, other)
        assert "\n" not in str(error.value)


def test_nothing_in_it_can_be_run(tmp_path):
    """No pickles: only tensors with a JSON header, and JSON."""
    saved = checkpoints.save(tmp_path, 3, *trained(), STATE)
    assert sorted(p.suffix for p in saved.iterdir()) == [".json", ".safetensors", ".safetensors"]
    for path in saved.glob("*.safetensors"):
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        assert all(
            set(entry) == {"dtype", "shape", "data_offsets"} for name, entry in header.items() if name != "__metadata__"
        )
