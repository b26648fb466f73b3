"""What a group of parameters may have of its own, against torch's optimizers with the same numbers set by hand."""

import pytest
import torch
from torch import nn

from lmplay.errors import UserError
from lmplay.train.group_schedules import ValuesOnDevice, decay_apart, value_at
from lmplay.train.muon import Muon
from lmplay.train.optimizers import make_optimizers, set_rates, without_rate

LR, STEPS = 0.02, 6


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.inner, self.gate = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, 11)


def make(model, name="muon", groups=(), **more):
    if groups:
        model.param_groups = lambda lr, weight_decay: groups
    return make_optimizers(model, name, LR, 0.1, (0.9, 0.95), 1e-8, **more)


def give_gradients(model, seed):
    torch.manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn_like(p)


def group_of(optimizers, p):
    ((optimizer, group),) = [(o, g) for o in optimizers for g in o.param_groups if any(one is p for one in g["params"])]
    return optimizer, group


def test_betas_eps_and_optimizer_of_a_group():
    model, other = Model(), Model()
    own = {"params": [model.gate.weight], "betas": (0.5, 0.8), "eps": 1e-3, "optimizer": "adamw", "weight_decay": 0.2}
    optimizers = make(model, "muon", [own])
    theirs = torch.optim.AdamW([other.gate.weight], lr=LR, betas=(0.5, 0.8), eps=1e-3, weight_decay=0.2)
    assert isinstance(group_of(optimizers, model.inner.weight)[0], Muon)
    for seed in range(3):
        give_gradients(model, seed)
        other.gate.weight.grad = model.gate.weight.grad.clone()
        for optimizer in (*optimizers, theirs):
            optimizer.step()
    torch.testing.assert_close(model.gate.weight, other.gate.weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "sgd", "adam"])
def test_groups_name_optimizers_whatever_the_run_s_is(name):
    model = Model()
    groups = [
        {"params": [model.inner.weight], "optimizer": "muon"},
        {"params": [model.gate.weight], "optimizer": "adamw"},
    ]
    optimizers = make(model, name, groups)
    assert isinstance(group_of(optimizers, model.inner.weight)[0], Muon)
    assert type(group_of(optimizers, model.gate.weight)[0]) is torch.optim.AdamW
    assert type(group_of(optimizers, model.head.weight)[0]).__name__.lower() == name
    assert sum(len(g["params"]) for o in optimizers for g in o.param_groups) == len(list(model.parameters()))


def test_rates_of_embeddings_and_head():
    model = Model()
    own = {"params": [model.table.weight], "lr": 3 * LR, "weight_decay": 0.0}
    optimizers = make(model, "muon", [own], embedding_lr=10.0, head_lr=0.5)
    rates = {name: group_of(optimizers, p)[1]["initial_lr"] for name, p in model.named_parameters()}
    assert rates.pop("table.weight") == pytest.approx(30 * LR)
    assert (rates.pop("head.weight"), rates.pop("head.bias")) == (0.5 * LR, 0.5 * LR)
    assert set(rates.values()) == {LR}
    decays = {name: group_of(optimizers, p)[1]["weight_decay"] for name, p in model.named_parameters()}
    assert decays["head.weight"] == 0.1 and decays["head.bias"] == 0.0
    tied = Model()
    tied.head.weight = tied.table.weight
    assert group_of(make(tied, "adamw", embedding_lr=2.0, head_lr=9.0), tied.table.weight)[1]["lr"] == 2 * LR


def test_values_between_points():
    points = ((0.1, 0.85), (0.5, 0.95), (1.0, 0.9))
    found = [value_at(points, progress) for progress in (0, 0.1, 0.3, 0.5, 0.75, 1.0)]
    assert found == pytest.approx([0.85, 0.85, 0.9, 0.95, 0.925, 0.9])


@pytest.mark.parametrize("on_device", [False, True], ids=["numbers", "tensors"])
def test_schedules_are_numbers_set_by_hand(on_device):
    """Momentum and decay of Muon's group and decay of AdamW's, at each step as if torch's own had that number."""
    model, other = Model(), Model()
    groups = [
        {"params": [model.inner.weight], "momentum": [(0, 0.8), (0.5, 0.95)], "weight_decay": [(0, 0.5), (1, 0)]},
        {"params": [model.head.weight], "weight_decay": ((0, 0.0), (1, 0.6))},
    ]
    optimizers = make(model, "muon", groups)
    values = ValuesOnDevice(optimizers, torch.device("cpu")) if on_device else None
    muon = torch.optim.Muon([other.inner.weight], lr=LR, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([other.head.weight], lr=LR, betas=(0.9, 0.95))
    for step in range(STEPS):
        progress = step / STEPS
        if values:
            values.set(progress)
        else:
            set_rates(optimizers, 1.0, progress)
        muon.param_groups[0] |= {"momentum": min(0.95, 0.8 + 0.3 * progress), "weight_decay": 0.5 * (1 - progress)}
        adamw.param_groups[0]["weight_decay"] = 0.6 * progress
        give_gradients(model, step)
        for mine, theirs in ((model.inner, other.inner), (model.head, other.head)):
            theirs.weight.grad = mine.weight.grad.clone()
        for optimizer in optimizers:
            decay_apart(optimizer)
            optimizer.step()
        muon.step()
        adamw.step()
    for mine, theirs in ((model.inner, other.inner), (model.head, other.head)):
        torch.testing.assert_close(mine.weight, theirs.weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "own, complaint",
    [
        ({"optimizer": "lion"}, "optimizer 'lion' is not one of adamw, muon"),
        ({"betas": (0.9, 1.0)}, "betas are two numbers"),
        ({"eps": 0.0}, "eps must be more than 0"),
        ({"momentum": [(0.5, 0.9), (0.2, 0.95)]}, "momentum takes a number or points"),
        ({"weight_decay": [(0, -0.1)]}, "weight_decay takes a number or points"),
    ],
)
def test_groups_that_are_refused(own, complaint):
    model = Model()
    with pytest.raises(UserError, match=complaint):
        make(model, "muon", [{"params": [model.inner.weight], **own}])


@pytest.mark.parametrize("key, value", [("lr", -1), ("lr", "high"), ("lr", float("nan")), ("weight_decay", -1)])
def test_a_rate_or_a_decay_that_is_none_is_refused(key, value):
    model = Model()
    with pytest.raises(UserError, match=f"{key} must be a number of at least 0, not"):
        make(model, "adamw", [{"params": [model.gate.weight], key: value}])


def test_nothing_to_train_is_refused_and_a_rest_that_stays_is_said():
    model = Model()
    with pytest.raises(UserError, match="every parameter a rate of 0"):
        make(model, "adamw", [{"params": list(model.parameters()), "lr": 0.0}])
    some = make(model, "muon", [{"params": [model.gate.weight, model.table.weight], "lr": 0.0}])
    assert without_rate(model, some) == "param_groups gives table.weight and 1 more a rate of 0: not trained"
    assert without_rate(model, make(Model())) is None
    with pytest.raises(UserError, match="no parameter of the model is trainable"):
        make(Model().requires_grad_(False))
