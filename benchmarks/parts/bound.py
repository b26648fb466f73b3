"""What a training step can't do without: its products of matrices and its attention, and what the rest goes to.

`speed.py` measures with it. A step is followed once, and each product (mm, addmm, bmm, baddbmm) and attention that it
takes is noted with shapes, strides and type. Taken again alone, they are the bound: no step with these products is
faster. They are taken on memory that is warm, so the bound is rather too high than too low.
"""

import collections
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_"}
ATTENTION = "scaled_dot_product"
KINDS = {
    "products": ("mm", "gemm", "linear", "matmul"),
    "attention": (ATTENTION,),
    "optimizer": ("_fused_adam", "_foreach", "optimizer"),
    "softmax and loss": ("softmax", "nll_loss", "logsumexp", "cross_entropy"),
    "norms, clipping": ("norm", "rsqrt"),
    "activations": ("gelu", "silu", "relu", "tanh", "sigmoid"),
    "embedding": ("embedding", "index", "scatter", "gather"),
    "copies and casts": ("copy", "_to_copy", "clone", "cat", "fill", "zero", "empty", "contiguous"),
    "arithmetic": ("add", "mul", "sub", "div", "sum", "neg", "pow", "where", "clamp", "lerp"),
}


class Followed(TorchDispatchMode):
    """Counts the products and the attention that are taken while it is on, by operator and arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.products: collections.Counter = collections.Counter()
        self.attention: collections.Counter = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            self.products[func.overloadpacket, tuple(_of(a) for a in args if isinstance(a, torch.Tensor))] += 1
        elif ATTENTION in name and "backward" not in name:
            causal = bool((kwargs or {}).get("is_causal")) or True in args[3:]
            self.attention[causal, tuple(_of(a) for a in args[:3])] += 1
        return func(*args, **(kwargs or {}))


def bound_of(step: Callable[[], Any]) -> tuple[Callable[[], None], float]:
    """Return a function that takes only the products and the attention of a step, and their FLOPs.

    Attention counts as one product with its backward pass taken with it.
    """
    with Followed() as followed:
        step()
    if not followed.products:
        raise ValueError("the step takes no product of matrices")
    calls: list[tuple[Callable[[], Any], int]] = []
    flops = 0.0
    for (operator, tensors), count in followed.products.items():
        given = [_made(one) for one in tensors]
        calls.append((lambda operator=operator, given=given: operator(*given), count))
        a, b = given[-2:]
        flops += count * 2.0 * a.numel() * b.shape[-1]
    for (causal, tensors), count in followed.attention.items():
        q, k, v = (_made(one).requires_grad_() for one in tensors)
        calls.append((lambda q=q, k=k, v=v, causal=causal: _attention(q, k, v, causal), count))
        flops += count * 12.0 * q.numel() * k.shape[-2] / (2 if causal else 1)

    def taken() -> None:
        for call, count in calls:
            for _ in range(count):
                call()

    return taken, flops


def by_kind(step: Callable[[], Any], steps: int = 3) -> dict[str, float]:
    """Return the milliseconds of a step by kind of operator, as torch's profiler gives them; "Python" is the rest."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(steps):
            step()
    found: collections.Counter = collections.Counter()
    events = recorded.events()
    for event in events:
        name = event.name.removeprefix("aten::").lower()
        kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other operators")
        found[kind] += event.self_cpu_time_total / 1000 / steps
    whole = (max(e.time_range.end for e in events) - min(e.time_range.start for e in events)) / 1000 / steps
    found["Python"] = max(0.0, whole - sum(found.values()))
    return {kind: round(value, 3) for kind, value in found.most_common()}


def _of(tensor: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...], torch.dtype]:
    return tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype


def _made(given: tuple[tuple[int, ...], tuple[int, ...], torch.dtype]) -> torch.Tensor:
    shape, stride, dtype = given
    return torch.empty_strided(shape, stride, dtype=dtype).normal_()


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> None:
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    torch.autograd.grad(out, (q, k, v), out)
