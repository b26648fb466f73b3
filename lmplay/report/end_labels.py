"""Name the lines of a picture beside their ends."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

LABEL_SIZE = 9  # points

End = tuple[float, float, str, str]  # x and y at which a line ends, its label, its color

# The thin line from the end of a curve to its label. There is nothing to clip it to: clipping takes most of the time.
LEADER = {
    "arrowstyle": "-",
    "linewidth": 0.8,
    "linestyle": ":",
    "alpha": 0.7,
    "relpos": (0, 0.5),
    "shrinkA": 0,
    "shrinkB": 0,
    "patchA": None,
}


def label_ends(axes: Axes, ends: list[End], shade: float = 0.8) -> None:
    """Name every line to the right of the axes, near the height of its end, without overlap, with a thin line to it.

    shade: what a line's color is multiplied by for its name.
    """
    figure = axes.figure
    texts = [figure.text(0, 0, f" {label}", fontsize=LABEL_SIZE, va="center") for _, _, label, _ in ends]
    boxes = [text.get_window_extent() for text in texts]
    gap = 0.3 * figure.dpi
    area = axes.get_position()
    right = figure.bbox.width - max(box.width for box in boxes) - 0.1 * figure.dpi - gap
    axes.set_position((area.x0, area.y0, right / figure.bbox.width - area.x0, area.height))
    points = axes.transData.transform([(x, y) for x, y, _, _ in ends])
    box = axes.get_window_extent()
    heights = spread(points[:, 1], max(box.height for box in boxes) * 1.08, box.y0, box.y1)
    for text, (x, y, _, color), height in zip(texts, ends, heights, strict=True):
        text.remove()
        axes.annotate(
            text.get_text(),
            (x, y),
            (1 + gap / box.width, (height - box.y0) / box.height),
            xycoords="data",
            textcoords="axes fraction",
            fontsize=LABEL_SIZE,
            color=_shaded(color, shade),
            va="center",
            annotation_clip=False,
            arrowprops={**LEADER, "color": color},
        )


def _shaded(color: str, shade: float) -> tuple[float, ...]:
    """Return a color for text, which needs more contrast than lines."""
    return tuple(min(1.0, shade * c + max(0.0, shade - 1)) for c in to_rgb(color))


def spread(wanted: np.ndarray, distance: float, low: float, high: float) -> np.ndarray:
    """Return heights in [low, high], at least `distance` apart, in the order of `wanted`, with least squared moves.

    Least squares under an order is isotonic regression (pool adjacent violators: R. E. Barlow et al., "Statistical
    Inference under Order Restrictions", 1972). If they cannot fit, they keep their distance and leave the range at
    the top.
    """
    order = np.argsort(wanted, kind="stable")
    steps = distance * np.arange(len(order))
    pools: list[tuple[float, int]] = []  # (mean, size)
    for value in np.asarray(wanted, dtype=float)[order] - steps:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            (mean, size), (below, n) = pools.pop(), pools.pop()
            pools.append(((below * n + mean * size) / (n + size), n + size))
    flat = np.concatenate([np.full(size, mean) for mean, size in pools])
    result = np.empty(len(order))
    result[order] = np.maximum(low, np.minimum(flat, high - (steps[-1] if len(steps) else 0))) + steps
    return result
