import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lmplay import contract, registry

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "memory_linear"
SMALL = dict(vocab_size=31, max_len=12, n_layer=2, n_head=2, n_embd=12, n_cell=5, memory_multiple=3, n_memory_head=3)
FORMS = {"memory alone": {}, "direct": dict(direct=True), "wider table": dict(memory_multiple=5), "one head": dict(n_memory_head=1)}
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


def memory_linear(w, config, name, x):
    """Of one sequence (T, a), a token and a head at a time."""
    cells = linear(w, "memory.network.2", gelu(linear(w, "memory.network.0", w["memory.cells.weight"])))
    keys, values = linear(w, "memory.key", cells), linear(w, "memory.value", cells)
    q = linear(w, f"{name}.query", x)
    rows = []
    for t in range(len(x)):
        heads = []
        for part in torch.arange(config.n_embd).split(config.n_embd // config.n_memory_head):
            heads.append((keys[:, part] @ q[t, part] / math.sqrt(len(part))).softmax(0) @ values[:, part])
        rows.append(torch.cat(heads))
    y = linear(w, f"{name}.out", torch.stack(rows))
    return y + linear(w, f"{name}.direct", x) if config.direct else y


def stated(w, config, tokens):
    """The model by its description."""
    logits = []
    for sequence in tokens:
        T, D = len(sequence), config.n_embd
        x = w["tokens_embedding.weight"][sequence] + w["positions_embedding.weight"][:T]
        for i in range(config.n_layer):
            name = f"blocks.{i}.attention"
            q, k, v = (memory_linear(w, config, f"{name}.qkv.{n}", norm(w, f"{name}_norm", x)) for n in range(3))
            rows = []
            for t in range(T):
                heads = []
                for part in torch.arange(D).split(D // config.n_head):
                    weights = (k[:t + 1, part] @ q[t, part] / math.sqrt(len(part))).softmax(0)
                    heads.append(weights @ v[:t + 1, part])
                rows.append(torch.cat(heads))
            x = x + memory_linear(w, config, f"{name}.out", torch.stack(rows))
            name = f"blocks.{i}.feed_forward"
            hidden = gelu(memory_linear(w, config, f"{name}.up", norm(w, f"{name}_norm", x)))
            x = x + memory_linear(w, config, f"{name}.down", hidden)
        logits.append(linear(w, "head", norm(w, "norm", x)))
    return torch.stack(logits)


def gradients_match(model, expected, logits, w):
    direction = torch.randn(logits.shape, dtype=logits.dtype, generator=torch.Generator().manual_seed(2))
    names = [name for name, _ in model.named_parameters()]
    ours = torch.autograd.grad((logits * direction).sum(), list(model.parameters()))
    theirs = torch.autograd.grad((expected * direction).sum(), [w[name] for name in names])
    for name, one, other in zip(names, ours, theirs):
        assert other.abs().max() > 1e-6 or name.endswith((".key.bias", "qkv.1.out.bias", "qkv.1.direct.bias")), name  # shift all scores alike
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
    ("6l", 165_614_161, 142_018_129), ("direct", 208_122_961, 184_526_929)])
def test_parameters(experiment, variant, parameters, deployed):
    with torch.device("meta"):
        model = experiment.build(experiment.config(variant, 50257))
        folded = experiment.build(experiment.config(variant, 50257, folded=True))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in folded.parameters()) == deployed


@torch.no_grad()
def test_initial_values(experiment):
    torch.manual_seed(0)
    model = experiment.build(experiment.config("tiny_direct", 500, 64))
    feed_forward = model.blocks[0].feed_forward
    assert model.memory.cells.weight.std().item() == pytest.approx(1, rel=0.01)
    for layer, width in ((model.memory.network[0], 32 * 256), (feed_forward.down.query, 1024), (feed_forward.down.out, 256)):
        assert layer.weight.std().item() == pytest.approx(width ** -0.5 / 3 ** 0.5, rel=0.02) and layer.bias.any()
    assert feed_forward.up.direct.weight.std().item() == pytest.approx(0.02, rel=0.02)
    for layer in (model.blocks[0].attention.out, feed_forward.down):
        assert layer.direct.weight.std().item() == pytest.approx(0.02 / 8 ** 0.5, rel=0.02) and not layer.direct.bias.any()


@pytest.mark.parametrize("variant", ["tiny", "tiny_direct"])
@torch.no_grad()
def test_first_loss_at_tiny_width(experiment, variant):
    torch.manual_seed(0)
    model = experiment.build(experiment.config(variant, 1000, 16, memory_multiple=4))
    window = torch.randint(1000, (8, 17))
    loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(1000), rel=0.1)


@pytest.mark.parametrize("fields, message", [
    (dict(n_head=5), "n_embd 12 .* n_head 5"), (dict(n_memory_head=5), "n_embd 12 .* n_memory_head 5")])
def test_sizes_that_do_not_fit(experiment, fields, message):
    with pytest.raises(ValueError, match=message):
        experiment.Model(experiment.config("6l", **{**SMALL, **fields}))


def test_compiles_without_graph_breaks(experiment):
    model = build(experiment, n_layer=1)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(some_tokens()), model(some_tokens()))
