import math

import pytest
import torch

from support.plain_gpt2ish import assert_same_function, build, load, parameters, plain_score, tokens


@pytest.fixture(scope="module")
def attention_focus():
    return load("attention_focus")


def test_forward_and_gradients_of_full(attention_focus):
    def score(w, head, x, q, k, i, j):
        z = w["focus.weight"][head] @ x[i] + w["focus.bias"][head]
        return q[i] @ k[j] / (2 * math.sqrt(q.shape[-1]) / (1 + torch.exp(-z)))

    assert_same_function(build(attention_focus, "full"), score=score)


def test_forward_and_gradients_of_simple(attention_focus):
    model = build(attention_focus, "simple")
    assert all(abs(block.attention.theta - 1) > 0.01 for block in model.blocks)
    assert_same_function(model, score=lambda w, head, x, q, k, i, j: plain_score(w, head, x, q, k, i, j) / w["theta"])


@pytest.mark.parametrize("variant, count", [("full", 120_615_577), ("simple", 120_560_215)])
def test_parameters(attention_focus, variant, count):
    assert parameters(attention_focus, variant) == count


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-11)])
@pytest.mark.parametrize("spread", [0.0, 0.1])
@torch.no_grad()
def test_simple_folds_to_gpt2ish(attention_focus, dtype, tolerance, spread):
    model = build(attention_focus, "simple", dtype, spread)
    for block, theta in zip(model.blocks, (0.5, 1.7, -1.2)):
        block.attention.theta.fill_(theta)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    folded = model.fold()
    gpt2ish = load("gpt2ish")
    plain = (
        gpt2ish.Model(
            gpt2ish.Config(
                **{
                    name: getattr(model.config, name)
                    for name in ("vocab_size", "max_len", "n_layer", "n_head", "n_embd")
                }
            )
        )
        .to(dtype)
        .eval()
    )
    plain.load_state_dict(folded.state_dict())
    for other in (folded, plain):
        torch.testing.assert_close(other(tokens()), model(tokens()), rtol=0, atol=tolerance)
    assert folded.config.temperature == "none" and not folded.training
    again = attention_focus.Model(folded.config).to(dtype).eval()
    again.load_state_dict(folded.state_dict())
    assert torch.equal(again(tokens()), folded(tokens()))
    assert sum(p.numel() for p in folded.parameters()) == sum(p.numel() for p in model.parameters()) - 3
    assert all(p.requires_grad for p in folded.parameters())
    for p in folded.parameters():  # nothing is shared
        p.zero_()
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_deployed_size(attention_focus):
    with torch.device("meta"):
        folded = attention_focus.build(attention_focus.config("simple", 50257)).fold()
    assert sum(p.numel() for p in folded.parameters()) == 120_560_209


def test_full_does_not_fold(attention_focus):
    with pytest.raises(ValueError, match="depends on the data"):
        build(attention_focus, "full").fold()


@torch.no_grad()
def test_temperature_starts_near_one(attention_focus):
    model = build(attention_focus, "tiny", spread=0.0, n_embd=256, n_head=4)
    x = torch.randn(500, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for block in model.blocks:
        z = block.attention.focus(x)
        assert z.std().item() == pytest.approx(3**-0.5, rel=0.1)  # of 256 products with U(-1/16, 1/16)
        assert (2 * z.sigmoid()).mean().item() == pytest.approx(1, abs=0.05)
        assert block.attention.focus.weight.abs().max() <= 1 / 16


def test_fused_attention_stays(attention_focus, monkeypatch):
    """Whatever the temperature, one call of torch's attention a block, without a mask of its own."""
    attend, calls = torch.nn.functional.scaled_dot_product_attention, []
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *inputs, **options: calls.append(options) or attend(*inputs, **options),
    )
    for variant in ("full", "simple"):
        calls.clear()
        build(attention_focus, variant)(tokens())
        assert calls == [{"attn_mask": None, "dropout_p": 0.0, "is_causal": True}] * 3


def test_another_temperature_is_refused(attention_focus):
    with pytest.raises(ValueError, match="temperature must be one of full, simple, none, not hot"):
        attention_focus.Model(attention_focus.Config(temperature="hot", n_layer=1, n_embd=24))
