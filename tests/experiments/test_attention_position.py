import math

import pytest
import torch

from support.plain_gpt2ish import SMALL, assert_same_function, build, load, parameters, plain_score, tokens


@pytest.fixture(scope="module")
def attention_position():
    return load("attention_position")


@pytest.mark.parametrize("variant", ["add", "multiply", "last_blocks"])
def test_forward_and_gradients(attention_position, variant):
    def score(w, head, x, q, k, i, j):
        if "distances_embedding.weight" not in w:
            return plain_score(w, head, x, q, k, i, j)
        d = q.shape[-1]
        r = q[i] @ w["distances_embedding.weight"][i - j][head * d : (head + 1) * d]
        return (q[i] @ k[j] * r if variant == "multiply" else q[i] @ k[j] + r) / math.sqrt(d)

    model = build(attention_position, variant)
    assert [block.attention.distances_embedding is not None for block in model.blocks] == [
        variant != "last_blocks",
        True,
        True,
    ]
    assert_same_function(model, score=score)


@pytest.mark.parametrize(
    "variant, count", [("add", 125_278_801), ("multiply", 125_278_801), ("last_blocks", 122_133_073)]
)
def test_parameters(attention_position, variant, count):
    assert parameters(attention_position, variant) == count


@pytest.mark.parametrize("past, new", [(0, 8), (0, 1), (7, 1), (3, 4), (1, 7)])
@torch.no_grad()
def test_scores_of_distances(attention_position, past, new):
    attention = build(attention_position, "add").blocks[0].attention
    q = torch.randn(2, 2, new, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = attention.distance_scores(q, past)
    assert scores.shape == (2, 2, new, past + new) and scores.isfinite().all()
    assert scores.untyped_storage().nbytes() == 8 * 2 * 2 * new * (past + new + 1)  # the product itself, not a copy
    table = attention.distances_embedding.weight.view(-1, 2, 6)
    for head in range(2):
        for i in range(new):
            for j in range(past + i + 1):
                expected = q[:, head, i] @ table[past + i - j, head] / math.sqrt(6)
                torch.testing.assert_close(scores[:, head, i, j], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", ["add", "multiply", "last_blocks"])
@torch.no_grad()
def test_the_term_is_there_when_generating(attention_position, variant):
    """Unlike in the original, which dropped it where one token came at a time."""
    model = build(attention_position, variant)
    cache = model.new_cache(2)
    one_by_one = torch.cat([model(part, cache=cache) for part in tokens().split(1, dim=1)], dim=1)
    torch.testing.assert_close(one_by_one, model(tokens()), rtol=0, atol=1e-12)
    for block in model.blocks[1:]:
        block.attention.distances_embedding.weight.mul_(0.5)
    assert (one_by_one - model(tokens())).abs()[:, -1].max() > 0.01


def test_nothing_is_kept_but_parameters(attention_position):
    model = build(attention_position, "add")
    assert not list(model.buffers())
    assert model.blocks[0].attention.distances_embedding.weight.shape == (SMALL["max_len"], SMALL["n_embd"])


def test_distances_start_at_unit_variance(attention_position):
    model = build(attention_position, "tiny", spread=0.0, n_embd=128, max_len=64, n_head=4)
    for block in model.blocks:
        assert block.attention.distances_embedding.weight.std().item() == pytest.approx(1, rel=0.05)
    assert model.positions_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
