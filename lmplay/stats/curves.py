"""Clean, smooth, subtract and thin curves, which are arrays."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass
class Curve:
    """`y` over `x`, both float64 (points,) and finite; `x` ascends, and is positive on a logarithmic scale.

    starts: indices of the points at which a new part begins, the first of them 0. Parts are the phases of the plan:
    between them the data changes, and the curve may jump. texts: of each part what it was measured on; () is not known.
    midway: the same on the documents that are scored at all times, where others are scored at the end only.
    """

    x: np.ndarray
    y: np.ndarray
    starts: np.ndarray
    texts: tuple[Hashable, ...] = ()
    midway: "Curve | None" = None

    def __len__(self) -> int:
        return len(self.x)

    def at(self, index: np.ndarray) -> "Curve":
        """Return the points at these ascending indices."""
        starts = np.searchsorted(index, self.starts)
        starts = np.unique(starts[starts < len(index)])
        return Curve(self.x[index], self.y[index], starts, self._texts_at(np.asarray(index)[starts]))

    def _texts_at(self, index: np.ndarray) -> tuple[Hashable, ...]:
        parts = np.searchsorted(self.starts, index, side="right") - 1
        return tuple(self.texts[part] for part in parts) if self.texts else ()


def make_curve(
    x: ArrayLike,
    y: ArrayLike,
    parts: ArrayLike | None = None,
    log: bool = True,
    texts: Sequence[Hashable] = (),
) -> Curve:
    """Return the curve through the points with finite x and y, and x > 0 if `log`.

    parts: (points,) the number of the part of each. texts: by that number, what the part was measured on.
    """
    u, v = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    kept = np.isfinite(u) & np.isfinite(v) & ((u > 0) | (not log))
    part = np.zeros(len(u), dtype=int) if parts is None else np.asarray(parts)
    u, v, part = u[kept], v[kept], part[kept]
    if np.any(np.diff(u) < 0):
        order = np.argsort(u, kind="stable")
        u, v, part = u[order], v[order], part[order]
    starts = np.append(0, np.flatnonzero(part[1:] != part[:-1]) + 1)
    return Curve(u, v, starts, tuple(texts[int(number)] for number in part[starts]) if len(texts) and len(u) else ())


def scale(x: np.ndarray, log: bool) -> np.ndarray:
    """Return `x` as it is drawn: its natural logarithm, or itself."""
    return np.log(x) if log else x


def interpolate(curve: Curve, x: ArrayLike, log: bool = True) -> np.ndarray:
    """Return `curve` at `x`, on the straight lines between its points as they are drawn; NaN outside the curve."""
    if not len(curve):
        return np.full(np.shape(x), np.nan)
    return np.interp(scale(np.asarray(x, dtype=float), log), scale(curve.x, log), curve.y, left=np.nan, right=np.nan)


def difference(curve: Curve, baseline: Curve, log: bool = True) -> Curve:
    """Return `curve` - `baseline` at the points of `curve` within `baseline`, and at the end of the shorter.

    What was measured on different texts is not subtracted, nor what lies between two of them. Where one of two curves
    is known on the documents that are scored midway only, both are taken on these.
    """
    if curve.midway and baseline.midway and not (_is_whole(curve) and _is_whole(baseline)):
        curve, baseline = curve.midway, baseline.midway
    x, y, parts = curve.x, curve.y, np.searchsorted(curve.starts, np.arange(len(curve)), side="right")
    if len(curve) and len(baseline) and curve.x[0] <= baseline.x[-1] < curve.x[-1]:
        end = np.searchsorted(x, baseline.x[-1], side="right")
        x, parts = np.append(x[:end], baseline.x[-1]), np.append(parts[:end], parts[end - 1])
        y = np.append(y[:end], interpolate(curve, baseline.x[-1:], log))
    apart = np.where(_on_one_text(curve, baseline, x), y - interpolate(baseline, x, log), np.nan)
    return make_curve(x, apart, parts, log)


def _is_whole(curve: Curve) -> bool:
    """Tell whether a curve says in each of its parts what the loss on all documents is."""
    return curve.midway is None or not set(curve.texts) & set(curve.midway.texts)


def _on_one_text(curve: Curve, baseline: Curve, x: np.ndarray) -> np.ndarray:
    """Tell for each `x` whether both curves were measured on the same text there; True where that is not known."""
    if not (curve.texts and baseline.texts):
        return np.ones(len(x), dtype=bool)
    ours, theirs = _parts_at(curve, x), _parts_at(baseline, x)
    pairs = zip(ours.tolist(), theirs.tolist(), strict=True)
    alike = [one >= 0 and other >= 0 and curve.texts[one] == baseline.texts[other] for one, other in pairs]
    return np.array(alike, dtype=bool)


def _parts_at(curve: Curve, x: np.ndarray) -> np.ndarray:
    """Return the number of the part that each `x` lies in, -1 between two parts and outside the curve."""
    part = np.searchsorted(curve.starts, np.arange(len(curve)), side="right") - 1
    after = np.searchsorted(curve.x, x, side="left")
    inside = (after < len(curve)) & (x >= curve.x[0])
    after = np.minimum(after, len(curve) - 1)
    before = np.where(curve.x[after] == x, after, np.maximum(after - 1, 0))
    return np.where(inside & (part[before] == part[after]), part[after], -1)


def together(curves: list[Curve], log: bool = True) -> tuple[Curve, np.ndarray]:
    """Return (the first curve within the span of all, values (curves, points) of all curves there)."""
    first = curves[0]
    begin = max(curve.x[0] if len(curve) else np.nan for curve in curves)
    end = min(curve.x[-1] if len(curve) else np.nan for curve in curves)
    kept = first.at(np.flatnonzero((first.x >= begin) & (first.x <= end)))
    return kept, np.array([interpolate(curve, kept.x, log) for curve in curves]).reshape(len(curves), len(kept))


def mean_and_range(curves: list[Curve], log: bool = True) -> tuple[Curve, Curve, Curve]:
    """Return (mean, lowest, highest) of several curves over their common span; without points if they share none."""
    if len(curves) == 1:
        return curves[0], curves[0], curves[0]
    kept, values = together(curves, log)
    on_part = [curve.midway for curve in curves if curve.midway]
    midway = mean_and_range(on_part, log)[0] if len(on_part) == len(curves) else None
    mean, low, high = (
        Curve(kept.x, reduce(values, axis=0), kept.starts, kept.texts, midway) for reduce in (np.mean, np.min, np.max)
    )
    return mean, low, high


def smooth(curve: Curve, half_width: float, log: bool = True) -> Curve:
    """Return the mean of the drawn curve over a centered window; at the ends of a part, a line fitted to the window.

    The window reaches `half_width` to both sides, measured on the drawn scale: a share of x if `log` (0.05: from x /
    1.05 to 1.05 x), else in the unit of x. Between its points the curve is the straight line that is drawn there.

    A line of least squares over a window passes through the window's mean at its middle, so this is the
    Savitzky-Golay filter of degree 1 on an uneven grid (A. Savitzky, M. J. E. Golay, Analytical Chemistry 36, 1964):
    it reaches from the first x to the last, does not lag at the end as a trailing or exponential mean does, leaves a
    straight line as it is, and its end is not the noise of a single point. Returns fewer points if the window makes
    neighbors alike.
    """
    if half_width <= 0 or len(curve) < 3:
        return curve
    half = np.log1p(half_width) if log else half_width
    u = scale(curve.x, log)
    pieces, kept = [], []
    for start, stop in zip(curve.starts, np.append(curve.starts[1:], len(curve)), strict=True):
        index = _evenly(u[start:stop], half / 4)
        pieces.append(_smoothed(u[start:stop], curve.y[start:stop], index, half))
        kept.append(start + index)
    result = curve.at(np.concatenate(kept))
    result.y = np.concatenate(pieces)
    return result


def _evenly(u: np.ndarray, spacing: float) -> np.ndarray:
    """Return indices of points of ascending `u`, at least about `spacing` apart, with the first and the last."""
    cells = ((u - u[0]) / spacing).astype(np.int64)
    return np.unique(np.append(np.flatnonzero(np.diff(cells, prepend=-1)), len(u) - 1))


def _smoothed(u: np.ndarray, y: np.ndarray, index: np.ndarray, half: float) -> np.ndarray:
    """Return the piecewise linear curve (u, y) of one part, smoothed at the points `index`."""
    half = min(half, (u[-1] - u[0]) / 2)
    if half <= 1e-12 * max(1.0, abs(u[-1])):
        return y[index]
    middle = y.mean()  # subtracted first: the running integral then stays small and exact
    width, rise = np.diff(u), np.diff(y)
    slope = np.divide(rise, width, out=np.zeros_like(rise), where=width > 0)
    integral = np.append(0.0, np.cumsum((y[:-1] + rise / 2 - middle) * width))

    def integral_to(v: np.ndarray) -> np.ndarray:
        k = np.clip(np.searchsorted(u, v, side="right") - 1, 0, len(u) - 2)
        d = v - u[k]
        return integral[k] + d * (y[k] - middle + slope[k] * d / 2)

    at = u[index]
    low, high = np.maximum(at - half, u[0]), np.minimum(at + half, u[-1])
    result = middle + (integral_to(high) - integral_to(low)) / (2 * half)
    for center, near in ((u[0] + half, at < u[0] + half), (u[-1] - half, at > u[-1] - half)):
        result[near] = _line(u, y, center, half, at[near])
    return result


def _line(u: np.ndarray, y: np.ndarray, center: float, half: float, at: np.ndarray) -> np.ndarray:
    """Return the line of least squares through the curve (u, y) over [center - half, center + half], at `at`."""
    inside = u[(u > center - half) & (u < center + half)]
    v = np.concatenate([[center - half], inside, [center + half]])
    f = np.interp(v, u, y)
    width, between = np.diff(v), (f[1:] + f[:-1]) / 2
    mean = np.sum(width * between) / (2 * half)
    moment = (v - center) * (f - mean)
    at_middles = ((v[1:] + v[:-1]) / 2 - center) * (between - mean)
    integral = np.sum(width * (moment[1:] + 4 * at_middles + moment[:-1])) / 6  # Simpson's rule, exact for a quadratic
    slope = integral / (2 / 3 * half**3)
    return mean + slope * (at - center)


def thin(curve: Curve, low: float, high: float, columns: int, log: bool = True) -> Curve:
    """Return the points of `curve` that a line over [low, high] shows on a screen of `columns` pixels.

    These are the first, the lowest, the highest and the last point in each column (U. Jugel et al., "M4: A
    Visualization-Oriented Time Series Data Aggregation", VLDB 2014).
    """
    if len(curve) <= 4 * columns:
        return curve
    u, ends = scale(curve.x, log), scale(np.array([low, high], dtype=float), log)
    column = np.floor((u - ends[0]) / max(ends[1] - ends[0], 1e-300) * columns).astype(np.int64)
    begins = np.append(0, np.flatnonzero(np.diff(column)) + 1)
    counts = np.diff(np.append(begins, len(u)))
    kept = np.zeros(len(u), dtype=bool)
    kept[begins] = kept[begins + counts - 1] = True
    for extreme in (np.minimum, np.maximum):
        index = np.flatnonzero(curve.y == np.repeat(extreme.reduceat(curve.y, begins), counts))
        kept[index[np.append(True, np.diff(column[index]) > 0)]] = True
    return curve.at(np.flatnonzero(kept))
