"""Run a model's own forward, and leave its last product, that of a linear head, to the loss.

The head hands on a LeftOut instead of its logits. If forward returns it as it is, the logits are not needed: the
loss takes what the head was given. Whatever forward does with it computes the logits first. So it is always forward
that is trained, scored and generated with, in every mode and at every step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmplay.model.adapters import head_is_last, offered, split_output
from lmplay.model.shortcuts import HEAD, go_without

MORE = "more than head(body(tokens))"

_NOTHING = torch.empty(0)


class _StandIn(torch.Tensor):
    """An empty tensor that stands for another, `itself()`, which torch's functions and operators are given instead.

    What takes a tensor past `__torch_function__` (an autograd.Function) fails in the backward pass, by its shape.
    """

    def itself(self) -> Tensor:
        """Return the tensor that it stands for."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Do it to the tensors themselves."""
        return func(*_themselves(args), **_themselves(kwargs or {}))


def _themselves(value: Any) -> Any:
    """Return nested tuples, lists and dictionaries with what each stand-in stands for."""
    if isinstance(value, _StandIn):
        return value.itself()
    if isinstance(value, dict):
        return {name: _themselves(item) for name, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_themselves(item) for item in value)
    return value


class LeftOut(_StandIn):
    """Logits (..., V) that are computed when something asks for them: F.linear(hidden, weight, bias)."""

    _of: tuple[Tensor, Tensor, Tensor | None]
    _asked_for: list[Tensor]
    _under: tuple

    def __new__(cls, hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> "LeftOut":
        """Note what the head was given, and what it was called under."""
        self: LeftOut = torch.Tensor._make_subclass(cls, _NOTHING, torch.is_grad_enabled())
        self._of, self._asked_for, self._under = (hidden, weight, bias), [], _computing_under(hidden)
        return self

    def itself(self) -> Tensor:
        """Return the logits, computed once, as they would have been where the head was called."""
        if not self._asked_for:
            hidden, weight, bias = self._of
            grad, enabled, dtype, _ = self._under
            with torch.set_grad_enabled(grad), torch.autocast(hidden.device.type, dtype, enabled=enabled):
                self._asked_for.append(F.linear(hidden, weight, bias))
        return self._asked_for[0]

    def given(self) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """Return hidden (..., D), weight (V, D) and bias (V,) or None; None if the logits were asked for.

        Nor if the head was called under another precision, or without the gradients that are wanted here.
        """
        return None if self._asked_for or self._under != _computing_under(self._of[0]) else self._of


def _computing_under(x: Tensor) -> tuple:
    """Return what a product of x is computed under: gradients, autocast, what keeps tensors for the backward pass."""
    kind = x.device.type
    kept = torch._C._autograd._top_saved_tensors_default_hooks(False)  # private to torch; tried on 2.13
    enabled = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.is_grad_enabled(), enabled, torch.get_autocast_dtype(kind) if enabled else None, kept


class _HeadWeight(_StandIn):
    """The weight that head_weights() returns. F.linear by it is left out; all else is done to the weight itself."""

    _weight: Tensor

    def __new__(cls, weight: Tensor) -> "_HeadWeight":
        """Note the weight."""
        self: _HeadWeight = torch.Tensor._make_subclass(cls, _NOTHING)
        self._weight = weight
        return self

    def itself(self) -> Tensor:
        """Return the weight."""
        return self._weight

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Leave out F.linear."""
        if func is F.linear and not torch.compiler.is_compiling():
            return LeftOut(*_themselves(args), **_named(_themselves(kwargs or {})))
        return super().__torch_function__(func, types, args, kwargs)


def _named(kwargs: dict) -> dict:
    return {{"input": "hidden"}.get(name, name): value for name, value in kwargs.items()}


@contextmanager
def _head_left_out(model: Any) -> Iterator[None]:
    """Let the model's head hand on a LeftOut within the block."""
    weights = offered(model, "head_weights")
    holder, name = (model.head, "forward") if weights is None else (model, "head_weights")

    def forward(x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return F.linear(x, holder.weight, holder.bias)
        return LeftOut(x, holder.weight, holder.bias)

    def head_weights(*arguments: Any, **named: Any) -> tuple[Tensor, Tensor | None]:
        assert weights is not None
        weight, bias = weights(*arguments, **named)
        return _HeadWeight(weight), bias

    own = vars(holder).get(name)
    replacement: Callable = forward if weights is None else head_weights
    setattr(holder, name, replacement)
    try:
        yield
    finally:
        if own is None:
            delattr(holder, name)
        else:
            setattr(holder, name, own)


def run_forward(model: Any, tokens: Tensor, **named: Any) -> tuple[Any, dict]:
    """Return (logits, extra) of the model's forward; the logits are a LeftOut if the head can be left to the loss."""
    if not head_is_last(model):
        if offered(model, "body") is not None and (hasattr(model, "head") or offered(model, "head_weights")):
            go_without(model, HEAD, f"forward is {MORE}: all its logits are held, (B, T, V), and the loss is theirs")
        return split_output(model(tokens, **named))
    with _head_left_out(model):
        logits, extra = split_output(model(tokens, **named))
    if isinstance(logits, LeftOut):
        given = logits.given()
        if given is not None and given[0].shape[:-1] == tokens.shape:
            return logits, extra
        logits = logits.itself()
    go_without(model, HEAD, f"forward is at times {MORE}: then all its logits are held, and the loss is theirs")
    return logits, extra
