import math
from pathlib import Path

import pytest
import torch

from lmplay import contract, registry

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "llama2"
SMALL = dict(vocab_size=97, max_len=32, n_layer=3, n_head=4, n_embd=48, hidden_multiple=8)


@pytest.fixture(scope="module")
def llama2():
    return contract.load(registry.read_entry(FOLDER))


def build(llama2, variant="6l", **fields):
    torch.manual_seed(0)
    return llama2.build(llama2.config(variant, **{**SMALL, **fields})).eval()


def tokens(batch=3, length=SMALL["max_len"]):
    return torch.randint(SMALL["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(0))


def hugging_face(n_kv_head, tied=False):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=97,
            max_position_embeddings=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=n_kv_head,
            hidden_size=48,
            intermediate_size=128,
            rms_norm_eps=1e-5,
            initializer_range=0.1,
            tie_word_embeddings=tied,
        )
    ).eval()
    for p in model.parameters():  # norms start at 1, which would hide one taken for another
        if p.ndim == 1:
            torch.nn.init.normal_(p, 1.0, 0.3)
    return model


@pytest.mark.parametrize(
    "variant, fields, parameters",
    [
        ("tinystories_12m", {}, 12_539_200),
        ("mpacl_12m", {}, 12_597_504),
        ("mpacl_12m", {"n_layer": 8}, 24_142_080),
        ("mpacl_12m", {"n_layer": 12}, 35_686_656),
    ],
)
def test_parameters(llama2, variant, fields, parameters):
    with torch.device("meta"):
        model = llama2.build(llama2.config(variant, 4096, **fields))
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("variant", ["6l", "12l"])
def test_parameters_by_formula(llama2, variant):
    with torch.device("meta"):
        model = llama2.build(llama2.config(variant, 50257))
    V, L, d, hidden = 50257, {"6l": 6, "12l": 12}[variant], 768, 2048
    assert sum(p.numel() for p in model.parameters()) == 2 * V * d + d + L * (4 * d * d + 3 * d * hidden + 2 * d)


def test_tiny_matches_gpt2ish_tiny(llama2):
    gpt2ish = contract.load(registry.read_entry(FOLDER.parent / "gpt2ish"))
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in e.build(e.config("tiny", 4096)).parameters()) for e in (llama2, gpt2ish)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.005)


@torch.no_grad()
def test_initial_values(llama2):
    model = build(llama2, n_embd=256, n_layer=8, vocab_size=1000)
    for name, p in model.named_parameters():
        if p.ndim == 1:
            assert (p == 1).all(), name
        else:
            writes = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
            assert p.std().item() == pytest.approx(0.02 / math.sqrt(16) if writes else 0.02, rel=0.05), name
    assert not any(name.endswith("bias") for name, _ in model.named_parameters())


@pytest.mark.parametrize("n_kv_head, tied", [(4, False), (2, False), (1, False), (4, True)])
@torch.no_grad()
def test_imports_hugging_face_weights(llama2, n_kv_head, tied):
    theirs = hugging_face(n_kv_head, tied)
    ours = build(llama2, n_kv_head=n_kv_head, tied=tied)
    ours.load_state_dict(llama2.hook("import_weights")(theirs.state_dict()))
    torch.testing.assert_close(ours(tokens()), theirs(tokens()).logits, rtol=0, atol=1e-5)
    published = {**theirs.model.state_dict(), "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}
    if not tied:
        published["lm_head.weight"] = theirs.lm_head.weight
    ours = build(llama2, n_kv_head=n_kv_head, tied=tied)
    ours.load_state_dict(llama2.hook("import_weights")(published))
    torch.testing.assert_close(ours(tokens()), theirs(tokens()).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_kv_head", [0, 2])
@torch.no_grad()
def test_exports_hugging_face_weights(llama2, n_kv_head, tmp_path):
    from safetensors.torch import save_file

    ours, theirs = build(llama2, n_kv_head=n_kv_head), hugging_face(n_kv_head or 4)
    for p in ours.parameters():
        p.add_(torch.randn_like(p) * 0.2)
    weights = llama2.hook("export_weights")(ours)
    theirs.load_state_dict(weights, strict=True)
    torch.testing.assert_close(ours(tokens()), theirs(tokens()).logits, rtol=0, atol=1e-5)
    back = llama2.hook("import_weights")(weights)
    assert back.keys() == ours.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.state_dict().items())
    save_file(weights, tmp_path / "model.safetensors")


def test_weights_that_are_no_llama_are_refused(llama2):
    weights = llama2.hook("export_weights")(build(llama2))
    with pytest.raises(ValueError, match="self_attn.q_norm"):
        llama2.hook("import_weights")({**weights, "model.layers.0.self_attn.q_norm.weight": torch.ones(12)})
    with pytest.raises(ValueError, match="self_attn.(q|v)_proj"):
        del weights["model.layers.2.self_attn.k_proj.weight"]
        llama2.hook("import_weights")(weights)
    with pytest.raises(ValueError, match="silu_sum"):
        llama2.hook("export_weights")(build(llama2, "mpacl_12m", n_layer=3))


@torch.no_grad()
def test_mpacl_by_its_formulas(llama2):
    """The whole historical model again, written out in float64 from its description."""
    model = build(llama2, "mpacl_12m").double()
    for p in model.parameters():
        p.add_(torch.randn_like(p) * 0.1)
    w, d, H, T, V = model.state_dict(), 48, 4, 32, 97
    h = 4 * d
    causal = torch.ones(T, T, dtype=torch.bool).tril()

    def norm(x, g):
        return math.sqrt(d) * g * x / ((x * x).sum(-1, keepdim=True).sqrt() + 1.19e-7)

    def turned(x):  # (T, width): pairs (i, i + width/2) as complex numbers, times e^{i position angle}
        half = x.shape[-1] // 2
        angles = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        z = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([z.real, z.imag], -1)

    for sequence in tokens():
        x = w["tokens_embedding.weight"][sequence]
        for i in range(3):
            block = {name.removeprefix(f"blocks.{i}."): p for name, p in w.items() if name.startswith(f"blocks.{i}.")}
            q, k, v = (norm(x, block["attention_norm.weight"]) @ block["attention.qkv.weight"].T).split(d, -1)
            heads = []
            for a in range(0, d, d // H):
                part = slice(a, a + d // H)
                scores = (turned(q[:, part]) @ turned(k[:, part]).T / math.sqrt(d)).masked_fill(~causal, -math.inf)
                heads.append(scores.softmax(-1) @ v[:, part])
            x = x + torch.cat(heads, -1) @ block["attention.out.weight"].T
            y = norm(x, block["feed_forward_norm.weight"]) @ block["feed_forward.up.weight"].T
            y = y @ block["feed_forward.split.weight"].T + block["feed_forward.split.bias"]
            y = y[:, :h] * y[:, :h].sigmoid() + y[:, h:]
            x = x + y @ block["feed_forward.down.weight"].T
        expected = norm(x, w["norm.weight"]) @ w["tokens_embedding.weight"].T + w["head.bias"]
        assert expected.shape == (T, V)
        torch.testing.assert_close(model(sequence[None])[0], expected, rtol=0, atol=1e-4)
    assert model.dropout.p == 0.1 and sum(isinstance(m, torch.nn.Dropout) for m in model.modules()) == 1


def test_rotations_stay_float32_under_autocast(llama2):
    x = torch.randn(1, 4, 2, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        cos, sin = llama2.module.rotation(1000, 1004, 64, 10000.0, "cpu")
        turned = llama2.module.rotate(x, cos, sin)
    assert cos.dtype == sin.dtype == torch.float32 and turned.dtype == torch.bfloat16
    angles = torch.arange(1000, 1004)[:, None, None] * 10000.0 ** (-torch.arange(32, dtype=torch.float64) / 32)
    z = torch.complex(*x.double().chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat([z.real, z.imag], -1)
    torch.testing.assert_close(turned.double(), expected, rtol=2**-8, atol=1e-3)  # the rounding of the result alone


@torch.no_grad()
def test_scores_depend_on_distance_only(llama2):
    q, k = torch.randn(2, 1, 1, 1, 64, generator=torch.Generator().manual_seed(0))

    def at(x, position):
        return llama2.module.rotate(x, *llama2.module.rotation(position, position + 1, 64, 10000.0, "cpu"))

    score = [(at(q, p + 7) * at(k, p)).sum().item() for p in (0, 3, 500)]
    assert score == pytest.approx([score[0]] * 3, abs=1e-3)
    assert (at(q, 8) * at(k, 0)).sum().item() != pytest.approx(score[0], abs=1e-2)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"n_head": 5}, "n_embd 48 .* n_head 5"),
        ({"n_head": 16}, "even multiple"),
        ({"n_kv_head": 3}, "n_head 4 .* n_kv_head 3"),
    ],
)
def test_sizes_must_divide(llama2, fields, message):
    with pytest.raises(ValueError, match=message):
        llama2.Model(llama2.config("6l", **{**SMALL, **fields}))


@torch.no_grad()
def test_cache_of_grouped_queries(llama2):
    model = build(llama2, n_kv_head=2)
    cache = model.new_cache(3)
    assert cache[0].keys.shape == (3, 2, 32, 12)
    logits = torch.cat([model(part, cache=cache) for part in tokens().split((5, 1, 10, 16), dim=1)], dim=1)
    torch.testing.assert_close(logits, model(tokens()), rtol=0, atol=1e-5)


def test_compiles_without_graph_breaks(llama2):
    model = build(llama2)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(tokens()), model(tokens()))
