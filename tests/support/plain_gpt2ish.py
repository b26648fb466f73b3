"""gpt2ish written out in float64, with functions for the places that a family changes: what its tests compare with.

Nothing of the experiments is used but the parameters' names. One sequence, one head, one query and one key at a time.
"""

import math
from pathlib import Path

import torch

from lmplay import contract, registry

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
SMALL = dict(vocab_size=23, max_len=8, n_layer=3, n_head=2, n_embd=12)


def load(name):
    return contract.load(registry.read_entry(EXPERIMENTS / name))


def build(experiment, variant, dtype=torch.float64, spread=0.3, **fields):
    """A small model in evaluation, its parameters moved away from their initial values."""
    torch.manual_seed(0)
    model = experiment.build(experiment.config(variant, **{**SMALL, **fields})).to(dtype).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * spread)
    return model


def tokens(batch=2, length=SMALL["max_len"]):
    return torch.randint(SMALL["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(1))


def parameters(experiment, variant):
    """How many a variant has at full size."""
    with torch.device("meta"):
        model = experiment.build(experiment.config(variant, 50257))
    return sum(p.numel() for p in model.parameters())


def layer_norm(x, w, name, eps=1e-5):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def under(w, prefix):
    return {name.removeprefix(prefix): p for name, p in w.items() if name.startswith(prefix)}


def plain_score(w, head, x, q, k, i, j):
    return q[i] @ k[j] / math.sqrt(q.shape[-1])


def logits_of_one(
    w,
    n_layer,
    n_head,
    sequence,
    heads=lambda w, q, k, v: (q, k, v),
    score=plain_score,
    add=lambda w, name, x, y: x + y,
    eps=lambda w, n: 1e-5,
):
    """Logits (T, V) of `sequence` (T,) with parameters w {name: float64}.

    heads(w, q, k, v) changes what a head reads, each (T, d); score(w, head, x, q, k, i, j) is that of query i and key
    j, x the block's normed input (T, D); add(w, name, x, y) joins stream and branch; eps(w, n) is that of the n-th norm
    along the stream.
    """
    T, D = len(sequence), w["tokens_embedding.weight"].shape[1]
    d, norms = D // n_head, iter(range(2 * n_layer + 1))
    x = w["tokens_embedding.weight"][sequence] + w["positions_embedding.weight"][:T]
    for layer in range(n_layer):
        block = under(w, f"blocks.{layer}.")
        normed = layer_norm(x, block, "attention_norm", eps(w, next(norms)))
        q, k, v = linear(normed, block, "attention.qkv").split(D, dim=-1)
        outputs = []
        for head in range(n_head):
            part = slice(head * d, (head + 1) * d)
            qh, kh, vh = heads(under(block, "attention."), q[:, part], k[:, part], v[:, part])
            rows = []
            for i in range(T):
                scores = torch.stack(
                    [score(under(block, "attention."), head, normed, qh, kh, i, j) for j in range(i + 1)]
                )
                weights = scores.exp() / scores.exp().sum()
                rows.append(sum(weights[j] * vh[j] for j in range(i + 1)))
            outputs.append(torch.stack(rows))
        x = add(block, "attention_add", x, linear(torch.cat(outputs, -1), block, "attention.out"))
        hidden = linear(layer_norm(x, block, "feed_forward_norm", eps(w, next(norms))), block, "feed_forward.up")
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x = add(block, "feed_forward_add", x, linear(hidden, block, "feed_forward.down"))
    return linear(layer_norm(x, w, "norm", eps(w, next(norms))), w, "head")


def assert_same_function(model, **changes):
    """Logits and the gradient of every parameter are those of the plain statement."""
    batch = tokens()
    w = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    expected = torch.stack([logits_of_one(w, model.config.n_layer, model.config.n_head, s, **changes) for s in batch])
    logits = model(batch)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    direction = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (expected * direction).sum().backward()
    (logits * direction).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, w[name].grad, rtol=1e-10, atol=1e-10, msg=lambda m: f"{name}: {m}")
