"""gpt2ish with the weights of the published "Arrows of Time" GPT computes the same, forwards and backwards alike."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lmplay import contract, registry

ROOT = Path(__file__).resolve().parents[2]
NAMES = {
    "token_embedder": "tokens_embedding",
    "position_embedder": "positions_embedding",
    "ln_f": "norm",
    "ln_1": "attention_norm",
    "ln_2": "feed_forward_norm",
    "attn.attn.in_proj": "attention.qkv",
    "attn.attn.out_proj": "attention.out",
    "mlp.c_fc": "feed_forward.up",
    "mlp.c_proj": "feed_forward.down",
}


def ours(name: str) -> str | None:
    """Our name of a parameter of theirs; None for their mask."""
    if name == "lm_head.weight":
        return "head.weight"
    name = name.removeprefix("transformer.").replace("in_proj_", "in_proj.")
    layer, name = (f"blocks.{name.split('.')[1]}.", name.split(".", 2)[2]) if name.startswith("h.") else ("", name)
    module, _, kind = name.rpartition(".")
    return f"{layer}{NAMES[module]}.{kind}" if module in NAMES else None


@pytest.fixture(scope="module")
def golden():
    return np.load(ROOT / "tests/golden/arrows/gpt_tiny.npz")


def build(name: str, golden, **fields):
    experiment = contract.load(registry.read_entry(ROOT / "experiments" / name))
    config = experiment.config("tiny", 37, 16, n_layer=2, n_head=3, n_embd=24, head_bias=False, **fields)
    model = experiment.build(config).double().eval()
    weights = {
        ours(key.removeprefix("param/")): torch.from_numpy(golden[key]).double()
        for key in golden
        if key.startswith("param/")
    }
    model.load_state_dict({key: value for key, value in weights.items() if key})
    return experiment.bound(config), model


@pytest.mark.parametrize(
    "name, fields", [("gpt2ish", {}), ("reverse_time", {}), ("permute", {"order": "end_in"})], ids=str
)
def test_logits_losses_gradients_and_greedy_tokens(golden, name, fields):
    experiment, model = build(name, golden, **fields)
    window = torch.from_numpy(golden["in/window"]).long()
    order = experiment.directions(0, 16)[0].order
    inputs, targets, _ = experiment.make_batch(
        window[:, np.argsort(order)], 0, seed=0
    )  # so that their window is what is fed
    assert torch.equal(inputs, torch.from_numpy(golden["in/input_ids"]).long())
    logits = model(inputs)
    near = {"rtol": 0, "atol": 1e-10}
    np.testing.assert_allclose(logits.detach().numpy(), golden["out/f64/logits"], **near)
    np.testing.assert_allclose(model(inputs[:, :7]).detach().numpy(), golden["out/f64/logits_short"], **near)
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    np.testing.assert_allclose(losses.detach().numpy(), golden["out/f64/per_token_loss"], **near)
    assert losses.mean().item() == pytest.approx(float(golden["out/f64/loss"]), abs=1e-10)
    losses.mean().backward()
    for key in golden:
        if key.startswith("grad/f64/") and (mine := ours(key.removeprefix("grad/f64/"))):
            np.testing.assert_allclose(model.get_parameter(mine).grad.numpy(), golden[key], **near, err_msg=key)
    text = inputs[:, :3]
    while text.size(1) < golden["out/f64/greedy"].shape[1]:
        with torch.no_grad():
            text = torch.cat([text, model(text[:, -16:])[:, -1:].argmax(-1)], dim=1)
    np.testing.assert_array_equal(text.numpy(), golden["out/f64/greedy"])


def test_every_parameter_of_theirs_is_mapped(golden):
    _, model = build("gpt2ish", golden)
    mapped = [ours(key.removeprefix("param/")) for key in golden if key.startswith("param/")]
    assert sorted(filter(None, mapped)) == sorted(model.state_dict())
    assert sum(p.numel() for p in model.parameters()) == 16656
