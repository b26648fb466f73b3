import dataclasses
import math
from pathlib import Path

import pytest
import torch

from lmplay import contract, registry
from support.memory_plain import gelu, linear, norm

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "rank_promotion"
SMALL = dict(vocab_size=31, max_len=24, n_layer=2, n_head=2, n_embd=12, n_hidden=7, scales="2,3,2/3,2")
FORMS = {
    "plain": {},
    "narrow keys": dict(key_dim=4),
    "two heads": dict(key_dim=4, n_distil_head=2),
    "four heads in two groups": dict(key_dim=4, n_distil_head=4, n_distil_group=2),
    "no positions": dict(positions=False),
    "many levels": dict(scales="2,2,2,2,2,2"),
    "direct": dict(direct=True, key_dim=4),
    "low cut": dict(direct=True, utility_cut=0.5),
    "embedding": dict(embedding_multiple=3, embedding_hidden=2, direct=True, scales="2,3/4,5"),
    "out mlp": dict(out_mlp=True),
}
each_form = pytest.mark.parametrize("fields", FORMS.values(), ids=FORMS)


@pytest.fixture(scope="module")
def experiment():
    return contract.load(registry.read_entry(FOLDER))


def build(experiment, **fields):
    """In float64, away from the initial values: utilities that differ, position tables that are not 0."""
    torch.manual_seed(0)
    model = experiment.build(experiment.config("6l", **{**SMALL, **fields})).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


def some_tokens(batch=2, length=20, seed=1):
    return torch.randint(SMALL["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))


def mlp(w, name, x):
    return linear(w, name + ".2", gelu(linear(w, name + ".0", x)))


def promoted_vector(w, config, name, window):
    """Of a window (w, width)."""
    size, width = window.shape
    if config.direct:
        return mlp(w, f"{name}.distil.0", window.flatten())
    vector = []
    for g in range(config.n_distil_group):
        part = window[:, g * width // config.n_distil_group : (g + 1) * width // config.n_distil_group]
        logits = mlp(w, f"{name}.distil.{g}", part.flatten())
        n_heads = config.n_distil_head // config.n_distil_group
        for h in range(n_heads):
            of_head = part[:, h * part.size(1) // n_heads : (h + 1) * part.size(1) // n_heads]
            weights = logits[h * size : (h + 1) * size].exp()
            vector.append(sum(weights[i] / weights.sum() * of_head[i] for i in range(size)))
    return torch.cat(vector)


def attention(w, config, name, x, scales):
    """Of one sequence (T, D), token after token: what it writes, the extra loss, the share of promoted items."""
    T, D = x.shape
    key_dim, H = config.key_dim or D, config.n_head
    qkv = linear(w, f"{name}.qkv", x)
    levels = [list(w[f"{name}.starts.{level}"]) for level in range(len(scales))]
    utilities, errors, n_promoted = ([[] for _ in scales] for _ in range(3))
    rows = []
    for t in range(T):
        new, windows, rated = qkv[t, key_dim:], [], {}
        for level, size in enumerate(scales):
            if new is not None:
                levels[level].append(new)
            windows.append(torch.stack(levels[level][-size:]))
            if new is None or level == len(scales) - 1:
                continue
            z = mlp(w, f"{name}.promotions.{level}.utility", windows[level].detach().flatten())
            u = rated[level] = (z if z > 0 else z.exp() - 1) + 1
            before = [other.item() for other in utilities[level]]
            promote = len(before) < size or u.item() >= config.utility_cut * sum(before) / len(before)
            utilities[level].append(u)
            n_promoted[level].append(promote)
            new = promoted_vector(w, config, f"{name}.promotions.{level}", windows[level]) if promote else None
        seen = torch.cat(windows) + w[f"{name}.slots"]
        heads, weights = [], []
        for h in range(H):
            q = qkv[t, h * key_dim // H : (h + 1) * key_dim // H]
            k = seen[:, h * key_dim // H : (h + 1) * key_dim // H]
            weights.append((k @ q / math.sqrt(len(q))).softmax(0))
            heads.append(weights[-1] @ seen[:, key_dim + h * D // H : key_dim + (h + 1) * D // H])
        rows.append(torch.cat(heads))
        weights = torch.stack(weights).mean(0).detach().split(scales)
        for level, u in rated.items():
            errors[level].append((u - weights[level].mean()) ** 2)
    y = torch.stack(rows)
    y = mlp(w, f"{name}.out", y) if config.out_mlp else linear(w, f"{name}.out", y)
    return (
        y,
        sum(sum(e) / len(e) for e in errors[:-1]) / (len(scales) - 1),
        sum(sum(n) / len(n) for n in n_promoted[:-1]) / (len(scales) - 1),
    )


def stated(w, config, tokens):
    """The model by its description: logits, extra loss, share of promoted items."""
    logits, losses, shares = [], [], []
    scales = [[int(size) for size in layer.split(",")] for layer in config.scales.split("/")]
    for sequence in tokens:
        if config.embedding_multiple:
            x = mlp(w, "tokens_embedding.network", w["tokens_embedding.table.weight"][sequence])
        else:
            x = w["tokens_embedding.weight"][sequence]
        if config.positions:
            x = x + w["positions_embedding.weight"][: len(sequence)]
        for i in range(config.n_layer):
            name = f"blocks.{i}"
            y, loss, share = attention(
                w, config, f"{name}.attention", norm(w, f"{name}.attention_norm", x), scales[i % len(scales)]
            )
            x = x + y
            name = f"{name}.feed_forward"
            x = x + linear(w, f"{name}.down", gelu(linear(w, f"{name}.up", norm(w, f"{name}_norm", x))))
            losses.append(loss)
            shares.append(share)
        logits.append(linear(w, "head", norm(w, "norm", x)))
    return torch.stack(logits), sum(losses) / len(losses), sum(shares) / len(shares)


@each_form
def test_forward_and_gradients(experiment, fields):
    model, tokens = build(experiment, **fields), some_tokens()
    w = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    logits, extra = model(tokens)
    expected, loss, share = stated(w, model.config, tokens)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(extra["loss"], loss.squeeze(), rtol=1e-10, atol=1e-10)
    assert extra["promoted"].item() == pytest.approx(share, rel=1e-6) and 0.2 < share < 0.98
    direction = torch.randn(logits.shape, dtype=logits.dtype, generator=torch.Generator().manual_seed(2))
    names = [name for name, _ in model.named_parameters()]
    ours = torch.autograd.grad((logits * direction).sum() + 5 * extra["loss"], list(model.parameters()))
    theirs = torch.autograd.grad((expected * direction).sum() + 5 * loss.squeeze(), [w[name] for name in names])
    for name, one, other in zip(names, ours, theirs):
        assert other.abs().max() > 1e-6, name
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10, msg=lambda text: f"{name}: {text}")


@each_form
def test_shapes_that_depend_on_no_value(experiment, fields, monkeypatch):
    """What is computed for positions without an item, where it must be, changes nothing."""
    model, tokens = build(experiment, **fields), some_tokens()

    def results():
        logits, extra = model(tokens)
        return [
            logits,
            extra["loss"],
            extra["promoted"],
            *torch.autograd.grad(logits.square().sum() + extra["loss"], list(model.parameters())),
        ]

    expected = results()
    monkeypatch.setattr(experiment.module, "has_numbers", lambda tensor: False)
    for one, other in zip(results(), expected):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@each_form
@pytest.mark.parametrize("sizes", [(1,) * 20, (7, 13), (1, 5, 1, 13)], ids=str)
@torch.no_grad()
def test_cache(experiment, fields, sizes):
    model, tokens = build(experiment, **fields), some_tokens(3)
    cache = model.new_cache(3)
    logits = torch.cat([model(part, cache=cache)[0] for part in tokens.split(sizes, dim=1)], dim=1)
    torch.testing.assert_close(logits, model(tokens)[0], rtol=1e-10, atol=1e-10)
    scales = [[int(size) for size in layer.split(",")] for layer in model.config.scales.split("/")]
    assert [[state.window.size(1) for state in states] for states in cache.states] == [
        scales[i % len(scales)] for i in range(2)
    ]


@torch.no_grad()
def test_a_repeated_text(experiment):
    """Utilities that are equal except for rounding are all promoted, however the text is cut."""
    torch.manual_seed(0)
    model = experiment.build(experiment.config("6l", **{**SMALL, "positions": False, "max_len": 200})).eval()
    tokens = torch.full((1, 200), 7)
    logits, extra = model(tokens)
    assert extra["promoted"] > 0.9
    cache = model.new_cache(1)
    cut = torch.cat([model(part, cache=cache)[0] for part in tokens.split((1, 1, 30, 1, 100, 67), dim=1)], dim=1)
    torch.testing.assert_close(cut, logits, rtol=0, atol=1e-5)


def test_the_extra_loss_trains_the_utilities_alone(experiment):
    model = build(experiment)
    loss = model(some_tokens())[1]["loss"]
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    for (name, _), gradient in zip(model.named_parameters(), gradients):
        assert (gradient is not None) == (".utility." in name), name
    logits = model(some_tokens())[0]
    gradients = torch.autograd.grad(logits.square().sum(), list(model.parameters()), allow_unused=True)
    for (name, _), gradient in zip(model.named_parameters(), gradients):
        assert (gradient is None) == (".utility." in name), name


@torch.no_grad()
def test_the_extra_loss_does_not_depend_on_the_batch(experiment):
    model, tokens = build(experiment), some_tokens(5)
    whole = model(tokens)[1]
    for name in ("loss", "promoted"):
        alone = torch.stack([model(row[None])[1][name] for row in tokens]).mean()
        torch.testing.assert_close(whole[name].double(), alone.double(), rtol=1e-6, atol=0)


@torch.no_grad()
def test_utilities_learn_where_attention_goes(experiment):
    torch.manual_seed(0)
    model = experiment.build(experiment.config("6l", **SMALL))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for seed in range(60):
        with torch.enable_grad():
            loss = model(some_tokens(8, seed=seed))[1]["loss"]
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.3 and losses[-1] < losses[0] / 20


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-11)], ids=["float32", "float64"]
)
@torch.no_grad()
def test_fold(experiment, dtype, tolerance):
    model = build(experiment, **FORMS["embedding"]).to(dtype)
    folded = model.fold()
    assert {name for name, _ in folded.named_parameters()} == {
        name for name, _ in build(experiment, **FORMS["embedding"] | dict(embedding_multiple=0)).named_parameters()
    }
    torch.testing.assert_close(folded(some_tokens())[0], model(some_tokens())[0], rtol=tolerance, atol=tolerance)
    with pytest.raises(ValueError, match="plain already"):
        folded.fold()


@pytest.mark.parametrize(
    "variant, parameters",
    [
        ("6l", 216_634_921),
        ("keys_240", 178_758_313),
        ("keys_240_12_distil_heads", 179_122_975),
        ("keys_384", 189_088_297),
        ("keys_36", 164_228_335),
        ("no_positions", 163_441_903),
        ("scales_by_layer", 125_487_221),
        ("fewer_scales", 125_487_361),
        ("scales_by_layer_embedding", 209_762_933),
        ("scales_by_layer_embedding_out_mlp", 213_306_485),
        ("direct", 159_436_858),
        ("alternating_embedding", 317_683_999),
        ("alternating", 154_692_895),
        ("three_levels_embedding", 358_508_869),
    ],
)
def test_parameters(experiment, variant, parameters):
    """The original's counts are not known: these are ours, counted once more from the description."""
    config = experiment.config(variant, 50257)
    with torch.device("meta"):
        total = sum(p.numel() for p in experiment.build(config).parameters())
    V, D, c = 50257, 768, config
    key_dim, M = c.key_dim or D, c.n_hidden
    width, scales = key_dim + D, [[int(size) for size in layer.split(",")] for layer in c.scales.split("/")]

    def mlp(a, hidden, b):
        return (a + 1) * hidden + (hidden + 1) * b

    expected = (c.max_len * D if c.positions else 0) + 2 * D + (D + 1) * V
    wide = c.embedding_multiple * D
    expected += V * wide + mlp(wide, c.embedding_hidden * D, D) if wide else V * D
    for i in range(6):
        windows = scales[i % len(scales)]
        expected += 4 * D + mlp(D, 4 * D, D) + (D + 1) * (key_dim + width)
        expected += mlp(D, D, D) if c.out_mlp else (D + 1) * D
        expected += sum(windows) * width + sum(w - 1 for w in windows) * width
        for w in windows[:-1]:
            expected += mlp(w * width, M, 1)
            expected += (
                mlp(w * width, M, width)
                if c.direct
                else c.n_distil_group * mlp(w * width // c.n_distil_group, M, w * c.n_distil_head // c.n_distil_group)
            )
    assert total == expected
    assert total == parameters


@torch.no_grad()
def test_initial_values(experiment):
    torch.manual_seed(0)
    model = experiment.build(experiment.config("tiny_alternating_embedding", 500, 64))
    block = model.blocks[0]
    for start in block.attention.starts:
        assert start.min() >= 0 and start.max() <= 1 and start.mean().item() == pytest.approx(0.5, rel=0.1)
    assert not block.attention.slots.any()
    promotion = block.attention.promotions[0]
    for layer, n_in in (
        (promotion.utility[0], 3 * 320),
        (promotion.distil[0][2], 256),
        (model.tokens_embedding.network[0], 1024),
    ):
        assert layer.weight.std().item() == pytest.approx(n_in**-0.5 / 3**0.5, rel=0.02) and layer.bias.any()
    assert model.tokens_embedding.table.weight.std().item() == pytest.approx(1, rel=0.01)
    assert block.attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert block.attention.out.weight.std().item() == pytest.approx(0.02 / 8**0.5, rel=0.02)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(scales="3"), "scales '3'"),
        (dict(scales="3,1"), "scales '3,1'"),
        (dict(scales="3,x"), "scales '3,x'"),
        (dict(scales=""), "scales ''"),
        (dict(n_head=5), "n_embd 12 .* n_head 5"),
        (dict(key_dim=3), "key_dim 3 .* n_head 2"),
        (dict(n_distil_head=5), "n_distil_head 5"),
        (dict(n_distil_head=3, n_distil_group=2), "n_distil_group 2"),
    ],
)
def test_sizes_that_do_not_fit(experiment, fields, message):
    with pytest.raises(ValueError, match=message):
        experiment.Model(experiment.config("6l", **{**SMALL, **fields}))


def test_costs_are_known_without_running_it(experiment):
    from lmplay.model.cost import activation_bytes, cost_of

    config = experiment.config("6l", **SMALL)
    assert cost_of(experiment, config).flops_per_token > 1e4
    assert activation_bytes(experiment, dataclasses.replace(config, max_len=20), amp=True) > 1e4


def test_compiles_without_graph_breaks(experiment):
    model = build(experiment, n_layer=1, scales="2,3")
    logits, extra = torch.compile(model, backend="eager", fullgraph=True)(some_tokens())
    expected, expected_extra = model(some_tokens())
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(extra["loss"], expected_extra["loss"])
