"""pldr as published (metric sequence) against the reference's own numbers (tests/golden/pldr)."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lmplay import contract, registry

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "pldr"
GOLDEN = FOLDER.parents[1] / "tests" / "golden" / "pldr"
SIZES = dict(n_layer=2, n_head=2, n_embd=32, n_hidden=85, metric_hidden=20, n_unit=3, pad_token=0)
VARIANTS = ("v510", "v500")


@pytest.fixture(scope="module")
def pldr():
    return contract.load(registry.read_entry(FOLDER))


@pytest.fixture(scope="module")
def golden():
    files = {name: np.load(GOLDEN / f"{name}.npz") for name in (*VARIANTS, "dag_stress")}
    return {name: {key: file[key] for key in file.files} for name, file in files.items()}


def published(golden, variant):
    return {
        name.removeprefix("weights/"): torch.tensor(x)
        for name, x in golden[variant].items()
        if name.startswith("weights/")
    }


def build(pldr, golden, variant, dtype=torch.float64, **fields):
    model = pldr.build(pldr.config(variant, 97, 64, **SIZES | fields)).to(dtype)
    model.load_state_dict(pldr.module.import_weights(published(golden, variant)))
    return model


def batch(golden, pad=False):
    tokens = torch.tensor(golden["v510"]["tokens_pad" if pad else "tokens"])
    return tokens[:, :-1], tokens[:, 1:]


def loss_of(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=0)


def close(found, expected, tolerance):
    torch.testing.assert_close(found.detach().double(), torch.tensor(expected).double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("pad", ["", "pad/"])
def test_logits_deductive_outputs_and_loss(pldr, golden, variant, pad):
    numbers, model = golden[variant], build(pldr, golden, variant).eval()
    inputs, targets = batch(golden, bool(pad))
    logits = model(inputs)
    close(logits, numbers[pad + "logits"], 1e-9)
    close(loss_of(logits, targets), numbers[pad + "loss"], 1e-9)
    tensors = model.tensors(inputs, scores=True)
    assert set(tensors) == {f"layers.{i}.{name}" for i in range(2) for name in ("A_LM", "P", "G", "S")}
    for i in range(2):
        for ours, theirs in {"A_LM": "A_LM", "P": "P", "G": "G_LM", "S": "scores"}.items():
            if f"{pad}L{i}.{theirs}" in numbers:
                close(tensors[f"layers.{i}.{ours}"], numbers[f"{pad}L{i}.{theirs}"], 1e-9)


def test_every_step_of_the_way(pldr, golden, monkeypatch):
    numbers, model = golden["v510"], build(pldr, golden, "v510").eval()
    steps = {}
    names = {"emb_ln": "embedding_norm", "dec_out": "blocks.1.feed_forward_norm"}
    for i in range(2):
        names |= {
            f"L{i}.A0": f"blocks.{i}.attention.network.norm",
            f"L{i}.A": f"blocks.{i}.attention.network",
            f"L{i}.attn_out": f"blocks.{i}.attention.out",
            f"L{i}.out1": f"blocks.{i}.attention_norm",
            f"L{i}.out2": f"blocks.{i}.feed_forward_norm",
        }
        model.get_submodule(f"blocks.{i}.attention.network").register_forward_pre_hook(
            lambda module, inputs, i=i: steps.update({f"L{i}.density": inputs[0]})
        )
        model.get_submodule(f"blocks.{i}.attention.out").register_forward_pre_hook(
            lambda module, inputs, i=i: steps.update({f"L{i}.Hnext": inputs[0].view(3, 24, 2, 16).transpose(1, 2)})
        )
    for name, path in names.items():
        model.get_submodule(path).register_forward_hook(
            lambda module, inputs, output, name=name: steps.update({name: output})
        )
    turned, values = [], []
    rotate, attention = pldr.module.rotate, F.scaled_dot_product_attention
    monkeypatch.setattr(pldr.module, "rotate", lambda *arguments: turned.append(rotate(*arguments)) or turned[-1])
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v, **named: values.append(v) or attention(q, k, v, **named)
    )
    model(batch(golden)[0])
    for i in range(2):
        q, k = turned[i].chunk(2, dim=2)
        steps |= {f"L{i}.q_rope": q.transpose(1, 2), f"L{i}.k_rope": k, f"L{i}.v": values[i].transpose(1, 2)}
    assert len(steps) == 22
    for name, step in steps.items():
        close(step, numbers[name], 1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["ce", "ce_pad", "dag_a", "dag_b", "v510G"])
def test_gradients_of_every_parameter(pldr, golden, variant, kind):
    numbers, fields = golden[variant], {}
    if f"checks/{kind}" not in numbers:
        pytest.skip("the reference's v500 has no given operator")
    if kind.startswith("dag"):
        fields = dict(zip(("dag_metric", "dag_potential", "dag_operator"), numbers[f"{kind}/coeffs"].tolist()))
    model, operator = build(pldr, golden, variant, **fields).train(), None
    if kind == "v510G":
        operator = torch.tensor(numbers["Ginit"])
    inputs, targets = batch(golden, kind == "ce_pad")
    logits, extra = model(inputs, operator=operator)
    total = loss_of(logits, targets) + extra.get("loss", 0)
    total.backward()
    if kind.startswith("dag"):
        close(total, numbers[f"{kind}/total"], 1e-9)
        for name in ("A_LM", "P", "G"):
            close(extra[f"dag_{name}"], numbers[f"{kind}/dag_{name}"], 1e-9)
    gradients = pldr.module.export_weights(Gradients(model))
    assert sorted(published(golden, variant)) == numbers["gradient_names"].tolist()
    for name, expected in zip(numbers["gradient_names"], numbers[f"checks/{kind}"]):
        if np.isnan(expected).any():
            assert kind == "v510G" and not gradients[name].any(), name
            continue
        rng, gradient = np.random.default_rng(0), gradients[name].numpy().ravel()
        found = [gradient @ rng.standard_normal(gradient.size) for _ in range(3)]
        assert found == pytest.approx(expected, rel=1e-10, abs=1e-7), name
        if kind == "ce" and variant == "v510":
            close(gradients[name], numbers[f"gradients/{name}"], 1e-8)


class Gradients:
    """A model's gradients where export_weights looks for weights."""

    def __init__(self, model):
        self.config, self.model = model.config, model

    def state_dict(self):
        return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in self.model.named_parameters()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32(pldr, golden, variant):
    numbers, model = golden[variant], build(pldr, golden, variant, torch.float32).eval()
    inputs, targets = batch(golden)
    loss = loss_of(model(inputs), targets)
    close(loss, numbers["loss"], 2e-5)
    for i in range(2):
        for ours, theirs in {"P": "P", "G": "G_LM"}.items():
            expected = numbers[f"L{i}.{theirs}"]
            close(model.tensors(inputs)[f"layers.{i}.{ours}"], expected, 5e-4 * np.abs(expected).max())
    if variant == "v510":
        loss.backward()
        for name, gradient in pldr.module.export_weights(Gradients(model)).items():
            expected = numbers[f"gradients/{name}"]
            close(gradient, expected, 2e-2 * np.abs(expected).max() + 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["none", "G", "KV", "KVG", "Ginit_KV", "Ginit_nokv"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_greedy_tokens_and_their_logits(pldr, golden, mode, dtype):
    """none: everything computed anew; G: operators of the prompt kept; KV and KVG: keys and values, too; Ginit:
    operators given.
    """
    numbers, model = golden["v510"], build(pldr, golden, "v510", dtype).eval()
    text = torch.tensor(numbers[f"gen/{mode}/tokens"])[None, :8]
    given = torch.tensor(numbers["Ginit"]).to(dtype) if mode.startswith("Ginit") else None
    cache = model.new_cache(1) if "KV" in mode else None
    new, logits = text, []
    for _ in range(16):
        last = model(text if cache is None else new, cache=cache, operator=given)[:, -1]
        if mode == "G" and given is None:
            tensors = model.tensors(text)
            given = [tensors[f"layers.{i}.G"] for i in range(2)]
        logits.append(last[0])
        new = last.argmax(-1, keepdim=True)
        text = torch.cat([text, new], dim=1)
    assert text[0].tolist() == numbers[f"gen/{mode}/tokens"].tolist()
    if dtype == torch.float64:
        close(torch.stack(logits), numbers[f"gen/{mode}/step_logits"], 1e-9)


def test_greedy_tokens_of_v500(pldr, golden):
    model, text = build(pldr, golden, "v500").eval(), torch.tensor(golden["v500"]["gen/none/tokens"])
    with torch.no_grad():
        for end in range(8, 24):
            assert model(text[None, :end])[0, -1].argmax() == text[end]


@torch.no_grad()
def test_given_operators(pldr, golden):
    numbers, model = golden["v510"], build(pldr, golden, "v510").eval()
    inputs, targets = batch(golden)
    folded = model.fold(torch.tensor(numbers["Ginit"]))
    close(folded(inputs), numbers["v510G/logits"], 1e-9)
    close(loss_of(folded(inputs), targets), numbers["v510G/loss"], 1e-9)
    surviving = {
        name: x
        for name, x in published(golden, "v510").items()
        if not any(part in name for part in ("reslayerAs", "plgatt_layer", "mha1.layernorm1"))
    }
    given = pldr.build(pldr.config("v510g", 97, 64, **SIZES)).double().eval()
    missing, unexpected = given.load_state_dict(pldr.module.import_weights(surviving), strict=False)
    assert missing == [f"blocks.{i}.attention.operator" for i in range(2)] and not unexpected
    close(given(inputs), numbers["v510G_identity/logits"], 1e-9)
    close(loss_of(given(inputs), targets), numbers["v510G_identity/loss"], 1e-9)


def test_first_updates_of_v510(pldr, golden):
    numbers, model = golden["v510"], build(pldr, golden, "v510", monitor=0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1)
    for i in range(6):
        tokens = torch.tensor(numbers["train/batches"][i])
        optimizer.param_groups[0]["lr"] = numbers["train/lr"][i]
        optimizer.zero_grad()
        loss = loss_of(model(tokens[:, :-1]), tokens[:, 1:])
        assert loss.item() == pytest.approx(numbers["train/loss"][i], abs=1e-6)
        loss.backward()
        torch.nn.utils.clip_grad_value_(model.parameters(), 1.0)
        optimizer.step()


def test_first_updates_of_v500(pldr, golden):
    """Keras' AdamW adds eps before it corrects the bias, and clips the gradient of each token's occurrence."""
    numbers, model = golden["v500"], build(pldr, golden, "v500", monitor=0).train()
    model.tokens_embedding.register_forward_hook(
        lambda module, inputs, output: output.register_hook(lambda g: g.clamp(-1, 1)) and None
    )
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in model.named_parameters()}
    for t in range(1, 7):
        tokens, lr = torch.tensor(numbers["train/batches"][t - 1]), numbers["train/lr"][t - 1]
        loss = loss_of(model(tokens[:, :-1]), tokens[:, 1:])
        assert loss.item() == pytest.approx(numbers["train/loss"][t - 1], abs=1e-6)
        loss.backward()
        with torch.no_grad():
            for name, p in model.named_parameters():
                g = p.grad if name == "tokens_embedding.weight" else p.grad.clamp(-1, 1)
                m, v = moments[name]
                m.lerp_(g, 0.1)
                v.lerp_(g * g, 0.05)
                p -= lr * 0.1 * p
                p -= lr * (1 - 0.95**t) ** 0.5 / (1 - 0.9**t) * m / (v.sqrt() + 1e-5)
                p.grad = None


@pytest.mark.parametrize("dtype, value, slope", [(torch.float64, 1e-13, 1e-11), (torch.float32, 1e-6, 1e-6)])
def test_regulariser_of_hard_matrices(pldr, golden, dtype, value, slope):
    """Spectral radii from 4e-4, and none, to 800, where exp overflows in float64, too."""
    X = torch.tensor(golden["dag_stress"]["X"], dtype=dtype, requires_grad=True)
    found = pldr.module.log_trace_exp(X)
    expected = torch.tensor(golden["dag_stress"]["log_trace_exp"])
    torch.testing.assert_close(found.double(), expected, rtol=value, atol=1e-12 if dtype == torch.float64 else 4e-6)
    found.sum().backward()
    for gradient, reference in zip(X.grad, golden["dag_stress"]["gradient"]):
        close(gradient, reference, slope * max(np.abs(reference).max(), 1e-3))
