import pytest
import torch

from support.plain_gpt2ish import build, load, parameters
from support.unified_plain import (
    assert_folds,
    assert_same_function,
    folded_parameters,
    gelu,
    layers,
    undecayed,
    unified_linear,
)

VARIANTS = ["8x", "16x", "16x_shared_bias"]


@pytest.fixture(scope="module")
def sacrificial():
    return load("sacrificial_embedding_weights")


def effective_linear(w, name, shared_bias):
    weight, bias = unified_linear(w, name)
    if shared_bias:
        hidden = w["shared.weight"] @ w[f"{name}.code"] + w["shared.bias"]
        bias = bias + w[f"{name}.to_bias.weight"] @ gelu(hidden)
    return weight, bias


def effective(w, config):
    return {name: effective_linear(w, name, config.shared_bias) for name in layers(config.n_layer)}


def table(w, config):
    rows = []
    for row in w["tokens_embedding.table.weight"]:
        for name in ("first", "second"):
            weight, bias = effective_linear(w, f"tokens_embedding.{name}", config.shared_bias)
            row = weight @ row + bias
            row = gelu(row) if name == "first" else row
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_gradients_and_fold(sacrificial, variant):
    model = build(sacrificial, variant, spread=0.1, n_layer=1, n_embd=6, multiple=2 if variant == "8x" else 3)
    assert_same_function(model, effective, table)
    assert_folds(model, gpt2ish=True)


@pytest.mark.parametrize(
    "variant, count", [("8x", 396_336_822), ("16x", 709_846_710), ("16x_shared_bias", 781_890_800)]
)
def test_parameters(sacrificial, variant, count):
    assert parameters(sacrificial, variant) == count
    assert folded_parameters(sacrificial, variant) == 120_560_209


@torch.no_grad()
def test_initial_values(sacrificial):
    """Blocks and head start as gpt2ish's, the embeddings where a unified embedding does: ten times wider spread."""
    model = build(sacrificial, "8x", dtype=torch.float32, spread=0.0, n_embd=96, vocab_size=500, max_len=100)
    for name, p in model.fold().named_parameters():
        if p.ndim == 1:
            assert (p == (1 if "norm.weight" in name else 0)).all(), name
        else:
            writes = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
            expected = 0.2 if name == "tokens_embedding.weight" else 0.02 / 6**0.5 if writes else 0.02
            assert p.std().item() == pytest.approx(expected, rel=0.1 if expected == 0.2 else 0.05), name


def test_weight_decay_leaves_vectors_and_table_alone(sacrificial):
    kept = undecayed(build(sacrificial, "8x"))
    assert {
        "tokens_embedding.table.weight",
        "tokens_embedding.first.vectors.column_gain.values",
        "head.vectors.row_gain.values",
    } < kept
    assert "head.code" in undecayed(build(sacrificial, "16x_shared_bias")) and "head.weight" not in kept
