"""Judge many ideas: what is left of single verdicts when they are seen as a family.

A verdict alone is wrong about a model without an effect in 1 - confidence of all cases, so of many ideas some look
good by chance. Three figures say how far to believe one of many:

- p: 1 minus the largest confidence at which the verdict's own interval still leaves out 0. Under repeated looks it is
  the level of the whole plan of looks at which this look would just have decided: the repeated p-value (C. Jennison,
  B. W. Turnbull, Journal of the Royal Statistical Society B 51, 1989).
- q: the share of false findings among all ideas with a p this small or smaller, under any dependence between them (Y.
  Benjamini, D. Yekutieli, Annals of Statistics 29, 2001). Ideas share their baseline's runs, so they do depend.
- the shrunk effect: d[i] is normal around a true effect with variance e[i]^2, the true effects are normal around m with
  variance t^2 (C. N. Morris, Journal of the American Statistical Association 78, 1983). t^2 is where the weighted
  squares sum up to their number minus one (R. C. Paule, J. Mandel, Journal of Research of the National Bureau of
  Standards 87, 1982).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmplay.stats.sequential import Looks
from lmplay.stats.verdict import Verdict

SMALLEST_P = 1e-300
ENOUGH_TO_SHRINK = 5


def p_value(verdict: Verdict, looks: Looks | None = None) -> float:
    """Return 1 minus the largest confidence whose interval leaves out 0; 1 if nothing is known of other seeds.

    looks: the plan of which the verdict is one look; the confidence is then that of the whole plan.
    """
    if not verdict.seed_df > 0 or verdict.low == verdict.high:
        return 1.0
    alone = _alone(verdict)
    return _of_plan(alone, looks, verdict.n_seeds) if looks else alone


def _alone(verdict: Verdict) -> float:
    """Return the p-value of the interval as if it was looked at once."""
    from scipy.optimize import brentq
    from scipy.special import stdtrit

    parts = [(verdict.seed_df, verdict.seed_sd / math.sqrt(verdict.n_seeds))]
    if math.isfinite(verdict.document_se):
        parts.append((verdict.document_df, verdict.document_se))

    def excess(log_p: float) -> float:
        p = math.exp(log_p)  # a part without error adds nothing, and 0 times an endless quantile is no number
        return math.hypot(*(stdtrit(df, p / 2) * error for df, error in parts if error)) - abs(verdict.difference)

    low, high = math.log(SMALLEST_P), -1e-12
    if excess(low) <= 0:
        return SMALLEST_P
    return math.exp(brentq(excess, low, high)) if excess(high) < 0 else 1.0


def _of_plan(alone: float, looks: Looks, n_seeds: int) -> float:
    """Return the level of the plan of looks at which the look after `n_seeds` has the level `alone`."""
    n = min(max(n_seeds, looks.first), looks.max_seeds)

    def level(of_plan: float) -> float:
        return 1 - Looks(looks.max_seeds, looks.first, 1 - of_plan).confidence_at(n)

    own = 1 - looks.confidence
    low, high = (alone, own) if alone <= level(own) else (own, 1.0)
    for _ in range(10):  # to 1 part in 1000 of the logarithms' distance
        middle = math.sqrt(low * high)
        low, high = (low, middle) if 0 < middle < 1 and alone <= level(middle) else (middle, high)
    return min(1.0, high)


def false_discovery_rates(p: Sequence[float]) -> np.ndarray:
    """Return q of each p (N,): the share of false findings if all that are at most as large are called findings."""
    from scipy.stats import false_discovery_control

    return false_discovery_control(np.asarray(p, dtype=np.float64), method="by") if len(p) else np.zeros(0)


@dataclass(frozen=True)
class Shrunk:
    """Effects (N,) as they are likely to be, and their standard errors (N,); the mean and the spread of true ones."""

    effects: np.ndarray
    errors: np.ndarray
    mean: float
    spread: float


def shrink(effects: Sequence[float], errors: Sequence[float]) -> Shrunk:
    """Return the effects drawn towards their mean, each the more the less certain it is.

    effects, errors: (N,) with N at least 2; errors are standard errors > 0. The returned errors take mean and spread as
    known, so they are somewhat small.
    """
    from scipy.optimize import brentq

    d, e = np.asarray(effects, dtype=np.float64), np.asarray(errors, dtype=np.float64)

    def mean_at(variance: float) -> float:
        weights = 1 / (e**2 + variance)
        return float(np.sum(weights * d) / np.sum(weights))

    def excess(variance: float) -> float:
        return float(np.sum((d - mean_at(variance)) ** 2 / (e**2 + variance))) - (len(d) - 1)

    variance = 0.0
    if excess(0.0) > 0:
        most = float(np.sum((d - d.mean()) ** 2)) + float(e.max() ** 2)
        variance = float(brentq(excess, 0.0, most, xtol=1e-18))
    mean = mean_at(variance)
    kept = variance / (variance + e**2)
    return Shrunk(
        effects=mean + kept * (d - mean), errors=np.sqrt(kept) * e, mean=mean, spread=math.sqrt(max(0.0, variance))
    )


def expected_false(candidates: int, confidence: float) -> float:
    """Return how many of the candidates are called better by chance if none of them differs from the baseline."""
    return candidates * (1 - confidence) / 2
