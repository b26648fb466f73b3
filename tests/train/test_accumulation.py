"""One step has the same gradient however it is split into micro-batches."""

import pytest
import torch

from lmplay.runs.settings import Settings
from lmplay.train.loop import Trainer
from lmplay.train.setup import set_up
from support.steps import before_step

FIELDS = ("n_layer=1", "n_embd=16", "n_head=2")
PENALTY = """
class Model(Model):
    def body(self, tokens, cache=None):
        weights = self.head.weight.square().mean()
        return super().body(tokens, cache), {"loss": 3.0 * weights, "weights": weights}

    def forward(self, tokens, cache=None):
        hidden, extra = self.body(tokens, cache)
        return self.head(hidden), extra
"""

# what differs from row to row, and what is reported of all rows alike
BY_ROW = """
class Model(Model):
    def forward(self, tokens, cache=None):
        hidden = self.body(tokens, cache)
        firsts = (tokens[:, :3] * hidden[:, :3].square().sum(-1)).mean(1)
        return self.head(hidden), {"loss": firsts.mean(), "three": 3.0, "firsts": firsts.detach().mean()}
"""


def first_step(plan, mini_batch_size, **options):
    """The gradient of the first step of a real run, as one vector, and the row that the run wrote about it."""
    settings = Settings(
        **{
            "exp": "gpt2ish",
            "set": FIELDS,
            "training_plan": plan,
            "context_len": 16,
            "batch_size": 21,
            "max_steps": 1,
            "mini_batch_size": mini_batch_size,
            "device": "cpu",
            "grad_clip": 0.0,
            "run_name": f"by-{mini_batch_size}",
            **options,
        }
    )
    trainer = Trainer(set_up(settings))
    gradients = []

    parameters = list(trainer.model.parameters())
    before_step(
        trainer.optimizers[0], lambda: gradients.append(torch.cat([p.grad.flatten().double() for p in parameters]))
    )
    assert trainer.train() == "finished"
    header, row = (trainer.setup.folder / "train.csv").read_text().splitlines()
    return gradients[0], dict(zip(header.split(","), row.split(",")))


@pytest.mark.parametrize("plan", ["plain", "answers"])
@pytest.mark.parametrize("addition", ["", PENALTY, BY_ROW], ids=["loss", "loss and a penalty", "by row"])
def test_gradient_does_not_depend_on_the_mini_batch_size(plans, experiment, plan, addition):
    experiment("mine", addition)
    wanted, row = first_step(plans[plan], 21, exp="mine")
    scored = int(row["tokens"])
    assert scored == 21 * 16 if plan == "plain" else 0 < scored < 21 * 16 * 0.8  # many prompts, unevenly spread
    for size in (1, 3, 7, 20):
        gradient, other = first_step(plans[plan], size, exp="mine")
        assert (gradient - wanted).norm() <= 1e-6 * wanted.norm()
        assert float(other["loss"]) == pytest.approx(float(row["loss"]), rel=1e-6)
        assert (other["tokens"], other["accuracy"]) == (row["tokens"], row["accuracy"])
        for name in ("x_loss", "x_three", "x_firsts"):
            assert float(other.get(name, 0)) == pytest.approx(float(row.get(name, 0)), rel=2e-6)
        assert float(other.get("x_three", 3)) == pytest.approx(3, rel=1e-6)


SHIPPED = {
    "pldr:tiny": ("n_layer=1", "n_head=2", "n_embd=16", "n_hidden=16", "n_unit=1", "metric_hidden=4", "chunk=4")
    + ("dag_metric=1", "dag_potential=0.5", "dag_operator=2"),
    "rank_promotion:tiny": ("n_layer=1", "n_head=2", "n_embd=16", "scales=3,4"),
}


@pytest.mark.parametrize("exp", SHIPPED)
def test_shipped_experiments_mean_their_own_loss_over_rows(plans, work, exp):
    options = {"exp": exp, "set": SHIPPED[exp], "batch_size": 8}
    wanted, row = first_step(plans["answers"], 8, **options)
    gradient, other = first_step(plans["answers"], 1, **options)
    assert (gradient - wanted).norm() <= 1e-5 * wanted.norm()
    assert float(other["x_loss"]) == pytest.approx(float(row["x_loss"]), rel=1e-5) and float(row["x_loss"]) > 0


def test_gradient_is_that_of_the_mean_over_scored_tokens(plans, work):
    """Against one plain cross-entropy over the whole batch."""
    gradient, row = first_step(plans["answers"], 3)
    settings = Settings(
        set=FIELDS, training_plan=plans["answers"], context_len=16, batch_size=21, run_name="plain", device="cpu"
    )
    setup = set_up(settings)
    torch.manual_seed(settings.seed)
    model = setup.experiment.build(setup.config).double()
    windows = setup.phases[0].order.windows(0, 21)
    tokens, eot = torch.from_numpy(windows.tokens), setup.data.tokenizer.eot
    inputs = torch.cat([torch.full((21, 1), eot), tokens[:, :-1]], dim=1)
    losses = -model(inputs).log_softmax(-1).gather(2, tokens[..., None]).squeeze(2)
    loss = losses[torch.from_numpy(windows.scored)].mean()
    loss.backward()
    wanted = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert (gradient - wanted).norm() <= 1e-6 * wanted.norm()
    assert float(row["loss"]) == pytest.approx(loss.item(), rel=1e-6)
    assert int(row["tokens"]) == windows.scored.sum()


def test_extra_loss_is_trained_on_but_not_recorded_as_the_loss(plans, experiment):
    experiment("mine", PENALTY)
    with_it, row = first_step(plans["plain"], 7, exp="mine")
    without, plain = first_step(plans["plain"], 7, run_name="without")
    assert row["loss"] == plain["loss"] and row["bits_per_byte"] == plain["bits_per_byte"]
    assert (with_it - without).norm() > 1e-3 * without.norm()
    assert float(row["x_loss"]) == pytest.approx(3 * float(row["x_weights"]), rel=1e-6) and float(row["x_weights"]) > 0
