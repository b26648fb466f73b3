"""Prove on real tokens that a shortcut gives the losses and gradients of the plain way; else go without it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmplay.contract import NOT_SCORED
from lmplay.model.adapters import derived_once, head_is_last, offered, split_output
from lmplay.model.left_out import LeftOut, run_forward
from lmplay.model.loss import FusedHead
from lmplay.model.shortcuts import DERIVED, LOSS, go_without, shadow
from lmplay.random_numbers import apart_from_global_numbers, seed_everything

ROWS, TOKENS = 64, 128  # scored tokens that the fused loss is proven on; tokens of two rows for derived tensors
# What rounding explains, as a part of the value: in float32 and wider, in less.
LOSSES, GRADIENTS = (1e-4, 2e-2), (1e-3, 1e-1)

Precision = Callable[[], AbstractContextManager]
Way = tuple[Tensor, list[Tensor | None]]  # losses (n,), and gradients


def prove_shortcuts(model: Any, inputs: Tensor, targets: Tensor, precision: Precision) -> None:
    """Prove the shortcuts on two rows of a batch, inputs and targets (B, T) on the model's device.

    They are asked of a copy that shares the parameters, whose gradients stay as they are. Random numbers stay, too.
    """
    inputs, targets = inputs[:2, :TOKENS].clone(), targets[:2, :TOKENS]
    last = head_is_last(model)
    with apart_from_global_numbers(inputs.device), _frozen_kept(model):
        if offered(model, "derive") is not None:
            prove_derived(model, inputs, targets, precision)
        if last:
            asked = shadow(model)
            with derived_once(asked, precision), precision():
                logits, _ = run_forward(asked, inputs)
                given = logits.given() if isinstance(logits, LeftOut) else None
                if given is not None:
                    hidden, weight, bias = given
                    prove_fused_loss(model, FusedHead.apply, (hidden.flatten(0, 1), weight, bias), targets.flatten())


@contextmanager
def _frozen_kept(model: torch.nn.Module) -> Iterator[None]:
    """Put parameters that are not trained back after the block: forward may change them, as an average of weights."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    before = [p.detach().clone() for p in frozen]
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(frozen, before, strict=True):
                p.copy_(value)


def prove_fused_loss(model: Any, fused: Callable, given: tuple[Tensor, Tensor, Tensor | None], targets: Tensor) -> None:
    """Compare the fused loss with the cross-entropy of all logits, on some of hidden (n, D) and targets (n,)."""
    hidden, weight, bias = (None if one is None else one.detach() for one in given)
    assert hidden is not None and weight is not None
    scored = (targets != NOT_SCORED).nonzero().squeeze(1)
    rows = scored[torch.linspace(0, len(scored) - 1, min(ROWS, len(scored))).long().to(scored.device)]
    hidden, targets = hidden[rows], targets[rows]

    def way(losses_of: Callable) -> Way:
        leaves = [one if one is None else one.detach().requires_grad_() for one in (hidden, weight, bias)]
        with torch.enable_grad():
            total, losses = losses_of(*leaves)
        wanted = [leaf for leaf in leaves if leaf is not None]
        return losses.detach(), list(torch.autograd.grad(total, wanted))

    def plain(x: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = F.linear(x, w, b)
        losses = F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none")
        return losses.sum(), losses

    low = _is_low(hidden)
    if len(rows) and not _equal(way(lambda x, w, b: fused(x, w, b, targets)[:2]), way(plain), low):
        go_without(model, LOSS, "the fused loss differs from that of all logits here: all logits are held")


def prove_derived(model: torch.nn.Module, inputs: Tensor, targets: Tensor, precision: Precision) -> None:
    """Compare losses, and gradients where they are on, with and without lending what the model derives."""
    asked = shadow(model)
    parameters = list(model.parameters())
    before = [p.grad for p in parameters]

    def way(lend: AbstractContextManager) -> Way:
        for p in parameters:
            p.grad = None
        with lend:
            seed_everything(0)
            with precision():
                logits, extra = split_output(asked(inputs))
            losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
            total = losses.sum() + extra.get("loss", 0.0)
            if total.requires_grad:
                total.backward()
        return losses.detach(), [p.grad.to_dense() if p.grad is not None else None for p in parameters]

    with precision():
        low = _is_low(parameters[0])
    same = _equal(way(derived_once(asked, precision)), way(nullcontext()), low)
    for p, gradient in zip(parameters, before, strict=True):
        p.grad = gradient
    if not same:
        go_without(
            model,
            DERIVED,
            "losses or gradients differ when derive() is called once per step: it is called in each forward pass",
        )


def _is_low(x: Tensor) -> bool:
    """Tell whether products are taken in less than float32."""
    return x.dtype.itemsize < 4 or torch.is_autocast_enabled(x.device.type)


def _equal(found: Way, wanted: Way, low: bool) -> bool:
    """Tell whether losses and gradients are equal, rounding aside. What is not finite in both is equal."""
    if not _near(found[0], wanted[0], LOSSES[low], 1e-5):
        return False
    whole = max([float(g.cpu().double().norm()) for g in wanted[1] if g is not None], default=0.0)
    for one, other in zip(found[1], wanted[1], strict=True):
        if one is None and other is None:
            continue
        like: Any = one if one is not None else other
        one, other = (torch.zeros_like(like) if g is None else g for g in (one, other))
        if not _near(one, other, GRADIENTS[low], whole * GRADIENTS[low] / 100):
            return False
    return True


def _near(one: Tensor, other: Tensor, part: float, floor: float) -> bool:
    one, other = one.cpu().double(), other.cpu().double()  # an Apple GPU has no float64
    if not other.isfinite().all():
        return not one.isfinite().all()
    return bool((one - other).norm() <= part * other.norm() + floor)
