import math

import pytest

from lmplay.train.schedules import SCHEDULES, learning_rate_factor


def course(schedule, total, warmup=0, **options):
    return [learning_rate_factor(schedule, step, total, warmup, **options) for step in range(total)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_is_a_line_to_the_peak(schedule):
    assert course(schedule, 100, 4)[:4] == [0.25, 0.5, 0.75, 1.0]
    assert course(schedule, 100, 4)[4] == 1.0
    assert course(schedule, 100, 0)[0] == 1.0
    assert course(schedule, 8, 50)[:3] == [0.5, 1.0, 1.0]       # a quarter of a short run at the most
    assert max(course(schedule, 100, 10)) == 1.0
    assert all(math.isfinite(f) and 0 <= f <= 1 for total in (1, 2, 3, 5) for f in course(schedule, total, 50))


def test_shapes():
    assert set(course("constant", 50, 5)[5:]) == {1.0}
    assert course("cosine", 110, 10)[10::25] == pytest.approx([1.0, (1 + math.cos(math.pi / 4)) / 2, 0.5, (1 - math.cos(math.pi / 4)) / 2])
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
