"""Replay the step of several seeds as one CUDA graph: forward, backward, and each seed's clipping and optimizers."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from lmplay.train.batches import Batch
from lmplay.train.capture_checks import check_repeats
from lmplay.train.captured_memory import untouched
from lmplay.train.captured_step import WARM_UPS, NotCapturable
from lmplay.train.device_rates import DeviceRates
from lmplay.train.stacked_step import StackedStep
from lmplay.train.step import Packed, change_weights


class StackedGraph:
    """Takes steps of whole batches of one shape, which fit at once. `rates.set` comes before each step.

    batches: of the shape that it takes. With `capture` False nothing is recorded: the same function runs each time, on
    any device. Raises NotCapturable where a step can't be replayed.
    """

    def __init__(self, stack: StackedStep, batches: Sequence[Batch], capture: bool = True) -> None:
        self.stack, self.device, self.shape = stack, stack.device, batches[0].inputs.shape
        self.optimizers = [optimizer for seed in stack.seeds for optimizer in seed.optimizers]
        self.models = nn.ModuleList(seed.model for seed in stack.seeds)
        n = len(batches) * batches[0].inputs.numel()
        self.flat = torch.zeros(2 * n + len(batches), dtype=torch.int64, device=self.device)
        self.inputs, self.targets = (half.view(len(batches), *self.shape) for half in self.flat[: 2 * n].split(n))
        n_scored: Sequence = self.flat[2 * n :].unbind()
        self.seen = [
            Batch(self.inputs[i], self.targets[i], n_scored=n_scored[i], n_bytes=0.0, directions=batch.directions)
            for i, batch in enumerate(batches)
        ]
        self.names: tuple[str, ...] = ()
        self.rates = DeviceRates(self.optimizers, self.device)
        self.replay = self._record(batches) if capture else self._look(batches)

    def takes(self, batches: Sequence[Batch]) -> bool:
        """Whether these are whole batches that each score a token."""
        return all(batch.inputs.shape == self.shape and batch.n_scored for batch in batches)

    def __call__(self, batches: Sequence[Batch]) -> list[Packed]:
        """Take a step of every seed and return each one's figures, which the device may still be computing."""
        self._fill(batches)
        self.replay()
        return [Packed(self.names, values) for values in self.results.clone()]

    def release(self) -> None:
        """Give the optimizers plain learning rates back, and let go of the graph."""
        self.rates.release()
        self.replay = _nothing
        for seed in self.stack.seeds:
            for p in seed.parameters:
                p.grad = None

    def _fill(self, batches: Sequence[Batch]) -> None:
        """Put batches into the graph's memory, in one copy that the device makes when it gets to it."""
        parts = [b.inputs.flatten() for b in batches] + [b.targets.flatten() for b in batches]
        there = torch.cat([*parts, torch.tensor([b.n_scored for b in batches])])
        if self.device.type == "cuda":
            there = there.pin_memory()
        self.flat.copy_(there, non_blocking=True)

    def _step(self) -> None:
        figures = self.stack.add_gradients(self.seen, self.inputs, self.targets, [None] * len(self.seen))
        for seed, own in zip(self.stack.seeds, figures, strict=True):
            own["gradient_norm"] = change_weights(seed.optimizers, seed.parameters, seed.scaler, seed.settings)
        if not self.names:
            self.names = tuple(figures[0])
            self.results = torch.zeros(len(figures), len(self.names), device=self.device)
        values = [torch.stack([value.float().reshape(()) for value in of.values()]) for of in figures]
        self.results.copy_(torch.stack(values))

    def _look(self, batches: Sequence[Batch]) -> Callable[[], None]:
        """Find out by each operation of a step whether it can be recorded. Raises NotCapturable."""
        self._fill(batches)
        with untouched(self.models, self.optimizers), torch.compiler.set_stance("force_eager"):
            self._step()
            check_repeats(self._step, self.device, self.stack.run)
        return self._step

    def _record(self, batches: Sequence[Batch]) -> Callable[[], None]:
        """Run a step without a lasting effect, and record it."""
        self._look(batches)
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with untouched(self.models, self.optimizers), torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._step()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self._step()
        return graph.replay


def _nothing() -> None:
    raise NotCapturable("its graph was released")
