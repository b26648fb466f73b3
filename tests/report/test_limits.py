"""One spike, or a run that diverges, must not take the height that the other curves need."""

import numpy as np
import pytest

from lmplay.report.figure import figure_of
from lmplay.report.limits import y_limits
from lmplay.report.overlay import overlay
from lmplay.report.plot_options import PlotOptions
from lmplay.stats.curves import make_curve
from support.making_runs import fall, make_run

X = np.linspace(10, 1000, 20)


def sane(shift=0.0):
    return 3 + shift + 20 * (X + 20) ** -0.6


def with_value(at, value):
    y = sane()
    y[at] = value
    return y


def shares(*ys, zero=False):
    """The share of the height that the visible part of each curve takes."""
    low, high = y_limits([make_curve(X[: len(y)], y) for y in ys], zero=zero)
    return [max(0.0, (min(y.max(), high) - max(y.min(), low)) / (high - low)) for y in ys]


WILD = {
    "a spike": with_value(10, 900.0),
    "a spike at the end": with_value(-1, 900.0),
    "a spike downwards": with_value(5, -900.0),
    "diverged late": np.where(X < 800, sane(), 40.0),
    "diverged early": np.where(X < 200, sane(), 900 + X),
    "short, and diverged": np.array([4.0, 900.0]),
}


@pytest.mark.parametrize("wild", WILD)
def test_sane_curves_keep_a_fifth_and_no_curve_vanishes(wild):
    found = shares(sane(), sane(0.05), WILD[wild])
    assert min(found[:2]) >= 0.2
    y = WILD[wild]
    low, high = y_limits([make_curve(X, sane()), make_curve(X, sane(0.05)), make_curve(X[: len(y)], y)], zero=False)
    assert any(low <= value <= high for value in y)


def test_what_is_far_away_as_a_whole_stays():
    low, high = y_limits([make_curve(X, sane()), make_curve(X, 9 + 0 * X)], zero=False)
    assert low < sane()[-1] and high > 9
    tiny = 0.01 * np.sin(X)
    low, high = y_limits([make_curve(X, tiny), make_curve(X, -0.5 + tiny)], zero=True)
    assert low < -0.5 and high > 0.01


def test_a_model_that_differs_gradually_is_not_taken_for_one_that_diverged():
    far = 0.3 * np.sin(X / 400) - 0.05
    low, high = y_limits([make_curve(X, 0.01 * np.sin(X)), make_curve(X, 0.01 * np.cos(X)), make_curve(X, far)], True)
    assert low < far[-1] < high and high > far.max()


def test_differences_with_a_spike_keep_zero_and_their_height():
    noise = np.random.default_rng(0).normal(0, 0.01, (3, len(X)))
    noise[2, 4] = 800
    low, high = y_limits([make_curve(X, y) for y in noise], zero=True)
    assert low < 0 < high < 0.2 and min(shares(*noise, zero=True)) > 0.2


def test_a_picture_says_what_runs_out_of_it(tmp_path):
    make_run(tmp_path / "base", steps=200, every=10)
    folder = make_run(tmp_path / "idea", experiment="idea", steps=200, every=10, loss=lambda t: fall(t) - 0.1)
    picture = overlay([tmp_path], tmp_path, PlotOptions()).pictures["log_loss"]
    figure = figure_of(picture)
    assert not any("runs out of the picture" in text.get_text() for text in figure.texts)

    lines = (folder / "validate.csv").read_text().splitlines()
    cells = lines[10].split(",")
    cells[lines[0].split(",").index("loss")] = "900"
    (folder / "validate.csv").write_text("\n".join([*lines[:10], ",".join(cells), *lines[11:]]) + "\n")
    pictures = overlay([tmp_path], tmp_path, PlotOptions()).pictures
    for name in ("log_loss", "log_diff_loss"):
        figure = figure_of(pictures[name])
        (said,) = [text.get_text() for text in figure.texts if "runs out of the picture" in text.get_text()]
        assert "idea:tiny (to 9" in said or "idea:tiny (to 89" in said
        low, high = figure.axes[0].get_ylim()
        assert high - low < 10
        assert [line for line in figure.axes[0].lines if line.get_marker() == "^"]
