"""What is said of a model's cost, against the model itself."""

import json
import os
import subprocess
import sys

import pytest
import torch

from lmplay import contract, registry
from lmplay.cli.trainer import main
from lmplay.model import cost
from lmplay.model.cost import activation_bytes, cost_of, derived_bytes, training_bytes
from lmplay.model.loss import score
from support.small import EXPERIMENTS


def load(name="gpt2ish"):
    return contract.load(registry.find(name)[0])


def test_parameters_of_the_whole_model():
    experiment = load()
    assert cost_of(experiment, experiment.config("6l", 50257)).parameters == 120_560_209
    config = experiment.config("tiny", 300, n_embd=32)
    assert cost_of(experiment, config).parameters == sum(p.numel() for p in experiment.build(config).parameters())


def test_flops_by_the_formula():
    """Six per weight of a matrix and token; attention 4 T D per token and layer forward, twice or more backward."""
    experiment = load()
    T, D, L, V = 128, 64, 3, 500
    config = experiment.config("tiny", V, T, n_embd=D, n_layer=L)
    matrices = 6 * (L * 12 * D * D + D * V)
    found = cost_of(experiment, config).flops_per_token
    assert matrices + 3 * L * 4 * T * D <= found <= matrices + 3.5 * L * 4 * T * D


def test_counting_needs_no_memory_for_the_weights():
    experiment = load()
    cost = cost_of(experiment, experiment.config("6l", 50257, n_layer=6, n_embd=49152, n_head=96))  # 700 GB in float32
    assert cost.parameters > 170e9


def test_frozen_parameters_are_not_trainable(experiment):
    name = experiment(
        "mine",
        "class Model(Model):\n    def __init__(self, config):\n        super().__init__(config)\n"
        "        self.positions_embedding.weight.requires_grad_(False)",
    )
    mine = load(name)
    cost = cost_of(mine, mine.config("tiny", 100, 16, n_embd=32))
    assert cost.parameters - cost.trainable == 16 * 32


def test_a_model_that_meta_cannot_run(experiment):
    """One that looks at its numbers is counted on the CPU."""
    name = experiment(
        "mine",
        "class Model(Model):\n    def body(self, tokens, cache=None):\n        hidden = super().body(tokens, cache)\n"
        "        return hidden if hidden.sum().item() < 1e9 else hidden * 0",
    )
    mine, plain = load(name), load()
    costs = [cost_of(e, e.config("tiny", 100, 16, n_embd=32)) for e in (mine, plain)]
    assert costs[0] == costs[1]


@pytest.mark.parametrize("amp", [False, True])
def test_activations_are_those_that_a_real_step_keeps(amp):
    experiment = load()
    config = experiment.config("tiny", 200, 64, n_embd=64, n_layer=3)
    counted = activation_bytes(experiment, config, amp)
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    model, tokens = experiment.build(config), torch.randint(200, (1, 64))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=amp),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
    ):
        score(model, tokens, tokens)
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert 0.8 * real <= counted <= 1.3 * real


@pytest.mark.parametrize("name", ["recurrent_gpt2ish", "gpt2ish", "gru", "mingru"])
def test_activations_of_a_model_that_takes_a_step_per_token(name, monkeypatch):
    """Continued from short lengths they are what the whole length keeps, which takes long."""
    experiment = load(name)
    config = experiment.config("tiny", 100, 40, n_embd=16, n_layer=1)
    counted = activation_bytes(experiment, config, False)
    monkeypatch.setattr(cost, "STEPPED_LENGTHS", (40, 80, 120))  # none shorter: the whole length
    assert counted == activation_bytes(experiment, config, False)


LOOKS = """
class Model(Model):
    def __init__(self, config):
        super().__init__(config)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        if not self.head.weight.any():
            raise RuntimeError("never")

    def body(self, tokens, cache=None):
        hidden = super().body(tokens, cache)
        return hidden if hidden.sum().item() < 1e9 else hidden * 0
"""


def test_activations_of_a_model_that_looks_at_its_numbers(experiment):
    mine, plain = load(experiment("mine", "from torch import nn\n" + LOOKS)), load()
    counted = [activation_bytes(e, e.config("tiny", 100, 64, n_embd=32), False) for e in (mine, plain)]
    assert counted[0] == pytest.approx(counted[1], rel=0.2)  # counted with numbers, which keeps a little more


@pytest.mark.parametrize(
    "command",
    [
        "pldr:v500 --set n_embd=28 --set n_layer=1",
        "pldr:v900 --set n_embd=30 --set n_layer=1",
        "recurrent_gpt2ish:6l --set n_layer=1",
    ],
)
def test_describing(command, capsys):
    """Initial values drawn by rejection, and a model that takes a step per token."""
    assert main(["--exp", *command.split(), "--describe"]) == 0
    assert "memory in training, estimated" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif("LMPLAY_EVERY_VARIANT" not in os.environ, reason="LMPLAY_EVERY_VARIANT=1 takes 20 minutes")
@pytest.mark.parametrize("name", [f"{e.name}:{v}" for e in registry.list_experiments() for v in e.variants])
def test_every_variant_at_full_size(name, capsys):
    """What --describe says, and what a start on a GPU asks."""
    assert main(["--exp", name, "--describe"]) == 0
    gib = float(capsys.readouterr().out.rpartition("estimated: ")[2].split()[0])
    entry, variant = registry.find(name)
    experiment = contract.load(entry)
    config = experiment.config(variant, 50257)
    assert gib > 0 and cost_of(experiment, config).parameters > 0
    assert activation_bytes(experiment, config, True) > 4 * config.max_len
    assert derived_bytes(experiment, config, True) >= 0


def test_training_bytes():
    experiment = load()
    cost = cost_of(experiment, experiment.config("tiny", 100, 16, n_embd=32))
    assert training_bytes(cost, 1000, 5, 2) == 16 * cost.parameters + 5000
    assert training_bytes(cost, 1000, 5, 1) == 12 * cost.parameters + 5000


LOOKS = """
class Model(Model):
    def forward(self, tokens, cache=None):
        x = self.body(tokens)
        for _ in range(int(100 * self.head.weight.abs().amax()) % 7 + 1):
            x = x @ x.mT @ x
        return self.head(x)
"""


def test_cost_does_not_depend_on_what_was_drawn_before(experiment):
    """Of a model whose path depends on its initial values."""
    experiment("looks", LOOKS)
    looks = contract.load(registry.find("looks")[0])
    config = looks.config("tiny", 40, 12, n_layer=1, n_head=2, n_embd=8)
    found = []
    for seed in range(4):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        cost = cost_of(looks, config)
        found.append((cost.flops_per_token, cost.kept_bytes, activation_bytes(looks, config, amp=False)))
        assert torch.equal(before, torch.get_rng_state())
    assert len(set(found)) == 1


DESCRIBED = """
import sys
from lmplay.cli.trainer import main
assert main(["--exp", "recurrent_gpt2ish:micro", "--context-len", "16", "--describe"]) == 0
assert "torch._dynamo" not in sys.modules
from lmplay import contract, registry
body = contract.load(registry.find("recurrent_gpt2ish")[0]).Model.body
assert hasattr(body, "_torchdynamo_disable"), "it is loaded again, and hides"
"""


@pytest.mark.process
def test_describing_without_the_compiler(tmp_path):
    """An experiment that hides from it by itself imports it only once it is trained."""
    script = [sys.executable, "-c", DESCRIBED]
    env = {**os.environ, "PYTHONPATH": str(EXPERIMENTS.parent), "LMPLAY_DATA": str(tmp_path)}
    ended = subprocess.run(script, capture_output=True, text=True, timeout=200, cwd=tmp_path, env=env)
    assert ended.returncode == 0, ended.stderr


COUNTED = """
import json, sys
sys.path[:0] = {paths!r}
from lmplay import contract, registry
from lmplay.model.cost import activation_bytes, cost_of, derived_bytes
found = []
for name, fields in {models!r}:
    experiment = contract.load(registry.find(name)[0])
    config = experiment.config(next(iter(experiment.variants)), 97, 24, **fields)
    found.append([str(cost_of(experiment, config)), activation_bytes(experiment, config, False)])
    found[-1].append(derived_bytes(experiment, config, False))
imported = "torch._dynamo" in sys.modules
import torch
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).sum() == 4
print(json.dumps([found, imported]))
"""
SMALL = {"n_layer": 1, "n_embd": 32, "n_head": 2}
MODELS = [("gpt2ish", SMALL), ("llama2", SMALL), ("unified_weights", SMALL), ("gru", {"n_layer": 1})]


@pytest.mark.process
def test_counting_without_the_compiler(tmp_path):
    """In a process that has not imported it, the same is counted, it stays away, and it works afterwards."""
    import torch._dynamo  # noqa: F401  here it is there

    found = []
    for name, fields in MODELS:
        experiment = load(name)
        config = experiment.config(next(iter(experiment.variants)), 97, 24, **fields)
        found.append([str(cost_of(experiment, config)), activation_bytes(experiment, config, False)])
        found[-1].append(derived_bytes(experiment, config, False))
    script = COUNTED.format(paths=sys.path[:2] + [str(EXPERIMENTS.parent)], models=MODELS)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == [found, False]


BY_TWO = """
import sys, threading
import torch
from lmplay.model.no_compiler import without_compiler
inside, other, wrong = threading.Event(), threading.Event(), []

def asks_for_more():
    other.set()
    try:
        return without_compiler(lambda: __import__("torch._dynamo")._dynamo.explain)()
    except BaseException as error:
        wrong.append(error)

def hides():
    inside.set()
    other.wait(60)
    later.join(1)  # it has to wait for this thread

first = threading.Thread(target=without_compiler(hides))
later = threading.Thread(target=asks_for_more)
first.start(), inside.wait(60), later.start(), first.join(), later.join()
assert not wrong, wrong
"""


@pytest.mark.process
@pytest.mark.thorough
def test_two_threads_count_without_the_compiler(tmp_path):
    """The second one waits, since it would take the stand-in for the compiler."""
    env = {**os.environ, "PYTHONPATH": str(EXPERIMENTS.parent)}
    script = [sys.executable, "-c", BY_TWO]
    ended = subprocess.run(script, capture_output=True, text=True, timeout=200, cwd=tmp_path, env=env)
    assert ended.returncode == 0, ended.stderr
