"""Judge one arm against the baseline: pair their runs, choose settings, ask for verdicts."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from lmplay.errors import UserError
from lmplay.report.arms import Arm, ArmSummary, Candidate
from lmplay.report.groups import paired, unlike
from lmplay.report.timing import timing_of
from lmplay.runs.names import MFU
from lmplay.runs.run import Run
from lmplay.runs.validations import Validations, read_validations
from lmplay.stats.choices import Edge, as_choice
from lmplay.stats.learning_rates import Point, choose_rates
from lmplay.stats.prior import Prior
from lmplay.stats.savings import Trajectory, compare_at_equal, savings
from lmplay.stats.verdict import PairedLosses, Verdict, compare

PARAMETERS_APART = 0.02


@dataclass(frozen=True)
class Rules:
    """How arms are judged.

    prior_of(candidate's run, baseline's run): the spread between seeds that is known from elsewhere.
    confidence_of(number of pairs): the confidence of the intervals. margin: within which two models count as equal.
    allow_leak: judge although only one of the models is causal.
    """

    prior_of: Callable[[Run, Run], Prior | None] | None = None
    confidence_of: Callable[[int], float] = lambda pairs: 0.95
    margin: float | None = None
    allow_leak: bool = False


@dataclass(frozen=True)
class Judged:
    """A candidate, the baseline's part in it, and the tokens of training at which they are compared (NaN: nowhere)."""

    candidate: Candidate
    baseline: ArmSummary
    tokens: float


@dataclass(frozen=True)
class _Rates:
    """The choice of each arm. losses: of both arms, cross-fitted; None if there was no choice. edges: of each arm."""

    candidate: Point
    baseline: Point
    losses: PairedLosses | None
    notes: tuple[str, ...] = ()
    edges: tuple[tuple[Edge, ...], tuple[Edge, ...]] = ((), ())


@dataclass(frozen=True)
class _Matched:
    """Validations of both arms, paired by number, and how they are judged."""

    candidate: list[Trajectory]
    baseline: list[Trajectory]
    document_tokens: np.ndarray
    numbers: list[int]
    prior: Prior | None
    confidence: float
    margin: float | None

    def at_equal(self, axis: str) -> tuple[Verdict, float] | None:
        return compare_at_equal(
            axis,
            self.candidate,
            self.baseline,
            document_tokens=self.document_tokens,
            seeds=self.numbers,
            prior=self.prior,
            confidence=self.confidence,
            margin=self.margin,
        )

    def final_losses(self) -> PairedLosses:
        ours, theirs = (np.array([run.losses[-1] for run in runs]) for runs in (self.candidate, self.baseline))
        return PairedLosses(ours, theirs, self.document_tokens, tuple(self.numbers))


def judge(arm: Arm, base: Arm, rules: Rules) -> Judged:
    """Judge `arm` against the baseline `base`. Raises UserError if they were not validated on the same documents."""
    whole, whole_base = arm, base
    numbers, warnings = _numbers(arm, base)
    several = len(arm.runs) > 1 or len(base.runs) > 1
    arm, base = (
        Arm(a.label, {rate: {k: runs[k] for k in numbers} for rate, runs in a.runs.items()})
        for a in (whole, whole_base)
    )
    if not numbers or not _finished(arm) or not _finished(base):
        warnings.append("no seed under which both arms finished: no verdict")
        return _without_runs(whole, whole_base, warnings)
    finished = _finished(arm) + _finished(base)
    read = {id(run): read_validations(run).completed for run in finished}
    documents, tokens = _common_documents(finished, read)
    try:
        rates = _rates(arm, base, read, documents=documents, tokens=tokens, numbers=numbers)
    except UserError as error:
        return _without_runs(whole, whole_base, [*warnings, str(error)])
    ours, theirs = arm.runs[rates.candidate], base.runs[rates.baseline]
    summary = _summary(arm.label, ours.values(), read, rate=rates.candidate if several else None)
    baseline = _summary(base.label, theirs.values(), read, rate=rates.baseline if several else None)
    summary.edges, baseline.edges = rates.edges
    summary.failed, baseline.failed = _failed(whole, rates.candidate), _failed(whole_base, rates.baseline)
    warnings += [*rates.notes, *_not_alike(summary, baseline)]
    ends = {read[id(run)].trajectory.tokens[-1] for run in finished}
    if leak := _leak(summary, baseline):
        warnings.append(leak + ("" if rules.allow_leak else "; no verdict (--allow-leak gives one all the same)"))
        if not rules.allow_leak:
            return Judged(Candidate(summary, None, warnings=warnings), baseline, min(ends))
    pairs = {k: (one, other) for k, one, other in paired(ours, theirs) if one and other}
    matched = _Matched(
        candidate=[read[id(one)].trajectory for one, _ in pairs.values()],
        baseline=[read[id(other)].trajectory for _, other in pairs.values()],
        document_tokens=tokens,
        numbers=list(pairs),
        prior=rules.prior_of(summary.runs[0], baseline.runs[0]) if rules.prior_of else None,
        confidence=rules.confidence_of(len(numbers)),
        margin=rules.margin,
    )
    candidate = Candidate(summary, None, warnings=warnings, pairs=list(pairs.values()), prior=matched.prior)
    judged = _with_verdict(candidate, baseline, matched, losses=rates.losses, ends=ends)
    ours_alone, theirs_alone = _failed_alone(whole.failed(rates.candidate), whole_base.failed(rates.baseline))
    _hold_back(judged.candidate, baseline, ours=ours_alone, theirs=theirs_alone)
    return judged


def _with_verdict(
    candidate: Candidate, baseline: ArmSummary, matched: _Matched, losses: PairedLosses | None, ends: set[float]
) -> Judged:
    """Fill in what the losses tell about a candidate. ends: the tokens after which the runs ended."""
    amount = min(ends)
    if losses is None and len(ends) == 1:
        losses = matched.final_losses()
    if losses is not None:
        verdict = compare(losses, matched.prior, matched.confidence, matched.margin)
    else:  # a time limit ends runs after different numbers of tokens
        found = matched.at_equal("tokens")
        if found is None:
            candidate.warnings.append("the runs have no validated part of the training in common: no verdict")
            return Judged(Candidate(candidate.arm, None, warnings=candidate.warnings), baseline, amount)
        verdict, amount = found
        candidate.warnings.append(
            "the runs ended after different numbers of tokens: at equal tokens most of them are judged in the middle "
            "of their schedule; with a time limit, look at the verdict at equal seconds"
        )
    candidate.verdict = verdict
    candidate.arm.loss, baseline.loss = verdict.candidate_loss, verdict.baseline_loss
    if matched.numbers:
        candidate.timing = timing_of(candidate.pairs)
        left_out = () if candidate.timing.comparable else ("seconds",)
        at_equal = {axis: matched.at_equal(axis) for axis in ("flops", "seconds") if axis not in left_out}
        candidate.at_equal = {axis: found[0] for axis, found in at_equal.items() if found}
        found_savings = savings(
            matched.candidate,
            matched.baseline,
            document_tokens=matched.document_tokens,
            seeds=matched.numbers,
            prior=matched.prior,
            confidence=matched.confidence,
        )
        candidate.savings = {axis: saving for axis, saving in found_savings.items() if axis not in left_out}
    return Judged(candidate, baseline, amount)


def _failed_alone(ours: list[int], theirs: list[int]) -> tuple[bool, bool]:
    """Tell of the candidate and of the baseline whether it diverged in a pair in which the other did not."""
    return bool(set(ours) - set(theirs)), bool(set(theirs) - set(ours))


def _hold_back(candidate: Candidate, baseline: ArmSummary, ours: bool, theirs: bool) -> None:
    """Take back what flatters an arm whose seeds diverged where the other's did not.

    The pairs that are left are those in which it went well, so no word in its favor, no equality and no saving can
    rest on them. ours, theirs: whether the candidate, the baseline diverged alone.
    """
    if not (ours or theirs):
        return
    candidate.at_equal, candidate.savings = {}, {}
    if candidate.verdict is None:
        return
    verdict = candidate.verdict
    who = [arm.label for arm, alone in ((candidate.arm, ours), (baseline, theirs)) if alone]
    why = f"seeds of {' and of '.join(who)} diverged where the other's did not"
    word = verdict.word
    if word == "equal" or (word == "better" and ours) or (word == "worse" and theirs):
        candidate.held_back, word = True, "not decided"
        why += f": the seeds that are left alone would say {verdict.word!r}, which is not decided therefore"
    notes = (why, "no savings and no verdicts at equal FLOPs and seconds for the same reason", *verdict.notes)
    candidate.verdict = replace(verdict, word=word, notes=notes, more_seeds=None if ours else verdict.more_seeds)


def _failed(arm: Arm, rate: Point) -> list[int]:
    """Return the seeds under which an arm diverged."""
    return [arm.first_seed + number for number in arm.failed(rate)]


def _numbers(arm: Arm, base: Arm) -> tuple[list[int], list[str]]:
    """Return (numbers of the pairs that are judged, warnings of runs that diverged).

    With one learning rate in each arm, a pair with a run that diverged is left out; else such a run counts as the
    worst.
    """
    ours, theirs = (
        {k: [runs[k] for runs in a.runs.values()] for k in sorted(set.intersection(*map(set, a.runs.values())))}
        for a in (arm, base)
    )
    pairs = paired(ours, theirs)
    warnings = [
        f"{a.label}, seed number {k}{f', {as_choice(rate)}' if len(a.runs) > 1 else ''}: the loss was not finite; "
        + ("it counts as the worst" if len(a.runs) > 1 else "left out, which flatters this arm")
        for a in (arm, base)
        for rate, runs in a.runs.items()
        for k, _, _ in pairs
        if runs[k] is None
    ]
    if len(arm.runs) > 1 or len(base.runs) > 1:
        return [k for k, _, _ in pairs], warnings
    return [k for k, one, other in pairs if one[0] and other[0]], warnings


def _finished(arm: Arm) -> list[Run]:
    return [run for runs in arm.runs.values() for run in runs.values() if run]


def _without_runs(arm: Arm, base: Arm, warnings: list[str]) -> Judged:
    candidate, baseline = (
        ArmSummary(
            a.label,
            runs=[],
            seeds=[],
            loss=math.nan,
            failed=sorted({seed for rate in a.runs for seed in _failed(a, rate)}),
        )
        for a in (arm, base)
    )
    return Judged(Candidate(candidate, None, warnings=warnings), baseline, math.nan)


def _rates(
    arm: Arm,
    base: Arm,
    read: dict[int, Validations],
    documents: tuple[str, ...],
    tokens: np.ndarray,
    numbers: list[int],
) -> _Rates:
    """Return the choices of both arms. Raises UserError if an arm diverged at every one."""
    if len(arm.runs) == len(base.runs) == 1:
        return _Rates(next(iter(arm.runs)), next(iter(base.runs)), None)
    diverged = np.full(len(documents), np.nan)
    ours, theirs = (
        {
            rate: np.array([read[id(run)].trajectory.losses[-1] if run else diverged for run in runs.values()])
            for rate, runs in a.runs.items()
        }
        for a in (arm, base)
    )
    chosen = choose_rates(ours, theirs, tokens=tokens, seeds=numbers, documents=documents)
    edges = chosen.candidate_edges, chosen.baseline_edges
    return _Rates(chosen.candidate, chosen.baseline, losses=chosen.losses, notes=chosen.notes, edges=edges)


def _common_documents(runs: list[Run], read: dict[int, Validations]) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names and the tokens of the documents of all runs. Raises UserError if they are not the same."""
    first = read[id(runs[0])]
    for run in runs[1:]:
        other = read[id(run)]
        if other.documents != first.documents or not np.allclose(other.tokens, first.tokens, rtol=1e-9):
            why = ", ".join(unlike(run, runs[0])) or "another --validation-tokens, or other tokens scored"
            raise UserError(
                f"{run.name} and {runs[0].name} were not validated on the same tokens ({why}): "
                "their losses can't be paired"
            )
    return first.documents, first.tokens


def _summary(label: str, runs: Iterable[Run | None], read: dict[int, Validations], rate: Point | None) -> ArmSummary:
    """Return what is shown of an arm. rate: its choice of settings if there was one."""
    finished = [run for run in runs if run]
    speeds, peaks = [], []
    for run in finished:
        tokens, seconds = run.number("progress", "tokens"), run.number("progress", "seconds")
        if tokens and seconds:
            speeds.append(tokens / seconds)
        if peak := run.number("progress", "peak_memory_bytes"):
            peaks.append(peak)
    used = [mfu for run in finished if (mfu := run.number("progress", MFU))]
    losses = [v.trajectory.losses[-1].sum() / v.tokens.sum() for v in (read[id(run)] for run in finished)]
    return ArmSummary(
        label=label if rate is None else f"{label} {as_choice(rate)}",
        runs=finished,
        seeds=[run.get("settings", "seed") for run in finished],
        loss=float(np.mean(losses)) if losses else math.nan,
        parameters=finished[0].number("parameters", "total") if finished else None,
        flops_per_token=finished[0].number("flops_per_token") if finished else None,
        tokens_per_second=float(np.median(speeds)) if speeds else None,
        peak_memory_bytes=max(peaks, default=None),
        mfu=float(np.median(used)) if used else None,
        choice=None if rate is None else as_choice(rate),
    )


def _leak(arm: ArmSummary, base: ArmSummary) -> str:
    """Return a warning if exactly one of the arms is not causal, else ""."""
    leaks = [a.label for a in (arm, base) if a.runs[0].get("experiment", "causal") is False]
    if len(leaks) != 1:
        return ""
    return f"{leaks[0]} is not causal: its logits may look ahead, so its loss is another measure"


def _not_alike(arm: ArmSummary, base: ArmSummary) -> list[str]:
    reasons = dict.fromkeys(reason for run in arm.runs for reason in unlike(run, base.runs[0]))
    found = [f"{arm.label}: {reason}" for reason in reasons if "causal" not in reason]
    if arm.parameters and base.parameters and abs(arm.parameters / base.parameters - 1) > PARAMETERS_APART:
        more = arm.parameters / base.parameters - 1
        found.append(f"{arm.label} has {abs(more):.1%} {'more' if more > 0 else 'fewer'} parameters than {base.label}")
    return found
