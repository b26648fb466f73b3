"""Steps of a small model, taken eagerly and as they are captured."""

import functools

import torch

from lmplay import contract, registry
from lmplay.contract import NOT_SCORED
from lmplay.model.device import precision
from lmplay.runs.settings import Settings
from lmplay.train.batches import Batch
from lmplay.train.captured_step import CapturedStep
from lmplay.train.optimizers import make_optimizers, set_rates
from lmplay.train.step import EagerStep, Step, read_figures

CPU = torch.device("cpu")
ROWS, LENGTH, VOCABULARY = 6, 16, 40
SHAPE = {"n_layer": 1, "n_embd": 16, "n_head": 2, "dropout": 0.2}


class Taking:
    """A new model of an experiment, and steps on its batches; `capture` records what is captured."""

    def __init__(self, name, micro, optimizer="adamw", device=CPU, capture=False, amp=False, **fields):
        entry, variant = registry.find(name)
        experiment = contract.load(entry)
        known = experiment.Config.__dataclass_fields__
        config = experiment.config(
            variant, VOCABULARY, LENGTH, **{k: v for k, v in {**SHAPE, **fields}.items() if k in known}
        )
        self.experiment, self.micro, self.device = experiment.bound(config), micro, device
        torch.manual_seed(0)
        self.model = self.experiment.build(config).to(device).train()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizers = make_optimizers(self.model, optimizer, 0.01, 0.1, (0.9, 0.95), 1e-8)
        eager = EagerStep(
            model=self.model,
            optimizers=self.optimizers,
            parameters=self.parameters,
            settings=Settings(batch_size=ROWS, optimizer=optimizer),
            device=device,
            precision=functools.partial(precision, device, amp, LENGTH),
            scaler=torch.amp.GradScaler(device.type, enabled=False),
        )
        self.captured = CapturedStep(eager, micro, capture)

    def batch(self, seed, hidden=0):
        """Random tokens; the first `hidden` of each row are not scored."""
        tokens = torch.randint(VOCABULARY - 1, (ROWS, LENGTH), generator=torch.Generator().manual_seed(seed))
        inputs, targets, _ = self.experiment.make_batch(tokens, VOCABULARY - 1, seed)
        targets[:, :hidden] = NOT_SCORED
        n_scored = int((targets != NOT_SCORED).sum())
        return Batch(inputs, targets, n_scored, 1.0, directions=self.experiment.direction_names)

    def eagerly(self, batch, step):
        return self.captured.eagerly(batch, step)

    def released(self):
        """Train eagerly after `release`, as a run does whose trial failed."""
        return self.train(self.eagerly, rates=lambda factor: set_rates(self.optimizers, factor))

    def with_fault(self, fault):
        """Let each call of the model call `fault`, too, with the model and what its head reads."""

        class Changed(type(self.model)):
            __module__ = type(self.model).__module__

            def body(self, tokens, *args, **kwargs):
                x = super().body(tokens, *args, **kwargs)
                self.calls = getattr(self, "calls", 0) + 1
                fault(self, x)
                return x

        self.model.__class__ = Changed
        return self

    def train(self, take, steps=4, hidden=0, rates=None, hidden_from=0):
        """Return the figures of each step and the weights after the last. rates: what sets them, for eager steps.

        hidden_from: the first step in which tokens are hidden.
        """
        found = []
        for number in range(steps):
            batch = self.batch(number, hidden if number >= hidden_from else 0)
            (rates or self.captured.set_rates)(1 / (1 + number))
            assert self.captured.takes(batch)
            found.append(Step({}, 0, batch.n_scored, 1.0, take(batch, number)))
        return read_figures(found, self.device), [p.detach().cpu().clone() for p in self.model.parameters()]
