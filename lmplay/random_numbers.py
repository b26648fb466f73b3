"""Seed every generator that a model may draw from without having one of its own: torch's, Python's, numpy's."""

import functools
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any


def seed_everything(seed: int) -> None:
    """Seed torch's random numbers on every device, and Python's, and numpy's, with 63 bits at most."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None:
        (torch.manual_seed if _has_more_than_a_cpu() else torch.default_generator.manual_seed)(seed)
    random.seed(seed)
    if numpy is not None:
        numpy.random.seed(seed % 2**32)  # more it does not take


@functools.cache
def _has_more_than_a_cpu() -> bool:
    """Whether torch sees a device with random numbers of its own.

    For each kind of device that was not used yet, torch.manual_seed writes down the whole stack of calls, for an error
    that may come later. Three kinds of them take 1 ms, twice in each step: much of a step of a small model.
    """
    import torch

    return torch.accelerator.is_available()


@contextmanager
def apart_from_global_numbers(device: Any = None) -> Iterator[None]:
    """Put the random numbers of torch (on the CPU and `device`), Python and numpy back after the block."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    others = [device] if device is not None and device.type == "cuda" else []
    python, of_numpy = random.getstate(), None if numpy is None else numpy.random.get_state()
    with nullcontext() if torch is None else torch.random.fork_rng(devices=others):
        try:
            yield
        finally:
            random.setstate(python)
            if numpy is not None:
                numpy.random.set_state(of_numpy)
