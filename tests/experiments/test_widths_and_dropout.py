"""Settings that many folders share: the width of the feed-forward layer, dropout in attention and on embeddings."""

import dataclasses
import math

import pytest
import torch

from lmplay import contract
from lmplay.errors import UserError
from support.small_models import READABLE, logits_of, named, random_window, small_config

NEVER_WIDE = {
    "gru",
    "lstm",
    "reverse_gru",
    "reverse_lstm",
    "kan",
    "ssm",
    "pldr",
}  # folders with another layer, or with widths of their own


def having(field):
    """The folders whose Config has the field, each with its first variant."""
    entries = [entry for entry in READABLE if field in contract.config_values(contract.load(entry).Config())]
    return pytest.mark.parametrize(
        "entry, variant",
        [param for param in named(lambda entry: list(entry.variants)[:1]) if param.values[0] in entries],
    )


def built(entry, variant, **fields):
    config = dataclasses.replace(small_config(entry, variant), **fields)
    torch.manual_seed(0)
    return contract.load(entry).build(config)


def shapes(model):
    return {name: tuple(p.shape) for name, p in model.named_parameters() if ".feed_forward." in name}


def test_every_folder_with_a_feed_forward_layer_has_its_width():
    without = {
        entry.name for entry in READABLE if "mlp_ratio" not in contract.config_values(contract.load(entry).Config())
    }
    assert without == NEVER_WIDE
    for entry in READABLE:
        assert "4 * config.n_embd" not in (entry.folder / "model.py").read_text(encoding="utf-8")


@having("mlp_ratio")
@pytest.mark.parametrize("ratio", [2.75, 1.53])
def test_width_is_what_the_ratio_says(entry, variant, ratio):
    """What goes in and out between the two matrices is as wide as the ratio says, rounded down."""
    n_embd = small_config(entry, variant).n_embd
    model, width = built(entry, variant, mlp_ratio=ratio), int(ratio * n_embd)
    feed_forward, found = model.blocks[0].feed_forward, []
    feed_forward.down.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0].shape[-1]))
    if entry.name == "llama2":  # two thirds, rounded up to a multiple
        width = 8 * math.ceil(ratio * n_embd * 2 / 3 / 8)
    assert torch.isfinite(logits_of(model.eval(), random_window())).all()
    down = feed_forward.down
    assert {*found, getattr(down, "in_features", width)} == {width}
    assert shapes(built(entry, variant, mlp_ratio=4.0)) == shapes(built(entry, variant))


def test_parameters_of_another_width_by_formula():
    """GPT-2 medium's shape with the width of "Arrows of Time for Large Language Models"."""
    entry = next(entry for entry in READABLE if entry.name == "gpt2ish")
    experiment = contract.load(entry)
    with torch.device("meta"):
        model = experiment.build(experiment.config("med", 50257, 256, mlp_ratio=2.6667, head_bias=False))
    V, n, L, d = 50257, 256, 24, 1024
    h = int(2.6667 * d)
    assert (
        sum(p.numel() for p in model.parameters())
        == 2 * V * d + n * d + L * (4 * d * d + 2 * d * h + 9 * d + h) + 2 * d
    )


@having("mlp_ratio")
@pytest.mark.parametrize("ratio", [0.0, -1.0, math.nan])
def test_a_layer_without_width_is_refused(entry, variant, ratio):
    with pytest.raises(UserError, match="can't be built"):
        built(entry, variant, mlp_ratio=ratio)


@having("attention_dropout")
def test_dropout_of_attention_acts_in_training_only(entry, variant):
    """Its masks come from torch's generator: the same seed draws the same ones."""
    plain, model, tokens = built(entry, variant), built(entry, variant, attention_dropout=0.5), random_window()
    with torch.no_grad():
        for one in (plain, model):  # some start with attention that says nothing
            torch.manual_seed(2)
            for p in one.parameters():
                p.add_(torch.randn_like(p) * 0.1)
    expected = logits_of(plain.eval(), tokens)
    assert torch.equal(logits_of(model.eval(), tokens), expected)
    drawn = []
    model.train()
    for seed in (1, 1, 3):
        torch.manual_seed(seed)
        drawn.append(logits_of(model, tokens))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2]) and not torch.allclose(drawn[0], expected)


@having("attention_dropout")
def test_dropout_of_attention_is_a_probability(entry, variant):
    with pytest.raises(UserError, match="between 0 and 1"):
        built(entry, variant, attention_dropout=-0.5)


@having("embedding_dropout")
def test_dropout_of_embeddings_is_dropout_if_not_set(entry, variant):
    default = built(entry, variant, dropout=0.2)
    assert default.dropout.p == 0.2
    apart = built(entry, variant, dropout=0.2, embedding_dropout=0.5)
    rates = {name: m.p for name, m in apart.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert rates.pop("dropout") == 0.5
    assert rates == {
        name: m.p for name, m in default.named_modules() if isinstance(m, torch.nn.Dropout) and name != "dropout"
    }
    assert built(entry, variant, dropout=0.2, embedding_dropout=0.0).dropout.p == 0.0


@pytest.mark.parametrize("embedding_dropout", [0.0, 0.5])
def test_embeddings_alone_are_dropped_in_training(embedding_dropout):
    entry = next(entry for entry in READABLE if entry.name == "gpt2ish")
    tokens = random_window()
    model = built(entry, "6l", embedding_dropout=embedding_dropout)
    expected = logits_of(model.eval(), tokens)
    assert torch.equal(logits_of(model.train(), tokens), expected) is (embedding_dropout == 0.0)


@torch.no_grad()
def test_attention_over_a_cache_drops_too():
    """Values of 1 in all positions: what attention returns is the sum of the weights that are left, scaled by 2."""
    entry = next(entry for entry in READABLE if entry.name == "gpt2ish")
    model = built(entry, "6l", attention_dropout=0.5).train()
    attention = model.blocks[0].attention
    width = attention.out.in_features
    attention.qkv.weight.zero_()
    attention.qkv.bias[2 * width :] = 1.0
    attention.out.weight.copy_(torch.eye(width))
    attention.out.bias.zero_()
    cache = model.new_cache(2)[0]
    torch.manual_seed(0)
    whole = torch.cat([attention(torch.randn(2, length, width), cache) for length in (5, 1, 6)], dim=1)
    kept = whole * torch.arange(1, 13)[:, None] / 2  # query i has i equal weights
    assert torch.allclose(kept, kept.round(), atol=1e-4)
    assert 0.35 < kept.sum() / (torch.arange(1, 13).sum() * 2 * width) < 0.65
