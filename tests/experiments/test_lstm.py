"""lstm against its equations, one step and one gate at a time."""

import pytest
import torch

from lmplay.model.cost import cost_of
from support.plain_gpt2ish import layer_norm, linear, load, parameters

NEAR = {"rtol": 0, "atol": 1e-10}


@pytest.fixture(scope="module")
def lstm():
    return load("lstm")


def build(lstm, variant):
    torch.manual_seed(0)
    model = lstm.build(lstm.config(variant, 23, 8, n_layer=2, n_embd=5, **({} if variant == "9l" else {"n_hidden": 7})))
    return model.double(), torch.randint(23, (2, 8))


@pytest.mark.parametrize("variant, width", [("3l", 7), ("9l", 5)])
def test_the_equations(lstm, variant, width):
    model, tokens = build(lstm, variant)
    w = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    x = list(w["tokens_embedding.weight"][tokens].unbind(1))
    for layer in range(2):
        h = c = torch.zeros(2, width, dtype=torch.float64)
        for t in range(8):
            i, f, g, o = (
                x[t] @ w[f"lstm.weight_ih_l{layer}"].T
                + w[f"lstm.bias_ih_l{layer}"]
                + h @ w[f"lstm.weight_hh_l{layer}"].T
                + w[f"lstm.bias_hh_l{layer}"]
            ).split(width, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = x[t] = torch.sigmoid(o) * torch.tanh(c)
    x = torch.stack(x, 1)
    expected = linear(layer_norm(linear(x, w, "out") if variant == "3l" else x, w, "norm"), w, "head")
    logits = model(tokens)
    torch.testing.assert_close(logits, expected, **NEAR)
    direction = torch.randn_like(logits)
    (logits * direction).sum().backward()
    (expected * direction).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, w[name].grad, **NEAR, msg=lambda m: f"{name}: {m}")


def test_one_step_at_a_time_with_gradients(lstm):
    model, tokens = build(lstm, "3l")
    whole = model(tokens)
    cache = model.new_cache(2)
    steps = torch.cat([model(part, cache=cache) for part in tokens.split(1, dim=1)], dim=1)
    torch.testing.assert_close(steps, whole, **NEAR)
    found, expected = (
        torch.autograd.grad(logits[:, -1].square().sum(), list(model.parameters())) for logits in (steps, whole)
    )
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, **NEAR)
    assert [part.shape for part in cache.hidden] == [(2, 2, 7)] * 2


@pytest.mark.parametrize(
    "variant, count",
    [
        ("3l", 120_431_697),
        ("9l", 2 * 50257 * 768 + 50257 + 2 * 768 + 9 * 8 * (768**2 + 768)),
        ("arrows_5x768", 2 * 50257 * 768 + 2 * 768 + 5 * 8 * (768**2 + 768)),
    ],
)
def test_parameters(lstm, variant, count):
    assert parameters(lstm, variant) == count


def test_parameters_are_near_gpt2ish_whatever_the_vocabulary(lstm):
    gpt2ish = load("gpt2ish")

    def count(experiment, variant, vocabulary):
        with torch.device("meta"):
            return sum(p.numel() for p in experiment.build(experiment.config(variant, vocabulary)).parameters())

    for variant, theirs in (("3l", "6l"), ("9l", "6l"), ("tiny", "tiny"), ("tiny_6l", "tiny")):
        for vocabulary in (256, 4096, 50257):
            assert count(lstm, variant, vocabulary) == pytest.approx(count(gpt2ish, theirs, vocabulary), rel=0.025)


def test_forget_gates_begin_open(lstm):
    model, _ = build(lstm, "3l")
    for layer in range(2):
        bias = getattr(model.lstm, f"bias_ih_l{layer}") + getattr(model.lstm, f"bias_hh_l{layer}")
        assert (bias[7:14] == 1).all() and (bias[:7].abs() < 1).all() and bias[14:].any()


def test_cost_without_the_steps(lstm):
    config = lstm.config("3l", 500, 4096, n_embd=32, n_hidden=64)
    matrices = [
        p.numel() for name, p in lstm.build(config).named_parameters() if p.ndim == 2 and "embedding" not in name
    ]
    assert cost_of(lstm, config).flops_per_token == 6 * sum(matrices)
