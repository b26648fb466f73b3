"""gru against the recurrent model of "Arrows of Time" and its equations."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lmplay.model.cost import cost_of
from support.plain_gpt2ish import layer_norm, linear, load, parameters

GOLDEN = np.load(Path(__file__).resolve().parents[1] / "golden/arrows/gru_tiny.npz")
NAMES = {"token_embedder": "tokens_embedding", "gru": "gru", "ln_f": "norm", "lm_head": "head"}
NEAR = {"rtol": 0, "atol": 1e-10}


def ours(name: str) -> str:
    module, kind = name.split(".")
    return f"{NAMES[module]}.{kind}"


@pytest.fixture(scope="module")
def gru():
    return load("gru")


@pytest.fixture
def published(gru):
    model = gru.build(gru.config("arrows_1x256", 37, 16, n_layer=2, n_embd=20)).double().eval()
    model.load_state_dict(
        {
            ours(key.removeprefix("param/")): torch.from_numpy(GOLDEN[key]).double()
            for key in GOLDEN
            if key.startswith("param/")
        }
    )
    assert sum(p.numel() for p in model.parameters()) == 6560
    return model


def test_logits_losses_and_gradients_are_the_published_codes(published):
    inputs, targets = (torch.from_numpy(GOLDEN[f"in/{name}_ids"]).long() for name in ("input", "target"))
    logits = published(inputs)
    np.testing.assert_allclose(logits.detach().numpy(), GOLDEN["out/f64/logits"], **NEAR)
    np.testing.assert_allclose(published(inputs[:, :7]).detach().numpy(), GOLDEN["out/f64/logits_short"], **NEAR)
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    np.testing.assert_allclose(losses.detach().numpy(), GOLDEN["out/f64/per_token_loss"], **NEAR)
    losses.mean().backward()
    for name, p in published.named_parameters():
        [key] = [key for key in GOLDEN if key.startswith("grad/f64/") and ours(key.removeprefix("grad/f64/")) == name]
        np.testing.assert_allclose(p.grad.numpy(), GOLDEN[key], **NEAR, err_msg=key)


@torch.no_grad()
def test_greedy_tokens_are_the_published_codes(published):
    """Past the window, too: the state is all that is kept, so nothing has to be cut."""
    expected = torch.from_numpy(GOLDEN["out/f64/greedy"]).long()
    published.config.max_len = expected.size(1)
    cache, new, text = published.new_cache(3), expected[:, :3], [expected[:, :3]]
    for _ in range(expected.size(1) - 3):
        new = published(new, cache=cache)[:, -1:].argmax(-1)
        text.append(new)
    assert torch.equal(torch.cat(text, dim=1), expected)
    assert cache.hidden.shape == (2, 3, 20) and cache.length == expected.size(1) - 1


def test_the_equations_with_a_wider_state(gru):
    torch.manual_seed(0)
    model = gru.build(gru.config("3l", 23, 8, n_layer=2, n_hidden=7, n_embd=5)).double()
    w = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    tokens = torch.randint(23, (2, 8))
    x = list(w["tokens_embedding.weight"][tokens].unbind(1))
    for layer in range(2):
        h = torch.zeros(2, 7, dtype=torch.float64)
        for t in range(8):
            ri, zi, ni = (x[t] @ w[f"gru.weight_ih_l{layer}"].T + w[f"gru.bias_ih_l{layer}"]).chunk(3, -1)
            rh, zh, nh = (h @ w[f"gru.weight_hh_l{layer}"].T + w[f"gru.bias_hh_l{layer}"]).chunk(3, -1)
            r, z = torch.sigmoid(ri + rh), torch.sigmoid(zi + zh)
            h = x[t] = (1 - z) * torch.tanh(ni + r * nh) + z * h
    expected = linear(layer_norm(linear(torch.stack(x, 1), w, "out"), w, "norm"), w, "head")
    logits = model(tokens)
    torch.testing.assert_close(logits, expected, **NEAR)
    direction = torch.randn_like(logits)
    (logits * direction).sum().backward()
    (expected * direction).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, w[name].grad, **NEAR, msg=lambda m: f"{name}: {m}")


def test_gradients_through_a_cache(gru):
    torch.manual_seed(0)
    model = gru.build(gru.config("3l", 23, 8, n_layer=2, n_hidden=7, n_embd=5)).double()
    tokens = torch.randint(23, (2, 8))
    whole = torch.autograd.grad(model(tokens)[:, -1].square().sum(), list(model.parameters()))
    cache = model.new_cache(2)
    last = [model(part, cache=cache) for part in tokens.split((3, 1, 4), dim=1)][-1]
    for found, expected in zip(torch.autograd.grad(last[:, -1].square().sum(), list(model.parameters())), whole):
        torch.testing.assert_close(found, expected, **NEAR)


@pytest.mark.parametrize(
    "variant, count",
    [("3l", 120_591_313), ("12l", 119_769_169), ("arrows_3x512", 2 * 50257 * 512 + 1024 + 3 * (6 * 512**2 + 6 * 512))],
)
def test_parameters(gru, variant, count):
    assert parameters(gru, variant) == count


def test_parameters_are_near_gpt2ish_whatever_the_vocabulary(gru):
    gpt2ish = load("gpt2ish")

    def count(experiment, variant, vocabulary):
        with torch.device("meta"):
            return sum(p.numel() for p in experiment.build(experiment.config(variant, vocabulary)).parameters())

    for variant, theirs in (("3l", "6l"), ("12l", "6l"), ("tiny", "tiny"), ("tiny_8l", "tiny")):
        for vocabulary in (256, 4096, 50257):
            assert count(gru, variant, vocabulary) == pytest.approx(count(gpt2ish, theirs, vocabulary), rel=0.025)


def test_first_values(gru):
    torch.manual_seed(0)
    model = gru.build(gru.config("tiny", 300, 16))
    assert model.tokens_embedding.weight.std().item() == pytest.approx(1, rel=0.02)
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.02) and not model.head.bias.any()


def test_cost_without_the_steps(gru):
    """Six FLOPs a weight and token, as of the matrices side by side; found at once for a long context."""
    config = gru.config("3l", 500, 4096, n_embd=32, n_hidden=64)
    matrices = [
        p.numel() for name, p in gru.build(config).named_parameters() if p.ndim == 2 and "embedding" not in name
    ]
    assert cost_of(gru, config).flops_per_token == 6 * sum(matrices)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_the_copy_that_reads_backwards_is_the_same_model_on_windows_turned_round(kind):
    """Its losses are those of the original on the text from its end, token by token."""
    forward, backward = load(kind), load(f"reverse_{kind}")
    assert backward.reversed and not forward.reversed
    models = [of.build(of.config("arrows_1x256", 23, 8, n_embd=6)).double().eval() for of in (forward, backward)]
    models[1].load_state_dict(models[0].state_dict())
    window = torch.randint(0, 22, (3, 8), generator=torch.Generator().manual_seed(0))
    losses = []
    for of, model, tokens in zip((forward, backward), models, (window.flip(1), window), strict=True):
        inputs, targets, _ = of.make_batch(tokens, 22, 0)
        losses.append(F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="none"))
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
