from pathlib import Path

import pytest
import torch
from torch import nn

from lmplay.errors import UserError
from lmplay.runs.settings import OPTIMIZERS
from lmplay.train.muon import Muon
from lmplay.train.optimizers import make_optimizers, parameter_groups

ROOT = Path(__file__).resolve().parents[2]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.inner, self.norm = nn.Embedding(11, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.frozen = nn.Parameter(torch.ones(8, 8), requires_grad=False)
        self.head = nn.Linear(8, 11)

    def forward(self, tokens):
        return self.head(self.norm(self.inner(self.embedding(tokens))))


def make(model, name, weight_decay=0.1, lr=0.01, decay_all=False):
    return make_optimizers(model, name, lr, weight_decay, (0.9, 0.95), 1e-8, decay_all)


def update(model, optimizers):
    tokens = torch.arange(11)
    nn.functional.cross_entropy(model(tokens), tokens).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return gradients


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_parameter_is_in_one_group_and_changes(name):
    model = Model()
    optimizers = make(model, name)
    inside = [p for o in optimizers for g in o.param_groups for p in g["params"]]
    assert sorted(map(id, inside)) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert all(g["initial_lr"] == g["lr"] == 0.01 for o in optimizers for g in o.param_groups)
    before = {n: p.clone() for n, p in model.named_parameters()}
    update(model, optimizers)
    for n, p in model.named_parameters():
        assert p.equal(before[n]) == (n == "frozen")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_they_learn(name):
    model = Model()
    optimizers = make(model, name, 0.0, 0.05)
    tokens = torch.arange(11)
    first = nn.functional.cross_entropy(model(tokens), tokens)
    for _ in range(30):
        update(model, optimizers)
    assert nn.functional.cross_entropy(model(tokens), tokens) < 0.8 * first


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_on_every_parameter(name):
    optimizers = make(Model(), name, 0.3, decay_all=True)
    assert {group["weight_decay"] for optimizer in optimizers for group in optimizer.param_groups} == {0.3}


def test_weight_decay_is_on_matrices_alone():
    model = Model()
    decay = {id(p): g["weight_decay"] for g in parameter_groups(model, 0.01, 0.3) for p in g["params"]}
    named = {n: decay[id(p)] for n, p in model.named_parameters() if p.requires_grad}
    assert named == {
        "embedding.weight": 0,
        "inner.weight": 0.3,
        "inner.bias": 0,
        "norm.weight": 0,
        "norm.bias": 0,
        "head.weight": 0.3,
        "head.bias": 0,
    }
    tied = Model()
    tied.head.weight = tied.embedding.weight
    groups = parameter_groups(tied, 0.01, 0.3)
    assert [id(tied.inner.weight)] == [id(p) for g in groups if g["weight_decay"] for p in g["params"]]


def test_adamw_by_its_formula():
    """Two updates by the formula of Loshchilov and Hutter (arXiv 1711.05101), in float64."""
    model = Model()
    optimizers = make(model, "adamw")
    w = model.inner.weight.detach().double()
    m = v = torch.zeros_like(w)
    for t in (1, 2):
        g = update(model, optimizers)["inner.weight"].double()
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        w = w - 0.01 * 0.1 * w - 0.01 * (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
        torch.testing.assert_close(model.inner.weight.detach().double(), w, rtol=1e-5, atol=1e-7)


def test_muon_takes_the_inner_matrices():
    model = Model()
    muon, adamw = make(model, "muon", 0.0)
    assert isinstance(muon, Muon) and isinstance(adamw, torch.optim.AdamW)
    assert [id(p) for g in muon.param_groups for p in g["params"]] == [id(model.inner.weight)]
    before = model.inner.weight.detach().clone()
    update(model, [muon, adamw])
    sizes = torch.linalg.svdvals(model.inner.weight.detach() - before) / 0.01
    wanted = 0.2 * 8**0.5  # orthogonal, with the root mean square of an update by AdamW
    assert ((sizes > 0.5 * wanted) & (sizes < 1.5 * wanted)).sum() >= 6


def test_muon_without_matrices_is_adamw():
    model = nn.Sequential(nn.LayerNorm(4))
    (optimizer,) = make(model, "muon")
    assert isinstance(optimizer, torch.optim.AdamW)


def test_groups_of_its_own():
    model = Model()
    trained = [p for p in model.parameters() if p.requires_grad]

    def own(lr, weight_decay):
        return [{"params": iter(trained[:2]), "lr": lr * 10, "weight_decay": weight_decay / 2}, {"params": trained[2:]}]

    model.param_groups = own
    for name in OPTIMIZERS:
        groups = [g for o in make(model, name, 0.2) for g in o.param_groups]
        rates = {id(p): g["initial_lr"] for g in groups for p in g["params"]}
        assert [rates[id(p)] for p in trained] == [0.1] * 2 + [0.01] * (len(trained) - 2)
    model.param_groups = lambda lr, decay: [{"params": [model.embedding.weight], "lr": lr * 10, "weight_decay": 0.0}]
    for name in OPTIMIZERS:  # the rest is in the default groups, once each
        groups = [g for o in make(model, name, 0.2) for g in o.param_groups]
        rates = {id(p): g["initial_lr"] for g in groups for p in g["params"]}
        assert [rates[id(p)] for p in trained] == [0.1] + [0.01] * (len(trained) - 1)
        assert sum(len(g["params"]) for g in groups) == len(trained)
    decays = {id(p): g["weight_decay"] for g in parameter_groups(model, 0.01, 0.2) for p in g["params"]}
    assert decays[id(model.inner.weight)] == 0.2 and decays[id(model.norm.weight)] == 0
    model.param_groups = lambda lr, decay: [{"params": trained}, {"params": trained[:1]}]
    with pytest.raises(UserError, match="names embedding.weight twice"):
        make(model, "adamw")
    model.param_groups = lambda lr, decay: [{"params": [*trained, model.frozen]}]
    with pytest.raises(UserError, match="names frozen, which is not trainable"):
        make(model, "adamw")
    model.param_groups = lambda lr, decay: [{"params": [torch.ones(2)]}]
    with pytest.raises(UserError, match="no parameter of the model"):
        make(model, "adamw")


def test_groups_that_name_the_exceptions_only():
    """What they leave out trains as it does without them."""
    model = Model()
    plain = {id(p): g["weight_decay"] for g in parameter_groups(model, 0.01, 0.3) for p in g["params"]}
    model.param_groups = lambda lr, decay: [{"params": [model.embedding.weight], "lr": 5 * lr, "weight_decay": 0.05}]
    groups = parameter_groups(model, 0.01, 0.3)
    inside = [p for g in groups for p in g["params"]]
    assert sorted(map(id, inside)) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    for group in groups:
        for p in group["params"]:
            own = p is model.embedding.weight
            assert group["weight_decay"] == (0.05 if own else plain[id(p)]) and group.get("lr") == (
                0.05 if own else None
            )
    named = Model()  # the same groups with every parameter named are the same training, to the bit
    named.param_groups = lambda lr, decay: [
        {"params": [named.inner.weight, named.head.weight], "weight_decay": decay},
        {"params": [p for p in named.parameters() if p.ndim < 2], "weight_decay": 0.0},
        {"params": [named.embedding.weight], "lr": 5 * lr, "weight_decay": 0.05},
    ]
    for one in (model, named):
        optimizers = make(one, "adamw", 0.3)
        for _ in range(3):
            update(one, optimizers)
    for ours, theirs in zip(model.parameters(), named.parameters()):
        assert ours.equal(theirs)


EXCEPTION = """

def exceptions(self, lr, weight_decay):
    return [{"params": [self.tokens_embedding.weight], "lr": 8 * lr, "weight_decay": 0.0}]


Model.param_groups = exceptions
"""


def test_a_copy_that_adds_an_embedding_need_not_name_it(tmp_path, monkeypatch):
    """The hook names the one embedding that has a rate of its own; the copy's new embedding is in a default group."""
    from lmplay import contract, registry

    text = (ROOT / "experiments" / "gpt2ish" / "model.py").read_text(encoding="utf-8")
    blocks = "        self.blocks = nn.ModuleList("
    assert text.count(blocks) == 1
    text = text.replace(blocks, f"        self.extra = nn.Embedding(7, config.n_embd)\n{blocks}") + EXCEPTION
    folder = tmp_path / "experiments" / "added"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(text, encoding="utf-8")
    monkeypatch.setenv("LMPLAY_EXPERIMENTS", str(folder.parent))
    experiment = contract.load(registry.find("added:tiny")[0])
    model = experiment.build(experiment.config("tiny", 11))
    group_of = {id(p): g for g in parameter_groups(model, 0.01, 0.3) for p in g["params"]}
    assert sorted(group_of) == sorted(id(p) for p in model.parameters())
    assert group_of[id(model.tokens_embedding.weight)]["lr"] == 0.08
    for p, decay in ((model.extra.weight, 0.0), (model.positions_embedding.weight, 0.0), (model.head.weight, 0.3)):
        assert group_of[id(p)]["weight_decay"] == decay and "lr" not in group_of[id(p)]
