"""Choose which part of the y-axis a picture shows, so that no spike takes the height that the curves need."""

import numpy as np

from lmplay.stats.curves import Curve

EARLY = 0.05  # the share of the longest curve whose beginning may lie outside
SHARE = 5.0  # the picture is at most this many times as high as a typical curve, if a part of each can stay in it
WIDE = 2.0  # a value lies far outside of its own curve from this many times the curve's range on
MARGIN = 0.04
JUMP = 0.4  # of its own range in one step: a curve runs away
FAR = 5.0  # times the most height: a curve runs away, too, however slowly
SEEN = 0.1  # the share of its own length from which on a curve is certainly in the picture


def y_limits(curves: list[Curve], zero: bool, floor: float | None = None) -> tuple[float, float]:
    """Return the lowest and the highest y of a picture.

    It holds all values after the first EARLY share of the longest curve, and the last third of every curve, as long as
    the typical curve takes a fifth of the height. Else single values far from their own curve are left out, then what
    runs away from the other curves; a part of every curve stays. It holds 0 if `zero`, and `floor` if there is one.
    """
    shown = [_late(curve, curves) for curve in curves]
    fixed = [0.0] * zero + ([] if floor is None else [floor])
    parts = _without_what_runs_away(shown, [curve.y[curve.x >= SEEN * curve.x[-1]] for curve in curves], fixed)
    low, high = _span(parts, fixed)
    margin = MARGIN * (high - low) or MARGIN * abs(low) or 1.0
    return low - margin, high + margin


def outside(curve: Curve, curves: list[Curve], low: float, high: float) -> tuple[float | None, float | None]:
    """Return the lowest and the highest value of `curve`, its beginning aside, if they lie outside of the picture."""
    late = _late(curve, curves)
    least, most = float(late.min()), float(late.max())
    return (least if least < low else None), (most if most > high else None)


def _late(curve: Curve, curves: list[Curve]) -> np.ndarray:
    """Return the values of a curve without those of its beginning."""
    early = EARLY * max(other.x[-1] for other in curves)
    return curve.y[curve.x >= min(early, 0.67 * curve.x[-1])]


def _span(parts: list[tuple[float, float]], fixed: list[float]) -> tuple[float, float]:
    return min([*fixed, *(low for low, _ in parts)]), max([*fixed, *(high for _, high in parts)])


def _height(parts: list[tuple[float, float]], fixed: list[float]) -> float:
    low, high = _span(parts, fixed)
    return high - low


def _without_what_runs_away(
    shown: list[np.ndarray], whole: list[np.ndarray], fixed: list[float]
) -> list[tuple[float, float]]:
    """Return the span of each curve that the picture holds. whole: the values with those of the beginning."""
    most = SHARE * float(np.median([np.subtract(*_middle(values)[::-1]) for values in shown])) / (1 + 2 * MARGIN)
    parts = [(float(values.min()), float(values.max())) for values in shown]
    if _height(parts, fixed) <= most:
        return parts
    parts = [_own(values) for values in shown]
    center = float(np.median([np.median(values) for values in shown]))
    nearest = [_nearest(values, center) for values in whole]
    jumps = [_jumps(values) for values in shown]
    for _ in parts:
        height = _height(parts, fixed)
        if height <= most:
            break
        smaller = [
            _height([*parts[:i], nearest[i], *parts[i + 1 :]], fixed) if jumps[i] or height > FAR * most else height
            for i in range(len(parts))
        ]
        best = int(np.argmin(smaller))
        if smaller[best] > 2 / 3 * height:
            break
        parts[best] = nearest[best]
    return parts


def _jumps(values: np.ndarray) -> bool:
    """Tell whether a curve goes a large part of its way in one step, as one that diverges does."""
    return len(values) > 1 and bool(np.abs(np.diff(values)).max() > JUMP * np.ptp(values))


def _middle(values: np.ndarray) -> tuple[float, float]:
    """Return what the middle 80% of the values span; of fewer than four values, all."""
    if len(values) < 4:
        return float(values.min()), float(values.max())
    low, high = np.quantile(values, 0.1, method="higher"), np.quantile(values, 0.9, method="lower")
    return float(low), float(high)


def _own(values: np.ndarray) -> tuple[float, float]:
    """Return what a curve spans without single values that lie far from it."""
    low, high = _middle(values)
    far = WIDE * (high - low)
    near = values[(values >= low - far) & (values <= high + far)]
    return float(near.min()), float(near.max())


def _nearest(values: np.ndarray, center: float) -> tuple[float, float]:
    """Return what the tenth of a curve spans that is nearest to `center`."""
    order = np.argsort(np.abs(values - center), kind="stable")
    near = values[order[: max(1, len(values) // 10)]]
    return float(near.min()), float(near.max())
