import pytest
import torch

from support.plain_gpt2ish import build, load, parameters
from support.unified_plain import (
    assert_folds,
    assert_same_function,
    folded_parameters,
    layers,
    undecayed,
    unified_linear,
)


@pytest.fixture(scope="module")
def unified_weights():
    return load("unified_weights")


def effective(w, config):
    return {name: unified_linear(w, name) for name in layers(config.n_layer)}


@pytest.mark.parametrize("variant", ["rows", "columns", "offsets"])
def test_forward_gradients_and_fold(unified_weights, variant):
    model = build(unified_weights, variant)
    assert_same_function(model, effective)
    assert_folds(model, gpt2ish=True)


@pytest.mark.parametrize("variant, count", [("rows", 120_652_012), ("columns", 120_694_289), ("offsets", 120_828_332)])
def test_parameters(unified_weights, variant, count):
    assert parameters(unified_weights, variant) == count
    assert folded_parameters(unified_weights, variant) == 120_560_209


@torch.no_grad()
def test_starts_as_gpt2ish(unified_weights):
    """The gains and offsets do nothing yet, and what they work on is drawn as in gpt2ish."""
    model = build(
        unified_weights, "offsets", dtype=torch.float32, spread=0.0, vocab_size=500, max_len=100, n_embd=128, n_layer=8
    )
    for name, p in model.fold().named_parameters():
        if p.ndim == 1:
            assert (p == (1 if "norm.weight" in name else 0)).all(), name
        else:
            writes = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
            assert p.std().item() == pytest.approx(0.005 if writes else 0.02, rel=0.03), name


def test_weight_decay_leaves_the_vectors_alone(unified_weights):
    model = build(unified_weights, "offsets")
    assert undecayed(model) == {
        name
        for name, _ in model.named_parameters()
        if ".vectors." in name or "norm" in name or name.endswith("_embedding.weight")
    }
