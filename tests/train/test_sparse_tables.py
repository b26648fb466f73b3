"""Tables whose gradients hold the rows of a batch only: their optimisers, clipping, checkpoints and resumption."""

import math
import signal

import pytest
import torch
from torch import nn

from lmplay.model import adapters
from lmplay.runs import checkpoints
from lmplay.runs.settings import OPTIMIZERS, Settings
from lmplay.train.build import gradient_faults
from lmplay.train.loop import Trainer
from lmplay.train.optimizers import clip_gradients, make_optimizers
from lmplay.train.setup import set_up
from support.trainer_process import At

ROWS, WIDTH, LR, BETAS, EPS = 20, 6, 0.1, (0.9, 0.95), 1e-8
SOURCE = '''"""A bag of two tables, one of them with row-sparse gradients."""
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class Config:
    vocab_size: int = 50
    max_len: int = 16
    sparse: bool = True

class Table(nn.Embedding):
    def _apply(self, fn, recurse=True):     # stays where it is, in its precision
        return self

class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tokens = Table(config.vocab_size, 8, sparse=True) if config.sparse else nn.Embedding(config.vocab_size, 8)
        self.positions, self.inner = nn.Embedding(config.max_len, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, config.vocab_size)

    def body(self, tokens):
        return torch.tanh(self.inner(self.tokens(tokens) + self.positions.weight[:tokens.size(1)]))

    def forward(self, tokens):
        if tokens.size(1) > len(self.positions.weight):
            raise ValueError("more than max_len")
        return self.head(self.body(tokens))

variants = {"only": {}}
'''
FLAGS = [
    "--exp",
    "bag",
    "--context-len",
    "16",
    "--batch-size",
    "4",
    "--mini-batch-size",
    "3",
    "--device",
    "cpu",
    "--lr",
    "0.01",
    "--warmup-steps",
    "2",
    "--max-steps",
    "10",
    "--save-interval",
    "3",
    "--run-name",
    "run",
]


@pytest.fixture
def bag(work) -> str:
    (work / "experiments" / "bag").mkdir(parents=True)
    (work / "experiments" / "bag" / "model.py").write_text(SOURCE, encoding="utf-8")
    return "bag"


class Model(nn.Module):
    def __init__(self, sparse=True):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.inner = nn.Embedding(ROWS, WIDTH, sparse=sparse), nn.Linear(WIDTH, ROWS)

    def forward(self, tokens):
        return self.inner(self.table(tokens))


def backward(model, tokens):
    nn.functional.cross_entropy(model(tokens), (tokens + 1) % ROWS).backward()


def by_formula(name, weight, gradients):
    """What each optimizer does to a row (D,) of the table with these gradients, one per step (None: not in the batch).

    Adam's moments stand still where the row is not, its bias correction does not."""
    w, m, v = weight.clone(), torch.zeros_like(weight), torch.zeros_like(weight)
    for t, g in enumerate(gradients, 1):
        if g is None:
            continue
        if name in ("sgd", "rmsprop"):
            w -= LR * g
        elif name == "adagrad":
            v += g * g
            w -= LR * g / (v.sqrt() + 1e-10)
        else:
            m, v = BETAS[0] * m + (1 - BETAS[0]) * g, BETAS[1] * v + (1 - BETAS[1]) * g * g
            # its eps is beside the root that is not yet corrected
            w -= LR * math.sqrt(1 - BETAS[1] ** t) / (1 - BETAS[0] ** t) * m / (v.sqrt() + EPS)
    return w


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_of_the_batch_alone_are_changed_by_the_optimiser_formula(name):
    model = Model().double()
    optimizers = make_optimizers(model, name, LR, 0.5, BETAS, EPS)
    mine = optimizers[-1]
    assert [id(p) for g in mine.param_groups for p in g["params"]] == [id(model.table.weight)]
    assert all(g["initial_lr"] == LR and not g.get("weight_decay") for g in mine.param_groups)
    before, found = model.table.weight.detach().clone(), []
    for batch in ([1, 3, 3, 5], [3, 7], [1, 1, 3], [5, 5, 5]):
        tokens = torch.tensor(batch)
        for part in tokens.split(2):  # two mini-batches
            backward(model, part)
        assert model.table.weight.grad.is_sparse
        dense = model.table.weight.grad.to_dense()
        found.append([dense[row].clone() if row in batch else None for row in range(ROWS)])
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    for row in range(ROWS):
        wanted = by_formula(name, before[row], [gradients[row] for gradients in found])
        assert torch.equal(wanted, before[row]) == (row not in (1, 3, 5, 7))
        torch.testing.assert_close(model.table.weight[row].detach(), wanted, rtol=1e-10, atol=1e-14)
        assert row in (1, 3, 5, 7) or model.table.weight[row].equal(before[row])


def test_groups_of_its_own_keep_their_learning_rate():
    model = Model()
    model.param_groups = lambda lr, decay: [
        {"params": [model.table.weight, model.inner.bias], "lr": 3 * lr, "weight_decay": 1.0},
        {"params": [model.inner.weight]},
    ]
    dense, sparse = make_optimizers(model, "adamw", LR, 0.5, BETAS, EPS)
    assert [g["initial_lr"] for g in dense.param_groups] == [3 * LR, LR] and [
        g["initial_lr"] for g in sparse.param_groups
    ] == [3 * LR]


@pytest.mark.parametrize("largest", [0.05, math.inf])
@pytest.mark.parametrize("value", [0.01, math.inf])
def test_clipping_is_that_of_dense_gradients(largest, value):
    models = Model(), Model(sparse=False)
    for model in models:
        for tokens in ([1, 1, 3], [3, 4]):
            backward(model, torch.tensor(tokens))
    sparse, dense = models
    norm = clip_gradients(list(sparse.parameters()), largest, value)
    wanted = nn.utils.clip_grad_norm_(list(dense.parameters()), largest)
    nn.utils.clip_grad_value_(list(dense.parameters()), value)
    assert norm == pytest.approx(wanted.item(), rel=1e-6) and norm > 0.05
    for ours, theirs in zip(sparse.parameters(), dense.parameters()):
        torch.testing.assert_close(
            ours.grad.to_dense() if ours.grad.is_sparse else ours.grad, theirs.grad, rtol=1e-5, atol=1e-9
        )


def test_scaled_gradients_are_unscaled():
    plain, scaled = Model(), Model()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    backward(plain, torch.tensor([1, 1, 3]))
    tokens = torch.tensor([1, 1, 3])
    scaler.scale(nn.functional.cross_entropy(scaled(tokens), (tokens + 1) % ROWS)).backward()
    optimizers = make_optimizers(scaled, "adamw", LR, 0.0, BETAS, EPS)
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    for ours, theirs in zip(scaled.parameters(), plain.parameters()):
        torch.testing.assert_close(ours.grad.to_dense(), theirs.grad.to_dense(), rtol=1e-5, atol=1e-9)
    before = scaled.table.weight.detach().clone()
    scaled.inner.weight.grad.fill_(math.inf)
    scaled.table.weight.grad = torch.sparse_coo_tensor([[2]], [[math.inf] * WIDTH], (ROWS, WIDTH))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(torch.ones(()))
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
    scaler.update()
    assert scaled.table.weight.equal(before) and scaler.get_scale() == 2.0**9


def test_training_is_that_of_a_dense_table(plans, bag):
    """With plain SGD, for which rows without a gradient stay where they are anyway; the last rows are never seen."""
    trainers = [
        Trainer(
            set_up(
                Settings(
                    exp=bag,
                    set=(f"sparse={sparse}",),
                    training_plan=plans["plain"],
                    context_len=16,
                    batch_size=7,
                    mini_batch_size=3,
                    max_steps=6,
                    optimizer="adagrad",
                    lr=0.05,
                    device="cpu",
                    grad_clip=0.3,
                    validation_interval=3,
                    run_name=f"sparse-{sparse}",
                )
            )
        )
        for sparse in ("true", "false")
    ]
    first = trainers[0].model.tokens.weight.detach().clone()
    for trainer in trainers:
        assert trainer.train() == "finished"
    sparse, dense = (trainer.model for trainer in trainers)
    assert type(sparse.tokens).__name__ == "Table" and len(trainers[0].optimizers) == 2
    for name, parameter in sparse.named_parameters():
        torch.testing.assert_close(parameter, dense.get_parameter(name), rtol=1e-4, atol=1e-6, msg=name)
    moved = (sparse.tokens.weight != first).any(1)
    assert moved[ord("a")] and not moved[200:250].any()
    rows = [(t.setup.folder / "train.csv").read_text().splitlines()[-1].split(",") for t in trainers]
    header = (trainers[0].setup.folder / "train.csv").read_text().splitlines()[0].split(",")
    for name in ("loss", "gradient_norm"):
        assert float(rows[0][header.index(name)]) == pytest.approx(float(rows[1][header.index(name)]), rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "adagrad", "muon"])
def test_killed_and_continued_to_the_bit(trainer, plans, bag, work, optimizer):
    flags = [*FLAGS, "--training-plan", plans["plain"], "--optimizer", optimizer]
    assert trainer(*flags, "--out", "left_alone").status == 0
    assert trainer(*flags, at=At(forward=True, count=15, signals=(signal.SIGKILL,))).status == -signal.SIGKILL
    again = trainer(*flags)
    assert again.status == 0 and "continuing after step 6" in again.err, again.err
    for name in ("model", "optimizer"):
        ours, theirs = (
            work / out / "run/checkpoints/step_00000010" / f"{name}.safetensors" for out in ("gpt_out", "left_alone")
        )
        assert ours.read_bytes() == theirs.read_bytes()


def test_check_grads_reads_row_sparse_gradients(plans, bag, work):
    setup = set_up(Settings(exp=bag, training_plan=plans["plain"], context_len=16, device="cpu"))
    assert gradient_faults(setup) == []


def test_tokens_go_where_the_rest_of_the_model_is():
    model = Model()
    model.inner.to("meta")
    assert adapters.device_of(model).type == "meta" and adapters.device_of(Model()).type == "cpu"
    assert adapters.device_of(nn.Embedding(3, 2, sparse=True)).type == "cpu"


def test_python_numbers_of_an_optimiser_come_back_as_such(tmp_path):
    model = Model()
    optimizers = make_optimizers(model, "adamw", LR, 0.0, BETAS, EPS)
    for _ in range(3):
        backward(model, torch.tensor([1, 2]))
        for optimizer in optimizers:
            optimizer.step()
    checkpoint = checkpoints.save(tmp_path, 3, model, optimizers, {"keep": False})
    other = Model()
    again = make_optimizers(other, "adamw", LR, 0.0, BETAS, EPS)
    checkpoints.load(checkpoint, other, again)
    step = again[-1].state[other.table.weight]["step"]
    assert step == 3 and type(step) is int and type(optimizers[-1].state[model.table.weight]["step"]) is int
