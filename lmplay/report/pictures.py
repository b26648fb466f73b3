"""Lay out the pictures of an overlay: from groups of runs to curves, from curves to pictures."""

from dataclasses import dataclass

import numpy as np

from lmplay.errors import UserError
from lmplay.report import figure
from lmplay.report.groups import ENOUGH_VALIDATIONS, SPLITS, Loaded, RunGroup, curve_of, phase_starts, unlike
from lmplay.report.measured_text import text_of
from lmplay.report.plot_options import X_AXES, Y_LABELS, PlotOptions
from lmplay.report.training_unlike import training_unlike
from lmplay.runs.names import PLAN_STEP
from lmplay.stats.curves import Curve, difference, make_curve, mean_and_range, smooth, thin
from lmplay.text import counted, printable

FLAG = " †"


@dataclass(frozen=True)
class Frame:
    """What all pictures of one overlay share.

    groups: those that are drawn. baseline: the first of all groups, drawn or not. loss: "loss" or "bits_per_byte".
    unit: x is divided by it. begin, end: the span of x. flagged: indices of groups that the notes are about.
    """

    options: PlotOptions
    groups: tuple[RunGroup, ...]
    baseline: RunGroup
    loss: str
    split: str
    unit: float
    x_label: str
    begin: float
    end: float
    phases: tuple[tuple[float, str], ...]
    styles: tuple[tuple[str, figure.Dashes], ...]
    notes: tuple[str, ...]
    flagged: frozenset[int]

    @property
    def compared(self) -> bool:
        """Whether there are differences to the baseline to draw."""
        return len(self.groups) > 1 and self.groups[0] is self.baseline


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
    frame, warnings = _frame(groups, options, loss, same_tokenizer)
    pictures = {}
    for file, column in {"loss": loss, "accuracy": "accuracy", **{name: name for name in options.columns}}.items():
        view = _view(frame, column)
        curves, differences, more = _lines(frame, view)
        warnings += more
        drawn = {file: _picture(frame, view, curves)}
        if frame.compared:
            drawn[f"diff_{file}"] = _difference_picture(frame, view, differences)
        for name, picture in drawn.items():
            name = f"log_{name}" if options.log else name
            if picture.lines:
                pictures[name] = picture
            else:
                warnings.append(f"{name} is not drawn: the runs have no such {SPLITS[view.split]} figures in common")
    return pictures, list(dict.fromkeys(warnings))


def _frame(groups: list[RunGroup], options: PlotOptions, loss: str, same_tokenizer: bool) -> tuple[Frame, list[str]]:
    split, warnings = _split(groups, options)
    points = {id(group): _points(group, split, loss, options) for group in groups}
    drawn = [group for group in groups if points[id(group)]]
    for group in groups:
        if not points[id(group)]:
            consequence = "no differences are drawn" if group is groups[0] else "not drawn"
            warnings.append(f"{group.label}: has no {SPLITS[split]} {words(loss)} over {options.x} yet, {consequence}")
    if not drawn:
        raise UserError(
            f"no run has {SPLITS[split]} {words(loss)} over {options.x} yet: choose another --split or --x, or train on"
        )
    notes, flagged = _notes(drawn, groups[0], options, same_tokenizer)
    unit, x_label = _x_unit(drawn, options)
    curves = [mean_and_range(points[id(group)], options.log)[0] for group in drawn]
    begins, ends = [curve.x[0] / unit for curve in curves], [curve.x[-1] / unit for curve in curves]
    frame = Frame(
        options=options,
        groups=tuple(drawn),
        baseline=groups[0],
        loss=loss,
        split=split,
        unit=unit,
        x_label=x_label,
        begin=figure.visible_from(ends, min(begins), options.log),
        end=max(ends),
        phases=tuple(_phases(drawn, options.column, unit)),
        styles=tuple(figure.line_styles([group.run.spec for group in drawn], 0)),
        notes=tuple(notes),
        flagged=flagged,
    )
    return frame, warnings + [note.removeprefix(FLAG.strip()).strip() for note in notes]


def _split(groups: list[RunGroup], options: PlotOptions) -> tuple[str, list[str]]:
    """Return (the split to draw, warnings): by default validation, if every run has enough validations for a curve.

    Validation is less noisy than training, and the same text for all.
    """
    if options.split:
        return options.split, []
    few = [
        group.label
        for group in groups
        if any(len(one.tables["validate"]) < ENOUGH_VALIDATIONS for one in group.members)
    ]
    if not few:
        return "validate", []
    named = few[0] if len(few) == 1 else counted(len(few), "run")
    return "train", [
        f"training figures are drawn, because {named} had fewer than {ENOUGH_VALIDATIONS} validations "
        "(--split validate draws them)"
    ]


def _points(group: RunGroup, split: str, column: str, options: PlotOptions) -> list[Curve]:
    """Return the curves, in the units of the tables, of the runs of a group that have any points."""
    curves = (curve_of(one.tables[split], options.column, column, options.log) for one in group.members)
    return [curve for curve in curves if len(curve)]


def _notes(
    groups: list[RunGroup], baseline: RunGroup, options: PlotOptions, same_tokenizer: bool
) -> tuple[list[str], frozenset[int]]:
    """Return (notes on what is not alike, indices of the groups that they are about)."""
    reasons: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        for reason in (*unlike(group.run, baseline.run), *training_unlike(group.run, baseline.run)):
            reasons.setdefault(reason, []).append(i)
    notes = []
    for reason, members in reasons.items():
        names = ", ".join(groups[i].label for i in members[:4])
        names += f" and {len(members) - 4} more" if len(members) > 4 else ""
        other = f" than {baseline.label}" if reason.startswith(("other", "another")) else ""
        notes.append(f"{FLAG.strip()} {reason}{other}: {names}")
    if not same_tokenizer:
        text = "" if options.x != "tokens" else " Equal tokens are not equal text: see --x bytes."
        notes.append(
            "Tokenizers differ: losses are compared in bits per byte; "
            f"accuracies of different tokenizers do not compare.{text}"
        )
    devices = {printable(one.run.get("device", "name")) for group in groups for one in group.members}
    if options.x == "seconds" and len(devices) > 1:
        notes.append(f"Times are of different devices: {', '.join(sorted(devices))}")
    return notes, frozenset(i for members in reasons.values() for i in members)


def _x_unit(groups: list[RunGroup], options: PlotOptions) -> tuple[float, str]:
    """Return (what x is divided by, the label of the x-axis)."""
    label = X_AXES[options.x][1]
    if options.x != "seconds":
        return 1.0, label
    longest = max(one.figures["seconds"] or 0 for group in groups for one in group.members)
    if longest >= 3 * 3600:
        return 3600.0, f"{label} (hours)"
    return (60.0, f"{label} (minutes)") if longest >= 300 else (1.0, f"{label} (seconds)")


def _phases(groups: list[RunGroup], column: str, unit: float) -> list[tuple[float, str]]:
    """Return (x, name) of the plan's phases in the first run that has seen most of them."""
    begins = [_phase_begins(group.members[0], column, unit) for group in groups]
    chosen = max(begins, key=len)
    alike = all(abs(x - chosen.get(name, x)) <= 0.02 * x for other in begins for name, x in other.items())
    label = groups[begins.index(chosen)].label
    return [(x, name if alike else f"{name} ({label})") for name, x in chosen.items()]


def _phase_begins(one: Loaded, column: str, unit: float) -> dict[str, float]:
    starts = next((found for table in one.tables.values() if column in (found := phase_starts(table))), None)
    if starts is None:
        return {}
    return {printable(name): x / unit for name, x in zip(starts[PLAN_STEP], starts[column], strict=True)}


def _view(frame: Frame, column: str) -> View:
    """Return how a column is drawn. A column that an experiment reports often exists in training only."""
    options, split = frame.options, frame.split
    if column in options.columns and options.split is None:
        tables = [one.tables for group in frame.groups for one in group.members]
        found = (name for name in ("validate", "train") if any(column in of[name] for of in tables))
        split = next(found, split)
    default = 0.0 if split == "validate" else 5.0 if options.log else 2.0
    percent = default if options.smooth is None else options.smooth
    return View(column, split, percent, half_width=percent / 100 * (1 if options.log else frame.end))


def _lines(frame: Frame, view: View) -> tuple[list[figure.Line], list[figure.Line], list[str]]:
    """Return (a line for each group, a line for its difference to the baseline, warnings)."""
    log, warnings = frame.options.log, []
    baseline = {id(one): _curve(frame, view, one) for one in frame.baseline.members}
    lines, differences = [], []
    for i, group in enumerate(frame.groups):  # one by one: all curves at once would take much memory
        line, more = _line(frame, view, i, [_curve(frame, view, one) for one in group.members])
        lines.append(line)
        warnings += more
        if frame.compared and i:
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
    return Curve(curve.x / frame.unit, curve.y, curve.starts, curve.texts)


def _line(frame: Frame, view: View, i: int, curves: list[Curve]) -> tuple[figure.Line | None, list[str]]:
    """Return (the line of the curves of group `i`, with no more points than a picture shows, warnings)."""
    log, label = frame.options.log, frame.groups[i].label
    curves = [curve for curve in curves if len(curve)]
    if not curves:
        return None, []

    def thinned(curve: Curve) -> Curve:
        return thin(curve, frame.begin, frame.end, figure.PIXEL_COLUMNS, log)

    mean, low, high = map(thinned, mean_and_range([smooth(curve, view.half_width, log) for curve in curves], log))
    if not len(mean):
        return None, [f"{label}: its runs have no part in common, not drawn (--each-run draws them)"]
    raw = None
    if frame.options.raw:
        x, y = (np.concatenate([getattr(curve, axis) for curve in curves]) for axis in "xy")
        raw = thinned(make_curve(x, y, log=log))
    flag = FLAG if i in frame.flagged else ""
    color, dashes = frame.styles[i]
    line = figure.Line(
        label=f"{label}{flag} (baseline)" if i == 0 and frame.compared else label + flag,
        curve=mean,
        raw=raw,
        color=color,
        dashes=dashes,
        band=(low, high) if len(curves) > 1 else None,
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
    )


def _begin(frame: Frame, lines: list[figure.Line]) -> float:
    if not frame.options.log or not lines:
        return frame.begin
    return max(frame.begin, min(line.curve.x[0] for line in lines))


def _subtitle(frame: Frame, view: View, lines: list[figure.Line], first: str | None = None) -> str:
    parts = [first] if first else []
    if any(line.band for line in lines):
        parts.append("mean of n seeds, band from the lowest to the highest")
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
    plans = list(dict.fromkeys(printable(group.run.get("plan", "name") or "unnamed") for group in frame.groups))
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


def words(column: str) -> str:
    """Return the name of a column for people."""
    return "bits per byte" if column == "bits_per_byte" else printable(column)
