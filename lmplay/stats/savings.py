"""How much sooner the candidate gets as far as the baseline, and what is between them at equal cost.

Where the candidate reaches the baseline's final loss is found by asking, at each of its validations, the question of
`verdict.compare`: its losses there minus the baseline's final ones, paired by seed and document. The estimate is where that
difference first comes to 0; its interval holds every place whose own interval holds 0 (a confidence set is what a test does not reject;
for a ratio it is E. C. Fieller's, Journal of the Royal Statistical Society B 16, 1954), from the first to the last of them. So
it rests on the same seeds, documents and prior as the verdict, needs no bootstrap of two or three seeds, and says by itself
when the loss is not reached: its upper end is then infinite. Between validations losses lie on straight lines over the
logarithm of the tokens.

FLOPs follow from tokens. Seconds do not: the machine's speed differs from run to run. The mean of log(seconds) of either
side enters with the variance pooled over both, 2 (S - 1) degrees of freedom, and its interval is added to that of the tokens in
squares, in logarithms (G. Y. Zou, A. Donner, Statistics in Medicine 27, 2008).

A run is followed as it was planned: while the learning rate is still high, its loss lies above what a shorter plan
would have reached with as many tokens. What is saved is therefore rather under- than overstated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmplay.stats.prior import Prior
from lmplay.stats.verdict import PairedLosses, Verdict, compare

AXES = ("tokens", "flops", "seconds")


@dataclass(frozen=True)
class Trajectory:
    """The validations of one run, in the last step of its plan.

    tokens, flops, seconds: (K,) float64 > 0, ascending: what training had used at each validation (the axes).
    losses: (K, D) float64, summed nats of each validation document.
    """

    tokens: np.ndarray
    flops: np.ndarray
    seconds: np.ndarray
    losses: np.ndarray

    def at(self, axis: str, amount: float) -> np.ndarray:
        """Losses (D,) where so much of `axis` had been used; at the first or last validation for less or more."""
        used = np.asarray(getattr(self, axis), dtype=np.float64)
        after = int(np.clip(np.searchsorted(used, amount), 1, max(1, len(used) - 1)))
        if len(used) == 1:
            return self.losses[0]
        first, second = np.log(used[after - 1]), np.log(used[after])
        share = 0.0 if second <= first else float(np.clip((math.log(amount) - first) / (second - first), 0, 1))
        return self.losses[after - 1] * (1 - share) + self.losses[after] * share

    def used(self, axis: str, tokens: float) -> float:
        """How much of `axis` had been used after so many tokens."""
        return float(np.interp(tokens, self.tokens, getattr(self, axis)))


@dataclass(frozen=True)
class Saving:
    """What the candidate needs to reach the baseline's final validation loss, as a share of what the baseline needed.

    axis: one of AXES. factor: 0.8 is 20% less; inf: not reached within the candidate's run (then `low` may still be finite).
    [low, high]: its interval at `confidence`, high = inf if it is not certain that the candidate gets there at all.
    candidate, baseline: the amounts themselves, means over the seeds (candidate inf if not reached).
    """

    axis: str
    factor: float
    low: float
    high: float
    confidence: float
    candidate: float
    baseline: float
    notes: tuple[str, ...]

    def sentence(self) -> str:
        interval = f"{100 * self.confidence:.4g}% interval {_share(self.low)} to {_share(self.high)}"
        if math.isinf(self.factor):
            reached = (
                ""
                if math.isinf(self.low)
                else f" (but {100 * self.confidence:.4g}% do not exclude {_share(self.low)} of them)"
            )
            return f"the baseline's final loss is not reached within the candidate's run{reached}"
        return f"reaches the baseline's final loss with {_share(self.factor)} of its {NAMES[self.axis]}: {interval}"


NAMES = {"tokens": "tokens", "flops": "FLOPs", "seconds": "seconds"}


def _share(factor: float) -> str:
    return "not reached" if math.isinf(factor) else f"{100 * factor:.0f}%"


def savings(
    candidate: Sequence[Trajectory],
    baseline: Sequence[Trajectory],
    document_tokens: np.ndarray,
    seeds: Sequence,
    prior: Prior | None = None,
    confidence: float = 0.95,
) -> dict[str, Saving]:
    """A Saving for each axis. One trajectory a seed on both sides, in the order of `seeds`; document_tokens: (D,)."""
    goal = np.stack([run.losses[-1] for run in baseline])
    places = np.asarray(candidate[0].tokens, dtype=np.float64)
    verdicts = [
        compare(
            PairedLosses(np.stack([run.at("tokens", x) for run in candidate]), goal, document_tokens, seeds),
            prior,
            confidence,
        )
        for x in places
    ]
    reached = _first_below(places, [v.difference for v in verdicts])
    soonest = _first_below(places, [v.low for v in verdicts])
    latest = _last_above(places, [v.high for v in verdicts])
    notes = [f"the interval covers {verdicts[-1].covers}"] if verdicts[-1].covers != "seeds and documents" else []
    if soonest == places[0]:
        notes.append("the lower end is the candidate's first validation: it may be lower still")

    result = {}
    for axis in AXES:
        ends = np.log([getattr(run, axis)[-1] for run in baseline])

        def cost(tokens, axis=axis):
            """Mean log amount on the candidate's side."""
            return (
                float(np.mean([math.log(run.used(axis, tokens)) for run in candidate]))
                if math.isfinite(tokens)
                else math.inf
            )

        spread, extra = 0.0, []
        if axis == "seconds":
            speeds = [np.log([run.seconds[-1] / run.tokens[-1] for run in side]) for side in (candidate, baseline)]
            spread = _speed(speeds, confidence)
            if len(seeds) == 1:
                extra = ["one seed: how much the machine's speed varies from run to run is not in the interval"]
        log_factor, log_low, log_high = (cost(tokens) - float(ends.mean()) for tokens in (reached, soonest, latest))
        middle = log_factor if math.isfinite(log_factor) else log_low
        low = middle - math.hypot(middle - log_low, spread) if math.isfinite(middle) else math.inf
        high = log_factor + math.hypot(log_high - log_factor, spread) if math.isfinite(log_high) else math.inf
        result[axis] = Saving(
            axis,
            math.exp(log_factor),
            math.exp(low),
            math.exp(high),
            confidence,
            math.exp(cost(reached)),
            math.exp(ends.mean()),
            (*notes, *extra),
        )
    return result


def compare_at_equal(
    axis: str,
    candidate: Sequence[Trajectory],
    baseline: Sequence[Trajectory],
    document_tokens: np.ndarray,
    seeds: Sequence,
    prior: Prior | None = None,
    confidence: float = 0.95,
    margin: float | None = None,
) -> tuple[Verdict, float] | None:
    """The verdict at equal `axis` (one of AXES), where the first of all runs ends. Returns (verdict, that amount).

    None where another run had not been validated by then. A run that ends later is judged in the middle of its schedule,
    which counts against it: give it as large a budget of the axis as the others for a fair test.
    """
    runs = [*candidate, *baseline]
    amount = min(float(getattr(run, axis)[-1]) for run in runs)
    if any(getattr(run, axis)[0] > amount for run in runs):
        return None
    sides = [np.stack([run.at(axis, amount) for run in side]) for side in (candidate, baseline)]
    return compare(PairedLosses(*sides, document_tokens, seeds), prior, confidence, margin), amount


def _first_below(x: np.ndarray, y: Sequence[float]) -> float:
    """Where the line through the points first comes to 0 or below; inf if it does not."""
    below = np.flatnonzero(np.asarray(y) <= 0)
    return _crossing(x, y, int(below[0])) if len(below) else math.inf


def _last_above(x: np.ndarray, y: Sequence[float]) -> float:
    """From where on the line stays at 0 or below; inf if it ends above."""
    above = np.flatnonzero(np.asarray(y) > 0)
    end = int(above[-1]) + 1 if len(above) else 0
    return _crossing(x, y, end) if end < len(x) else math.inf


def _crossing(x: np.ndarray, y: Sequence[float], after: int) -> float:
    """Where the line comes to 0 between the point before `after` and `after`, itself at 0 or below."""
    if after == 0 or y[after - 1] <= 0:
        return float(x[after])
    if math.isinf(y[after - 1]) or math.isinf(y[after]):
        return float(x[after])
    share = y[after - 1] / (y[after - 1] - y[after])
    return float(np.exp(np.log(x[after - 1]) * (1 - share) + np.log(x[after]) * share))


def _speed(sides: list[np.ndarray], confidence: float) -> float:
    """Half the width of the interval of the difference between the means of two groups of log speeds, as wide as one another."""
    from scipy.special import stdtrit

    df = sum(len(side) - 1 for side in sides)
    if not df:
        return 0.0
    variance = sum(float(((side - side.mean()) ** 2).sum()) for side in sides) / df
    return float(-stdtrit(df, (1 - confidence) / 2)) * math.sqrt(variance * sum(1 / len(side) for side in sides))
