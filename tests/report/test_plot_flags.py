"""What a reader chooses of a plot: limits, groups, styles, how training went, and the data of each plot."""

import csv

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from lmplay.cli import plotstats
from lmplay.errors import UserError
from lmplay.report.figure import figure_of
from lmplay.report.overlay import overlay
from lmplay.report.plot_options import PlotOptions
from support.making_runs import fall, make_run


@pytest.fixture
def runs(tmp_path):
    """Two learning rates of one experiment with two seeds each."""
    for lr in (0.001, 0.01):
        for seed in (0, 1):
            make_run(
                tmp_path / f"run{lr}{seed}",
                steps=200,
                seed=seed,
                settings={"lr": lr, "seed": seed, "batch_size": 8 + seed},
                loss=lambda t, lr=lr, seed=seed: fall(t) + 10 * lr + 0.01 * seed,
            )
    return tmp_path


def pictures(folder, **options):
    return overlay([folder], folder, PlotOptions(split="train", log=False, smooth=0.0, **options)).pictures


def test_limits_of_the_axes(runs):
    tokens = 12_800
    picture = pictures(runs, xlim=(50 * tokens, 150 * tokens), ylim=(("loss", (7.0, None)),))["loss"]
    for line in picture.lines:
        assert (line.curve.x[0], line.curve.x[-1]) == (50 * tokens, 150 * tokens)
    figure = figure_of(picture)
    axes = figure.axes[0]
    assert axes.get_xlim()[0] == 50 * tokens and axes.get_ylim()[0] == 7.0
    said = " ".join(text.get_text() for text in figure.texts)
    assert "▲ runs out of the picture: " in said and picture.lines[0].label in said
    with pytest.raises(UserError, match="no picture 'los', but loss"):
        pictures(runs, ylim=(("los", (1.0, 2.0)),))
    with pytest.raises(UserError, match="no point within --xlim"):
        pictures(runs, xlim=(1e12, None))


def test_lines_by_the_value_of_a_setting(runs):
    picture = pictures(runs, group="lr")["loss"]
    assert [line.label for line in picture.lines] == ["lr=0.001 (n=2) (baseline)", "lr=0.01 (n=2)"]
    for line, lr in zip(picture.lines, (0.001, 0.01)):
        np.testing.assert_allclose(line.curve.y, fall(line.curve.x) + 10 * lr + 0.005, rtol=1e-6)
        assert len(line.seeds) == 2
    difference = pictures(runs, group="lr")["diff_loss"].lines[0].curve
    np.testing.assert_allclose(difference.y, 0.09, atol=1e-6)
    one = pictures(runs, group="experiment")["loss"].lines
    assert [line.label for line in one] == ["gpt2ish (n=4)"] and len(one[0].seeds) == 4
    sizes = pictures(runs, group="batch-size")
    assert [line.label for line in sizes["loss"].lines][1:] == ["batch_size=9 (n=2) †"]
    # seeds differ between the groups, and each run stands for itself: all of the baseline's are subtracted
    np.testing.assert_allclose(sizes["diff_loss"].lines[0].curve.y, 0.01, atol=1e-6)
    with pytest.raises(UserError, match="no run has a setting or field 'lrr'. Did you mean 'lr'"):
        pictures(runs, group="lrr")


def test_how_training_went(runs):
    found = pictures(runs, training=True)
    assert {"learning_rate", "gradient_norm", "tokens_per_second"} < set(found)
    assert "diff_learning_rate" not in found and set(pictures(runs)) == set(found) - {
        "learning_rate",
        "gradient_norm",
        "tokens_per_second",
    }
    assert found["learning_rate"].title.startswith("Training learning rate")
    np.testing.assert_allclose(found["tokens_per_second"].lines[0].curve.y, 64_000)


def test_styles(runs):
    dark, paper, screen = (figure_of(pictures(runs, style=style)["loss"]) for style in ("dark", "paper", "screen"))
    for figure, ink in ((dark, "#e4e8ec"), (screen, "black")):
        assert to_rgb(figure.axes[0].lines[0].get_color()) == to_rgb(ink)  # the baseline's
    assert sum(to_rgb(dark.get_facecolor())) < 0.5 < sum(to_rgb(dark.axes[0].xaxis.label.get_color())) - 2
    assert paper.get_size_inches()[0] < 7 and screen.get_size_inches()[0] == 11
    assert not any("Training loss" in text.get_text() for text in paper.texts)
    assert any("Training loss" in text.get_text() for text in screen.texts)


def test_every_plot_as_data(runs, capsys):
    out = runs / "plots"
    words = ["--out", str(runs), "--to", str(out), "--csv", "--split", "train", "--smooth", "0", "--linear"]
    assert plotstats.main([*words, "--xlim", ",1M", "--ylim", "diff_loss=-1,1"]) == 0
    for picture in out.glob("*.png"):
        assert picture.with_suffix(".csv").is_file()
    with (out / "loss.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    line = [row for row in rows if row["run"] == rows[0]["run"]]
    x = np.array([float(row["training tokens"]) for row in line])
    assert x.max() <= 1e6 and len(x) == 78  # steps of 12,800 tokens
    np.testing.assert_allclose([float(row["loss (nats per token)"]) for row in line], fall(x) + 0.01, rtol=1e-6)
    assert {row["curve"] for row in rows} == {"line"} and len({row["run"] for row in rows}) == 4
    assert "loss.csv" in capsys.readouterr().out


def test_flags_that_are_wrong(capsys):
    for words, said in (
        (["--xlim", "3M,1M"], "the lower first"),
        (["--ylim", "loss=3"], "LOW,HIGH is expected"),
        (["--xlim", ","], "LOW,HIGH is expected"),
        (["--ylim", "nan,3"], "LOW,HIGH is expected"),
        (["--group", "lr", "--each-run"], "not allowed with"),
    ):
        with pytest.raises(SystemExit):
            plotstats.main(words)
        assert said in capsys.readouterr().err


def test_sixty_runs_have_thin_bare_lines_and_labels_apart(tmp_path):
    for i in range(60):
        make_run(
            tmp_path / f"run{i}", experiment=f"idea_{i}", steps=30, every=5, loss=lambda t, i=i: fall(t) - 0.001 * i
        )
    picture = overlay([tmp_path], tmp_path, PlotOptions()).pictures["log_loss"]
    figure = figure_of(picture)
    assert len(picture.lines) == 60 and not any(line.behind for line in picture.lines)
    axes = figure.axes[0]
    assert max(line.get_linewidth() for line in axes.lines if len(line.get_xdata()) > 1) <= 1.2
    at = np.sort([text.xyann[1] for text in axes.texts]) * axes.get_window_extent().height
    assert len(at) >= 60 and np.diff(at).min() >= 9 * 150 / 72  # nine points at 150 dots per inch
