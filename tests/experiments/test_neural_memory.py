import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lmplay import contract, registry

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "neural_memory"
SMALL = dict(vocab_size=31, max_len=12, n_layer=2, n_head=2, n_embd=12, n_cell=5, memory_multiple=3, n_memory_head=3)
FORMS = {
    "shared": {}, "own layers": dict(own_layers=True), "own memories": dict(own_layers=True, own_memories=True),
    "own memories, one layer": dict(own_memories=True), "memory first": dict(pattern="MB"), "two": dict(pattern="BMM"),
    "no residual": dict(memory_residual=False), "plain": dict(memory_multiple=0),
    "plain, wide, two, own": dict(pattern="BMM", own_layers=True, own_memories=True, memory_multiple=0, cell_multiple=2),
    "wide network": dict(cell_multiple=2),
}
each_form = pytest.mark.parametrize("fields", FORMS.values(), ids=FORMS)


@pytest.fixture(scope="module")
def experiment():
    return contract.load(registry.read_entry(FOLDER))


def build(experiment, **fields):
    """In float64, away from the initial values."""
    torch.manual_seed(0)
    model = experiment.build(experiment.config("6l", **{**SMALL, **fields})).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


def some_tokens(batch=2, length=7):
    return torch.randint(SMALL["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(1))


def linear(w, name, x):
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def norm(w, name, x):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[name + ".weight"] + w[name + ".bias"]


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def feed_forward(w, name, x):
    return linear(w, name + ".down", gelu(linear(w, name + ".up", x)))


def attention(w, name, x, n_head):
    """Of one sequence (T, D), a token and a head at a time."""
    T, D = x.shape
    q, k, v = linear(w, name + ".qkv", x).split(D, -1)
    rows = []
    for t in range(T):
        heads = []
        for part in torch.arange(D).split(D // n_head):
            weights = (k[:t + 1, part] @ q[t, part] / math.sqrt(len(part))).softmax(0)
            heads.append(weights @ v[:t + 1, part])
        rows.append(torch.cat(heads))
    return linear(w, name + ".out", torch.stack(rows))


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
        x = w["tokens_embedding.weight"][sequence] + w["positions_embedding.weight"][:len(sequence)]
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
                w, f"{name}.feed_forward", norm(w, f"{name}.feed_forward_norm", r))
            n_memory_block += 1
        logits.append(linear(w, "head", norm(w, "norm", x)))
    return torch.stack(logits)


def gradients_match(model, expected, logits, w):
    direction = torch.randn(logits.shape, dtype=logits.dtype, generator=torch.Generator().manual_seed(2))
    names = [name for name, _ in model.named_parameters()]
    ours = torch.autograd.grad((logits * direction).sum(), list(model.parameters()))
    theirs = torch.autograd.grad((expected * direction).sum(), [w[name] for name in names])
    for name, one, other in zip(names, ours, theirs):
        assert other.abs().max() > 1e-6 or name.endswith(".key.bias"), name  # shifts all scores alike: a softmax does not see it
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10, msg=lambda text: f"{name}: {text}")


@each_form
def test_forward_and_gradients(experiment, fields):
    model, tokens = build(experiment, **fields), some_tokens()
    w = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    logits, expected = model(tokens), stated(w, model.config, tokens)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    gradients_match(model, expected, logits, w)


@each_form
def test_derived_once_an_update(experiment, fields):
    """Two mini-batches with one derive(): the gradients of two forward passes that derive anew."""
    model, parts = build(experiment, **fields), [some_tokens(2, 7), some_tokens(3, 5)]
    for part in parts:
        model(part).square().sum().backward()
    anew = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with contract.derived_once(model):
        for part in parts:
            model(part).square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, anew[name], rtol=1e-10, atol=1e-10)


@each_form
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-11)], ids=["float32", "float64"])
@torch.no_grad()
def test_fold(experiment, fields, dtype, tolerance):
    model = build(experiment, **fields).to(dtype)
    before, folded = {name: p.clone() for name, p in model.state_dict().items()}, model.fold()
    logits = model(some_tokens())
    assert folded(some_tokens()).dtype == dtype
    torch.testing.assert_close(folded(some_tokens()), logits, rtol=tolerance, atol=tolerance)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in folded.parameters()}
    again = experiment.build(folded.config).to(dtype)
    again.load_state_dict(folded.state_dict())
    assert torch.equal(again(some_tokens()), folded(some_tokens()))


@pytest.mark.parametrize("variant, parameters, deployed", [
    ("6l", 173_887_057, 150_291_025), ("own_layers", 179_792_977, 156_196_945), ("own_memories", 298_756_177, 157_179_985),
    ("memory_first", 173_887_057, 150_291_025), ("two_memory_blocks", 202_240_081, 178_644_049),
    ("3l_own_memories", 188_394_577, 117_606_481), ("no_residual", 173_887_057, 150_291_025),
    ("12_heads", 173_887_057, 150_291_025), ("64_cells", 172_314_193, 150_192_721), ("multiple_64", 195_907_153, 150_291_025),
    ("plain_cells", 151_373_905, 150_291_025), ("plain_wide_cells", 160_319_569, 150_291_025),
    ("two_own_plain_wide", 314_142_289, 193_799_761)])
def test_parameters(experiment, variant, parameters, deployed):
    with torch.device("meta"):
        model = experiment.build(experiment.config(variant, 50257))
        folded = experiment.build(experiment.config(variant, 50257, folded=True))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in folded.parameters()) == deployed
    # once more from the baseline: query and out of each layer, keys and values of each memory, feed-forward and norms of each block
    c, D = model.config, 768
    blocks = c.n_layer * c.pattern.count("M")
    assert deployed == (120_560_209 - (6 - c.n_layer) * 7_087_872 + (blocks if c.own_layers else 1) * 2 * D * (D + 1)
                        + (blocks if c.own_memories else 1) * 2 * c.n_cell * D + blocks * (8 * D * D + 9 * D))


@torch.no_grad()
def test_initial_values(experiment):
    torch.manual_seed(0)
    model = experiment.build(experiment.config("tiny", 500, 64))
    table = model.memories[0]
    assert table.cells.weight.std().item() == pytest.approx(1, rel=0.01)
    for layer, width in ((table.network[0], 32 * 256), (table.key, 256), (model.memory_layers[0].out, 256)):
        assert layer.weight.std().item() == pytest.approx(width ** -0.5 / 3 ** 0.5, rel=0.02) and layer.bias.any()
    assert model.blocks[0].attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    for projection in (model.blocks[0].attention.out, model.blocks[1].feed_forward.down):
        assert projection.weight.std().item() == pytest.approx(0.02 / 4, rel=0.02) and not projection.bias.any()


@torch.no_grad()
def test_first_loss_at_full_width(experiment):
    for variant in ("6l", "no_residual", "two_own_plain_wide"):
        torch.manual_seed(0)
        model = experiment.build(experiment.config(variant, 1000, 16, n_layer=2, n_embd=384, n_cell=64, memory_multiple=4))
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
    alone = torch.stack([torch.stack([model.memory_layers[0](t[None, None], keys, values)[0, 0] for t in row]) for row in x])
    torch.testing.assert_close(whole, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fields, message", [
    (dict(n_head=5), "n_embd 12 .* n_head 5"), (dict(n_memory_head=5), "n_embd 12 .* n_memory_head 5"),
    (dict(pattern="BX"), "pattern 'BX'"), (dict(pattern="B"), "pattern 'B'"), (dict(pattern=""), "pattern ''")])
def test_sizes_that_do_not_fit(experiment, fields, message):
    with pytest.raises(ValueError, match=message):
        experiment.Model(experiment.config("6l", **{**SMALL, **fields}))


def test_compiles_without_graph_breaks(experiment):
    model = build(experiment, n_layer=1)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(some_tokens()), model(some_tokens()))
