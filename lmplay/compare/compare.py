"""Carry out a comparison: train what is missing, seed by seed, and judge."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmplay import contract
from lmplay.compare.data_order import choose_order
from lmplay.compare.job_trainer import JobTrainer
from lmplay.compare.jobs import Job, RunIndex, Stopped, Variant, find_variant
from lmplay.compare.model_checks import NO_VERDICT, check_after, check_before
from lmplay.compare.seed_spread import SeedSpread
from lmplay.errors import UserError, check_at_least
from lmplay.report.arms import Arm, ArmSummary, Candidate, Comparison
from lmplay.report.comparison import compare_arms
from lmplay.runs.run import Run
from lmplay.runs.settings import Settings
from lmplay.stats.prior import Prior
from lmplay.stats.sequential import Looks
from lmplay.text import counted


@dataclass(frozen=True)
class ComparisonRequest:
    """What to compare, and how.

    baseline, candidates: NAME[:VARIANT] each. settings: those of every run, except experiment, seed and learning rate.
    seeds: pairs of runs; with `until_sure` the first ones, and more are added up to max_seeds. rates: learning rates;
    of several, each arm gets its own best. within: differences below it, in nats per token, count as equal.
    aa: compare the baseline with itself under other seeds. any_interval: the user left --validation-interval to us.
    retry_crashed: train runs again that crashed under the same code.
    """

    baseline: str
    candidates: tuple[str, ...]
    settings: Settings
    seeds: int = 3
    rates: tuple[float, ...] = (Settings.lr,)
    aa: bool = False
    allow_leak: bool = False
    until_sure: bool = False
    within: float | None = None
    max_seeds: int = 8
    any_interval: bool = True
    retry_crashed: bool = False

    def __post_init__(self) -> None:
        check_at_least(1, seeds=self.seeds, max_seeds=self.max_seeds)
        if self.within is not None and not self.within > 0:
            raise UserError(f"--within must be more than 0, not {self.within:g}")
        if self.until_sure and self.max_seeds < 2:
            raise UserError("--until-sure needs --max-seeds of at least 2: one seed says nothing about others")
        if self.until_sure and self.seeds > self.max_seeds:
            raise UserError(f"--seeds {self.seeds} are more than --max-seeds {self.max_seeds}")
        if self.aa and self.candidates:
            raise UserError("--aa compares the baseline with itself: leave out --exp")
        if not self.aa and not self.candidates:
            raise UserError(
                "what is to be compared with the baseline? Name it with --exp NAME[:VARIANT], or ask for --aa"
            )


def run_comparison(request: ComparisonRequest) -> Comparison:
    """Train the runs that are missing and judge the candidates.

    Raises UserError, and Stopped if the user asks to stop; its `result` is the comparison of what is there, or None.
    """
    return _Comparer(request).run()


def plan_comparison(request: ComparisonRequest) -> list[str]:
    """Return a line for each run that the comparison needs, and one that counts them; train nothing.

    With `until_sure` those that it begins with. Raises UserError for unknown names.
    """
    return _Comparer(request).outlook()


@dataclass(frozen=True)
class _ArmJobs:
    """One arm to train: its pair number k has seed first_seed + k."""

    label: str
    variant: Variant
    first_seed: int = 0


class _Comparer:
    """One comparison while it is carried out."""

    def __init__(self, request: ComparisonRequest):
        self.request = request
        self.baseline, self.candidates = _find_arms(request)
        self.index = RunIndex(request.settings, request.any_interval, request.retry_crashed)
        self.trainer = JobTrainer()
        choose_order(self.index, request.settings.data_order, self._first_jobs)
        self.spread = SeedSpread(self.index)
        self.models_checked = False

    def run(self) -> Comparison:
        """Train and judge. Raises UserError and Stopped."""
        try:
            if self.request.until_sure:
                return self._until_sure()
            seeds = self.request.seeds
            self._train([job for pair in range(seeds) for job in self._jobs(pair, self.candidates)])
            return self._judge({arm.label: seeds for arm in self._sound})
        except Stopped:
            there = {arm.label: self._pairs_there(arm) for arm in self._sound}
            raise Stopped(self._judge(there) if all(there.values()) else None) from None

    def outlook(self) -> list[str]:
        """Say of each run whether it is there, or would be trained, and why."""
        jobs = self._first_jobs()
        missing = sum(job.is_missing for job in jobs)
        at_first = " at first" if self.request.until_sure else ""
        total = f"{missing} of {counted(len(jobs), 'run')} would be trained{at_first}"
        return [*(job.outlook() for job in jobs), total]

    def _first_jobs(self) -> list[Job]:
        """Return the jobs that the comparison begins with."""
        seeds = max(2, self.request.seeds) if self.request.until_sure else self.request.seeds
        return [job for pair in range(seeds) for job in self._jobs(pair, self.candidates)]

    def _until_sure(self) -> Comparison:
        """Add a pair of runs to the candidate that needs the fewest, until all is decided or the seeds are used up."""
        request = self.request
        looks = Looks(request.max_seeds, first=min(max(2, request.seeds), request.max_seeds))
        pairs = {arm.label: min(max(looks.first, self._pairs_there(arm)), looks.max_seeds) for arm in self.candidates}
        total = f"at most {2 * looks.max_seeds * len(request.rates)} per candidate"
        for pair in range(max(pairs.values())):
            self._train(self._jobs(pair, [arm for arm in self.candidates if pair < pairs[arm.label]]), total)
        while True:
            found = self._judge(pairs, looks)
            undecided = [
                (one.verdict, arm)
                for one, arm in zip(found.candidates, self.candidates, strict=True)
                if one.verdict and not one.verdict.decided and not one.held_back and pairs[arm.label] < looks.max_seeds
            ]
            if not undecided:
                return found
            verdict, arm = min(undecided, key=lambda item: item[0].more_seeds or looks.max_seeds)
            print(f"{arm.label} after {pairs[arm.label]} seeds: {verdict.sentence()}", file=sys.stderr)
            self._train(self._jobs(pairs[arm.label], [arm]))
            pairs[arm.label] += 1

    def _jobs(self, pair: int, candidates: Sequence[_ArmJobs]) -> list[Job]:
        """Return the jobs of one pair number: the baseline's first, then each candidate's, at every learning rate."""
        return [self._job(arm, pair, rate) for arm in (self.baseline, *candidates) for rate in self.request.rates]

    def _job(self, arm: _ArmJobs, pair: int, rate: float) -> Job:
        seed = arm.first_seed + pair
        label = f"{arm.variant.spec}, seed {seed}" + (f", lr {rate:g}" if len(self.request.rates) > 1 else "")
        return self.index.job(arm.variant, seed, rate, label=label)

    def _train(self, jobs: list[Job], total: str = "") -> None:
        if not self.models_checked and any(job.is_missing for job in jobs):
            self._check_models()
        self.trainer.train(jobs, total, may_crash=self._others)

    @property
    def _others(self) -> frozenset[str]:
        """The candidates of which one may crash, and the others are judged all the same; none if there is only one."""
        return frozenset(arm.label for arm in self.candidates) if len(self.candidates) > 1 else frozenset()

    @property
    def _sound(self) -> list[_ArmJobs]:
        """The candidates that have not crashed."""
        return [arm for arm in self.candidates if arm.label not in self.trainer.crashed]

    def _check_models(self) -> None:
        """Check before training that all models can be built with the settings and that their losses are comparable."""
        from lmplay.model.device import choose_device

        settings = self.request.settings
        choose_device(settings.device)
        fields, lengths, causal = contract.parse_fields(list(settings.set)), {}, {}
        for variant in {arm.variant.spec: arm.variant for arm in (self.baseline, *self.candidates)}.values():
            try:
                lengths[variant.spec], causal[variant.spec] = self._length_and_causality(variant, fields)
            except Exception as error:  # the code of an experiment may raise anything
                if variant.spec not in self._others:
                    raise
                self.trainer.note_crash(variant.spec, variant.spec, error)
        self._check_alike(lengths, causal)
        for arm in (self.baseline, *self._sound):
            try:
                check_before(self.index, arm.variant, settings, why=NO_VERDICT, allow_leak=self.request.allow_leak)
            except UserError as error:
                if arm.variant.spec not in self._others:
                    raise
                self.trainer.note_crash(arm.variant.spec, arm.variant.spec, error)
        self.index.choose_interval(lengths[self.baseline.variant.spec])
        self.models_checked = True

    def _length_and_causality(self, variant: Variant, fields: dict[str, str]) -> tuple[int, bool]:
        """Return how many tokens a model reads at once, and whether it is causal. Raises UserError."""
        experiment = contract.load(variant.entry)
        vocab_size = self.index.data.tokenizer.vocab_size
        context_len = self.request.settings.context_len or self.index.plan.context_len
        config = experiment.config(variant.name, vocab_size, context_len, **fields)
        return config.max_len, experiment.bound(config).causal

    def _check_trained(self, base: Arm, arms: Sequence[Arm]) -> list[str]:
        """Return what is wrong with the trained weights, where leaks are allowed.

        Otherwise one of several candidates gets no verdict. Raises UserError for the only one and for the baseline.
        """
        found = check_after(base, self.request.allow_leak)
        for arm in arms:
            try:
                found += check_after(arm, self.request.allow_leak)
            except UserError as error:
                if arm.label not in self._others:
                    raise
                self.trainer.note_crash(arm.label, arm.label, error)
        return found

    def _check_runs(self, arms: Sequence[Arm]) -> None:
        """As `_check_models`, by what the runs say of themselves: no experiment is loaded."""
        lengths, causal = {}, {}
        for planned, arm in zip((self.baseline, *self._sound), arms, strict=True):
            for run in [run for by_pair in arm.runs.values() for run in by_pair.values() if run][:1]:
                lengths[planned.variant.spec] = run.get("config", "max_len")
                causal[planned.variant.spec] = run.get("experiment", "causal")
        if self.baseline.variant.spec in lengths:
            self._check_alike(lengths, causal)

    def _check_alike(self, lengths: dict[str, int], causal: dict[str, bool]) -> None:
        base = self.baseline.variant.spec
        for spec in lengths:
            if lengths[spec] != lengths[base]:
                raise UserError(
                    f"{spec} reads {lengths[spec]} tokens at once and {base} {lengths[base]}, so they don't see the "
                    f"same sequences: give both one --context-len, such as {min(lengths[spec], lengths[base])}"
                )
            if causal[spec] != causal[base] and not self.request.allow_leak:
                leak = base if causal[spec] else spec
                raise UserError(
                    f"{leak} is not causal: its logits may look ahead, so its loss means something else; no verdict "
                    "without --allow-leak"
                )

    def _pairs_there(self, arm: _ArmJobs) -> int:
        """Count the pairs, from the first on, of which all runs are there."""
        pairs = 0
        while not any(job.is_missing for job in self._jobs(pairs, [arm])):
            pairs += 1
        return pairs

    def _judge(self, pairs: dict[str, int], looks: Looks | None = None) -> Comparison:
        """Judge the candidates on this many pairs each."""
        base = self._arm(self.baseline, max(pairs.values(), default=0))
        arms = [self._arm(arm, pairs[arm.label]) for arm in self._sound]
        if not self.models_checked:
            self._check_runs((base, *arms))
        leaks = self._check_trained(base, arms)
        arms = [self._arm(arm, pairs[arm.label]) for arm in self._sound]
        found = compare_arms(
            base,
            arms,
            prior_of=None if self.request.aa else self._prior,
            confidence_of=_confidence_of(looks),
            margin=self.request.within,
            allow_leak=self.request.allow_leak,
        )
        judged = {one.label: candidate for one, candidate in zip(arms, found.candidates, strict=True)}
        found.candidates = [judged.get(arm.label) or self._crashed(arm) for arm in self.candidates]
        found.skipped = list(self.index.skipped)
        found.warnings += leaks
        if self.request.aa:
            found.notes.append(
                "both arms are the same model under other seeds: at least 95 of 100 such comparisons must find neither "
                "better nor worse"
            )
        if looks:
            found.notes.append(
                f"looked at after {looks.first} seeds and after each further one, up to {looks.max_seeds}: the "
                f"intervals are wide enough for all of them together to be right in {looks.confidence:.0%}; that holds "
                "for a --max-seeds fixed beforehand, not for one raised after an answer was seen"
            )
        return found

    def _crashed(self, arm: _ArmJobs) -> Candidate:
        """Return a candidate that crashed, for the report."""
        summary = ArmSummary(arm.label, runs=[], seeds=[], loss=math.nan)
        trainer = self.trainer
        return Candidate(summary, None, crashed=trainer.crashed[arm.label], crash_status=trainer.statuses[arm.label])

    def _prior(self, candidate: Run, baseline: Run) -> Prior | None:
        """Return the spread between seeds of two arms by runs that never become part of this comparison."""
        pairs = self.request.max_seeds if self.request.until_sure else self.request.seeds
        jobs = [job for pair in range(pairs) for job in self._jobs(pair, self.candidates)]
        return self.spread.prior(candidate, baseline, [found.run for job in jobs if (found := job.find())])

    def _arm(self, arm: _ArmJobs, pairs: int) -> Arm:
        """Return the runs of an arm for the report; None stands for a run that failed."""
        runs: dict[float, dict[int, Run | None]] = {rate: {} for rate in self.request.rates}
        for rate, by_pair in runs.items():
            for pair in range(pairs):
                found = self._job(arm, pair, rate).find()
                if found is not None and found.state != "begun":
                    by_pair[pair] = found.run if found.state == "finished" else None
        return Arm(arm.label, runs, first_seed=arm.first_seed)


def _confidence_of(looks: Looks | None) -> Callable[[int], float]:
    """Return the confidence of an interval as a function of the number of pairs."""
    return (lambda pairs: looks.confidence_at(max(pairs, looks.first))) if looks else (lambda pairs: 0.95)


def _find_arms(request: ComparisonRequest) -> tuple[_ArmJobs, list[_ArmJobs]]:
    """Find the baseline's arm and the candidates'. Raises UserError for unknown names and for a name given twice."""
    variants = [find_variant(spec) for spec in request.candidates]
    base = find_variant(request.baseline)
    names = {variant.name for variant in variants}
    if ":" not in request.baseline and len(names) == 1 and names <= set(base.entry.variants):
        base = find_variant(f"{request.baseline}:{names.pop()}")  # tiny against tiny
    baseline = _ArmJobs(base.spec, base)
    if request.aa:
        first_seed = request.max_seeds if request.until_sure else request.seeds
        return baseline, [_ArmJobs(f"{base.spec} (other seeds)", base, first_seed)]
    seen = {base.spec}
    for variant in variants:
        if variant.spec == base.spec:
            raise UserError(f"{base.spec} is the baseline: compare something else with it, or ask for --aa")
        if variant.spec in seen:
            raise UserError(f"--exp names {variant.spec} twice")
        seen.add(variant.spec)
    return baseline, [_ArmJobs(variant.spec, variant) for variant in variants]
