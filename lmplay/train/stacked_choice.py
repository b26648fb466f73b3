"""Try on the spot whether seeds are trained in one stack: equal losses, and more speed. Nothing of the trial stays."""

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from lmplay.train.batches import Batch
from lmplay.train.capture_choice import choose, known_obstacle
from lmplay.train.captured_memory import untouched
from lmplay.train.captured_step import NotCapturable
from lmplay.train.device_rates import DeviceRates
from lmplay.train.memory import MicroBatches
from lmplay.train.optimizers import set_rates
from lmplay.train.stacked_graph import StackedGraph
from lmplay.train.stacked_step import NotStackable, StackedStep
from lmplay.train.step import EagerStep, Figures, Packed, Step, Wanted, read_figures

TRIAL_STEPS = 2
EQUAL, EQUAL_IN_HALF = 1e-4, 1e-2  # relative difference of losses and gradient norms, in float32 and with --amp
PAYS = 1.05  # times as fast as one seed after the other
TIMED_SECONDS = 0.3

Take = Callable[[Sequence[Batch], int], list[Any]]


class StackedStepper:
    """Takes the steps that several seeds want: one for each of them, in one stack.

    seeds: each one's EagerStep. size: rows of a seed that are taken at once. graph: replays whole batches, None where
    each is taken one operation at a time. compiled: the models are.
    """

    def __init__(self, seeds: Sequence[EagerStep], size: int, compiled: bool = False) -> None:
        self.seeds, self.stack = list(seeds), StackedStep(seeds, compiled)
        self.device, self.settings = seeds[0].device, seeds[0].settings
        parameters = [p for seed in seeds for p in seed.parameters]
        self.micro_batches = MicroBatches(size, parameters, self.device)
        self.graph: StackedGraph | None = None

    def __call__(self, wanted: Sequence[Wanted]) -> list[Figures | Packed]:
        """Take a step of every seed and return each one's figures."""
        batches, first = [one.batch for one in wanted], wanted[0]
        if self.graph is not None:
            self.graph.rates.set(first.factor, first.progress)
            if self.graph.takes(batches):
                return list(self.graph(batches))
        else:
            for seed in self.seeds:
                set_rates(seed.optimizers, first.factor, first.progress)
        if self.stack.takes(batches):
            return list(self.stack.change(batches, self.micro_batches.run(lambda n: self.stack.gradients(batches, n))))
        return list(self.one_by_one(batches, first.step))

    def one_by_one(self, batches: Sequence[Batch], step: int) -> list[Figures]:
        """Take the steps seed by seed."""
        found = []
        for seed, batch in zip(self.seeds, batches, strict=True):
            gradients = functools.partial(seed.gradients, batch, step)
            found.append(seed.change(batch, self.micro_batches.run(gradients)))
        return found

    def choose(self, wanted: Sequence[Wanted], pays: float = 0.0) -> dict[str, Any]:
        """Try the stack on batches; return the note for run.json. Raises NotStackable.

        pays: it must be at least that many times as fast as one seed after the other; 0: however fast.
        """
        batches = [one.batch for one in wanted]
        whole = all(len(b.inputs) == self.settings.batch_size * b.n_directions for b in batches)
        if not (self.stack.takes(batches) and whole):
            raise NotStackable("the seeds have no whole batch to try it on")
        fresh = not any(optimizer.state for seed in self.seeds for optimizer in seed.optimizers)
        try:
            difference = self._difference(batches)
            if self.device.type == "cuda" and self.settings.cuda_graph != "off":
                self._capture(batches)
            note = {"seeds": len(batches), "graph": self.graph is not None, "difference": difference}
            if pays:
                note["speed"] = round(self._speed(batches), 2)
                if note["speed"] < pays:
                    raise NotStackable(f"one after the other is faster here ({note['speed']:g} times as fast together)")
        except NotStackable:
            self.release()
            if fresh:
                for optimizer in (optimizer for seed in self.seeds for optimizer in seed.optimizers):
                    optimizer.state.clear()
            raise
        return note

    def release(self) -> None:
        """Let go of the graph."""
        if self.graph is not None:
            self.graph.release()
            self.graph = None

    def _difference(self, batches: Sequence[Batch]) -> float:
        """Return by how much losses and norms differ from those alone, as a part of their size. Raises NotStackable."""
        alone = self._figures(batches, self.one_by_one)
        try:
            stacked = self._figures(batches, lambda of_seeds, step: self._eagerly(of_seeds))
        except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise NotStackable(f"its forward can't be run over a stack of seeds ({said})") from error
        pairs = [(one[k], other[k]) for one, other in zip(alone, stacked, strict=True) for k in NAMES]
        found = max(abs(a - b) / max(abs(a), 1e-30) if math.isfinite(a - b) else math.inf for a, b in pairs)
        if not found <= (EQUAL_IN_HALF if self.settings.amp else EQUAL):
            raise NotStackable(f"its losses together are not those alone (they differ by {found:.1g} of their size)")
        return found

    def _eagerly(self, batches: Sequence[Batch]) -> list[Figures]:
        return self.stack.change(batches, self.micro_batches.run(lambda n: self.stack.gradients(batches, n)))

    def _figures(self, batches: Sequence[Batch], take: Take) -> list[dict[str, float]]:
        """Return the figures of a few steps, seed by seed, each step on other rows and at another rate."""
        steps = []
        with self._untouched():
            for number in range(TRIAL_STEPS):
                for seed in self.seeds:
                    set_rates(seed.optimizers, 0.1 * (1 + number))
                moved = [batch.moved(number * batch.n_directions) for batch in batches]
                steps += [Step({}, 0, b.n_scored, 0.0, f) for b, f in zip(moved, take(moved, number), strict=True)]
            return read_figures(steps, self.device)

    def _capture(self, batches: Sequence[Batch]) -> None:
        """Let whole batches be replayed as a graph, where that works and they fit at once."""
        if known_obstacle(self.seeds[0]) or self.micro_batches.size < len(batches[0].inputs):
            return
        try:
            self.graph = StackedGraph(self.stack, batches)
        except (NotCapturable, RuntimeError, TypeError, ValueError):
            for seed in self.seeds:
                DeviceRates(seed.optimizers, self.device).release()

    def _speed(self, batches: Sequence[Batch]) -> float:
        """Return how many times as fast a step of the stack is as the steps of its seeds in their own best way."""
        first, batch = self.seeds[0], batches[0]
        size = min(first.settings.mini_batch_size or self.micro_batches.size * len(batches), len(batch.inputs))
        together = self._seconds(lambda: self(self._again(batches)))
        if self.graph is not None:
            self.graph.rates.release()
        captured, _ = choose(first, batch, micro_batch_size=size, before=None, resumed=False)
        if captured is None:
            alone = self._seconds(lambda: first.change(batch, first.gradients(batch, 0, size)))
        else:
            alone = self._seconds(lambda: captured(batch, 0))
            captured.release()
        if self.graph is not None:
            self.graph.rates.bind()
        return len(batches) * alone / together

    def _again(self, batches: Sequence[Batch]) -> list[Wanted]:
        return [Wanted(batch, 0, 0.1) for batch in batches]

    def _seconds(self, take: Callable[[], Any]) -> float:
        """Return the seconds of a step, the least of a few, without a lasting effect."""
        found: list[float] = []
        began = time.perf_counter()
        with self._untouched():
            while len(found) < 3 or (time.perf_counter() - began < TIMED_SECONDS and len(found) < 20):
                self._wait()
                started = time.perf_counter()
                take()
                self._wait()
                found.append(time.perf_counter() - started)
        return min(found)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _untouched(self) -> Any:
        models = nn.ModuleList(seed.model for seed in self.seeds)
        return untouched(models, [optimizer for seed in self.seeds for optimizer in seed.optimizers])


NAMES = ("loss_sum", "gradient_norm")
