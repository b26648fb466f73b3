"""Does a gain survive? The compute multipliers of several sizes together: their mean, their trend, and the words.

A pooled ln M and its slope per tenfold compute are weighted sums k'y, weights by the number of seeds. The squared
half-width is k'(Q_seeds + Q_documents + Q_ruler)k, each part with its own t (see `verdict`): rungs have seeds of their
own, but share documents and ruler, whose parts are full matrices. `multipliers` explains the single rung.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmplay.stats.evidence import document_covariance, t_quantile
from lmplay.stats.multipliers import Interval, Multiplier, Rung, fieller, multiplier, prior_of
from lmplay.stats.ruler import REACH, Point, Ruler, fit_ruler
from lmplay.stats.verdict import Verdict, compare

CONFIDENCE = 0.95
POWER = 0.8
HOLDS_WITHIN = 0.5  # of ln M, per tenfold compute
MOST_PAIRS = 100  # more at each rung


@dataclass(frozen=True)
class Ladder:
    """What all rungs tell together. All values are ln M.

    pooled: over the rungs. word: "better", "worse", "equal" (exactly) or "not decided", over the ladder. trend: the
    slope per tenfold compute. trend_word: "holds", "grows", "shrinks" or "not decided"; smallest_trend: the slope that
    would have been seen with 80% power. more_runs: about how many more runs would decide the trend (None: decided, or
    not even MOST_PAIRS pairs more at each rung would). gone_at: FLOPs at which ln M comes to 0 if it shrinks; high is
    inf where that is open. center: log10 of the FLOPs to which `pooled` belongs.
    """

    rungs: tuple[Multiplier, ...]
    ruler: Ruler
    pooled: Interval
    word: str
    trend: Interval
    trend_word: str
    smallest_trend: float
    more_runs: int | None
    gone_at: Interval | None
    center: float
    parts: "_Sum"

    def extrapolated(self, flops: float) -> Interval:
        """Return ln M at other FLOPs of the baseline, at most REACH times the top rung's. Raises ValueError beyond."""
        top = self.rungs[-1].baseline_flops
        if flops > top * REACH * (1 + 1e-9):
            raise ValueError(f"{flops:.3g} FLOPs lie more than {REACH:g} times beyond the top rung's {top:.3g}")
        return self.parts.interval(self.parts.at(math.log10(flops)))


def judge_ladder(rungs: Sequence[Rung], below: Sequence[Point] = (), confidence: float = CONFIDENCE) -> Ladder:
    """Judge a candidate over several sizes. below: further points of the baseline alone, on the same documents.

    Raises UserError as `ruler.fit_ruler` does, and for losses that `verdict.compare` refuses.
    """
    rungs = sorted(rungs, key=lambda rung: rung.baseline_flops)
    scored = rungs[0].losses.tokens > 0
    tokens = rungs[0].losses.tokens[scored]
    points = [Point(point.flops, np.asarray(point.losses)[:, scored]) for point in below]
    points += [Point(rung.baseline_flops, rung.losses.baseline[:, scored]) for rung in rungs]
    ruler = fit_ruler(points, tokens)
    where = [int(np.flatnonzero(ruler.flops == rung.baseline_flops)[0]) for rung in rungs]
    slopes = ruler.slopes[where]
    priors = [prior_of(number, rungs, slopes) for number in range(len(rungs))]
    verdicts = [compare(rung.losses, prior, confidence) for rung, prior in zip(rungs, priors, strict=True)]
    squared = ruler.squared_error(confidence)[np.ix_(where, where)]
    multipliers = tuple(
        multiplier(rung, verdict=verdict, ruler=ruler, point=point, squared_error=float(squared[i, i]))
        for i, (rung, verdict, point) in enumerate(zip(rungs, verdicts, where, strict=True))
    )
    gains = np.array([one.flops.value - rung.log_flops_ratio for one, rung in zip(multipliers, rungs, strict=True)])
    # at the candidate's loss; where the law hardly falls any more, M is "more than" anyway
    after = [
        max(ruler.slope_after(p, v.difference), 0.1 * ruler.slopes[p]) for p, v in zip(where, verdicts, strict=True)
    ]
    by_documents = document_covariance(
        [(rung.losses.candidate - rung.losses.baseline)[:, scored] / s for rung, s in zip(rungs, after, strict=True)],
        tokens,
    )
    parts = _Sum(
        gains=gains,
        offsets=np.array([rung.log_flops_ratio for rung in rungs]),
        sizes=np.log10([rung.baseline_flops for rung in rungs]),
        n_seeds=np.array([rung.losses.candidate.shape[0] for rung in rungs], dtype=float),
        seed_variance=np.array([_seed_variance(v) / s**2 for v, s in zip(verdicts, after, strict=True)]),
        seed_df=np.array([v.seed_df for v in verdicts]),
        documents=t_quantile(ruler.document_df, confidence) ** 2 * by_documents,
        ruler=squared,
        confidence=confidence,
    )
    return _together(multipliers, ruler, parts)


def _seed_variance(verdict: Verdict) -> float:
    """Return the variance between seeds of a rung; 0 if both arms are equal to the bit, inf if it is not known."""
    if verdict.word == "equal" and verdict.bound == 0:
        return 0.0
    return verdict.seed_sd**2 if verdict.seed_df > 0 else math.inf


@dataclass(frozen=True)
class _Sum:
    """The gains of R rungs and the parts of the error of any weighted sum of them.

    gains: ln M at equal FLOPs (R,); offsets: what the FLOPs add. sizes: log10 of the FLOPs. seed_variance, seed_df: of
    one seed's difference, in units of ln M. documents, ruler: (R, R) squared half-widths; the law's of ln s.
    """

    gains: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    n_seeds: np.ndarray
    seed_variance: np.ndarray
    seed_df: np.ndarray
    documents: np.ndarray
    ruler: np.ndarray
    confidence: float

    @property
    def knows_seeds(self) -> bool:
        return bool(np.isfinite(self.seed_variance).all())

    def mean(self) -> np.ndarray:
        """Return the weights (R,) of the pooled ln M."""
        return self.n_seeds / self.n_seeds.sum()

    def slope(self) -> np.ndarray:
        """Return the weights (R,) of the slope per tenfold compute; zeros for a single rung."""
        away = self.sizes - self.mean() @ self.sizes
        spread = float(self.n_seeds @ away**2)
        return self.n_seeds * away / spread if spread > 0 else np.zeros(len(away))

    def at(self, size: float) -> np.ndarray:
        """Return the weights (R,) of the line's ln M at a log10 of FLOPs."""
        return self.mean() + (size - float(self.mean() @ self.sizes)) * self.slope()

    def product(self, one: np.ndarray, other: np.ndarray, more: int = 0, with_ruler: bool = True) -> float:
        """Return one' Q other, Q the squared half-widths with `more` seeds at each rung."""
        t = np.array(
            [t_quantile(df + more * len(self.sizes), self.confidence) if df > 0 else 0.0 for df in self.seed_df]
        )
        seeds = t**2 * self.seed_variance / (self.n_seeds + more) if self.knows_seeds else np.zeros(len(self.sizes))
        whole = float((one * seeds) @ other + one @ self.documents @ other)
        return whole + (float((one * self.gains) @ self.ruler @ (other * self.gains)) if with_ruler else 0.0)

    def half(self, weights: np.ndarray, more: int = 0) -> float:
        return math.sqrt(max(0.0, self.product(weights, weights, more)))

    def interval(self, weights: np.ndarray) -> Interval:
        value, half = float(weights @ (self.gains + self.offsets)), self.half(weights)
        return Interval(value, value - half, value + half)

    def pooled(self) -> Interval:
        """Return the pooled ln M; as at a rung, the law's error has no part in whether it leaves out 0."""
        weights = self.mean()
        gain, without = float(weights @ self.gains), self.product(self.mean(), self.mean(), with_ruler=False)
        of_ruler = max(0.0, self.product(weights, weights) - without)
        half = math.sqrt(max(0.0, without))
        relative = of_ruler / gain**2 if gain else 0.0
        return fieller(gain, down=half, up=half, squared_error=relative).moved(float(weights @ self.offsets))

    def gone_at(self) -> Interval | None:
        """Return the log10 of the FLOPs at which the line comes to 0 (E. C. Fieller 1954); None if it never does."""
        p, m = self.interval(self.mean()), self.interval(self.slope())
        if not m.value:
            return None
        a = m.value**2 - self.product(self.slope(), self.slope())
        b = p.value * m.value - self.product(self.mean(), self.slope())
        c = p.value**2 - self.product(self.mean(), self.mean())
        center, root = float(self.mean() @ self.sizes), math.sqrt(max(0.0, b * b - a * c))
        if a <= 0:
            return Interval(center - p.value / m.value, -math.inf, math.inf)
        return Interval(center - p.value / m.value, center + (-b - root) / a, center + (-b + root) / a)


def _together(rungs: tuple[Multiplier, ...], ruler: Ruler, parts: _Sum) -> Ladder:
    """Return the ladder with its words."""
    pooled, trend = parts.pooled(), parts.interval(parts.slope())
    half, known = parts.half(parts.slope()), parts.knows_seeds and len(rungs) > 1
    word, trend_word, more_runs, gone = "not decided", "not decided", None, None
    if all(one.verdict.word == "equal" and one.verdict.bound == 0 for one in rungs) and not parts.offsets.any():
        word = "equal"
    elif parts.knows_seeds and pooled.leaves_out_0:
        word = "better" if pooled.value > 0 else "worse"
    within = HOLDS_WITHIN * abs(pooled.value) if word in ("better", "worse") else 0.0
    if known and trend.leaves_out_0:
        trend_word = "shrinks" if trend.value * pooled.value < 0 else "grows"
        gone = parts.gone_at() if trend_word == "shrinks" else None
    elif known and -within < trend.low and trend.high < within:
        trend_word = "holds"
    elif known and word != "equal":

        def enough(more: int) -> bool:
            new = parts.half(parts.slope(), more)
            return new < abs(trend.value) or abs(trend.value) + new < within

        if enough(MOST_PAIRS):
            more_runs = 2 * len(rungs) * (bisect.bisect_left(range(1, MOST_PAIRS), True, key=enough) + 1)
    df = max(1.0, float(parts.seed_df.max()))
    return Ladder(
        rungs=rungs,
        ruler=ruler,
        pooled=pooled,
        word=word,
        trend=trend,
        trend_word=trend_word,
        smallest_trend=half * (1 + t_quantile(df, 2 * POWER - 1) / t_quantile(df, parts.confidence)),
        more_runs=more_runs,
        gone_at=gone,
        center=float(parts.mean() @ parts.sizes),
        parts=parts,
    )
