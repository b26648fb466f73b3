"""mingru against its equations, one step at a time, and its scan where float32 is hard put."""

import pytest
import torch
import torch.nn.functional as F

from support.plain_gpt2ish import layer_norm, linear, load, parameters, tokens, under


@pytest.fixture(scope="module")
def mingru():
    return load("mingru")


def small(mingru, variant, dtype=torch.float64, **fields):
    torch.manual_seed(0)
    model = mingru.build(
        mingru.config(variant, **{**dict(vocab_size=23, max_len=8, n_layer=2, n_embd=6, n_hidden=10), **fields})
    ).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


def by_steps(w, signed, batch):
    x = w["tokens_embedding.weight"][batch]
    for i in range(2):
        block = under(w, f"blocks.{i}.")
        h, outputs = 0, []
        for normed in layer_norm(x, block, "mingru_norm").unbind(1):
            gate, candidate = linear(normed, block, "mingru.gate_candidate").chunk(2, -1)
            z = 1 / (1 + torch.exp(-gate))
            if not signed:
                candidate = torch.where(candidate >= 0, candidate + 0.5, 1 / (1 + torch.exp(-candidate)))
            h = (1 - z) * h + z * candidate
            outputs.append(linear(h, block, "mingru.out"))
        x = x + torch.stack(outputs, 1)
        x = x + linear(
            F.gelu(linear(layer_norm(x, block, "feed_forward_norm"), block, "feed_forward.up")),
            block,
            "feed_forward.down",
        )
    return linear(layer_norm(x, w, "norm"), w, "head")


@pytest.mark.parametrize("length", [1, 2, 5, 8, 37])
@pytest.mark.parametrize("variant", ["6l", "signed"])
def test_logits_and_gradients(mingru, variant, length):
    model = small(mingru, variant, max_len=37)
    batch = tokens(length=length)
    w = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    expected, logits = by_steps(w, variant == "signed", batch), model(batch)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    direction = torch.randn_like(logits)
    (logits * direction).sum().backward()
    (expected * direction).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, w[name].grad, rtol=1e-10, atol=1e-10, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_one_step_at_a_time_is_the_scan(mingru, dtype, tolerance):
    model = small(mingru, "6l", dtype, max_len=100, n_embd=16, n_hidden=24)
    batch = tokens(length=100)
    whole, cache = model(batch), model.new_cache(2)
    steps = torch.cat([model(part, cache=cache) for part in batch.split(1, dim=1)], dim=1)
    torch.testing.assert_close(steps, whole, rtol=0, atol=tolerance)
    assert cache[0].hidden.shape == (2, 24)
    found, expected = (
        torch.autograd.grad(logits.square().mean(), list(model.parameters())) for logits in (steps, whole)
    )
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("length", [1, 3, 64, 65, 1000])
@pytest.mark.parametrize("factor", [0.0, 1e-30, 0.5, 0.999, 1.0])
def test_scan_in_float32(mingru, length, factor):
    """Factors that a sum of logarithms could not divide by, and those that forget nothing."""
    generator = torch.Generator().manual_seed(0)
    terms = torch.randn(2, length, 3, generator=generator)
    factors = (
        torch.rand(2, length, 3, generator=generator) * (1 - factor) + factor
        if factor >= 0.5
        else torch.full_like(terms, factor)
    )
    h = start = torch.randn(2, 3, generator=generator)
    expected = []
    for t in range(length):
        h = factors[:, t].double() * h + terms[:, t]
        expected.append(h)
    found = mingru.module.Scan.apply(factors, terms, start)
    torch.testing.assert_close(found.double(), torch.stack(expected, 1), rtol=1e-5, atol=1e-4)


def test_scan_gradients(mingru):
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.rand(*shape, dtype=torch.float64, generator=generator, requires_grad=True)
        for shape in ((1, 11, 2), (1, 11, 2), (1, 2))
    ]
    assert torch.autograd.gradcheck(mingru.module.Scan.apply, inputs)


def test_bfloat16_keeps_the_state_in_float32(mingru):
    model = small(mingru, "6l", torch.float32)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model(tokens(), cache=(cache := model.new_cache(2)))
    assert cache[0].hidden.dtype == torch.float32


def test_parameters(mingru):
    V, d = 50257, 768
    assert parameters(mingru, "6l") == 2 * V * d + V + 2 * d + 6 * (12 * d * d + 2 * 1024 + 10 * d) == 119_772_241
    gpt2ish = load("gpt2ish")
    for variant, theirs in (("6l", "6l"), ("12l", "12l"), ("signed", "6l"), ("tiny", "tiny"), ("tiny_signed", "tiny")):
        assert parameters(mingru, variant) == pytest.approx(parameters(gpt2ish, theirs), rel=0.01)


def test_costs_what_gpt2ish_costs_without_attention(mingru):
    from lmplay.model.cost import cost_of

    config = mingru.config("tiny", 500, 64, n_embd=48, n_hidden=64)
    assert cost_of(mingru, config).flops_per_token == 6 * (4 * 12 * 48**2 + 48 * 500)
