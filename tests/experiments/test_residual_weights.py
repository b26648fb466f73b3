import pytest
import torch

from support.plain_gpt2ish import SMALL, assert_same_function, build, linear, load, parameters, tokens, under

VARIANTS = ["linear", "free", "scalar_linear", "scalar_free", "mlp"]


@pytest.fixture(scope="module")
def residual_weights():
    return load("residual_weights")


def weights_of(w, x, y):
    """alpha and beta (T, D) or (T, 1), of the parameters of one addition."""
    if "z" in w:
        z = w["z"].expand(len(x), -1)
    elif "predict.2.weight" in w:
        z = linear(linear(torch.cat((x, y), -1), w, "predict.0").clamp(min=0), w, "predict.2")
    else:
        z = linear(torch.cat((x, y), -1), w, "predict.0")
    both = 0.4 + 1.1 / (1 + torch.exp(-z))
    half = both.shape[1] // 2
    return both[:, :half], both[:, half:]


def weighted(w, name, x, y):
    alpha, beta = weights_of(under(w, f"{name}."), x, y)
    return alpha * x + beta * y


def eps_of_scalars(w, n):
    """The stream itself is in units of 1; what LayerNorm adds to its variance is in those of the alphas before."""
    z = [w[f"blocks.{i // 2}.{('attention_add', 'feed_forward_add')[i % 2]}.z"][0] for i in range(n)]
    alphas = [0.4 + 1.1 / (1 + torch.exp(-each)) for each in z]
    return 1e-5 * torch.stack(alphas).prod() ** 2 if alphas else 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_and_gradients(residual_weights, variant):
    model = build(residual_weights, variant)
    eps = {"eps": eps_of_scalars} if variant == "scalar_free" else {}
    assert_same_function(model, add=weighted, **eps)


@pytest.mark.parametrize(
    "variant, count",
    [
        ("linear", 148_890_193),
        ("free", 120_578_641),
        ("scalar_linear", 120_597_097),
        ("scalar_free", 120_560_233),
        ("mlp", 148_899_409),
    ],
)
def test_parameters(residual_weights, variant, count):
    assert parameters(residual_weights, variant) == count


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_all_weights_start_at_the_middle(residual_weights, variant):
    model = build(residual_weights, variant, spread=0.0)
    seen = []
    for block in model.blocks:
        for add in (block.attention_add, block.feed_forward_add):
            x, y = torch.randn(2, 1, 5, SMALL["n_embd"], dtype=torch.float64)
            stream, unit = add(x, y, 1.0)
            torch.testing.assert_close(unit * stream, 0.95 * x + 0.95 * y, rtol=0, atol=1e-12)
            seen.append(add)
    assert len(seen) == 6
    if variant == "mlp":
        assert all(add.predict[0].weight.std() > 0.05 for add in seen)


@torch.no_grad()
def with_weights_all_over(model):
    """Moves alphas and betas all over their range."""
    z = torch.linspace(-3, 3, 12, dtype=torch.float64)[torch.randperm(12, generator=torch.Generator().manual_seed(3))]
    adds = [add for block in model.blocks for add in (block.attention_add, block.feed_forward_add)]
    for add, pair in zip(adds, z.split(2), strict=True):
        add.z.copy_(pair)
    return model


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-11)])
@pytest.mark.parametrize("spread", [0.0, 0.1])
@torch.no_grad()
def test_scalars_fold_to_gpt2ish(residual_weights, dtype, tolerance, spread):
    """With spread 0 the variances are small, and eps is a large part of what LayerNorm divides by."""
    model = with_weights_all_over(build(residual_weights, "scalar_free", dtype, spread))
    before = {name: p.clone() for name, p in model.state_dict().items()}
    folded = model.fold()
    gpt2ish = load("gpt2ish")
    plain = gpt2ish.Model(gpt2ish.Config(**SMALL)).to(dtype).eval()
    plain.load_state_dict(folded.state_dict())
    for other in (folded, plain):
        torch.testing.assert_close(other(tokens()), model(tokens()), rtol=0, atol=tolerance)
    assert folded.config.weights == "none" and not folded.training and all(p.requires_grad for p in folded.parameters())
    again = residual_weights.Model(folded.config).to(dtype).eval()
    again.load_state_dict(folded.state_dict())
    assert torch.equal(again(tokens()), folded(tokens()))
    for p in folded.parameters():  # nothing is shared
        p.zero_()
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_deployed_size(residual_weights):
    with torch.device("meta"):
        folded = residual_weights.build(residual_weights.config("scalar_free", 50257)).fold()
    assert sum(p.numel() for p in folded.parameters()) == 120_560_209


@pytest.mark.parametrize("variant", ["linear", "free", "scalar_linear", "mlp"])
def test_the_others_do_not_fold(residual_weights, variant):
    with pytest.raises(ValueError, match="only weights=free with per_feature=false"):
        build(residual_weights, variant).fold()


def test_the_stream_stays_float32_under_autocast(residual_weights):
    """Weights rounded to bfloat16 would take three digits off the stream at every addition."""
    for variant in VARIANTS:
        model = build(residual_weights, variant, torch.float32)
        streams = []
        for block in model.blocks:
            block.register_forward_hook(lambda _, inputs, output: streams.append(output[0].dtype))
        with torch.autocast("cpu", torch.bfloat16):
            model(tokens())
        assert streams == [torch.float32] * 3


def test_other_weights_are_refused(residual_weights):
    with pytest.raises(ValueError, match="weights must be one of linear, mlp, free, none, not gated"):
        residual_weights.Model(residual_weights.Config(weights="gated", n_layer=1, n_embd=24))
