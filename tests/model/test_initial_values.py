"""Initial values that depend on seed and name alone (--same-init)."""

import json
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from lmplay import contract, registry
from lmplay.cli import trainer
from lmplay.initial_values import build_by_name
from support.small import TINY

WIDTH = {"n_layer": 2, "n_head": 2, "n_embd": 32}


def model_of(spec: str, seed: int = 0, **fields) -> nn.Module:
    entry, variant = registry.find(spec)
    experiment = contract.load(entry)
    config = experiment.config(variant, 300, 16, **WIDTH | fields)
    return build_by_name(lambda: experiment.build(config), seed)


class Various(nn.Module):
    """Ways to make a parameter; `more` creates others before and between them."""

    def __init__(self, more: bool):
        super().__init__()
        if more:
            self.first = nn.Linear(7, 7)
        self.orthogonal = nn.Linear(16, 16)
        nn.init.orthogonal_(self.orthogonal.weight)
        self.product = nn.Parameter(torch.randn(5, 6) * 0.02 + 1)
        if more:
            torch.rand(3)  # used for nothing
        one, two = torch.randn(2, 10)
        self.together, self.apart = nn.Parameter(one.clone()), nn.Parameter(two[:5].clone())
        self.truncated = nn.Parameter(torch.empty(50))
        nn.init.trunc_normal_(self.truncated, std=0.5)
        self.structured = nn.Parameter(torch.arange(1.0, 9).log().repeat(3, 1))
        self.listed = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        if more:
            self.between = nn.GRU(4, 4)
        self.embedding = nn.Embedding(10, 8, padding_idx=3)
        self.lstm = nn.LSTM(4, 4)
        self.attention = nn.MultiheadAttention(8, 2)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.register_buffer("order", torch.randperm(20))


def test_values_depend_on_seed_and_name_alone():
    plain, more = (build_by_name(lambda: Various(with_more), 5).state_dict() for with_more in (False, True))
    other_seed = build_by_name(lambda: Various(False), 6).state_dict()
    assert set(plain) < set(more)
    constant = {"structured", "listed"} | {
        name for name in plain if name in ("attention.in_proj_bias", "attention.out_proj.bias")
    }
    for name in plain:
        assert torch.equal(plain[name], more[name]), name
        assert torch.equal(plain[name], other_seed[name]) == (name in constant), name


def test_distribution_and_structure_stay():
    own = Various(True).state_dict()
    found = build_by_name(lambda: Various(True), 1).state_dict()
    assert found.keys() == own.keys()
    w = found["orthogonal.weight"]
    assert torch.allclose(w @ w.T, torch.eye(16), atol=1e-5)
    assert torch.equal(found["structured"], own["structured"]) and torch.equal(found["listed"], own["listed"])
    assert not found["embedding.weight"][3].any() and found["embedding.weight"][2].all()
    assert found["truncated"].abs().max() <= 2.0
    assert sorted(found["order"].tolist()) == list(range(20))
    # kaiming_uniform of a Linear: within 1 / sqrt(inputs)
    bound = 1 / math.sqrt(7)
    assert found["first.weight"].abs().max() <= bound and found["first.weight"].std() > 0.4 * bound
    # what was drawn apart is not the same
    assert not torch.equal(found["together"][:5], found["apart"])


@pytest.mark.parametrize(
    "spec", ["gpt2ish:tiny", "gpt2ish:gpt2", "gpt2ish:historical", "llama2:tiny", "reverse_time:tiny"]
)
def test_experiments_keep_their_distribution(spec):
    entry, variant = registry.find(spec)
    experiment = contract.load(entry)
    config = experiment.config(variant, 300, 16, **WIDTH)
    torch.manual_seed(0)
    own = dict(experiment.build(config).named_parameters())
    found = dict(build_by_name(lambda: experiment.build(config), 0).named_parameters())
    assert own.keys() == found.keys()
    for name, parameter in found.items():
        expected = own[name]
        assert parameter.requires_grad == expected.requires_grad and parameter.shape == expected.shape
        if expected.std() == 0 or expected.numel() == 1:
            assert torch.equal(parameter, expected), name
        else:
            assert not torch.equal(parameter, expected), name
            error = 4 / math.sqrt(expected.numel())  # four standard errors, about
            assert (
                abs(parameter.std() / expected.std() - 1) < error and abs(parameter.mean()) < error * expected.std()
            ), name


def test_experiments_share_what_is_alike():
    gpt, llama, reverse = (
        dict(model_of(f"{name}:tiny").named_parameters()) for name in ("gpt2ish", "llama2", "reverse_time")
    )
    assert all(torch.equal(gpt[name], reverse[name]) for name in gpt)
    shared = [name for name in gpt if name in llama and gpt[name].shape == llama[name].shape]
    assert any(gpt[name].std() > 0 for name in shared)
    assert all(torch.equal(gpt[name], llama[name]) for name in shared if gpt[name].std() > 0 and gpt[name].ndim > 1)
    # another depth: what is drawn with the same spread is equal, scaled projections are in proportion
    deep = dict(model_of("gpt2ish:tiny", n_layer=4).named_parameters())
    assert torch.equal(gpt["blocks.1.attention.qkv.weight"], deep["blocks.1.attention.qkv.weight"])
    ratio = gpt["blocks.1.feed_forward.down.weight"] / deep["blocks.1.feed_forward.down.weight"]
    assert torch.allclose(ratio, torch.full_like(ratio, math.sqrt(2)), rtol=1e-4)


def test_the_global_generator_ends_up_the_same():
    """What is random after the model was made depends on the seed, not on the model."""
    build_by_name(lambda: Various(False), 2)
    first = torch.rand(3)
    build_by_name(lambda: Various(True), 2)
    assert torch.equal(first, torch.rand(3))


def test_trainer_starts_from_them(plans, work, experiment):
    experiment("mine")
    source = (work / "experiments" / "mine" / "model.py").read_text()
    marker = "        self.tokens_embedding = nn.Embedding"
    (work / "experiments" / "mine" / "model.py").write_text(
        source.replace(marker, f"        self.idle = nn.Linear(3, 3)\n{marker}")
    )
    flags = ["--training-plan", plans["plain"], "--max-steps", "1", "--lr", "1e-30", "--weight-decay", "0", *TINY[2:]]
    losses = {}
    for exp in ("gpt2ish", "mine"):
        for init in ("--same-init", "--no-same-init"):
            name = f"{exp}{init}"
            assert trainer.main(["--exp", exp, init, "--run-name", name, *flags]) == 0
            meta = json.loads((work / "gpt_out" / name / "run.json").read_text())
            assert meta["settings"]["same_init"] is (init == "--same-init")
            losses[exp, init] = meta["progress"]["final"]["loss"]
    assert losses["gpt2ish", "--same-init"] == losses["mine", "--same-init"]
    assert losses["gpt2ish", "--no-same-init"] != losses["mine", "--no-same-init"]


@pytest.mark.process
def test_following_the_draws_does_not_import_the_compiler():
    """Its import takes as long as torch's own, at the start of each run of a comparison."""
    code = (
        "import sys, torch\n"
        "from lmplay.initial_values import build_by_name\n"
        "from lmplay.train.capture_checks import Operations\n"
        "model = build_by_name(lambda: torch.nn.Embedding(3, 2), 1)\n"
        "with Operations(torch.device('cpu')) as followed:\n"
        "    model.weight + 1\n"
        "assert followed.log and 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
