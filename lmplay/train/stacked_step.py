"""Take the steps of several seeds of one model at once: their weights stacked, each product taken for all of them.

A seed's gradient never depends on another's weights or sequences. `torch.vmap` runs the model's own forward over the
stack, and the backward pass goes through what it ran: plain operations, so that no operation needs a rule for its
gradient. Each seed's head and loss are its own, and so are clipping and optimizers: what a step leaves is what a step
of that seed alone leaves, rounding aside.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lmplay.contract import NOT_SCORED
from lmplay.model.adapters import fused_head, head_is_last, sparse_parameters, split_output
from lmplay.model.left_out import LeftOut, run_forward
from lmplay.model.loss import Score, compile_scores, fused_score, plain_score
from lmplay.model.shortcuts import LOSS, not_taken, shadow
from lmplay.runs.names import EXTRA_PREFIX
from lmplay.train.batches import Batch
from lmplay.train.step import EagerStep, Figures, rows_at_once

Weights = dict[str, Tensor]


class NotStackable(Exception):
    """Why seeds of a model can't be trained in one stack."""


class _Run(nn.Module):
    """Runs a model's forward. With `compiled` only its body, where a head is all that follows."""

    def __init__(self, model: nn.Module, compiled: bool) -> None:
        super().__init__()
        self.model, self.compiled = model, compiled
        self.only_body = compiled and head_is_last(model)

    def forward(self, tokens: Tensor) -> tuple[Tensor, dict[str, Any], bool]:
        """Return what the head was given (B, T, D), or logits (B, T, V), what is reported, and whether it is logits."""
        model: Any = self.model
        if self.compiled:
            output, extra = split_output((model.body if self.only_body else model)(tokens))
            return output, extra, not self.only_body
        logits, extra = run_forward(model, tokens)
        given = logits.given() if isinstance(logits, LeftOut) and LOSS not in not_taken(model) else None
        if given is not None:
            return given[0], extra, False
        return (logits.itself() if isinstance(logits, LeftOut) else logits), extra, True


def attention_that_stacks(device: torch.device) -> AbstractContextManager:
    """Leave torch's memory-efficient attention out on a GPU: its backward pass refuses a stack under vmap."""
    if device.type != "cuda":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])


class StackedStep:
    """Takes the same step of several seeds: one EagerStep each, of one experiment under the same settings.

    compiled: run the stack through torch.compile.
    Raises NotStackable where that is known from the models.
    """

    def __init__(self, seeds: Sequence[EagerStep], compiled: bool = False) -> None:
        self.seeds, first = list(seeds), seeds[0]
        self.device, self.precision, self.settings = first.device, first.precision, first.settings
        if why := obstacle(first):
            raise NotStackable(why)
        for seed in self.seeds:
            head_is_last(seed.model)  # is found out once per model, and not while it runs in a stack
            if compiled:
                compile_scores(seed.model)
        self.run = _Run(shadow(first.model), compiled)
        self.names = [f"model.{name}" for name, _ in first.model.named_parameters()]
        self.buffers = [f"model.{name}" for name, _ in first.model.named_buffers()]
        self.logits = False  # whether the last forward gave logits
        self.forward: Callable = torch.compile(self._forward) if compiled else self._forward

    def gradients(self, batches: Sequence[Batch], micro_batch_size: int) -> list[Figures]:
        """Leave on every seed's parameters the gradient of its mean loss over its batch; return each one's figures.

        micro_batch_size: rows of one seed that are taken at once.
        """
        first = batches[0]
        size = rows_at_once(first, micro_batch_size)
        size += -size % first.n_directions
        figures: list[Figures] = [{"loss_sum": 0.0, "n_correct": 0} for _ in batches]
        for start in range(0, len(first.inputs), size):
            rows = slice(start, start + size)
            inputs = torch.stack([batch.inputs[rows] for batch in batches]).to(self.device)
            targets = torch.stack([batch.targets[rows] for batch in batches])
            scored = [_scored(one) for one in targets]
            more = self.add_gradients(batches, inputs, targets.to(self.device), scored)
            for total, part in zip(figures, more, strict=True):
                for name, value in part.items():
                    total[name] = total.get(name, 0.0) + value
        return figures

    def add_gradients(
        self, batches: Sequence[Batch], inputs: Tensor, targets: Tensor, scored: Sequence[Tensor | None]
    ) -> list[Figures]:
        """Add to the gradients those of a micro-batch; return what it adds to each seed's figures.

        inputs, targets: (S, B, T) on the device, of the S seeds. scored: each seed's indices of scored tokens on the
        CPU, None for all.
        """
        share = inputs.size(1) / len(batches[0].inputs)
        found: list[Figures] = []
        objective: Any = 0.0
        with self.precision(), attention_that_stacks(self.device):
            outputs, extras = self.forward(self._weights(), inputs)
        for number, (seed, batch, rows) in enumerate(zip(self.seeds, batches, scored, strict=True)):
            rows = None if rows is None else rows.to(self.device)
            extra = {name: value[number] for name, value in extras.items()}
            with self.precision():
                result = self._score(seed.model, outputs[number], targets[number], rows, extra)
            objective = objective + result.loss_sum / batch.n_scored
            if "loss" in extra:
                objective = objective + extra["loss"] * share
            more: Figures = {"loss_sum": result.loss_sum.detach(), "n_correct": result.correct.sum()}
            for name, value in extra.items():
                more[EXTRA_PREFIX + name] = value.detach() * share
            losses = batch.direction_losses(result.losses, rows)
            found.append(more | {EXTRA_PREFIX + name: value for name, value in losses.items()})
        objective.backward()
        return found

    def change(self, batches: Sequence[Batch], figures: Sequence[Figures]) -> list[Figures]:
        """Change each seed's weights by its gradients; return each one's figures with the norm."""
        return [seed.change(batch, own) for seed, batch, own in zip(self.seeds, batches, figures, strict=True)]

    def __call__(self, batches: Sequence[Batch], micro_batch_size: int) -> list[Figures]:
        """Take a step of every seed and return each one's figures."""
        return self.change(batches, self.gradients(batches, micro_batch_size))

    def takes(self, batches: Sequence[Batch]) -> bool:
        """Whether the batches fit beside each other, and each scores a token."""
        return len({batch.inputs.shape for batch in batches}) == 1 and all(batch.n_scored for batch in batches)

    def _score(
        self, model: nn.Module, output: Tensor, targets: Tensor, rows: Tensor | None, extra: dict[str, Any]
    ) -> Score:
        """Score what the stack gave for a seed by the head of its own model."""
        if self.logits:
            return plain_score(output, targets, rows, extra)
        head = fused_head(model)
        assert head is not None
        return fused_score(model, (output, head.weight, head.bias), targets, rows, extra)

    def _weights(self) -> Weights:
        """Return parameters and buffers by name, each (S, ...): in the graph of the backward pass."""
        parameters = zip(*(seed.model.parameters() for seed in self.seeds), strict=True)
        buffers = zip(*(seed.model.buffers() for seed in self.seeds), strict=True)
        named = [*zip(self.names, parameters, strict=True), *zip(self.buffers, buffers, strict=True)]
        return {name: torch.stack(of_seeds) for name, of_seeds in named}

    def _forward(self, weights: Weights, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the model over the stack: inputs (S, B, T) -> (S, B, T, D or V), and what is reported, (S,) each."""

        def one(own: Weights, tokens: Tensor) -> tuple[Tensor, dict[str, Any]]:
            output, extra, self.logits = functional_call(self.run, own, (tokens,))
            return output, extra

        with _quiet():
            return torch.vmap(one)(weights, inputs)


def obstacle(step: EagerStep) -> str | None:
    """Return why seeds of this model can't be stacked, as far as it is known without a trial; None if nothing is."""
    if step.scaler.is_enabled():
        return "the loss is scaled for float16, by a factor of each seed's own"
    if sparse_parameters(step.model):
        return "a table has row-sparse gradients"
    if any(p.device != step.device for p in step.parameters):
        return "not all parameters are on the device"
    return None


def _scored(targets: Tensor) -> Tensor | None:
    """Return the indices of the scored tokens of targets (B, T) on the CPU; None for all."""
    mask = targets.flatten() != NOT_SCORED
    return None if mask.all() else mask.nonzero().squeeze(1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from warning, within the block, that it takes an operation seed by seed."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "There is a performance drop because we have not yet implemented the batching"
        )
        yield
