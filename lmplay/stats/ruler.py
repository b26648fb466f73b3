"""The baseline's loss over compute as a ruler: how many times the FLOPs is a difference of losses worth?

The law L(C) = L_inf + A C^-alpha (J. Hestness et al., arXiv 1712.00409; J. Kaplan et al., arXiv 2001.08361) is fitted
to the baseline only. Of three or four sizes L_inf and alpha are badly known, but the local slope s = alpha (L - L_inf)
is known well: the loss falls by s per unit of ln C. So s measures, and is what is printed.

Fit. Least squares over the sizes, weighted by their seeds, by variable projection: alpha on a grid that is zoomed in
on, L_inf and A at least 0 (G. H. Golub, V. Pereyra, SIAM Journal on Numerical Analysis 10, 1973).

Error of s. Each point is moved by its standard error up and down, the law is fitted again, and ln s is read: the
differences are secants, also where L_inf has come to 0. With them the covariance of the points goes over into that of
ln s. The points' own covariance has two parts. Seeds: the baseline's variance between seeds, pooled over the sizes in
units of ln C; where there are more sizes than parameters, it is no smaller than what the law leaves unexplained (R. T.
Birge, Physical Review 40, 1932). Documents: they are the same at all sizes, so the jackknife gives a full matrix.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmplay.errors import UserError
from lmplay.stats.evidence import document_covariance, documents_df, t_quantile

STEEPEST, FLATTEST = 2.0, 0.005  # of alpha
N_PARAMETERS = 3
REACH = 10.0  # how many times beyond its points the law is read


@dataclass(frozen=True)
class Point:
    """The baseline at one size. flops: of training, one run. losses: (S, D) summed nats of document d, seed s."""

    flops: float
    losses: np.ndarray


@dataclass(frozen=True)
class Ruler:
    """The baseline's law and its local slopes at R points, in the order of their FLOPs.

    flops, losses, slopes: (R,); a loss is in nats per token, a slope in nats per token and unit of ln C. limit: L_inf.
    exponent: alpha. seed_covariance, document_covariance: (R, R) of ln(slope); seed_df (0: not known), document_df:
    their degrees of freedom. point_variance: (R,) between seeds, of each mean loss. moved: the laws (L_inf, A, alpha),
    each (2R,), through points of which one lies `steps` (R,) higher, then lower.
    """

    flops: np.ndarray
    losses: np.ndarray
    slopes: np.ndarray
    limit: float
    exponent: float
    factor: float
    center: float
    seed_covariance: np.ndarray
    seed_df: float
    document_covariance: np.ndarray
    document_df: float
    point_variance: np.ndarray
    moved: tuple[np.ndarray, np.ndarray, np.ndarray]
    steps: np.ndarray

    def band(self, flops: np.ndarray, confidence: float) -> np.ndarray:
        """Return half the width of the law's loss (N,) over seeds at FLOPs (N,); NaN if seeds are not known."""
        if not self.seed_df > 0:
            return np.full(len(flops), math.nan)
        x = np.log(flops) - self.center
        limit, factor, exponent = (value[:, None] for value in self.moved)
        up, down = np.split(limit + factor * np.exp(-exponent * x), 2)  # (R, N) each
        turn = (up - down) / (2 * self.steps[:, None])
        return t_quantile(self.seed_df, confidence) * np.sqrt(self.point_variance @ turn**2)

    def loss_at(self, flops: float | np.ndarray) -> np.ndarray:
        """Return the law's loss after N FLOPs, nats per token."""
        return self.limit + self.factor * np.exp(-self.exponent * (np.log(flops) - self.center))

    def log_worth(self, point: int, difference: float | np.ndarray) -> np.ndarray:
        """Return ln(times the FLOPs) that the baseline needs at a point for a loss that is `difference` higher.

        Centered on the point's own loss. inf where the law never gets so low.
        """
        left = 1 + np.asarray(difference, dtype=float) / (self.losses[point] - self.limit)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(left > 0, -np.log(np.maximum(left, 0)) / self.exponent, np.inf)

    def slope_after(self, point: int, difference: float) -> float:
        """Return the slope where the loss is `difference` higher than at a point; 0 where the law never gets."""
        return max(0.0, self.exponent * (self.losses[point] + difference - self.limit))

    def squared_error(self, confidence: float) -> np.ndarray:
        """Return the squared half-widths of ln(slope) as an (R, R) matrix, for sums of several."""
        squared = t_quantile(self.document_df, confidence) ** 2 * self.document_covariance
        if self.seed_df > 0:
            squared = squared + t_quantile(self.seed_df, confidence) ** 2 * self.seed_covariance
        return squared


def fit_ruler(points: Sequence[Point], tokens: np.ndarray) -> Ruler:
    """Fit the law to the baseline. tokens: (D,) of the documents, the same at all points.

    Raises UserError if there are fewer than three sizes, or if the loss does not fall as compute grows.
    """
    if len(points) < N_PARAMETERS or len({point.flops for point in points}) < N_PARAMETERS:
        raise UserError(f"{len(points)} sizes of the baseline make no ruler: at least {N_PARAMETERS} are needed")
    points = sorted(points, key=lambda point: point.flops)
    flops = np.array([point.flops for point in points])
    per_seed = [np.asarray(point.losses).sum(1) / tokens.sum() for point in points]
    losses, weights = np.array([one.mean() for one in per_seed]), np.array([float(len(one)) for one in per_seed])
    x = np.log(flops) - np.log(flops).mean()
    limit, factor, exponent = (float(value[0]) for value in _fit(x, losses[None], weights))
    slopes = exponent * (losses - limit)
    if not (factor > 0 and (slopes > 0).all()):
        raise UserError(
            "the baseline's loss does not fall from size to size, so it measures no compute: train longer, take sizes "
            "that lie further apart, or tune the baseline"
        )
    df = float(sum(len(one) - 1 for one in per_seed))
    squares = sum(
        float(((one - one.mean()) ** 2).sum()) / slope**2 for one, slope in zip(per_seed, slopes, strict=True)
    )
    of_seeds = squares / df * slopes**2 / weights if df else np.zeros(len(points))
    if df and len(points) > N_PARAMETERS and of_seeds.all():
        unexplained = losses - (limit + factor * np.exp(-exponent * x))
        of_seeds = of_seeds * max(1.0, float((unexplained**2 / of_seeds).sum()) / (len(points) - N_PARAMETERS))
    of_documents = document_covariance([point.losses for point in points], tokens)
    steps = np.maximum(np.sqrt(of_seeds + np.diag(of_documents)), 1e-7)
    shifted = np.concatenate([losses + np.diag(steps), losses - np.diag(steps)])  # (2R, R)
    moved = _fit(x, shifted, weights)
    turn = _secants(shifted, moved, steps)
    return Ruler(
        flops=flops,
        losses=losses,
        slopes=slopes,
        limit=limit,
        exponent=exponent,
        factor=factor,
        center=float(np.log(flops).mean()),
        seed_covariance=turn @ np.diag(of_seeds) @ turn.T,
        seed_df=df,
        document_covariance=turn @ of_documents @ turn.T,
        document_df=documents_df(tokens),
        point_variance=of_seeds,
        moved=moved,
        steps=steps,
    )


def _secants(shifted: np.ndarray, moved: tuple[np.ndarray, np.ndarray, np.ndarray], steps: np.ndarray) -> np.ndarray:
    """Return the change of ln(slope) of each point (rows) per change of each loss (columns), over +-`steps` (R,).

    shifted: (2R, R) the points, one of them moved up, then down; moved: the laws through them.
    """
    limit, _, exponent = moved
    logs = np.log(np.maximum(exponent[:, None] * (shifted - limit[:, None]), 1e-300))
    up, down = np.split(logs, 2)
    return ((up - down) / (2 * steps[:, None])).T


def _fit(x: np.ndarray, losses: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (L_inf, A, alpha), each (N,), of the laws L_inf + A exp(-alpha x) through losses (N, R)."""
    low, high = np.full(len(losses), math.log(FLATTEST)), np.full(len(losses), math.log(STEEPEST))
    steps = np.linspace(0, 1, 41)
    for _ in range(6):
        grid = np.exp(low[:, None] + (high - low)[:, None] * steps)  # (N, G)
        error, limit, factor = _project(np.exp(-grid[:, :, None] * x), losses[:, None, :], weights)
        best = error.argmin(1)
        rows = np.arange(len(losses))
        width = (high - low) / 40
        middle = np.log(grid[rows, best])
        low, high = (
            np.maximum(middle - 1.5 * width, math.log(FLATTEST)),
            np.minimum(middle + 1.5 * width, math.log(STEEPEST)),
        )
    return limit[rows, best], factor[rows, best], grid[rows, best]


def _project(basis: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (weighted squared error, L_inf >= 0, A >= 0) of y = L_inf + A basis; sizes are the last axis."""
    w = weights / weights.sum()
    mean_b, mean_y = (basis * w).sum(-1), (y * w).sum(-1)
    centered = basis - mean_b[..., None]
    factor = np.maximum(0.0, (centered * y * w).sum(-1) / (centered**2 * w).sum(-1))
    limit = mean_y - factor * mean_b
    alone = (basis * y * w).sum(-1) / (basis**2 * w).sum(-1)
    factor, limit = np.where(limit < 0, alone, factor), np.maximum(limit, 0.0)
    error = ((y - limit[..., None] - factor[..., None] * basis) ** 2 * w).sum(-1)
    return error, limit, factor
