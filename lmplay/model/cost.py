"""What a model costs, found out without running it: parameters, FLOPs a token, memory."""

import contextlib
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from lmplay.contract import Experiment
from lmplay.model.adapters import derived_once, fused_head, split_output

OPTIMIZER_STATES = {"adam": 2, "adamw": 2, "muon": 2, "sgd": 1, "adagrad": 1, "rmsprop": 1}


@dataclass(frozen=True)
class Cost:
    """parameters: all and the trainable ones. flops_per_token: of training (forward and backward), matrix products and
    attention only, averaged over a full context. flops_per_step: of what is derived from the parameters alone."""

    parameters: int
    trainable: int
    flops_per_token: float
    flops_per_step: float = 0.0


def cost_of(experiment: Experiment, config) -> Cost:
    """Counts on torch's meta device, which has shapes but no numbers; where the model can't run there, on the CPU."""
    for device in ("meta", "cpu"):
        try:
            with torch.device(device):
                model = experiment.build(config)
            with FlopCounterMode(display=False) as both, derived_once(model):
                with FlopCounterMode(display=False) as counter, _RecurrentLayers():
                    _step(model, config.max_len, device)
            break
        except (NotImplementedError, RuntimeError):
            if device == "cpu":
                raise
    parameters = list(model.parameters())
    # products that the counter doesn't see (a recurrent kernel, say): two FLOPs forward and four backward a weight
    unseen = 6.0 * sum(
        p.numel()
        for m in model.modules()
        if not isinstance(m, torch.nn.Embedding)
        for p in m.parameters(recurse=False)
        if p.ndim >= 2
    )
    return Cost(
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        counter.get_total_flops() / config.max_len or unseen,
        float(both.get_total_flops() - counter.get_total_flops()),
    )


def activation_bytes(experiment: Experiment, config, amp: bool) -> int:
    """What one sequence keeps for the backward pass, counted on tensors without content as the CPU would make them."""
    with _without_content(amp):
        model = experiment.build(config)
        with derived_once(model), (kept := _Kept(model)):
            tokens = torch.zeros(1, config.max_len, dtype=torch.int64)
            body = model.body if fused_head(model) is not None else model
            output = split_output(body(tokens))[0]
    return kept.bytes + output.untyped_storage().nbytes()


def derived_bytes(experiment: Experiment, config, amp: bool) -> int:
    """What an update keeps of what the model derives from its parameters alone, with the gradients of that."""
    with _without_content(amp):
        model = experiment.build(config)
        if not callable(getattr(model, "derive", None)):
            return 0
        with (kept := _Kept(model)):
            tensors = model.derive().values()
        return kept.bytes + 2 * sum(tensor.untyped_storage().nbytes() for tensor in tensors)


@contextlib.contextmanager
def _without_content(amp: bool):
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16, enabled=amp), _RecurrentLayers():
        yield


class _RecurrentLayers(TorchFunctionMode):
    """Stands in for the kernels of nn.GRU, nn.LSTM and nn.RNN, which without a device are a thousand steps: the same products, and about as
    many tensors kept, for all tokens at once."""

    kernels = (torch.gru, torch.lstm, torch.rnn_tanh, torch.rnn_relu)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func not in self.kernels or isinstance(args[2], torch.Tensor):  # a packed sequence
            return func(*args, **(kwargs or {}))
        x, state, weights, _, n_layer, _, _, bidirectional, _ = args
        ways = 1 + bidirectional
        size = len(weights) // (n_layer * ways)  # weights and biases of a layer, each way
        for layer in range(n_layer):
            outputs = []
            for first in range(layer * ways * size, (layer + 1) * ways * size, size):
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
    """Counts the `bytes` that autograd keeps for the backward pass, but for the model's parameters and what it has derived."""

    def __init__(self, model: torch.nn.Module):
        self.there = {_storage(t) for t in [*model.parameters(), *(getattr(model, "derived", None) or {}).values()]}
        self.kept: dict[int, int] = {}
        super().__init__(self.keep, lambda tensor: tensor)

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        if _storage(tensor) not in self.there:
            self.kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self.kept.values())


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def training_bytes(cost: Cost, activations: int, mini_batch_size: int, optimizer: str) -> int:
    """An estimate of the memory that training takes: weights, gradients and optimiser in float32, and activations."""
    return 4 * (cost.parameters + cost.trainable * (1 + OPTIMIZER_STATES[optimizer])) + mini_batch_size * activations


def _step(model: torch.nn.Module, length: int, device: str) -> None:
    with sdpa_kernel(SDPBackend.MATH):  # as products: the counter does not know the CPU's own attention
        output = split_output(model(torch.zeros(1, length, dtype=torch.int64, device=device)))[0]
        output.sum().backward()
