"""What pldr's operators are made of (metric), what is done with them, and its weights in other forms."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from lmplay import contract, registry
from lmplay.errors import UserError
from lmplay.model import adapters

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "pldr"
SMALL = dict(n_layer=2, n_head=2, n_embd=24, n_hidden=20, metric_hidden=10, n_unit=2, chunk=3)
V900 = dict(metric_width=9)
END = 96


@pytest.fixture(scope="module")
def pldr():
    return contract.load(registry.read_entry(FOLDER))


def build(pldr, variant="causal", **fields):
    """A model away from its initial values, in float64."""
    torch.manual_seed(0)
    model = pldr.build(pldr.config(variant, 97, 32, **SMALL | fields)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def tokens(batch=2, length=17):
    return torch.randint(97, (batch, length), generator=torch.Generator().manual_seed(1))


def plain(weights, config, text, start_of):
    """The whole model again, position by position, of its weights under the reference's names and a text (T,).

    The operator of position t is made of the tokens before start_of(t); where that is 0, of the one-token text [END];
    None: of all.
    """
    width = config.n_embd // config.n_head
    theta = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        return (
            x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]
        )

    def glu(x, name):
        gate = linear(x, f"{name}.gluw1")
        return linear(gate * gate.sigmoid() * linear(x, f"{name}.gluw2"), f"{name}.gluw3")

    def turned(x):
        pairs = (
            torch.complex(x[:, 0::2], x[:, 1::2])
            if config.rotary == "interleaved"
            else torch.complex(*x.chunk(2, dim=1))
        )
        angles = torch.arange(len(x))[:, None] * theta
        pairs = pairs * torch.polar(torch.ones_like(angles), angles)
        parts = pairs.real, pairs.imag
        return torch.stack(parts, 2).flatten(1) if config.rotary == "interleaved" else torch.cat(parts, 1)

    def operator(q, h, layer):
        A = sum(torch.outer(row, row) for row in q)
        if config.metric_width:
            A = linear(A, f"{layer}.res_inp_ffn")
        A = norm(A, f"{layer}.layernorm1")
        for r in range(config.n_unit):
            B = A
            for j in range(config.n_glu):
                B = glu(B, f"{layer}.reslayerAs.{r}.denseAs.{j}")
            A = norm(B + A, f"{layer}.reslayerAs.{r}.layernormA")
        if config.metric_width:
            A = norm(linear(A, f"{layer}.res_final_ffn"), f"{layer}.layernorm2")
        W, b, p, a, ba = (
            weights[f"{layer}.plgatt_layer.{name}"][h] for name in ("Wlst", "blst", "pwlst", "alst", "balst")
        )
        Z = W @ A + b
        return a @ (Z * Z * Z.sigmoid() + 1e-9).pow(p) + ba

    def forward(text, start_of, prompt):
        x, operators = (
            norm(math.sqrt(config.n_embd) * weights["decoder.embedding.weight"][text], "decoder.layernorm1"),
            [],
        )
        for i in range(config.n_layer):
            layer, heads = f"decoder.dec_layers.{i}", []
            for h in range(config.n_head):
                part = slice(h * width, (h + 1) * width)
                q, k, v = (linear(x, f"{layer}.mha1.w{name}")[:, part] for name in "qkv")
                q, k, made, rows = turned(q), turned(k), {}, []
                for t in range(len(text)):
                    start = start_of(t)
                    if start not in made:
                        made[start] = prompt[i, h] if start == 0 else operator(q[:start], h, f"{layer}.mha1")
                    scores = q[t] @ made[start] @ k[: t + 1].T / math.sqrt(width)
                    rows.append(scores.softmax(0) @ v[: t + 1])
                operators.append(made[start_of(0)])
                heads.append(torch.stack(rows))
            x = norm(linear(torch.cat(heads, 1), f"{layer}.mha1.dense") + x, f"{layer}.layernorm1")
            x = norm(glu(x, f"{layer}.ffn") + x, f"{layer}.layernorm2")
        return linear(x, "final_layer"), torch.stack(operators).view(config.n_layer, config.n_head, width, width)

    prompt = forward(torch.tensor([END]), lambda t: None, None)[1]
    return forward(text, start_of, prompt)[0]


STARTS = {
    "sequence": lambda t: None,
    "prompt": lambda t: 0,
    "causal": lambda t: max([0] + [start for start in (3, 6, 12, 24) if start <= t]),
}


@pytest.mark.parametrize("metric", STARTS)
@pytest.mark.parametrize("fields", [dict(), V900 | dict(rotary="interleaved")], ids=["v510", "v900"])
def test_by_the_formulas(pldr, metric, fields):
    model = build(pldr, metric=metric, monitor=0, **fields)
    text, output = tokens(1)[0], torch.randn(17, 97, dtype=torch.float64)
    weights = {name: w.requires_grad_() for name, w in pldr.module.export_weights(model).items()}
    expected = plain(weights, model.config, text, STARTS[metric])
    logits = model(text[None])[0]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    (expected * output).sum().backward()
    (logits * output).sum().backward()
    gradients = pldr.module.import_weights({name: w.grad for name, w in weights.items()})
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("metric", ["prompt", "causal"])
def test_derived_once_is_derived_anew(pldr, metric):
    model, inputs = build(pldr, metric=metric, dag_operator=0.01, dag_metric=0.1).train(), tokens()
    gradients = []
    for once in (False, True):
        model.zero_grad()
        if once:
            with adapters.derived_once(model):
                for part in inputs.split(1):
                    logits, extra = model(part)
                    (logits.logsumexp(-1).sum() + extra["loss"] / 2).backward()
        else:
            for part in inputs.split(1):
                logits, extra = model(part)
                (logits.logsumexp(-1).sum() + extra["loss"] / 2).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


@torch.no_grad()
def test_metrics_are_one_architecture(pldr):
    """The same weights with the sequence's operators, the prompt's or the running one: as v510Gi takes v510's."""
    weights = build(pldr, metric="sequence").state_dict()
    models = {metric: build(pldr, metric=metric) for metric in STARTS}
    for model in models.values():
        model.load_state_dict(weights)
    of_end = models["sequence"].tensors(torch.tensor([[END]]))
    kept = models["sequence"].fold([of_end[f"layers.{i}.G"][0] for i in range(2)])
    torch.testing.assert_close(models["prompt"](tokens()), kept(tokens()), rtol=0, atol=1e-10)
    assert (models["sequence"](tokens()) - kept(tokens())).abs().max() > 1e-3
    whole = build(pldr, metric="causal", chunk=40)
    whole.load_state_dict(weights)
    torch.testing.assert_close(whole(tokens()), kept(tokens()), rtol=0, atol=1e-10)
    last = models["causal"].tensors(tokens())["layers.0.G"]
    first_12 = models["sequence"].tensors(tokens()[:, :12])["layers.0.G"]
    torch.testing.assert_close(last, first_12, rtol=0, atol=1e-9)


@torch.no_grad()
def test_sequence_looks_ahead_and_says_so(pldr):
    model, changed = build(pldr, metric="sequence"), tokens()
    changed[:, -1] = (changed[:, -1] + 1) % 97
    assert (model(tokens()) - model(changed))[:, 1:-1].abs().max() > 1e-3
    for variant, fields in pldr.variants.items():
        bound = pldr.bound(pldr.config(variant, 97))
        assert bound.causal == (fields.get("metric") != "sequence") and bound.can_write
    assert pldr.bound(pldr.config(next(iter(pldr.variants)), 97)).causal, "the default is strict"


@pytest.mark.parametrize("metric", ["constant", "prompt", "fixed"])
@torch.no_grad()
def test_fold(pldr, metric):
    model = build(pldr, metric=metric)
    if metric == "fixed":
        for block in model.blocks:
            block.attention.operator.normal_()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = model.fold()
    torch.testing.assert_close(folded(tokens()), model(tokens()), rtol=0, atol=1e-11)
    torch.testing.assert_close(folded.float()(tokens()), model(tokens()).float(), rtol=0, atol=1e-5)
    assert folded.config == replace(model.config, metric="fixed", operator="identity")
    assert not any(
        name.startswith(("network", "power_law"))
        for block in folded.blocks
        for name, _ in block.attention.named_parameters()
    )
    assert metric == "fixed" or sum(p.numel() for p in folded.parameters()) < sum(p.numel() for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.isfinite(p).all() for p in folded.state_dict().values())


@pytest.mark.parametrize("metric", ["sequence", "causal"])
def test_fold_wants_an_operator_where_it_depends_on_the_text(pldr, metric):
    with pytest.raises(ValueError, match=f"{metric}.*depends on the text"):
        build(pldr, metric=metric).fold()


@torch.no_grad()
def test_a_cache_is_causal_whatever_the_metric(pldr):
    model, inputs = build(pldr, metric="sequence"), tokens()
    cache = model.new_cache(2)
    logits = torch.cat([model(part, cache=cache) for part in inputs.split((5, 1, 4, 7), dim=1)], dim=1)
    prompt = model.tensors(inputs[:, :5])
    expected = model(inputs, operator=[prompt[f"layers.{i}.G"] for i in range(2)])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    assert (logits - model(inputs)).abs().max() > 1e-3
    assert (
        cache[0].keys.shape == (2, 2, 32, 12)
        and cache[0].keys.data_ptr() == cache[0].append(*[torch.empty(2, 2, 0, 12)] * 2)[0].data_ptr()
    )


@torch.no_grad()
def test_padding_is_not_attended_to(pldr):
    model, inputs = build(pldr, metric="prompt", pad_token=7), tokens() % 7
    inputs[0, 4] = inputs[1, 9] = 7
    changed = inputs.clone()
    model.tokens_embedding.weight[8] = -model.tokens_embedding.weight[7]
    changed[changed == 7] = 8
    other = build(pldr, metric="prompt")
    other.load_state_dict(model.state_dict())
    real = inputs != 7
    assert (other(inputs) - other(changed))[real].abs().max() > 1e-3
    seen = model(inputs)
    model.config.pad_token = 8
    torch.testing.assert_close(model(changed)[real], seen[real], rtol=0, atol=1e-12)
    model.config.pad_token = 7
    cache = model.new_cache(2)
    parts = torch.cat([model(part, cache=cache) for part in inputs.split((3, 1, 4, 9), dim=1)], dim=1)
    torch.testing.assert_close(parts, seen, rtol=0, atol=1e-12)


def test_what_is_added_to_the_loss_and_recorded(pldr):
    model = build(pldr, metric="sequence", dag_potential=0.3).train()
    logits, extra = model(tokens())
    values = {}
    with torch.no_grad():
        tensors = model.tensors(tokens())
        for name in ("A_LM", "P", "G"):
            X = torch.stack([tensors[f"layers.{i}.{name}"] for i in range(2)])
            values[f"dag_{name}"] = (torch.linalg.matrix_exp(X * X).diagonal(dim1=-2, dim2=-1).sum(-1) / 12).log().abs()
            values[f"norm_{name}"] = X.square().sum((-2, -1)).sqrt()
    assert extra.keys() == values.keys() | {"loss"}
    for (
        name,
        value,
    ) in values.items():  # that of P is of the whole batch, as its regulariser is; the others are those of one sequence
        value = value.mean() if name == "dag_P" else value[:, 0].mean()
        assert extra[name].item() == pytest.approx(value.item(), rel=1e-9) and not extra[name].requires_grad
    assert extra["loss"].item() == pytest.approx(0.3 * values["dag_P"].mean().item(), rel=1e-9)
    assert isinstance(model.eval()(tokens()), torch.Tensor)


def test_the_regularisers_gradient(pldr):
    X = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pldr.module.log_trace_exp, (X,), eps=1e-6, atol=1e-7)
    found = pldr.module.log_trace_exp(X)
    expected = (torch.linalg.matrix_exp(X * X).diagonal(dim1=-2, dim2=-1).sum(-1) / 5).log()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert pldr.module.log_trace_exp(torch.full((1, 2, 2), math.nan)).isnan().all()


@pytest.mark.parametrize("metric, columns", [("prompt", 6), ("causal", 6), ("constant", 2), ("fixed", 0)])
def test_off_the_regulariser_costs_nothing(pldr, metric, columns, monkeypatch):
    calls = []
    own = pldr.module.LogTraceExp.apply
    monkeypatch.setattr(pldr.module.LogTraceExp, "apply", lambda X: calls.append(X.requires_grad) or own(X))
    model = build(pldr, metric=metric, monitor=0).train()
    assert isinstance(model(tokens()), torch.Tensor) and not calls
    model.config.monitor = 1
    output, extra = adapters.split_output(model(tokens()))
    assert len(extra) == columns and len(calls) == bool(columns) and not any(calls)
    if metric == "causal":
        assert model(tokens(length=3))[1]["norm_G"] != extra["norm_G"], "short texts have the prompt's operator only"


@pytest.mark.thorough
def test_regulariser_under_autocast_and_compile(pldr):
    model = build(pldr, metric="causal", dag_operator=0.01, monitor=0).float().train()
    logits, extra = model(tokens())
    compiled, others = torch.compile(model, backend="eager", fullgraph=True)(tokens())
    torch.testing.assert_close(compiled, logits, rtol=0, atol=1e-3)
    torch.testing.assert_close(others["loss"], extra["loss"], rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        model.blocks[0].attention.power_law.register_forward_hook(
            lambda module, inputs, output: (
                [X.dtype == torch.float32 or pytest.fail("not float32") for X in output] and None
            )
        )
        logits, extra = model(tokens())
    (logits.float().logsumexp(-1).mean() + extra["loss"]).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("metric", ["causal", "sequence", "constant"])
@pytest.mark.parametrize("fields", [dict(), V900], ids=["v510", "v900"])
def test_pairing_is_converted_exactly(pldr, metric, fields):
    model = build(pldr, metric=metric, rotary="interleaved", **fields)
    other = pldr.module.paired(model, "half_split")
    torch.testing.assert_close(other(tokens()), model(tokens()), rtol=0, atol=1e-10)
    assert other.config.rotary == "half_split" and not torch.equal(
        other.blocks[0].attention.qkv.weight, model.blocks[0].attention.qkv.weight
    )
    back = pldr.module.paired(other, "interleaved").state_dict()
    assert all(torch.equal(tensor, back[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("fields", [dict(), V900, dict(metric="fixed")], ids=["v510", "v900", "v510g"])
def test_weights_go_out_and_in(pldr, fields, tmp_path):
    model = build(pldr, **fields)
    weights = pldr.module.export_weights(model)
    back = pldr.module.import_weights(weights)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(".operator")}
    assert back.keys() == state.keys() and all(torch.equal(back[name], tensor) for name, tensor in state.items())
    save_file(weights, tmp_path / "weights.safetensors")


def test_weights_that_are_not_whole_are_refused(pldr):
    weights = pldr.module.export_weights(build(pldr))
    with pytest.raises(ValueError, match="mha1.wz.weight"):
        pldr.module.import_weights({**weights, "decoder.dec_layers.0.mha1.wz.weight": torch.ones(1)})
    del weights["decoder.dec_layers.1.mha1.reslayerAs.1.denseAs.0.gluw2.bias"]
    with pytest.raises(
        ValueError, match="dec_layers.1.mha1.reslayerAs.1.denseAs.0.gluw1.bias is there.*gluw2.bias is not"
    ):
        pldr.module.import_weights(weights)
    with pytest.raises(ValueError, match="learned operator"):
        pldr.module.export_weights(build(pldr, metric="constant"))


@pytest.mark.parametrize(
    "variant, fields, expected",
    [
        ("v510", {}, 109_689_362),
        ("v500", {}, 109_689_362),
        ("v510", dict(metric_hidden=180), 109_844_562),
        ("v900", {}, 113_557_952),
        ("v510", dict(n_layer=7, n_head=12, n_embd=768), 104_237_120),
        ("v510g", {}, 105_606_482),
        ("v900", dict(n_layer=3, n_head=17, n_embd=1088), 118_291_502),
        ("causal", {}, 109_689_362),
        ("prompt", {}, 109_689_362),
    ],
)
def test_parameters(pldr, variant, fields, expected):
    assert count(pldr, variant, 32000, **fields) == expected


def count(experiment, variant, vocab_size, **fields):
    with torch.device("meta"):
        return sum(p.numel() for p in experiment.build(experiment.config(variant, vocab_size, **fields)).parameters())


def test_tiny_has_llama2_tinys_parameters(pldr):
    llama2 = contract.load(registry.read_entry(FOLDER.parent / "llama2"))
    assert count(llama2, "tiny", 4096) == 5_310_720 and count(pldr, "tiny", 4096) == 5_311_608
    for variant in ("tiny_sequence", "tiny_prompt", "tiny_constant", "tiny_identity"):
        assert count(pldr, variant, 4096) == pytest.approx(5_310_720, rel=0.01)


def std_or_bound(p):
    return p.std().item() * (math.sqrt(3) if p.abs().max() < 1.8 * p.std() else 1)


@torch.no_grad()
@pytest.mark.parametrize("variant", ["v510", "v500", "causal"])
def test_initial_values(pldr, variant):
    torch.manual_seed(0)
    model = pldr.build(pldr.config(variant, 300, 32, n_layer=1, n_head=4, n_embd=256, n_unit=1))
    attention, d = model.blocks[0].attention, 256
    q, k, v = attention.qkv.weight.chunk(3)
    glu = attention.network.units[0].glus[0]
    assert glu.gate_up.weight.shape == (2 * 170, 64) and model.blocks[0].feed_forward.down.weight.shape == (256, 682)
    for p, fans in (
        (q, 2 * d),
        (k, 2 * d),
        (attention.out.weight, 2 * d),
        (model.head.weight, 300 + d),
        (glu.gate_up.weight, 64 + 170),
        (glu.down.weight, 64 + 170),
        (model.blocks[0].feed_forward.gate_up.weight, 256 + 682),
    ):
        bound = math.sqrt(6 / fans)
        assert 0.99 * bound < p.abs().max() <= bound and p.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    bound = 256**-0.5 if variant == "v510" else math.sqrt(6 / 512)
    assert 0.99 * bound < v.abs().max() <= bound
    biases = attention.qkv.bias.chunk(3)
    assert not biases[0].any() and not biases[1].any() and bool(biases[2].any()) == (variant == "v510")
    std = (4 * 64) ** -0.5 if variant == "v500" else math.sqrt(2 / (64 * (64 + 4)))
    for p in (attention.power_law.weight, attention.power_law.exponent, attention.power_law.coupling):
        assert p.std().item() == pytest.approx(std, rel=0.03)
        assert (p.abs().max() < 2.3 * std) == (variant == "v500"), (
            "Keras cuts off at two standard deviations of the uncut"
        )
    assert not attention.power_law.bias.any() and not attention.power_law.coupling_bias.any()
    embedding = model.tokens_embedding.weight
    assert embedding.abs().max() <= 0.05 if variant == "v500" else embedding.std().item() == pytest.approx(1, rel=0.03)


def test_given_operators(pldr, tmp_path):
    def operator(**fields):
        return torch.stack(
            [block.attention.operator for block in pldr.build(pldr.config("v510g", 97, 8, **SMALL | fields)).blocks]
        )

    assert torch.equal(operator(), torch.eye(12).expand(2, 2, 12, 12))
    uniform, normal = operator(operator="uniform"), operator(operator="normal")
    assert 0 <= uniform.min() and uniform.max() <= 1 and uniform.mean() == pytest.approx(0.5, abs=0.05)
    assert normal.std() == pytest.approx(1, abs=0.1) and not torch.equal(normal[0], normal[1])
    file, G = tmp_path / "dump.safetensors", torch.randn(2, 1, 2, 12, 12)
    save_file({f"layers.{i}.G": G[i] for i in range(2)} | {"layers.0.P": torch.ones(3)}, file)
    assert torch.equal(operator(operator=str(file)), G[:, 0])
    learned = pldr.build(pldr.config("constant", 97, 8, **SMALL | dict(operator=str(file))))
    assert (
        torch.equal(learned.blocks[1].attention.operator, G[1, 0])
        and learned.blocks[1].attention.operator.requires_grad
    )
    plain = pldr.build(pldr.config("v510g", 97, 8, **SMALL))
    assert "blocks.0.attention.operator" in plain.state_dict()


BAD_FILES = {
    "nothing": (None, "can't be read: No such file"),
    "text": (b"what is this", "can't be used|has no layers.0.G"),
    "empty": (b"", "can't be used|has no"),
    "cut": ("cut", "can't be used"),
    "other names": ({"G": torch.ones(2, 12, 12)}, "has no layers.0.G to layers.1.G"),
    "other shape": (
        {f"layers.{i}.G": torch.ones(3, 12, 12) for i in range(2)},
        r"must be float32 of shape \(2, 12, 12\)",
    ),
    "other type": ({f"layers.{i}.G": torch.ones(2, 12, 12).double() for i in range(2)}, "must be float32"),
    "no object": (len(json.dumps([1])).to_bytes(8, "little") + b"[1]", "has no layers.0.G"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_operator_files_that_are_refused(pldr, tmp_path, kind):
    content, words = BAD_FILES[kind]
    file = tmp_path / "operator.safetensors"
    if isinstance(content, dict):
        save_file(content, file)
    elif content == "cut":
        save_file({f"layers.{i}.G": torch.ones(2, 12, 12) for i in range(2)}, file)
        file.write_bytes(file.read_bytes()[:-100])
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=f"operator.safetensors.*({words})"):
        pldr.build(pldr.config("v510g", 97, 8, **SMALL | dict(operator=str(file))))


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(metric="sequenz"), "metric is one of causal, prompt"),
        (dict(rotary="both"), "rotary is one of"),
        (dict(n_head=5), "n_embd 24.*n_head 5"),
        (dict(prompt_token=97), "prompt_token 97 is not in the vocabulary of 97"),
        (dict(pad_token=-2), "pad_token"),
        (dict(chunk=0), "chunk"),
    ],
)
def test_settings_that_are_refused(pldr, fields, words):
    with pytest.raises(ValueError, match=words):
        pldr.Model(pldr.config("causal", 97, 8, **SMALL | fields))


@pytest.mark.parametrize("variant", ["causal", "v510"])
def test_its_cost_is_known_without_running_it(pldr, variant):
    from lmplay.model.cost import activation_bytes, cost_of

    config = pldr.config(variant, 97, 32, **SMALL | dict(dag_operator=0.1))
    cost = cost_of(pldr.bound(config), config)
    assert (
        cost.trainable == cost.parameters == count(pldr, variant, 97, max_len=32, **SMALL) and cost.flops_per_token > 0
    )
    assert activation_bytes(pldr.bound(config), config, amp=True) > 0


def test_no_tensor_of_scores_is_held(pldr):
    """What autograd keeps for the backward pass has no (T, T) tensor; with the scores of attention written out it
    would.
    """
    from torch.autograd.graph import saved_tensors_hooks

    model, shapes = build(pldr, metric="causal").train(), set()
    with saved_tensors_hooks(lambda x: shapes.add(x.shape[-2:]) or x, lambda x: x):
        logits = model(tokens(length=31))[0]
    F.cross_entropy(logits.flatten(0, 1), tokens(length=31).flatten()).backward()
    assert shapes and torch.Size((31, 31)) not in shapes
