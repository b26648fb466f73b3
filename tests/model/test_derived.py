"""What a model derives from its parameters alone is derived once a step, and nothing else changes."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lmplay import contract, registry
from lmplay.generate.sampling import Sampling, generate
from lmplay.model import adapters
from lmplay.model.cost import activation_bytes, cost_of, derived_bytes
from lmplay.model.loss import score
from lmplay.runs.settings import Settings
from lmplay.train.build import gradient_faults
from lmplay.train.loop import Trainer
from lmplay.train.setup import set_up
from lmplay.train.validation import ValidationFeed, validate
from support.steps import before_step

WIDTH, CONTEXT = 8, 16
# A matrix and the head's weight with gains on their rows, a vector that a small network predicts, and one plain matrix.
SOURCE = '''"""A small model that derives its weights from others."""
from dataclasses import dataclass
import torch
import torch.nn.functional as F
from torch import nn

CALLS = []

@dataclass
class Config:
    vocab_size: int = 50
    max_len: int = 16
    own_head: bool = True

class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding, self.plain = nn.Embedding(config.vocab_size, 8), nn.Linear(8, 8)
        self.weight, self.gain = nn.Parameter(torch.randn(8, 8) / 3), nn.Parameter(torch.ones(8))
        self.code, self.net = nn.Parameter(torch.randn(4)), nn.Linear(4, 8)
        self.head_weight = nn.Parameter(torch.randn(config.vocab_size, 8) / 3)
        self.head_gain = nn.Parameter(torch.ones(config.vocab_size))
        self.derived, self.number = None, id(self)

    def derive(self):
        if self.number == id(self):  # not a copy on which a shortcut is proven
            CALLS.append(torch.is_grad_enabled())
        return {"weight": self.weight * self.gain[:, None], "bias": torch.tanh(self.net(self.code)),
                "head": self.head_weight * self.head_gain[:, None]}

    def body(self, tokens):
        derived = self.derive() if self.derived is None else self.derived
        x = torch.tanh(self.plain(self.embedding(tokens)))
        return x + torch.tanh(F.linear(x, derived["weight"], derived["bias"]))

    def head_weights(self):
        return (self.derive() if self.derived is None else self.derived)["head"], None

    def forward(self, tokens):
        if tokens.size(1) > self.config.max_len:
            raise ValueError("more than max_len")
        x = self.body(tokens)
        return F.linear(x, *self.head_weights()) if self.config.own_head else x @ self.head_weights()[0].t()

variants = {"only": {}}
'''


@pytest.fixture
def mine(work):
    """The name of an experiment with the source above."""
    (work / "experiments" / "mine").mkdir(parents=True)
    (work / "experiments" / "mine" / "model.py").write_text(SOURCE, encoding="utf-8")
    return "mine"


def make(plan, mini_batch_size=3, **options) -> Trainer:
    return Trainer(
        set_up(
            Settings(
                **{
                    "exp": "mine",
                    "training_plan": plan,
                    "context_len": CONTEXT,
                    "batch_size": 7,
                    "max_steps": 1,
                    "device": "cpu",
                    "mini_batch_size": mini_batch_size,
                    "grad_clip": 0.0,
                    "run_name": f"by-{mini_batch_size}",
                    "validation_interval": 100,
                    **options,
                }
            )
        )
    )


def build(vocab_size=50, **fields):
    experiment = contract.load(registry.find("mine")[0])
    torch.manual_seed(0)
    return experiment, experiment.build(experiment.config("only", vocab_size, **fields))


def gradients(trainer) -> dict:
    """The gradients of the trainer's first step, and how often it derived."""
    found, calls = {}, trainer.setup.experiment.module.CALLS
    before_step(
        trainer.optimizers[0],
        lambda: found.update({n: p.grad.clone() for n, p in trainer.model.named_parameters()}, calls=calls.count(True)),
    )
    calls.clear()
    assert trainer.train() == "finished" and trainer.model.derived is None
    return found


@pytest.mark.parametrize("plan", ["plain", "answers"])
@pytest.mark.parametrize("own_head", ["true", "false"], ids=["fused head", "head of its own"])
def test_gradient_is_that_of_the_whole_batch(plans, mine, plan, own_head):
    for size in (1, 3, 7):
        trainer = make(plans[plan], size, set=(f"own_head={own_head}",))
        trainer.model.double()
        windows = trainer.setup.phases[0].order.windows(0, 7)
        tokens, eot = torch.from_numpy(windows.tokens), trainer.setup.data.tokenizer.eot
        scored = (
            torch.ones_like(tokens, dtype=torch.bool) if windows.scored is None else torch.from_numpy(windows.scored)
        )
        logits = trainer.model(torch.cat([torch.full((7, 1), eot), tokens[:, :-1]], dim=1))
        (-logits.log_softmax(-1).gather(2, tokens[..., None]).squeeze(2))[scored].mean().backward()
        wanted = {n: p.grad for n, p in trainer.model.named_parameters()}
        trainer.model.zero_grad()
        found = gradients(trainer)
        assert found.pop("calls") == 1 and found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            assert gradient.any()
            torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-15, msg=name)


def test_scaled_gradients_pass_through(plans, mine):
    plain = gradients(make(plans["plain"]))
    trainer = make(plans["plain"], run_name="scaled")
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    scaled = gradients(trainer)
    for name in plain.keys() - {"calls"}:
        torch.testing.assert_close(scaled[name], plain[name], rtol=1e-5, atol=1e-8, msg=name)


def test_half_precision_gradients_are_summed_in_float32(mine):
    """Of 600 forward passes: a bfloat16 sum would stand still after 256."""
    _, model = build()
    tokens = torch.arange(16)[None]

    def total(times, autocast):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            with adapters.derived_once(model):
                assert model.derived["bias"].dtype == (torch.bfloat16 if autocast else torch.float32)
                for _ in range(times):
                    score(model, tokens, tokens).loss_sum.backward()
        return model.net.bias.grad

    wanted = 600 * total(1, True)
    assert (total(600, True) - wanted).norm() < 0.01 * wanted.norm()
    assert (total(600, False) - wanted).norm() < 0.02 * wanted.norm()


def test_updates_derive_once_each_and_validations_once(plans, mine):
    trainer = make(plans["plain"], 2, max_steps=5, validation_interval=5)
    calls = trainer.setup.experiment.module.CALLS
    adapters.fused_head(trainer.model)  # looks at the model once
    calls.clear()
    assert trainer.train() == "finished"
    assert calls.count(True) == 5
    assert calls.count(False) == 1 + 1  # the validation, and its two samples in one batch


def test_an_interrupted_update_leaves_nothing(plans, mine):
    trainer = make(plans["plain"], 1)
    forward, passes = trainer.model.embedding.forward, []

    def interrupt(tokens):
        if trainer.model.derived is not None:  # not a copy that something is proven on
            passes.append(trainer.model.derived)
        if len(passes) > 3:
            raise KeyboardInterrupt
        return forward(tokens)

    trainer.model.embedding.forward = interrupt
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.model.derived is None
    assert all(passes) and all(p.grad is None for p in (trainer.model.weight, trainer.model.net.weight))


def test_validation_is_the_same(plans, mine):
    trainer = make(plans["answers"])
    stores, eot = trainer.setup.data.validation, trainer.setup.data.tokenizer.eot
    model, calls = trainer.model, trainer.setup.experiment.module.CALLS

    def losses(model):
        feed = ValidationFeed(trainer.setup.experiment, stores, CONTEXT, eot, 0)
        return validate(model, feed, 3, trainer.device, trainer.precision).losses

    adapters.fused_head(model)
    calls.clear()
    found = losses(model)
    assert calls == [False] and model.derived is None

    class Alone(torch.nn.Module):
        def forward(self, tokens):
            assert model.derived is None
            return model(tokens)

    np.testing.assert_allclose(found, losses(Alone()), rtol=1e-6)
    assert len(calls) > 5


def test_text_is_the_same(mine):
    _, model = build()
    with torch.no_grad():
        model.embedding.weight.mul_(5)
    calls = contract.load(registry.find("mine")[0]).module.CALLS

    class Alone(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, tokens):
            return self.inner(tokens)

    how = [49, 1, 2], CONTEXT, 40, Sampling(top_p=1.0)
    wanted = list(generate(Alone(), *how, torch.Generator().manual_seed(3)))
    adapters.fused_head(model)
    calls.clear()
    assert list(generate(model, *how, torch.Generator().manual_seed(3))) == wanted and len(set(wanted)) > 5
    assert calls == [False] and model.derived is None
    begun = generate(model, *how, torch.Generator().manual_seed(3))
    next(begun)
    begun.close()
    assert model.derived is None
    score(model, torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64)).loss_sum.backward()


def test_check_grads(plans, mine, work):
    setup = make(plans["plain"]).setup
    assert gradient_faults(setup) == []
    path = work / "experiments" / "deaf" / "model.py"
    path.parent.mkdir()
    path.write_text(SOURCE.replace('derived["weight"], derived["bias"]', 'derived["weight"]'), encoding="utf-8")
    faults = gradient_faults(make(plans["plain"], exp="deaf", run_name="deaf").setup)
    assert faults == ["code gets no gradient", "net.weight gets no gradient", "net.bias gets no gradient"]


def test_head_weights_are_fused_only_if_forward_is_their_product(mine):
    _, model = build()
    head = adapters.fused_head(model)
    assert (
        head.weight.equal(model.head_weight * model.head_gain[:, None]) and head.bias is None and model.derived is None
    )
    with adapters.derived_once(model):
        assert adapters.fused_head(model).weight is model.derived["head"]
    base = type(model)

    def changed(forward, **more):
        return type("Changed", (base,), {"forward": forward, **more})(model.config)

    for forward in (
        lambda self, t: 30 * torch.tanh(F.linear(self.body(t), *self.head_weights()) / 30),
        lambda self, t: F.linear(self.body(t) * 2, *self.head_weights()),
        lambda self, t: F.linear(self.body(t), 2 * self.head_weights()[0]),
        lambda self, t: F.linear(self.body(t), self.head_weights()[0], torch.ones(50)),
        lambda self, t: self.body(t) @ self.head_weights()[0].t(),
    ):
        assert adapters.fused_head(changed(forward)) is None
    for good in (
        lambda self, t: F.linear(self.body(t), weight=self.head_weights()[0], bias=None),
        lambda self, t: F.linear(self.body(t), *self.head_weights()),
    ):
        assert adapters.fused_head(changed(good)) is not None
    names = set(vars(model))
    adapters.fused_head(model.train())
    assert model.training and set(vars(model)) == names


def test_costs_are_told_apart(mine):
    experiment, _ = build()
    config = experiment.config("only", 50, CONTEXT)
    cost = cost_of(experiment, config)
    # products: plain, weight, head for each token, three times (forward, backward by input, by weight)
    # once per step the net, whose input, a vector of parameters, gets a gradient, too
    assert cost.flops_per_token == 3 * 2 * (8 * 8 + 8 * 8 + 50 * 8)
    assert cost.flops_per_step == 3 * 2 * 4 * 8
    kept = derived_bytes(experiment, config, amp=False)
    assert 2 * 4 * (64 + 8 + 400) <= kept <= 2 * 4 * (64 + 8 + 400) + 200
    alone = activation_bytes(experiment, config, amp=False)
    assert alone < 16 * CONTEXT * 8 * 4


def test_flops_in_the_file(plans, mine):
    trainer = make(plans["plain"], max_steps=3)
    trainer.train()
    header, *rows = (trainer.setup.folder / "train.csv").read_text().splitlines()
    cost = trainer.setup.cost
    for step, row in enumerate(rows, 1):
        flops = float(dict(zip(header.split(","), row.split(",")))["flops"])
        assert flops == pytest.approx(step * (7 * CONTEXT * cost.flops_per_token + cost.flops_per_step), rel=1e-9)
    assert cost.flops_per_step > 0 and math.isfinite(cost.flops_per_token)
