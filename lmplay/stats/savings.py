"""How much sooner the candidate reaches the baseline's loss, and the difference between the two at equal cost.

At each of the candidate's validations `verdict.compare` is asked about its losses there minus the baseline's final
ones, paired by seed and document. The estimate is the point at which that difference first comes to 0. Its interval
holds every point whose own interval holds 0, from the first to the last of them: a confidence set is what a test does
not reject (for a ratio it is E. C. Fieller's, Journal of the Royal Statistical Society B 16, 1954). So it rests on
the same seeds, documents and prior as the verdict, and needs no bootstrap of two or three seeds. If the loss is not
reached, its upper end is infinite. Between validations losses lie on straight lines over the logarithm of the tokens.

FLOPs follow from tokens. Seconds do not: the machine's speed differs from run to run. The mean of log(seconds) of
both arms enters with the variance pooled over both, 2 (S - 1) degrees of freedom. Its interval is added to that of
the tokens in squares, in logarithms (G. Y. Zou, A. Donner, Statistics in Medicine 27, 2008).

A run is followed as it was planned: while the learning rate is still high, its loss lies above what a shorter plan
would have reached with as many tokens. The saving is therefore understated rather than overstated.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from lmplay.stats.prior import Prior
from lmplay.stats.verdict import PairedLosses, Verdict, compare
from lmplay.text import counted

ENOUGH_VALIDATIONS = 5
AXES = {"tokens": "tokens", "flops": "FLOPs", "seconds": "seconds"}  # what training uses, and its name for people


@dataclass(frozen=True)
class Trajectory:
    """The validations of one run, in the last phase of its plan.

    tokens, flops, seconds: (K,) float64 > 0, ascending: what training had used at each validation (AXES).
    losses: (K, D) float64, summed nats of each validation document.
    """

    tokens: np.ndarray
    flops: np.ndarray
    seconds: np.ndarray
    losses: np.ndarray

    def at(self, axis: str, amount: float) -> np.ndarray:
        """Return the losses (D,) at `amount` of `axis`, at the first or last validation for less or more."""
        used = np.asarray(getattr(self, axis), dtype=np.float64)
        after = int(np.clip(np.searchsorted(used, amount), 1, max(1, len(used) - 1)))
        if len(used) == 1:
            return self.losses[0]
        first, second = np.log(used[after - 1]), np.log(used[after])
        part = 0.0 if second <= first else float(np.clip((math.log(amount) - first) / (second - first), 0, 1))
        return self.losses[after - 1] * (1 - part) + self.losses[after] * part

    def used(self, axis: str, tokens: float) -> float:
        """Return how much of `axis` had been used after `tokens`."""
        return float(np.interp(tokens, self.tokens, getattr(self, axis)))


def completed(losses: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return losses of all documents, (K, D), where only some were scored midway (NaN: not scored). tokens: (D,).

    Each row is compared with the next one that is whole (the last one, if none follows) on the documents of both: what
    the loss per token changed there, it changed on all. This is the difference estimator of two-phase sampling (W. G.
    Cochran, "Sampling Techniques", 1977, chapter 12). Documents that were scored get their influence on it, so that
    the jackknife over documents finds its variance, of which few documents are uncertain: it is widened as their t is.
    Without a whole row the losses come back as they are.
    """
    whole = np.flatnonzero(~np.isnan(losses).any(1))
    found = losses.copy()
    for row in np.setdiff1d(np.arange(len(losses)), whole) if len(whole) else ():
        known = ~np.isnan(losses[row])
        if not tokens[known].sum() > 0:
            continue
        other = losses[whole[min(np.searchsorted(whole, row), len(whole) - 1)]]
        change = losses[row, known] - other[known]
        rate = change.sum() / tokens[known].sum()
        apart = (change - rate * tokens[known]) * (tokens.sum() / tokens[known].sum())
        found[row] = other + rate * tokens
        found[row, known] += apart * _widened(int(known.sum()))
    return found


def _widened(n: int) -> float:
    """Return by what deviations from the mean of n values grow, to give the 95% interval that n values allow."""
    from scipy.special import ndtri, stdtrit

    return float(stdtrit(n - 1, 0.975) / ndtri(0.975)) * math.sqrt(n / (n - 1)) if n > 1 else 1.0


@dataclass(frozen=True)
class Saving:
    """What the candidate needs to reach the baseline's final validation loss, as a share of what the baseline needed.

    axis: one of AXES. factor: 0.8 is 20% less; inf: not reached within the candidate's run (`low` may still be
    finite). low, high: its interval at `confidence`; high is inf if it is not certain that the candidate reaches the
    loss at all. candidate, baseline: the amounts themselves, means over the seeds (candidate inf if not reached).
    n_validations: of a run (None: not known).
    """

    axis: str
    factor: float
    low: float
    high: float
    confidence: float
    candidate: float
    baseline: float
    notes: tuple[str, ...]
    n_validations: int | None = None

    def sentence(self) -> str:
        """Return the saving with its interval in one sentence of plain text."""
        interval = f"{100 * self.confidence:.4g}% interval {share(self.low)} to {share(self.high)}"
        if math.isinf(self.factor):
            found = "the baseline's final loss is not reached within the candidate's run"
            if math.isinf(self.low):
                return found
            return f"{found} (but {100 * self.confidence:.4g}% do not exclude {share(self.low)} of them){self._few}"
        return (
            f"reaches the baseline's final loss with {share(self.factor)} of its {AXES[self.axis]}: {interval}"
            f"{self._few}"
        )

    @property
    def _few(self) -> str:
        """Say how few validations this rests on, "" if they are enough."""
        if self.n_validations is None or self.n_validations >= ENOUGH_VALIDATIONS:
            return ""
        return f"; from {counted(self.n_validations, 'validation')} only: a smaller --validation-interval tells more"


def share(factor: float) -> str:
    """Return a factor as a percentage; "not reached" for inf."""
    return "not reached" if math.isinf(factor) else f"{100 * factor:.0f}%"


def savings(
    candidate: Sequence[Trajectory],
    baseline: Sequence[Trajectory],
    document_tokens: np.ndarray,
    seeds: Sequence[Hashable],
    prior: Prior | None = None,
    confidence: float = 0.95,
) -> dict[str, Saving]:
    """Return a Saving for each axis.

    candidate, baseline: one trajectory per seed, in the order of `seeds`. document_tokens: (D,) scored tokens.
    """
    crossing, notes = _crossings(candidate, baseline, document_tokens, seeds=seeds, prior=prior, confidence=confidence)
    result = {}
    for axis in AXES:
        spread, extra = 0.0, []
        if axis == "seconds":
            speeds = [np.log([run.seconds[-1] / run.tokens[-1] for run in runs]) for runs in (candidate, baseline)]
            spread = speeds_half_width(speeds, confidence)
            if len(seeds) == 1:
                extra = ["one seed: how much the machine's speed varies from run to run is not in the interval"]
        end = float(np.mean(np.log([getattr(run, axis)[-1] for run in baseline])))
        log_factor, log_low, log_high = (_log_cost(candidate, axis, tokens) - end for tokens in crossing)
        middle = log_factor if math.isfinite(log_factor) else log_low
        low = middle - math.hypot(middle - log_low, spread) if math.isfinite(middle) else math.inf
        high = log_factor + math.hypot(log_high - log_factor, spread) if math.isfinite(log_high) else math.inf
        result[axis] = Saving(
            axis=axis,
            factor=math.exp(log_factor),
            low=math.exp(low),
            high=math.exp(high),
            confidence=confidence,
            candidate=math.exp(_log_cost(candidate, axis, crossing[0])),
            baseline=math.exp(end),
            notes=(*notes, *extra),
            n_validations=len(candidate[0].tokens),
        )
    return result


def _crossings(
    candidate: Sequence[Trajectory],
    baseline: Sequence[Trajectory],
    document_tokens: np.ndarray,
    seeds: Sequence[Hashable],
    prior: Prior | None,
    confidence: float,
) -> tuple[tuple[float, float, float], list[str]]:
    """Return the tokens at which the candidate reaches the baseline's final loss, and notes.

    The tokens are (estimate, lower end, upper end); each is inf if the loss is not reached.
    """
    goal = np.stack([run.losses[-1] for run in baseline])
    validated = np.asarray(candidate[0].tokens, dtype=np.float64)
    verdicts = [
        compare(
            PairedLosses(np.stack([run.at("tokens", x) for run in candidate]), goal, document_tokens, tuple(seeds)),
            prior,
            confidence,
        )
        for x in validated
    ]
    reached = _first_below(validated, [v.difference for v in verdicts])
    soonest = _first_below(validated, [v.low for v in verdicts])
    latest = _last_above(validated, [v.high for v in verdicts])
    covers = verdicts[-1].covers
    notes = [f"the interval covers {covers}"] if covers != "seeds and documents" else []
    if soonest == validated[0]:
        notes.append("the lower end is the candidate's first validation: the true one may be lower")
    return (reached, soonest, latest), notes


def _log_cost(candidate: Sequence[Trajectory], axis: str, tokens: float) -> float:
    """Return the mean logarithm of what the candidate had used of `axis` after `tokens`; inf for inf."""
    if math.isinf(tokens):
        return math.inf
    return float(np.mean([math.log(run.used(axis, tokens)) for run in candidate]))


def compare_at_equal(
    axis: str,
    candidate: Sequence[Trajectory],
    baseline: Sequence[Trajectory],
    document_tokens: np.ndarray,
    seeds: Sequence[Hashable],
    prior: Prior | None = None,
    confidence: float = 0.95,
    margin: float | None = None,
) -> tuple[Verdict, float] | None:
    """Return the verdict at equal `axis` (one of AXES), and the amount of it: where the first of all runs ends.

    None if another run had not been validated by then. A run that ends later is judged in the middle of its schedule,
    which counts against it: for a fair test give it as large a budget of the axis as the others.
    """
    runs = (*candidate, *baseline)
    amount = min(float(getattr(run, axis)[-1]) for run in runs)
    if any(getattr(run, axis)[0] > amount for run in runs):
        return None
    losses = PairedLosses(
        candidate=np.stack([run.at(axis, amount) for run in candidate]),
        baseline=np.stack([run.at(axis, amount) for run in baseline]),
        tokens=document_tokens,
        seeds=tuple(seeds),
    )
    return compare(losses, prior, confidence, margin), amount


def _first_below(x: np.ndarray, y: Sequence[float]) -> float:
    """Return the x at which the line through the points first comes to 0 or below; inf if it does not."""
    below = np.flatnonzero(np.asarray(y) <= 0)
    return _crossing(x, y, int(below[0])) if len(below) else math.inf


def _last_above(x: np.ndarray, y: Sequence[float]) -> float:
    """Return the x from which the line stays at 0 or below; inf if it ends above."""
    above = np.flatnonzero(np.asarray(y) > 0)
    end = int(above[-1]) + 1 if len(above) else 0
    return _crossing(x, y, end) if end < len(x) else math.inf


def _crossing(x: np.ndarray, y: Sequence[float], after: int) -> float:
    """Return the x at which the line comes to 0, between the points `after` - 1 and `after`, which is at 0 or below."""
    if after == 0 or y[after - 1] <= 0:
        return float(x[after])
    if math.isinf(y[after - 1]) or math.isinf(y[after]):
        return float(x[after])
    part = y[after - 1] / (y[after - 1] - y[after])
    return float(np.exp(np.log(x[after - 1]) * (1 - part) + np.log(x[after]) * part))


def speeds_half_width(arms: list[np.ndarray], confidence: float) -> float:
    """Return half the width of the interval of the difference between two means of log speeds of equal variance."""
    from scipy.special import stdtrit

    df = sum(len(arm) - 1 for arm in arms)
    if not df:
        return 0.0
    variance = sum(float(((arm - arm.mean()) ** 2).sum()) for arm in arms) / df
    return float(-stdtrit(df, (1 - confidence) / 2)) * math.sqrt(variance * sum(1 / len(arm) for arm in arms))
