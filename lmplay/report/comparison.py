"""Compare models side by side, each with its runs, one per seed: what lmp_compare finds out, as text."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from lmplay.report.arms import Arm, ArmSummary, Candidate, Comparison
from lmplay.report.as_json import of_comparison
from lmplay.report.directions import between_directions
from lmplay.report.judging import Rules, judge
from lmplay.report.timing import machines_differ
from lmplay.runs.run import Run
from lmplay.stats.prior import Prior
from lmplay.text import aligned, count, fixed, mebibytes, printable


class ReadableComparison(Comparison):
    """A comparison whose `str` is what lmp_compare prints."""

    def __str__(self) -> str:
        return as_text(self)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as lmp_compare --json writes them: no NaN, no paths."""
        return of_comparison(self)


def compare_arms(
    baseline: Arm,
    candidates: Sequence[Arm],
    prior_of: Callable[[Run, Run], Prior | None] | None = None,
    confidence_of: Callable[[int], float] = lambda pairs: 0.95,
    margin: float | None = None,
    allow_leak: bool = False,
) -> Comparison:
    """Compare all candidates with the baseline, by the rules that `judging.Rules` describes.

    Raises UserError if the runs were not validated on the same documents.
    """
    rules = Rules(prior_of=prior_of, confidence_of=confidence_of, margin=margin, allow_leak=allow_leak)
    judged = [judge(arm, baseline, rules) for arm in candidates]
    nothing = ArmSummary(baseline.label, runs=[], seeds=[], loss=math.nan)
    widest = max((one.baseline for one in judged), key=lambda arm: len(arm.runs), default=nothing)
    found = ReadableComparison(
        baseline=widest,
        candidates=[one.candidate for one in judged],
        plan=printable(widest.runs[0].get("plan", "name")) if widest.runs else "",
        tokens=max((one.tokens for one in judged if not math.isnan(one.tokens)), default=math.nan),
        arms=[baseline, *candidates],
    )
    arms = [widest, *(one.arm for one in found.candidates)]
    found.notes += [said for arm in arms for said in between_directions(arm.label, arm.runs)]
    runs = [run for arm in arms for run in arm.runs]
    found.warnings += dict.fromkeys(f"{run.name}: {note}" for run in runs for note in run.notes)
    found.warnings += _machines(runs)
    return found


def _machines(runs: list[Run]) -> list[str]:
    """Return what of the machine and of torch is not the same in all runs."""
    found = []
    versions = sorted({printable(run.get("versions", "torch")) for run in runs})
    if len(versions) > 1:
        found.append(f"not all runs had the same torch ({', '.join(versions)}): numbers may differ a little")
    for what, values in machines_differ(runs).items():
        found.append(f"not all runs had the same {what} ({', '.join(values)}): seconds don't compare")
    return found


def as_text(comparison: Comparison) -> str:
    """Return the table for a terminal, a paragraph for each candidate, and the warnings."""
    base = comparison.baseline
    header = ["", "parameters", "FLOPs/token", "tokens/s", "memory", "val. loss", "difference", "interval", "verdict"]
    rows = [[base.label, *costs(base), final_loss(base), "", "", "baseline"]]
    for one in comparison.candidates:
        rows.append([one.arm.label, *costs(one.arm), final_loss(one.arm), *_verdict_cells(one)])
    lines = [aligned(header, rows)]
    if base.runs:
        after = f"after {count(comparison.tokens)} tokens of training"
        lines.append(f"plan {comparison.plan}, {after}; a difference below 0 is better")
    if base.failures:
        lines.append(f"{base.label}: {base.failures}")
    for one in comparison.candidates:
        first, *more = sentences(one)
        lines += ["", f"{one.arm.label}: {first}", *(f"  {sentence}" for sentence in more)]
        lines += [f"  warning: {warning}" for warning in one.warnings]
    if comparison.warnings or comparison.notes:
        lines.append("")
    lines += [f"note: {note}" for note in comparison.notes] + [f"warning: {warning}" for warning in comparison.warnings]
    return "\n".join(lines)


def _verdict_cells(one: Candidate) -> list[str]:
    v = one.verdict
    return ["", "", one.word] if v is None else [fixed(v.difference, 4, "+"), v.interval, v.label]


def sentences(one: Candidate) -> list[str]:
    """Return what is found out about a candidate, the verdict first."""
    failures = [one.arm.failures] if one.arm.failures else []
    if one.crashed:
        return [f"no verdict: its training crashed: {one.crashed}"]
    if one.verdict is None:
        return ["no verdict", *failures]
    saved = {axis: saving.sentence() for axis, saving in one.savings.items()}
    if len(set(saved.values())) == 1:  # not reached, whatever is counted
        lines = [*saved.values()][:1]
    else:
        lines = [f"{axis}: {sentence}" for axis, sentence in saved.items()]
    for axis in ("flops", "seconds") if one.savings else ():
        if axis == "seconds" and one.timing and not one.timing.comparable:
            lines.append(f"at equal seconds: {one.timing.refusal()}")
            continue
        known = one.at_equal.get(axis)
        unknown = "not known, since one arm had ended before the other was first validated"
        beside = f" ({one.timing.sentence()})" if axis == "seconds" and one.timing else ""
        lines.append(f"at equal {axis}: {known.sentence() if known else unknown}{beside}")
    lines += [f"note: {note}" for note in one.verdict.notes]
    if one.prior and one.prior.runs:
        lines.append(
            f"the spread between seeds is known to {one.verdict.prior_share:.0%} from earlier runs: "
            + ", ".join(one.prior.runs)
        )
    return [one.verdict.sentence(), *failures, *lines]


def final_loss(arm: ArmSummary) -> str:
    """Return the validation loss of an arm for a table."""
    return fixed(arm.loss if arm.runs else None, 4)


def costs(arm: ArmSummary) -> list[str]:
    """Return parameters, FLOPs per token, tokens per second and memory of an arm for a table."""
    speed, memory = fixed(arm.tokens_per_second, 0), mebibytes(arm.peak_memory_bytes)
    speed += f" (MFU {arm.mfu:.1%})" if arm.mfu else ""
    return [count(arm.parameters), count(arm.flops_per_token), speed, memory]
