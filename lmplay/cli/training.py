"""Train as the flags of lmp_trainer ask: in this process, or in several that share out each step."""

import argparse
import math
import sys
from typing import TYPE_CHECKING

from lmplay.errors import DONE, STOPPED, UserError
from lmplay.runs.settings import Settings
from lmplay.text import counted
from lmplay.train import settings as settings_module
from lmplay.train.launch import count_devices, is_rank, launch

if TYPE_CHECKING:
    from lmplay.train.ranks import Ranks
    from lmplay.train.setup import Setup
    from lmplay.train.state import TrainState


def train_by_flags(settings: Settings, typed: argparse.Namespace, argv: list[str]) -> int:
    """Train the run from where it stands, and return the exit status. argv: what was typed."""
    words = ["lmp_trainer", *argv]
    if is_rank():
        from lmplay.train.joined import Joined, taking_part

        kind = Joined
        if typed.shard:
            from lmplay.train.sharded import Sharded

            kind = Sharded
        with taking_part(settings.device, kind) as ranks:
            return train(settings, typed, words, ranks)
    if typed.devices is not None:
        return launch(count_devices(typed.devices, settings.device), argv)
    if typed.shard:
        raise UserError(
            "--shard shares out the weights among several devices: type --devices N, or start it by torchrun"
        )
    from lmplay.train.ranks import ALONE

    return train(settings, typed, words, ALONE)


def train(settings: Settings, typed: argparse.Namespace, words: list[str], ranks: "Ranks") -> int:
    """Train the run from where it stands. `words`: what was typed, for run.json. ranks: who share out each step."""
    from lmplay.model.findings import LEAK
    from lmplay.track.trackers import check_trackers
    from lmplay.train.checking import check_setup, refuse
    from lmplay.train.describe import describe_start
    from lmplay.train.setup import check_room, set_up

    check_trackers(settings.track)
    setup = ranks.one_first(lambda: set_up(settings, words, fresh=typed.fresh))
    note(describe_start(setup))
    if (settings.amp or not hasattr(typed, "amp")) and (said := settings_module.on_amp(settings)):
        note(f"  note   {said}")
    if typed.check:
        return check(setup)
    setup, checked = ranks.one_first(lambda: check_setup(setup))
    refuse(checked, LEAK, why="It is not trained", allow_leak=typed.allow_leak)
    if typed.check_grads:
        check_gradients(setup)
    if typed.dry_run:
        note("dry run: everything except the training is done")
        return 0
    check_room(setup)
    from lmplay.train.loop import Trainer
    from lmplay.train.resume import open_together
    from lmplay.train.watchdog import hang_seconds

    state = open_together(setup, ranks, typed.fresh, cooldown_part(typed, settings))
    if state.checkpoint is not None:
        note(f"continuing after step {state.step}")
    if (cooldown := state.phases[-1].cooldown) and state.current:
        note(f"cooling down over {counted(cooldown.n_steps, 'step')}; the run ends after step {state.n_steps}")
    trainer = Trainer(setup, state, hang_seconds(), ranks=ranks)
    if trainer.finished:
        trainer.note_progress("finished")
        state.release()
        note(f"{setup.folder} is finished: {counted(state.step, 'step')}. {what_next(setup, state)}")
        return 0
    status = trainer.train()
    trainer.followers.wait()
    of_phase = f" of {state.phases[min(state.phase, len(state.phases) - 1)].name}" if len(state.phases) > 1 else ""
    loss = "" if state.validation_loss is None else f"; validation loss{of_phase} {state.validation_loss:.4f}"
    read = state.samples * setup.context_len
    tokens = f"{state.tokens:,} tokens" + (f" scored of {read:,} read" if read != state.tokens else "")
    note(f"{setup.folder}: {status} after {counted(state.step, 'step')}, {tokens}, {state.seconds:.0f} s{loss}")
    if status == "stopped":
        note("the same command continues it")
        return STOPPED
    return DONE


def what_next(setup: "Setup", state: "TrainState") -> str:
    """Return what may be done with a run that is finished."""
    from lmplay.train.schedules import Schedule

    settings, last = setup.settings, state.phases[-1]
    n_steps = last.n_scheduled or last.n_steps
    if last.cooldown:
        why = "It has cooled down: --extra-steps goes back to before that and trains on;"
    elif settings.max_minutes is None and Schedule.of(settings).factor(n_steps, n_steps) <= 0:
        why = f"Its {settings.lr_schedule} schedule has ended at a rate of 0:"
    else:
        return "Give it a larger budget (--max-steps, --max-tokens, --epochs), another --run-name, or --fresh"
    return (
        f"{why} --initial-model {setup.folder} begins another run with its weights; or another --run-name, or --fresh"
    )


def check_gradients(setup: "Setup") -> None:
    """Raise UserError where a parameter gets no gradient."""
    from lmplay.train.build import gradient_faults

    if faults := gradient_faults(setup):
        more = f" and {len(faults) - 5} more" if faults[5:] else ""
        raise UserError(f"{setup.entry.name}: {'; '.join(faults[:5])}{more}")
    note("gradients: every parameter gets one")


def note(text: str) -> None:
    """Print to stderr what is for the reader at the terminal."""
    print(text, file=sys.stderr)


def check(setup: "Setup") -> int:
    """Ask everything of a new model, print the answers and return 2 if one is not as it must be."""
    from lmplay.model.findings import FAULT, LEAK
    from lmplay.train.checking import answers, check_setup

    _, checked = check_setup(setup)
    print("\n".join(answers(checked)))
    return 2 if checked.sentences(LEAK, FAULT) else 0


def cooldown_part(typed: argparse.Namespace, settings: Settings) -> float | None:
    """Return the fraction of its steps over which the run is to cool down from now on; None: not now."""
    part = typed.cooldown_now
    if part is None:
        return None
    if typed.fresh:
        raise UserError(
            "--cooldown-now and --fresh exclude each other: a run that starts over has nothing to cool down"
        )
    if part is True:
        part = settings.cooldown_fraction
    if not 0 < part < math.inf:
        raise UserError(f"--cooldown-now must be more than 0, not {part:g}")
    return part
