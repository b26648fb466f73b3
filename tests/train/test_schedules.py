import math
from pathlib import Path

import numpy as np
import pytest

from lmplay.runs.settings import SCHEDULES
from lmplay.train.schedules import Schedule

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "learning_rates.npz")


def learning_rate_factor(schedule, step, total, warmup, cooldown_fraction=0.2, **options):
    return Schedule(schedule, warmup, cooldown_fraction=cooldown_fraction, **options).factor(step, total)


def course(schedule, total, warmup=0, **options):
    if schedule == "cosine_restarts":
        options.setdefault("restart_steps", 30)
    return [learning_rate_factor(schedule, step, total, warmup, **options) for step in range(total)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_is_a_line_to_the_peak(schedule):
    assert course(schedule, 100, 4)[:4] == [0.25, 0.5, 0.75, 1.0]
    assert course(schedule, 100, 4)[4] == 1.0
    assert course(schedule, 100, 0)[0] == 1.0
    assert course(schedule, 8, 50)[:3] == [0.5, 1.0, 1.0]  # a quarter of a short run at the most
    assert max(course(schedule, 100, 10)) == 1.0
    assert all(math.isfinite(f) and 0 <= f <= 1 for total in (1, 2, 3, 5) for f in course(schedule, total, 50))


def test_shapes():
    assert set(course("constant", 50, 5)[5:]) == {1.0}
    assert course("cosine", 110, 10)[10::25] == pytest.approx(
        [1.0, (1 + math.cos(math.pi / 4)) / 2, 0.5, (1 - math.cos(math.pi / 4)) / 2]
    )
    assert course("linear", 110, 10)[10::25] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    stable = course("wsd", 100, 10, cooldown_fraction=0.2)
    assert set(stable[10:81]) == {1.0}
    assert stable[80:] == pytest.approx([1 - k / 20 for k in range(20)])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_they_fall_to_the_final_fraction(schedule):
    for final in (0.0, 0.1):
        whole = [learning_rate_factor(schedule, step, 200, 20, final=final) for step in range(201)]
        assert whole[200] == pytest.approx(final, abs=1e-12)
        assert all(a >= b for a, b in zip(whole[20:], whole[21:]))
        assert learning_rate_factor(schedule, 500, 200, 20, final=final) == pytest.approx(final, abs=1e-12)


def test_cooldown_fractions_at_the_ends():
    assert course("wsd", 100, 10, cooldown_fraction=0.0)[10:] == [1.0] * 90
    assert course("wsd", 100, 10, cooldown_fraction=1.0) == pytest.approx(course("linear", 100, 10))


@pytest.mark.parametrize(
    "name, peak, warmup, fraction",
    [("main_lr1e4_w50_s400_c015", 1e-4, 50, 0.15), ("main_lr1e3_w300_s400_c05", 1e-3, 300, 0.5)],
)
def test_warm_up_and_cool_down_of_a_paper(name, peak, warmup, fraction):
    """Arrows of Time (arXiv 2401.17505), rates of its code; in the second the cool-down begins in the warm-up."""
    rates = [peak * learning_rate_factor("wsd", step, 400, warmup, fraction, warmup_from=1e-7) for step in range(401)]
    np.testing.assert_allclose(rates, GOLDEN[name], rtol=1e-12, atol=1e-17)


def test_cosine_with_restarts_of_a_paper():
    """The same paper's first runs: 1e-7 to 1e-4 in 20 steps, then to 1e-6 every 100, each from 0.85 of the height."""
    rates = [
        1e-4
        * learning_rate_factor(
            "cosine_restarts", step, 350, 20, final=1e-2, warmup_from=1e-3, restart_steps=100, restart_shrink=0.85
        )
        for step in range(350)
    ]
    np.testing.assert_allclose(rates, GOLDEN["cosine_lr1e4_w20_T100_shrink085_init1e7_min1e6"], rtol=1e-12)


def test_warm_up_and_cosine_of_a_paper():
    """PLDR-LLM (arXiv 2502.13502): a first update at rate 0, half a cosine down to a tenth."""

    def factors(steps, total, warmup):
        return [learning_rate_factor("cosine", step, total, warmup, final=0.1, warmup_from=0.0) for step in steps]

    np.testing.assert_allclose(factors(GOLDEN["pldr_steps"], 250_000, 2000), GOLDEN["pldr_factors"], rtol=1e-12)
    np.testing.assert_allclose(factors(range(12), 20, 4), GOLDEN["pldr_short"] * 1e3, rtol=1e-12)


def test_a_warm_up_of_no_updates_as_papers_have_it():
    assert course("constant", 5, 0, warmup_from=0.0) == [1.0] * 5
    assert course("constant", 5, 2, warmup_from=0.0) == [0.0, 0.5, 1.0, 1.0, 1.0]
