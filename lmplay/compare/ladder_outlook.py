"""Say what a ladder would do before it does it: sizes, time, and what it can decide."""

import math

from lmplay.compare.arm_jobs import ArmJobs
from lmplay.compare.ladder import BELOW_SEEDS, TUNING_SEED, Climber
from lmplay.compare.rungs import ENOUGH_TOKENS, Rung, rung_settings
from lmplay.compare.sizes_measured import known_pace, measured_pace
from lmplay.compare.tuning import points
from lmplay.stats.share_out import USUAL_SPREAD, decidable
from lmplay.text import aligned, count, counted


def outlook(climber: Climber) -> list[str]:
    """Return the table of the rungs, the time that all takes, and the effects that 80% power finds; train nothing."""
    header = ["rung", "parameters", "all", "tokens", "batch", "steps", "FLOPs", "min per run", "pairs"]
    minutes = {
        (arm.label, rung.name): _minutes(climber, arm, rung)
        for rung in (climber.below, *climber.rungs)
        for arm in (climber.arms if rung is not climber.below else [climber.baseline])
    }
    rows = []
    for rung, pairs in zip((climber.below, *climber.rungs), (None, *climber.pairs), strict=True):
        model = climber.count(climber.baseline, rung.size)
        arms = climber.arms if pairs else [climber.baseline]
        times = ", ".join(f"{minutes[arm.label, rung.name]:.3g}" for arm in arms)
        steps, flops = model.steps(rung.tokens, rung.batch_size), climber.flops(climber.baseline, rung)
        rows.append(
            [rung.name, count(rung.parameters), count(model.all_parameters), count(rung.tokens), str(rung.batch_size)]
            + [str(steps), f"{flops:.3g}", times, str(pairs) if pairs else "baseline only"]
        )
    return [aligned(header, rows), *_times(climber, minutes), *_decidable(climber)]


def _minutes(climber: Climber, arm: ArmJobs, rung: Rung) -> float:
    """Return the minutes of a run, by finished runs of the same model, else by a few steps."""
    settings = rung_settings(climber.settings, rung)
    pace = known_pace(climber.index, arm.variant, settings) or measured_pace(climber.index, arm.variant, settings)
    return rung.tokens * pace / 60


def _times(climber: Climber, minutes: dict[tuple[str, str], float]) -> list[str]:
    top, lowest = climber.rungs[-1], climber.rungs[0]
    judged = sum(
        pairs * minutes[arm.label, rung.name]
        for rung, pairs in zip(climber.rungs, climber.pairs, strict=True)
        for arm in climber.arms
    )
    n_points = len(points(climber.tune))
    tuning = sum(minutes[arm.label, lowest.name] for arm in climber.arms) * n_points * climber.request.tuning_seeds
    tuning *= n_points > 1
    near = 2 * sum(minutes[arm.label, top.name] for arm in climber.arms)
    below = BELOW_SEEDS * minutes[climber.baseline.label, climber.below.name]
    whole = judged + tuning + near + below
    return [
        f"about {whole:.3g} minutes of training, if nothing is there yet: {judged:.3g} for the pairs, {tuning:.3g} for "
        f"tuning under seeds from {TUNING_SEED} on, {near:.3g} for the rate beside the carried one at {top.name}, "
        f"{below:.3g} for the baseline below",
    ]


def _decidable(climber: Climber) -> list[str]:
    sizes = [math.log10(climber.flops(climber.baseline, rung)) for rung in climber.rungs]
    effect, trend = decidable(sizes, climber.pairs)
    lines = [
        f"with 80% power: {100 * (math.exp(effect) - 1):.2g}% of compute over the ladder, and a trend of a factor of "
        f"{math.exp(trend):.2g} per tenfold compute, if seeds spread by {100 * USUAL_SPREAD:.2g}% of compute as is "
        "assumed"
    ]
    if climber.per_parameter < ENOUGH_TOKENS:
        lines.append(
            f"warning: {climber.per_parameter:.3g} tokens per parameter, below {ENOUGH_TOKENS}: models are far from "
            "what their compute can give, so gains may be others"
        )
    wait = counted(sum(climber.pairs) * len(climber.arms), "run")
    return [*lines, f"{wait} that judge; what is there is not trained again"]
