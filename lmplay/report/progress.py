"""Say how far runs are and how fast they train: a table of the page that follows them."""

import math
import re
from dataclasses import dataclass

import pandas

from lmplay.report.page_table import escape, grid, table_row
from lmplay.runs.alive import state_of
from lmplay.runs.growing import stamp
from lmplay.runs.names import N_STEPS, STEP, TRAIN_CSV
from lmplay.runs.run import Run
from lmplay.text import count, fixed

RECENT = 0.1  # the share of a run's steps, its last ones, by which the time that is left is told
COLUMNS = ("step", "seconds", "loss", "tokens", "tokens_per_second", "mfu")
HEADER = ["run", "state", "step", "train loss", "tokens/s", "MFU", "trained", "left", "last written"]
SMOOTHED_STEPS = 0.02


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    state: as `state_of` has it. steps: of the whole run, None if it is not known. seconds: of training so far. left:
    seconds until the end at the present speed. at: when it last wrote, in seconds since 1970.
    """

    label: str
    seed: str
    state: str
    step: int
    steps: int | None
    loss: float | None
    speed: float | None
    mfu: float | None
    seconds: float | None
    left: float | None
    at: float | None

    @property
    def share(self) -> float | None:
        """The part of the steps that is done, 0 to 1."""
        return min(1.0, self.step / self.steps) if self.steps else None


def progress_of(run: Run, label: str, train: pandas.DataFrame) -> Progress:
    """Return where a run stands by its run.json and the rows of its train.csv."""
    state, last = state_of(run), _last(train)
    step = int(last.get("step") or run.number("progress", STEP) or 0)
    phases = run.get("progress", "phases")
    steps = sum(int(phase.get(N_STEPS) or 0) for phase in phases) if isinstance(phases, list) else 0
    written = stamp(run.folder / TRAIN_CSV)
    rows = max(1, round(len(train) * SMOOTHED_STEPS))
    losses = train["loss"].tail(rows).dropna().to_list() if "loss" in train else []
    return Progress(
        label=label,
        seed=str(run.get("settings", "seed")),
        state=state,
        step=step,
        steps=steps or None,
        loss=sum(losses) / len(losses) if losses else None,
        speed=last.get("tokens_per_second"),
        mfu=last.get("mfu"),
        seconds=last.get("seconds"),
        left=_left(train, steps - step) if state == "running" and steps > step else None,
        at=written[2] / 1e9 if written else None,
    )


def _last(train: pandas.DataFrame) -> dict[str, float]:
    """Return the figures of the last row that are known."""
    row = train.iloc[-1] if len(train) else {}
    return {name: float(row[name]) for name in COLUMNS if name in row and math.isfinite(row[name])}


def _left(train: pandas.DataFrame, steps: int) -> float | None:
    """Return how many seconds that many more steps take at the speed of the last ones."""
    if not {"step", "seconds"} <= set(train) or len(train) < 3:
        return None
    recent = train[["step", "seconds"]].tail(max(3, round(RECENT * len(train))))
    taken = recent["step"].iloc[-1] - recent["step"].iloc[0]
    used = recent["seconds"].iloc[-1] - recent["seconds"].iloc[0]
    return float(steps * used / taken) if taken > 0 and used >= 0 else None


def progress_table(runs: list[Progress], swatches: dict[str, str]) -> str:
    """Return the table in HTML: those that run first, then the others, folded if there are many. "" without runs."""
    running = [one for one in runs if one.state == "running"]
    others = [one for one in runs if one.state != "running"]
    parts = [_table(running, swatches)] if running else []
    if others:
        summary = ", ".join(f"{sum(one.state == s for one in others)} {s or '-'}" for s in _states(others))
        open_ = "" if running or len(others) > 8 else " open"
        parts.append(f"<details{open_}><summary>{escape(summary)}</summary>{_table(others, swatches)}</details>")
    return "".join(parts)


def _states(runs: list[Progress]) -> list[str]:
    return list(dict.fromkeys(one.state for one in runs))


def _table(runs: list[Progress], swatches: dict[str, str]) -> str:
    rows = []
    for one in runs:
        label = re.sub(r" \(n=\d+\)$", "", one.label)
        seed = "" if label.endswith(f"seed {one.seed}") else f" <small>seed {escape(one.seed)}</small>"
        name = swatches.get(one.label, "") + escape(label) + seed
        cells = [
            f'<span class="state {escape(one.state)}">{escape(one.state or "-")}</span>',
            _bar(one) + (f"{one.step:,} of {one.steps:,}" if one.steps else f"{one.step:,}"),
            "" if one.loss is None else fixed(one.loss, 4),
            "" if one.speed is None else count(one.speed),
            "" if one.mfu is None else f"{one.mfu:.1%}",
            duration(one.seconds),
            duration(one.left),
            f'<time data-at="{one.at:.3f}"></time>' if one.at else "",
        ]
        rows.append(table_row(name, cells, HEADER[1:]))
    return grid("progress", HEADER, rows)


def _bar(one: Progress) -> str:
    if one.share is None:
        return ""
    return f'<span class="bar-outer" aria-hidden="true"><i style="width:{100 * one.share:.1f}%"></i></span>'


def duration(seconds: float | None) -> str:
    """Return a time for people, "" for none."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
