"""Take a step as CUDA graphs: what Python launches in a step is recorded once, and replayed by one call from then on.

A small model leaves a GPU waiting for Python. A replayed graph needs none: it reads the micro-batch, the learning rates
and the random seed from memory, where they are put before. The numbers are those of the same step taken eagerly:

- A batch that fits at once is one graph: forward, backward, clipping, optimizers.
- One of several micro-batches is three: the beginning (gradients to zero, `derive`), the micro-batch, the end.
- Before each micro-batch the GPU's generator is seeded as in an eager step, so dropout has the same masks.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lmplay.contract import NOT_SCORED
from lmplay.initial_values import seed_of
from lmplay.model.adapters import derived_once, offered
from lmplay.train.batches import Batch
from lmplay.train.captured_memory import Key, Part, Slot, key_of, untouched
from lmplay.train.device_rates import DeviceRates
from lmplay.train.step import EagerStep, Figures, Packed, add_gradient, change_weights, rows_at_once

WARM_UPS = 2  # eager rounds before a capture: libraries take their workspaces, optimizers make their state


class NotCapturable(Exception):
    """Why a step can't be replayed."""


class CapturedStep:
    """Takes steps of whole batches. `set_rates` comes before each step, also before one that is taken eagerly.

    eager: takes the same steps one operation at a time. With `capture` False nothing is recorded: the same functions
    run each time, on any device.
    """

    def __init__(self, eager: EagerStep, micro_batch_size: int, capture: bool = True) -> None:
        self.eager, self.micro_batch_size, self.capture = eager, micro_batch_size, capture
        self.model, self.optimizers, self.settings = eager.model, eager.optimizers, eager.settings
        device = self.device = eager.device
        self.names: tuple[str, ...] = ()
        self.results = self.totals = torch.zeros(0, device=device)
        self.slots: dict[Key, Slot] = {}
        self.graphs: dict[Any, Callable[[], None]] = {}
        self.gradients: list[tuple[Tensor, Tensor]] = []  # parameters and the memory of their gradients
        self.derived: dict[str, Tensor] = {}
        self.leaves: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.stream = torch.cuda.Stream(device) if capture else None
        self.pool = torch.cuda.graph_pool_handle() if capture else None
        # A micro-batch of a new shape is recorded after the end of a step. By then the pool counts as free what
        # `derive` keeps for its gradient from the beginning to the end of each step: the new graph must not use that.
        self.late_pool = torch.cuda.graph_pool_handle() if capture else None
        self.rates = DeviceRates(self.optimizers, device)

    def set_rates(self, factor: float, progress: float = 0.0) -> None:
        """Set every group's learning rate to `factor` of its initial one, without waiting for the device.

        progress: where the schedule stands, from 0 to 1, for what else changes over the steps.
        """
        self.rates.set(factor, progress)

    def takes(self, batch: Batch) -> bool:
        """Whether it takes this batch: a whole one (the last may be shorter) whose micro-batches all score a token."""
        if batch.n_windows != self.settings.batch_size or not batch.n_scored:
            return False
        if batch.n_scored == batch.targets.numel():
            return True
        scored = batch.targets != NOT_SCORED
        size = rows_at_once(batch, self.micro_batch_size)
        size += -size % batch.n_directions
        return all(part.any() for part in scored.split(size))

    def __call__(self, batch: Batch, step: int) -> Packed:
        """Take a step and return its figures, which the device may still be computing."""
        parts, keys = self._parts(batch)
        if len(parts) == 1:
            self.slots[keys[0]].fill(parts[0], batch.n_scored)
            self._prepare(("whole", keys[0]), parts, keys, batch)
            self._seed(step, 0)
            self.graphs["whole", keys[0]]()
        else:
            for key in keys:
                self._prepare(key, parts, keys, batch)
            self.graphs["begin"]()
            for number, (key, part) in enumerate(zip(keys, parts, strict=True)):
                self.slots[key].fill(part, batch.n_scored)
                self._seed(step, number)
                self.graphs[key]()
            self.graphs["end"]()
        return Packed((*self.names, "gradient_norm"), self.results.clone())

    def eagerly(self, batch: Batch, step: int) -> Figures:
        """Take the same step one operation at a time."""
        return self.eager.change(batch, self.eager.gradients(batch, step, self.micro_batch_size))

    def rehearsal(self, batch: Batch) -> Callable[[], None]:
        """Return what does eagerly all that is recorded for this batch."""
        parts, keys = self._parts(batch)
        for key, part in zip(keys, parts, strict=True):
            self.slots[key].fill(part, batch.n_scored)
        if len(parts) == 1:
            return lambda: self._whole(self.slots[keys[0]])
        with self._untouched():
            self._find_gradients([self.slots[key] for key in keys])
        bodies = [self._begin, *(self._adds(self.slots[key]) for key in keys), self._end]
        return lambda: _in_turn(bodies)

    def _parts(self, batch: Batch) -> tuple[list[Part], list[Key]]:
        """Return the micro-batches of a batch and the keys of their slots, which are there from now on."""
        parts = list(batch.parts(rows_at_once(batch, self.micro_batch_size), torch.device("cpu")))
        keys = [key_of(batch, part) for part in parts]
        for key in keys:
            if key not in self.slots:
                self.slots[key] = Slot(key, batch, self.device)
        return parts, keys

    def _prepare(self, name: Any, parts: list[Part], keys: list[Key], batch: Batch) -> None:
        """Record the graph of this name, and at the first accumulated batch all three."""
        if name in self.graphs:
            return
        if name[0] == "whole":
            slot = self.slots[name[1]]
            self._record({name: lambda: self._whole(slot)}, lambda: self._whole(slot))
            return
        distinct = dict(zip(keys, parts, strict=True))
        for key, part in distinct.items():
            self.slots[key].fill(part, batch.n_scored)
        slots = [self.slots[key] for key in distinct]
        if "begin" not in self.graphs:
            with self._untouched(), self._aside():
                self._find_gradients(slots)
            bodies: dict[Any, Callable[[], None]] = {"begin": self._begin}
            bodies |= {key: self._adds(self.slots[key]) for key in distinct} | {"end": self._end}
            self._record(bodies, lambda: _in_turn(bodies.values()))
        else:
            body = self._adds(self.slots[name])
            self._record({name: body}, body, late=True)
            self._let_go()

    def _record(self, bodies: dict[Any, Callable[[], None]], warm_up: Callable[[], None], late: bool = False) -> None:
        """Run `warm_up` without a lasting effect, then record the bodies in their order.

        late: they are replayed between others that were recorded before, whose memory is not theirs.
        """
        if not self.capture:
            self.graphs |= bodies
            return
        with self._untouched(), self._aside():
            for _ in range(WARM_UPS):
                warm_up()
        recorded = {}
        for name, body in bodies.items():
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.late_pool if late else self.pool, stream=self.stream):
                body()
            recorded[name] = graph.replay
        self.graphs |= recorded

    def _whole(self, slot: Slot) -> None:
        """Take a step of one micro-batch."""
        with derived_once(self.model, self.eager.precision):
            figures = self._add_gradient(slot)
        self._end_with(self._as_vector(figures))

    def _begin(self) -> None:
        """Set gradients and figures to zero, and derive what depends on the parameters alone."""
        self._hold_gradients()
        zeros = [self.totals, *(memory for _, memory in self.gradients), *self.sums.values()]
        torch._foreach_zero_(zeros)
        derive = offered(self.model, "derive")
        if derive is None:
            return
        with self.eager.precision():
            self.derived = derive()
        self.leaves = {name: t.detach().requires_grad_(t.requires_grad) for name, t in self.derived.items()}
        for name, leaf in self.leaves.items():
            if leaf.requires_grad:
                total = self.sums.get(name)
                if total is None:  # the first round, before anything is recorded
                    total = self.sums[name] = torch.zeros_like(leaf, dtype=torch.promote_types(leaf.dtype, torch.float))
                leaf.register_post_accumulate_grad_hook(_adder(total))
        holder: Any = self.model
        holder.derived = self.leaves

    def _adds(self, slot: Slot) -> Callable[[], None]:
        """Return what adds a micro-batch's gradient and figures."""

        def add() -> None:
            self._hold_gradients()
            holder: Any = self.model
            if self.leaves:
                holder.derived = self.leaves
            self.totals.add_(self._as_vector(self._add_gradient(slot)))

        return add

    def _end(self) -> None:
        """Send the gradients of what was derived on to the parameters, and change the weights."""
        holder: Any = self.model
        if self.derived:
            holder.derived = None
            trained = [name for name in self.sums if name in self.derived]
            tensors = [self.derived[name] for name in trained]
            torch.autograd.backward(tensors, [self.sums[n].to(t.dtype) for n, t in zip(trained, tensors, strict=True)])
            self.derived = {}
        self._end_with(self.totals)

    def _end_with(self, figures: Tensor) -> None:
        norm = change_weights(self.optimizers, self.eager.parameters, self.eager.scaler, self.settings)
        self.results.copy_(torch.cat([figures, norm.float().reshape(1)]))

    def _add_gradient(self, slot: Slot) -> Figures:
        return add_gradient(
            self.model,
            slot.batch,
            slot.inputs,
            slot.targets,
            slot.rows,
            row_share=slot.row_share,
            precision=self.eager.precision,
            scaler=self.eager.scaler,
        )

    def _as_vector(self, figures: Figures) -> Tensor:
        """Return the figures as one tensor. Raises NotCapturable for one that is a number, or of another name."""
        for name, value in figures.items():
            if not isinstance(value, Tensor) or value.device.type != self.device.type:
                raise NotCapturable(f"it reports {name} as a number that is not on the GPU")
        if not self.names:
            self.names = tuple(figures)
            self.totals = torch.zeros(len(figures), device=self.device)
            self.results = torch.zeros(len(figures) + 1, device=self.device)
        if tuple(figures) != self.names:
            raise NotCapturable("it does not report the same names each time")
        return torch.stack([value.float().reshape(()) for value in figures.values()])

    def _find_gradients(self, slots: list[Slot]) -> None:
        """Take a round that allocates: which parameters get a gradient, and which figures there are."""
        self.gradients = []
        with derived_once(self.model, self.eager.precision):
            for slot in slots:
                self._as_vector(self._add_gradient(slot))
        self.gradients = [(p, torch.zeros_like(p)) for p in self.eager.parameters if p.grad is not None]
        self._let_go()

    def _hold_gradients(self) -> None:
        for p, memory in self.gradients:
            p.grad = memory

    def _let_go(self) -> None:
        """Leave no gradient and nothing derived where an eager step would find it."""
        for p in self.eager.parameters:
            p.grad = None
        if self.leaves:
            holder: Any = self.model
            holder.derived = None

    def _seed(self, step: int, number: int) -> None:
        """Seed what is random in a micro-batch, as an eager step does."""
        seed = seed_of(self.settings.seed, "forward", step, number)
        if self.device.type == "cuda":  # what is recorded never draws from the CPU's generator
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)
        else:
            torch.manual_seed(seed)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Run the block on the stream of the captures."""
        if self.stream is None:
            yield
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            yield
        torch.cuda.current_stream(self.device).wait_stream(self.stream)

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """Put parameters, buffers and optimizers back to where they were after the block."""
        with untouched(self.model, self.optimizers):
            yield
        self._let_go()

    def release(self) -> None:
        """Give the optimizers plain learning rates back, and let go of the graphs."""
        self.rates.release()
        self.graphs.clear()
        self._let_go()


def _in_turn(bodies: Iterable[Callable[[], None]]) -> None:
    for body in bodies:
        body()


def _adder(total: Tensor) -> Callable[[Tensor], None]:
    """Return a hook that adds a leaf's gradient to `total`."""

    def add(leaf: Tensor) -> None:
        assert leaf.grad is not None
        total.add_(leaf.grad)
        leaf.grad = None

    return add
