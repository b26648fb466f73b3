"""Ladders with a known law, known multipliers and known spreads."""

from dataclasses import dataclass

import numpy as np

from lmplay.stats.multipliers import Rung
from lmplay.stats.ruler import Point
from lmplay.stats.verdict import PairedLosses

FLOPS = np.array([1e13, 6e13, 2e14, 7e14])  # the lowest is the baseline's alone
LIMIT, EXPONENT = 1.0, 0.15


def LAW(flops):
    return LIMIT + 3.0 * (flops / FLOPS[0]) ** -EXPONENT


def true_slope(flops):
    return EXPONENT * (LAW(flops) - LIMIT)


@dataclass(frozen=True)
class Plan:
    """truth: ln M of the three rungs. ratio: the candidate's FLOPs over the baseline's.

    seeds: of the four sizes. spread, ruler_spread: between seeds, of the paired difference and of the baseline, in
    units of ln M. sds: of the difference in nats instead, by rung.
    """

    truth: tuple[float, float, float]
    seeds: tuple[int, ...] = (2, 2, 2, 2)
    spread: float = 0.06
    ruler_spread: float = 0.03
    ratio: float = 1.0
    n_documents: int = 60
    sds: tuple[float, ...] = ()


def draw(random: np.random.Generator, plan: Plan):
    """(rungs, points of the baseline below them). Documents differ in level, in their slope and in what they gain."""
    tokens = np.floor(np.exp(0.8 * random.standard_normal(plan.n_documents)) * 400) + 5
    level, steeper, gains = random.standard_normal((3, plan.n_documents))
    level -= level @ tokens / tokens.sum()
    rungs, below = [], []
    for i, (flops, n_seeds) in enumerate(zip(FLOPS, plan.seeds)):
        loss, slope, rest = LAW(flops), true_slope(flops), (n_seeds, plan.n_documents)
        base = (
            loss + level + 0.1 * (loss - 3) * steeper + plan.ruler_spread * slope * random.standard_normal((n_seeds, 1))
        )
        base = base + 0.02 * random.standard_normal(rest)
        if i == 0:
            below.append(Point(flops, base * tokens))
            continue
        gain = LAW(flops * plan.ratio * np.exp(plan.truth[i - 1])) - loss
        sd = plan.sds[i - 1] if plan.sds else plan.spread * slope
        ours = (
            base + gain + sd * random.standard_normal((n_seeds, 1)) + 0.02 * gains + 0.02 * random.standard_normal(rest)
        )
        losses = PairedLosses(ours * tokens, base * tokens, tokens, tuple(range(n_seeds)))
        rungs.append(Rung(f"rung {i}", losses, baseline_flops=flops, candidate_flops=flops * plan.ratio))
    return rungs, below
