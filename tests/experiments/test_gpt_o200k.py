import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lmplay import contract, registry
from lmplay.data.tokenizers import load_tokenizer
from lmplay.model.loss import score
from support.small import EXPERIMENTS, make_text

O200K = 200_019


@pytest.fixture(scope="module")
def gpt():
    return contract.load(registry.read_entry(EXPERIMENTS / "gpt_o200k"))


def per_block(d):
    return 3 * d * d + d * d + d + 8 * d * d + 5 * d + 4 * d


@pytest.mark.parametrize(
    "variant, d, length, layers, parameters",
    [
        ("cs478_low", 8, 4, 3, 3_202_896),
        ("cs478_chimera", 384, 256, 6, 164_353_536),
        ("6l", 768, 1024, 6, None),
        ("tiny", 256, 256, 4, None),
    ],
)
def test_parameters(gpt, variant, d, length, layers, parameters):
    config = gpt.config(variant, O200K)
    with torch.device("meta"):
        found = sum(p.numel() for p in gpt.build(config).parameters())
    assert found == layers * per_block(d) + 2 * O200K * d + length * d + 2 * d == (parameters or found)
    assert gpt.Config().vocab_size == O200K


def plain_logits(weights, tokens, n_layer, n_head):
    """Logits (T, V) of one window, query by query and head by head."""

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights[f"{name}.weight"]
            + weights[f"{name}.bias"]
        )

    x = weights["tokens_embedding.weight"][tokens] + weights["positions_embedding.weight"][: len(tokens)]
    width = x.shape[1]
    for layer in range(n_layer):
        at = f"blocks.{layer}."
        h = norm(x, at + "attention_norm")
        q, k, v = (h @ part.T for part in weights[at + "attention.qkv.weight"].chunk(3))
        rows = []
        for t in range(len(tokens)):
            heads = []
            for part in torch.arange(width).chunk(n_head):
                p = torch.stack([(q[t, part] @ k[s, part] / math.sqrt(width)).exp() for s in range(t + 1)])
                heads.append(p / p.sum() @ v[: t + 1, part])
            rows.append(torch.cat(heads))
        x = x + torch.stack(rows) @ weights[at + "attention.out.weight"].T + weights[at + "attention.out.bias"]
        h = (
            norm(x, at + "feed_forward_norm") @ weights[at + "feed_forward.up.weight"].T
            + weights[at + "feed_forward.up.bias"]
        )
        x = x + h.clamp(min=0) @ weights[at + "feed_forward.down.weight"].T + weights[at + "feed_forward.down.bias"]
    return norm(x, "norm") @ weights["head.weight"].T


def test_logits_and_gradients_are_those_of_the_formula(gpt):
    torch.manual_seed(0)
    model = gpt.build(gpt.config("tiny", 31, 9, n_layer=2, n_head=2, n_embd=8)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.4)
    tokens, targets = torch.randint(31, (2, 9))
    logits = model(tokens[None])[0]
    expected = plain_logits(dict(model.named_parameters()), tokens, 2, 2)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    parameters = list(model.parameters())
    ours, theirs = (torch.autograd.grad(F.cross_entropy(one, targets), parameters) for one in (logits, expected))
    for (name, _), gradient, wanted in zip(model.named_parameters(), ours, theirs):
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-10, msg=name)


def test_a_batch_of_the_low_configuration_with_all_its_tokens(gpt):
    torch.manual_seed(0)
    config = gpt.config("cs478_low", O200K)
    model = gpt.build(config)
    assert (config.max_len, config.n_head, config.dropout) == (4, 4, 0.1)
    window = torch.randint(O200K, (8, config.max_len))
    window[0] = O200K - 1
    inputs, targets, _ = gpt.make_batch(window, 199_999, 0)
    model.eval()
    result = score(model, inputs, targets)
    assert result.loss_sum.item() / 32 == pytest.approx(math.log(O200K), rel=0.01)
    result.loss_sum.backward()
    assert all(p.grad.any() for p in model.parameters())


def test_is_the_vocabulary_of_o200k_base(monkeypatch):
    """With tiktoken's own definition of the encoding; of the file with the ranks, which it downloads, only the bytes
    are there.
    """
    import tiktoken
    import tiktoken_ext.openai_public

    monkeypatch.setattr(
        tiktoken_ext.openai_public, "load_tiktoken_bpe", lambda url, **_: {bytes([i]): i for i in range(256)}
    )
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    tokenizer = load_tokenizer("tiktoken:o200k_base")
    assert (tokenizer.vocab_size, tokenizer.eot) == (O200K, 199_999)
    text = "Zoë's 日本 won't <|endoftext|>"
    assert tokenizer.eot not in tokenizer.encode(text) and tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([O200K - 1, 150_000, 199_999]).endswith("<|endoftext|>")  # what has no bytes is no error


@pytest.mark.process
def test_without_its_file_one_line_says_so(tmp_path):
    (tmp_path / "text.txt").write_text(make_text(5, 0), encoding="utf-8")
    environment = {
        key: value for key, value in os.environ.items() if key not in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")
    }
    environment |= {
        "LMPLAY_DATA": str(tmp_path / "data"),
        "https_proxy": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        [
            Path(sys.executable).with_name("lmp_trainer"),
            "--exp",
            "gpt_o200k:cs478_low",
            "--tokenizer",
            "tiktoken:o200k_base",
            "--data",
            "text.txt",
            "--max-steps",
            "1",
            "--device",
            "cpu",
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "could not be downloaded" in done.stderr.splitlines()[-1], done.stderr
    assert (
        done.stderr.splitlines()[-1].startswith("lmp_trainer: tokenizer 'tiktoken:o200k_base'")
        and "Traceback" not in done.stderr
    )
    assert not list(tmp_path.glob("gpt_out/*/run.json"))
