"""Draw a ladder: loss against FLOPs with the baseline's law, and the compute multiplier against FLOPs."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from lmplay.report.canvas import blank, drawing, put_axes
from lmplay.report.figure import COLORS, GREY
from lmplay.report.ladder import ArmsOnLadder
from lmplay.stats.ladder import Ladder
from lmplay.stats.ruler import REACH

BASELINE_COLOR, CANDIDATE_COLOR = COLORS[:2]
WIDTH, HEIGHT = 10.0, 4.2  # inches
TICKS = (  # of M above 1, from fine to coarse
    (1.01, 1.02, 1.03, 1.04),
    (1.02, 1.04, 1.06, 1.08),
    (1.05, 1.1, 1.15, 1.2),
    (1.1, 1.2, 1.35, 1.5),
    (1.25, 1.5, 2.0, 2.5, 3.0),
    (2.0, 3.0, 5.0, 10.0),
    (10.0, 100.0),
)
MOST_DRAWN = math.log(100)  # of an interval's end, above and below the points


def draw_ladder(found: ArmsOnLadder) -> Figure:
    """Return the picture of a ladder that has a result. Raises ValueError without one."""
    if found.ladder is None:
        raise ValueError(f"nothing to draw: {found.why}")
    with drawing():
        figure = blank(WIDTH, HEIGHT)
        losses = put_axes(figure, 0.8, 0.65, 3.85, 3.1)
        multipliers = put_axes(figure, 5.75, 0.65, 3.95, 3.1)
        _losses(losses, found, found.ladder)
        _multipliers(multipliers, found.ladder)
        for axes in (losses, multipliers):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"1e{math.log10(value):.0f}"))
            axes.set_xlabel("FLOPs of training, the baseline's")
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25)
        title = f"{found.label} against {found.baseline}"
        figure.text(0.8 / WIDTH, 1 - 0.25 / HEIGHT, title, fontsize=11, va="center")
    return figure


def _losses(axes: Axes, found: ArmsOnLadder, ladder: Ladder) -> None:
    """Draw both arms' losses and the baseline's law with its band over seeds."""
    law = ladder.ruler
    flops = np.geomspace(law.flops[0] / 1.5, law.flops[-1] * 2, 200)
    loss, band = law.loss_at(flops), law.band(flops, 0.95)
    axes.plot(flops, loss, color=BASELINE_COLOR, lw=1, label="the baseline's law, 95% over seeds")
    if np.isfinite(band).all():
        axes.fill_between(flops, loss - band, loss + band, color=BASELINE_COLOR, alpha=0.15, lw=0)
    axes.plot(law.flops, law.losses, "o", color=BASELINE_COLOR, ms=5, label=found.baseline)
    x = [one.candidate_flops for one in ladder.rungs]
    axes.plot(
        x, [one.verdict.candidate_loss for one in ladder.rungs], "D", color=CANDIDATE_COLOR, ms=5, label=found.label
    )
    shown = [*law.losses, *(one.verdict.candidate_loss for one in ladder.rungs)]
    room = 0.12 * (max(shown) - min(shown)) or 0.1
    axes.set_ylim(min(min(shown), float(loss.min())) - room, max(max(shown), float(loss[0])) + room)
    axes.set_ylabel("validation loss, nats per token")
    axes.legend(frameon=False, fontsize=8, loc="upper right")


def _multipliers(axes: Axes, ladder: Ladder) -> None:
    """Draw M at each rung with its interval, and the line over the rungs, continued to its end, with its band."""
    rungs = ladder.rungs
    x, y = np.array([one.baseline_flops for one in rungs]), np.array([one.flops.value for one in rungs])
    low = np.array([max(one.flops.low, y.min() - MOST_DRAWN) for one in rungs])
    high = np.array([min(one.flops.high, y.max() + MOST_DRAWN) for one in rungs])
    top = float(x[-1])
    line = np.geomspace(x[0], REACH * top, 100)
    found = [ladder.extrapolated(float(flops)) for flops in line]
    inside = line <= top * (1 + 1e-9)
    middle = np.exp([one.value for one in found])
    axes.axhline(1, color=GREY, lw=0.8)
    axes.plot(line[inside], middle[inside], color=CANDIDATE_COLOR, lw=1, label="line over the rungs, 95%")
    axes.plot(line[~inside], middle[~inside], color=CANDIDATE_COLOR, lw=1, ls=":", label="continued to 10 times")
    ends = np.clip([(one.low, one.high) for one in found], y.min() - MOST_DRAWN, y.max() + MOST_DRAWN)
    axes.fill_between(line, np.exp(ends[:, 0]), np.exp(ends[:, 1]), color=CANDIDATE_COLOR, alpha=0.12, lw=0)
    bars = [np.exp(y) - np.exp(low), np.exp(high) - np.exp(y)]
    axes.errorbar(x, np.exp(y), yerr=bars, fmt="D", color=CANDIDATE_COLOR, ms=5, capsize=3, label="M, 95%")
    for one in rungs:
        axes.annotate(
            one.name, (one.baseline_flops, math.exp(one.flops.value)), (6, 5), textcoords="offset points", fontsize=8
        )
    axes.set_yscale("log")
    edge = max(
        abs(float(low.min())), abs(float(high.max())), abs(float(ends[inside].min())), abs(float(ends[inside].max()))
    )
    axes.set_ylim(math.exp(-1.15 * edge - 0.02), math.exp(1.15 * edge + 0.02))
    axes.set_yticks(_ticks(1.15 * edge + 0.02))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.set_ylabel("M: the baseline's FLOPs, in the candidate's")
    axes.legend(frameon=False, fontsize=8, loc="best")


def _ticks(edge: float) -> list[float]:
    """Return round values of M from e^-edge to e^edge."""
    above = next((values for values in TICKS if math.log(values[-1]) >= 0.75 * edge), TICKS[-1])
    values = (*(float(f"{1 / one:.2g}") for one in above), 1.0, *above)
    return sorted(value for value in values if abs(math.log(value)) <= edge)
