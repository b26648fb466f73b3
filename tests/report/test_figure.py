import io

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy.optimize import minimize

from lmplay.errors import UserError
from lmplay.report.end_labels import spread
from lmplay.report.figure import COLORS, Line, Picture, draw, line_styles, save
from lmplay.report.limits import y_limits
from lmplay.report.overlay import draw_runs, overlay, write_plots
from lmplay.report.plot_options import PlotOptions
from lmplay.runs.run import read_run
from lmplay.stats.curves import make_curve
from support.making_runs import fall, make_run
from support.thorough import first


def drawn(picture):
    figure = Figure(dpi=100)
    FigureCanvasAgg(figure)
    (axes,) = draw(picture, figure)
    figure.canvas.draw()
    return figure, axes


def labels_of(figure, axes):
    boxes = {text.get_text(): Text.get_window_extent(text) for text in axes.texts if text.get_text().startswith(" ")}
    assert all(box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in boxes.values())
    return boxes


@pytest.mark.parametrize("runs", first(3, [1, 2, 20, 60]))
def test_labels_do_not_overlap_each_other_or_the_axes(tmp_path, runs):
    for i in range(runs):
        make_run(
            tmp_path / f"run{i}",
            experiment=f"experiment_{i}" + "_long" * (i % 6),
            steps=30 + 40 * (i % 3),
            loss=lambda t, i=i: fall(t) - 0.0005 * i,
        )
    for picture in overlay([tmp_path], tmp_path, PlotOptions(split="train")).pictures.values():
        figure, axes = drawn(picture)
        boxes = labels_of(figure, axes)
        assert len(boxes) == runs
        assert min(box.x0 for box in boxes.values()) >= axes.get_window_extent().x1
        by_height = sorted(boxes.values(), key=lambda box: box.y0)
        assert all(above.y0 >= below.y1 - 0.5 for below, above in zip(by_height, by_height[1:]))


def test_labels_stand_in_the_order_of_the_line_ends(tmp_path):
    for i in range(5):
        make_run(tmp_path / f"run{i}", experiment=f"e{i}", loss=lambda t, i=i: fall(t) - 0.01 * ((3 * i) % 5))
    figure, axes = drawn(overlay([tmp_path], tmp_path, PlotOptions(split="train")).pictures["log_loss"])
    boxes = labels_of(figure, axes)
    assert [name.strip() for name in sorted(boxes, key=lambda name: -boxes[name].y0)] == [
        "e0:tiny (baseline)",
        "e2:tiny",
        "e4:tiny",
        "e1:tiny",
        "e3:tiny",
    ]


def test_spreading_moves_as_little_as_possible():
    random = np.random.default_rng(0)
    for n in (1, 2, 7):
        wanted = random.uniform(0, 100, n)
        found = spread(wanted, 12, 0, 100)
        order = np.argsort(wanted)
        best = minimize(
            lambda p: np.sum((p - wanted[order]) ** 2),
            np.linspace(0, 100, n),
            method="SLSQP",
            bounds=[(0, 100)] * n,
            constraints=[{"type": "ineq", "fun": lambda p, i=i: p[i + 1] - p[i] - 12} for i in range(n - 1)],
        )
        np.testing.assert_allclose(found[order], best.x, atol=0.01)
    np.testing.assert_allclose(spread(np.array([50.0, 10.0]), 5, 0, 100), [50, 10])


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:Glyph .* missing")
def test_names_of_runs_are_drawn_as_they_are(tmp_path):
    names = ["$x_1$", "a$b", "$\\frac{$", "under_score_", "日本", "#", "%s"]
    for i, name in enumerate(names):
        make_run(tmp_path / f"run{i}", experiment=name, variant=None, plan="p$1$")
    found = overlay([tmp_path], tmp_path, PlotOptions())
    figure, axes = drawn(found.pictures["log_loss"])
    assert {name.strip().removesuffix(" (baseline)") for name in labels_of(figure, axes)} == set(names)
    for kind in ("png", "svg", "pdf"):
        write_plots(found, tmp_path / "plots", kind)
    assert len(list((tmp_path / "plots").iterdir())) == 12
    text = (tmp_path / "plots" / "log_loss.svg").read_bytes()
    save(found.pictures["log_loss"], tmp_path / "again.svg")
    assert text.startswith(b"<?xml") and (tmp_path / "again.svg").read_bytes() == text


def test_neither_the_beginning_nor_a_run_that_diverged_squashes_the_end():
    x = np.geomspace(1, 1e6, 2000)
    good, diverged = make_curve(x, 3 + 7 * x**-0.4), make_curve(x[:1500], np.where(x < x[1400], 4.0, 12.0)[:1500])
    low, high = y_limits([good], zero=False)
    assert low < 3 + 7 * 1e6**-0.4 < high < 3.5
    low, high = y_limits([good, diverged], zero=False)
    assert low < 3.1 and 4 < high < 12  # what diverged leaves the picture, and the good one keeps its height
    assert y_limits([make_curve([1, 2], [5, 5])], zero=True)[0] < 0
    low, high = y_limits([make_curve([1], [2.0])], zero=False)
    assert low < 2 < high


def test_styles_tell_runs_apart():
    assert line_styles(["a"], 0) == [("black", "solid")]
    few = line_styles(list("abcdefg"), 2)
    assert few[2] == ("black", "solid") and {color for color, _ in few} == {"black", *COLORS}
    many = line_styles([str(i) for i in range(25)], 0)
    assert len({str(style) for style in many}) == 25
    seeds = line_styles(["a"] + ["a"] * 4 + ["b"] * 4, 0)
    assert {color for color, _ in seeds[1:5]} == {COLORS[0]} and {color for color, _ in seeds[5:]} == {COLORS[1]}
    assert len({str(style) for style in seeds}) == 9


def test_differences_are_to_the_baseline_at_zero(tmp_path):
    make_run(tmp_path / "base", noise=0.3, steps=400)
    make_run(tmp_path / "idea", experiment="idea", noise=0.3, steps=400, loss=lambda t: fall(t) - 0.125)
    found = overlay([tmp_path], tmp_path, PlotOptions(split="train"))
    picture = found.pictures["log_diff_loss"]
    assert [line.label for line in picture.lines] == ["idea:tiny"] and picture.zero == "gpt2ish:tiny (baseline)"
    np.testing.assert_allclose(picture.lines[0].curve.y, -0.125, rtol=0, atol=1e-9)
    assert "below 0: better than gpt2ish:tiny" in picture.subtitle
    assert "above 0: better than gpt2ish:tiny" in found.pictures["log_diff_accuracy"].subtitle
    other = overlay([tmp_path], tmp_path, PlotOptions(split="train", baseline="idea", log=False, x="seconds"))
    np.testing.assert_allclose(other.pictures["diff_loss"].lines[0].curve.y, 0.125, rtol=0, atol=1e-9)
    assert other.pictures["loss"].x_label == "training time (seconds)"


def test_smoothing_is_stated(tmp_path):
    make_run(tmp_path / "a", noise=0.3)

    def subtitle(**choices):
        return overlay([tmp_path], tmp_path, PlotOptions(**choices)).pictures["log_loss"].subtitle

    assert (
        subtitle() == "wide and pale: training  ·  not smoothed"
        and "±5% of the tokens" in subtitle(split="train")
        and "±1%" in subtitle(split="train", smooth=1.0)
    )
    assert subtitle(split="train", smooth=0.0) == "not smoothed"
    assert (
        "±2% of the longest run"
        in overlay([tmp_path], tmp_path, PlotOptions(split="train", log=False)).pictures["loss"].subtitle
    )
    raw = overlay([tmp_path], tmp_path, PlotOptions(split="train", raw=True)).pictures["log_loss"].lines[0].raw
    assert len(raw) == 300


def test_the_split_that_reads_best_is_chosen_and_said(tmp_path):
    make_run(tmp_path / "a", steps=100, every=10)
    found = overlay([tmp_path], tmp_path, PlotOptions())
    assert found.pictures["log_loss"].title.startswith("Validation loss")
    make_run(tmp_path / "b", experiment="b", steps=100, every=60)
    found = overlay([tmp_path], tmp_path, PlotOptions())
    assert found.pictures["log_loss"].title.startswith("Training loss") and any(
        "--split validate" in line for line in found.warnings
    )
    found = overlay([tmp_path], tmp_path, PlotOptions(split="validate"))
    assert found.pictures["log_loss"].title.startswith("Validation loss")


def test_unlike_runs_are_flagged_and_other_tokenizers_compared_in_bits_per_byte(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "data", experiment="other", data_hash="eeee")
    found = overlay(["a", "data"], tmp_path, PlotOptions())
    picture = found.pictures["log_loss"]
    assert picture.y_label == "loss (nats per token)" and [line.label for line in picture.lines] == [
        "gpt2ish:tiny (baseline)",
        "other:tiny †",
    ]
    assert list(found.pictures) == ["log_loss", "log_accuracy"]
    assert any("log_diff_loss is not drawn" in line for line in found.warnings)
    assert any("other data" in note and "other:tiny" in note for note in picture.notes) and any(
        "other data" in line for line in found.warnings
    )
    make_run(tmp_path / "tokens", experiment="bytes", tokenizer="bbbb", loss=lambda t: fall(t) / 2)
    found = overlay(["a", "data", "tokens"], tmp_path, PlotOptions())
    picture = found.pictures["log_loss"]
    assert picture.y_label == "bits per byte" and "bits per byte" in picture.title
    curve = {line.label: line.curve for line in picture.lines}["bytes:tiny †"]
    assert curve.y[-1] == pytest.approx((fall(3_840_000.0) / 2 + 0.1) / 4 / np.log(2))
    assert "bits per byte" in found.table and "equal bytes" in found.table
    assert overlay(["a"], tmp_path, PlotOptions(bits_per_byte=True)).pictures["log_loss"].y_label == "bits per byte"


def test_a_step_of_the_plan_is_marked_and_selected(tmp_path):
    make_run(tmp_path / "a", plan_steps=("wiki", "instruct"), steps=200)
    make_run(tmp_path / "b", experiment="b", plan_steps=("wiki",), steps=100)
    found = overlay([tmp_path], tmp_path, PlotOptions())
    assert found.pictures["log_loss"].phases == [(12_800.0, "wiki"), (101 * 12_800.0, "instruct")]
    _, axes = drawn(found.pictures["log_loss"])
    assert {"wiki", "instruct"} <= {text.get_text() for text in axes.texts}
    only = overlay([tmp_path], tmp_path, PlotOptions(plan_step="instruct", split="train"))
    curve = only.pictures["log_loss"].lines[0].curve
    assert (curve.x[0], len(only.pictures["log_loss"].lines)) == (101 * 12_800.0, 1)
    assert any("b" in line and "no phase 'instruct'" in line for line in only.warnings)
    with pytest.raises(UserError, match="Did you mean 'instruct'"):
        overlay([tmp_path], tmp_path, PlotOptions(plan_step="instuct"))


def test_columns_of_training_are_drawn_where_losses_are_of_validation(tmp_path):
    for name in "ab":
        make_run(
            tmp_path / name, experiment=name, columns={"x_gate": lambda t: 0 * t + 0.5, "x_norm": lambda t: 0 * t + 2}
        )
    found = overlay([tmp_path], tmp_path, PlotOptions(columns=("x_*",)))
    pictures = found.pictures
    assert pictures["log_loss"].title.startswith("Validation loss") and "not smoothed" in pictures["log_loss"].subtitle
    for name, value in ("x_gate", 0.5), ("x_norm", 2):
        assert (
            pictures[f"log_{name}"].title.startswith(f"Training {name}") and "±5%" in pictures[f"log_{name}"].subtitle
        )
        assert all(np.allclose(line.curve.y, value) for line in pictures[f"log_{name}"].lines)


def test_columns_that_an_experiment_reports_are_drawn(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", experiment="b", columns={"x_gate": lambda t: 0 * t + 0.5})
    found = overlay([tmp_path], tmp_path, PlotOptions(columns=("x_gate",), split="train"))
    assert [line.label for line in found.pictures["log_x_gate"].lines] == ["b:tiny"]
    np.testing.assert_allclose(found.pictures["log_x_gate"].lines[0].curve.y, 0.5)
    assert "log_diff_x_gate" not in found.pictures and any("log_diff_x_gate" in line for line in found.warnings)
    with pytest.raises(UserError, match="Did you mean 'x_gate'"):
        overlay([tmp_path], tmp_path, PlotOptions(columns=("x_gat",)))


@pytest.mark.parametrize("x", ["tokens", "samples", "steps", "seconds", "flops", "bytes"])
def test_every_x_ends_where_the_run_ends(tmp_path, x):
    make_run(tmp_path / "a", steps=50)
    curve = overlay([tmp_path], tmp_path, PlotOptions(x=x, split="train")).pictures["log_loss"].lines[0].curve
    assert curve.x[-1] == pytest.approx(
        {"tokens": 640_000, "samples": 2500, "steps": 50, "seconds": 10, "flops": 6e7 * 640_000, "bytes": 4 * 640_000}[
            x
        ]
    )


def test_times_of_unlike_machines_are_named(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", experiment="b", device={"name": "another", "ranks": {"n": 2}, "threads": None})
    for x, said in (("tokens", []), ("seconds", ["device a processor, another", "number of devices 1, 2"])):
        notes = overlay([tmp_path], tmp_path, PlotOptions(x=x)).pictures["log_loss"].notes
        assert [note.partition("machines: ")[2] for note in notes if note.startswith("Times")] == said


def test_a_picture_of_one_point(tmp_path):
    picture = Picture("t", "s", "x", "y", [Line("a", make_curve([5.0], [2.0]))], begin=5.0)
    figure, _ = drawn(picture)
    buffer = io.BytesIO()
    figure.savefig(buffer)
    assert buffer.getvalue().startswith(b"\x89PNG")


def test_seeds_become_a_mean_with_a_band(tmp_path):
    shift = {0: 0.0, 1: 0.03, 2: 0.09}
    for seed, by in shift.items():
        make_run(tmp_path / f"base{seed}", seed=seed, loss=lambda t, by=by: fall(t) + by)
        make_run(tmp_path / f"idea{seed}", seed=seed, experiment="idea", loss=lambda t, by=by: fall(t) + 2 * by - 0.5)
    found = overlay([tmp_path], tmp_path, PlotOptions(split="train", smooth=0.0))
    lines = found.pictures["log_loss"].lines
    assert [line.label for line in lines] == ["gpt2ish:tiny (n=3) (baseline)", "idea:tiny (n=3)"]
    assert "mean of n seeds, each of them thin" in found.pictures["log_loss"].subtitle
    truth = fall(lines[1].curve.x)
    np.testing.assert_allclose(lines[1].curve.y, truth + 0.08 - 0.5, atol=1e-9)
    for one, by in zip(lines[1].seeds, (0.0, 0.06, 0.18), strict=True):
        np.testing.assert_allclose(one.y, truth + by - 0.5, atol=1e-9)
    # differences are taken within a seed: 0, 0.03 and 0.09 more than -0.5
    (apart,) = found.pictures["log_diff_loss"].lines
    np.testing.assert_allclose(apart.curve.y, 0.04 - 0.5, atol=1e-9)
    np.testing.assert_allclose([one.y[-1] for one in apart.seeds], [-0.5, 0.03 - 0.5, 0.09 - 0.5], atol=1e-9)
    row = next(line for line in found.table.splitlines() if line.startswith("idea:tiny (n=3)"))
    assert " -0.4600 " in row and f" {np.std([0, 0.06, 0.18], ddof=1):.4f} " in row and row.endswith(" finished")
    figure, axes = drawn(found.pictures["log_loss"])
    assert not axes.patches and len(labels_of(figure, axes)) == 2  # no band that is not the verdict's interval
    each = overlay([tmp_path], tmp_path, PlotOptions(split="train", each_run=True)).pictures["log_loss"]
    assert len(each.lines) == 6 and not any(line.seeds for line in each.lines) and "mean of n" not in each.subtitle


def test_a_baseline_of_other_seeds_is_its_mean(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / f"base{seed}", seed=seed, loss=lambda t, seed=seed: fall(t) + 0.1 * seed)
    make_run(tmp_path / "idea", seed=7, experiment="idea", loss=lambda t: fall(t) - 1)
    found = overlay([tmp_path], tmp_path, PlotOptions(split="train", smooth=0.0))
    (apart,) = found.pictures["log_diff_loss"].lines
    np.testing.assert_allclose(apart.curve.y, -1.05, atol=1e-9)
    assert " -1.0500 " in found.table


def test_the_entropy_of_synthetic_data_is_drawn_as_a_line(tmp_path):
    entropy = {"synthetic": {"entropy": 2.25}}
    for name in ("base", "idea"):
        make_run(tmp_path / name, experiment=name, data={"datasets": entropy})
    found = overlay([tmp_path], tmp_path, PlotOptions(split="train", baseline="base"))
    assert [picture.floor for picture in found.pictures.values()] == [2.25, None, None, None]
    figure, axes = drawn(found.pictures["log_loss"])
    assert axes.get_ylim()[0] < 2.25
    assert any(line.get_ydata() == [2.25, 2.25] for line in axes.lines)
    assert " entropy: the lowest possible" in labels_of(figure, axes)
    make_run(tmp_path / "other", experiment="other", data={"datasets": {"synthetic": {"entropy": 1.0}}})
    assert overlay([tmp_path], tmp_path, PlotOptions(split="train")).pictures["log_loss"].floor is None


def test_a_figure_of_runs_for_a_notebook(tmp_path):
    runs = [
        read_run(make_run(tmp_path / "base")),
        read_run(make_run(tmp_path / "idea", experiment="idea", columns={"x_gate": lambda t: 1 / t})),
    ]
    figure = draw_runs(runs, PlotOptions(split="train", baseline="base"))
    (axes,) = figure.axes
    assert figure.texts[1].get_text().startswith("Training loss") and axes.get_xscale() == "log"
    assert {text.get_text().strip() for text in axes.texts} == {"gpt2ish:tiny (baseline)", "idea:tiny"}
    difference = draw_runs(runs, PlotOptions(log=False), "accuracy", diff=True)
    assert (
        "minus that of gpt2ish:tiny" in difference.texts[1].get_text() and difference.axes[0].get_xscale() == "linear"
    )
    assert "x_gate" in draw_runs(runs, column="x_gate").texts[1].get_text()
    assert isinstance(figure, Figure) and not list(tmp_path.glob("*.png"))
    assert figure._repr_png_().startswith(b"\x89PNG")  # what a notebook shows
    with pytest.raises(UserError, match="no run has a column 'x_gat'"):
        draw_runs(runs, column="x_gat")
    with pytest.raises(UserError, match="diff_loss can't be drawn"):
        draw_runs(runs[:1], diff=True)
