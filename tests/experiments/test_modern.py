"""The modern baseline: what its parts compute, written out again, and a leak that zero projections hide at first."""

import dataclasses
import math
import shutil

import pytest
import torch
import torch.nn.functional as F

from lmplay import contract, registry
from lmplay.errors import UserError
from lmplay.model.checks import check_new
from lmplay.model.findings import LEAK
from support.small import EXPERIMENTS

SMALL = dict(n_layer=2, n_head=2, n_embd=32)
MASK = "is_causal=mask is None"
ALL = dict(value_embeddings=True, residual_scalars=True, rotated=0.5, smear=True, swiglu=True, window=0.25)


@pytest.fixture(scope="module")
def modern():
    return contract.load(registry.read_entry(EXPERIMENTS / "modern"))


def build(modern, **fields):
    torch.manual_seed(0)
    model = modern.build(modern.config("d2", 97, 24, **{**SMALL, **fields})).double().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():  # zeros and ones would hide one part behind another
            p.add_(torch.randn_like(p) * (3 if name == "head.weight" else 0.3))
    return model


def tokens():
    return torch.randint(97, (3, 24), generator=torch.Generator().manual_seed(1))


def test_sizes_by_the_rule(modern):
    for n in (2, 3, 4, 6, 8, 12):
        config = modern.config(f"d{n}", 4096)
        assert (config.n_layer, config.n_embd, config.n_embd // config.n_head) == (n, 64 * n, 64)
        with torch.device("meta"):
            model = modern.build(config)
        assert sum(p.numel() for p in model.parameters()) == 2 * 4096 * 64 * n + n * 12 * (64 * n) ** 2


@torch.no_grad()
def test_by_its_formulas(modern):
    """The core again in float64, one head and one query at a time, positions as powers of complex numbers."""
    model = build(modern)
    w, T, d = model.state_dict(), 24, 16

    def norm(x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def turned(x):
        angles = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(d // 2, dtype=torch.float32) / (d // 2))
        z = torch.complex(x[:, : d // 2], x[:, d // 2 :]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((z.real, z.imag), 1)

    for row in tokens():
        x = norm(w["tokens_embedding.weight"][row])
        for i in range(2):
            y, b = norm(x), f"blocks.{i}."
            heads = []
            for h in range(2):
                q, k, v = (y @ w[f"{b}attention.{n}.weight"][h * d : h * d + d].T for n in ("query", "key", "value"))
                q, k = 1.2 * norm(turned(q)), 1.2 * norm(turned(k))
                seen = [torch.softmax(q[t] @ k[: t + 1].T / math.sqrt(d), 0) @ v[: t + 1] for t in range(T)]
                heads.append(torch.stack(seen))
            x = x + torch.cat(heads, 1) @ w[f"{b}attention.out.weight"].T
            up = norm(x) @ w[f"{b}feed_forward.up.weight"].T
            x = x + (up * (up > 0)) ** 2 @ w[f"{b}feed_forward.down.weight"].T
        expected = 15 * torch.tanh(norm(x) @ w["head.weight"].T / 15)
        torch.testing.assert_close(model(row[None])[0], expected, rtol=1e-5, atol=1e-5)
        assert expected.abs().max() > 10, "the cap has to show"


@pytest.mark.parametrize("part", ALL)
@torch.no_grad()
def test_each_part_matters(modern, part):
    plain, changed = build(modern), build(modern, **{part: ALL[part]})
    shared = {k: v for k, v in plain.state_dict().items() if k in changed.state_dict()}
    changed.load_state_dict(changed.state_dict() | {k: v for k, v in shared.items() if "feed_forward" not in k})
    assert not torch.allclose(plain(tokens()), changed(tokens()), atol=1e-3)


@torch.no_grad()
def test_parts_by_their_formulas(modern):
    model = build(modern, **ALL)
    x = torch.randn(3, 24, 32, dtype=torch.float64)
    smear = model.smear
    expected = x.clone()
    for t in range(1, 24):
        expected[:, t] += smear.share * torch.sigmoid(x[:, t, :24] @ smear.gate.weight[0])[:, None] * x[:, t - 1]
    torch.testing.assert_close(smear(x), expected)
    short, long = (block.attention for block in model.blocks)
    assert (short.window, long.window) == (6, 0)
    assert short.table is None and long.table is not None, "every other layer, the last included"
    seen = short.mask(0, 24, "cpu")
    assert all(seen[t].nonzero()[:, 0].tolist() == list(range(max(0, t - 5), t + 1)) for t in range(24))
    gated = model.blocks[0].feed_forward
    torch.testing.assert_close(
        gated(x), (F.silu(x @ gated.gate.weight.T) * (x @ gated.up.weight.T)) @ gated.down.weight.T
    )
    cos, sin = contract.load(registry.read_entry(EXPERIMENTS / "modern")).module.rotation_of(0, 24, model.config, "cpu")
    turning = (cos != 1).any(0)[0]
    assert turning.tolist() == [True] * 4 + [False] * 4 and (sin[:, :, 4:] == 0).all()


def test_a_leak_behind_zero_projections_is_refused(modern, tmp_path):
    """Without its causal mask the new model's logits do not move, since attention adds nothing yet."""
    folder = tmp_path / "unmasked"
    shutil.copytree(EXPERIMENTS / "modern", folder, ignore=shutil.ignore_patterns("__pycache__"))
    source = (folder / "model.py").read_text(encoding="utf-8")
    assert source.count(MASK) == 1
    (folder / "model.py").write_text(source.replace(MASK, "is_causal=False"), encoding="utf-8")
    unmasked = contract.load(registry.read_entry(folder))
    config = unmasked.config("d2", 97, 24, **SMALL)
    torch.manual_seed(0)
    model = unmasked.build(config).eval()
    rows = tokens()[:1].repeat(2, 1)
    rows[1, -1] = (rows[1, -1] + 1) % 97
    with torch.no_grad():
        assert torch.equal(*model(rows)[:, :-1]), "the zeros hide it"
    found = check_new(unmasked.bound(config), config, 96, torch.device("cpu"))
    assert any("looks ahead" in sentence for sentence in found.sentences(LEAK))
    sound = modern.config("d2", 97, 24, **SMALL)
    assert check_new(modern.bound(sound), sound, 96, torch.device("cpu")).findings == []


def test_sizes_that_do_not_fit(modern):
    with pytest.raises(UserError, match="not an even multiple of n_head"):
        build(modern, n_head=5)


def test_groups_name_what_is_no_matrix_inside(modern):
    from lmplay.train.optimizers import optimizers_of
    from lmplay.train.settings import Settings

    model = modern.build(modern.config("d2", 97, 24, **SMALL, **ALL))
    settings = dataclasses.replace(Settings(), optimizer="muon", lr=0.045, embedding_lr=6.0, head_lr=0.5)
    muon, adamw = optimizers_of(model, settings)
    names = {id(p): name for name, p in model.named_parameters()}
    matrices = {names[id(p)] for g in muon.param_groups for p in g["params"]}
    assert matrices == {n for n, p in model.named_parameters() if n.startswith("blocks") and ".gate." not in n} - {
        "blocks.1.attention.table.weight"
    } | {f"blocks.{i}.feed_forward.gate.weight" for i in range(2)}
    rates = {names[id(p)]: g["initial_lr"] for g in adamw.param_groups for p in g["params"]}
    assert rates["blocks.1.attention.table.weight"] == rates["tokens_embedding.weight"] == pytest.approx(0.27)
    assert rates["head.weight"] == 0.0225 and rates["scalars"] == pytest.approx(0.009)
