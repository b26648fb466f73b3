"""Say before the first run which difference a number of pairs would find.

A difference is found with a power of 80% if the interval of the verdict leaves out 0 in 80% of all repetitions. For S
pairs whose differences have the standard deviation sd, the statistic has Student's noncentral t distribution with S - 1
degrees of freedom and the noncentrality difference * sqrt(S) / sd (N. L. Johnson, B. L. Welch, Biometrika 31, 1940).
Documents add to the interval, too; on plans with enough of them that is little, and it is left out here.
"""

import math

import numpy as np

POWER = 0.8
QUANTILES = 4000  # of the estimated spread, over which the normal distribution is averaged
USUAL_SPREAD = 0.006  # of paired differences, as a share of the loss, where nothing is known
USUAL_SLOPE = 0.1  # of its loss, by which a baseline falls for each unit of ln(compute), where no ladder measures it
MOST_COMPUTE = 100.0  # times as much compute; more is not told apart


def detectable(sd: float, pairs: int, confidence: float = 0.95, prior_df: float = 0.0, power: float = POWER) -> float:
    """Return the smallest true difference that is found with this power; inf if the pairs say nothing of the spread.

    sd: standard deviation of the paired difference between seeds. prior_df: degrees of freedom of what is known of it.
    """
    from scipy.optimize import brentq
    from scipy.special import gammaincinv, ndtr, stdtrit

    df = pairs - 1 + prior_df
    if not df > 0 or not sd > 0:
        return math.inf if sd > 0 else 0.0
    bound = float(-stdtrit(df, (1 - confidence) / 2))
    quantiles = (np.arange(QUANTILES) + 0.5) / QUANTILES
    spreads = np.sqrt(2 * gammaincinv(df / 2, quantiles) / df)  # that are estimated where the true one is 1

    def missing(shift: float) -> float:
        return power - float(np.mean(ndtr(shift - bound * spreads) + ndtr(-shift - bound * spreads)))

    return float(brentq(missing, 0.0, 4 * (bound + 10))) * sd / math.sqrt(pairs)


def compute_of(share: float) -> float:
    """Return how much more compute is worth a share of the loss, as a factor of at most MOST_COMPUTE.

    By the local slope of the baseline's law, dL = -s d ln C, with s = USUAL_SLOPE of the loss.
    """
    return math.exp(min(share / USUAL_SLOPE, math.log(MOST_COMPUTE)))
