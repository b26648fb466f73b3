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
    away_from_initial,
    gelu,
    linear,
    norm,
)

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "memory_linear"
SMALL = dict(vocab_size=31, max_len=12, n_layer=2, n_head=2, n_embd=12, n_cell=5, memory_multiple=3, n_memory_head=3)
FORMS = {
    "memory alone": {},
    "direct": dict(direct=True),
    "wider table": dict(memory_multiple=5),
    "one head": dict(n_memory_head=1),
}
each_form = pytest.mark.parametrize("fields", FORMS.values(), ids=FORMS)


@pytest.fixture(scope="module")
def experiment():
    return contract.load(registry.read_entry(FOLDER))


def build(experiment, **fields):
    return away_from_initial(experiment, **{**SMALL, **fields})


def some_tokens(batch=2, length=7):
    return memory_plain.some_tokens(SMALL["vocab_size"], batch, length)


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
                    weights = (k[: t + 1, part] @ q[t, part] / math.sqrt(len(part))).softmax(0)
                    heads.append(weights @ v[: t + 1, part])
                rows.append(torch.cat(heads))
            x = x + memory_linear(w, config, f"{name}.out", torch.stack(rows))
            name = f"blocks.{i}.feed_forward"
            hidden = gelu(memory_linear(w, config, f"{name}.up", norm(w, f"{name}_norm", x)))
            x = x + memory_linear(w, config, f"{name}.down", hidden)
        logits.append(linear(w, "head", norm(w, "norm", x)))
    return torch.stack(logits)


@each_form
def test_forward_and_gradients(experiment, fields):
    assert_same_function(
        build(experiment, **fields),
        stated,
        some_tokens(),
        lambda name: name.endswith((".key.bias", "qkv.1.out.bias", "qkv.1.direct.bias")),
    )


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
    "variant, parameters, deployed", [("6l", 165_614_161, 142_018_129), ("direct", 208_122_961, 184_526_929)]
)
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
    for layer, width in (
        (model.memory.network[0], 32 * 256),
        (feed_forward.down.query, 1024),
        (feed_forward.down.out, 256),
    ):
        assert layer.weight.std().item() == pytest.approx(width**-0.5 / 3**0.5, rel=0.02) and layer.bias.any()
    assert feed_forward.up.direct.weight.std().item() == pytest.approx(0.02, rel=0.02)
    for layer in (model.blocks[0].attention.out, feed_forward.down):
        assert (
            layer.direct.weight.std().item() == pytest.approx(0.02 / 8**0.5, rel=0.02) and not layer.direct.bias.any()
        )


@pytest.mark.parametrize("variant", ["tiny", "tiny_direct"])
@torch.no_grad()
def test_first_loss_at_tiny_width(experiment, variant):
    torch.manual_seed(0)
    model = experiment.build(experiment.config(variant, 1000, 16, memory_multiple=4))
    window = torch.randint(1000, (8, 17))
    loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(1000), rel=0.1)


@pytest.mark.parametrize(
    "fields, message",
    [(dict(n_head=5), "n_embd 12 .* n_head 5"), (dict(n_memory_head=5), "n_embd 12 .* n_memory_head 5")],
)
def test_sizes_that_do_not_fit(experiment, fields, message):
    with pytest.raises(ValueError, match=message):
        experiment.Model(experiment.config("6l", **{**SMALL, **fields}))


def test_compiles_without_graph_breaks(experiment):
    model = build(experiment, n_layer=1)
    torch.testing.assert_close(
        torch.compile(model, backend="eager", fullgraph=True)(some_tokens()), model(some_tokens())
    )
