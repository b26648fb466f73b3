import pytest
import torch

from support.plain_gpt2ish import build, load, parameters
from support.unified_plain import assert_folds, assert_same_function, folded_parameters, gelu, layers, undecayed

VARIANTS = [
    "bias",
    "bias_narrow",
    "bias_double",
    "row_gain",
    "free",
    "column_gain",
    "bias_and_column_gain",
    "all",
    "all_norms",
]


@pytest.fixture(scope="module")
def private():
    return load("unified_weights_private")


def effective(w, config):
    def free(name):
        return w[f"{name}.values"][:-1] + w[f"{name}.values"][-1]

    def hidden(name):
        A, b = w[f"{name}.hidden.weight"], w.get(f"{name}.hidden.bias")
        if config.unified_hidden:
            m, a, n, c = (
                free(f"{name}.hidden.{kind}") for kind in ("row_gain", "row_offset", "column_gain", "column_offset")
            )
            A, b = torch.stack([(A[o] * m[o] + a[o]) * n + c for o in range(len(A))]), free(f"{name}.hidden.constant")
        return gelu(A @ w[f"{name}.code"] + b)

    found = {}
    for name in layers(config.n_layer):
        vectors = {}
        for kind in ("bias", "row_gain", "column_gain"):
            if getattr(config, kind) != "none":
                vectors[kind] = free(f"{name}.vectors.{kind}")
            if getattr(config, kind) == "predicted":
                vectors[kind] = vectors[kind] + w[f"{name}.predictors.{kind}.weight"] @ hidden(name)
        weight = w[f"{name}.weight"]
        n_out, n_in = weight.shape
        zeros, ones = torch.zeros(n_in + n_out, dtype=torch.float64), torch.ones(n_in + n_out, dtype=torch.float64)
        n, m = vectors.get("column_gain", ones), vectors.get("row_gain", ones)
        c = w[f"{name}.column_offset"] if config.offsets else zeros
        a = w[f"{name}.row_offset"] if config.offsets else zeros
        rows = [(weight[o] * n[:n_in] + c[:n_in]) * m[o] + a[o] for o in range(n_out)]
        found[name] = torch.stack(rows), vectors["bias"]
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_gradients_and_fold(private, variant):
    sizes = dict(n_layer=1, n_embd=6, expand=2) if "column_gain" in variant else dict(n_layer=2)
    model = build(private, variant, spread=0.1, **sizes)
    assert_same_function(model, effective)
    assert_folds(model, gpt2ish=variant != "all")


@pytest.mark.parametrize(
    "variant, count, folded",
    [  # the original's counts; those of its other versions are not known
        ("bias", 450_988_780, 120_560_209),
        ("row_gain", 450_988_780, 120_560_209),
        ("column_gain", 674_292_682, 120_560_209),
        ("bias_and_column_gain", 744_740_554, 120_560_209),
        ("all", 489_069_666, 120_541_777),
        ("all_norms", 489_069_666 + 18_432, 120_560_209),
        ("free", 120_652_012, 120_560_209),
    ],
)  # unified_weights:rows
def test_parameters(private, variant, count, folded):
    assert parameters(private, variant) == count
    assert folded_parameters(private, variant) == folded


def test_widths(private):
    """The hidden width is a part of the lesser of inputs and outputs, the code a multiple of the inputs."""
    with torch.device("meta"):
        widths = {
            variant: private.Model(private.config(variant, 50257)).blocks[0].feed_forward.down.hidden
            for variant in ("bias_narrow", "bias", "bias_double", "bias_16x")
        }
    assert {variant: (layer.in_features, layer.out_features) for variant, layer in widths.items()} == {
        "bias_narrow": (8 * 3072, 192),
        "bias": (8 * 3072, 768),
        "bias_double": (8 * 3072, 1536),
        "bias_16x": (16 * 3072, 768),
    }


@torch.no_grad()
def test_starts_near_gpt2ish(private):
    model = build(private, "all_norms", dtype=torch.float32, spread=0.0, n_embd=96, vocab_size=500)
    for name, (weight, bias) in (
        (n, layer.effective()) for n, layer in model.named_modules() if hasattr(layer, "effective")
    ):
        plain = model.get_parameter(f"{name}.weight")
        torch.testing.assert_close(weight, plain, rtol=0.1, atol=0, msg=lambda m: f"{name}: {m}")
        assert bias.abs().max() < 0.05, name
        assert plain.std().item() == pytest.approx(
            0.02 / 6**0.5 if name.endswith((".out", ".down")) else 0.02, rel=0.05
        ), name


def test_weight_decay_leaves_the_vectors_alone(private):
    kept = undecayed(build(private, "all"))
    assert {"head.code", "head.row_offset", "head.vectors.row_gain.values", "head.hidden.bias"} < kept
    assert {"head.hidden.row_gain.values", "head.vectors.row_gain.values"} < undecayed(build(private, "column_gain"))


def test_other_settings_are_refused(private):
    with pytest.raises(ValueError, match="bias must be one of predicted, free, not none"):
        private.Model(private.Config(bias="none"))
