"""Open a run: find out whether it may go on, from where, and with which phases."""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

from lmplay import contract
from lmplay.code_hash import code_hash, named_files
from lmplay.errors import UserError
from lmplay.runs import checkpoints, integrity
from lmplay.runs.folder import check_links, only_trainer, remove_leftovers, restore_copies
from lmplay.runs.names import CHECKPOINTS, CODE, COOLDOWN, CUDA_GRAPH, N_SCHEDULED, N_STEPS, SAVED_STEP
from lmplay.runs.prune import pruned
from lmplay.runs.run import Run, is_run, read_run
from lmplay.runs.setting import flag_of
from lmplay.runs.settings import Settings
from lmplay.train.cooled import as_before, checkpoint_before, keep_cooled, step_before
from lmplay.train.phases import Cooldown, Phase
from lmplay.train.ranks import Ranks
from lmplay.train.saving import before_cooldown
from lmplay.train.schedules import Schedule
from lmplay.train.setup import Setup
from lmplay.train.state import TrainState

WAY_OUT = "choose another --run-name, or --fresh to start this one over"


def open_run(setup: Setup, fresh: bool = False, cooldown: float | None = None) -> TrainState:
    """Lock the run's folder and return where the run stands: at its newest intact checkpoint, else at its start.

    fresh: start over, whatever is there. cooldown: cool down from there, linearly, over this fraction of the steps so
    far. Raises UserError where what was trained so far does not fit what is asked for now, and where it is gone.
    """
    lock = only_trainer(setup.folder)
    checkpoint, damaged = (None, {}) if fresh else integrity.newest_intact(setup.folder)
    if checkpoint is None:
        if not fresh:
            check_nothing_lost(setup.folder)
        if cooldown is not None:
            raise UserError(f"--cooldown-now: there is no checkpoint of {setup.folder} to start from")
        return TrainState(phases=setup.phases, lock=lock)
    check_links(setup.folder)
    back = step_before(read_run(setup.folder), setup.settings)
    checkpoint = checkpoint if back is None else checkpoint_before(setup.folder, back)
    state = _at(checkpoint, setup, cooldown)
    state.lock = lock
    remove_leftovers(setup.folder)
    integrity.set_aside(damaged, checkpoint)
    if back is not None and (aside := keep_cooled(setup.folder, back)):
        print(
            f"going back to step {back}, before the cool-down, and on to step {state.n_steps}; what the run was is "
            f"kept in {aside}",
            file=sys.stderr,
        )
    if cooldown is not None and before_cooldown(setup.settings, state):
        integrity.keep(checkpoint)
    restore_copies(setup.folder, setup.entry, setup.data.tokenizer.spec, checkpoint)
    return state


def open_together(setup: Setup, ranks: Ranks, fresh: bool = False, cooldown: float | None = None) -> TrainState:
    """Open a run as `open_run` does: rank 0 locks and mends it, and the others go on from where rank 0 found it."""
    state = open_run(setup, fresh, cooldown) if ranks.writes else TrainState(phases=setup.phases)
    checkpoint = ranks.told(state.checkpoint)
    if checkpoint is not None and not ranks.writes:
        state = _at(checkpoint, setup, cooldown)
    ranks.wait()  # rank 0 writes run.json anew, once all have read it
    return state


def _at(checkpoint: Path, setup: Setup, cooldown: float | None) -> TrainState:
    """Return where the run stands at a checkpoint. Raises UserError where it may not go on."""
    before = read_run(setup.folder).check("continue")
    check_unchanged(setup, before)
    progress, back = before.info["progress"], step_before(before, setup.settings)
    progress = progress if back is None else as_before(progress, back)
    phases = phases_to_continue(setup.phases, setup.settings, progress, setup.folder.name)
    check_code(setup, before)
    state = TrainState(phases=phases, checkpoint=checkpoint)
    state.restore(checkpoints.read_state(checkpoint, whole=True))
    state.saved_step = state.step
    state.created = before.get("created")
    state.cuda_graph, state.compiled = before.get(CUDA_GRAPH), before.compiled
    state.peak_memory = before.get("progress", "peak_memory_bytes") or 0
    if cooldown is not None:
        state.phases = cool_down(state, setup.settings, cooldown)
    state.advance()
    return state


def check_nothing_lost(folder: Path) -> None:
    """Raise UserError where a run without a checkpoint had one, by its run.json: it must not start over unasked."""
    if not is_run(folder):
        return
    before = read_run(folder)
    saved = before.number(SAVED_STEP)
    if why := pruned(before):
        raise UserError(f"the run {folder.name} cannot go on: {why}; {WAY_OUT} (the old run is kept aside)")
    if saved:
        raise UserError(
            f"the run {folder.name} has no checkpoint that can be read, and its last was saved after step {saved:g}: "
            f"bring {folder / CHECKPOINTS} back, choose another --run-name, or type --fresh to start over (the old run "
            "is kept aside)"
        )


def check_unchanged(setup: Setup, before: Run) -> None:
    """Raise UserError where the run would go on with another tokenizer, other settings or other data than `before`."""
    name, meta = setup.folder.name, before.info
    now, old = setup.data.tokenizer, meta["tokenizer"]
    if old["fingerprint"] != now.fingerprint:
        raise UserError(
            f"the run {name} was trained with the tokenizer {old['spec']} (vocabulary {old['vocab_size']}), "
            f"not {now.spec} (vocabulary {now.vocab_size}): {WAY_OUT}"
        )
    settings, config = setup.settings.as_json(), before.config
    pairs = [(flag_of(key), before.settings[key], settings[key]) for key in (*setup.settings.identity, "midway_tokens")]
    pairs += [(key, config.get(key, value), value) for key, value in contract.config_values(setup.config).items()]
    changed = [f"{key} was {old}, now {new}" for key, old, new in pairs if old != new]
    if changed:
        raise UserError(f"the run {name} was started with other settings ({'; '.join(changed)}): {WAY_OUT}")
    if meta["data"]["hash"] != setup.data.hash or before.plan_key != setup.plan.key:
        raise UserError(f"the data of the run {name} changed since it was started (plan {setup.plan.name}): {WAY_OUT}")


def check_code(setup: Setup, before: Run) -> None:
    """Raise UserError where the experiment's code does something else than it did.

    The last comparison: the hash of an old run is computed from its copy of the code. Runs from before files that code
    names were part of the hash go on without them.
    """
    entry, named = setup.entry, named_files(setup.entry.folder)
    if before.code_hash == entry.code_hash:
        return
    only_code = code_hash(entry.folder, entry.code_files)
    has_named = any((before.folder / CODE / entry.name / path.relative_to(entry.folder)).is_file() for path in named)
    if named and not has_named and before.code_hash == only_code:
        return
    raise UserError(f"the code in {entry.folder} changed since the run {setup.folder.name} was started: {WAY_OUT}")


def phases_to_continue(phases: list[Phase], settings: Settings, progress: dict[str, Any], run: str) -> list[Phase]:
    """Return the phases with which a run goes on; `progress` is what its run.json says.

    A cool-down that has begun goes on. A run may get another budget if its steps so far would have had the same
    learning rates. --extra-steps may also go on at the rate with which a schedule has ended. Raises UserError.
    """
    done: int = progress["step"]
    result: list[Phase] = []
    for number, before in enumerate(progress.get("phases", [])):
        if COOLDOWN in before:
            if number >= len(phases):
                raise UserError(
                    f"the run {run} is in its cool-down: type the budget with which it was begun, {WAY_OUT}"
                )
            return [*result, _in_cooldown(phases[number], before)]
        if number >= len(phases):
            break
        phase, scheduled = phases[number], before.get(N_SCHEDULED, before[N_STEPS])
        done_here = min(done, before[N_STEPS])
        if settings.max_minutes is None and not _same_rates(settings, scheduled, phase.n_steps, done_here):
            may_extend = settings.extra_steps > 0 and number == len(phases) - 1
            phase = _past_its_schedule(phase, scheduled, settings, run, may_extend)
        result.append(phase)
        done -= before[N_STEPS]
    return result + phases[len(result) :]


def _same_rates(settings: Settings, one: int, other: int, n_steps: int) -> bool:
    """Tell whether schedules of two lengths have the same learning rates in the first `n_steps` steps."""
    schedule = Schedule.of(settings)
    return one == other or all(
        math.isclose(schedule.factor(step, one), schedule.factor(step, other), rel_tol=1e-9) for step in range(n_steps)
    )


def _in_cooldown(phase: Phase, before: dict[str, Any]) -> Phase:
    """Return the phase with the cool-down that run.json holds."""
    cooldown = Cooldown.from_json(before[COOLDOWN])
    return dataclasses.replace(
        phase,
        n_steps=before[N_STEPS],
        n_windows=cooldown.windows,
        n_scheduled=before.get(N_SCHEDULED),
        cooldown=cooldown,
        is_open=False,
    )


def _past_its_schedule(phase: Phase, scheduled: int, settings: Settings, run: str, may_extend: bool) -> Phase:
    """Return the phase with the schedule of `scheduled` steps with which it was begun. Raises UserError."""
    if not may_extend:
        raise UserError(
            f"the {settings.lr_schedule} schedule of the run {run} was laid out for {scheduled} steps, not "
            f"{phase.n_steps}: type the same budget to continue, use --lr-schedule constant or wsd for runs whose "
            f"length is open, {WAY_OUT}"
        )
    if Schedule.of(settings).factor(scheduled, scheduled) <= 0:
        raise UserError(
            f"the {settings.lr_schedule} schedule of the run {run} ends after {scheduled} steps with a learning rate "
            "of 0: nothing would be learned from --extra-steps; start another run from it with --initial-model"
        )
    return dataclasses.replace(phase, n_scheduled=scheduled)


def cool_down(state: TrainState, settings: Settings, fraction: float) -> list[Phase]:
    """Return the phases of a run that cools down linearly from where it stands, over `fraction` of its steps so far.

    The run ends with it. A cool-down that has begun goes on as it is. Raises UserError where nothing can cool down.
    """
    phases = state.phases
    if phases[-1].cooldown:
        return phases
    if settings.max_minutes is not None:
        raise UserError("--cooldown-now: leave out --max-minutes; the cool-down has a length of its own, in steps")
    number = min(state.phase, len(phases) - 1)
    phase, n_steps = phases[number], int(fraction * state.step)
    start = math.ceil(state.position / settings.batch_size)
    level = phase.rate(settings, start)
    if n_steps < 1:
        raise UserError(
            f"--cooldown-now: {fraction:g} of {state.step} steps is less than one; type a larger fraction, "
            "--cooldown-now 0.2"
        )
    if level <= settings.final_lr_fraction:
        raise UserError(f"--cooldown-now: the learning rate has come down already, to {level:g} of its peak")
    windows = state.position + n_steps * settings.batch_size
    cooled = dataclasses.replace(
        phase,
        n_steps=start + n_steps,
        n_windows=windows,
        n_scheduled=phase.n_scheduled or phase.n_steps,
        cooldown=Cooldown(start=start, n_steps=n_steps, level=level, windows=windows),
    )
    return [*phases[:number], cooled]
