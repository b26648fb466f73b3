"""Steps of several seeds at once: each seed's losses and weights are those of its steps alone."""

import functools

import pytest
import torch

from lmplay import contract, registry
from lmplay.contract import NOT_SCORED
from lmplay.model.device import precision
from lmplay.runs.settings import Settings
from lmplay.train.batches import Batch
from lmplay.train.optimizers import make_optimizers, set_rates
from lmplay.train.stacked_graph import StackedGraph
from lmplay.train.stacked_step import StackedStep
from lmplay.train.step import EagerStep, Step, read_figures

CPU = torch.device("cpu")
SEEDS, ROWS, LENGTH, VOCABULARY = 4, 4, 16, 40
SHAPE = {"n_layer": 1, "n_embd": 16, "n_head": 2}


class Seeds:
    """New models of an experiment, one per seed, and batches for them."""

    def __init__(self, name, optimizer="adamw", **fields):
        entry, variant = registry.find(name)
        experiment = contract.load(entry)
        known = experiment.Config.__dataclass_fields__
        config = experiment.config(
            variant, VOCABULARY, LENGTH, **{k: v for k, v in {**SHAPE, **fields}.items() if k in known}
        )
        self.experiment = experiment.bound(config)
        self.steps = []
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            model = self.experiment.build(config).train()
            self.steps.append(
                EagerStep(
                    model=model,
                    optimizers=make_optimizers(model, optimizer, 0.003, 0.1, (0.9, 0.95), 1e-8),
                    parameters=[p for p in model.parameters() if p.requires_grad],
                    settings=Settings(batch_size=ROWS, seed=seed),
                    device=CPU,
                    precision=functools.partial(precision, CPU, False, LENGTH),
                    scaler=torch.amp.GradScaler("cpu", enabled=False),
                )
            )

    def batches(self, number, hidden=0):
        """Random tokens for each seed; of seed s the first `hidden` * s tokens are not scored."""
        found = []
        for seed in range(SEEDS):
            draw = torch.Generator().manual_seed(100 * number + seed)
            tokens = torch.randint(VOCABULARY - 1, (ROWS, LENGTH), generator=draw)
            inputs, targets, _ = self.experiment.make_batch(tokens, VOCABULARY - 1, seed)
            targets[:, : hidden * seed] = NOT_SCORED
            n_scored = int((targets != NOT_SCORED).sum())
            found.append(Batch(inputs, targets, n_scored, 1.0, directions=self.experiment.direction_names))
        return found


def losses(figures, batch):
    rows = read_figures([Step({}, 0, batch.n_scored, 1.0, figures)], CPU)
    return rows[0]


@pytest.mark.parametrize("name", ("gpt2ish", "llama2", "modern"))
def test_four_stacked_seeds_are_four_single_runs(name):
    alone, together = Seeds(name), Seeds(name)
    stack = StackedStep(together.steps)
    for number in range(30):
        batches = alone.batches(number)
        stacked = stack(batches, ROWS)
        for seed, (step, batch) in enumerate(zip(alone.steps, batches, strict=True)):
            one = losses(step.change(batch, step.gradients(batch, number, ROWS)), batch)
            other = losses(stacked[seed], batch)
            assert other == pytest.approx(one, rel=1e-5)
    for one, other in zip(alone.steps, together.steps, strict=True):
        for p, q in zip(one.parameters, other.parameters, strict=True):
            assert (p - q).norm() <= 1e-3 * p.norm() + 1e-6  # the gradient of a bias of keys is rounding alone


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("gpt2ish", {"tied": True}),
        ("unified_weights", {}),  # derives its weights, and has a head of its own making
        ("both_ways", {}),  # reads in two directions
    ],
)
def test_micro_batches_and_tokens_that_are_not_scored(name, fields):
    alone, together = Seeds(name, **fields), Seeds(name, **fields)
    stack = StackedStep(together.steps)
    for number in range(2):
        batches = alone.batches(number, hidden=3)
        stacked = stack(batches, 3)
        for seed, (step, batch) in enumerate(zip(alone.steps, batches, strict=True)):
            one = losses(step.change(batch, step.gradients(batch, number, 3)), batch)
            assert losses(stacked[seed], batch) == pytest.approx(one, rel=1e-4)


def test_what_a_graph_records_does_what_the_stack_does():
    eager, recorded = Seeds("gpt2ish"), Seeds("gpt2ish")
    stack = StackedStep(eager.steps)
    batches = eager.batches(0, hidden=2)
    graph = StackedGraph(StackedStep(recorded.steps), batches, capture=False)
    for number in range(3):
        batches = eager.batches(number, hidden=2)
        for step in eager.steps:
            set_rates(step.optimizers, 0.5)
        graph.rates.set(0.5)
        assert graph.takes(batches)
        for one, other, batch in zip(stack(batches, ROWS), graph(batches), batches, strict=True):
            assert losses(other, batch) == pytest.approx(losses(one, batch), rel=1e-5)
