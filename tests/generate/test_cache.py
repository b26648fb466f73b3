"""A cache that does not give the logits of the whole text is not used, and one line says so."""

import pytest
import torch

from lmplay import contract, registry
from lmplay.generate.sampling import Sampling, generate
from lmplay.model import shortcuts

SHIFT = """
class Model(Model):
    def __init__(self, config):
        super().__init__(config)
        self.gate = nn.Parameter(torch.zeros(()))

    def body(self, tokens, cache=None):
        x = super().body(tokens, cache)
        return x + self.gate * F.pad(x[:, :-1], (0, 0, 1, 0))
"""
FORGETS = """
class KeyValues(KeyValues):
    def append(self, keys, values):
        keys, values = super().append(keys, values)
        return keys[:, :, 1:] if self.length > 20 else keys, values[:, :, 1:] if self.length > 20 else values
"""
FAILS = """
class Model(Model):
    def new_cache(self, batch):
        raise NotImplementedError("not yet")
"""
POSITIONS = """
class Model(Model):
    def body(self, tokens, cache=None):
        return super().body(tokens, cache) + torch.arange(tokens.size(1))[None, :, None] % 2
"""


def build(experiment, addition):
    experiment("mine", addition)
    mine = contract.load(registry.find("mine")[0])
    torch.manual_seed(0)
    fields = dict(n_layer=1, n_head=2, n_embd=16)
    model = mine.build(mine.config("tiny", 30, 32, **fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    return model


def write(model, prompt, **options):
    how = dict(context_len=32, max_len=24, sampling=Sampling(temperature=0.0))
    return [*generate(model, prompt, **how, generator=torch.Generator().manual_seed(1), **options)]


@pytest.mark.parametrize("prompt", [[29], [29, 3, 4, 5, 6]], ids=["no prompt", "a prompt"])
@pytest.mark.parametrize("addition", [SHIFT, FORGETS, FAILS, POSITIONS], ids=["shift", "forgets", "fails", "positions"])
def test_cache_that_is_wrong_is_not_used(experiment, addition, prompt, capsys):
    model = build(experiment, addition)
    if addition == SHIFT:  # at first it makes no difference
        assert write(model, prompt) == write(model, prompt, use_cache=False)
        assert not shortcuts.not_taken(model)
        with torch.no_grad():
            model.gate.fill_(3.0)
    wanted = write(model, prompt, use_cache=False)
    assert write(model, prompt) == wanted and write(model, prompt) == wanted
    assert list(shortcuts.not_taken(model)) == [shortcuts.CACHE]
    assert capsys.readouterr().err.count("note: the cache (new_cache) ") == 1


def test_cache_that_is_right_is_used(experiment, capsys):
    model = build(experiment, "")
    fed = []
    model.tokens_embedding.register_forward_hook(lambda module, inputs, output: fed.append(inputs[0].size(1)))
    assert write(model, [29, 3, 4]) == write(model, [29, 3, 4], use_cache=False)
    assert not shortcuts.not_taken(model) and not capsys.readouterr().err
    assert fed.count(1) >= 20


def test_cache_that_makes_the_text_is_not_compared(experiment):
    """As that of a model that is causal with its cache only."""
    model = build(experiment, SHIFT)
    with torch.no_grad():
        model.gate.fill_(3.0)
    write(model, [29, 3, 4], check_cache=False)
    assert not shortcuts.not_taken(model)
