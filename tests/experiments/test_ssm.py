"""ssm against its equations, one token and one head at a time."""

import pytest
import torch

from support.plain_gpt2ish import layer_norm, linear, load, parameters, tokens, under

NEAR = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(scope="module")
def ssm():
    return load("ssm")


def small(ssm, dtype=torch.float64, **fields):
    torch.manual_seed(0)
    sizes = dict(vocab_size=23, max_len=40, n_layer=2, n_head=2, n_embd=6, n_state=3, chunk=4)
    model = ssm.build(ssm.config("12l", **{**sizes, **fields})).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


def silu(x):
    return x / (1 + torch.exp(-x))


def by_steps(model, w, batch):
    c = model.config
    width, N = c.expand * c.n_embd, c.n_state
    P = width // c.n_head
    x = w["tokens_embedding.weight"][batch]
    for layer in range(c.n_layer):
        block = under(w, f"blocks.{layer}.")
        mine = under(block, "state_space.")
        made = layer_norm(x, block, "state_space_norm") @ mine["gate_input_rate.weight"].T
        gate, inputs, rates = made[..., :width], made[..., width : 2 * width + 2 * N], made[..., 2 * width + 2 * N :]
        states = [[torch.zeros(N, P, dtype=torch.float64) for _ in range(c.n_head)] for _ in batch]
        rows = []
        for b in range(len(batch)):
            for t in range(batch.size(1)):
                mixed = mine["conv.bias"]
                for back in range(min(c.n_conv, t + 1)):
                    mixed = mixed + mine["conv.weight"][:, 0, c.n_conv - 1 - back] * inputs[b, t - back]
                mixed = silu(mixed)
                B, C, heads = mixed[width : width + N], mixed[width + N :], []
                for head in range(c.n_head):
                    stored = mixed[head * P : (head + 1) * P]
                    rate = torch.log(1 + torch.exp(rates[b, t, head] + mine["rate_bias"][head]))
                    kept = torch.exp(-torch.exp(mine["log_decay"][head]) * rate)
                    states[b][head] = kept * states[b][head] + rate * B[:, None] * stored[None, :]
                    heads.append(C @ states[b][head] + mine["skip"][head] * stored)
                y = torch.cat(heads) * silu(gate[b, t])
                rows.append(y / torch.sqrt((y * y).mean() + 1e-5) * mine["norm.weight"])
        x = x + torch.stack(rows).view(*batch.shape, width) @ mine["out.weight"].T
    return linear(layer_norm(x, w, "norm"), w, "head")


@pytest.mark.parametrize(
    "length, fields",
    [(1, {}), (3, {}), (11, {}), (16, {"chunk": 16}), (7, {"n_conv": 1}), (9, {"n_head": 4, "expand": 4})],
    ids=str,
)
def test_logits_and_gradients(ssm, length, fields):
    model, batch = small(ssm, **fields), tokens(length=length)
    w = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    expected, logits = by_steps(model, w, batch), model(batch)
    torch.testing.assert_close(logits, expected, **NEAR)
    direction = torch.randn_like(logits)
    (logits * direction).sum().backward()
    (expected * direction).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, w[name].grad, **NEAR, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("sizes", [(1,) * 40, (7, 1, 20, 12)], ids=len)
def test_in_parts_as_whole(ssm, sizes, dtype, tolerance):
    model, batch = small(ssm, dtype, chunk=16), tokens(length=40)
    whole, cache = model(batch), model.new_cache(2)
    parts = torch.cat([model(part, cache=cache) for part in batch.split(sizes, dim=1)], dim=1)
    torch.testing.assert_close(parts, whole, rtol=tolerance, atol=tolerance)
    assert cache[0].state.shape == (2, 2, 3, 6) and cache[0].inputs.shape == (2, 3, 18)
    found, expected = (
        torch.autograd.grad(logits.square().mean(), list(model.parameters())) for logits in (parts, whole)
    )
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("log_decay", [0.0, -1e-4, -1.0, -50.0, -1e4])
def test_scan_in_float32(ssm, log_decay):
    """Decays whose quotients float32 could not hold, and none at all, over many chunks; gradients are finite."""
    generator = torch.Generator().manual_seed(0)
    x, B, C = (torch.randn(1, 300, *shape, generator=generator) for shape in ((2, 3), (4,), (4,)))
    decays = (log_decay * torch.rand(1, 300, 2, generator=generator)).requires_grad_()
    state, expected = torch.zeros(1, 2, 4, 3, dtype=torch.float64), []
    for t in range(300):
        state = (
            decays[:, t].double().exp()[..., None, None] * state + B[:, t, None, :, None] * x[:, t, :, None].double()
        )
        expected.append((C[:, t, None, :, None] * state).sum(2))
    y, last = ssm.module.scan(x, decays, B, C, 64)
    torch.testing.assert_close(y.double(), torch.stack(expected, 1), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(last.double(), state, rtol=1e-4, atol=1e-3)
    assert torch.autograd.grad(y.square().mean(), decays)[0].isfinite().all()


def test_first_values(ssm):
    torch.manual_seed(0)
    model = ssm.build(ssm.config("tiny", 300, 16))
    rates = torch.stack([torch.nn.functional.softplus(block.state_space.rate_bias) for block in model.blocks])
    decays = torch.stack([block.state_space.log_decay.exp() for block in model.blocks])
    assert 0.00099 < rates.min() < 0.01 and 0.02 < rates.max() < 0.101
    assert 1 <= decays.min() < 4 and 12 < decays.max() <= 16
    assert model.blocks[0].state_space.out.weight.std().item() == pytest.approx(0.02 / 8**0.5, rel=0.02)


def test_bfloat16_keeps_the_state_in_float32(ssm):
    model = small(ssm, torch.float32)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model(tokens(), cache=(cache := model.new_cache(2)))
    assert cache[0].state.dtype == torch.float32


def test_parameters(ssm):
    V, d, w, N, H = 50257, 768, 1536, 64, 24
    block = 2 * d + d * (2 * w + 2 * N + H) + 5 * (w + 2 * N) + 3 * H + w + w * d
    assert parameters(ssm, "12l") == 2 * V * d + V + 2 * d + 12 * block == 121_252_273
    gpt2ish = load("gpt2ish")
    for variant, theirs in (("12l", "6l"), ("24l", "12l"), ("tiny", "tiny")):
        assert parameters(ssm, variant) == pytest.approx(parameters(gpt2ish, theirs), rel=0.02)


def test_heads_must_divide(ssm):
    with pytest.raises(ValueError, match="expand 2 times n_embd 6 .* n_head 5"):
        ssm.Model(ssm.config("12l", vocab_size=23, max_len=8, n_layer=1, n_head=5, n_embd=6))
