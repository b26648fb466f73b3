import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lmplay import contract, registry

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "gpt2ish"
SMALL = dict(vocab_size=97, max_len=32, n_layer=3, n_head=4, n_embd=32)


@pytest.fixture(scope="module")
def gpt2ish():
    return contract.load(registry.read_entry(FOLDER))


def build(gpt2ish, variant="6l", seed=0, **fields):
    torch.manual_seed(seed)
    return gpt2ish.build(gpt2ish.config(variant, **{**SMALL, **fields})).eval()


def tokens(batch=3, length=SMALL["max_len"]):
    return torch.randint(SMALL["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(0))


def hugging_face(activation, tied, **fields):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=97,
            n_positions=32,
            n_layer=3,
            n_head=4,
            n_embd=32,
            activation_function=activation,
            tie_word_embeddings=tied,
            initializer_range=0.2,
            **fields,
        )
    ).eval()
    for name, p in model.named_parameters():  # theirs start at 0 and 1, which would hide one taken for another
        if p.ndim == 1:
            torch.nn.init.normal_(p, 1.0 if "ln" in name and name.endswith("weight") else 0.0, 0.3)
    return model


@pytest.mark.parametrize(
    "variant, parameters",
    [
        ("6l", 120_560_209),
        ("12l", 163_087_441),
        ("med", 406_336_593),
        ("large", 838_409_297),
        ("small_deep", 47_277_073),
        ("std02", 120_560_209),
        ("std1", 120_560_209),
        ("fast_embedding", 120_560_209),
        ("historical", 120_560_209),
        ("gpt2", 124_439_808),
    ],
)
def test_parameters(gpt2ish, variant, parameters):
    with torch.device("meta"):
        model = gpt2ish.build(gpt2ish.config(variant, 50257))
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_default_is_6l():
    assert registry.find("gpt2ish")[1] == "6l"


@torch.no_grad()
def test_initial_values(gpt2ish):
    model = build(gpt2ish, n_embd=256, n_layer=8, vocab_size=1000)
    for name, p in model.named_parameters():
        if p.ndim == 1:
            assert (p == (1 if "norm.weight" in name else 0)).all(), name
        else:
            writes = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
            assert p.std().item() == pytest.approx(0.02 / math.sqrt(16) if writes else 0.02, rel=0.05), name
            assert abs(p.mean()) < 0.002, name


@torch.no_grad()
def test_historical_initial_values(gpt2ish):
    model = build(gpt2ish, "historical", n_embd=256, vocab_size=1000)
    assert model.tokens_embedding.weight.std().item() == pytest.approx(1, rel=0.02)
    assert not model.positions_embedding.weight.any()
    bound = 256**-0.5
    for p in (
        model.head.weight,
        model.head.bias,
        model.blocks[0].attention.out.weight,
        model.blocks[0].attention.qkv.bias,
    ):
        assert p.std().item() == pytest.approx(bound / 3**0.5, rel=0.1) and p.abs().max() <= bound
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}


@pytest.mark.parametrize(
    "variant, std", [("6l", 0.02), ("tiny_std02", 0.2), ("std02", 0.2), ("tiny_std1", 1), ("std1", 1)]
)
@torch.no_grad()
def test_the_token_embedding_alone_starts_larger(gpt2ish, variant, std):
    model, plain = build(gpt2ish, variant), build(gpt2ish)
    for name, p in model.named_parameters():
        scale = std / 0.02 if name == "tokens_embedding.weight" else 1
        torch.testing.assert_close(p, plain.get_parameter(name) * scale, msg=name)


def test_the_token_embedding_alone_learns_faster(gpt2ish):
    from lmplay.train.optimizers import make_optimizers, parameter_groups

    settings = dict(lr=1e-3, weight_decay=0.1)
    names = {}
    for variant in ("tiny", "tiny_fast_embedding", "fast_embedding"):
        model = build(gpt2ish, variant)
        named = {id(p): name for name, p in model.named_parameters()}
        names[variant] = {
            named[id(p)]: (group.get("lr", settings["lr"]), group["weight_decay"])
            for group in parameter_groups(model, **settings)
            for p in group["params"]
        }
    for variant in ("tiny_fast_embedding", "fast_embedding"):
        assert names[variant] == names["tiny"] | {"tokens_embedding.weight": (1e-2, 0.0)}

    moved = {}
    for variant in ("tiny", "tiny_fast_embedding"):
        model = build(gpt2ish, variant)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        model(tokens()).logsumexp(-1).sum().backward()
        for optimizer in make_optimizers(model, "adamw", betas=(0.9, 0.95), eps=1e-8, **settings):
            optimizer.step()
        moved[variant] = {name: (p.detach() - before[name]).abs().max().item() for name, p in model.named_parameters()}
    for name, step in moved["tiny"].items():
        factor = 10 if name == "tokens_embedding.weight" else 1
        assert moved["tiny_fast_embedding"][name] == pytest.approx(factor * step, rel=1e-3), name


@torch.no_grad()
def test_first_loss_at_full_width(gpt2ish):
    for variant in ("tiny", "gpt2"):
        torch.manual_seed(0)
        model = gpt2ish.build(gpt2ish.config(variant, 4096, 64, n_layer=4))
        window = torch.randint(4096, (2, 65))
        loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        assert loss.item() == pytest.approx(math.log(4096), rel=0.03)


def test_tied_head_is_the_embedding(gpt2ish):
    model = build(gpt2ish, "gpt2", n_layer=3)
    assert model.head.weight is model.tokens_embedding.weight and model.head.bias is None
    assert build(gpt2ish).head.weight is not build(gpt2ish).tokens_embedding.weight


@pytest.mark.parametrize("activation, tied", [("gelu_new", True), ("gelu", False)])
@torch.no_grad()
def test_imports_hugging_face_weights(gpt2ish, activation, tied):
    theirs = hugging_face(activation, tied)
    ours = build(gpt2ish, tied=tied, head_bias=False, tanh_gelu=activation == "gelu_new")
    ours.load_state_dict(gpt2ish.hook("import_weights")(theirs.state_dict()))
    torch.testing.assert_close(ours(tokens()), theirs(tokens()).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_imports_what_the_hub_holds(gpt2ish):
    """Checkpoints as published: no prefix, no head (it is tied), the causal masks of old versions."""
    theirs = hugging_face("gelu_new", True)
    published = theirs.transformer.state_dict()
    published["h.0.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
    published["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    ours = build(gpt2ish, "gpt2", n_layer=3)
    ours.load_state_dict(gpt2ish.hook("import_weights")(published))
    torch.testing.assert_close(ours(tokens()), theirs(tokens()).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("activation, tied", [("gelu_new", True), ("gelu", False)])
@torch.no_grad()
def test_exports_hugging_face_weights(gpt2ish, activation, tied, tmp_path):
    from safetensors.torch import load_file, save_file

    ours = build(gpt2ish, tied=tied, head_bias=False, tanh_gelu=activation == "gelu_new")
    theirs = hugging_face(activation, tied)
    for p in ours.parameters():
        p.add_(torch.randn_like(p) * 0.2)
    weights = gpt2ish.hook("export_weights")(ours)
    theirs.load_state_dict(weights, strict=True)
    torch.testing.assert_close(ours(tokens()), theirs(tokens()).logits, rtol=0, atol=1e-5)
    back = gpt2ish.hook("import_weights")(weights)
    assert back.keys() == ours.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.state_dict().items())
    if tied:  # one tensor under two names, which a file holds once
        del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    ours.load_state_dict(gpt2ish.hook("import_weights")(load_file(tmp_path / "model.safetensors")))


@torch.no_grad()
def test_another_width_and_dropout_by_hugging_face_names(gpt2ish):
    """The config.json that is written has the width and each dropout; a Config without these settings has defaults."""
    from lmplay.convert.huggingface import _gpt2_config

    fields = dict(tied=True, head_bias=False, mlp_ratio=2.6667, dropout=0.1, attention_dropout=0.3)
    ours = build(gpt2ish, **fields)
    content = _gpt2_config(ours.config)
    assert content["n_inner"] == 85 and ours.blocks[0].feed_forward.up.out_features == 85
    assert [content[name] for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")] == [0.1, 0.1, 0.3]
    for p in ours.parameters():
        p.add_(torch.randn_like(p) * 0.2)
    theirs = hugging_face("gelu", True, n_inner=content["n_inner"])
    theirs.load_state_dict(gpt2ish.hook("export_weights")(ours), strict=True)
    torch.testing.assert_close(ours(tokens()), theirs(tokens()).logits, rtol=0, atol=1e-5)
    separate = _gpt2_config(gpt2ish.config("6l", 97, embedding_dropout=0.0, dropout=0.1))
    assert separate["embd_pdrop"] == 0.0 and separate["resid_pdrop"] == 0.1
    younger = {"mlp_ratio", "attention_dropout", "embedding_dropout"}
    kept = {name: value for name, value in contract.config_values(ours.config).items() if name not in younger}
    old = dataclasses.make_dataclass("Config", kept)(**kept)
    content = _gpt2_config(old)
    assert (content["n_inner"], content["embd_pdrop"], content["attn_pdrop"]) == (128, 0.1, 0.0)


def test_other_weights_are_refused(gpt2ish):
    with pytest.raises(ValueError, match="not the weights of a GPT-2: it has no model.layers.0.mlp.up_proj.weight"):
        gpt2ish.hook("import_weights")({"model.layers.0.mlp.up_proj.weight": torch.ones(2, 2)})


def test_a_head_bias_is_not_exported(gpt2ish):
    with pytest.raises(ValueError, match="head_bias=false"):
        gpt2ish.hook("export_weights")(build(gpt2ish))


def test_heads_must_divide_the_width(gpt2ish):
    with pytest.raises(ValueError, match="n_embd 32 .* n_head 5"):
        gpt2ish.Model(gpt2ish.config("6l", **{**SMALL, "n_head": 5}))


def test_dropout_acts_in_training_only(gpt2ish):
    model = build(gpt2ish, dropout=0.5)
    expected = build(gpt2ish)(tokens())
    assert torch.equal(model(tokens()), expected)
    acted = []
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    for module in dropouts:
        module.register_forward_hook(lambda module, inputs, output: acted.append((output == 0).float().mean().item()))
    model.train()
    model(tokens())
    assert len(acted) == len(dropouts) == 1 + 2 * SMALL["n_layer"]  # embeddings, and both branches of each block
    assert acted == pytest.approx([0.5] * len(acted), abs=0.1)


def test_compiles_without_graph_breaks(gpt2ish):
    model = build(gpt2ish)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens()), model(tokens()))


@torch.no_grad()
def test_cache_takes_the_dtype_of_autocast(gpt2ish):
    model = build(gpt2ish)
    assert model.new_cache(2)[0].keys.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        cache = model.new_cache(3)
        parts = [model(part, cache=cache) for part in tokens().split((20, 1, 11), dim=1)]
        full = model(tokens())
    assert cache[0].keys.dtype == torch.bfloat16
    torch.testing.assert_close(torch.cat(parts, dim=1), full, rtol=0, atol=0.02)
