import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lmplay import contract, registry
from support import memory_plain
from support.memory_plain import (
    assert_same_function,
    attention,
    away_from_initial,
    feed_forward,
    gelu,
    linear,
    norm,
)

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "memory_blocks"
SMALL = dict(vocab_size=31, max_len=12, n_layer=2, n_head=2, n_embd=12, n_cell=5, n_expert_head=3)
FORMS = {
    "BNN": {},
    "no norm": dict(expert_norm=False),
    "no softmax": dict(softmax=False),
    "NB": dict(pattern="NB"),
    "in turns": dict(pattern="BNN-B", n_layer=3),
    "more cells": dict(n_cell=20, n_expert_head=2, pattern="BN"),
}
each_form = pytest.mark.parametrize("fields", FORMS.values(), ids=FORMS)


@pytest.fixture(scope="module")
def experiment():
    return contract.load(registry.read_entry(FOLDER))


def build(experiment, **fields):
    return away_from_initial(experiment, **{**SMALL, **fields})


def some_tokens(batch=2, length=7):
    return memory_plain.some_tokens(SMALL["vocab_size"], batch, length)


def mixture(w, config, name, x):
    """Of one sequence (T, D), a token and a head at a time."""
    scores = linear(w, f"{name}.select.2", gelu(linear(w, f"{name}.select.0", x)))
    rows = []
    for t in range(len(x)):
        heads = []
        for h, part in enumerate(torch.arange(config.n_embd).split(config.n_embd // config.n_expert_head)):
            weights = scores[t, h * config.n_cell : (h + 1) * config.n_cell]
            weights = weights.exp() / weights.exp().sum() if config.softmax else weights
            heads.append(sum(weights[c] * w[f"{name}.cells.weight"][c, part] for c in range(config.n_cell)))
        rows.append(torch.cat(heads))
    return linear(w, f"{name}.project", torch.stack(rows))


def stated(w, config, tokens):
    """The model by its description."""
    logits, patterns = [], config.pattern.split("-")
    kinds = "".join(patterns[i % len(patterns)] for i in range(config.n_layer))
    for sequence in tokens:
        x = w["tokens_embedding.weight"][sequence] + w["positions_embedding.weight"][: len(sequence)]
        for i, kind in enumerate(kinds):
            name = f"blocks.{i}"
            if kind == "B":
                x = x + attention(w, f"{name}.attention", norm(w, f"{name}.attention_norm", x), config.n_head)
            else:
                x = x + mixture(
                    w, config, f"{name}.experts", norm(w, f"{name}.experts_norm", x) if config.expert_norm else x
                )
            x = x + feed_forward(w, f"{name}.feed_forward", norm(w, f"{name}.feed_forward_norm", x))
        logits.append(linear(w, "head", norm(w, "norm", x)))
    return torch.stack(logits)


@each_form
def test_forward_and_gradients(experiment, fields):
    assert_same_function(build(experiment, **fields), stated, some_tokens())


@pytest.mark.parametrize(
    "variant, parameters, blocks",
    [
        ("6l", 200_893_009, "BNN" * 6),
        ("no_norm", 200_874_577, "BNN" * 6),
        ("512_cells", 218_607_697, "BNN" * 6),
        ("no_softmax", 200_893_009, "BNN" * 6),
        ("more_and_more", 200_893_009, "BNBNBNNBNNBNNNBNNN"),
        ("more_in_the_middle", 200_893_009, "BNBNNBNNNBNNNBNNBN"),
    ],
)
def test_parameters(experiment, variant, parameters, blocks):
    with torch.device("meta"):
        model = experiment.build(experiment.config(variant, 50257))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert "".join("B" if hasattr(block, "attention") else "N" for block in model.blocks) == blocks


@torch.no_grad()
def test_initial_values(experiment):
    torch.manual_seed(0)
    model = experiment.build(experiment.config("tiny", 500, 64))
    block = model.blocks[1]
    assert block.experts.cells.weight.std().item() == pytest.approx(1, rel=0.01)
    for layer, width in ((block.experts.select[2], 256), (block.experts.project, 256)):
        assert layer.weight.std().item() == pytest.approx(width**-0.5 / 3**0.5, rel=0.02) and layer.bias.any()
    assert block.feed_forward.up.weight.std().item() == pytest.approx(0.02, rel=0.02)
    for projection in (model.blocks[0].attention.out, block.feed_forward.down):
        assert projection.weight.std().item() == pytest.approx(0.02 / 24**0.5, rel=0.02) and not projection.bias.any()


@pytest.mark.parametrize("fields", [{}, dict(softmax=False), dict(expert_norm=False)], ids=str)
@torch.no_grad()
def test_first_loss_at_tiny_width(experiment, fields):
    torch.manual_seed(0)
    model = experiment.build(experiment.config("tiny", 1000, 16, **fields))
    window = torch.randint(1000, (8, 17))
    loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(1000), rel=0.1)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(n_head=5), "n_embd 12 .* n_head 5"),
        (dict(n_expert_head=5), "n_embd 12 .* n_expert_head 5"),
        (dict(pattern="BM"), "pattern 'BM'"),
        (dict(pattern="NN"), "pattern 'NN'"),
        (dict(pattern="B--N"), "pattern 'B--N'"),
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
