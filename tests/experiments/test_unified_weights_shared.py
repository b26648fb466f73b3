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
    with_predictions,
)

VARIANTS = ["32x", "16x_plain_head", "no_bias", "by_purpose", "predicted_head", "no_norms", "norms"]


@pytest.fixture(scope="module")
def shared():
    return load("unified_weights_shared")


def effective(w, config):
    w = with_predictions(w, config.by_purpose)
    found = {name: unified_linear(w, name) for name in layers(config.n_layer)}
    if config.head == "plain":
        found["head"] = w["head.weight"], w["head.bias"]
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_gradients_and_fold(shared, variant):
    model = build(shared, variant, spread=0.1, n_layer=2, n_embd=8, expand=3)
    assert_same_function(model, effective)
    assert_folds(model, gpt2ish=variant == "norms")


@pytest.mark.parametrize(
    "variant, vectors", [("32x", {"column_gain", "row_gain", "bias"}), ("no_bias", {"column_gain", "row_gain"})]
)
def test_what_is_predicted(shared, variant, vectors):
    model = build(shared, variant)
    assert {name for name, vector in model.blocks[0].feed_forward.down.vectors.items() if vector.matrix} == vectors
    assert not any(vector.matrix for vector in model.head.vectors.values()) and len(model.head.vectors) == 5
    head = build(shared, "predicted_head").head.vectors
    assert {name: bool(vector.matrix) for name, vector in head.items()} == {
        "column_gain": True,
        "row_gain": False,
        "bias": False,
    }


@pytest.mark.parametrize(
    "variant, count, folded",
    [
        ("32x", 217_752_932, 120_541_777),
        ("16x", 169_239_908, 120_541_777),
        ("16x_plain_head", 169_137_853, 120_541_777),
        ("no_bias", 216_826_688, 120_541_777 - 6 * 6912),
        ("by_purpose", 387_622_244, 120_541_777),
        ("predicted_head", 406_470_161, 120_541_777),
        ("no_norms", 406_468_625, 120_541_777 - 1536),
        ("norms", 217_752_932 + 18_432, 120_560_209),
        ("predicted_head_norms", 406_470_161 + 18_432, 120_560_209),
    ],
)
def test_parameters(shared, variant, count, folded):
    assert parameters(shared, variant) == count
    assert folded_parameters(shared, variant) == folded


@torch.no_grad()
@pytest.mark.parametrize("variant", ["norms", "predicted_head_norms"])
def test_starts_as_gpt2ish(shared, variant):
    """Gains of 1 and biases of 0, whatever is predicted, on weights drawn as in gpt2ish."""
    model = build(shared, variant, dtype=torch.float32, spread=0.0, vocab_size=500, max_len=100, n_embd=96)
    for name, p in model.fold().named_parameters():
        if p.ndim == 1:
            torch.testing.assert_close(p, torch.full_like(p, "norm.weight" in name), rtol=0, atol=1e-6)
        else:
            writes = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
            assert p.std().item() == pytest.approx(0.02 / 6**0.5 if writes else 0.02, rel=0.05), name
    codes = [p for name, p in model.named_parameters() if name.endswith(".code")]
    assert 0.0099 < max(code.max() for code in codes) <= 0.01 and -0.01 <= min(code.min() for code in codes) < -0.0099


def test_weight_decay_leaves_the_vectors_alone(shared):
    model = build(shared, "predicted_head_norms")
    assert undecayed(model) == {
        name
        for name, _ in model.named_parameters()
        if ".vectors." in name or "norm" in name or name.endswith("_embedding.weight")
    }


def test_other_heads_are_refused(shared):
    with pytest.raises(ValueError, match="head must be one of unified, plain, predicted, not tied"):
        shared.Model(shared.Config(head="tied", n_layer=1, n_embd=24))
