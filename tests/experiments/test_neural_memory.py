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
    attention,
    away_from_initial,
    feed_forward,
    gelu,
    linear,
    norm,
)

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "neural_memory"
SMALL = dict(vocab_size=31, max_len=12, n_layer=2, n_head=2, n_embd=12, n_cell=5, memory_multiple=3, n_memory_head=3)
FORMS = {
    "shared": {},
    "own layers": dict(own_layers=True),
    "own memories": dict(own_layers=True, own_memories=True),
    "own memories, one layer": dict(own_memories=True),
    "memory first": dict(pattern="MB"),
    "two": dict(pattern="BMM"),
    "no residual": dict(memory_residual=False),
    "plain": dict(memory_multiple=0),
    "plain, wide, two, own": dict(
        pattern="BMM", own_layers=True, own_memories=True, memory_multiple=0, cell_multiple=2
    ),
    "wide network": dict(cell_multiple=2),
}
each_form = pytest.mark.parametrize("fields", FORMS.values(), ids=FORMS)


@pytest.fixture(scope="module")
def experiment():
    return contract.load(registry.read_entry(FOLDER))


def build(experiment, **fields):
    return away_from_initial(experiment, **{**SMALL, **fields})


def some_tokens(batch=2, length=7):
    return memory_plain.some_tokens(SMALL["vocab_size"], batch, length)


def memory(w, config, x, number):
    """What the memory block `number` looks up for one sequence (T, D), a token and a head at a time."""
    table = f"memories.{number if config.own_memories else 0}."
    layer = f"memory_layers.{number if config.own_layers else 0}."
    cells = w[table + "cells.weight"]
    if config.memory_multiple:
        cells = linear(w, table + "network.2", gelu(linear(w, table + "network.0", cells)))
    keys, values = linear(w, table + "key", cells), linear(w, table + "value", cells)
    q = linear(w, layer + "query", x)
    rows = []
    for t in range(len(x)):
        heads = []
        for part in torch.arange(config.n_embd).split(config.n_embd // config.n_memory_head):
            heads.append((keys[:, part] @ q[t, part] / math.sqrt(len(part))).softmax(0) @ values[:, part])
        rows.append(torch.cat(heads))
    return linear(w, layer + "out", torch.stack(rows))


def stated(w, config, tokens):
    """The model by its description."""
    logits = []
    for sequence in tokens:
        x = w["tokens_embedding.weight"][sequence] + w["positions_embedding.weight"][: len(sequence)]
        n_memory_block = 0
        for i, kind in enumerate(config.pattern * config.n_layer):
            name = f"blocks.{i}"
            if kind == "B":
                x = x + attention(w, f"{name}.attention", norm(w, f"{name}.attention_norm", x), config.n_head)
                x = x + feed_forward(w, f"{name}.feed_forward", norm(w, f"{name}.feed_forward_norm", x))
                continue
            answer = memory(w, config, norm(w, f"{name}.memory_norm", x), n_memory_block)
            r = x + answer if config.memory_residual else answer
            x = (r if config.memory_residual else x) + feed_forward(
                w, f"{name}.feed_forward", norm(w, f"{name}.feed_forward_norm", r)
            )
            n_memory_block += 1
        logits.append(linear(w, "head", norm(w, "norm", x)))
    return torch.stack(logits)


@each_form
def test_forward_and_gradients(experiment, fields):
    assert_same_function(build(experiment, **fields), stated, some_tokens(), lambda name: name.endswith(".key.bias"))


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
    "variant, parameters, deployed",
    [
        ("6l", 173_887_057, 150_291_025),
        ("own_layers", 179_792_977, 156_196_945),
        ("own_memories", 298_756_177, 157_179_985),
        ("memory_first", 173_887_057, 150_291_025),
        ("two_memory_blocks", 202_240_081, 178_644_049),
        ("3l_own_memories", 188_394_577, 117_606_481),
        ("no_residual", 173_887_057, 150_291_025),
        ("12_heads", 173_887_057, 150_291_025),
        ("64_cells", 172_314_193, 150_192_721),
        ("multiple_64", 195_907_153, 150_291_025),
        ("plain_cells", 151_373_905, 150_291_025),
        ("plain_wide_cells", 160_319_569, 150_291_025),
        ("two_own_plain_wide", 314_142_289, 193_799_761),
    ],
)
def test_parameters(experiment, variant, parameters, deployed):
    with torch.device("meta"):
        model = experiment.build(experiment.config(variant, 50257))
        folded = experiment.build(experiment.config(variant, 50257, folded=True))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in folded.parameters()) == deployed
    # once more from the baseline: query and out of each layer, keys and values of each memory, feed-forward and norms
    # of each block
    c, D = model.config, 768
    blocks = c.n_layer * c.pattern.count("M")
    assert deployed == (
        120_560_209
        - (6 - c.n_layer) * 7_087_872
        + (blocks if c.own_layers else 1) * 2 * D * (D + 1)
        + (blocks if c.own_memories else 1) * 2 * c.n_cell * D
        + blocks * (8 * D * D + 9 * D)
    )


@torch.no_grad()
def test_initial_values(experiment):
    torch.manual_seed(0)
    model = experiment.build(experiment.config("tiny", 500, 64))
    table = model.memories[0]
    assert table.cells.weight.std().item() == pytest.approx(1, rel=0.01)
    for layer, width in ((table.network[0], 32 * 256), (table.key, 256), (model.memory_layers[0].out, 256)):
        assert layer.weight.std().item() == pytest.approx(width**-0.5 / 3**0.5, rel=0.02) and layer.bias.any()
    assert model.blocks[0].attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    for projection in (model.blocks[0].attention.out, model.blocks[1].feed_forward.down):
        assert projection.weight.std().item() == pytest.approx(0.02 / 4, rel=0.02) and not projection.bias.any()


@torch.no_grad()
def test_first_loss_at_full_width(experiment):
    for variant in ("6l", "no_residual", "two_own_plain_wide"):
        torch.manual_seed(0)
        model = experiment.build(
            experiment.config(variant, 1000, 16, n_layer=2, n_embd=384, n_cell=64, memory_multiple=4)
        )
        window = torch.randint(1000, (8, 17))
        loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        assert loss.item() == pytest.approx(math.log(1000), rel=0.1)


@torch.no_grad()
def test_every_token_asks_the_same_memory(experiment):
    """The lookup of a token depends on the token alone."""
    model = build(experiment)
    keys, values = (tensor[0] for tensor in model.derive().values())
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    whole = model.memory_layers[0](x, keys, values)
    alone = torch.stack(
        [torch.stack([model.memory_layers[0](t[None, None], keys, values)[0, 0] for t in row]) for row in x]
    )
    torch.testing.assert_close(whole, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(n_head=5), "n_embd 12 .* n_head 5"),
        (dict(n_memory_head=5), "n_embd 12 .* n_memory_head 5"),
        (dict(pattern="BX"), "pattern 'BX'"),
        (dict(pattern="B"), "pattern 'B'"),
        (dict(pattern=""), "pattern ''"),
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
