"""Draw one picture of curves with matplotlib: labeled at the line ends, safe for color-blind readers."""

import math
import textwrap
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from lmplay.own_files import own_file
from lmplay.report.canvas import DPI, as_bytes, blank, drawing, put_text
from lmplay.report.end_labels import LABEL_SIZE, End, label_ends
from lmplay.report.limits import outside, y_limits
from lmplay.report.plot_options import Limits
from lmplay.report.styles import Style
from lmplay.stats.curves import Curve
from lmplay.text import count

Dashes = str | tuple[int, tuple[float, ...]]


# Okabe and Ito, "Color Universal Design", 2008, without the yellow that is too pale for lines; black is the baseline's.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


DASHES: tuple[Dashes, ...] = ("solid", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (7, 1.5, 1.2, 1.5)))


GREY = "#666666"


PIXEL_COLUMNS = 1200


FEW = 12  # lines; more are thinner, and bare


CUT = "▲"


SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass
class Line:
    """One run, or the mean of several, in a picture, thinned to what can be seen (`curves.thin`).

    raw: points, drawn faintly behind `curve`. seeds: the curve of each run, thin. behind: another curve of the same
    runs (training behind validation), wide and pale.
    """

    label: str
    curve: Curve
    raw: Curve | None = None
    color: str = "black"
    dashes: Dashes = "solid"
    seeds: list[Curve] = field(default_factory=list)
    behind: Curve | None = None


@dataclass
class Picture:
    """One picture of curves, the first of them the baseline's."""

    title: str
    subtitle: str
    x_label: str
    y_label: str
    lines: list[Line]
    log: bool = True
    begin: float = 1.0  # the x at which the picture begins
    zero: str | None = None  # label of the line at 0 that differences are measured from
    phases: list[tuple[float, str]] = field(default_factory=list)  # (x at which a phase of the plan begins, its name)
    notes: list[str] = field(default_factory=list)
    floor: float | None = None  # the lowest possible value, if it is known
    below: list["Picture"] = field(default_factory=list)  # further panels, drawn below this one
    y_limits: Limits = (None, None)
    style: Style = field(default_factory=Style)

    @cached_property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest y."""
        least, most = y_limits([line.curve for line in self.lines], self.zero is not None, self.floor)
        low, high = (
            needed if chosen is None else chosen for chosen, needed in zip(self.y_limits, (least, most), strict=True)
        )
        if low < high:
            return low, high
        return (low, low + 1.0) if self.y_limits[1] is None else (high - 1.0, high)


def line_styles(groups: list[str], baseline: int) -> list[tuple[str, Dashes]]:
    """Return (color, dashes) of each run: black for the baseline, then the colors in turn, then other dashes.

    More runs than colors take one color per group if there are several groups and enough colors for them.
    """
    others = [i for i in range(len(groups)) if i != baseline]
    names = list(dict.fromkeys(groups[i] for i in others))
    by_group = len(others) > len(COLORS) >= len(names) > 1
    styles: list[tuple[str, Dashes]] = [("black", "solid")] * len(groups)
    used = dict.fromkeys(names, 0)
    for turn, i in enumerate(others):
        color, dash = (names.index(groups[i]), used[groups[i]]) if by_group else (turn, turn // len(COLORS))
        used[groups[i]] += 1
        styles[i] = (COLORS[color % len(COLORS)], DASHES[dash % len(DASHES)])
    return styles


def visible_from(ends: list[float], first: float, log: bool) -> float:
    """Return the x at which a picture begins: a logarithmic one omits the first 3% of training, which would fill it."""
    return max(first, min(0.03 * max(ends), 0.1 * min(ends))) if log else 0.0


def figure_of(picture: Picture, dpi: int = DPI) -> Figure:
    """Return a new figure of the picture."""
    figure = blank(picture.style.width, picture.style.height, dpi)
    draw(picture, figure)
    return figure


@drawing()
def draw(picture: Picture, figure: Figure) -> list[Axes]:
    """Draw `picture` on an empty figure, size the figure, and return the axes of its panels.

    Label positions hold for that size.
    """
    with matplotlib.rc_context(picture.style.settings):
        return _draw_panels([picture, *picture.below], figure, picture.style)


def _draw_panels(panels: list[Picture], figure: Figure, style: Style) -> list[Axes]:
    heights = [_height(panel) for panel in panels]
    figure.set_size_inches(style.width, sum(heights))
    figure.set_facecolor(style.paper)
    if len(panels) == 1:
        return [_draw_panel(panels[0], figure, heights[0])]
    parts = figure.subfigures(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    return [_draw_panel(panel, part, height) for panel, part, height in zip(panels, parts, heights, strict=True)]


def _notes(picture: Picture) -> list[str]:
    cut = [said for line in picture.lines if (said := _cut_off(line, picture))]
    notes = [*(picture.notes if picture.style.titled else []), *_cut_note(cut, picture.y_limits != (None, None))]
    return [part for note in notes for part in textwrap.wrap(note, round(15 * picture.style.width))]


def _edges(picture: Picture) -> tuple[float, float]:
    """Return the inches above and below the axes."""
    return (0.85 if picture.style.titled else 0.2) + (0.2 if len(picture.phases) > 1 else 0.0), 0.65 + 0.18 * len(
        _notes(picture)
    )


def _height(picture: Picture) -> float:
    """Return the height of a panel in inches."""
    labels = len(picture.lines) + (picture.zero is not None) + (picture.floor is not None)
    return max(picture.style.height, labels * LABEL_SIZE * 1.3 / 72 + sum(_edges(picture)))


def _draw_panel(picture: Picture, figure: Figure | SubFigure, height: float) -> Axes:
    (top, bottom), style = _edges(picture), picture.style
    axes = figure.add_axes((style.left / style.width, bottom / height, 0.7, 1 - (top + bottom) / height))
    _set_scales(axes, picture)
    middle = (bottom + height - top) / 2 / height
    figure.text(0.22 / style.width, middle, picture.y_label, rotation=90, ha="center", va="center")
    if picture.zero is not None:
        axes.axhline(0, color=style.ink, linewidth=1.2, zorder=2.5)
    if picture.floor is not None:
        axes.axhline(picture.floor, color=style.quiet, linewidth=1.0, linestyle=DASHES[1], zorder=2.5)
    for line in picture.lines:
        _draw_line(axes, line, style.color(line.color), few=len(picture.lines) <= FEW)
        _mark_cut(axes, line, picture)
    _mark_phases(axes, picture)
    if style.titled:
        put_text(figure, style.left, 0.32, picture.title, fontsize=13, fontweight="bold")
        put_text(figure, style.left, 0.56, picture.subtitle, fontsize=9, color=style.quiet)
    for i, note in enumerate(reversed(_notes(picture))):
        put_text(figure, style.left, height - 0.08 - 0.18 * i, note, fontsize=8, color=style.note)
    label_ends(axes, _ends(axes, picture), style.shade)
    return axes


def _set_scales(axes: Axes, picture: Picture) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=picture.style.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    if picture.log:
        axes.set_xscale("log")
    low, high = picture.begin, max(line.curve.x[-1] for line in picture.lines)
    axes.set_xlim(low, high * 1.01 if high > low else low * 2 + 1)
    axes.set_ylim(*picture.limits)
    _ticks(axes, picture.log, "FLOP" in picture.x_label)
    axes.set_xlabel(f"{picture.x_label}{', logarithmic' if picture.log else ''}")


def _draw_line(axes: Axes, line: Line, color: str, few: bool) -> None:
    """Draw a line, with each seed, other curves and its raw points behind it, and a dot at its end."""
    curve = line.curve
    if line.behind is not None:
        axes.plot(line.behind.x, line.behind.y, color=color, alpha=0.18, linewidth=3, zorder=1.7)
    for one in line.seeds:
        axes.plot(one.x, one.y, color=color, alpha=0.45, linewidth=0.7, linestyle=line.dashes, zorder=1.8)
    if line.raw is not None and len(line.raw):
        dots: dict[str, Any] = {"markersize": 2, "alpha": 0.35, "markeredgewidth": 0, "zorder": 2, "rasterized": True}
        axes.plot(line.raw.x, line.raw.y, ".", color=color, **dots)
    marker, width = "o" if few and len(curve) <= 40 else None, 1.5 if few else 1.0
    style: dict[str, Any] = {
        "linestyle": line.dashes,
        "linewidth": width,
        "marker": marker,
        "markersize": 3,
        "zorder": 3,
    }
    axes.plot(curve.x, curve.y, color=color, **style)
    low, high = axes.get_ylim()
    if low <= curve.y[-1] <= high:
        axes.plot(curve.x[-1], curve.y[-1], "o", color=color, markersize=4, clip_on=False, zorder=4)


def _ends_outside(line: Line, picture: Picture) -> tuple[float | None, float | None]:
    return outside(line.curve, [other.curve for other in picture.lines], *picture.limits)


def _cut_off(line: Line, picture: Picture) -> str:
    """Return the name of a line that runs out of the picture and the value it gets to, else ""."""
    ends = [f"{value:.4g}" for value in _ends_outside(line, picture) if value is not None]
    return f"{line.label} (to {' and '.join(ends)})" if ends else ""


def _cut_note(cut: list[str], chosen: bool) -> list[str]:
    """Return a note on the lines that run out of the picture; none if none does. chosen: its limits were typed."""
    if not cut:
        return []
    more = f" and {len(cut) - 4} more" if len(cut) > 4 else ""
    why = "" if chosen else ", so that the other curves can be seen"
    return [f"{CUT} runs out of the picture{why}: {', '.join(cut[:4])}{more}"]


def _mark_cut(axes: Axes, line: Line, picture: Picture) -> None:
    """Mark on the edge where a line is farthest outside."""
    for value, height, marker in zip(_ends_outside(line, picture), (0.0, 1.0), ("v", "^"), strict=True):
        if value is not None:
            x = line.curve.x[line.curve.y == value][-1]
            where = axes.get_xaxis_transform()
            axes.plot(
                x,
                height,
                marker,
                color=picture.style.color(line.color),
                markersize=7,
                transform=where,
                clip_on=False,
                zorder=4,
            )


def _ticks(axes: Axes, log: bool, scientific: bool) -> None:
    def short(value: float, _position: int) -> str:
        if not scientific or not value:
            return count(value)
        power = math.floor(math.log10(abs(value)) + 1e-9)
        return f"{value / 10**power:.3g}×10{str(power).translate(SUPERSCRIPT)}"

    if axes.get_ylim()[1] >= 5000:
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _position: count(value)))
    if log:
        low, high = axes.get_xlim()
        decades = math.log10(high / low)
        if decades < 1:
            axes.xaxis.set_major_locator(ticker.MaxNLocator(6))
            axes.xaxis.set_minor_locator(ticker.NullLocator())
        else:
            axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if decades < 2.7 else (1,), numticks=99))
            axes.xaxis.set_minor_locator(ticker.LogLocator(subs=range(1, 10), numticks=99))
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(short))


def _mark_phases(axes: Axes, picture: Picture) -> None:
    if len(picture.phases) < 2:
        return
    low, high = axes.get_xlim()
    free_from = -math.inf
    marks = sorted((max(x, low), name) for x, name in picture.phases if x < high)
    hidden = sum(x == low for x, _ in marks) - 1  # of those that begin left of the picture, only the last is seen
    for x, name in marks[max(0, hidden) :]:
        if x > low:
            axes.axvline(x, color="#999999", linewidth=0.8, zorder=1.5)
        text = axes.annotate(
            name,
            (x, 1),
            (3, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=8,
            color=picture.style.quiet,
            annotation_clip=False,
        )
        box = text.get_window_extent()
        if box.x0 < free_from:
            text.remove()
        else:
            free_from = box.x1 + 4


def _ends(axes: Axes, picture: Picture) -> list[End]:
    """Return the ends of all lines; of one that runs out of the picture, where it leaves."""
    low, high = axes.get_ylim()
    style = picture.style
    ends = [
        (line.curve.x[-1], min(high, max(low, line.curve.y[-1])), line.label, style.color(line.color))
        for line in picture.lines
    ]
    if picture.zero is not None:
        ends.append((axes.get_xlim()[1], 0.0, picture.zero, style.ink))
    if picture.floor is not None:
        ends.append((axes.get_xlim()[1], picture.floor, "entropy: the lowest possible", style.quiet))
    return ends


def save(picture: Picture, path: Path) -> None:
    """Write the picture in the format of the name's suffix, whole or not at all."""
    content = as_bytes(figure_of(picture), path.suffix[1:])
    with own_file(path) as beside:
        beside.write_bytes(content)


def show(pictures: list[Picture]) -> bool:
    """Open windows and wait until they are closed. Return False if there is no display."""
    import matplotlib.pyplot as pyplot

    pyplot.figure()
    pyplot.close()
    if matplotlib.get_backend().lower() in ("agg", "pdf", "svg", "ps", "cairo", "template"):
        return False
    for picture in pictures:
        draw(picture, pyplot.figure(dpi=100))
    pyplot.show()
    return True
