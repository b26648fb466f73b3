"""A run's length and learning rate where they change on the way: more updates than planned, a cool-down that is called for."""

import dataclasses
import math
import shutil
from pathlib import Path

from lmplay import contract
from lmplay.errors import UserError
from lmplay.runs import checkpoints
from lmplay.runs.names import CHECKPOINTS, COOLDOWN_STEPS, N_STEPS
from lmplay.runs.run import Run, read_run
from lmplay.runs.settings import Settings, flag_of
from lmplay.train.phases import Phase, rate, same_rates, scheduled_factor
from lmplay.train.setup import Setup


def recorded(phase: Phase) -> dict:
    """What run.json says of a phase."""
    facts = {"name": phase.name, N_STEPS: phase.n_updates}
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
                    n_updates=before[N_STEPS],
                    n_windows=before["cooldown"]["windows"],
                    n_scheduled=before.get("n_scheduled"),
                    cooldown=before["cooldown"],
                ),
            ]
        if number >= len(phases):
            break
        phase, scheduled = phases[number], before.get("n_scheduled", before[N_STEPS])
        if settings.max_minutes is None and not same_rates(
            settings, scheduled, phase.n_updates, min(done, before[N_STEPS])
        ):
            last = number == len(phases) - 1
            if not (settings.extra_steps and last):
                raise UserError(
                    f"the {settings.lr_schedule} schedule of the run {run} was laid out for {scheduled} updates, not "
                    f"{phase.n_updates}: type the same budget to continue, use --lr-schedule constant or wsd for runs whose "
                    f"length is open, {way_out}"
                )
            if scheduled_factor(settings, scheduled, scheduled) <= 0:
                raise UserError(
                    f"the {settings.lr_schedule} schedule of the run {run} ends after {scheduled} updates with a learning rate of 0: "
                    "nothing would be learned from --extra-steps; start another run from it with --initial-model"
                )
            phase = dataclasses.replace(phase, n_scheduled=scheduled)
        result.append(phase)
        done -= before[N_STEPS]
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
            cooldown={"start": start, COOLDOWN_STEPS: updates, "level": level, "windows": windows},
        ),
    ]


def to_continue(setup: Setup) -> Path | None:
    """The checkpoint from which the run goes on; None where it has to start.

    Raises UserError where what was trained so far does not fit what is asked for now.
    """
    checkpoint = checkpoints.latest(setup.folder / CHECKPOINTS)
    if checkpoint is not None:
        check_unchanged(setup, read_run(setup.folder).check("load"))
        for leftover in list(setup.folder.rglob(".*.tmp")):  # of what a killed trainer was writing
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    return checkpoint


def check_unchanged(setup: Setup, run: Run) -> None:
    """Refuses to continue a run as something else than it was; `setup.phases` become those that it goes on with."""
    way_out = "choose another --run-name, or --fresh to start this one over"
    name, meta = setup.folder.name, run.info
    if meta["tokenizer"]["fingerprint"] != setup.data.tokenizer.fingerprint:
        raise UserError(
            f"the run {name} was trained with the tokenizer {meta['tokenizer']['spec']} (vocabulary "
            f"{meta['tokenizer']['vocab_size']}), not {setup.data.tokenizer.spec} (vocabulary "
            f"{setup.data.tokenizer.vocab_size}): {way_out}"
        )
    now, before = setup.settings.as_json(), run.config
    pairs = [(flag_of(key), run.settings[key], now[key]) for key in setup.settings.identity]
    pairs += [(key, before.get(key, value), value) for key, value in contract.config_values(setup.config).items()]
    changed = [f"{name} was {before}, now {after}" for name, before, after in pairs if before != after]
    if changed:
        raise UserError(f"the run {name} was started with other settings ({'; '.join(changed)}): {way_out}")
    if meta["data"]["hash"] != setup.data.hash or meta["plan"]["hash"] != setup.plan.hash:
        raise UserError(f"the data of the run {name} changed since it was started (plan {setup.plan.name}): {way_out}")
    if run.code_hash != setup.entry.code_hash:
        raise UserError(f"the code in {setup.entry.folder} changed since the run {name} was started: {way_out}")
    setup.phases = continued(setup.phases, setup.settings, meta["progress"], name, way_out)
