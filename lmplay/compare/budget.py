"""Make a comparison fit into a budget of time: how long its runs are, and how many pairs there are.

The length is the longest of a fixed list that allows 3 pairs, or 2 if it has to be; what is left goes into more pairs.
Each arm's speed is measured first, in a run of a moment. How many pairs there are is decided by the clock alone, never
by what they say, so the verdict is as good as one on a number of seeds that was typed.
"""

import dataclasses
import math
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmplay.compare.jobs import RunIndex
from lmplay.compare.variants import Variant
from lmplay.errors import Diverged, OutOfTime, UserError
from lmplay.runs.run import is_run, read_run
from lmplay.stats.choices import Choice
from lmplay.stats.power import USUAL_SLOPE, USUAL_SPREAD, compute_of, detectable
from lmplay.stats.prior import Prior
from lmplay.text import count, counted
from lmplay.train.settings import as_flags
from lmplay.train.worker import train_apart

LENGTHS = tuple(sorted(round(part * 10**k) for k in range(4, 12) for part in (1, 1.5, 2, 3, 5, 7)))  # tokens of a run
WANTED, NEEDED = 3, 2  # pairs of runs
MOST_PAIRS = 32
FOR_RUNS = 0.96  # of the budget; the rest is for loading and judging
VALIDATING = 0.05  # of the training time: those midway take MIDWAY_SHARE of its FLOPs, and some write samples
TRIAL, SHORTEST_TRIAL, LONGEST_TRIAL = 0.005, 1.0, 20.0  # of the budget; seconds
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def read_budget(text: str) -> float:
    """Return the seconds of "90m", "1.5h", "600s" or, in minutes, "90". Raises UserError for what is no such time."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([smh]?)", text.strip().lower())
    seconds = float(found[1]) * UNITS[found[2] or "m"] if found else 0.0
    if not 0 < seconds < 1e9:
        raise UserError(f"--budget takes a time such as 90m, 2h or 600s, not {text!r}")
    return seconds


@dataclass(frozen=True)
class Pace:
    """How long runs of an arm take: `fixed` seconds each, `per_token` for each token of training; `loss` after a trial.

    The loss is in nats per token, None if it was not measured.
    """

    fixed: float
    per_token: float
    loss: float | None = None

    def seconds(self, tokens: float) -> float:
        """Return how long a run of this length takes, with its validations."""
        return self.fixed + tokens * self.per_token * (1 + VALIDATING)


def measure_pace(index: RunIndex, variant: Variant, choice: Choice, budget: float) -> Pace | None:
    """Train a variant for a moment and return its pace; None if its loss is not finite, which its runs will show.

    Nothing of that run is kept. Raises UserError as a training does.
    """
    seconds = min(LONGEST_TRIAL, max(SHORTEST_TRIAL, TRIAL * budget))
    out = index.settings.out_folder
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pace-", dir=out) as folder:
        settings = dataclasses.replace(
            index.job(variant, 0, choice).settings,
            out=folder,
            run_name="pace",
            max_tokens=None,
            max_steps=None,
            max_minutes=seconds / 60,
            validation_interval=10**9,
        )
        begun = time.monotonic()
        try:
            train_apart(settings, ["lmp_trainer", *as_flags(settings)], variant.kept, deadline=begun + budget / 4)
        except Diverged:
            return None
        wall = time.monotonic() - begun
        run = read_run(Path(folder) / "pace") if is_run(Path(folder) / "pace") else None
        tokens, trained = (run.number("progress", key) if run else None for key in ("tokens", "seconds"))
        if not tokens or not trained:
            raise OutOfTime(
                f"{variant.label} took no step in a quarter of the budget: give more time, or a smaller model"
            )
        assert run is not None
        return Pace(
            fixed=max(0.0, wall - trained), per_token=trained / tokens, loss=run.number("progress", "validation_loss")
        )


@dataclass(frozen=True)
class Plan:
    """What fits into the budget.

    tokens: of each run, None for as many as the plan has. pairs: of runs. seconds: of all that are missing. loss: of
    the baseline after a moment, in nats per token; None if it is not known.
    """

    tokens: int | None
    pairs: int
    seconds: float
    loss: float | None = None


def plan_runs(
    lengths: Sequence[int | None], seconds_of: Callable[[int | None, int], float], most: int, left: float
) -> Plan:
    """Return the longest of the lengths (ascending) of which enough pairs fit into `left` seconds, and how many do.

    seconds_of(length, pairs): how long the runs take that are missing. most: pairs. Raises OutOfTime if not even
    NEEDED pairs of the shortest fit.
    """
    for wanted in sorted({min(WANTED, most), min(NEEDED, most)}, reverse=True):
        for length in reversed(lengths):
            if seconds_of(length, wanted) <= left:
                pairs = max(n for n in range(wanted, most + 1) if n == wanted or seconds_of(length, n) <= left)
                return Plan(length, pairs, seconds_of(length, pairs))
    pairs = min(NEEDED, most)
    raise OutOfTime(
        f"--budget is too short: {counted(pairs, 'pair')} of the shortest runs would take about "
        f"{shown_seconds(seconds_of(lengths[0], pairs) + 1)}, and {shown_seconds(max(0.0, left))} are left for them"
    )


def lengths_below(tokens: int) -> list[int | None]:
    """Return the lengths that are tried on a plan of N tokens, ascending: those of the list, then its own."""
    return [*(length for length in LENGTHS if length < tokens), None]


def effect_text(pairs: int, confidence: float, loss: float | None, prior: Prior | None) -> str:
    """Say which difference these pairs would find, in percent of the loss and of compute, and in nats if it is known.

    In percent of compute by the usual slope of the loss, which only a ladder measures.
    """
    spread = math.sqrt(prior.seed_variance) / loss if prior and loss else USUAL_SPREAD
    share = detectable(spread, pairs, confidence, prior.df if prior and loss else 0.0)
    known = f"as on {prior.source}" if prior and loss else "as is assumed, since no earlier runs tell"
    nats = f" (at most {share * loss:.2g} nats per token)" if loss else ""
    worth = 100 * (compute_of(share) - 1)
    return (
        f"a difference of {100 * share:.2g}% of the loss{nats} would be found with a power of 80%, if seeds differ by "
        f"{100 * spread:.2g}% of it, {known}; that is worth about {worth:.2g}% of compute, if the loss falls by "
        f"{100 * USUAL_SLOPE:g}% of itself for each factor e of compute, as is assumed (--ladder measures that)"
    )


def plan_text(plan: Plan, budget: float) -> str:
    """Say what fits into the budget."""
    length = "the plan's length" if plan.tokens is None else f"{count(plan.tokens)} tokens"
    return (
        f"budget {shown_seconds(budget)}: {counted(plan.pairs, 'pair')} of runs of {length}, about "
        f"{shown_seconds(plan.seconds)} of training for what is missing"
    )


def shown_seconds(seconds: float) -> str:
    """Return a time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.3g} min" if seconds < 5400 else f"{seconds / 3600:.3g} h"
