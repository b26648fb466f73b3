"""lmp_cleanmodel --format gguf: llama.cpp computes and writes what lmplay does."""

import sys

import numpy as np
import pytest
import torch

from lmplay import contract, registry
from lmplay.convert.fold import unchanged
from lmplay.convert.gguf_file import write_gguf
from lmplay.data.tokenizer_training import train_tokenizer
from lmplay.data.tokenizers import load_tokenizer
from lmplay.errors import UserError
from lmplay.generate.sampling import Sampling, generate
from lmplay.runs.run import Run
from lmplay.runs.trained import TrainedRun
from support.small import make_text

CONTEXT = 80
SMALL = {
    "gpt2ish": dict(n_layer=2, n_head=2, n_embd=32, tied=True, head_bias=False, tanh_gelu=True),
    "llama2": dict(n_layer=2, n_head=4, n_kv_head=2, n_embd=64, hidden_multiple=8, rope_base=300.0),
}


def made(name, tokenizer, folder, **fields) -> TrainedRun:
    experiment = contract.load(registry.find(name)[0])
    config = experiment.config(next(iter(experiment.variants)), tokenizer.vocab_size, CONTEXT, **SMALL[name] | fields)
    torch.manual_seed(1)
    model = experiment.build(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return TrainedRun(
        model=model,
        tokenizer=tokenizer,
        experiment=experiment.bound(config),
        context_len=CONTEXT,
        run=Run(folder, {}),
        checkpoint=folder,
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    text = make_text(80, 1)
    return train_tokenizer({"train": "bpe", "vocab_size": 400}, [text], tmp_path_factory.mktemp("bpe") / "bpe")


@pytest.mark.extra
@pytest.mark.parametrize("name, fields", [("gpt2ish", {}), ("gpt2ish", dict(tied=False)), ("llama2", {})])
def test_as_llama_cpp_reads_it(tokenizer, tmp_path, name, fields):
    """Logits within 1e-3, and the same 50 greedy tokens; a text begins with the BOS token."""
    pytest.importorskip("gguf")
    llama_cpp = pytest.importorskip("llama_cpp")
    run = made(name, tokenizer, tmp_path, **fields)
    write_gguf(tmp_path / "model.gguf", unchanged(run), run)
    theirs = llama_cpp.Llama(
        str(tmp_path / "model.gguf"),
        n_ctx=CONTEXT,
        n_threads=1,
        logits_all=True,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        flash_attn=False,
        verbose=False,
    )
    text = make_text(1, 1)[:40]
    ids = theirs.tokenize(text.encode(), add_bos=True, special=False)
    assert ids == [tokenizer.eot, *tokenizer.encode(text)]
    theirs.eval(ids)
    with torch.no_grad():
        ours = run.model(torch.tensor([ids]))[0].numpy()
    assert np.abs(ours).max() > 0.5
    np.testing.assert_allclose(theirs.scores[: len(ids)], ours, rtol=0, atol=1e-3)
    theirs.reset()
    written = []
    for token in theirs.generate(ids[:5], temp=0.0, repeat_penalty=1.0):
        written.append(token)
        if len(written) == 50:
            break
    greedy = Sampling(do_sample=False)
    assert written == list(generate(run.model, ids[:5], CONTEXT, 50, greedy, torch.Generator()))


@pytest.mark.extra
def test_read_back(tokenizer, tmp_path):
    """Sizes, tokens and tensors as the package gguf reads them: also where llama.cpp is not installed."""
    gguf = pytest.importorskip("gguf")
    run = made("gpt2ish", tokenizer, tmp_path)
    write_gguf(tmp_path / "model.gguf", unchanged(run), run)
    read = gguf.GGUFReader(tmp_path / "model.gguf")
    assert read.get_field("gpt2.context_length").contents() == CONTEXT
    assert read.get_field("tokenizer.ggml.bos_token_id").contents() == tokenizer.eot
    tensors = {tensor.name: tensor.data for tensor in read.tensors}
    assert len(tensors) == 4 + 12 * 2 and all(tensor.dtype == np.float32 for tensor in tensors.values())
    ours = run.model.state_dict()
    for theirs, name in (("blk.1.attn_qkv.weight", "blocks.1.attention.qkv.weight"), ("output_norm.bias", "norm.bias")):
        np.testing.assert_array_equal(tensors[theirs], ours[name].numpy())


@pytest.mark.parametrize(
    "name, fields, message",
    [
        ("gpt2ish", dict(head_bias=True), "its head has a bias"),
        ("gpt2ish", dict(tanh_gelu=False), "train with --set tanh_gelu=true"),
        ("llama2", dict(silu_sum=True), "silu_sum"),
    ],
)
@pytest.mark.extra
def test_what_llama_cpp_lacks(tmp_path, name, fields, message):
    pytest.importorskip("gguf")
    run = made(name, load_tokenizer("bytes"), tmp_path, **fields)
    with pytest.raises(UserError, match=message):
        write_gguf(tmp_path / "model.gguf", unchanged(run), run)
    assert list(tmp_path.iterdir()) == []


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    run = made("gpt2ish", load_tokenizer("bytes"), tmp_path)
    with pytest.raises(UserError, match=r"pip install 'lmplay\[gguf\]'"):
        write_gguf(tmp_path / "model.gguf", unchanged(run), run)


@pytest.mark.extra
def test_a_tokenizer_of_bytes_is_left_out(tmp_path):
    pytest.importorskip("gguf")
    run = made("llama2", load_tokenizer("bytes"), tmp_path)
    assert "token ids only" in write_gguf(tmp_path / "model.gguf", unchanged(run), run)
