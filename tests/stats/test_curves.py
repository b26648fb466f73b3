import numpy as np
import pytest
from scipy.signal import savgol_filter

from lmplay.stats.curves import Curve, difference, interpolate, make_curve, mean_and_range, smooth, thin, together


def drawn(x, log):
    return np.log(x) if log else x


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("width", [0.001, 0.05, 0.5, 10.0])
def test_smoothing_leaves_a_straight_line_as_it_is(log, width):
    random = np.random.default_rng(0)
    x = np.sort(random.uniform(1, 1000, 5000))
    slope = -0.25 if log else -0.002
    result = smooth(make_curve(x, 3 + slope * drawn(x, log), log=log), width, log)
    assert (result.x[0], result.x[-1]) == (x[0], x[-1])
    np.testing.assert_allclose(result.y, 3 + slope * drawn(result.x, log), rtol=0, atol=1e-9)


def test_on_an_even_grid_smoothing_is_the_savitzky_golay_filter():
    # scipy's weighs points, ours the lines between them: they meet as the window fills with points
    rng = np.random.default_rng(1)
    x = np.arange(1.0, 4001)
    y = np.sin(x / 300) + rng.normal(0, 0.1, len(x))
    result = smooth(make_curve(x, y, log=False), 200, log=False)
    np.testing.assert_allclose(result.y, savgol_filter(y, 401, 1, mode="interp")[result.x.astype(int) - 1], atol=3e-3)


@pytest.mark.parametrize("log", [True, False])
def test_the_end_neither_lags_nor_follows_the_noise_of_one_point(log):
    x = np.arange(1.0, 20_001)
    clean = 2 + 10 * x**-0.3
    end = smooth(make_curve(x, clean, log=log), 0.05 if log else 1000, log)
    assert abs(end.y[-1] - clean[-1]) < 3e-4  # the mean over the window before it is 0.01 higher
    noise = np.random.default_rng(2).normal(0, 0.1, len(x))
    noise[-1] = 5.0
    result = smooth(make_curve(x, clean + noise, log=log), 0.05 if log else 1000, log)
    assert abs(result.y[-1] - clean[-1]) < 0.03 and result.x[-1] == x[-1]


def test_smoothing_does_not_mix_the_steps_of_a_plan():
    x = np.arange(1.0, 2001)
    y = np.where(x <= 1000, 5.0, 2.0)
    result = smooth(make_curve(x, y, parts=x > 1000), 0.3)
    np.testing.assert_allclose(result.y, np.where(result.x <= 1000, 5.0, 2.0), atol=1e-9)
    assert {1000, 1001} <= set(result.x)


def test_smoothing_of_few_equal_and_single_points():
    for x in ([], [5.0], [5.0, 6.0], [5.0, 5.0, 5.0], [5.0, 5.0, 9.0]):
        result = smooth(make_curve(x, np.ones(len(x))), 0.05)
        assert len(result) == len(x) or len(x) > 2 and np.isfinite(result.y).all()
        np.testing.assert_allclose(result.y, 1.0, atol=1e-9)


@pytest.mark.parametrize("log", [True, False])
def test_a_constant_difference_is_recovered_on_other_grids(log):
    coarse, fine = np.geomspace(10, 1000, 30), np.geomspace(5, 2000, 3001)

    def line(x):
        return 7 - 0.3 * drawn(x, log)

    result = difference(make_curve(coarse, line(coarse) - 0.125, log=log), make_curve(fine, line(fine), log=log), log)
    np.testing.assert_allclose(result.y, -0.125, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(result.x, coarse)
    other_way = difference(
        make_curve(fine, line(fine), log=log), make_curve(coarse, line(coarse) - 0.125, log=log), log
    )
    np.testing.assert_allclose(other_way.y, 0.125, rtol=0, atol=1e-9)
    assert other_way.x[-1] == 1000 and other_way.x[0] >= 10  # to the end of the shorter one


def test_curves_that_do_not_meet_have_no_difference():
    assert len(difference(make_curve([1, 2], [1, 1]), make_curve([3, 4], [1, 1]))) == 0
    assert len(difference(make_curve([5, 6], [1, 1]), make_curve([3, 4], [1, 1]))) == 0
    assert len(difference(make_curve([1, 2], [1, 1]), make_curve([], []))) == 0


def test_points_that_cannot_be_drawn_are_left_out():
    curve = make_curve([0, 1, 2, np.nan, 4], [1, 2, np.nan, 4, 5])
    assert curve.x.tolist() == [1, 4] and curve.y.tolist() == [2, 5]
    assert make_curve([0, 1], [1, 2], log=False).x.tolist() == [0, 1]
    assert make_curve([3, 1, 2], [3, 1, 2]).y.tolist() == [1, 2, 3]
    np.testing.assert_allclose(interpolate(make_curve([1, 100], [0, 2]), np.array([10, 0.5, 101])), [1, np.nan, np.nan])


def test_thinning_keeps_what_the_picture_shows():
    x = np.geomspace(1, 1e6, 200_000)
    y = np.random.default_rng(3).normal(size=len(x))
    y[123_456], y[77_777] = 50, -50
    result = thin(Curve(x, y, np.array([0, 100_000])), 1, 1e6, 500)
    assert len(result) <= 4 * 501 and {50, -50} <= set(result.y)
    assert (result.x[0], result.x[-1]) == (x[0], x[-1])
    column = np.minimum(499, np.floor(np.log(x) / np.log(1e6) * 500))
    kept = np.minimum(499, np.floor(np.log(result.x) / np.log(1e6) * 500))
    for c in (0, 17, 250, 499):
        assert result.y[kept == c].min() == y[column == c].min() and result.y[kept == c].max() == y[column == c].max()
    assert result.x[result.starts[1]] >= x[100_000] > result.x[result.starts[1] - 1]
    flat = thin(Curve(x, np.ones(len(x)), np.array([0])), 1, 1e6, 500)
    assert len(flat) <= 4 * 501  # ties do not keep everything


def test_curves_of_different_points_together():
    first, second = make_curve([1, 2, 4, 8], [1, 2, 3, 4]), make_curve([2, 3, 4], [10, 11, 12])
    kept, values = together([first, second], log=False)
    np.testing.assert_allclose(kept.x, [2, 4])
    np.testing.assert_allclose(values, [[2, 3], [10, 12]])
    mean, low, high = mean_and_range([first, second], log=False)
    np.testing.assert_allclose([mean.y, low.y, high.y], [[6, 7.5], [2, 3], [10, 12]])
    assert len(mean_and_range([first, make_curve([9, 10], [0, 0])], log=False)[0]) == 0
    assert mean_and_range([first])[0] is first
