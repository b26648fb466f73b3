"""What the tests of learned memories state with: parts of a plain float64 gpt2ish, and the checks that all of them
make.
"""

import math

import torch

from lmplay.model import adapters


def some_tokens(vocab_size, batch=2, length=7, seed=1):
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def away_from_initial(experiment, **fields):
    """The variant 6l with these fields, in float64, away from the initial values."""
    torch.manual_seed(0)
    model = experiment.build(experiment.config("6l", **fields)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


def linear(w, name, x):
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def norm(w, name, x):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[name + ".weight"] + w[name + ".bias"]


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def feed_forward(w, name, x):
    return linear(w, name + ".down", gelu(linear(w, name + ".up", x)))


def attention(w, name, x, n_head):
    """Of one sequence (T, D), a token and a head at a time."""
    T, D = x.shape
    q, k, v = linear(w, name + ".qkv", x).split(D, -1)
    rows = []
    for t in range(T):
        heads = []
        for part in torch.arange(D).split(D // n_head):
            weights = (k[: t + 1, part] @ q[t, part] / math.sqrt(len(part))).softmax(0)
            heads.append(weights @ v[: t + 1, part])
        rows.append(torch.cat(heads))
    return linear(w, name + ".out", torch.stack(rows))


def assert_same_function(model, stated, tokens, without_effect=lambda name: False):
    """Logits and every gradient are those of `stated(w, config, tokens)`, w the parameters by name.

    `without_effect(name)`: the function does not depend on the parameter (what shifts all scores of a softmax alike).
    """
    w = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    logits, expected = model(tokens), stated(w, model.config, tokens)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    direction = torch.randn(logits.shape, dtype=logits.dtype, generator=torch.Generator().manual_seed(2))
    ours = torch.autograd.grad((logits * direction).sum(), list(model.parameters()))
    theirs = torch.autograd.grad((expected * direction).sum(), list(w.values()))
    for name, one, other in zip(w, ours, theirs):
        assert other.abs().max() > 1e-6 or without_effect(name), name
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10, msg=lambda text: f"{name}: {text}")


def assert_derives_once(model, parts):
    """Mini-batches with one derive(): the gradients of forward passes that derive anew."""
    for part in parts:
        model(part).square().sum().backward()
    anew = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with adapters.derived_once(model):
        for part in parts:
            model(part).square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, anew[name], rtol=1e-10, atol=1e-10)


@torch.no_grad()
def assert_folds(experiment, model, tokens, tolerance):
    """fold() computes the same logits, leaves the model as it is, shares nothing with it, and can be saved and
    loaded.
    """
    before, folded = {name: p.clone() for name, p in model.state_dict().items()}, model.fold()
    logits = model(tokens)
    assert folded(tokens).dtype == logits.dtype == next(model.parameters()).dtype
    torch.testing.assert_close(folded(tokens), logits, rtol=tolerance, atol=tolerance)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in folded.parameters()}
    again = experiment.build(folded.config).to(logits.dtype)
    again.load_state_dict(folded.state_dict())
    assert torch.equal(again(tokens), folded(tokens))
