"""A ladder of sizes for people: what each rung and all together say of a candidate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lmplay.errors import UserError
from lmplay.report.arms import Candidate, Comparison
from lmplay.runs.run import Run
from lmplay.runs.validations import read_validations
from lmplay.stats.choices import Choice
from lmplay.stats.ladder import HOLDS_WITHIN, Ladder, judge_ladder
from lmplay.stats.multipliers import Interval, Multiplier, Rung
from lmplay.stats.ruler import REACH, Point
from lmplay.stats.verdict import PairedLosses
from lmplay.text import aligned, count, counted, fixed

ENOUGH_TOKENS = 5
MOST_SHOWN = 20.0  # of ln M


@dataclass(frozen=True)
class RungFound:
    """What was trained at a rung. own: each arm's settings there. not_tuned: labels of arms that got another rate."""

    name: str
    parameters: int
    tokens: int
    batch_size: int
    own: Mapping[str, Choice]
    comparison: Comparison
    not_tuned: tuple[str, ...] = ()


@dataclass
class ArmsOnLadder:
    """A candidate and the baseline over all rungs. ladder: None if there is none, `why` says why.

    per_parameter: tokens of training for each of the baseline's matrices' and head's parameters. below: the FLOPs and
    losses (nats per token) of the baseline's points below the rungs.
    """

    label: str
    baseline: str
    rungs: list[RungFound]
    candidates: list[Candidate]
    ladder: Ladder | None
    why: str
    per_parameter: float
    below: list[tuple[float, float]]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return as_text(self)


def judge_rungs(
    found: Sequence[RungFound], below: Sequence[Point], per_parameter: float, notes: Sequence[str]
) -> list[ArmsOnLadder]:
    """Judge each candidate over the rungs; found: from the lowest to the top."""
    judged = []
    for number, first in enumerate(found[0].comparison.candidates):
        candidates = [rung.comparison.candidates[number] for rung in found]
        ladder, why, points = None, "", []
        try:
            rungs = [_rung(rung.name, one) for rung, one in zip(found, candidates, strict=True)]
            ladder = judge_ladder(rungs, below)
            tokens = rungs[0].losses.tokens.sum()
            points = [(one.flops, float(one.losses.sum(1).mean() / tokens)) for one in below]
        except UserError as error:
            why = str(error)
        label = first.arm.label
        base = found[0].comparison.baseline.label
        judged.append(
            ArmsOnLadder(label, base, list(found), candidates, ladder, why, per_parameter, points, list(notes))
        )
    return judged


def _rung(name: str, one: Candidate) -> Rung:
    """Return a rung's losses and costs. Raises UserError where there is no verdict to build on."""
    if one.verdict is None or not one.pairs or one.held_back:
        why = one.crashed or "; ".join(one.warnings) or "seeds diverged"
        raise UserError(f"no verdict at {name}: {why}")
    ours, theirs = ([read_validations(run) for run in runs] for runs in zip(*one.pairs, strict=True))
    first = ours[0]
    if any(each.documents != first.documents for each in (*ours, *theirs)):
        raise UserError(f"the runs at {name} were not validated on the same documents")
    ends = {"flops": 0, "seconds": 0}
    ours_ends, theirs_ends = (
        {axis: np.array([getattr(each.trajectory, axis)[-1] for each in of]) for axis in ends} for of in (ours, theirs)
    )
    comparable = one.timing is None or one.timing.comparable
    return Rung(
        name=name,
        losses=PairedLosses(
            np.stack([each.trajectory.losses[-1] for each in ours]),
            np.stack([each.trajectory.losses[-1] for each in theirs]),
            first.tokens,
            tuple(_seed(run) for run, _ in one.pairs),
        ),
        baseline_flops=float(theirs_ends["flops"].mean()),
        candidate_flops=float(ours_ends["flops"].mean()),
        baseline_seconds=theirs_ends["seconds"] if comparable else None,
        candidate_seconds=ours_ends["seconds"] if comparable else None,
        prior=one.prior,
    )


def _seed(run: Run) -> int:
    return int(run.settings["seed"])


def as_text(found: ArmsOnLadder) -> str:
    """Return the table of the rungs, what all say together, and the notes."""
    header, rows = table(found)
    lines = [f"{found.label} against {found.baseline} over {counted(len(found.rungs), 'size')}", aligned(header, rows)]
    lines += ["", *sentences(found)]
    return "\n".join([*lines, *(f"note: {note}" for note in notes_of(found))])


def table(found: ArmsOnLadder) -> tuple[list[str], list[list[str]]]:
    """Return the header and one row for each rung."""
    header = ["rung", "parameters", "tokens", "FLOPs", "pairs", "baseline", "difference", "interval", "verdict"]
    rows = []
    multipliers: Sequence[Multiplier | None] = found.ladder.rungs if found.ladder else [None] * len(found.rungs)
    for rung, one, m in zip(found.rungs, found.candidates, multipliers, strict=True):
        verdict = m.verdict if m else one.verdict
        row = [rung.name, count(rung.parameters), count(rung.tokens), f"{m.baseline_flops:.3g}" if m else ""]
        row += [str(len(one.pairs)), fixed(verdict.baseline_loss if verdict else None, 4)]
        if verdict is None:
            row += ["", "", one.word]
        else:
            word = "arm not tuned" if rung.not_tuned else verdict.word
            row += [fixed(verdict.difference, 4, "+"), verdict.interval, word]
        row += [slope_text(m), *(multiplier_text(m, axis) for axis in ("flops", "seconds"))] if m else ["", "", ""]
        rows.append(row)
    return [*header, "s", "M in FLOPs", "M in seconds"], rows


def slope_text(one: Multiplier) -> str:
    """Return s with its error."""
    return f"{one.slope:.3f} +-{100 * one.slope_error:.0f}%"


def multiplier_text(one: Multiplier, axis: str) -> str:
    """Return M with its interval for a table."""
    found = one.flops if axis == "flops" else one.seconds
    if found is None:
        return "not comparable"
    if one.beyond:
        than = f"{'more' if one.verdict.difference < 0 else 'less'} than {math.exp(found.value):.3g}"
        return f"{than} ({_ends(found)})"
    return factor_text(found)


def factor_text(found: Interval) -> str:
    """Return ln M as M, with its interval."""
    return f"{math.exp(found.value):.3f} ({_ends(found)})"


def _ends(found: Interval) -> str:
    """Return the ends of an interval of ln M as M; any beyond e^20."""
    high = "any" if found.high > MOST_SHOWN else f"{math.exp(found.high):.3f}"
    return f"{math.exp(max(found.low, -MOST_SHOWN)):.3f} to {high}"


def sentences(found: ArmsOnLadder) -> list[str]:
    """Return what all rungs say together, the pooled verdict first."""
    ladder = found.ladder
    if ladder is None:
        return [f"no verdict over the ladder: {found.why}"]
    if ladder.word == "equal":
        return ["exactly equal over the ladder: the same loss on every document at every rung"]
    pooled = factor_text(ladder.pooled)
    first = {
        "better": f"better over the ladder: the baseline needs {pooled} times the candidate's FLOPs for its loss",
        "worse": f"worse over the ladder: the baseline needs only {pooled} times the candidate's FLOPs for its loss",
    }.get(ladder.word, f"not decided over the ladder: M is {pooled}")
    lines = [first, _trend(ladder)]
    top = ladder.rungs[-1].baseline_flops
    far = ladder.extrapolated(REACH * top)
    return [*lines, f"continued to {REACH:g} times the top rung's FLOPs ({REACH * top:.3g}): M {factor_text(far)}"]


def _trend(ladder: Ladder) -> str:
    slope = f"M changes by a factor of {factor_text(ladder.trend)} per tenfold compute"
    what = "gain" if ladder.pooled.value > 0 else "disadvantage"
    if ladder.trend_word == "holds":
        return f"the {what} holds: {slope}, less than {HOLDS_WITHIN:g} of ln M either way"
    if ladder.trend_word == "grows":
        return f"the {what} grows: {slope}"
    if ladder.trend_word == "shrinks":
        return f"the {what} shrinks: {slope}{_gone(ladder)}"
    text = f"trend not decided: {slope}; one of {_both_ways(ladder.smallest_trend)} would have been seen with 80% power"
    if ladder.more_runs:
        return f"{text}; about {counted(ladder.more_runs, 'more run')} would decide"
    return f"{text}; not even 100 more pairs at each rung would decide"


def _both_ways(slope: float) -> str:
    return f"{math.exp(-slope):.2g} or {math.exp(min(slope, 20)):.2g}"


def _gone(ladder: Ladder) -> str:
    at = ladder.gone_at
    if at is None:
        return ""
    low = "" if math.isinf(at.low) else f"{10**at.low:.2g}"
    high = "any" if math.isinf(at.high) or at.high > 60 else f"{10**at.high:.2g}"
    return f"; gone at about {10 ** min(at.value, 60):.2g} FLOPs ({low or '0'} to {high})"


def notes_of(found: ArmsOnLadder) -> list[str]:
    """Return what the reader should keep in mind."""
    notes = [f"tokens of training: {found.per_parameter:.3g} for each parameter of the baseline's matrices and head"]
    if found.per_parameter < ENOUGH_TOKENS:
        notes[0] += f"; below {ENOUGH_TOKENS} models are far from what their compute can give, so gains may be others"
    if found.ladder:
        notes.append("s: how many nats the baseline's loss falls for each unit of ln(FLOPs), with its error")
        notes.append("M: how many times the candidate's FLOPs (or seconds) the baseline needs for the candidate's loss")
    for rung in found.rungs:
        rates = ", ".join(f"{label} {choice}" for label, choice in rung.own.items() if choice.values)
        if rates:
            notes.append(f"{rung.name}: batch {rung.batch_size}; {rates}")
        notes += [
            f"arm not tuned at {rung.name}: {label} was better with half the carried rate, beyond the noise of seeds, "
            "and got it there"
            for label in rung.not_tuned
        ]
    return [*notes, *found.notes]
