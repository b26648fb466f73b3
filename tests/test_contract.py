"""Loading one folder, making its Config, and what it is fed."""

import shutil
import sys

import pytest
import torch

from lmplay import contract, registry
from lmplay.errors import UserError
from lmplay.runs.run import read_run
from lmplay.runs.trained import load_run
from support.small import TINY

SOURCE = '''"""One."""
from dataclasses import dataclass
import torch
from torch import nn
from .helper import WIDTH

@dataclass
class Config:
    vocab_size: int = 50257
    max_len: int = 64
    n_layer: int = 2
    dropout: float = 0.5
    tied: bool = False
    kind: str = "plain"
    window: object = None
    share: float | None = None

    def __post_init__(self):
        self.width = WIDTH * self.n_layer
        if self.n_layer > 9:
            raise ValueError("n_layer is too large")

class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        if config.n_layer == 0:
            raise ValueError("n_layer must not be 0")
        self.weight = nn.Parameter(torch.zeros(config.width))

variants = {"small": {}, "deep": dict(n_layer=8, max_len=128)}
'''


@pytest.fixture
def make(work):
    def make(name="one", addition="", source=SOURCE):
        folder = work / "experiments" / name
        folder.mkdir(parents=True)
        (folder / "model.py").write_text(source + addition, encoding="utf-8")
        (folder / "helper.py").write_text("WIDTH = 4\n", encoding="utf-8")
        return registry.find(name)[0]

    return make


def test_load_is_a_package_of_its_own(make):
    one, two = contract.load(make("one")), contract.load(make("two"))
    assert one.module is not two.module and one.Config is not two.Config
    assert one.module.WIDTH == 4 and contract.load(registry.find("one")[0]).module is one.module
    assert "one" not in sys.modules and "helper" not in sys.modules and "model" not in sys.modules


def test_config(make):
    one = contract.load(make())
    config = one.config("deep", 100)
    assert (config.vocab_size, config.max_len, config.n_layer, config.dropout) == (100, 128, 8, 0.5)
    config = one.config("deep", 100, 32, n_layer=3)
    assert (config.max_len, config.n_layer) == (32, 3)
    assert contract.config_values(config) == {
        "vocab_size": 100,
        "max_len": 32,
        "n_layer": 3,
        "dropout": 0.5,
        "tied": False,
        "kind": "plain",
        "window": None,
        "share": None,
    }
    assert one.Config(**contract.config_values(config)) == config


@pytest.mark.parametrize(
    "field, text, value",
    [
        ("n_layer", "3", 3),
        ("n_layer", "3.0", 3),
        ("n_layer", "1e0", 1),
        ("dropout", "1", 1.0),
        ("dropout", ".25", 0.25),
        ("tied", "true", True),
        ("tied", "Off", False),
        ("tied", "1", True),
        ("kind", "7", "7"),
        ("kind", "a=b", "a=b"),
        ("window", "7", 7),
        ("window", "0.5", 0.5),
        ("window", "none", None),
        ("window", "TRUE", True),
        ("window", "words", "words"),
        ("share", "0.1", 0.1),
        ("share", "1", 1.0),
        ("share", "none", None),
        ("share", "None", None),
    ],
)
def test_fields_are_typed(make, field, text, value):
    fields = contract.parse_fields([f"{field}={text}"])
    found = getattr(contract.load(make()).config("small", 10, **fields), field)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("n_layers=3", "no setting 'n_layers'. Did you mean 'n_layer'"),
        ("n_layer=three", "takes a whole number"),
        ("n_layer=2.5", "takes a whole number"),
        ("n_layer=inf", "takes a whole number"),
        ("n_layer=nan", "takes a whole number"),
        ("n_layer=", "takes a whole number"),
        ("dropout=much", "takes a number"),
        ("tied=maybe", "takes true or false"),
        ("share=much", "takes a number"),
        ("share=true", "takes a number"),
        ("n_layer=10", "n_layer is too large"),
        ("n_layer", "FIELD=VALUE"),
        ("=3", "FIELD=VALUE"),
        ("vocab_size=3", "use --tokenizer"),
        ("max_len=3", "use --context-len"),
    ],
)
def test_fields_that_are_refused(make, text, message):
    one = contract.load(make())
    with pytest.raises(UserError, match=message):
        one.config("small", 10, **contract.parse_fields([text]))


def test_a_model_that_refuses_its_settings(make):
    one = contract.load(make())
    with pytest.raises(UserError, match="can't be built with these settings: n_layer must not be 0"):
        one.build(one.config("small", 10, n_layer=0))


@pytest.mark.parametrize(
    "change, message",
    [
        (("@dataclass\n", ""), "Config is not a dataclass"),
        (("    max_len: int = 64\n", ""), "Config has no field max_len"),
    ],
)
def test_configs_that_are_refused(make, change, message):
    with pytest.raises(UserError, match=message):
        contract.load(make(source=SOURCE.replace(*change)))


def test_what_its_code_raises_is_not_caught(make):
    with pytest.raises(ZeroDivisionError):
        contract.load(make(addition="\n1 / 0\n"))


def test_code_hash_is_of_all_its_code(make):
    entry = make()
    before = entry.code_hash
    (entry.folder / "notes.txt").write_text("not code")
    assert entry.code_hash == before == make("two").code_hash
    (entry.folder / "helper.py").write_text("WIDTH = 5\n")
    changed = entry.code_hash
    (entry.folder / "helper.py").rename(entry.folder / "helpers.py")
    assert len({before, changed, entry.code_hash}) == 3


def test_default_batch(make):
    one = contract.load(make())
    window = torch.tensor([[5, 6, 7], [8, 9, 3]])
    inputs, targets, labels = one.make_batch(window, 1, seed=0)
    assert inputs.tolist() == [[1, 5, 6], [1, 8, 9]] and torch.equal(targets, window) and labels is None
    given = torch.tensor([[0, -100, 4], [-100, 2, 2]])
    inputs, targets, labels = one.make_batch(window, 1, 0, given)
    assert inputs.tolist() == [[1, 5, 6], [1, 8, 9]]
    assert targets.tolist() == [[5, -100, 7], [-100, 9, 3]] and torch.equal(labels, given)


def test_labels_follow_where_an_experiment_moves_tokens(make):
    """A random permutation, and a third of the targets hidden: the labels name the tokens that are the targets."""
    one = contract.load(
        make(
            addition="""
def make_batch(window, bos, generator):
    order = torch.rand(window.shape, generator=generator).argsort(1)
    targets = window.gather(1, order)
    inputs = torch.cat([torch.full_like(window[:, :1], bos), targets[:, :-1]], 1)
    return inputs, targets.masked_fill(torch.rand(window.shape, generator=generator) < 0.3, -100)
"""
        )
    )
    window = torch.randperm(40).view(5, 8)
    scored = torch.rand(5, 8) < 0.5
    given = torch.where(scored, window + 1000, -100)  # the label says which token it is of
    inputs, targets, labels = one.make_batch(window, 99, 7, given)
    same_inputs, all_targets, none = one.make_batch(window, 99, 7)
    assert torch.equal(inputs, same_inputs) and none is None
    kept = targets != -100
    assert torch.equal(labels[kept], targets[kept] + 1000)
    assert kept.any() and (kept <= (all_targets != -100)).all()
    hidden = (all_targets != -100) & ~kept
    assert not torch.isin(all_targets[hidden], window[scored]).any()
    assert not torch.equal(inputs, one.make_batch(window, 99, 8)[0])


def test_causal_may_depend_on_the_config(make):
    one = contract.load(make("one", "\ndef causal(config):\n    return config.dropout == 0\n"))
    free, leaking = (one.bound(one.config("small", 10, dropout=dropout)) for dropout in (0.0, 0.5))
    assert free.causal is free.can_write is True and leaking.causal is leaking.can_write is False
    assert one.causal is False, "that of the defaults"
    assert contract.load(make("two")).causal is True


def test_a_model_that_is_not_causal_may_write_with_its_cache(make):
    assert not contract.load(make("one", "\ncausal = False\n")).can_write
    assert contract.load(make("two", "\ncausal = False\nwrites = True\n")).can_write


EXTRA_HOOKS = """
from .model import Config
LOADED = True
causal = False
def export_config(config):
    return {"layers": config.n_layer, "default": Config().n_layer}
variants = {"huge": dict(n_layer=9)}
"""


def test_hooks_are_found_in_the_model_and_then_in_its_extras(make):
    one = contract.load(make(addition="\ndef reading_order(): pass\n"))
    (one.folder / "extras.py").write_text(EXTRA_HOOKS)
    one = contract.load(registry.find("one")[0])
    extras = one.module.__package__ + ".extras"
    assert one.hook("reading_order") is one.module.reading_order and extras not in sys.modules
    config = one.config("huge", 10)
    assert one.hook("export_config")(config) == {"layers": 9, "default": 2} and extras in sys.modules
    assert one.hook("export_weights") is None and one.hook("export_weights", "none") == "none"
    assert one.causal is False
    assert contract.load(make("two")).hook("export_config", 3) == 3
    three = make("three", "\ncausal = True\n")
    (three.folder / "extras.py").write_text("causal = False\n")
    assert contract.load(three).causal is True


def test_what_its_extras_raise_is_not_caught(make):
    one = contract.load(make())
    (one.folder / "extras.py").write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        one.hook("mask_token")


@pytest.mark.process
@pytest.mark.process
def test_a_run_has_the_extras_of_its_experiment(work, experiment, trainer, plans):
    """A variant of extras.py trains, and the run's own copy of the code has its hooks."""
    folder = work / "experiments" / experiment("mine")
    (folder / "extras.py").write_text(
        "from .model import Model\nvariants = {'thin': dict(n_embd=8)}\ndef export_config(config): return Model\n"
    )
    flags = ["--training-plan", plans["plain"], "--max-steps", "2", "--run-name", "run"]
    process = trainer(*TINY, "--exp", "mine:thin", *flags)
    assert process.status == 0, process.err
    shutil.rmtree(folder)
    run = load_run(read_run(work / "gpt_out" / "run"), torch.device("cpu"))
    assert run.run.info["experiment"]["variant"] == "thin"
    assert run.experiment.hook("export_config")(None) is run.experiment.Model
