"""Compute the loss and accuracy of every experiment from its logits, here and nowhere else.

The loss of a scored token is -ln softmax(logits)[target], in nats; accuracy counts the tokens whose logit is the
largest. It is always the model's own forward that is run. If its logits are those of a
linear head, and nothing else asks for them, the head is fused with the cross-entropy. Logits then exist for
a block of tokens at a time, and (B, T, V) is never held. The gradient of a block's logits is known as soon as they are:
it is taken on the spot, and nothing is computed twice (the idea of arXiv 2410.10989 and 2411.09009). torch's own
`F.linear_cross_entropy` has no accuracy, and holds all logits unless told otherwise.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor

from lmplay.contract import NOT_SCORED
from lmplay.model.adapters import split_output
from lmplay.model.left_out import LeftOut, run_forward
from lmplay.model.shortcuts import LOSS, not_taken

# Elements of logits at once, by size of what is held: a block is multiplied as a whole (few, large products), a strip
# goes through the softmax while it is in the processor's cache. A GPU has no use for strips.
BLOCK_ELEMENTS = 1 << 27
STRIP_ELEMENTS = 1 << 19
GROUP = 64  # columns of logits among which a CPU looks for the place of the largest
# Rows of logits are as long as a multiple of it, on devices whose matrix units read 16 bytes at once: a vocabulary of
# 50,257 is multiplied as one of 50,304. What is added has the logit 0 and no part in the softmax.
ROUND_ROWS = {"cuda": 64}

Scores = Callable[..., None]  # as `_softmax_scores`
Given = tuple[Tensor, Tensor, Tensor | None]  # hidden (B, T, D), weight (V, D) and bias (V,) or None

_compiled: "WeakSet[torch.nn.Module]" = WeakSet()


@dataclass
class Score:
    """The losses of a batch."""

    loss_sum: Tensor  # () float32, summed over the scored tokens; differentiable
    losses: Tensor  # (n,) float32, of each scored token, without a gradient
    correct: Tensor  # (n,) bool
    extra: dict = field(default_factory=dict)  # reported by the experiment; "loss" is added to what is minimized


def score(model: Any, inputs: Tensor, targets: Tensor, scored_rows: Tensor | None = None, fused: bool = True) -> Score:
    """Score a Module on inputs (B, T) against targets (B, T) int64, -100 for a token that is not scored.

    `scored_rows`, the indices of the scored tokens in targets.flatten(), spares the head the others. `fused` False
    computes all logits, as for a model whose head can't be fused.
    """
    logits, extra = run_forward(model, inputs) if fused else split_output(model(inputs))
    given = logits.given() if isinstance(logits, LeftOut) and LOSS not in not_taken(model) else None
    if given is not None:
        return fused_score(model, given, targets, scored_rows, extra)
    return plain_score(logits, targets, scored_rows, extra)


def fused_score(model: Any, given: Given, targets: Tensor, scored_rows: Tensor | None, extra: dict) -> Score:
    """Score what a model's head was given."""
    hidden, weight, bias = given
    hidden, targets = _select(hidden, targets, scored_rows)
    scores = _compiled_scores() if model in _compiled and hidden.device.type == "cuda" else None
    loss_sum, losses, correct = FusedHead.apply(hidden, weight, bias, targets, scores)
    return Score(loss_sum, losses, correct, extra)


def plain_score(logits: Tensor, targets: Tensor, scored_rows: Tensor | None, extra: dict) -> Score:
    """Score logits (B, T, V)."""
    logits, targets = _select(logits, targets, scored_rows)
    losses = F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none")
    return Score(losses.sum(), losses.detach(), _largest(logits.detach())[1].squeeze(1) == targets, extra)


def _select(rows: Tensor, targets: Tensor, scored_rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return (n, D) and (n,) of (B, T, D) and (B, T): the scored ones."""
    rows, targets = rows.flatten(0, 1), targets.flatten()
    if scored_rows is None:
        return rows, targets
    return rows.index_select(0, scored_rows), targets.index_select(0, scored_rows)


class FusedHead(torch.autograd.Function):
    """Linear head and cross-entropy in one, as (loss_sum, losses, correct).

    Of hidden (n, D), weight (V, D), bias (V,) or None, and targets (n,). Products are taken in autocast's type, softmax
    and losses in float32. Only loss_sum has a gradient. scores: what stands for `_softmax_scores`.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scores: Scores | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute losses and gradients block by block."""
        kind = hidden.device.type
        dtype = (
            torch.get_autocast_dtype(kind)
            if torch.is_autocast_enabled(kind)
            else torch.promote_types(hidden.dtype, weight.dtype)
        )
        with torch.autocast(kind, enabled=False):
            n, vocabulary = len(hidden), len(weight)
            x, w = hidden.to(dtype), _rounded(weight.to(dtype), ROUND_ROWS.get(kind, 1))
            b = None if bias is None else _rounded(bias.to(dtype), ROUND_ROWS.get(kind, 1))
            losses = torch.empty(n, device=x.device, dtype=torch.promote_types(dtype, torch.float32))
            correct = torch.empty(n, device=x.device, dtype=torch.bool)
            wide = torch.promote_types(weight.dtype, torch.float32)  # of the sums over blocks
            need_x, need_w = ctx.needs_input_grad[:2]
            need_b = bias is not None and ctx.needs_input_grad[2]
            grad_x = torch.empty_like(x) if need_x else None
            grad_w: Tensor | None = None
            grad_b: Tensor | None = None
            block = max(64, BLOCK_ELEMENTS // vocabulary)
            strip = max(1, STRIP_ELEMENTS // vocabulary) if kind == "cpu" else block
            # asked of numpy: on a CPU the answer is there, and a step that is followed stays free of answers
            masked = kind != "cpu" or bool((targets.numpy() == NOT_SCORED).any())
            for start in range(0, n, block):
                rows = slice(start, min(start + block, n))
                logits = F.linear(x[rows], w, b)
                for top in range(0, len(logits), strip):
                    part = slice(start + top, min(start + top + strip, rows.stop))
                    (scores or _softmax_scores)(
                        logits[top : top + strip, :vocabulary],
                        targets[part],
                        losses[part],
                        correct[part],
                        gradient=need_x or need_w or need_b,
                        masked=masked,
                    )
                # from here on `logits` holds the gradient of the summed loss with respect to the logits
                if grad_x is not None:
                    torch.mm(logits, w, out=grad_x[rows])
                if need_w:
                    grad_w = _added(grad_w, (logits.t() @ x[rows])[:vocabulary], wide)
                if need_b:
                    grad_b = _added(grad_b, logits.sum(0, dtype=wide)[:vocabulary], wide)
        ctx.gradients = grad_x, grad_w, grad_b
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(losses, correct)
        return losses.sum(), losses, correct

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """Scale the gradients that forward has left."""
        # let go of them here: autograd takes over a gradient that nobody else holds, and copies any other
        (grad_x, grad_w, grad_b), ctx.gradients = ctx.gradients, None
        hidden, weight, bias = ctx.dtypes
        return (
            None if grad_x is None else grad_x.to(hidden) * grad_loss,
            None if grad_w is None else grad_w.mul_(grad_loss).to(weight),
            None if grad_b is None else grad_b.mul_(grad_loss).to(bias),
            None,
            None,
        )


def compile_scores(model: torch.nn.Module) -> None:
    """Compile from now on what follows the products of this model's head, on a GPU: softmax, losses and gradient."""
    _compiled.add(model)


def is_compiled(model: torch.nn.Module) -> bool:
    """Whether the model was given to `compile_scores`: it is compiled."""
    return model in _compiled


@functools.cache
def _compiled_scores() -> Scores:
    return torch.compile(scores_in_few_passes)


def _rounded(rows: Tensor, multiple: int) -> Tensor:
    """Return (V, ...) with zeros after it, up to a multiple, where 16 bytes don't divide a row of V."""
    missing = -len(rows) % multiple
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if len(rows) % 8 and missing else rows


def _added(total: Tensor | None, part: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sum in `dtype`; the first part begins it, and the others are added in place."""
    return part.to(dtype) if total is None else total.add_(part)


def _softmax_scores(
    logits: Tensor, targets: Tensor, losses: Tensor, correct: Tensor, gradient: bool, masked: bool = True
) -> None:
    """Fill losses and correct of a strip of logits (r, V); turn the logits into their gradient, softmax - one-hot.

    Rows whose target is -100 get loss 0 and gradient 0; masked False says that there are none. Without `gradient` the
    logits are used up.
    """
    wide = logits.to(losses.dtype)
    largest, at = _largest(wide)
    unscored = targets == NOT_SCORED
    column = targets.clamp(min=0).unsqueeze(1)
    of_target = wide.gather(1, column)
    # in place on a CPU, where new memory takes as long as the arithmetic
    p = torch.softmax(wide, 1, out=wide) if wide.device.type == "cpu" else torch.softmax(wide, 1)
    # ln sum exp(logits), from the largest probability, which never underflows
    log_sum = largest - p.gather(1, at).log_()
    losses.copy_((log_sum - of_target).squeeze(1).masked_fill_(unscored, 0.0))
    correct.copy_(at.squeeze(1) == targets)
    if gradient:
        p.scatter_add_(1, column, torch.full_like(of_target, -1.0))
        if masked:
            p.masked_fill_(unscored.unsqueeze(1), 0.0)
        if p is not logits:
            logits.copy_(p)


def _largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest of each row of (r, V) and where it is first, both (r, 1).

    torch looks for an index one number at a time on a CPU, and for a value in many at once: so the value comes first,
    of groups of columns, and its index is looked for in one group only.
    """
    whole = logits.size(1) // GROUP * GROUP
    if logits.device.type != "cpu" or whole < 2 * GROUP:
        return logits.max(1, keepdim=True)
    of_groups = logits[:, :whole].unflatten(1, (-1, GROUP)).amax(2)
    if whole < logits.size(1):
        of_groups = torch.cat([of_groups, logits[:, whole:].amax(1, keepdim=True)], 1)
    largest, group = of_groups.max(1, keepdim=True)
    columns = group * GROUP + torch.arange(GROUP)
    inside = logits.gather(1, columns.clamp_(max=logits.size(1) - 1)).argmax(1, keepdim=True)
    return largest, group * GROUP + inside


def scores_in_few_passes(
    logits: Tensor, targets: Tensor, losses: Tensor, correct: Tensor, gradient: bool, masked: bool = True
) -> None:
    """Do the same as `_softmax_scores`, written for a compiler that joins what reads the logits."""
    wide = logits.to(losses.dtype)
    unscored, column = targets == NOT_SCORED, targets.clamp(min=0).unsqueeze(1)
    largest, at = wide.max(1, keepdim=True)
    powers = (wide - largest).exp()
    total = powers.sum(1, keepdim=True)
    losses.copy_((total.log() + largest - wide.gather(1, column)).squeeze(1).masked_fill(unscored, 0.0))
    correct.copy_(at.squeeze(1) == targets)
    if gradient:
        hit = torch.arange(logits.size(1), device=logits.device) == column
        logits.copy_((powers / total - hit.to(wide.dtype)).masked_fill(unscored.unsqueeze(1), 0.0))
