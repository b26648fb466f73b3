"""What the tests of unified weights compare with: gpt2ish in float64 from its effective weights, with or without norms.

A family's test writes out how the effective weights come about; forward, gradients, derive() and fold() are checked
here.
"""

import math

import torch

from lmplay.model import adapters
from support.plain_gpt2ish import layer_norm, load, tokens, under

LINEARS = ("attention.q", "attention.k", "attention.v", "attention.out", "feed_forward.up", "feed_forward.down")
PURPOSES = dict(zip(LINEARS, ("query", "key", "value", "out", "up", "down"))) | {"head": "head"}
PLAIN_FIELDS = ("vocab_size", "max_len", "n_layer", "n_head", "n_embd")


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def layers(n_layer):
    """The names of all linear layers, the head last."""
    return [f"blocks.{i}.{name}" for i in range(n_layer) for name in LINEARS] + ["head"]


def unified_linear(w, name):
    """W_eff and b_eff of the layer's W and whichever vectors it has, one row at a time: rows first, then columns."""

    def vector(kind, start, size):
        values = w.get(f"{name}.vectors.{kind}.values")
        return torch.full((size,), start, dtype=torch.float64) if values is None else values[:size] + values[size]

    W = w[f"{name}.weight"]
    n_out, n_in = W.shape
    m, a, b = vector("row_gain", 1.0, n_out), vector("row_offset", 0.0, n_out), vector("bias", 0.0, n_out)
    n, c = vector("column_gain", 1.0, n_in), vector("column_offset", 0.0, n_in)
    return torch.stack([(W[o] * m[o] + a[o]) * n + c for o in range(n_out)]), b


def with_predictions(w, by_purpose):
    """The parameters with what shared matrices predict from codes added to the vectors, one vector at a time."""
    complete = dict(w)
    for at in [name.removesuffix(".code") for name in w if name.endswith(".code")]:
        layer, size = at.split(".vectors.")[0], len(w[f"{at}.values"]) - 1
        purpose = (
            PURPOSES[layer.split(".", 2)[-1]]
            if "tokens" not in layer
            else layer.replace("tokens_embedding.", "embedding_")
        )
        Q = w[f"matrices.{purpose}_{size}.weight" if by_purpose else f"matrices.{size}.weight"]
        predicted = Q @ w[f"{at}.code"]
        complete[f"{at}.values"] = w[f"{at}.values"] + torch.cat([predicted, torch.zeros(1, dtype=torch.float64)])
    return complete


def norm(x, w, name):
    return layer_norm(x, w, name) if f"{name}.weight" in w else x


def logits_of_one(w, effective, config, sequence, table=None, add=lambda w, x, y: x + y):
    """Logits (T, V) of `sequence` (T,). w: parameters by name; effective: {layer: (weight, bias)}; norms that w lacks
    are left out; `table` in place of the embedding's; add(w, stream, branch) joins them, w the parameters of that
    place.
    """
    T, d = len(sequence), config.n_embd // config.n_head

    def apply(x, name):
        return x @ effective[name][0].T + effective[name][1]

    x = (w["tokens_embedding.weight"] if table is None else table)[sequence] + w["positions_embedding.weight"][:T]
    for layer in range(config.n_layer):
        at = f"blocks.{layer}"
        normed = norm(x, w, f"{at}.attention_norm")
        q, k, v = (apply(normed, f"{at}.attention.{name}") for name in "qkv")
        outputs = []
        for head in range(config.n_head):
            part = slice(head * d, (head + 1) * d)
            rows = []
            for i in range(T):
                scores = (k[: i + 1, part] @ q[i, part] / math.sqrt(d)).exp()
                rows.append(scores / scores.sum() @ v[: i + 1, part])
            outputs.append(torch.stack(rows))
        x = add(under(w, f"{at}.attention_add."), x, apply(torch.cat(outputs, -1), f"{at}.attention.out"))
        hidden = gelu(apply(norm(x, w, f"{at}.feed_forward_norm"), f"{at}.feed_forward.up"))
        x = add(under(w, f"{at}.feed_forward_add."), x, apply(hidden, f"{at}.feed_forward.down"))
    return apply(norm(x, w, "norm"), "head")


def gradients(model, batch, direction):
    model.zero_grad()
    (model(batch) * direction).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_close(found: dict, expected: dict):
    assert found.keys() == expected.keys()
    for name in expected:
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-10, atol=1e-10 * max(scale, 1.0), msg=lambda m: f"{name}: {m}"
        )


def assert_same_function(model, effective_weights, table=lambda w, config: None, **changes):
    """Logits and every parameter's gradient are those of the plain statement, and so with weights derived beforehand.

    effective_weights(w, config) -> {layer: (weight, bias)}, table(w, config) -> (V, D) from the parameters by name."""
    batch, config = tokens(), model.config
    w = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    effective, rows = effective_weights(w, config), table(w, config)
    expected = torch.stack([logits_of_one(w, effective, config, s, rows, **changes) for s in batch])
    direction = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (expected * direction).sum().backward()
    assert_close({"logits": model(batch)}, {"logits": expected})
    plain = {name: p.grad for name, p in w.items()}
    assert adapters.fused_head(model) is not None
    assert_close(gradients(model, batch, direction), plain)
    assert_close(derived_gradients(model, batch, direction), plain)


def derived_gradients(model, batch, direction):
    """The gradients by way of derive() once and forward twice, as in a run of two mini-batches."""
    model.zero_grad()
    derived = model.derive()
    model.derived = {name: tensor.detach().requires_grad_() for name, tensor in derived.items()}
    for row in range(len(batch)):
        hidden = model.body(batch[row : row + 1])
        logits = torch.nn.functional.linear(hidden, *model.head_weights())
        (logits * direction[row : row + 1]).sum().backward()
    torch.autograd.backward([derived[name] for name in derived], [model.derived[name].grad for name in derived])
    model.derived = None
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@torch.no_grad()
def assert_folds(model, gpt2ish):
    """fold() computes the same, leaves the model alone, and is a gpt2ish where it should be."""
    before, batch = {name: t.clone() for name, t in model.state_dict().items()}, tokens()
    expected = model(batch)
    folded = model.fold()
    assert sum(p.numel() for p in folded.parameters()) < sum(p.numel() for p in model.parameters())
    assert not {p.data_ptr() for p in folded.parameters()} & {p.data_ptr() for p in model.parameters()}
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(folded(batch), expected, rtol=0, atol=1e-11 * scale)
    torch.testing.assert_close(folded.fold()(batch), folded(batch), rtol=0, atol=1e-11 * scale)
    single = model.float()
    torch.testing.assert_close(single.fold()(batch), single(batch), rtol=0, atol=1e-5 * scale)
    model.double()
    if gpt2ish:
        plain = load("gpt2ish")
        plain = (
            plain.build(plain.config("6l", **{name: getattr(model.config, name) for name in PLAIN_FIELDS}))
            .double()
            .eval()
        )
        plain.load_state_dict(folded.state_dict())
        torch.testing.assert_close(plain(batch), expected, rtol=0, atol=1e-11 * scale)
    for name, tensor in model.double().state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-6, atol=1e-6)


def folded_parameters(experiment, variant):
    """How many a variant has at full size once folded."""
    with torch.device("meta"):
        model = experiment.build(experiment.config(variant, 50257))
    return sum(p.numel() for p in model.fold().parameters())


def undecayed(model):
    """The names of parameters that the harness's optimisers leave to their gradients."""
    from lmplay.train.optimizers import parameter_groups

    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]
        for group in parameter_groups(model, 1e-3, 0.1)
        if not group["weight_decay"]
        for p in group["params"]
    }
