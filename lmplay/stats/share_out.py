"""Share out the seeds of a ladder, and say what they can decide.

Differences are taken to spread equally at all rungs in units of ln M, as the pooled intervals take them to. Of all ways
to share out the time of N pairs at each rung, with at least 2 at each, the one is taken that gives the narrowest
interval of the trend. Most seeds then go to the cheap lowest rung, which moves the slope as much as the dear top.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from lmplay.stats.evidence import t_quantile
from lmplay.stats.ladder import POWER

FEWEST, MOST = 2, 16  # pairs at a rung
USUAL_SPREAD = 0.06  # of ln M between seeds, where nothing is known: 0.6% of a loss of 4 nats at a slope of 0.4


def half_widths(sizes: Sequence[float], pairs: Sequence[int], confidence: float = 0.95) -> tuple[float, float]:
    """Return half the width of the intervals of the slope and of the pooled value, for a spread of 1.

    sizes: log10 of the FLOPs of the rungs. pairs: at each.
    """
    n, x = np.asarray(pairs, dtype=float), np.asarray(sizes, dtype=float)
    spread = float(n @ (x - n @ x / n.sum()) ** 2)
    t = t_quantile(max(1.0, n.sum() - len(n)), confidence)
    return (t / math.sqrt(spread) if spread > 0 else math.inf), t / math.sqrt(n.sum())


def share_out(sizes: Sequence[float], costs: Sequence[float], pairs: int) -> tuple[int, ...]:
    """Return how many pairs each rung gets. costs: of a pair at each rung. pairs: whose time there is, at each."""
    time = max(pairs, FEWEST) * sum(costs)
    best, narrowest = (FEWEST,) * len(costs), math.inf
    for found in itertools.product(range(FEWEST, MOST + 1), repeat=len(costs) - 1):
        rest = (time - sum(n * cost for n, cost in zip(found, costs[:-1], strict=True))) / costs[-1]
        tried = (*found, min(MOST, math.floor(rest + 1e-9)))
        if tried[-1] >= FEWEST and (half := half_widths(sizes, tried)[0]) < narrowest:
            best, narrowest = tried, half
    return best


def decidable(sizes: Sequence[float], pairs: Sequence[int], spread: float = USUAL_SPREAD) -> tuple[float, float]:
    """Return the pooled ln M and the trend per tenfold compute that are found with 80% power.

    A difference of t_95 + t_80 standard errors (J. Cohen, Statistical Power Analysis, 1988, section 2.2).
    """
    slope, pooled = half_widths(sizes, pairs)
    df = max(1.0, float(sum(pairs) - len(pairs)))
    more = spread * (1 + t_quantile(df, 2 * POWER - 1) / t_quantile(df, 0.95))
    return pooled * more, slope * more
