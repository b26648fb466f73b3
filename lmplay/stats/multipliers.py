"""The compute multiplier M of a size: how many times the FLOPs the baseline needs for the candidate's loss.

The baseline's law (`ruler`), centered on the baseline's own point, says it: with the difference dL and the local slope
s, ln M = -dL / s to first order, and exactly (1 / alpha) ln((L_b - L_inf) / (L_c - L_inf)), plus the logarithm of the
ratio of the FLOPs of one run of each.

Seeds. The variance between seeds is pooled over the rungs in units of ln M: what the other rungs tell enters the
verdict of a rung as a prior does, under the same F test (`evidence`). So M and the verdict rest on one interval.

Interval. It holds every x for which (y - x)^2 <= h^2 + r^2 x^2, where y is the estimate, h the half-width of the
verdict's interval of dL read off the law, r that of ln s (E. C. Fieller, Journal of the Royal Statistical Society B
16, 1954). At x = 0 the law's error has no part, so at equal FLOPs the interval leaves out M = 1 exactly when the
verdict's leaves out 0. The correlation of dL with s, which share the baseline's seeds, is left out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmplay.stats.prior import Prior
from lmplay.stats.ruler import REACH, Ruler
from lmplay.stats.savings import speeds_half_width
from lmplay.stats.verdict import PairedLosses, Verdict


@dataclass(frozen=True)
class Rung:
    """Both arms at one size. losses: paired by seed, on the same documents at all rungs.

    baseline_flops, candidate_flops: of training, one run. baseline_seconds, candidate_seconds: (S,) of the runs, if
    they can be compared. prior: the spread between seeds by earlier runs.
    """

    name: str
    losses: PairedLosses
    baseline_flops: float
    candidate_flops: float
    baseline_seconds: np.ndarray | None = None
    candidate_seconds: np.ndarray | None = None
    prior: Prior | None = None

    @property
    def log_flops_ratio(self) -> float:
        """ln of the baseline's FLOPs over the candidate's."""
        return math.log(self.baseline_flops / self.candidate_flops)


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval, in units of ln M (for a slope: per tenfold compute)."""

    value: float
    low: float
    high: float

    @property
    def leaves_out_0(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0

    def moved(self, by: float) -> "Interval":
        """Return the interval `by` further up."""
        return Interval(self.value + by, self.low + by, self.high + by)


@dataclass(frozen=True)
class Multiplier:
    """The compute multiplier of a rung.

    verdict: on the losses. slope: s in nats per unit of ln C; slope_error: the half-width of ln s. flops, seconds: ln M
    counted in FLOPs and in seconds (None: not comparable). beyond: the candidate's loss lies more than REACH times
    outside the FLOPs of the baseline's points: M is "more than" (or "less than") `flops.value`.
    """

    name: str
    baseline_flops: float
    candidate_flops: float
    n_seeds: int
    verdict: Verdict
    slope: float
    slope_error: float
    flops: Interval
    seconds: Interval | None
    beyond: bool


def prior_of(number: int, rungs: Sequence[Rung], slopes: np.ndarray) -> Prior | None:
    """Return what other rungs and earlier runs tell of the spread between seeds at a rung, in its own nats."""
    names: list[str] = []
    squares, df, sources = 0.0, 0.0, []
    for other, (rung, slope) in enumerate(zip(rungs, slopes, strict=True)):
        if other != number and len(rung.losses.seeds) > 1:
            per_seed = (rung.losses.candidate - rung.losses.baseline).sum(1) / rung.losses.tokens.sum()
            squares += float(((per_seed - per_seed.mean()) ** 2).sum()) / slope**2
            df += len(per_seed) - 1
            sources.append("the other rungs")
        if rung.prior:
            squares += rung.prior.df * rung.prior.seed_variance / slope**2
            df += rung.prior.df
            sources.append(rung.prior.source)
            names += rung.prior.runs
    if not df:
        return None
    variance = squares / df * float(slopes[number]) ** 2
    return Prior(seed_variance=variance, df=df, source=" and ".join(dict.fromkeys(sources)), runs=tuple(names))


def multiplier(rung: Rung, verdict: Verdict, ruler: Ruler, point: int, squared_error: float) -> Multiplier:
    """Return a rung's multiplier from its verdict and the law. squared_error: of ln s."""
    gain, low, high = (float(ruler.log_worth(point, dl)) for dl in (verdict.difference, verdict.high, verdict.low))
    most = math.log(REACH * ruler.flops[-1] / rung.baseline_flops)
    least = math.log(ruler.flops[0] / REACH / rung.baseline_flops)
    beyond = not least <= gain <= most
    gain = min(max(gain, least), most)
    found = fieller(gain, down=max(0.0, gain - low), up=max(0.0, high - gain), squared_error=squared_error)
    seconds = None
    if rung.baseline_seconds is not None and rung.candidate_seconds is not None:
        logs = [np.log(rung.baseline_seconds), np.log(rung.candidate_seconds)]
        speed = speeds_half_width(logs, verdict.confidence)
        widened = Interval(
            gain, gain - math.hypot(gain - found.low, speed), gain + math.hypot(found.high - gain, speed)
        )
        seconds = widened.moved(float(logs[0].mean() - logs[1].mean()))
    return Multiplier(
        name=rung.name,
        baseline_flops=rung.baseline_flops,
        candidate_flops=rung.candidate_flops,
        n_seeds=verdict.n_seeds,
        verdict=verdict,
        slope=float(ruler.slopes[point]),
        slope_error=math.sqrt(squared_error),
        flops=found.moved(rung.log_flops_ratio),
        seconds=seconds,
        beyond=beyond,
    )


def fieller(value: float, down: float, up: float, squared_error: float) -> Interval:
    """Return all x with (value - x)^2 <= half^2 + squared_error x^2; half is `down` below `value` and `up` above it."""

    def edge(half: float, side: float) -> float:
        if math.isinf(half):
            return side * math.inf
        a, c = 1 - squared_error, value**2 - half**2
        root = math.sqrt(max(0.0, value**2 - a * c))
        if a <= 0 and not (c > 0 and side * value < 0):
            return side * math.inf  # the slope may be 0: open, except towards 0 if that is left out
        return (value + side * root) / a if a else c / (2 * value)

    return Interval(value, edge(down, -1.0), edge(up, 1.0))
