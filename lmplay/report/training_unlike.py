"""Say what differs in how two runs were trained: budget, batch, optimizer, schedule."""

import math
from collections.abc import Callable

from lmplay.runs.names import N_STEPS
from lmplay.runs.run import Run
from lmplay.text import printable

APART = 0.02  # budgets that lie closer are the same: seeds cut the data a little differently
SCHEDULE = ("lr_schedule", "warmup_steps", "warmup_from", "final_lr_fraction")
OF_SCHEDULE = {"wsd": ("cooldown_fraction",), "cosine_restarts": ("restart_steps", "restart_shrink")}


def planned_steps(run: Run) -> int | None:
    """Return the steps that a run was to take in all; None if its run.json does not say."""
    phases = run.get("progress", "phases")
    steps = [phase.get(N_STEPS) if isinstance(phase, dict) else None for phase in phases or ()]
    known = [n for n in steps if isinstance(n, int) and not isinstance(n, bool)]
    return sum(known) if steps and len(known) == len(steps) else None


def training_unlike(run: Run, other: Run) -> list[str]:
    """Return what differs in how two runs were trained, each in a few words: "60 steps instead of 196".

    Budgets compare in sequences. With different tokenizers they do not compare, nor do they if one is not known.
    """
    reasons = []
    ours, theirs = planned_steps(run), planned_steps(other)
    fingerprints = {str(one.get("tokenizer", "fingerprint")) for one in (run, other)}
    if ours and theirs and len(fingerprints) == 1 and not _near(_sequences(run), _sequences(other)):
        reasons.append(f"{ours:,} steps instead of {theirs:,}")
    for name, words in (
        ("max_minutes", "minutes at most"),
        ("batch_size", "batch size"),
        ("optimizer", "optimizer"),
        ("data_order", "data order"),
    ):
        if run.settings[name] != other.settings[name]:
            reasons.append(f"{words} {_shown(run.settings[name])} instead of {_shown(other.settings[name])}")
    differ = [name for name in _schedule(run) | _schedule(other) if run.settings[name] != other.settings[name]]
    if differ:
        own, of_other = (
            ", ".join(_shown(one.settings[name]) if name == SCHEDULE[0] else _pair(one, name) for name in differ)
            for one in (run, other)
        )
        reasons.append(f"schedule {own} instead of {of_other}")
    return reasons


def training_aspects(runs: list[Run]) -> list[Callable[[Run], str]]:
    """Return functions run -> text of what a label says of its training; only what is not the same in all runs."""
    budgets: list[tuple[float, str]] = []  # sequences, and what a label says of budgets near them

    def budget(run: Run) -> str:
        steps, sequences = planned_steps(run), _sequences(run)
        if steps is None:
            return ""
        said = next((text for known, text in budgets if _near(known, sequences)), None)
        if said is None:
            said = f"{steps:,} steps"
            budgets.append((sequences, said))
        return said

    def pair(name: str) -> Callable[[Run], str]:
        return lambda run: _pair(run, name)

    names = ["max_minutes", "batch_size", "optimizer", *dict.fromkeys(name for run in runs for name in _schedule(run))]
    aspects = [budget, *map(pair, names)]
    return [aspect for aspect in aspects if len({aspect(run) for run in runs} - {""}) > 1]


def _schedule(run: Run) -> dict[str, None]:
    """Return the names of the settings that make up a run's schedule."""
    more = OF_SCHEDULE.get(str(run.settings["lr_schedule"]), ())
    return dict.fromkeys((*SCHEDULE, *more))


def _sequences(run: Run) -> float:
    """Return how many sequences a run was to see; NaN if that is not known."""
    steps, batch = planned_steps(run), run.settings["batch_size"]
    return float(steps * batch) if steps and isinstance(batch, int) else math.nan


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= APART * max(one, other)


def _pair(run: Run, name: str) -> str:
    return f"{name}={_shown(run.settings[name])}"


def _shown(value: object) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else printable(value)
