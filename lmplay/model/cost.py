"""Count what a model costs without training it: parameters, FLOPs per token, memory."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode  # private to torch; tried on 2.13
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from lmplay import kept_answers
from lmplay.contract import Experiment, config_values
from lmplay.initial_values import storage_id
from lmplay.model.adapters import derived_once, head_is_last, offered, split_output
from lmplay.model.left_out import LeftOut, run_forward
from lmplay.model.no_compiler import without_compiler
from lmplay.random_numbers import apart_from_global_numbers, seed_everything

VERSION = 1  # of what is counted: costs that are kept are of this version
STEPPED_LENGTHS = (2, 3, 4)  # where a model that takes a step per token is counted
STEPPING = 1.5  # times as many calls at the last of these lengths as at the first: a step per token
SHORT_LENGTHS = (16, 32, 48)  # where a model that looks at its numbers is counted


@dataclass(frozen=True)
class Cost:
    """Parameters and FLOPs of training.

    parameters, trainable: their numbers. flops_per_token: forward and backward, matrix products and attention only,
    averaged over a full context. flops_per_step: of what is derived once per step from the parameters alone.
    kept_bytes: what a sequence keeps for the backward pass in float32, with attention as products: the most it can be.
    """

    parameters: int
    trainable: int
    flops_per_token: float
    flops_per_step: float = 0.0
    kept_bytes: int = dataclasses.field(default=0, compare=False)


def n_parameters(model: torch.nn.Module) -> int:
    """Return the number of the model's parameters."""
    return sum(p.numel() for p in model.parameters())


@contextlib.contextmanager
def _same_numbers() -> Iterator[None]:
    """Build and run with one and the same random numbers, apart from all others.

    What a model does may depend on its numbers: pldr squares a matrix as often as its values need on a CPU.
    """
    with apart_from_global_numbers():
        seed_everything(0)
        yield


def known_cost(code_hash: str, experiment: Experiment, config: Any) -> Cost:
    """Return the cost of a model, counted once for its code and Config and then recalled."""
    key = kept_answers.key_of(VERSION, code_hash, config_values(config))
    kept = kept_answers.recall("costs", key)
    fields = {field.name for field in dataclasses.fields(Cost)}
    if kept.keys() == fields and all(type(value) in (int, float) for value in kept.values()):
        return Cost(**kept)
    cost = cost_of(experiment, config)
    kept_answers.keep("costs", key, dataclasses.asdict(cost))
    return cost


@without_compiler
@_same_numbers()
def cost_of(experiment: Experiment, config: Any) -> Cost:
    """Count on torch's meta device, which has shapes but no numbers; on the CPU if the model can't run there."""
    try:
        model, all_flops, flops, kept = _count(experiment, config, "meta")
    except (RuntimeError, TypeError):  # no numpy of what has no numbers
        model, all_flops, flops, kept = _count(experiment, config, "cpu")
    # products that the counter doesn't see (of a recurrent kernel): two FLOPs forward and four backward per weight
    unseen = 6.0 * sum(
        p.numel()
        for m in model.modules()
        if not isinstance(m, torch.nn.Embedding)
        for p in m.parameters(recurse=False)
        if p.ndim >= 2
    )
    return Cost(
        parameters=n_parameters(model),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        flops_per_token=flops / config.max_len or unseen,
        flops_per_step=float(all_flops - flops),
        kept_bytes=kept,
    )


def _count(experiment: Experiment, config: Any, device: str) -> tuple[torch.nn.Module, int, int, int]:
    """Return a model on the device, the FLOPs of a full context with and without what is derived, the bytes kept."""
    with torch.device(device):
        model = experiment.build(config)
    with (
        FlopCounterMode(display=False) as both,
        derived_once(model),
        FlopCounterMode(display=False) as counter,
        _RecurrentLayers(),
        sdpa_kernel(SDPBackend.MATH),  # as products: the counter does not know the CPU's own attention
        (kept := _Kept(model)),
    ):
        output = split_output(model(torch.zeros(1, config.max_len, dtype=torch.int64, device=device)))[0]
        if isinstance(output, torch.Tensor) and output.requires_grad:  # what else is wrong, `model.checks` says
            with contextlib.suppress(RuntimeError) if device == "cpu" else contextlib.nullcontext():
                output.sum().backward()
    return model, both.get_total_flops(), counter.get_total_flops(), kept.bytes


@without_compiler
@_same_numbers()
def activation_bytes(experiment: Experiment, config: Any, amp: bool) -> int:
    """Return the bytes that one sequence keeps for the backward pass, as the CPU would make them.

    Counted on tensors without content. A model that takes a step per token would be too long at that, and one that
    looks at its numbers has none there. Both are counted at three short lengths, the latter with numbers. What is
    kept is taken for a parabola of the length, as it is with attention.
    """
    try:
        with _without_content(amp) as calls:
            model = experiment.build(config)
            head_is_last(model)  # asked once and kept: its own calls are not counted below
            kept_at = functools.cache(functools.partial(_kept_bytes, model))  # an operation takes long without content
            if _takes_a_step_per_token(kept_at, calls, config.max_len):
                return _continued(kept_at, STEPPED_LENGTHS, config.max_len)
            return kept_at(config.max_len)
    except (RuntimeError, TypeError, AssertionError):  # the last: a tensor without content met one of another count
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            kept_at = functools.cache(functools.partial(_kept_bytes, experiment.build(config)))
            return _continued(kept_at, SHORT_LENGTHS, config.max_len)


@without_compiler
@_same_numbers()
def derived_bytes(experiment: Experiment, config: Any, amp: bool) -> int:
    """Return the bytes that a step keeps of what the model derives from its parameters alone, gradients included."""
    try:
        with _without_content(amp):
            return _derived_bytes(experiment.build(config))
    except (RuntimeError, TypeError, AssertionError):  # it looks at its numbers
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            return _derived_bytes(experiment.build(config))


def training_bytes(cost: Cost, activations: int, micro_batch_size: int, optimizer_states: int) -> int:
    """Estimate the memory that training takes: weights, gradients and optimizer in float32, and activations."""
    return 4 * (cost.parameters + cost.trainable * (1 + optimizer_states)) + micro_batch_size * activations


def _kept_bytes(model: Any, length: int) -> int:
    """Return the bytes that a sequence of `length` tokens keeps in `model`, and those of what its head reads."""
    with derived_once(model), (kept := _Kept(model)):
        tokens = torch.zeros(1, length, dtype=torch.int64)
        output = run_forward(model, tokens)[0] if head_is_last(model) else split_output(model(tokens))[0]
        given = output.given() if isinstance(output, LeftOut) else None
        output = output if given is None else given[0]
    return kept.bytes + output.untyped_storage().nbytes()


def _derived_bytes(model: torch.nn.Module) -> int:
    derive = offered(model, "derive")
    if derive is None:
        return 0
    with (kept := _Kept(model)):
        tensors = derive().values()
    return kept.bytes + 2 * sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def _takes_a_step_per_token(kept_at: Callable[[int], int], calls: "_RecurrentLayers", max_len: int) -> bool:
    """Return whether the calls of torch's functions grow with the length. kept_at: asked for the first time."""
    if max_len <= STEPPED_LENGTHS[-1]:
        return False
    n_calls = []
    for length in (STEPPED_LENGTHS[0], STEPPED_LENGTHS[-1]):
        before = calls.n
        kept_at(length)
        n_calls.append(calls.n - before)
    return n_calls[1] > STEPPING * n_calls[0]


def _continued(kept_at: Callable[[int], int], lengths: Sequence[int], max_len: int) -> int:
    """Return the bytes kept at `max_len` by the parabola through those at three lengths (Lagrange's form)."""
    if max_len <= max(lengths):
        return kept_at(max_len)
    total = Fraction(0)
    for x in lengths:
        others = [other for other in lengths if other != x]
        total += kept_at(x) * math.prod(Fraction(max_len - other, x - other) for other in others)
    return int(total)


@contextlib.contextmanager
def _without_content(amp: bool) -> Iterator["_RecurrentLayers"]:
    """Make tensors with shapes but no content, as a CPU with or without mixed precision would."""
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16, enabled=amp), _RecurrentLayers() as layers:
        yield layers


class _RecurrentLayers(TorchFunctionMode):
    """Stands in for the kernels of nn.GRU, nn.LSTM and nn.RNN, which without a device take a step per token.

    It computes the same products, and keeps about as many tensors, for all tokens at once. Counts the calls of torch's
    functions, `n`.
    """

    n = 0

    kernels = (torch.gru, torch.lstm, torch.rnn_tanh, torch.rnn_relu)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.n += 1
        if func not in self.kernels or isinstance(args[2], torch.Tensor):  # a packed sequence
            return func(*args, **(kwargs or {}))
        x, state, weights, _, n_layer, _, _, bidirectional, _ = args
        directions = 1 + bidirectional
        size = len(weights) // (n_layer * directions)  # weights and biases of a layer in one direction
        for layer in range(n_layer):
            outputs = []
            for first in range(layer * directions * size, (layer + 1) * directions * size, size):
                to_gates, between, *rest = weights[first : first + size]
                gates = torch.nn.functional.linear(x, to_gates).sigmoid()
                recurrent = torch.nn.functional.linear(gates[..., : between.size(1)], between).tanh()
                y = (gates * recurrent)[
                    ..., : len(between) // (4 if func is torch.lstm else 3 if func is torch.gru else 1)
                ]
                if rest and rest[-1].ndim == 2:  # LSTM's projection
                    y = torch.nn.functional.linear(y, rest[-1])
                outputs.append(y)
            x = torch.cat(outputs, dim=-1) if bidirectional else outputs[0]
        return (x, *state) if func is torch.lstm else (x, state)


class _Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts the `bytes` that autograd keeps for the backward pass, without parameters and derived tensors."""

    def __init__(self, model: torch.nn.Module):
        derived: dict[str, torch.Tensor] = getattr(model, "derived", None) or {}
        self.there = {storage_id(t) for t in [*model.parameters(), *derived.values()]}
        self.kept: dict[int, int] = {}
        super().__init__(self.keep, lambda tensor: tensor)

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Note a tensor that autograd keeps."""
        if storage_id(tensor) not in self.there:
            self.kept[storage_id(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        """The bytes of all memory that is kept, each once."""
        return sum(self.kept.values())
