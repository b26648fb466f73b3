"""Climb a ladder of sizes: tune at the lowest rung, carry each arm's settings up, train what is missing, judge."""

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lmplay.compare.arm_jobs import ArmJobs, find_arms
from lmplay.compare.compare import Comparer
from lmplay.compare.jobs import RunIndex, Stopped
from lmplay.compare.request import ComparisonRequest
from lmplay.compare.rungs import (
    TOKENS_PER_PARAMETER,
    Rung,
    Size,
    base_settings,
    batch_at,
    carried,
    rung_settings,
    sizes_of,
    with_rate,
)
from lmplay.compare.sizes_measured import Counted, count_model
from lmplay.compare.tuning import fixed
from lmplay.errors import UserError
from lmplay.report.ladder import ArmsOnLadder, RungFound, judge_rungs
from lmplay.runs.run import Run
from lmplay.runs.validations import read_validations
from lmplay.stats.choices import NOTHING_CHOSEN, Choice
from lmplay.stats.prior import Prior
from lmplay.stats.ruler import Point
from lmplay.stats.share_out import share_out
from lmplay.stats.verdict import PairedLosses, compare
from lmplay.train.recipes import given_in

TUNING_SEED = 1000  # the first; no seed that judges is as high
BELOW_SEEDS = 2  # of the baseline alone
NEIGHBOR = 0.5  # times the carried rate, tried at the top


@dataclass(frozen=True)
class LadderRequest:
    """What to climb, and how.

    comparison: the arms and settings of the lowest rung; its seeds are the pairs at each rung whose time is shared out.
    ladder: as typed. tokens_per_parameter: of the baseline's matrices and head; None: --max-tokens says it.
    tuning_seeds: at the lowest rung.
    """

    comparison: ComparisonRequest
    ladder: str
    tokens_per_parameter: float | None = None
    tuning_seeds: int = 1

    def __post_init__(self) -> None:
        if self.comparison.aa or self.comparison.until_sure:
            raise UserError(
                "--ladder goes neither with --aa nor with --until-sure: its seeds are shared out beforehand"
            )
        if self.tokens_per_parameter is not None and self.comparison.settings.max_tokens:
            raise UserError("--tokens-per-parameter and --max-tokens both say how long runs are: give one of them")
        if self.tokens_per_parameter not in (None, *TOKENS_PER_PARAMETER):
            raise UserError(f"--tokens-per-parameter is one of {', '.join(map(str, TOKENS_PER_PARAMETER))}")


class Climber:
    """One ladder while it is climbed."""

    def __init__(self, request: LadderRequest):
        self.request, self.started = request, time.monotonic()
        asked = request.comparison
        self.tune = asked.tune
        self.settings = base_settings(fixed(asked.tune, asked.settings), request.ladder)
        given = (given_in(asked.settings) if asked.given is None else asked.given) | {axis.field for axis in asked.tune}
        self.asked = dataclasses.replace(asked, settings=self.settings, tune=(), given=given)
        self.baseline, self.candidates = find_arms(self.asked)
        if self.baseline.variant.kept is None:  # in the candidates' variant, also where it is trained alone
            self.asked = dataclasses.replace(self.asked, baseline=self.baseline.variant.spec)
        self.index = RunIndex(self.settings, asked.any_interval, asked.retry_crashed, asked.prefix, given=given)
        self.learning = {arm.label: self.index.arm_settings(arm.variant) for arm in self.arms}
        sizes = sizes_of(request.ladder)
        self.counted: dict[tuple[str, str], Counted] = {}
        below = sizes[0].below()
        counts = {size: self.count(self.baseline, size).parameters for size in (below, *sizes)}
        if sorted(sizes, key=counts.__getitem__) != list(sizes):
            raise UserError(f"--ladder {request.ladder}: name the sizes from the smallest to the largest")
        lowest = counts[sizes[0]]
        self.per_parameter = request.tokens_per_parameter or (
            self.settings.max_tokens / lowest if self.settings.max_tokens else float(TOKENS_PER_PARAMETER[2])
        )
        self.below, *self.rungs = (self._rung(size, counts[size], lowest) for size in (below, *sizes))

    def _rung(self, size: Size, parameters: int, lowest: int) -> Rung:
        tokens = round(self.per_parameter * parameters)
        batch = batch_at(self.settings.batch_size, parameters, lowest)
        return Rung(size, parameters=parameters, tokens=tokens, batch_size=batch)

    def count(self, arm: ArmJobs, size: Size) -> Counted:
        """Return what an arm's model costs at a size."""
        key = arm.label, size.name
        if key not in self.counted:
            settings = dataclasses.replace(self.settings, set=(*self.settings.set, *size.fields))
            self.counted[key] = count_model(self.index, arm.variant, settings)
        return self.counted[key]

    def flops(self, arm: ArmJobs, rung: Rung) -> float:
        """Return the FLOPs of a run of an arm at a rung."""
        return self.count(arm, rung.size).flops(rung.tokens, rung.batch_size)

    @cached_property
    def pairs(self) -> tuple[int, ...]:
        """How many pairs each rung gets."""
        return self.shared_out(self.asked.seeds)

    def shared_out(self, seeds: int) -> tuple[int, ...]:
        """Return how many pairs each rung gets where N pairs at each would take the time. seeds: N."""
        flops = [self.flops(self.baseline, rung) for rung in self.rungs]
        costs = [sum(self.flops(arm, rung) for arm in (self.baseline, *self.candidates)) for rung in self.rungs]
        return share_out([float(np.log10(one)) for one in flops], costs, seeds)

    @property
    def arms(self) -> list[ArmJobs]:
        return [self.baseline, *self.candidates]

    def comparer(self, rung: Rung, own: Mapping[str, Choice], **changes: Any) -> Comparer:
        """Return the comparison at a rung, which has what is left of the time. changes: of its request.

        Raises Stopped where no time is left.
        """
        settings, left = rung_settings(self.settings, rung), self.asked.timeout
        if left is not None:
            left -= time.monotonic() - self.started
            if left <= 0:
                raise Stopped(out_of_time=True)
        request = dataclasses.replace(self.asked, settings=settings, own=own, timeout=left, **changes)
        return Comparer(request)

    def own_at(self, rung: Rung, chosen: Mapping[str, Choice]) -> dict[str, Choice]:
        """Return each arm's choice carried from the lowest rung to another."""
        return {label: carried(one, self.learning[label], self.rungs[0], rung) for label, one in chosen.items()}

    def climb(self) -> list[ArmsOnLadder]:
        """Train what is missing and judge each candidate. Raises UserError and Stopped."""
        chosen, notes = self._tuned()
        found: list[RungFound] = []
        for rung, pairs in zip(self.rungs, self.pairs, strict=True):
            own, untuned = self.own_at(rung, chosen), tuple[str, ...]()
            if rung is self.rungs[-1]:
                own, untuned = self._check_neighbors(rung, own, found)
            print(f"rung {rung.name}: {pairs} pairs", file=sys.stderr, flush=True)
            comparison = self.comparer(rung, own, seeds=pairs).run()
            found.append(RungFound(rung.name, rung.parameters, rung.tokens, rung.batch_size, own, comparison, untuned))
        below = self._points_below(self.own_at(self.below, chosen))
        return judge_rungs(found, below, self.per_parameter, notes)

    def _tuned(self) -> tuple[dict[str, Choice], list[str]]:
        """Return each arm's choice at the lowest rung, and what to note of it."""
        several = [axis for axis in self.tune if len(axis.values) > 1]
        nothing = {arm.label: NOTHING_CHOSEN for arm in self.arms}
        if not several:
            return nothing, ["the arms were not tuned: --tune lr=A,B,C tries several rates at the lowest rung"]
        comparer = self.comparer(
            self.rungs[0], {}, tune=tuple(several), seeds=self.request.tuning_seeds, first_seed=TUNING_SEED
        )
        print(f"tuning at {self.rungs[0].name}: {'; '.join(map(str, several))}", file=sys.stderr, flush=True)
        comparison = comparer.train_and_judge()
        notes = []
        chosen = dict(nothing)
        summaries = [comparison.baseline, *(one.arm for one in comparison.candidates)]
        for arm, summary in zip(self.arms, summaries, strict=True):
            if summary.choice is None:
                raise UserError(
                    f"{arm.label} could not be tuned: no run of its grid at {self.rungs[0].name} ended well"
                )
            chosen[arm.label] = summary.choice
            notes.append(f"{arm.label} was tuned at {self.rungs[0].name} under other seeds: {summary.choice}")
            notes += [edge.sentence(arm.label) for edge in summary.edges]
        return chosen, notes

    def _check_neighbors(
        self, top: Rung, own: dict[str, Choice], found: Sequence[RungFound]
    ) -> tuple[dict[str, Choice], tuple[str, ...]]:
        """Try half the carried rate at the top; an arm that is better with it, beyond the seeds' noise, gets it."""
        near = {label: with_rate(one, self.learning[label], NEIGHBOR) for label, one in own.items()}
        runs = [self._tuning_runs(top, choices) for choices in (own, near)]
        labels = []
        for arm in self.arms:
            carried_runs, near_runs = (of.get(arm.label, []) for of in runs)
            if not carried_runs or not near_runs:
                continue
            if _is_better(near_runs, carried_runs, _spread_below(found)):
                own = own | {arm.label: near[arm.label]}
                labels.append(arm.label)
        return own, tuple(labels)

    def _tuning_runs(self, rung: Rung, own: Mapping[str, Choice]) -> dict[str, list[Run]]:
        """Return the runs of each arm under the first tuning seed."""
        return _trained(self.comparer(rung, own, seeds=1, first_seed=TUNING_SEED))

    def _points_below(self, own: Mapping[str, Choice]) -> list[Point]:
        """Return the baseline's point below the rungs."""
        comparer = self.comparer(self.below, own, candidates=(), alone=True, seeds=BELOW_SEEDS)
        print(f"below, {self.below.name}: the baseline alone", file=sys.stderr, flush=True)
        read = [read_validations(run).trajectory for run in _trained(comparer)[self.baseline.label]]
        if not read:
            return []
        return [Point(float(np.mean([one.flops[-1] for one in read])), np.stack([one.losses[-1] for one in read]))]


def _trained(comparer: Comparer) -> dict[str, list[Run]]:
    """Train what is missing, judge nothing, and return each arm's finished runs. Raises UserError and Stopped."""
    pairs = range(comparer.request.seeds)
    comparer.train([job for pair in pairs for job in comparer.jobs(pair, comparer.candidates)])
    return {
        arm.label: [
            match.run
            for pair in pairs
            for choice in comparer.choices
            if (match := comparer.job(arm, pair, choice).find()) and match.state == "finished"
        ]
        for arm in (comparer.baseline, *comparer.candidates)
    }


def _is_better(near: list[Run], carried_runs: list[Run], prior: Prior | None) -> bool:
    ours, theirs = (
        np.stack([read_validations(run).trajectory.losses[-1] for run in runs]) for runs in (near, carried_runs)
    )
    tokens = read_validations(near[0]).tokens
    return compare(PairedLosses(ours, theirs, tokens, tuple(range(len(ours)))), prior).word == "better"


def _spread_below(found: Sequence[RungFound]) -> Prior | None:
    """Return the spread between seeds of paired differences on the rungs below the top; None if unknown."""
    verdicts = [one.verdict for rung in found for one in rung.comparison.candidates if one.verdict]
    known = [(v.seed_sd**2 * v.seed_df, v.seed_df) for v in verdicts if v.seed_df > 0]
    if not known:
        return None
    df = sum(one for _, one in known)
    return Prior(sum(squares for squares, _ in known) / df, df=df, source="the rungs below")
