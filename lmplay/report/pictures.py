"""Lay out the pictures of an overlay: from groups of runs to curves, from curves to pictures."""

from dataclasses import dataclass

import numpy as np

from lmplay.report import figure
from lmplay.report.frame import FLAG, Frame, make_frame, words
from lmplay.report.groups import SPLITS, Loaded, RunGroup
from lmplay.report.measured_text import text_of
from lmplay.report.panels import plan_of
from lmplay.report.phase_curves import curve_of
from lmplay.report.plot_options import LOSSES, TRAINING, Y_LABELS, PlotOptions
from lmplay.report.styles import STYLES
from lmplay.stats.curves import Curve, difference, make_curve, mean_and_range, smooth, thin
from lmplay.text import printable


@dataclass(frozen=True)
class View:
    """How one column is drawn: from which split, smoothed by `percent`, which is `half_width` on the x-axis."""

    column: str
    split: str
    percent: float
    half_width: float


def make_pictures(
    groups: list[RunGroup], options: PlotOptions, loss: str, same_tokenizer: bool
) -> tuple[dict[str, figure.Picture], list[str]]:
    """Return ({file name without suffix: picture}, warnings).

    groups: the baseline first. loss: "loss" or "bits_per_byte". The pictures show the loss, the accuracy and the chosen
    columns, and the differences of each to the baseline. Raises UserError if there is nothing to draw.
    """
    frame, warnings = make_frame(groups, options, loss, same_tokenizer)
    pictures = {}
    more_columns = dict.fromkeys((*options.columns, *(TRAINING if options.training else ())))
    for file, column in {"loss": loss, "accuracy": "accuracy", **{name: name for name in more_columns}}.items():
        view = _view(frame, column)
        curves, differences, more = _lines(frame, view)
        warnings += more
        drawn = {file: _picture(frame, view, curves)}
        if frame.compared and (column not in TRAINING or column in options.columns):
            drawn[f"diff_{file}"] = _difference_picture(frame, view, differences)
        for name, picture in drawn.items():
            picture.y_limits = dict(options.ylim).get(name, picture.y_limits)
            name = f"log_{name}" if options.log else name
            if picture.lines:
                pictures[name] = picture
            else:
                warnings.append(f"{name} is not drawn: {_why_not(frame, view)}")
    return pictures, list(dict.fromkeys(warnings))


def _view(frame: Frame, column: str) -> View:
    """Return how a column is drawn. A column that an experiment reports often exists in training only."""
    options, split = frame.options, frame.split
    if column in TRAINING and column not in options.columns:
        return View(column, "train", *((0.0, 0.0) if column == "learning_rate" else _smoothing(frame, "train")))
    if column in options.columns and options.split is None:
        tables = [one.tables for group in frame.groups for one in group.members]
        found = (name for name in ("validate", "train") if any(column in of[name] for of in tables))
        split = next(found, split)
    return View(column, split, *_smoothing(frame, split))


def _smoothing(frame: Frame, split: str) -> tuple[float, float]:
    """Return by how many percent the curves of a split are smoothed, and how much that is on the x-axis."""
    log = frame.options.log
    default = 0.0 if split == "validate" else 5.0 if log else 2.0
    percent = default if frame.options.smooth is None else frame.options.smooth
    return percent, percent / 100 * (1 if log else frame.end)


def _lines(frame: Frame, view: View) -> tuple[list[figure.Line], list[figure.Line], list[str]]:
    """Return (a line for each group, a line for its difference to the baseline, warnings)."""
    log, warnings = frame.options.log, []
    baseline = {id(one): _curve(frame, view, one) for one in frame.baseline.members}
    lines, differences = [], []
    for i, group in enumerate(frame.groups):  # one by one: all curves at once would take much memory
        line, more = _line(frame, view, i, [_curve(frame, view, one) for one in group.members])
        if line and view.split == "validate" and view.column in LOSSES and len(frame.groups) <= figure.FEW:
            line.behind = _training(frame, view, group)
        lines.append(line)
        warnings += more
        if frame.compared and i and frame.is_subtracted(group):
            apart = []
            for one, others in group.beside(frame.baseline):
                mean = mean_and_range([baseline[id(other)] for other in others], log)[0]
                apart.append(difference(_curve(frame, view, one), mean, log))
            line, more = _line(frame, view, i, apart)
            differences.append(line)
            warnings += more
    return [line for line in lines if line], [line for line in differences if line], warnings


def _curve(frame: Frame, view: View, one: Loaded) -> Curve:
    texts = text_of(one.run, view.split)
    curve = curve_of(one.tables[view.split], frame.options.column, view.column, frame.options.log, texts)
    return _in_unit(curve, frame.unit)


def _in_unit(curve: Curve, unit: float) -> Curve:
    """Return the curve with its x divided by `unit`."""
    midway = _in_unit(curve.midway, unit) if curve.midway else None
    return Curve(curve.x / unit, curve.y, curve.starts, curve.texts, midway)


def _training(frame: Frame, view: View, group: RunGroup) -> Curve | None:
    """Return the smoothed training curve of a group, mean over its runs, to draw behind its validations."""
    log = frame.options.log
    train = View(view.column, "train", *_smoothing(frame, "train"))
    curves = [curve for one in group.members if len(curve := _curve(frame, train, one))]
    if not curves:
        return None
    mean = mean_and_range([smooth(curve, train.half_width, log) for curve in curves], log)[0]
    drawn = _thinned(frame, mean)
    return drawn if len(drawn) else None


def _thinned(frame: Frame, curve: Curve) -> Curve:
    """Return no more points of a curve than a picture shows, and none outside of --xlim."""
    low, high = (None if limit is None else limit / frame.unit for limit in frame.options.xlim)
    if len(curve) and (low is not None or high is not None):
        inside = (curve.x >= (-np.inf if low is None else low)) & (curve.x <= (np.inf if high is None else high))
        curve = curve.at(np.flatnonzero(inside))
    return thin(curve, frame.begin, frame.end, figure.PIXEL_COLUMNS, frame.options.log) if len(curve) else curve


def _line(frame: Frame, view: View, i: int, curves: list[Curve]) -> tuple[figure.Line | None, list[str]]:
    """Return (the line of the curves of group `i`, with no more points than a picture shows, warnings)."""
    log, label = frame.options.log, frame.groups[i].label
    points = curves = [curve for curve in curves if len(curve)]
    if not curves:
        return None, []

    curves = [smooth(curve, view.half_width, log) for curve in curves]
    whole = mean_and_range(curves, log)[0]
    mean = _thinned(frame, whole)
    if len(whole) and not len(mean):
        return None, [f"{label}: has no point within --xlim, not drawn"]
    if not len(mean):
        return None, [f"{label}: its runs have no part in common, not drawn (--each-run draws them)"]
    raw = None
    if frame.options.raw:
        x, y = (np.concatenate([getattr(curve, axis) for curve in points]) for axis in "xy")
        raw = _thinned(frame, make_curve(x, y, log=log))
    flag = FLAG if i in frame.flagged else ""
    color, dashes = frame.styles[i]
    line = figure.Line(
        label=f"{label}{flag} (baseline)" if i == 0 and frame.compared else label + flag,
        curve=mean,
        raw=raw,
        color=color,
        dashes=dashes,
        seeds=[part for curve in curves if len(part := _thinned(frame, curve))] if len(curves) > 1 else [],
    )
    return line, []


def _picture(frame: Frame, view: View, lines: list[figure.Line]) -> figure.Picture:
    return figure.Picture(
        title=f"{_what(view)}, {_where(frame)}",
        subtitle=_subtitle(frame, view, lines),
        x_label=frame.x_label,
        y_label=Y_LABELS.get(view.column, printable(view.column)),
        lines=lines,
        log=frame.options.log,
        begin=_begin(frame, lines),
        phases=list(frame.phases),
        notes=list(frame.notes),
        floor=_entropy(frame.groups) if view.column == "loss" else None,
        style=STYLES[frame.options.style],
    )


def _difference_picture(frame: Frame, view: View, lines: list[figure.Line]) -> figure.Picture:
    label = frame.baseline.label
    better = {"accuracy": f"above 0: better than {label}"}
    better[frame.loss] = f"below 0: better than {label}"
    return figure.Picture(
        title=f"{_what(view)} minus that of {label}, {_where(frame)}",
        subtitle=_subtitle(frame, view, lines, better.get(view.column)),
        x_label=frame.x_label,
        y_label=f"difference in {Y_LABELS.get(view.column, printable(view.column))}",
        lines=lines,
        log=frame.options.log,
        begin=_begin(frame, lines),
        zero=f"{label} (baseline)",
        phases=list(frame.phases),
        notes=list(frame.notes),
        style=STYLES[frame.options.style],
    )


def _begin(frame: Frame, lines: list[figure.Line]) -> float:
    if not frame.options.log or not lines:
        return frame.begin
    return max(frame.begin, min(line.curve.x[0] for line in lines))


def _subtitle(frame: Frame, view: View, lines: list[figure.Line], first: str | None = None) -> str:
    parts = [first] if first else []
    if any(line.seeds for line in lines):
        parts.append("mean of n seeds, each of them thin")
    if any(line.behind for line in lines):
        parts.append("wide and pale: training")
    if view.half_width:
        width = f"±{view.percent:g}% of the {frame.options.x if frame.options.log else 'longest run'}"
        parts.append(f"smoothed: mean over {width} around each point, at the ends a line fitted to twice that")
    else:
        parts.append("not smoothed")
    return "  ·  ".join(parts)


def _what(view: View) -> str:
    return f"{SPLITS[view.split].capitalize()} {words(view.column)}"


def _where(frame: Frame) -> str:
    """Return the plan, its data, and the experiment if there is only one."""
    plans = list(dict.fromkeys(plan_of(group.run) for group in frame.groups))
    text = f"plan {plans[0]}" if len(plans) == 1 else f"{len(plans)} plans"
    datasets = frame.baseline.run.get("data", "datasets")
    if len(plans) == 1 and isinstance(datasets, dict) and list(datasets) != plans:
        names = printable(", ".join(datasets))
        text += f" ({names})" if len(names) < 40 else f" ({len(datasets)} datasets)"
    if frame.options.plan_step is not None:
        text += f", phase {printable(frame.options.plan_step)}"
    specs = {group.run.spec for group in frame.groups}
    return f"{specs.pop()} on {text}" if len(specs) == 1 and len(frame.groups) > 1 else text


def _entropy(groups: tuple[RunGroup, ...]) -> float | None:
    """Return the entropy of the data, if all drawn runs have one dataset and know it."""
    found = set()
    for group in groups:
        datasets = group.run.get("data", "datasets")
        name = next(iter(datasets)) if isinstance(datasets, dict) and len(datasets) == 1 else ""
        found.add(group.run.number("data", "datasets", name, "entropy"))
    return found.pop() if len(found) == 1 else None


def _why_not(frame: Frame, view: View) -> str:
    if not any(map(frame.is_subtracted, frame.groups[1:])):
        return f"no run was validated on the data of {frame.baseline.label}"
    return f"the runs have no such {SPLITS[view.split]} figures in common"
