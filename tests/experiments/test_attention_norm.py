import pytest
import torch

from support.plain_gpt2ish import assert_same_function, build, layer_norm, load, parameters


@pytest.fixture(scope="module")
def attention_norm():
    return load("attention_norm")


def test_the_plain_statement_is_gpt2ish():
    assert_same_function(build(load("gpt2ish"), "tiny", n_layer=3))


@pytest.mark.parametrize("variant, normed", [("values", "v"), ("keys", "k"), ("both", "kv"), ("queries", "q")])
def test_forward_and_gradients(attention_norm, variant, normed):
    def heads(w, q, k, v):
        return (
            layer_norm(q, w, "queries_norm") if "q" in normed else q,
            layer_norm(k, w, "keys_norm") if "k" in normed else k,
            layer_norm(v, w, "values_norm") if "v" in normed else v,
        )

    assert_same_function(build(attention_norm, variant), heads=heads)


@pytest.mark.parametrize(
    "variant, blocks", [("values", [0, 1, 2]), ("values_not_first", [1, 2]), ("values_first", [0])]
)
def test_normed_blocks(attention_norm, variant, blocks):
    model = build(attention_norm, variant)
    assert [i for i, block in enumerate(model.blocks) if list(block.attention.values_norm.parameters())] == blocks

    def heads(w, q, k, v):
        return q, k, layer_norm(v, w, "values_norm") if "values_norm.weight" in w else v

    assert_same_function(model, heads=heads)


@pytest.mark.parametrize(
    "variant, count",
    [
        ("values", 120_560_977),
        ("values_not_first", 120_560_849),
        ("values_first", 120_560_337),
        ("keys", 120_560_209 + 768),
        ("both", 120_560_209 + 1536),
        ("queries", 120_560_209 + 768),
    ],
)
def test_parameters(attention_norm, variant, count):
    assert parameters(attention_norm, variant) == count


@torch.no_grad()
def test_the_cache_holds_normed_keys_and_values(attention_norm):
    model = build(attention_norm, "both", spread=0.0)
    cache = model.new_cache(2)
    model(torch.ones(2, 5, dtype=torch.int64), cache=cache)
    for kept in (cache[1].keys[:, :, :5], cache[1].values[:, :, :5]):
        torch.testing.assert_close(kept.mean(-1), torch.zeros(2, 2, 5, dtype=torch.float64), rtol=0, atol=1e-6)
        torch.testing.assert_close(
            kept.var(-1, correction=0), torch.ones(2, 2, 5, dtype=torch.float64), rtol=0, atol=0.05
        )


def test_other_blocks_are_refused(attention_norm):
    with pytest.raises(ValueError, match="norm_blocks must be one of all, not_first, first, not last"):
        attention_norm.Model(attention_norm.Config(norm_blocks="last", n_layer=1, n_embd=24))
