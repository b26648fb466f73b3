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

SIZES = dict(n_layer=1, n_embd=8, expand=3, multiple=5, vocab_size=23)


@pytest.fixture(scope="module")
def sacrificial():
    return load("sacrificial_all")


def effective(w, config):
    w = with_predictions(w, config.by_purpose)
    return {name: unified_linear(w, name) for name in layers(config.n_layer)}


def table(w, config):
    w, rows = with_predictions(w, config.by_purpose), []
    for row in w["tokens_embedding.table.weight"]:
        for name in ("first", "second"):
            weight, bias = unified_linear(w, f"tokens_embedding.{name}")
            row = weight @ row + bias
            row = gelu(row) if name == "first" else row
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("variant", ["blocks", "embedding", "unified", "predicted_head", "by_purpose", "norms"])
def test_forward_gradients_and_fold(sacrificial, variant):
    model = build(sacrificial, variant, spread=0.1, **SIZES)
    assert_same_function(model, effective, table)
    assert_folds(model, gpt2ish=variant == "norms")


PLAIN = {"row_gain", "column_gain", "bias"}


@pytest.mark.parametrize(
    "variant, predicted",
    [
        ("blocks", {"blocks": PLAIN}),
        ("embedding", {"blocks": PLAIN, "first": PLAIN}),
        ("unified", {}),
        ("predicted_head", {"blocks": PLAIN, "first": {"row_gain", "bias"}, "head": {"column_gain"}}),
        ("by_purpose", {"blocks": PLAIN, "first": {"row_gain", "bias"}}),
    ],
)
def test_what_is_predicted(sacrificial, variant, predicted):
    """With a limit, not the column gain of the layer that reads 5 n_embd numbers; of the head only what is not as long
    as the vocabulary."""
    model = build(sacrificial, variant, **SIZES)
    found = {"blocks": model.blocks[0].feed_forward.down, "first": model.tokens_embedding.first, "head": model.head}
    assert {
        part: {name for name, vector in layer.vectors.items() if vector.matrix} for part, layer in found.items()
    } == {part: predicted.get(part, set()) for part in found}
    for part, layer in found.items():
        assert set(layer.vectors) == (PLAIN if part in predicted else PLAIN | {"row_offset", "column_offset"})


def test_matrices_are_shared(sacrificial):
    assert {*build(sacrificial, "blocks", **SIZES).matrices} == {"8", "32"}
    assert {*build(sacrificial, "predicted_head", **SIZES).matrices} == {
        *(f"{purpose}_8" for purpose in PURPOSES.values()),
        "up_32",
        "down_32",
        "embedding_first_8",
        "embedding_second_8",
    }


@pytest.mark.parametrize(
    "variant, count, folded",
    [
        ("blocks", 903_797_358, 120_541_777),
        ("med", 1_774_270_574, 248_055_377),
        ("embedding", 1_508_057_450, 120_541_777),
        ("unified", 709_828_278, 120_541_777),
        ("predicted_head", 1_357_011_479, 120_541_777),
        ("by_purpose", 1_319_264_618, 120_541_777),
        ("norms", 903_797_358 + 18_432, 120_560_209),
        ("by_purpose_norms", 1_319_264_618 + 18_432, 120_560_209),
    ],
)
def test_parameters(sacrificial, variant, count, folded):
    assert parameters(sacrificial, variant) == count
    assert folded_parameters(sacrificial, variant) == folded


@torch.no_grad()
@pytest.mark.parametrize("variant", ["norms", "by_purpose_norms"])
def test_initial_values(sacrificial, variant):
    """Blocks and head start as gpt2ish's, the embeddings where a unified embedding does: ten times wider spread."""
    model = build(
        sacrificial, variant, dtype=torch.float32, spread=0.0, n_embd=96, vocab_size=500, max_len=100, expand=8
    )
    for name, p in model.fold().named_parameters():
        if p.ndim == 1:
            torch.testing.assert_close(p, torch.full_like(p, "norm.weight" in name), rtol=0, atol=1e-6)
        else:
            writes = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
            expected = 0.2 if name == "tokens_embedding.weight" else 0.02 / 6**0.5 if writes else 0.02
            assert p.std().item() == pytest.approx(expected, rel=0.1 if expected == 0.2 else 0.05), name


def test_weight_decay_leaves_vectors_and_table_alone(sacrificial):
    model = build(sacrificial, "by_purpose_norms", **SIZES)
    assert undecayed(model) == {
        name
        for name, _ in model.named_parameters()
        if ".vectors." in name
        or "norm" in name
        or name.startswith("positions_embedding")
        or name == "tokens_embedding.table.weight"
    }


def test_other_kinds_are_refused(sacrificial):
    with pytest.raises(ValueError, match="must be unified or predicted, not plain"):
        sacrificial.Model(sacrificial.Config(head="plain", n_layer=1, n_embd=24, vocab_size=9, multiple=1, expand=1))
