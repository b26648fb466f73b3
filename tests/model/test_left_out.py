"""It is a model's own forward that is trained and scored, whatever it does with its logits and whenever."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lmplay.model import shortcuts
from lmplay.model.adapters import head_is_last
from lmplay.model.left_out import LeftOut, run_forward
from lmplay.model.loss import FusedHead, score
from lmplay.model.proofs import prove_fused_loss, prove_shortcuts

V, D = 23, 6


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(V, D), nn.Linear(D, V)
        self.calls = 0

    def body(self, tokens):
        return torch.tanh(self.embedding(tokens))

    def forward(self, tokens):
        self.calls += 1
        return self.change(self.head(self.body(tokens)))

    def change(self, logits):
        return logits


class OwnWeights(Plain):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(V, D))

    def head_weights(self):
        return self.weight * 2.0, None

    def forward(self, tokens):
        self.calls += 1
        return self.change(F.linear(self.body(tokens), *self.head_weights()))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2.0 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2.0 * gradient


def in_place(model, logits):
    logits.mul_(0.5)
    return logits


def one_column(model, logits):
    logits[..., 3] = -5.0
    return logits


def hooked(model, logits):
    if logits.requires_grad:
        logits.register_hook(lambda gradient: 3.0 * gradient)
    return logits


def reported(model, logits):
    with torch.no_grad():
        size = logits.abs().mean()
    return logits, {"size": size, "loss": logits.square().mean()}


def stored(model, logits):
    before, model.before = getattr(model, "before", None), logits
    return logits if before is None else logits + before.detach().mean()


CHANGES = {
    "noise": lambda model, x: x + torch.randn_like(x) if model.training else x,
    "temperature": lambda model, x: x / 3 if model.training else x,
    "eval": lambda model, x: x if model.training else 2 * x,
    "many tokens": lambda model, x: 0 * x if x.size(1) > 2 else x,
    "many rows": lambda model, x: x[:, :1].expand_as(x) if len(x) > 1 else x,
    "schedule": lambda model, x: x / 2 if model.calls > 2 else x,
    "in place": in_place,
    "a column": one_column,
    "a hook": hooked,
    "autograd.Function": lambda model, x: Doubled.apply(x),
    "joined": lambda model, x: torch.cat([x[..., :1], x[..., 1:] - 1], -1),
    "reported": reported,
    "stored": stored,
}


def agree(model, tokens, targets):
    """Loss, gradients and what is left in the model are those of the plain way, in a training of three steps."""
    plain = copy.deepcopy(model)
    for training in (True, True, False, True):
        results = []
        for one, fused in ((model, True), (plain, False)):
            torch.manual_seed(1)
            one.train(training)
            result = score(one, tokens, targets, fused=fused)
            if training:
                (result.loss_sum + result.extra.get("loss", 0.0)).backward()
            results.append(result)
        torch.testing.assert_close(results[0].losses, results[1].losses)
        for (name, ours), (_, theirs) in zip(model.named_parameters(), plain.named_parameters()):
            assert (ours.grad is None) == (theirs.grad is None), name
            if ours.grad is not None:
                torch.testing.assert_close(ours.grad, theirs.grad)
        assert model.calls == plain.calls


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(V, (3, 5), generator=generator) for _ in range(2)]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("base", [Plain, OwnWeights])
def test_what_forward_does_with_its_logits_is_trained(change, base, batch, capsys):
    model = type("Changed", (base,), {"change": CHANGES[change]})()
    agree(model, *batch)
    assert capsys.readouterr().err.count("note: forward is ") == 1 and shortcuts.HEAD in shortcuts.not_taken(model)


class Between(Plain):
    def forward(self, tokens):
        self.calls += 1
        x = self.body(tokens)
        return self.head(F.dropout(x, 0.5) if self.training and tokens.size(1) > 1 else x)


class Checkpointed(Plain):
    def forward(self, tokens):
        self.calls += 1
        return checkpoint(self.head, self.body(tokens), use_reentrant=False)


class Twice(Plain):
    def forward(self, tokens):
        self.calls += 1
        x = self.body(tokens)
        return self.head(x), {"loss": self.head(x * 0.5).logsumexp(-1).mean()}


class HookedHead(Plain):
    def __init__(self):
        super().__init__()
        self.head.register_forward_hook(lambda module, inputs, output: output * 2 if module.training else None)


class Backwards(Plain):
    def __init__(self):
        super().__init__()
        self.head.register_full_backward_hook(lambda module, inward, outward: tuple(5 * g for g in inward))


@pytest.mark.parametrize("kind", [Plain, OwnWeights, Between, Checkpointed, Twice, HookedHead, Backwards])
def test_what_forward_does_before_and_around_its_head_is_trained(kind, batch):
    agree(kind(), *batch)


def test_head_is_left_out_where_nothing_asks_for_its_logits(batch, capsys):
    for kind in (Plain, OwnWeights):
        model = kind()
        for mode in (True, False):
            logits, _ = run_forward(model.train(mode), batch[0])
            assert isinstance(logits, LeftOut) and logits.given() is not None
            torch.testing.assert_close(logits.itself(), copy.deepcopy(model)(batch[0]))
            assert logits.given() is None and logits.shape == (3, 5, V)
        assert "forward" not in vars(model.head) and "head_weights" not in vars(model)
    assert not capsys.readouterr().err


def test_precision_of_the_head_is_that_of_its_call(batch):
    class Wide(Plain):
        def forward(self, tokens):
            x = self.body(tokens)
            with torch.autocast("cpu", enabled=False):
                return self.head(x.float())

    model = Wide()
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (score(model, *batch, fused=fused).losses for fused in (True, False))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_following_a_model_leaves_nothing_behind(batch):
    class Counting(Plain):
        def __init__(self):
            super().__init__()
            self.seen = []
            self.register_buffer("total", torch.zeros(()))

        def change(self, logits):
            self.seen.append(torch.rand(()).item())
            self.total += 1
            return logits

    model = Counting()
    torch.manual_seed(5)
    assert head_is_last(model) and head_is_last(model.eval())
    drawn = torch.rand(3)
    assert model.calls == 0 and not model.seen and model.total == 0
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))


@pytest.mark.parametrize("wrong", ["losses", "gradient", None])
def test_a_fused_loss_that_is_wrong_is_not_used(wrong, capsys):
    def fused(hidden, weight, bias, targets):
        total, losses, correct = FusedHead.apply(hidden, weight, bias, targets)
        if wrong == "losses":
            losses = losses * 1.01
        if wrong == "gradient":
            total = total + 0.1 * hidden.square().sum() - 0.1 * hidden.detach().square().sum()
        return total, losses, correct

    model = Plain()
    hidden, targets = torch.randn(90, D), torch.randint(V, (90,))
    targets[::3] = -100
    prove_fused_loss(model, fused, (hidden, model.head.weight, model.head.bias), targets)
    assert (shortcuts.LOSS in shortcuts.not_taken(model)) == (wrong is not None)
    assert capsys.readouterr().err.count("\n") == (wrong is not None)


class Deriving(Plain):
    """Derives a scale from parameters alone, or from more."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.scale, self.derived = kind, nn.Parameter(torch.ones(D)), None

    def derive(self):
        scale = self.scale * 2
        if self.kind == "random":
            scale = F.dropout(scale, 0.5, self.training)
        if self.kind == "tokens":
            scale = scale * (1 + self.last)
        return {"scale": scale}

    def body(self, tokens):
        self.last = tokens.float().mean()
        scale = (self.derive() if self.derived is None else self.derived)["scale"]
        if self.kind == "changed" and self.derived is not None:
            scale = scale * 1.5
        return super().body(tokens) * scale


@pytest.mark.parametrize("kind", ["right", "random", "tokens", "changed"])
def test_what_is_not_derived_from_parameters_alone_is_derived_in_each_pass(kind, batch, capsys):
    model = Deriving(kind)
    model.last = torch.zeros(())
    model.scale.grad = torch.ones(D)
    prove_shortcuts(model, *batch, precision=nullcontext)
    assert (shortcuts.DERIVED in shortcuts.not_taken(model)) == (kind != "right")
    assert torch.equal(model.scale.grad, torch.ones(D)) and model.embedding.weight.grad is None
    assert model.derived is None and model.last == 0 and capsys.readouterr().err.count("\n") == (kind != "right")
