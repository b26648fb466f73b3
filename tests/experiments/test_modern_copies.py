"""The ideas on `modern`: what each adds, by its formula, and that it starts as modern does or folds to it."""

import math

import pytest
import torch
import torch.nn.functional as F

from lmplay import contract, registry
from support.small import EXPERIMENTS

SMALL = dict(n_layer=2, n_head=2, n_embd=32)


def loaded(name):
    return contract.load(registry.read_entry(EXPERIMENTS / name))


def build(name, spread=0.3, variant="d2", **fields):
    """Build a small model in float64, its parameters moved, so that zeros and ones hide nothing."""
    experiment = loaded(name)
    torch.manual_seed(0)
    model = experiment.build(experiment.config(variant, 97, 24, **{**SMALL, **fields})).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * spread)
    return model


def tokens():
    return torch.randint(97, (3, 24), generator=torch.Generator().manual_seed(1))


def norm(x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("name", ["modern_unified_embedding", "modern_unified_weights"])
@torch.no_grad()
def test_what_folds_is_a_modern(name):
    model = build(name, swiglu=True, value_embeddings=True)
    folded = model.fold()
    torch.testing.assert_close(folded(tokens()), model(tokens()), rtol=0, atol=1e-10)
    plain = build("modern", swiglu=True, value_embeddings=True)
    plain.load_state_dict(folded.state_dict())
    torch.testing.assert_close(plain(tokens()), model(tokens()), rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="already"):
        folded.fold()


@torch.no_grad()
def test_unified_embedding_by_its_formula():
    e = build("modern_unified_embedding").tokens_embedding
    rows = e.table.weight[tokens()]
    wanted = F.gelu(rows @ e.first.weight.T) @ e.second.weight.T
    torch.testing.assert_close(e(tokens()[:, :2]), wanted[:, :2])  # fewer than the table has
    torch.testing.assert_close(e(tokens().repeat(2, 1))[:3], wanted)
    assert e.table.weight.shape == (97, 8 * 32)


@torch.no_grad()
def test_gains_multiply_rows():
    layer, x = build("modern_unified_weights").blocks[0].feed_forward.up, torch.randn(5, 32, dtype=torch.float64)
    wanted = x @ (layer.weight * (layer.row_gain + layer.all_gain)[:, None]).T
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("name", ["modern_attention_position", "modern_unified_weights"])
@torch.no_grad()
def test_it_starts_as_modern_does(name):
    """With modern's own weights in it, projections moved away from 0, and nothing of its own moved."""
    torch.manual_seed(0)
    plain, changed = build("modern"), build(name, spread=0.0)
    changed.load_state_dict(changed.state_dict() | plain.state_dict())
    torch.testing.assert_close(changed(tokens()), plain(tokens()), rtol=0, atol=1e-10)


@pytest.mark.parametrize("variant", ["d2", "d2_keys", "d2_both"])
@torch.no_grad()
def test_norms_and_gains_of_values_and_keys(variant):
    attention = build("modern_attention_norm", variant=variant).blocks[0].attention
    module, T, d = loaded("modern_attention_norm").module, 24, 16
    x = torch.randn(1, T, 32, dtype=torch.float64)
    cos, sin = module.rotation_of(0, T, build("modern_attention_norm").config, "cpu")
    q, k, v = (part(x).view(T, 2, d) for part in (attention.query, attention.key, attention.value))
    v = v if variant == "d2_keys" else attention.value_gain * norm(v)
    k = norm(k) * (1.2 if variant == "d2" else attention.key_gain)
    q, k = 1.2 * norm(module.rotate(q, cos, sin)), module.rotate(k, cos, sin)
    heads = []
    for h in range(2):
        seen = [torch.softmax(q[t, h] @ k[: t + 1, h].T / math.sqrt(d), 0) @ v[: t + 1, h] for t in range(T)]
        heads.append(torch.stack(seen))
    wanted = torch.cat(heads, 1) @ attention.out.weight.T
    torch.testing.assert_close(attention(x, None, (cos, sin))[0], wanted, rtol=1e-5, atol=1e-5)


def test_gains_start_at_the_scale_of_what_they_norm():
    """The values of a new modern have a mean square of 1 where the gain starts, so a new model is at its scale."""
    torch.manual_seed(0)
    experiment = loaded("modern_attention_norm")
    model = experiment.build(experiment.config("d2_both", 97, 24))
    attention, x = model.blocks[0].attention, norm(torch.randn(500, 128))
    assert attention.value(x).square().mean().sqrt().item() == pytest.approx(
        attention.value_gain.mean().item(), rel=0.05
    )
    assert attention.key_gain.tolist() == pytest.approx([1.2] * 64)


@torch.no_grad()
def test_scores_of_distances():
    attention = build("modern_attention_position").blocks[0].attention
    for past, new in ((0, 8), (7, 1), (3, 4)):
        q = torch.randn(2, 2, new, 16, dtype=torch.float64)
        scores = attention.distance_scores(q, past)
        for head in range(2):
            for i in range(new):
                wanted = [q[:, head, i] @ attention.distances[head, past + i - j] / 4 for j in range(past + i + 1)]
                torch.testing.assert_close(scores[:, head, i, : past + i + 1], torch.stack(wanted, 1))


@torch.no_grad()
def test_operators_are_made_of_the_text_before():
    """Written out again: one query at a time, each operator from a loop over the tokens before."""
    attention = build("modern_pldr", chunk=4).blocks[0].attention
    q = torch.randn(1, 2, 24, 16, dtype=torch.float64)
    found, o = attention.operated(q), attention.operator
    torch.testing.assert_close(found[:, :, :4], q[:, :, :4])
    for t in (4, 7, 8, 15, 16, 23):
        c = max(n for n in (4, 8, 16) if n <= t)
        for h in range(2):
            A = norm(sum(torch.outer(q[0, h, s], q[0, h, s]) for s in range(c)) / c)
            for unit in o.units:
                y = norm(A)
                A = A + (F.silu(y @ unit.gate.weight.T) * (y @ unit.up.weight.T)) @ unit.down.weight.T
            Z = o.weight[h] @ norm(A) + o.bias[h]
            P = (Z * torch.sigmoid(Z) * Z + 1e-9) ** o.exponent[h]
            G = o.coupling[h] @ P + o.coupling_bias[h]
            torch.testing.assert_close(found[0, h, t], 1.2 * norm(q[0, h, t] @ G), rtol=1e-6, atol=1e-8)


@torch.no_grad()
def test_a_constant_operator_starts_as_plain_attention():
    attention = build("modern_pldr", spread=0.0, variant="d2_constant").blocks[0].attention
    q = 1.2 * norm(torch.randn(1, 2, 24, 16, dtype=torch.float64))
    torch.testing.assert_close(attention.operated(q), q, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rank_promotion_reads_its_windows():
    """Attention over the newest items alone, where no level but the lowest has any that a query weighs."""
    model = build("modern_rank_promotion", scales="3,5")
    attention = model.blocks[0].attention
    windows = [torch.randn(1, 2, size, 8 + 32, dtype=torch.float64) for size in (3, 5)]
    q = torch.randn(1, 2, 8, dtype=torch.float64)
    y, weights = attention.attend(q, windows)
    items, slots = torch.cat(windows, 2)[0, 1], attention.slots
    for h in range(2):
        key, value = slice(4 * h, 4 * h + 4), slice(8 + 16 * h, 24 + 16 * h)
        query = 1.2 * norm(q[0, 1, key])
        scores = (1.2 * norm(items[:, key]) + slots[:, key]) @ query / 2
        torch.testing.assert_close(weights[0, 1, h], scores.softmax(0))
        torch.testing.assert_close(y[0, 1, 16 * h : 16 * h + 16], scores.softmax(0) @ (items + slots)[:, value])
    extra = model(tokens())[1]
    assert set(extra) == {"loss", "promoted"} and 0 < extra["promoted"] <= 1
    assert "rotation_of" not in vars(loaded("modern_rank_promotion").module)


@pytest.mark.parametrize(
    "name, more",
    [
        ("modern_unified_embedding", 7 * 4096 * 128 + 8 * 128 * 128 + 128 * 128),
        ("modern_unified_weights", 2 * (5 * 128 + 512 + 6) + 4096 + 1),
        ("modern_attention_norm", 2 * 64),
        ("modern_attention_position", 2 * 256 * 128),
    ],
)
def test_parameters_more_than_those_of_modern(name, more):
    with torch.device("meta"):
        plain, ours = (
            sum(p.numel() for p in e.build(e.config("d2", 4096)).parameters()) for e in (loaded("modern"), loaded(name))
        )
    assert ours - plain == more
