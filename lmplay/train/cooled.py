"""Let a run that has cooled down train on from before its cool-down: what --extra-steps does then."""

import itertools
import os
import shutil
from pathlib import Path
from typing import Any

from lmplay.errors import UserError
from lmplay.files import sync
from lmplay.runs import checkpoints, integrity
from lmplay.runs.folder import free_aside
from lmplay.runs.names import CHECKPOINTS, COOLDOWN, N_SCHEDULED, N_STEPS, TRACK, step_of
from lmplay.runs.run import Run
from lmplay.runs.settings import Settings
from lmplay.train.schedules import Schedule


def step_before(before: Run, settings: Settings) -> int | None:
    """Return the step after which a run's cool-down began, None where it does not go back to there.

    It goes back if --extra-steps asks for more than it had. Raises UserError where these are fewer than it had, and
    where there is no checkpoint from before the cool-down that was asked for.
    """
    phases = before.get("progress", "phases") or []
    asked = any(COOLDOWN in phase for phase in phases)
    had = before.settings["extra_steps"]
    if asked and 0 < settings.extra_steps < had:
        raise UserError(f"--extra-steps: the run {before.name} has had {had}, and has cooled down since: ask for more")
    if settings.extra_steps <= had:
        return None
    step = _asked_for(phases) if asked else _planned(phases, settings)
    done = before.number("progress", "step") or 0
    if step is None or done <= step:
        return None
    if any(step_of(path) == step for path in checkpoints.find_all(before.folder / CHECKPOINTS)):
        return step
    if not asked:  # of a version that did not keep it: the schedule says whether the run may go on from its end
        return None
    raise UserError(
        f"--extra-steps: the run {before.name} has cooled down, and its checkpoint from before that, step {step}, "
        f"is gone; --initial-model {before.folder} begins another run with its weights"
    )


def as_before(progress: dict[str, Any], step: int) -> dict[str, Any]:
    """Return what run.json says of the progress as if the run had not been cooled down after `step`."""
    phases = [{key: value for key, value in phase.items() if key != COOLDOWN} for phase in progress["phases"]]
    return {**progress, "step": step, "phases": phases}


def checkpoint_before(folder: Path, step: int) -> Path:
    """Return the checkpoint of `step` in a run's folder. Raises UserError if it is damaged."""
    found = next(path for path in checkpoints.find_all(folder / CHECKPOINTS) if step_of(path) == step)
    if wrong := integrity.damage_before(folder, found):
        raise UserError(f"--extra-steps: {wrong[0]}, from which the run would go on: bring it back from a copy")
    return found


def keep_cooled(folder: Path, step: int) -> Path | None:
    """Set aside what a run has become since `step`, and return where; None where nothing has a checkpoint after it.

    The rows, samples and losses are copied, the checkpoints after `step` are moved. What is cut off here at any moment
    is done again.
    """
    later = [path for path in checkpoints.find_all(folder / CHECKPOINTS) if step_of(path) > step]
    if not later:
        return None
    aside = free_aside(folder)
    beside = aside.with_name(f".{aside.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(folder, beside, ignore=lambda at, names: [CHECKPOINTS] if Path(at) == folder else [])
    (beside / CHECKPOINTS).mkdir()
    os.rename(beside, aside)
    shutil.rmtree(folder / TRACK, ignore_errors=True)  # the tracked run is that of what is set aside
    for path in reversed(later):
        shutil.move(path, aside / CHECKPOINTS / path.name)
    for changed in (folder / CHECKPOINTS, aside / CHECKPOINTS, aside.parent):
        sync(changed)
    return aside


def _asked_for(phases: list[dict[str, Any]]) -> int:
    """Return the step after which the cool-down of --cooldown-now began."""
    earlier = list(itertools.takewhile(lambda phase: COOLDOWN not in phase, phases))
    return sum(int(phase[N_STEPS]) for phase in earlier) + int(phases[len(earlier)][COOLDOWN]["start"])


def _planned(phases: list[dict[str, Any]], settings: Settings) -> int | None:
    """Return the step after which the cool-down of a wsd schedule began in the last phase, None without one."""
    if not phases or settings.max_minutes is not None:
        return None
    scheduled, schedule = phases[-1].get(N_SCHEDULED, phases[-1][N_STEPS]), Schedule.of(settings)
    start = next((step for step in range(scheduled) if schedule.before_cooldown(step, scheduled)), None)
    return None if start is None else sum(int(phase[N_STEPS]) for phase in phases[:-1]) + start
