"""Carry out a comparison: train what is missing, seed by seed, and judge."""

import dataclasses
import math
import sys
import threading
import time
from collections.abc import Callable, Sequence

from lmplay import crashes
from lmplay.compare.arm_jobs import ArmJobs, find_arms
from lmplay.compare.backends import how_to_train
from lmplay.compare.data_order import choose_order
from lmplay.compare.job_trainer import JobTrainer
from lmplay.compare.jobs import Job, RunIndex, Stopped
from lmplay.compare.ledger import note_verdicts
from lmplay.compare.model_checks import NO_VERDICT, check_after, check_alike, check_before, check_device
from lmplay.compare.outlook import Outlook
from lmplay.compare.recipes import recipe_notes
from lmplay.compare.request import ComparisonRequest
from lmplay.compare.seed_spread import SeedSpread
from lmplay.compare.sizes_measured import config_of
from lmplay.compare.tuning import applied, extended, fixed, points
from lmplay.compare.within_budget import WithinBudget
from lmplay.errors import UserError
from lmplay.report.arms import Arm, ArmSummary, Candidate, Comparison
from lmplay.report.comparison import compare_arms
from lmplay.runs.run import Run
from lmplay.stats.choices import NOTHING_CHOSEN, Choice
from lmplay.stats.many import expected_false
from lmplay.stats.prior import Prior
from lmplay.stats.sequential import Looks
from lmplay.train.recipes import given_in

NOT_TUNED = "the arms were not tuned: a gain may be what another learning rate gives (--tune lr=A,B,C tries several)"


def run_comparison(request: ComparisonRequest) -> Comparison:
    """Train the runs that are missing and judge the candidates.

    Raises UserError, and Stopped if the user asks to stop; its `result` is the comparison of what is there, or None.
    """
    return Comparer(request).run()


def plan_comparison(request: ComparisonRequest) -> Outlook:
    """Return what becomes of each run that the comparison needs; train nothing.

    With `until_sure` those that it begins with. Raises UserError for unknown names.
    """
    return Comparer(request).outlook()


_checking = threading.RLock()  # models are asked with torch's global random numbers


class Comparer:
    """One comparison while it is carried out."""

    def __init__(self, request: ComparisonRequest):
        self.request = dataclasses.replace(request, settings=fixed(request.tune, request.settings))
        self.axes = request.tune
        self.choices = points(self.axes)
        request = self.request
        self.started = time.monotonic()
        self.baseline, self.candidates = find_arms(request)
        given = given_in(request.settings) if request.given is None else request.given
        how, settings = how_to_train(request.settings, request.backend, request.together)
        self.index = RunIndex(
            settings,
            request.any_interval,
            request.retry_crashed,
            request.prefix,
            given=given | {axis.field for axis in self.axes},
        )
        self.trainer = JobTrainer(how, self._deadline(), request.on_progress)
        if request.budget is None:
            choose_order(self.index, request.settings.data_order, self._first_jobs)
        self.spread = SeedSpread(self.index)
        self.models_checked, self.context_len = False, 0
        self.looks = planned_looks(request) if request.until_sure else None

    def run(self) -> Comparison:
        """Train, judge, and note the verdicts in the ledger. Raises UserError and Stopped."""
        try:
            found = self.train_and_judge()
        except Stopped as stopped:
            if stopped.result:
                note_verdicts(stopped.result, self.request, self.looks)
            raise
        note_verdicts(found, self.request, self.looks)
        return found

    def _deadline(self) -> float:
        """Return when the training that goes on is stopped, by time.monotonic."""
        limits = [limit for limit in (self.request.budget, self.request.timeout) if limit is not None]
        return self.started + min(limits, default=math.inf)

    def train_and_judge(self) -> Comparison:
        """Train and judge, and note nothing in the ledger. Raises UserError and Stopped."""
        try:
            if self.request.budget is not None:
                return WithinBudget(self, self.request.budget).run()
            if self.looks:
                return self._until_sure(self.looks)
            seeds = self.request.seeds
            self.train([job for pair in range(seeds) for job in self.jobs(pair, self.candidates)])
            found = self.judge({arm.label: seeds for arm in self.sound})
            for _ in range(self.request.extend):
                if not self._extend(found):
                    break
                self.train([job for pair in range(seeds) for job in self.jobs(pair, self.sound)])
                found = self.judge({arm.label: seeds for arm in self.sound})
            return found
        except Stopped as stopped:
            there = {arm.label: self._pairs_there(arm) for arm in self.sound}
            raise Stopped(self.judge(there) if all(there.values()) else None, stopped.out_of_time) from None

    def _extend(self, found: Comparison) -> bool:
        """Extend the grid of all arms where one's best value is at its edge; tell whether there is more to try."""
        arms = (found.baseline, *(one.arm for one in found.candidates))
        axes = extended(self.axes, dict.fromkeys(edge for arm in arms for edge in arm.edges))
        if axes == self.axes:
            return False
        self.axes, self.choices = axes, points(axes)
        print(f"a best value is at the edge, so all arms get more: {'; '.join(map(str, axes))}", file=sys.stderr)
        return True

    def outlook(self) -> Outlook:
        """Say of each run whether it is there, or would be trained, and why; a budget tries all arms first.

        Raises UserError for fields that a model does not have.
        """
        for arm in self._all:
            for model in filter(None, self._models(arm.variant.label)):
                config_of(self.index, arm.variant, dataclasses.replace(self.request.settings, set=model))
        if self.request.budget is not None:
            return WithinBudget(self, self.request.budget).outlook()
        return Outlook([job.outlook() for job in self._first_jobs()], at_first=self.request.until_sure)

    def _first_jobs(self) -> list[Job]:
        """Return the jobs that the comparison begins with."""
        seeds = max(2, self.request.seeds) if self.request.until_sure else self.request.seeds
        return [job for pair in range(seeds) for job in self.jobs(pair, self.candidates)]

    def _until_sure(self, looks: Looks) -> Comparison:
        """Add pairs of runs to the candidate that needs the fewest, until all is decided or the seeds are used up."""
        pairs = {arm.label: min(max(looks.first, self._pairs_there(arm)), looks.max_seeds) for arm in self.candidates}
        total = f"at most {2 * looks.max_seeds * len(self.choices)} per candidate"
        numbers = range(max(pairs.values()))
        first = [(n, [arm for arm in self.candidates if n < pairs[arm.label]]) for n in numbers]
        self.train([job for n, arms in first for job in self.jobs(n, arms)], total)
        while True:
            found = self.judge(pairs)
            undecided = [
                (one.verdict, arm)
                for one, arm in zip(found.candidates, self.candidates, strict=True)
                if one.verdict and not one.verdict.decided and not one.held_back and pairs[arm.label] < looks.max_seeds
            ]
            if not undecided:
                return found
            verdict, arm = min(undecided, key=lambda item: item[0].more_seeds or looks.max_seeds)
            print(f"{arm.label} after {pairs[arm.label]} seeds: {verdict.sentence()}", file=sys.stderr)
            more = self.trainer.how.seeds_to_add(verdict.more_seeds, looks.max_seeds - pairs[arm.label])
            self.train([job for n in range(more) for job in self.jobs(pairs[arm.label] + n, [arm])])
            pairs[arm.label] += more

    def jobs(self, pair: int, candidates: Sequence[ArmJobs]) -> list[Job]:
        """Return the jobs of one pair number: the baseline's first, then each candidate's, at every choice."""
        return [self.job(arm, pair, choice) for arm in (self.baseline, *candidates) for choice in self.choices]

    def job(self, arm: ArmJobs, pair: int, choice: Choice) -> Job:
        """Return the job of one run."""
        seed = self.request.first_seed + arm.first_seed + pair
        label = f"{arm.variant.label}, seed {seed}" + (f", {choice}" if choice.values else "")
        own = self.request.own.get(arm.label, NOTHING_CHOSEN)
        return self.index.job(arm.variant, seed, own.with_(choice), label=label)

    def train(self, jobs: list[Job], total: str = "") -> None:
        """Train what is missing of these jobs. Raises UserError and Stopped."""
        if not self.models_checked and any(job.is_missing for job in jobs):
            self.check_models()
        self.trainer.train(jobs, total, may_crash=self.others)

    @property
    def others(self) -> frozenset[str]:
        """The candidates of which one may crash, and the others are judged all the same; none if there is only one."""
        return frozenset(arm.label for arm in self.candidates) if len(self.candidates) > 1 else frozenset()

    @property
    def _all(self) -> list[ArmJobs]:
        """All arms, the baseline first."""
        return [self.baseline, *self.candidates]

    @property
    def sound(self) -> list[ArmJobs]:
        """The candidates that have not crashed."""
        return [arm for arm in self.candidates if arm.label not in self.trainer.crashed]

    def check_models(self) -> None:
        """Check before training that all models can be built with the settings and that their losses are comparable."""
        with _checking:
            self._check_all()

    def _check_all(self) -> None:
        settings = self.request.settings
        if self.request.backend.is_here:
            check_device(settings)
        lengths, causal = {}, {}
        for variant in {arm.variant.label: arm.variant for arm in (self.baseline, *self.candidates)}.values():
            try:
                for model in self._models(variant.label):
                    experiment, config = config_of(self.index, variant, dataclasses.replace(settings, set=model))
                    lengths[variant.label], causal[variant.label] = config.max_len, experiment.causal
            except crashes.RAISED as error:
                if variant.label not in self.others:
                    raise
                self.trainer.note_crash(variant.label, variant.label, error)
        check_alike(self.baseline.variant.label, lengths, causal, self.request.allow_leak)
        for arm in (self.baseline, *self.sound):
            try:
                for model in self._models(arm.label):
                    own = dataclasses.replace(settings, set=model)
                    check_before(self.index, arm.variant, own, why=NO_VERDICT, allow_leak=self.request.allow_leak)
            except UserError as error:
                if arm.variant.label not in self.others:
                    raise
                self.trainer.note_crash(arm.variant.label, arm.variant.label, error)
        self.context_len = lengths[self.baseline.variant.label]
        self.index.choose_interval(self.context_len)
        self.models_checked = True

    def _models(self, label: str) -> list[tuple[str, ...]]:
        """Return the assignments to Config fields of each model that an arm tries."""
        own = self.request.own.get(label, NOTHING_CHOSEN)
        return list(dict.fromkeys(applied(self.request.settings, own.with_(choice)).set for choice in self.choices))

    def _check_trained(self, base: Arm, arms: Sequence[Arm]) -> list[str]:
        """Return what is wrong with the trained weights, where leaks are allowed.

        Otherwise one of several candidates gets no verdict. Raises UserError for the only one and for the baseline.
        """
        with _checking:
            found = check_after(base, self.request.allow_leak)
            for arm in arms:
                try:
                    found += check_after(arm, self.request.allow_leak)
                except UserError as error:
                    if arm.label not in self.others:
                        raise
                    self.trainer.note_crash(arm.label, arm.label, error)
            return found

    def _check_runs(self, arms: Sequence[Arm]) -> None:
        """As `_check_models`, by what the runs say of themselves: no experiment is loaded."""
        lengths, causal = {}, {}
        for planned, arm in zip((self.baseline, *self.sound), arms, strict=True):
            for run in [run for by_pair in arm.runs.values() for run in by_pair.values() if run][:1]:
                lengths[planned.variant.label] = run.get("config", "max_len")
                causal[planned.variant.label] = run.get("experiment", "causal")
        if self.baseline.variant.label in lengths:
            check_alike(self.baseline.variant.label, lengths, causal, self.request.allow_leak)

    def _pairs_there(self, arm: ArmJobs) -> int:
        """Count the pairs, from the first on, of which all runs are there."""
        pairs = 0
        while not any(job.is_missing for job in self.jobs(pairs, [arm])):
            pairs += 1
        return pairs

    def judge(self, pairs: dict[str, int]) -> Comparison:
        """Judge the candidates on this many pairs each."""
        looks = self.looks
        base = self._arm(self.baseline, max(pairs.values(), default=0))
        arms = [self._arm(arm, pairs[arm.label]) for arm in self.sound]
        if not self.models_checked:
            self._check_runs((base, *arms))
        leaks = self._check_trained(base, arms)
        arms = [self._arm(arm, pairs[arm.label]) for arm in self.sound]
        found = compare_arms(
            base,
            arms,
            prior_of=None if self.request.aa else self.prior,
            confidence_of=_confidence_of(looks, self.request.confidence),
            margin=self.request.within,
            allow_leak=self.request.allow_leak,
        )
        judged = {one.label: candidate for one, candidate in zip(arms, found.candidates, strict=True)}
        found.candidates = [judged.get(arm.label) or self._crashed(arm) for arm in self.candidates]
        found.skipped = list(self.index.skipped)
        found.warnings += leaks
        if len(self.choices) == 1 and not self.request.own and not self.request.aa:
            found.notes.append(NOT_TUNED)
        own = {arm.label: (arm.variant.entry, self.index.arm_settings(arm.variant)) for arm in self._all}
        found.notes += recipe_notes(own)
        if self.request.aa:
            found.notes.append(
                f"both arms are the same model under other seeds: at least {100 * self.request.confidence:.4g} of 100 "
                "such comparisons must find neither better nor worse"
            )
        better = sum(one.word == "better" for one in found.candidates)
        if better and len(self.candidates) > 1:
            chance = expected_false(len(self.candidates), self.request.confidence)
            found.notes.append(
                f"{len(self.candidates)} candidates are judged together and {better} called better: if none differed "
                f"from the baseline, {chance:.2g} would be expected to be called so by chance (--ledger judges all)"
            )
        if looks:
            found.notes.append(
                f"looked at after {looks.first} seeds and after further ones, up to {looks.max_seeds}: the "
                f"intervals are wide enough for all of them together to be right in {looks.confidence:.1%}; that "
                "holds for a --max-seeds fixed beforehand, not for one raised after an answer was seen"
            )
        return found

    def _crashed(self, arm: ArmJobs) -> Candidate:
        """Return a candidate that crashed, for the report."""
        summary = ArmSummary(arm.label, runs=[], seeds=[], loss=math.nan)
        trainer = self.trainer
        return Candidate(summary, None, crashed=trainer.crashed[arm.label], crash_status=trainer.statuses[arm.label])

    def prior(self, candidate: Run, baseline: Run) -> Prior | None:
        """Return the spread between seeds of two arms by runs that never become part of this comparison."""
        pairs = self.request.max_seeds if self.request.until_sure else self.request.seeds
        jobs = [job for pair in range(pairs) for job in self.jobs(pair, self.candidates)]
        return self.spread.prior(candidate, baseline, [found.run for job in jobs if (found := job.find())])

    def _arm(self, arm: ArmJobs, pairs: int) -> Arm:
        """Return the runs of an arm for the report; None stands for a run that failed."""
        runs: dict[float | Choice, dict[int, Run | None]] = {choice: {} for choice in self.choices}
        for choice, by_pair in zip(self.choices, runs.values(), strict=True):
            for pair in range(pairs):
                found = self.job(arm, pair, choice).find()
                if found is not None and found.state != "begun":
                    by_pair[pair] = found.run if found.state == "finished" else None
        return Arm(arm.label, runs, first_seed=self.request.first_seed + arm.first_seed)


def planned_looks(request: ComparisonRequest) -> Looks:
    """Return the looks of --until-sure, fixed before the first of them."""
    first = min(max(2, request.seeds), request.max_seeds)
    return Looks(request.max_seeds, first=first, confidence=request.confidence)


def _confidence_of(looks: Looks | None, confidence: float) -> Callable[[int], float]:
    """Return the confidence of an interval as a function of the number of pairs."""
    return (lambda pairs: looks.confidence_at(max(pairs, looks.first))) if looks else (lambda pairs: confidence)
