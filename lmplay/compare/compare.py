"""Carries out a comparison: has every run trained that is not there yet, seed by seed, and all of them judged."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lmplay import contract
from lmplay.compare.jobs import Job, RunIndex, Variant, find_variant, group_of
from lmplay.errors import UserError, check_at_least
from lmplay.report.comparison import Arm, Comparison, compare_arms
from lmplay.runs.run import Run, is_run
from lmplay.runs.settings import Settings
from lmplay.stats.prior import Prior, prior_from_runs
from lmplay.stats.sequential import Looks
from lmplay.train.settings import as_flags
from lmplay.train.worker import train_apart

SIZES_ALIKE = 2.0  # the spread between seeds of a model up to so many times larger or smaller says something


@dataclass(frozen=True)
class ComparisonRequest:
    """What is asked. `settings`: of every run, but for its experiment, seed and learning rate.

    seeds: pairs of runs; with `until_sure` at first, then more, up to max_seeds. within: the margin (nats a token) of "equal".
    aa: the baseline against itself under other seeds. any_interval: --validation-interval was left to us.
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

    def __post_init__(self):
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


@dataclass(frozen=True)
class ArmJobs:
    """One arm: pair number k is trained with seed first_seed + k."""

    label: str
    model: Variant
    first_seed: int = 0


class Stopped(Exception):
    """Asked to stop by Ctrl-C or SIGTERM. `comparison`: of what is there so far, or None."""

    def __init__(self, comparison: Comparison | None):
        self.comparison = comparison


def run_comparison(request: ComparisonRequest) -> Comparison:
    """Trains what is missing and judges. Raises UserError, and Stopped where it was asked to stop."""
    return _Comparer(request).run()


class _Comparer:
    def __init__(self, request: ComparisonRequest):
        self.request = request
        self.baseline, self.candidates = find_arms(request)
        self.place = RunIndex(request.settings, request.any_interval)
        self.context_len: int | None = None
        self.seconds: dict[str, list[float]] = {}  # that runs took, by model
        self.priors: dict[tuple[str, str], Prior | None] = {}

    def run(self) -> Comparison:
        request = self.request
        try:
            if request.until_sure:
                return self._until_sure()
            jobs = [job for pair in range(request.seeds) for job in self._jobs(pair, self.candidates)]
            self._train(jobs)
            return self._judge({c.label: request.seeds for c in self.candidates})
        except _AskedToStop:
            done = {c.label: self._pairs_there(c) for c in self.candidates}
            raise Stopped(self._judge(done) if all(done.values()) else None) from None

    def _jobs(self, pair: int, candidates: list[ArmJobs]) -> list[Job]:
        """Both sides under one seed."""
        return [
            self.place.job(c.model, c.first_seed + pair, rate)
            for c in [self.baseline, *candidates]
            for rate in self.request.rates
        ]

    def _until_sure(self) -> Comparison:
        """Adds a pair of runs where the fewest more are expected to decide, until all is decided or the seeds are used up."""
        request = self.request
        looks = Looks(request.max_seeds, first=min(max(2, request.seeds), request.max_seeds))
        pairs = {c.label: min(max(looks.first, self._pairs_there(c)), looks.max_seeds) for c in self.candidates}
        for pair in range(max(pairs.values())):
            self._train(
                self._jobs(pair, [c for c in self.candidates if pair < pairs[c.label]]),
                f"at most {2 * looks.max_seeds * len(request.rates)} a candidate",
            )
        while True:
            found = self._judge(pairs, looks)
            open_ = [
                (one.verdict.more_seeds or looks.max_seeds, c)
                for one, c in zip(found.candidates, self.candidates)
                if one.verdict and not one.verdict.decided and pairs[c.label] < looks.max_seeds
            ]
            if not open_:
                return found
            _, nearest = min(open_, key=lambda item: item[0])
            verdict = found.candidates[self.candidates.index(nearest)].verdict
            print(f"{nearest.label} after {pairs[nearest.label]} seeds: {verdict.sentence()}", file=sys.stderr)
            self._train(self._jobs(pairs[nearest.label], [nearest]))
            pairs[nearest.label] += 1

    def _train(self, jobs: list[Job], of: str = "") -> None:
        """Trains those of the jobs that are neither finished nor have failed."""
        missing = [job for job in jobs if (found := self.place.find(job)) is None or found.state == "begun"]
        if missing:
            self._check_models()
        for number, job in enumerate(missing, 1):
            settings = self.place.to_train(job, self.context_len)
            folder = f"{settings.out}/{settings.run_name}"
            print(
                f"run {number} of {of or len(missing)}: {job.model.spec}, seed {settings.seed}"
                + (f", lr {settings.lr:g}" if len(self.request.rates) > 1 else "")
                + f" -> {folder}{self._time_left(missing[number - 1 :])}",
                file=sys.stderr,
                flush=True,
            )
            started = time.monotonic()
            outcome = self._train_one(job, settings)
            self.seconds.setdefault(job.model.spec, []).append(time.monotonic() - started)
            if outcome == "stopped":
                raise _AskedToStop
            if self.place.find(job) is None:
                raise UserError(
                    f"{folder} is not what was asked for: the code of {job.model.entry.name} or the data changed meanwhile; type "
                    "the command again"
                )

    def _train_one(self, job: Job, settings: Settings) -> str:
        folder = Path(settings.out) / settings.run_name
        try:
            return train_apart(settings, ["lmp_trainer", *as_flags(settings)])
        except UserError as error:
            if is_run(folder):
                self.place.take_in(folder)
            found = self.place.find(job)
            if found is None or found.state != "failed":
                raise
            print(f"lmp_compare: {error}", file=sys.stderr)
            return "failed"
        finally:
            if is_run(folder):
                self.place.take_in(folder)

    def _time_left(self, jobs: list[Job]) -> str:
        """By what runs of the same model took, or else of any."""
        known = {spec: sum(all_) / len(all_) for spec, all_ in self.seconds.items()}
        if not known:
            return ""
        usual = sum(known.values()) / len(known)
        seconds = sum(known.get(job.model.spec, usual) for job in jobs)
        return (
            f" (all done in about {seconds / 60:.0f} min)" if seconds >= 90 else f" (all done in about {seconds:.0f} s)"
        )

    def _check_models(self) -> None:
        """Before anything is trained: they can be built with these settings, and their losses are one measure."""
        if self.context_len is not None:
            return
        from lmplay.model.device import choose_device

        settings = self.request.settings
        choose_device(settings.device)
        fields, lengths, causal = contract.parse_fields(list(settings.set)), {}, {}
        for c in [self.baseline, *self.candidates]:
            experiment = contract.load(c.model.entry)
            config = experiment.config(
                c.model.variant,
                self.place.data.tokenizer.vocab_size,
                settings.context_len or self.place.plan.context_len,
                **fields,
            )
            lengths[c.model.spec], causal[c.model.spec] = config.max_len, experiment.bound(config).causal
        self._check_alike(lengths, causal)
        self.context_len = lengths[self.baseline.model.spec]

    def _check_alike(self, lengths: dict[str, int], causal: dict[str, bool]) -> None:
        base = self.baseline.model.spec
        for spec in lengths:
            if lengths[spec] != lengths[base]:
                raise UserError(
                    f"{spec} reads {lengths[spec]} tokens at once and {base} {lengths[base]}, so that they don't see the same "
                    f"sequences: give both one --context-len, such as {min(lengths[spec], lengths[base])}"
                )
            if causal[spec] != causal[base] and not self.request.allow_leak:
                leak = base if causal[spec] else spec
                raise UserError(
                    f"{leak} is not causal: its logits may look ahead, so its loss is another measure; no verdict but with "
                    "--allow-leak"
                )

    def _pairs_there(self, arm: ArmJobs) -> int:
        """How many pairs, from the first on, are all there."""
        pairs = 0
        while all((found := self.place.find(job)) and found.state != "begun" for job in self._jobs(pairs, [arm])):
            pairs += 1
        return pairs

    def _judge(self, pairs: dict[str, int], looks: Looks | None = None) -> Comparison:
        most = max(pairs.values())
        base = self._arm(self.baseline, most)
        arms = [self._arm(c, pairs[c.label]) for c in self.candidates]
        if self.context_len is None:
            self._check_runs((base, *arms))
        confidence = (lambda n: looks.confidence_at(max(n, looks.first))) if looks else (lambda n: 0.95)
        found = compare_arms(
            base,
            arms,
            None if self.request.aa else self._prior,
            confidence,
            self.request.within,
            self.request.allow_leak,
        )
        found.skipped = list(self.place.skipped)
        if self.request.aa:
            found.notes.append(
                "both sides are the same model under other seeds: in at least 95 of 100 such comparisons the verdict must "
                "be neither better nor worse"
            )
        if looks:
            found.notes.append(
                f"looked at after {looks.first} seeds and after each further one, up to {looks.max_seeds}: the intervals are "
                f"as wide as it takes for all of them together to be right in {looks.confidence:.0%}; that holds for a --max-seeds "
                "that was fixed beforehand, not for one raised after an answer was seen"
            )
        return found

    def _check_runs(self, arms: tuple[Arm, ...]) -> None:
        """As `_check_models`, by what the runs say of themselves."""
        lengths, causal = {}, {}
        for arm, arm in zip([self.baseline, *self.candidates], arms):
            for run in [run for runs in arm.runs.values() for run in runs.values() if run][:1]:
                lengths[arm.model.spec] = run.get("config", "max_len")
                causal[arm.model.spec] = run.get("experiment", "causal")
        if self.baseline.model.spec in lengths:
            self._check_alike(lengths, causal)

    def _arm(self, arm: ArmJobs, pairs: int) -> Arm:
        runs: dict[float, dict[int, Run | None]] = {}
        for rate in self.request.rates:
            runs[rate] = {}
            for pair in range(pairs):
                found = self.place.find(self.place.job(arm.model, arm.first_seed + pair, rate))
                if found is not None and found.state != "begun":
                    runs[rate][pair] = found.run if found.state == "finished" else None
        return Arm(arm.label, runs)

    def _prior(self, candidate: Run, baseline: Run) -> Prior | None:
        """The spread between seeds in all finished runs in --out of this plan and about this size, as it was at the first look."""
        pair = group_of(candidate), group_of(baseline)
        if pair in self.priors:
            return self.priors[pair]
        losses: dict[str, dict[int, float]] = {}
        size = baseline.number("parameters", "total")
        for run in self.place.runs:
            alike = all(
                run.value(*keys) == baseline.value(*keys)
                for keys in (
                    ("plan", "hash"),
                    ("data", "hash"),
                    ("progress", "phases"),
                    ("settings", "validation_tokens"),
                    ("settings", "same_init"),
                )
            )
            loss, own = run.number("progress", "validation_loss"), run.number("parameters", "total")
            if (
                run.get("status") == "finished"
                and alike
                and loss is not None
                and size
                and own
                and 1 / SIZES_ALIKE <= own / size <= SIZES_ALIKE
            ):
                losses.setdefault(group_of(run), {})[run.get("settings", "seed")] = loss
        self.priors[pair] = prior_from_runs(losses, pair, f"earlier runs in {self.request.settings.out}")
        return self.priors[pair]


class _AskedToStop(Exception):
    pass


def find_arms(request: ComparisonRequest) -> tuple[ArmJobs, list[ArmJobs]]:
    models = [find_variant(spec) for spec in request.candidates]
    model = find_variant(request.baseline)
    variants = {one.variant for one in models}
    if ":" not in request.baseline and len(variants) == 1 and variants <= set(model.entry.variants):
        model = find_variant(f"{request.baseline}:{variants.pop()}")  # tiny against tiny
    baseline = ArmJobs(model.spec, model)
    if request.aa:
        other = request.max_seeds if request.until_sure else request.seeds
        return baseline, [ArmJobs(f"{model.spec} (other seeds)", model, other)]
    for number, one in enumerate(models):
        if one.spec == model.spec:
            raise UserError(f"{one.spec} is the baseline: compare something else with it, or ask for --aa")
        if one.spec in [m.spec for m in models[:number]]:
            raise UserError(f"--exp names {one.spec} twice")
    return baseline, [ArmJobs(one.spec, one) for one in models]
