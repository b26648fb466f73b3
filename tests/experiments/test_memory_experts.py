import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lmplay import contract, registry
from support import memory_plain
from support.memory_plain import (
    assert_derives_once,
    assert_folds,
    assert_same_function,
    away_from_initial,
    gelu,
    linear,
    norm,
)

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "memory_experts"
SMALL = dict(vocab_size=31, max_len=12, n_layer=2, n_head=2, n_embd=12, n_cell=5, n_expert_head=3)
FORMS = {
    "all": {},
    "feed-forward": dict(layers="ud"),
    "q, k, v": dict(layers="qkv"),
    "q, k": dict(layers="qk"),
    "out": dict(layers="o"),
    "many cells": dict(n_cell=20, n_expert_head=2),
}
each_form = pytest.mark.parametrize("fields", FORMS.values(), ids=FORMS)


@pytest.fixture(scope="module")
def experiment():
    return contract.load(registry.read_entry(FOLDER))


def build(experiment, **fields):
    return away_from_initial(experiment, **{**SMALL, **fields})


def some_tokens(batch=2, length=7):
    return memory_plain.some_tokens(SMALL["vocab_size"], batch, length)


def mixed_linear(w, config, name, x):
    """Of one sequence (T, a), a token and a head at a time; each token's mixture is projected."""
    y = linear(w, name, x)
    if not any(n.startswith(f"{name}.experts") for n in w):
        return y
    name = f"{name}.experts"
    scores = linear(w, f"{name}.select.2", gelu(linear(w, f"{name}.select.0", x)))
    rows = []
    for t in range(len(x)):
        heads = []
        for h, part in enumerate(torch.arange(y.size(1)).split(y.size(1) // config.n_expert_head)):
            weights = scores[t, h * config.n_cell : (h + 1) * config.n_cell].softmax(0)
            heads.append(sum(weights[c] * w[f"{name}.cells.weight"][c, part] for c in range(config.n_cell)))
        rows.append(torch.cat(heads))
    return y + linear(w, f"{name}.project", torch.stack(rows))


def stated(w, config, tokens):
    """The model by its description."""
    logits = []
    for sequence in tokens:
        T, D = len(sequence), config.n_embd
        x = w["tokens_embedding.weight"][sequence] + w["positions_embedding.weight"][:T]
        for i in range(config.n_layer):
            name = f"blocks.{i}.attention"
            q, k, v = (mixed_linear(w, config, f"{name}.qkv.{n}", norm(w, f"{name}_norm", x)) for n in range(3))
            rows = []
            for t in range(T):
                heads = []
                for part in torch.arange(D).split(D // config.n_head):
                    weights = (k[: t + 1, part] @ q[t, part] / math.sqrt(len(part))).softmax(0)
                    heads.append(weights @ v[: t + 1, part])
                rows.append(torch.cat(heads))
            x = x + mixed_linear(w, config, f"{name}.out", torch.stack(rows))
            name = f"blocks.{i}.feed_forward"
            hidden = gelu(mixed_linear(w, config, f"{name}.up", norm(w, f"{name}_norm", x)))
            x = x + mixed_linear(w, config, f"{name}.down", hidden)
        logits.append(linear(w, "head", norm(w, "norm", x)))
    return torch.stack(logits)


@each_form
def test_forward_and_gradients(experiment, fields):
    assert_same_function(
        build(experiment, **fields), stated, some_tokens(), lambda name: "qkv.1." in name and name.endswith("bias")
    )


@each_form
def test_derived_once_an_update(experiment, fields):
    assert_derives_once(build(experiment, **fields), [some_tokens(2, 7), some_tokens(3, 5)])


@each_form
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-11)], ids=["float32", "float64"]
)
def test_fold(experiment, fields, dtype, tolerance):
    assert_folds(experiment, build(experiment, **fields).to(dtype), some_tokens(), tolerance)


@pytest.mark.parametrize(
    "fields, present",
    [
        ({}, "qkvoud"),
        (dict(layers="ud"), "ud"),
        (dict(layers="qkv"), "qkv"),
        (dict(layers="qk"), "qk"),
        (dict(layers=""), ""),
    ],
)
def test_layers_that_have_a_mixture(experiment, fields, present):
    assert {linear.name for linear in build(experiment, **fields).mixed()} == {
        f"{i}.{name}" for i in range(2) for name in ("q", "k", "v", "out", "up", "down") if name[0] in present
    }


@pytest.mark.parametrize(
    "variant, parameters, deployed",
    [
        ("6l", 233_349_973, 159_820_117),
        ("64_cells", 240_291_025, 171_240_145),  # nnm3_0, nnm3_1: 64 cells, described as 20
        ("20_cells", 234_611_593, 161_911_177),
        ("feed_forward", 211_531_261, 151_806_973),
        ("qkv", 136_924_243, 126_570_067),
        ("qk", 131_469_565, 124_566_781),
    ],
)  # nnm3_3: with v, described without
def test_parameters(experiment, variant, parameters, deployed):
    with torch.device("meta"):
        model = experiment.build(experiment.config(variant, 50257))
        folded = experiment.build(experiment.config(variant, 50257, folded=True))
    total, kept = (sum(p.numel() for p in m.parameters()) for m in (model, folded))
    assert total == parameters
    c = model.config
    widths = dict(q=(768, 768), k=(768, 768), v=(768, 768), o=(768, 768), u=(768, 3072), d=(3072, 768))

    def select(a):
        m, answers = (a + c.n_cell) // 2, c.n_cell * c.n_expert_head
        return a * m + m + m * answers + answers

    assert total == 120_560_209 + 6 * sum(select(a) + c.n_cell * b + b * b + b for a, b in map(widths.get, c.layers))
    assert kept == 120_560_209 + 6 * sum(
        select(a) + c.n_cell * c.n_expert_head * b for a, b in map(widths.get, c.layers)
    )
    assert kept == deployed


@torch.no_grad()
def test_initial_values(experiment):
    torch.manual_seed(0)
    model = experiment.build(experiment.config("tiny", 500, 64))
    down = model.blocks[0].feed_forward.down
    assert torch.cat([e.experts.cells.weight.flatten() for e in model.mixed()]).std().item() == pytest.approx(
        1, rel=0.02
    )
    for layer, width in ((down.experts.select[0], 1024), (down.experts.project, 256)):
        assert layer.weight.std().item() == pytest.approx(width**-0.5 / 3**0.5, rel=0.02) and layer.bias.any()
    assert model.blocks[0].feed_forward.up.weight.std().item() == pytest.approx(0.02, rel=0.02)
    for layer in (model.blocks[0].attention.out, down):
        assert layer.weight.std().item() == pytest.approx(0.02 / 8**0.5, rel=0.02) and not layer.bias.any()


@pytest.mark.parametrize("variant", ["tiny", "tiny_feed_forward", "tiny_qkv"])
@torch.no_grad()
def test_first_loss_at_tiny_width(experiment, variant):
    torch.manual_seed(0)
    model = experiment.build(experiment.config(variant, 1000, 16))
    window = torch.randint(1000, (8, 17))
    loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(1000), rel=0.1)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(n_head=5), "n_embd 12 .* n_head 5"),
        (dict(n_expert_head=5), "width 12 .* n_expert_head 5"),
        (dict(layers="x"), "layers 'x'"),
    ],
)
def test_sizes_that_do_not_fit(experiment, fields, message):
    with pytest.raises(ValueError, match=message):
        experiment.Model(experiment.config("6l", **{**SMALL, **fields}))


def test_compiles_without_graph_breaks(experiment):
    model = build(experiment, n_layer=1)
    torch.testing.assert_close(
        torch.compile(model, backend="eager", fullgraph=True)(some_tokens()), model(some_tokens())
    )
