import pytest
import torch

from support.plain_gpt2ish import build, load, parameters
from support.unified_plain import assert_folds, assert_same_function, folded_parameters, gelu, layers, undecayed

VARIANTS = ["bias", "gain", "vector", "wide", "wide_plain_head", "wide_own_head"]


@pytest.fixture(scope="module")
def shared_bias():
    return load("unified_weights_shared_bias")


def effective(w, config):
    def product(x, name):
        return w[f"{name}.weight"] @ x

    def network(x, name):
        return product(x, name) + w[f"{name}.bias"]

    found = {}
    for name in layers(config.n_layer):
        weight = w[f"{name}.weight"]
        if name == "head" and config.head == "plain":
            found[name] = weight, w["head.bias"]
            continue
        shared = "shared_by_head" if name == "head" and config.head == "own" else "shared"
        if config.shared == "network":
            hidden = network(w[f"{name}.code"], shared)
        else:
            hidden = network(w[shared], f"{name}.network")
        bias, n_out = product(gelu(hidden), f"{name}.to_bias"), len(weight)
        b, m = w[f"{name}.constant.values"], w.get(f"{name}.row_gain.values")
        if config.row_gain:
            weight, b = torch.stack([weight[o] * (m[o] + m[n_out]) for o in range(n_out)]), b[:n_out] + b[n_out]
        bias = bias + b
        found[name] = weight, bias
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_gradients_and_fold(shared_bias, variant):
    model = build(shared_bias, variant, spread=0.1, n_layer=1)
    assert_same_function(model, effective)
    assert_folds(model, gpt2ish=True)


# The spec of the original gives the first three; the rest follow from the sizes: S, a code for each layer, the head's
# part.
@pytest.mark.parametrize(
    "variant, count",
    [
        ("bias", 191_627_089),
        ("gain", 191_718_892),
        ("vector", 151_291_180),
        ("wide", 191_718_892 + 7 * 768 * 768 + 37 * 7 * 768),
        ("wide_plain_head", 191_718_892 + 7 * 768 * 768 + 36 * 7 * 768 - 768 - 768 * 50257 - 50257 - 2),
        ("wide_own_head", 191_718_892 + 7 * 768 * 768 + 37 * 7 * 768 + 8 * 768 * 768 + 768),
    ],
)
def test_parameters(shared_bias, variant, count):
    assert parameters(shared_bias, variant) == count
    assert folded_parameters(shared_bias, variant) == 120_560_209


@torch.no_grad()
def test_starts_near_gpt2ish(shared_bias):
    for name, p in (
        build(shared_bias, "gain", dtype=torch.float32, spread=0.0, n_embd=96, vocab_size=500).fold().named_parameters()
    ):
        if name.endswith(".bias") and "norm" not in name:
            assert 0 < p.abs().mean() < 0.02, name
        elif p.ndim == 1:
            assert (p == (1 if name.endswith("weight") else 0)).all(), name


def test_weight_decay_leaves_the_vectors_alone(shared_bias):
    for variant in ("wide", "vector"):
        kept = undecayed(build(shared_bias, variant))
        assert {"head.row_gain.values", "head.constant.values"} < kept
        assert ("head.code" if variant == "wide" else "shared") in kept


def test_other_settings_are_refused(shared_bias):
    with pytest.raises(ValueError, match="head must be one of shared, own, plain, not none"):
        shared_bias.Model(shared_bias.Config(head="none"))
