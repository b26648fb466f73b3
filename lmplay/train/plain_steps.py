"""Let torch's optimizers do without torch._dynamo, whose import takes as long as torch's own.

Their methods import it to hide from a compiler. lmplay compiles models and never optimizers. The names are private to
torch, tried on 2.11 and 2.13; were they others, only the time would be lost.
"""

import functools
import inspect
from typing import Any

import torch

HIDING = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def spare_dynamo() -> None:
    """Let the methods that hide from a compiler be called as they are."""
    for name in HIDING:
        plain = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if plain is not None and not hasattr(plain, "__dynamo_disable"):
            plain.__dynamo_disable = plain


def step_plainly(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer take its steps without the hooks around them, of a profiler and of a compiler."""
    plain: Any = optimizer
    plain.step = torch.no_grad()(functools.partial(inspect.unwrap(type(optimizer).step), optimizer))
