"""The spread between machines at one seed."""

import math

import numpy as np
import pytest

from lmplay.stats.machines import machine_spread


def test_the_spread_of_drawn_machines_is_found():
    draw = np.random.default_rng(1)
    seeds = draw.normal(3.0, 0.5, size=400)  # far apart: seeds do not count
    found = machine_spread([seed + draw.normal(0.0, 0.002, size=n) for seed, n in zip(seeds, [1, 2, 3, 4] * 100)])
    assert found.sd == pytest.approx(math.sqrt(2) * 0.002, rel=0.1) and (found.df, found.n_runs) == (600, 900)


def test_one_machine_has_no_spread():
    assert machine_spread([[3.0], [4.0], []]) is None
    assert machine_spread([[3.0, 3.0]]).sd == 0
