"""Attention maps and the residual stream, against the parts of the models that make them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import lmplay
from lmplay import contract, registry
from lmplay.api import LoadedRun
from lmplay.data.tokenizers import load_tokenizer
from lmplay.errors import UserError
from lmplay.generate.attention import save_attention
from lmplay.runs.trained import TrainedRun

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "tests" / "fixtures" / "runs"


def built(name: str, **fields) -> LoadedRun:
    """Return a new small model of an experiment as load_run would return it."""
    experiment = contract.load(registry.read_entry(ROOT / "experiments" / name))
    tokenizer = load_tokenizer("bytes")
    config = experiment.config(next(iter(experiment.variants)), tokenizer.vocab_size, max_len=16, **fields)
    experiment = experiment.bound(config)
    torch.manual_seed(0)
    model = experiment.build(config).eval()
    return LoadedRun(TrainedRun(model, tokenizer, experiment, 16, None, None), torch.device("cpu"))


def test_maps_and_stream_of_a_run_are_those_of_its_parts(tmp_path):
    shutil.copytree(RUNS / "gpt2ish", tmp_path / "run")
    loaded = lmplay.load_run(tmp_path / "run", "cpu")
    inside, model = loaded.look_inside("one by one"), loaded.model
    inputs, (first, *_) = loaded.inputs("one by one"), model.blocks
    T, H = inputs.size(1), model.config.n_head
    assert inside.tokens[0] == "<BOS>" and "".join(inside.tokens[1:]) == "one by one" and len(inside.tokens) == T
    with torch.no_grad():
        torch.testing.assert_close(inside.logits, model(inputs)[0])
        torch.testing.assert_close(model.head(model.norm(inside.residual[-1])), inside.logits)
        q, k, _ = first.attention.qkv(first.attention_norm(inside.residual[0])).view(T, 3, H, -1).permute(1, 2, 0, 3)
    assert len(inside.attention) == len(model.blocks) == len(inside.residual) - 1
    for head in range(H):
        for i in range(T):
            scores = torch.stack([q[head, i] @ k[head, j] for j in range(i + 1)]) / q.size(-1) ** 0.5
            torch.testing.assert_close(inside.attention[0][head, i, : i + 1], scores.softmax(0))
    assert all((maps.triu(1) == 0).all() for maps in inside.attention)
    with pytest.raises(UserError, match="and the model reads 1 to"):
        loaded.look_inside("one by one " * 99)


def test_heads_that_share_keys_are_told_apart():
    inside = built("llama2", n_layer=1, n_head=4, n_kv_head=2, n_embd=16).look_inside("abc")
    (maps,) = inside.attention
    assert maps.shape == (4, 4, 4) and not torch.allclose(maps[0], maps[1])
    torch.testing.assert_close(maps.sum(-1), torch.ones(4, 4))


@pytest.mark.parametrize(
    ("name", "fields", "tokens", "n_maps"),
    [
        ("reverse_time", {"n_head": 2}, ["<BOS>", "c", "b", "a"], 1),
        ("bert", {"n_head": 2}, ["a", "b", "c"], 1),
        ("residual_weights", {"n_head": 2}, ["<BOS>", "a", "b", "c"], 1),
        ("mingru", {"n_hidden": 8}, ["<BOS>", "a", "b", "c"], 0),
        ("gru", {"n_hidden": 8}, ["<BOS>", "a", "b", "c"], 0),
    ],
)
def test_other_models(name, fields, tokens, n_maps):
    """Read from the end or without a BOS token, with blocks that return a pair, without attention, without blocks."""
    inside = built(name, n_layer=1, n_embd=16, **fields).look_inside("abc")
    assert inside.tokens == tokens and len(inside.attention) == n_maps
    assert inside.residual is None if name == "gru" else inside.residual.shape == (2, len(tokens), 16)


def test_the_hooks_are_gone_afterwards():
    loaded = built("gpt2ish", n_layer=1, n_head=2, n_embd=16)
    loaded.look_inside("abc")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in loaded.model.modules())


def test_maps_are_saved_apart_where_their_shapes_differ_and_refused_where_there_are_none(tmp_path):
    memory = built("neural_memory", n_layer=2, n_head=2, n_embd=16, n_memory_head=2).trained
    arrays = save_attention(memory, [1, 2, 3], tmp_path / "a.npz")
    assert all(np.array_equal(np.load(tmp_path / "a.npz")[name], value) for name, value in arrays.items())
    masked = save_attention(built("bert", n_layer=1, n_head=2, n_embd=16).trained, "abc", tmp_path / "c.npz")
    assert masked["tokens"].tolist() == ["a", "b", "c"] and masked["attention"].shape == (1, 2, 3, 3)
    with pytest.raises(UserError, match="mingru has no attention maps"):
        save_attention(built("mingru", n_layer=1, n_embd=16, n_hidden=8).trained, [1, 2], tmp_path / "b.npz")
    assert not (tmp_path / "b.npz").exists()
