"""A run's length and learning rate where they change on the way: more updates than planned, a cool-down that is called for."""

import dataclasses
import math

from lmplay.errors import UserError
from lmplay.train.layout import Phase
from lmplay.train.schedules import cooled_down, learning_rate_factor
from lmplay.train.settings import Settings


def rate(settings: Settings, phase: Phase, step: int, position: float | None = None) -> float:
    """The part of the peak learning rate for update `step` of a phase; `position`: where its schedule stands, if not there."""
    if phase.cooldown and step >= phase.cooldown["start"]:
        return cooled_down(
            phase.cooldown["level"],
            (step - phase.cooldown["start"]) / phase.cooldown["updates"],
            settings.final_lr_fraction,
        )
    return _scheduled(settings, step if position is None else position, phase.n_scheduled or phase.n_updates)


def recorded(phase: Phase) -> dict:
    """What run.json says of a phase."""
    facts = {"name": phase.name, "n_updates": phase.n_updates}
    if phase.n_scheduled not in (None, phase.n_updates):
        facts["n_scheduled"] = phase.n_scheduled
    return facts | ({"cooldown": phase.cooldown} if phase.cooldown else {})


def continued(phases: list[Phase], settings: Settings, progress: dict, run: str, way_out: str) -> list[Phase]:
    """The phases as a run that was begun goes on with them; `progress` is what its run.json says.

    A cool-down that has begun goes on. Another budget is for those runs only whose updates so far would have had the same learning
    rates; --extra-steps may also go on at the rate with which a schedule has ended. Raises UserError.
    """
    done, result = progress["step"], []
    for number, before in enumerate(progress.get("phases", [])):
        if "cooldown" in before:
            if number >= len(phases):
                raise UserError(
                    f"the run {run} is in its cool-down: type the budget with which it was begun, {way_out}"
                )
            return [
                *result,
                dataclasses.replace(
                    phases[number],
                    n_updates=before["n_updates"],
                    n_windows=before["cooldown"]["windows"],
                    n_scheduled=before.get("n_scheduled"),
                    cooldown=before["cooldown"],
                ),
            ]
        if number >= len(phases):
            break
        phase, scheduled = phases[number], before.get("n_scheduled", before["n_updates"])
        if settings.max_minutes is None and not _same_rates(
            settings, scheduled, phase.n_updates, min(done, before["n_updates"])
        ):
            last = number == len(phases) - 1
            if not (settings.extra_steps and last):
                raise UserError(
                    f"the {settings.lr_schedule} schedule of the run {run} was laid out for {scheduled} updates, not "
                    f"{phase.n_updates}: type the same budget to continue, use --lr-schedule constant or wsd for runs whose "
                    f"length is open, {way_out}"
                )
            if _scheduled(settings, scheduled, scheduled) <= 0:
                raise UserError(
                    f"the {settings.lr_schedule} schedule of the run {run} ends after {scheduled} updates with a learning rate of 0: "
                    "nothing would be learned from --extra-steps; start another run from it with --initial-model"
                )
            phase = dataclasses.replace(phase, n_scheduled=scheduled)
        result.append(phase)
        done -= before["n_updates"]
    return result + phases[len(result) :]


def cool_down(phases: list[Phase], settings: Settings, state: dict, fraction: float) -> list[Phase]:
    """The phases of a run that cools down linearly from where it stands, `state`, over `fraction` of its updates so far, and ends then.

    A cool-down that has begun goes on as it is. Raises UserError where there is nothing to cool down.
    """
    if phases[-1].cooldown:
        return phases
    if settings.max_minutes is not None:
        raise UserError("--cooldown-now: leave out --max-minutes; the cool-down has a length of its own, in updates")
    number = min(state["phase"], len(phases) - 1)
    phase, position = phases[number], state["position"]
    start, updates = math.ceil(position / settings.batch_size), int(fraction * state["step"])
    level = rate(settings, phase, start)
    if updates < 1:
        raise UserError(
            f"--cooldown-now: {fraction:g} of {state['step']} updates is less than one; type a larger part, --cooldown-now 0.2"
        )
    if level <= settings.final_lr_fraction:
        raise UserError(f"--cooldown-now: the learning rate has come down already, to {level:g} of its peak")
    windows = position + updates * settings.batch_size
    return [
        *phases[:number],
        dataclasses.replace(
            phase,
            n_updates=start + updates,
            n_windows=windows,
            n_scheduled=phase.n_scheduled or phase.n_updates,
            cooldown={"start": start, "updates": updates, "level": level, "windows": windows},
        ),
    ]


def _same_rates(settings: Settings, one: int, other: int, n_updates: int) -> bool:
    return one == other or all(
        math.isclose(_scheduled(settings, step, one), _scheduled(settings, step, other), rel_tol=1e-9)
        for step in range(n_updates)
    )


def _scheduled(settings: Settings, step: float, total: float) -> float:
    return learning_rate_factor(
        settings.lr_schedule,
        step,
        total,
        settings.warmup_steps,
        settings.cooldown_fraction,
        settings.final_lr_fraction,
        settings.warmup_from,
        settings.restart_steps,
        settings.restart_shrink,
    )
