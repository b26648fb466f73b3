"""Muon: momentum whose matrices are orthogonalized, all matrices of one shape together.

torch.optim.Muon takes the matrices one by one, each in some twenty small products, and a GPU waits for Python. Here
matrices of one shape are stacked, and each product takes all of them. On a CPU, where launching costs nothing, they are
taken one by one, with the same numbers as torch.optim.Muon.

A step has one of two scales. `match_rms`: by 0.2 sqrt(max(rows, columns)), so that its root mean square is that
of a step by AdamW, with rates like AdamW's. `rows`: by sqrt(max(1, rows / columns)), so that its spectral norm says how
far outputs move, and a rate fits wider models, too.

Source. Keller Jordan, 2024, kellerjordan.github.io/posts/muon, for `rows`; arXiv 2502.16982 for `match_rms`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lmplay.train.ranks import ALONE, Ranks

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, chosen for its slope at zero
ITERATIONS = 5
SMALLEST_NORM = 1e-7
MATCH_RMS = "match_rms"
SCALES: dict[str, Callable[[int, int], float]] = {  # of a step, by rows and columns
    MATCH_RMS: lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    "rows": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
}


class Muon(torch.optim.Optimizer):
    """Orthogonalizes the momentum of matrices and scales the step by their shape.

    Its state is torch.optim.Muon's, `momentum_buffer`. A group may have `row_blocks`: its matrices are stacks of so
    many blocks of equally many rows (queries, keys and values in one weight), and each is orthogonalized by itself.
    A group's lr, momentum and weight_decay may be tensors, so that a captured step reads them anew. Of several ranks
    each orthogonalizes some of the matrices; where each holds some rows of all, the rest is done with those.
    """

    ranks: Ranks = ALONE

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        scale: str = MATCH_RMS,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
        super().__init__(params, defaults | {"row_blocks": 1, "scale": scale})
        for group in self.param_groups:
            if group["scale"] not in SCALES:
                raise ValueError(f"scale {group['scale']!r} is not one of {', '.join(SCALES)}")
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(f"Muon takes matrices, not a parameter of shape {tuple(p.shape)}")
                if len(p) % group["row_blocks"]:
                    raise ValueError(f"row_blocks: {len(p)} rows are not {group['row_blocks']} blocks of one size")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step. Returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            there = [p for p in group["params"] if p.grad is not None]
            shapes: dict[Any, list[Tensor]] = {}
            for p in there:
                shapes.setdefault((p.shape, p.device, p.dtype), []).append(p)
            for parameters in shapes.values():
                self._step(group, parameters)
        return loss

    def _step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Change parameters of one shape."""
        (rows, columns), blocks = parameters[0].shape, group["row_blocks"]
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        momenta = self.ranks.held([self.state[p]["momentum_buffer"] for p in parameters])
        gradients = self.ranks.held([p.grad for p in parameters if p.grad is not None])
        parameters = self.ranks.held(parameters)
        ahead = _gather(momenta, gradients, group["momentum"], nesterov=group["nesterov"])
        directions = self.ranks.share_out(ahead, functools.partial(_orthogonalized_apart, blocks=blocks), rows)
        lr, ratio = group["lr"], SCALES[group["scale"]](rows // blocks, columns)
        if isinstance(lr, Tensor):
            torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
            steps = [direction.float() for direction in directions]
            torch._foreach_mul_(steps, lr * -ratio)
            torch._foreach_add_(parameters, steps)
            return
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        torch._foreach_add_(parameters, directions, alpha=-(lr * ratio))


def _orthogonalized_apart(matrices: Sequence[Tensor], blocks: int) -> list[Tensor]:
    """Return for each matrix (R, C) of a list its `orthogonalized`, block by block of rows; on a CPU one by one."""
    pieces = [block for matrix in matrices for block in matrix.chunk(blocks)]
    if pieces[0].device.type == "cpu":
        found = [orthogonalized(piece[None])[0] for piece in pieces]
    else:
        found = list(orthogonalized(torch.stack(pieces)).unbind())
    return [torch.cat(found[n : n + blocks]) for n in range(0, len(found), blocks)] if blocks > 1 else found


def _gather(momenta: list[Tensor], gradients: list[Tensor], kept: float | Tensor, *, nesterov: bool) -> list[Tensor]:
    """Change momenta to kept x momentum + (1 - kept) x gradient; return them, or what Nesterov's momentum looks at."""
    if isinstance(kept, Tensor):
        torch._foreach_mul_(momenta, kept)
        torch._foreach_add_(momenta, torch._foreach_mul(gradients, 1 - kept))
        ahead = torch._foreach_add(torch._foreach_mul(momenta, kept), torch._foreach_mul(gradients, 1 - kept))
    else:
        torch._foreach_lerp_(momenta, gradients, 1 - kept)
        ahead = torch._foreach_lerp(gradients, momenta, kept) if nesterov else ()
    return list(ahead) if nesterov else momenta


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return for matrices (n, R, C) matrices near U V^T of each one's U S V^T, in bfloat16.

    Singular values come out between about 0.7 and 1.2. The products are taken for all n at once.
    """
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    tall = x.size(1) > x.size(2)
    x = x.mT if tall else x
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(ITERATIONS):
        gram = torch.bmm(x, x.mT)
        change = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, change, x, beta=a)
    return x.mT if tall else x
