"""kan against its formula, the splines by Cox and de Boor's recursion."""

import pytest
import torch
import torch.nn.functional as F

from support.plain_gpt2ish import layer_norm, linear, load, parameters, tokens, under

NEAR = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(scope="module")
def kan():
    return load("kan")


def small(kan, **fields):
    torch.manual_seed(0)
    sizes = dict(vocab_size=23, max_len=8, n_layer=2, n_head=2, n_embd=6, n_hidden=4)
    model = kan.build(kan.config("6l", **{**sizes, **fields})).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


def cox_de_boor(x, knots, i, degree):
    """The i-th B-spline of `degree` on `knots`, at x."""
    if degree == 0:
        return ((knots[i] <= x) & (x < knots[i + 1])).to(x.dtype)
    left = (x - knots[i]) / (knots[i + degree] - knots[i])
    right = (knots[i + degree + 1] - x) / (knots[i + degree + 1] - knots[i + 1])
    return left * cox_de_boor(x, knots, i, degree - 1) + right * cox_de_boor(x, knots, i + 1, degree - 1)


def functions(x, w, grid):
    """A layer of functions, edge by edge."""
    n_in = x.shape[-1]
    weights = w["weigh.weight"].view(-1, n_in, grid + 4)
    out = [0] * len(weights)
    for i in range(n_in):
        half = torch.exp(w["log_half_width"][i])
        knots = [w["centre"][i] - half + (k - 3) * 2 * half / grid for k in range(grid + 7)]
        basis = [x[..., i] / (1 + torch.exp(-x[..., i]))] + [
            cox_de_boor(x[..., i], knots, k, 3) for k in range(grid + 3)
        ]
        for j in range(len(out)):
            out[j] = out[j] + sum(weights[j, i, k] * basis[k] for k in range(grid + 4))
    return torch.stack(out, -1)


def plain(w, c, batch):
    x = w["tokens_embedding.weight"][batch] + w["positions_embedding.weight"][: batch.size(1)]
    for layer in range(c.n_layer):
        block = under(w, f"blocks.{layer}.")
        q, k, v = (
            part.unflatten(-1, (c.n_head, -1)).transpose(1, 2)
            for part in linear(layer_norm(x, block, "attention_norm"), block, "attention.qkv").chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
        x = x + linear(y, block, "attention.out")
        hidden = functions(layer_norm(x, block, "feed_forward_norm"), under(block, "feed_forward.up."), c.grid)
        x = x + functions(hidden, under(block, "feed_forward.down."), c.grid)
    return linear(layer_norm(x, w, "norm"), w, "head")


@pytest.mark.parametrize("fields", [{}, {"grid": 1}, {"grid": 3}, {"learned_range": False}], ids=str)
def test_logits_and_gradients(kan, fields):
    model, batch = small(kan, **fields), tokens()
    w = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    w |= dict(model.named_buffers())
    expected, logits = plain(w, model.config, batch), model(batch)
    torch.testing.assert_close(logits, expected, **NEAR)
    direction = torch.randn_like(logits)
    (logits * direction).sum().backward()
    (expected * direction).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, w[name].grad, **NEAR, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("grid", [1, 5, 10])
def test_splines_inside_and_far_outside_the_range(kan, grid):
    place = torch.linspace(0, grid, 101, dtype=torch.float64)
    inside = kan.module.Basis.apply(torch.zeros_like(place), place, grid + 3)[..., 1:]
    torch.testing.assert_close(inside.sum(-1), torch.ones_like(place), **NEAR)  # constants are among the functions
    assert (inside >= 0).all() and ((inside > 0).sum(-1) <= 4).all()
    far = torch.tensor([-1e4, -3.0, grid + 3.0, 1e4], dtype=torch.float64)
    assert not kan.module.Basis.apply(torch.zeros_like(far), far, grid + 3)[..., 1:].any()


def test_learns_a_smooth_function_that_the_base_cannot(kan):
    """Least squares on one edge: cubic splines with 10 intervals meet sin(3x) on [-2, 2] to 1e-3, in float32."""
    config = kan.config("6l", 23, 8, grid=10)
    layer = kan.module.Functions(1, 1, config)
    x = torch.linspace(-2, 2, 201)[:, None]
    basis = (
        kan.module.Basis.apply(x, ((x - layer.centre) / layer.log_half_width.exp() + 1) * 5, 13).flatten(-2).detach()
    )
    layer.weigh.weight.data = torch.linalg.lstsq(basis, (3 * x).sin()).solution.T
    assert (layer(x) - (3 * x).sin()).abs().max() < 1e-2


def test_gradients_of_the_basis(kan):
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None] + 0.05
    assert torch.autograd.gradcheck(
        lambda x, place: kan.module.Basis.apply(x, place, 8),
        (x.requires_grad_(), (x * 2 + 1).detach().requires_grad_()),
    )


def test_keeps_one_basis_a_layer(kan):
    """For the backward pass: what the product needs, and little else."""
    layer = kan.module.Functions(64, 32, kan.config("6l", 23, 8))
    own, sizes = {p.untyped_storage().data_ptr() for p in layer.parameters()}, {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = layer(torch.randn(50, 64, requires_grad=True))
    assert sum(sizes.values()) <= 50 * 64 * 4 * (9 + 4) and y.shape == (50, 32)


def test_parameters(kan):
    gpt2ish = load("gpt2ish")
    d, h = 768, 344
    assert parameters(kan, "6l") == parameters(gpt2ish, "6l") + 6 * (18 * d * h + 2 * (d + h) - 8 * d * d - 5 * d)
    for variant in kan.variants:
        if "fixed" in variant:
            continue
        theirs = "12l" if variant == "12l" else "tiny" if variant.startswith("tiny") else "6l"
        config = kan.config(variant, 256)
        assert parameters(kan, variant) == pytest.approx(parameters(gpt2ish, theirs), rel=0.005)
        mine = 2 * config.n_embd * config.n_hidden * (config.grid + 4) + 2 * (config.n_embd + config.n_hidden)
        assert mine == pytest.approx(8 * config.n_embd**2 + 5 * config.n_embd, rel=0.02)
