"""Seeding gives the numbers that torch, Python and numpy give for a seed, and costs little."""

import random
import traceback

import numpy as np
import pytest
import torch

from lmplay.random_numbers import seed_everything


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_seeds_are_those_of_the_libraries(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    wanted = torch.rand(4).tolist(), random.random(), np.random.rand()
    seed_everything(seed)
    assert (torch.rand(4).tolist(), random.random(), np.random.rand()) == wanted


@pytest.mark.skipif(torch.accelerator.is_available(), reason="torch seeds the accelerator, too")
def test_on_a_cpu_no_stack_is_written_down(monkeypatch):
    """torch.manual_seed does, for each kind of device that there might be: 1 ms, in each step."""
    written = []
    monkeypatch.setattr(traceback, "format_stack", lambda *given: written.append(1) or [])
    seed_everything(1)
    assert not written
