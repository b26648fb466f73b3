"""Models side by side, each with its runs, one a seed: what lmp_compare finds out, and what a report is made of."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lmplay.errors import UserError
from lmplay.report.groups import unlike
from lmplay.runs.run import Run
from lmplay.runs.validations import Validations, read_validations
from lmplay.stats.learning_rates import choose_rates
from lmplay.stats.prior import Prior
from lmplay.stats.savings import Saving, compare_at_equal, savings
from lmplay.stats.verdict import PairedLosses, Verdict, compare
from lmplay.text import aligned, count, fixed, printable

PARAMETERS_APART = 0.02


@dataclass
class Arm:
    """The runs of one model. runs: {learning rate: {number of the pair: run, or None where its loss was not finite}}.

    Runs of two arms with the same number are paired: they have one seed, or (`paired` False in `compare_arms`) two.
    """

    label: str  # NAME:VARIANT
    runs: dict[float, dict[int, Run | None]]


@dataclass
class Side:
    """One model of a comparison. `runs` are its finished runs, one a seed, in the order of `seeds`.

    flops_per_token in training; tokens_per_second the median over the runs; peak_memory_bytes the largest; None: not recorded.
    """

    label: str  # NAME:VARIANT, and the learning rate where that was chosen
    runs: list[Run]
    seeds: list[int]
    loss: float  # validation loss, mean over the runs, where the sides have had equally many tokens
    parameters: float | None = None
    flops_per_token: float | None = None
    tokens_per_second: float | None = None
    peak_memory_bytes: float | None = None


@dataclass
class Candidate:
    """A model and how it does against the baseline, on the pairs of runs that both have.

    `verdict` is about the validation loss at equal tokens. `at_equal` has the verdicts at equal "flops" and "seconds",
    `savings` how much less of "tokens", "flops" and "seconds" reaches the baseline's final loss; empty where there is no verdict.
    `pairs` are the runs that were compared, the candidate's first.
    """

    side: Side
    verdict: Verdict | None  # None: refused, `warnings` say why
    at_equal: dict[str, Verdict] = field(default_factory=dict)
    savings: dict[str, Saving] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    pairs: list[tuple[Run, Run]] = field(default_factory=list)
    prior: Prior | None = None


@dataclass
class Comparison:
    """Candidates against one baseline. `warnings`: what is not like with like; `notes`: how it was done.

    tokens: of training, where the losses are compared. skipped: folders that could not be read, and why.
    """

    baseline: Side
    candidates: list[Candidate]
    plan: str
    tokens: float
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def compare_arms(
    baseline: Arm,
    candidates: Sequence[Arm],
    prior_of: Callable[[Run, Run], Prior | None] | None = None,
    confidence_of: Callable[[int], float] = lambda pairs: 0.95,
    margin: float | None = None,
    allow_leak: bool = False,
) -> Comparison:
    """All candidates against the baseline.

    prior_of(candidate's run, baseline's run): the spread between seeds that is known from elsewhere. confidence_of(number of
    pairs): of the intervals. Raises UserError where the runs were not validated on the same documents.
    """
    judged, sides, amounts = [], [], []
    for arm in candidates:
        candidate, side, tokens = _judge(arm, baseline, prior_of, confidence_of, margin, allow_leak)
        judged.append(candidate)
        sides.append(side)
        amounts.append(tokens)
    widest = max(sides, key=lambda side: len(side.runs))
    found = Comparison(
        widest,
        judged,
        printable(widest.runs[0].get("plan", "name")) if widest.runs else "",
        max((amount for amount in amounts if amount == amount), default=math.nan),
    )
    for run in [run for side in (widest, *(c.side for c in judged)) for run in side.runs]:
        found.warnings += [f"{run.name}: {note}" for note in run.notes if f"{run.name}: {note}" not in found.warnings]
    found.warnings += _machines([run for side in (widest, *(c.side for c in judged)) for run in side.runs])
    return found


def _judge(arm: Arm, base: Arm, prior_of, confidence_of, margin, allow_leak) -> tuple[Candidate, Side, float]:
    """(the candidate, the baseline's side in this pair, tokens of training where they are compared)."""
    numbers = [sorted(set.intersection(*(set(runs) for runs in one.runs.values()))) for one in (arm, base)]
    pairs = sorted(set(numbers[0]) & set(numbers[1]))
    warnings = _diverged(arm, base, pairs)
    several = len(arm.runs) > 1 or len(base.runs) > 1
    if not several:
        pairs = [k for k in pairs if _only(arm)[k] and _only(base)[k]]
    ours, theirs = ({rate: {k: runs[k] for k in pairs} for rate, runs in one.runs.items()} for one in (arm, base))
    finished = [run for side in (ours, theirs) for runs in side.values() for run in runs.values() if run]
    if not pairs or not all(any(run for runs in side.values() for run in runs.values()) for side in (ours, theirs)):
        warnings.append("no seed under which both sides finished: no verdict")
        return Candidate(_side(arm.label, [], {}), None, warnings=warnings), _side(base.label, [], {}), math.nan
    read = {id(run): read_validations(run) for run in finished}
    documents, weights = _common_documents(finished, read)
    confidence = confidence_of(len(pairs))

    rates, losses = (next(iter(ours)), next(iter(theirs))), None
    if several:
        tables = [
            {
                rate: np.array(
                    [
                        read[id(run)].trajectory.losses[-1] if run else np.full(len(documents), np.nan)
                        for run in runs.values()
                    ]
                )
                for rate, runs in side.items()
            }
            for side in (ours, theirs)
        ]
        try:
            chosen = choose_rates(*tables, weights, pairs, documents)
        except UserError as error:
            return (
                Candidate(_side(arm.label, [], read), None, warnings=[*warnings, str(error)]),
                _side(base.label, [], read),
                math.nan,
            )
        rates, losses = (chosen.candidate, chosen.baseline), chosen.losses
        warnings += chosen.notes
    runs = [[run for run in side[rate].values() if run] for side, rate in ((ours, rates[0]), (theirs, rates[1]))]
    labels = [f"{one.label} lr {rate:g}" if several else one.label for one, rate in zip((arm, base), rates)]
    sides = [_side(label, mine, read) for label, mine in zip(labels, runs)]

    warnings += _not_alike(sides[0], sides[1])
    leaks = [side.label for side in sides if side.runs[0].get("experiment", "causal") is False]
    ends = {read[id(run)].trajectory.tokens[-1] for run in finished}
    if len(leaks) == 1:
        warnings.append(
            f"{leaks[0]} is not causal: its logits may look ahead, so that its loss is another measure"
            + ("" if allow_leak else "; no verdict (--allow-leak gives one all the same)")
        )
        if not allow_leak:
            return Candidate(sides[0], None, warnings=warnings), sides[1], min(ends)

    prior = prior_of(runs[0][0], runs[1][0]) if prior_of else None
    both = [k for k in pairs if ours[rates[0]][k] and theirs[rates[1]][k]]
    trajectories = [
        [read[id(side[rate][k])].trajectory for k in both] for side, rate in ((ours, rates[0]), (theirs, rates[1]))
    ]
    arguments = (*trajectories, weights, both, prior, confidence)
    tokens = min(ends)
    if losses is None and len(ends) == 1:
        losses = PairedLosses(
            *(np.array([one.losses[-1] for one in side]) for side in trajectories), weights, tuple(both)
        )
    if losses is not None:
        verdict = compare(losses, prior, confidence, margin)
    else:  # a time limit ends runs after different numbers of tokens
        found = compare_at_equal("tokens", *arguments, margin)
        if found is None:
            warnings.append("the runs have no part of the training in common that was validated: no verdict")
            return Candidate(sides[0], None, warnings=warnings), sides[1], tokens
        verdict, tokens = found
        warnings.append(
            "the runs ended after different numbers of tokens: at equal tokens most of them are judged in the middle of their "
            "schedule; with a time limit the verdict at equal seconds is the one that was asked for"
        )
    candidate = Candidate(
        sides[0],
        verdict,
        warnings=warnings,
        pairs=[(ours[rates[0]][k], theirs[rates[1]][k]) for k in both],
        prior=prior,
    )
    sides[0].loss, sides[1].loss = verdict.candidate_loss, verdict.baseline_loss
    if both:
        at_equal = {axis: compare_at_equal(axis, *arguments, margin) for axis in ("flops", "seconds")}
        candidate.at_equal = {axis: found[0] for axis, found in at_equal.items() if found}
        candidate.savings = savings(*arguments)
    return candidate, sides[1], tokens


def _only(arm: Arm) -> dict[int, Run | None]:
    return next(iter(arm.runs.values()))


def _common_documents(runs: list[Run], read: dict[int, Validations]) -> tuple[tuple[str, ...], np.ndarray]:
    first = read[id(runs[0])]
    for run in runs[1:]:
        other = read[id(run)]
        if other.documents != first.documents or not np.allclose(other.tokens, first.tokens, rtol=1e-9):
            why = ", ".join(unlike(run, runs[0])) or "another --validation-tokens, or other tokens scored"
            raise UserError(
                f"{run.name} and {runs[0].name} were not validated on the same tokens ({why}): their losses can't be paired"
            )
    return first.documents, first.tokens


def _side(label: str, runs: list[Run], read: dict[int, Validations]) -> Side:
    rates = [
        run.number("progress", "tokens") / run.number("progress", "seconds")
        for run in runs
        if run.number("progress", "tokens") and run.number("progress", "seconds")
    ]
    peaks = [peak for run in runs if (peak := run.number("progress", "peak_memory_bytes"))]
    losses = [v.trajectory.losses[-1].sum() / v.tokens.sum() for v in (read[id(run)] for run in runs)]
    if not runs:
        return Side(label, [], [], math.nan)
    return Side(
        label,
        runs,
        [run.get("settings", "seed") for run in runs],
        float(np.mean(losses)),
        runs[0].number("parameters", "total"),
        runs[0].number("flops_per_token"),
        float(np.median(rates)) if rates else None,
        max(peaks, default=None),
    )


def _diverged(arm: Arm, base: Arm, pairs: list[int]) -> list[str]:
    return [
        f"{one.label}, seed number {k}{f', lr {rate:g}' if len(one.runs) > 1 else ''}: the loss was not finite; "
        + ("it counts as the worst" if len(one.runs) > 1 else "left out, which flatters this side")
        for one in (arm, base)
        for rate, runs in one.runs.items()
        for k in pairs
        if runs[k] is None
    ]


def _not_alike(side: Side, base: Side) -> list[str]:
    found = [
        f"{side.label}: {reason}"
        for reason in dict.fromkeys(r for run in side.runs for r in unlike(run, base.runs[0]))
        if "causal" not in reason
    ]
    if side.parameters and base.parameters and abs(side.parameters / base.parameters - 1) > PARAMETERS_APART:
        more = side.parameters / base.parameters - 1
        found.append(f"{side.label} has {abs(more):.1%} {'more' if more > 0 else 'fewer'} parameters than {base.label}")
    return found


def _machines(runs: list[Run]) -> list[str]:
    """What of the machine and of torch is not the same in all runs."""
    found = []
    for what, why, keys in (
        ("torch", "numbers may differ a little", ("versions", "torch")),
        ("device", "seconds don't compare", ("device", "name")),
        ("number of threads", "seconds don't compare", ("device", "threads")),
    ):
        values = sorted({printable(run.get(*keys)) for run in runs})
        if len(values) > 1:
            found.append(f"not all runs had the same {what} ({', '.join(values)}): {why}")
    return found


def as_text(comparison: Comparison) -> str:
    """The table for a terminal, a paragraph for each candidate, and the warnings."""
    base = comparison.baseline
    header = ["", "parameters", "FLOPs/token", "tokens/s", "memory", "val. loss", "difference", "interval", "verdict"]
    rows = [[*_costs(base), _loss(base), "", "", "baseline"]]
    for one in comparison.candidates:
        v = one.verdict
        rows.append(
            [
                *_costs(one.side),
                _loss(one.side),
                *(
                    ["", "", "refused" if one.side.runs else "none"]
                    if v is None
                    else [fixed(v.difference, 4, "+"), f"{v.low:+.4f} to {v.high:+.4f}", v.label]
                ),
            ]
        )
    lines = [aligned(header, rows)]
    if base.runs:
        lines.append(
            f"plan {comparison.plan}, after {count(comparison.tokens)} tokens of training; a difference below 0 is better"
        )
    for one in comparison.candidates:
        first, *more = sentences(one)
        lines += ["", f"{one.side.label}: {first}", *(f"  {sentence}" for sentence in more)]
        lines += [f"  warning: {warning}" for warning in one.warnings]
    lines += [""] * bool(comparison.warnings or comparison.notes)
    lines += [f"note: {note}" for note in comparison.notes] + [f"warning: {warning}" for warning in comparison.warnings]
    return "\n".join(lines)


def sentences(one: Candidate) -> list[str]:
    """What is found out about a candidate, the verdict first."""
    if one.verdict is None:
        return ["no verdict"]
    saved = {axis: saving.sentence() for axis, saving in one.savings.items()}
    if len(set(saved.values())) == 1:  # not reached, whatever is counted
        lines = [*saved.values()][:1]
    else:
        lines = [f"{axis}: {sentence}" for axis, sentence in saved.items()]
    lines += [
        f"at equal {axis}: "
        + (
            one.at_equal[axis].sentence()
            if axis in one.at_equal
            else "not known, for one side had ended before the other was first validated"
        )
        for axis in ("flops", "seconds")
        if one.savings
    ]
    return [one.verdict.sentence(), *lines, *(f"note: {note}" for note in one.verdict.notes)]


def _loss(side: Side) -> str:
    return fixed(side.loss if side.runs else None, 4)


def _costs(side: Side) -> list[str]:
    memory = "-" if side.peak_memory_bytes is None else f"{side.peak_memory_bytes / 2**20:,.0f} MiB"
    return [side.label, count(side.parameters), count(side.flops_per_token), fixed(side.tokens_per_second, 0), memory]
