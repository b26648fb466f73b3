"""How steady the speed was: within a run, between the runs of an arm."""

import math

import numpy as np
import pytest

from lmplay.stats.speed import speed_spread

STEPS = np.arange(1, 81)


def run_at(rate: float, slow: slice = slice(0), by: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens and seconds of a run of 80 steps of 100 tokens; steps in `slow` take `by` times as long."""
    took = np.full(80, 100 / rate)
    took[slow] *= by
    return 100.0 * STEPS, np.cumsum(took)


def test_steady_runs_of_arms_of_different_speed():
    found = speed_spread([[run_at(1000), run_at(1010)], [run_at(500), run_at(505)]])
    assert found.within == pytest.approx(0, abs=1e-9)
    assert found.between == pytest.approx(np.std([1000, 1010], ddof=1) / 1005)
    assert found.comparable and "0.7% between runs" in found.sentence()


def test_the_least_steady_run_decides():
    steady = run_at(1000)
    within = speed_spread([[steady, steady], [steady, run_at(1000, slice(40, 60), 1.5)]])
    assert within.within > 0.1 and not within.comparable
    between = speed_spread([[steady, steady], [steady, run_at(900)]])
    assert between.between == pytest.approx(np.std([1000, 900], ddof=1) / 950) and not between.comparable
    assert "7.4% between runs" in between.refusal() and "at most 3%" in between.refusal()


def test_the_first_part_of_a_run_may_be_slow():
    compiling = run_at(1000, slice(0, 5), 4.0)
    assert speed_spread([[compiling] * 2, [compiling] * 2]).comparable


@pytest.mark.parametrize(
    "arms",
    [
        [[run_at(1000)], [run_at(1000)]],
        [[run_at(1000)] * 2, [(STEPS[:3] * 100.0, STEPS[:3] * 1.0)] * 2],
        [[(np.empty(0), np.empty(0))] * 2, [run_at(1000)] * 2],
        [[(STEPS * 100.0, np.ones(80))] * 2, [run_at(1000)] * 2],
    ],
    ids=["one run each", "a few steps", "nothing recorded", "a clock that stands still"],
)
def test_what_is_not_known_is_not_comparable(arms):
    found = speed_spread(arms)
    assert (math.isnan(found.within) or math.isnan(found.between)) and not found.comparable
    assert "not known" in found.refusal()


def test_other_machines_never_compare():
    found = speed_spread([[run_at(1000)] * 2] * 2, "and not all runs had the same device")
    assert not found.comparable and found.refusal().endswith("and not all runs had the same device")
