"""Estimate the spread between seeds from earlier runs."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np

from lmplay.text import counted

PRIOR_TEST = 0.05


@dataclass(frozen=True)
class Prior:
    """The spread between seeds, measured on earlier runs of the same plan, size and budget (`prior_from_runs`).

    seed_variance: variance over seeds of the paired difference of two runs' validation losses, in (nats per token)^2.
    df: the degrees of freedom of that estimate. source: in words, for the reader. runs: the names of the runs.
    """

    seed_variance: float
    df: float
    source: str
    runs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.df > 0 and 0 <= self.seed_variance < math.inf):
            raise ValueError(f"no estimate of a variance: {self}")


def prior_from_runs(
    losses: Mapping[Hashable, Mapping[Hashable, float]],
    pair: tuple[Hashable, ...] = (),
    source: str = "earlier runs",
    names: tuple[str, ...] = (),
) -> Prior | None:
    """Return the spread between seeds in runs of one plan and size, without what `pair` itself tells; None if unknown.

    losses: {experiment and settings: {seed: final validation loss, nats per token}}.
    pair: the keys of candidate and baseline if `losses` holds the runs that are compared, else (). One or both may be
    missing in `losses`. names: those of the runs, for the reader.

    Fits loss = experiment + seed + residual by least squares over all runs; a paired difference has twice the
    variance of a residual. The pair under the seeds that both have is fitted first. Only what the other runs add to
    the sum of squares counts, with the degrees of freedom that they add: such recursive residuals do not depend on
    what was fitted before (R. L. Brown, J. Durbin, J. M. Evans, Journal of the Royal Statistical Society B 37, 1975),
    so nothing counts twice. One residual variance in all experiments is assumed. If too few runs share their seeds
    (fewer than 3 degrees of freedom), the spread is twice the variance over seeds within each experiment: without the
    gain of pairing, so too large rather than too small.
    """
    runs = {group: {seed: loss for seed, loss in row.items() if math.isfinite(loss)} for group, row in losses.items()}
    common = set.intersection(*(set(runs.get(group, ())) for group in pair)) if pair else set()
    own = {group: {seed: runs[group][seed] for seed in common} for group in pair if group in runs}
    squares, df = (whole - part for whole, part in zip(_crossed(runs), _crossed(own), strict=True))
    how = "under shared seeds"
    if df < 3:
        rest = [
            np.array([loss for seed, loss in row.items() if seed not in own.get(group, ())])
            for group, row in runs.items()
        ]
        squares = sum(float(((row - row.mean()) ** 2).sum()) for row in rest if len(row))
        df, how = sum(len(row) - 1 for row in rest if len(row)), "seeds not paired"
    n_runs = sum(map(len, runs.values())) - sum(map(len, own.values()))
    if not df > 0:
        return None
    text = f"{source} ({counted(n_runs, 'run')}, {how})"
    return Prior(seed_variance=2 * max(0.0, squares) / df, df=df, source=text, runs=names)


def _crossed(runs: Mapping[Hashable, Mapping[Hashable, float]]) -> tuple[float, int]:
    """Return the sum of squares and the degrees of freedom of the residuals of loss = group + seed."""
    rows = [(group, seed, loss) for group, row in runs.items() for seed, loss in row.items()]
    if not rows:
        return 0.0, 0
    groups, seeds = (list(dict.fromkeys(row[i] for row in rows)) for i in (0, 1))
    design = np.zeros((len(rows), len(groups) + len(seeds)))
    for i, (group, seed, _) in enumerate(rows):
        design[i, groups.index(group)] = design[i, len(groups) + seeds.index(seed)] = 1
    y = np.array([row[2] for row in rows])
    y = y - y.mean()
    solution, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    return float(((y - design @ solution) ** 2).sum()), len(rows) - int(rank)
