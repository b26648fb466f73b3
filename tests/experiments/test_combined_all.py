import math

import pytest
import torch

from support.plain_gpt2ish import build, load, parameters
from support.unified_plain import (
    PURPOSES,
    assert_folds,
    assert_same_function,
    folded_parameters,
    gelu,
    layers,
    undecayed,
    unified_linear,
    with_predictions,
)

SIZES = dict(n_layer=1, n_embd=8, expand=3, multiple=5)


@pytest.fixture(scope="module")
def combined():
    return load("combined_all")


def predictions(w, config):
    if config.unified:  # the shared matrices' own gains and offsets: rows, then columns
        w = dict(w)
        for at in [
            name.removesuffix(".row_gain.values") for name in w if name.startswith("matrices.") and "row_gain" in name
        ]:
            m, a, n, c = (
                w[f"{at}.{kind}.values"] for kind in ("row_gain", "row_offset", "column_gain", "column_offset")
            )
            Q = w[f"{at}.weight"]
            rows = [
                ((Q[o] * (m[o] + m[-1])) + (a[o] + a[-1])) * (n[:-1] + n[-1]) + (c[:-1] + c[-1]) for o in range(len(Q))
            ]
            w[f"{at}.weight"] = torch.stack(rows)
    return with_predictions(w, by_purpose=True)


def effective(w, config):
    w = predictions(w, config)
    return {name: unified_linear(w, name) for name in layers(config.n_layer)}


def table(w, config):
    w, rows = predictions(w, config), []
    for row in w["tokens_embedding.table.weight"]:
        for name in ("first", "second"):
            weight, bias = unified_linear(w, f"tokens_embedding.{name}")
            row = weight @ row + bias
            row = gelu(row) if name == "first" else row
        rows.append(row)
    return torch.stack(rows)


def learned_add(kind, floor, ceil):
    def add(w, x, y):
        both = torch.cat([x, y], -1)
        if kind == "simple":
            z = both @ w["predict.weight"].T + w["predict.bias"]
        else:
            hidden = (both @ w["predict.0.weight"].T + w["predict.0.bias"]).clamp(min=0)
            z = hidden @ w["predict.2.weight"].T + w["predict.2.bias"]
        weights = floor + (ceil - floor) / (1 + (-z).exp())
        half = weights.shape[-1] // 2
        return weights[:, :half] * x + weights[:, half:] * y

    return add


@pytest.mark.parametrize(
    "variant, add, hidden_multiple",
    [
        ("simple", ("simple", 0.4, 1.5), 1),
        ("full", ("full", 0.7, 1.4), 1),
        ("unified", ("full", 0.6, 1.4), 1),
        ("hidden16", ("full", 0.6, 1.4), 2),
        ("full_norms", ("full", 0.6, 1.4), 1),
    ],
)
def test_forward_gradients_and_fold(combined, variant, add, hidden_multiple):
    model = build(combined, variant, spread=0.1, hidden_multiple=hidden_multiple, **SIZES)
    assert_same_function(model, effective, table, add=learned_add(*add))
    assert_folds(model, gpt2ish=False)


def test_what_is_predicted(combined):
    model = build(combined, "unified", **SIZES)
    found = {"blocks": model.blocks[0].feed_forward.down, "first": model.tokens_embedding.first, "head": model.head}
    assert {
        part: {name for name, vector in layer.vectors.items() if vector.matrix} for part, layer in found.items()
    } == {"blocks": {"row_gain", "column_gain", "bias"}, "first": {"row_gain", "bias"}, "head": set()}
    assert len(model.head.vectors) == 5 and set(build(combined, "full", **SIZES).head.vectors) == {"row_gain", "bias"}
    purposes = set(PURPOSES.values()) - {"head"}
    assert {*model.matrices} == {
        *(f"{purpose}_8" for purpose in purposes),
        "up_32",
        "down_32",
        "embedding_first_8",
        "embedding_second_8",
    }


@pytest.mark.parametrize(
    "variant, count, folded",
    [
        ("simple", 1_319_249_710, 120_578_665),
        ("full", 1_347_552_022, 148_880_977),
        ("full_wider", 1_347_552_022, 148_880_977),
        ("unified", 1_348_611_474, 148_880_977),
        ("hidden16", 1_076_772_494, 148_880_977),
        ("norms", 1_319_249_710 + 18_432, 120_578_665 + 18_432),
        ("full_norms", 1_347_552_022 + 18_432, 148_880_977 + 18_432),
    ],
)
def test_parameters(combined, variant, count, folded):
    assert parameters(combined, variant) == count
    assert folded_parameters(combined, variant) == folded


@torch.no_grad()
def test_initial_values(combined):
    """Blocks and head start as gpt2ish's, the embeddings where a unified embedding does, the additions near (1, 1)."""
    model = build(
        combined, "full_norms", dtype=torch.float32, spread=0.0, n_embd=96, vocab_size=500, max_len=100, expand=8
    )
    for name, p in model.fold().named_parameters():
        if "_add." in name:
            continue
        if p.ndim == 1:
            torch.testing.assert_close(p, torch.full_like(p, "norm.weight" in name), rtol=0, atol=1e-6)
        else:
            writes = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
            expected = 0.2 if name == "tokens_embedding.weight" else 0.02 / math.sqrt(6) if writes else 0.02
            assert p.std().item() == pytest.approx(expected, rel=0.1 if expected == 0.2 else 0.05), name
    x, y = torch.randn(2, 50, 96)
    torch.testing.assert_close(model.blocks[0].attention_add(x, y), x + y, rtol=0, atol=1.0)
    assert (model.blocks[0].attention_add(x, y) - x - y).mean().abs() < 0.02


def test_weight_decay_leaves_vectors_and_table_alone(combined):
    model = build(combined, "unified", **SIZES)
    kept = undecayed(model)
    assert {
        name for name, _ in model.named_parameters() if ".vectors." in name or name.endswith((".values", ".bias"))
    } < kept
    assert "tokens_embedding.table.weight" in kept and "matrices.up_8.weight" not in kept


def test_other_additions_are_refused(combined):
    with pytest.raises(ValueError, match="add must be simple or full, not plain"):
        combined.Model(combined.Config(add="plain", n_layer=1, n_embd=24, vocab_size=9, multiple=1, expand=1))
