"""Show what experiments reach on tasks: as a table, as CSV and as a heat map.

A score is the accuracy on the answers, scaled from guessing (0) to the best that is possible (1). The interval of a
cell holds the mean accuracy over seeds with 95%. It adds two variances: over seeds (Student's t) and over validation
documents (normal), each document counted once however many answers it has. Seeds are not normal near a level that
models leave suddenly (they have found the trick or not): so the lowest and the highest are written beside it.
"""

import csv
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmplay.own_files import own_file
from lmplay.text import aligned, count

NEAR_CHANCE = 0.1  # below this score a model has learned nothing yet
SOLVED = 0.9  # from this score on a task counts as solved
COLUMNS = (
    "task",
    "experiment",
    "parameters",
    "seeds",
    "score",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "accuracies",
    "loss",
    "chance",
    "ceiling",
    "solved_at",
    "failed",
    "runs",
)


@dataclass
class Cell:
    """One experiment on one task.

    accuracies, losses (nats per answer): at the end of the run of each seed. solved_at: the step of the first
    validation with a score of SOLVED, None without one. n_documents: as many as the last validation scored.
    n_failed: runs whose loss was not finite. runs: the names of all, failed ones too. parameters: of each run.
    """

    task: str
    experiment: str
    chance: float
    ceiling: float
    accuracies: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    solved_at: list[int | None] = field(default_factory=list)
    n_documents: int = 0
    n_failed: int = 0
    runs: list[str] = field(default_factory=list)
    parameters: list[int] = field(default_factory=list)

    def scaled_of(self, accuracy: float) -> float:
        """Return the score of an accuracy."""
        return (accuracy - self.chance) / (self.ceiling - self.chance)

    @property
    def accuracy(self) -> float | None:
        """The mean accuracy over seeds, None without a run."""
        return statistics.fmean(self.accuracies) if self.accuracies else None

    @property
    def score(self) -> float | None:
        """The score of the mean accuracy, None without a run."""
        return None if self.accuracy is None else self.scaled_of(self.accuracy)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% interval (low, high) of the accuracy, None with fewer than two seeds."""
        n, mean = len(self.accuracies), self.accuracy
        if mean is None or n < 2:
            return None
        from scipy.stats import t

        seeds = t.ppf(0.975, n - 1) ** 2 * statistics.variance(self.accuracies) / n
        documents = 1.96**2 * mean * (1 - mean) / self.n_documents
        half = math.sqrt(seeds + documents)
        return max(0.0, mean - half), min(1.0, mean + half)


@dataclass
class Scorecard:
    """What all experiments reached on all tasks.

    parameters: of each experiment. tasks: what each is. levels: (chance, ceiling) of each task. cells: one per pair,
    experiment by experiment. skipped: one line for each folder of a run that can't be read.
    """

    parameters: dict[str, int]
    tasks: dict[str, str]
    levels: dict[str, tuple[float, float]]
    cells: list[Cell]
    skipped: list[str] = field(default_factory=list)

    def parameters_of(self, experiment: str) -> str:
        """Return the parameters of an experiment's runs: tasks of other lengths may need other numbers of positions."""
        known = [n for cell in self.row(experiment) for n in cell.parameters] or [self.parameters[experiment]]
        low, high = count(min(known)), count(max(known))
        return low if low == high else f"{low} to {high}"

    @property
    def not_learned(self) -> list[str]:
        """The tasks on which every model is still near chance."""
        scores = {task: [c.score for c in self.cells if c.task == task and c.score is not None] for task in self.tasks}
        return [task for task, found in scores.items() if found and max(found) < NEAR_CHANCE]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a program: what the CSV has, and the names of the runs."""
        return {
            "tasks": self.tasks,
            "cells": [
                {
                    "task": cell.task,
                    "experiment": cell.experiment,
                    "parameters": cell.parameters[0] if cell.parameters else self.parameters[cell.experiment],
                    "seeds": len(cell.accuracies),
                    "failed": cell.n_failed,
                    "score": cell.score,
                    "accuracy": cell.accuracy,
                    "interval": cell.interval,
                    "accuracies": cell.accuracies,
                    "losses": cell.losses,
                    "chance": cell.chance,
                    "ceiling": cell.ceiling,
                    "solved_at": cell.solved_at,
                    "runs": cell.runs,
                }
                for cell in self.cells
            ],
            "skipped": self.skipped,
        }

    def row(self, experiment: str) -> list[Cell]:
        """Return the cells of one experiment, in the order of the tasks."""
        return [cell for cell in self.cells if cell.experiment == experiment]


def as_text(card: Scorecard) -> str:
    """Return the scorecard as a table, with when tasks were solved and what the tasks are."""
    header = ["accuracy on answers", "parameters", *card.tasks]
    rows = [[name, card.parameters_of(name), *map(_shown, card.row(name))] for name in card.parameters]
    rows += [
        [word, "", *(f"{levels[k]:.3f}" for levels in card.levels.values())]
        for k, word in enumerate(("chance", "best possible"))
    ]
    known = [cell for cell in card.cells if cell.solved_at]
    solved = [f"  {cell.experiment} on {cell.task}: {_steps(cell)}" for cell in known if any(cell.solved_at)]
    lines = [aligned(header, rows), ""]
    if any(cell.interval for cell in card.cells):
        lines.append(
            "± is the 95% interval over seeds and documents (two seeds say little about it); in brackets the lowest "
            "and the highest seed."
        )
    if solved:
        lines += [
            f"Solved (score {SOLVED:g} on a scale from chance to best possible) after this many steps, by seed:",
            *solved,
        ]
    if card.not_learned:
        lines.append(
            f"Nothing learned yet on {', '.join(card.not_learned)}: every model is near chance, which says nothing "
            "about them; train longer (--max-steps, or --size standard)."
        )
    lines += [f"{task}: {what}" for task, what in card.tasks.items()]
    return "\n".join(lines)


def _steps(cell: Cell) -> str:
    return ", ".join("not" if step is None else f"{step:,}" for step in cell.solved_at)


def _shown(cell: Cell) -> str:
    if cell.accuracy is None:
        return "failed" if cell.n_failed else "-"
    text = f"{cell.accuracy:.3f}"
    if cell.interval:
        low, high = cell.interval
        half = max(cell.accuracy - low, high - cell.accuracy)
        text += f" ±{half:.3f} [{min(cell.accuracies):.2f}, {max(cell.accuracies):.2f}]"
    return text + (f" ({cell.n_failed} failed)" if cell.n_failed else "")


def write_csv(card: Scorecard, path: Path) -> None:
    """Write one row per cell, with the columns COLUMNS."""
    with own_file(path) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for cell in card.cells:
            low, high = cell.interval or (None, None)
            loss = statistics.fmean(cell.losses) if cell.losses else None
            writer.writerow(
                [
                    cell.task,
                    cell.experiment,
                    cell.parameters[0] if cell.parameters else card.parameters[cell.experiment],
                    len(cell.accuracies),
                    *map(_number, (cell.score, cell.accuracy, low, high)),
                    _joined(map(_number, cell.accuracies)),
                    _number(loss),
                    _number(cell.chance),
                    _number(cell.ceiling),
                    _joined("-" if s is None else s for s in cell.solved_at) if any(cell.solved_at) else "",
                    cell.n_failed,
                    _joined(cell.runs),
                ]
            )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _joined(values: Iterable) -> str:
    return " ".join(map(str, values))


def draw(card: Scorecard, path: Path, title: str) -> None:
    """Draw a heat map as PNG: rows are experiments, columns are tasks, the color is the score."""
    from matplotlib import colormaps

    from lmplay.report.canvas import as_bytes, blank, drawing, put_axes, put_text

    names, tasks = list(card.parameters), list(card.tasks)
    labels = [f"{name}\n{card.parameters_of(name)} parameters" for name in names]
    left, right, top, bottom, wide, high = (
        0.3 + 0.085 * max(map(len, names + ["000.0k to 000.0k parameters"])),
        1.1,
        0.95,
        0.45,
        1.3,
        0.75,
    )
    width, height = max(6.5, left + right + wide * len(tasks)), top + bottom + high * len(names)
    with drawing():
        figure = blank(width, height)
        axes = put_axes(figure, left, bottom, wide * len(tasks), high * len(names))
        scores = [
            [math.nan if cell.score is None else min(1.0, max(0.0, cell.score)) for cell in card.row(name)]
            for name in names
        ]
        colors = colormaps["cividis"].with_extremes(bad="#dddddd")
        image = axes.imshow(scores, cmap=colors, vmin=0.0, vmax=1.0, aspect="auto")
        for y, name in enumerate(names):
            for x, cell in enumerate(card.row(name)):
                ink = "white" if cell.score is not None and cell.score < 0.55 else "black"
                axes.text(x, y - 0.12, _headline(cell), ha="center", va="center", color=ink, fontsize=11)
                axes.text(x, y + 0.24, _small_print(cell), ha="center", va="center", color=ink, fontsize=7)
        axes.set_yticks(range(len(names)), labels, fontsize=9)
        axes.set_xticks(
            range(len(tasks)),
            [f"{task}\n{low:.2g} to {best:.2g}" for task, (low, best) in card.levels.items()],
            fontsize=8,
        )
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for k in range(1, len(tasks)):
            axes.axvline(k - 0.5, color="white", linewidth=2)
        for k in range(1, len(names)):
            axes.axhline(k - 0.5, color="white", linewidth=2)
        bar = put_axes(figure, left + wide * len(tasks) + 0.25, bottom, 0.15, high * len(names))
        figure.colorbar(image, cax=bar, ticks=[0, 0.5, 1]).ax.set_yticklabels(
            ["chance", "half", "best\npossible"], fontsize=8
        )
        put_text(figure, 0.12, 0.28, title, fontsize=11, va="center")
        below = "accuracy on the answers, ± 95% interval, lowest and highest seed; above: from chance to best possible"
        put_text(figure, 0.12, height - 0.2, below, fontsize=7, va="center", color="#444444")
        content = as_bytes(figure)
    with own_file(path) as beside:
        beside.write_bytes(content)


def _headline(cell: Cell) -> str:
    return f"{cell.accuracy:.2f}" if cell.accuracy is not None else "failed" if cell.n_failed else "not run"


def _small_print(cell: Cell) -> str:
    if cell.accuracy is None:
        return ""
    if cell.interval is None:
        return "1 seed"
    low, high = cell.interval
    half = max(cell.accuracy - low, high - cell.accuracy)
    return f"± {half:.2f}   {min(cell.accuracies):.2f} to {max(cell.accuracies):.2f}"
