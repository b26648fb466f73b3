"""Say what a ladder would do before it does it: sizes, time, and what it can decide."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lmplay.compare.arm_jobs import ArmJobs
from lmplay.compare.ladder import BELOW_SEEDS, TUNING_SEED, Climber
from lmplay.compare.rungs import ENOUGH_TOKENS, Rung, rung_settings
from lmplay.compare.sizes_measured import config_of, known_pace, measured_pace
from lmplay.compare.tuning import applied, points
from lmplay.stats.share_out import USUAL_SPREAD, decidable
from lmplay.text import aligned, count, counted


def outlook(climber: Climber) -> list[str]:
    """Return the table of the rungs, the time that all takes, and the effects that 80% power finds; train nothing.

    Raises UserError for fields that a model does not have.
    """
    _check_fields(climber)
    header = ["rung", "parameters", "all", "tokens", "batch", "steps", "FLOPs", "min per run", "pairs"]
    minutes = minutes_of(climber)
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
    return [aligned(header, rows), *_times(climber, minutes), *decidable_lines(climber)]


def _check_fields(climber: Climber) -> None:
    """Raise UserError for what is tuned and is neither a setting nor a field of an arm's Config."""
    settings = rung_settings(climber.settings, climber.rungs[0])
    for arm in climber.arms:
        for point in points(climber.tune):
            config_of(climber.index, arm.variant, applied(settings, point))


Minutes = dict[tuple[str, str], float]  # {(label of the arm, rung): of a run}


def minutes_of(climber: Climber) -> Minutes:
    """Return the minutes of a run of each arm at each rung, by finished runs of the same model, else by a few steps."""
    return {
        (arm.label, rung.name): rung.tokens * _pace(climber, arm, rung) / 60
        for rung in (climber.below, *climber.rungs)
        for arm in (climber.arms if rung is not climber.below else [climber.baseline])
    }


def _pace(climber: Climber, arm: ArmJobs, rung: Rung) -> float:
    settings = rung_settings(climber.settings, rung)
    return known_pace(climber.index, arm.variant, settings) or measured_pace(climber.index, arm.variant, settings)


@dataclass(frozen=True)
class Needed:
    """Minutes of training that a ladder needs where nothing is there yet: for the pairs, for tuning, for the rate
    beside the carried one at the top, for the baseline below.
    """

    judged: float
    tuning: float
    near: float
    below: float

    @property
    def whole(self) -> float:
        return self.judged + self.tuning + self.near + self.below


def needed(climber: Climber, minutes: Minutes, pairs: Sequence[int]) -> Needed:
    """Return what a ladder needs with these pairs at each rung. minutes: of a run of each arm at each rung."""
    n_points, lowest, top = len(points(climber.tune)), climber.rungs[0].name, climber.rungs[-1].name

    def of_all(rung: str) -> float:
        return sum(minutes[arm.label, rung] for arm in climber.arms)

    return Needed(
        judged=sum(n * of_all(rung.name) for rung, n in zip(climber.rungs, pairs, strict=True)),
        tuning=(n_points > 1) * n_points * climber.request.tuning_seeds * of_all(lowest),
        near=2 * of_all(top),
        below=BELOW_SEEDS * minutes[climber.baseline.label, climber.below.name],
    )


def _times(climber: Climber, minutes: Minutes) -> list[str]:
    time = needed(climber, minutes, climber.pairs)
    return [
        f"about {time.whole:.3g} minutes of training, if nothing is there yet: {time.judged:.3g} for the pairs, "
        f"{time.tuning:.3g} for tuning under seeds from {TUNING_SEED} on, {time.near:.3g} for the rate beside the "
        f"carried one at {climber.rungs[-1].name}, {time.below:.3g} for the baseline below",
    ]


def decidable_lines(climber: Climber) -> list[str]:
    """Say which effects are found with a power of 80%, and how many runs judge."""
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
