"""Find out whether a model's cache gives the logits of the whole text."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmplay.model.adapters import device_of
from lmplay.model.left_out import LeftOut, run_forward
from lmplay.model.shortcuts import CACHE, go_without, not_taken, shadow
from lmplay.random_numbers import apart_from_global_numbers

SURE, NOISE, EXACT = 1e-2, 1e-3, 1e-9  # differences as parts of the largest logit; between the first two: ask float64
COMPARED = 32  # positions, about
FAILURES = (ValueError, RuntimeError, IndexError, TypeError, AssertionError, AttributeError, KeyError)


def logits_at(logits: Tensor, positions: list[int]) -> Tensor:
    """Return the logits (n, V) at n positions of (1, T, V), and compute no others if they are not computed yet."""
    given = logits.given() if isinstance(logits, LeftOut) else None
    if given is None:
        return logits[0, positions]
    hidden, weight, bias = given
    return F.linear(hidden[0, positions], weight, bias)


def last_logits(logits: Tensor) -> Tensor:
    """Return the logits (B, V) at the last position of (B, T, V); no others are computed."""
    given = logits.given() if isinstance(logits, LeftOut) else None
    if given is None:
        return logits[:, -1]
    hidden, weight, bias = given
    return F.linear(hidden[:, -1], weight, bias)


def cache_is_right(model: Any, prompt: list[int], length: int) -> bool:
    """Tell whether the cache gives the logits of the whole text: of `prompt` and what follows, `length` tokens in all.

    The prompt is fed at once, then single tokens, the rest, and a single token. In float32, on a copy that shares the
    parameters. A cache that is not right, or fails, is noted, said once, and not asked again.
    """
    if CACHE in not_taken(model):
        return False
    with apart_from_global_numbers(device_of(model)), torch.autocast(device_of(model).type, enabled=False):
        try:
            difference = _difference(shadow(model), prompt, length)
            if NOISE < difference <= SURE:
                wide = copy.deepcopy(model).cpu().double()
                if hasattr(wide, "derived"):
                    wide.derived = None
                difference = SURE if _difference(wide, prompt, length) < EXACT else 1.0
            why = "gives other logits than the whole text" if not difference <= SURE else ""
        except FAILURES as error:
            why = f"fails ({type(error).__name__}: {str(error).strip().splitlines()[:1]})"
    if why:
        go_without(model, CACHE, f"the cache (new_cache) {why}: it is not used, and writing takes longer")
    return not why


def _difference(model: Any, prompt: list[int], length: int) -> float:
    """Return the largest difference of logits with and without the cache, as a part of the largest logit."""
    new, n = length - len(prompt), len(prompt)
    sizes = [size for size in (n, min(new, 1), min(new - 1, 1), new - 3, min(new - 2, 1)) if size > 0]
    vocab_size = logits_at(run_forward(model, torch.tensor([prompt[:1]], device=device_of(model)))[0], [0]).size(-1)
    filler = torch.randint(vocab_size, (new,), generator=torch.Generator().manual_seed(0)).tolist()
    tokens = torch.tensor([[*prompt, *filler]], device=device_of(model))
    cache, parts, positions, start = model.new_cache(1), [], [], 0
    for size in sizes:
        last = range(0, size, max(1, size // COMPARED))
        wanted = sorted({*last, size - 1})
        logits, _ = run_forward(model, tokens[:, start : start + size], cache=cache)
        parts.append(logits_at(logits, wanted))
        positions += [start + position for position in wanted]
        start += size
    found, whole = torch.cat(parts), logits_at(run_forward(model, tokens)[0], positions)
    if not whole.isfinite().all():
        return 0.0  # of weights that are of no use, whatever the cache
    found, whole = found.cpu().double(), whole.cpu().double()
    largest = max(float(whole.abs().max()), 1e-30)
    return float((found - whole).abs().max().nan_to_num(float("inf"))) / largest
