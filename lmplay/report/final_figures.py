"""Read the final figures of runs, and show them as a table."""

import statistics
from collections import Counter

import numpy as np
import pandas

from lmplay.report.directions import between_directions
from lmplay.report.groups import OTHER_DATA, TAIL, Loaded, RunGroup, unlike
from lmplay.report.measured_text import text_of
from lmplay.report.phase_curves import curve_of
from lmplay.runs.run import Run
from lmplay.stats.curves import Curve, difference
from lmplay.text import aligned, count, fixed, printable


def difference_at_end(curve: Curve, baseline: Curve, noisy: bool) -> float | None:
    """Return a curve minus the baseline's at the x at which the shorter of both ends.

    None if they do not meet, or are of different texts there. noisy: the mean over the last 2% of x instead of that
    one point.
    """
    points = difference(curve, baseline, log=True)
    if not len(points) or points.x[-1] < min(curve.x[-1], baseline.x[-1]) * (1 - TAIL if noisy else 1):
        return None
    return float(points.y[points.x >= points.x[-1] * (1 - TAIL)].mean() if noisy else points.y[-1])


def final_figures(run: Run, train: pandas.DataFrame, validate: pandas.DataFrame) -> dict[str, float | None]:
    """Return the figures at the end of a run; None for what is not known.

    `train_loss`, `train_accuracy` and `train_bits_per_byte` are means over the last 2% of the steps (at least one),
    since those of a single step are mostly noise. The others are those of the last row.
    """
    figures = {"parameters": run.number("parameters", "total")}
    for column in ("tokens", "seconds"):
        figures[column] = _last(train, column) or _last(validate, column)
    tokens, seconds = figures["tokens"], figures["seconds"]
    figures["tokens_per_second"] = tokens / seconds if tokens and seconds else None
    rows = max(1, round(len(train) * TAIL))
    for column in ("loss", "accuracy", "bits_per_byte"):
        tail = train[column].tail(rows).dropna() if column in train else []
        figures[f"train_{column}"] = float(np.mean(tail)) if len(tail) else None
        figures[f"validate_{column}"] = _last(validate, column)
    return figures


def _last(table: pandas.DataFrame, column: str) -> float | None:
    if column not in table:
        return None
    values = table[column].dropna()
    return float(values.iloc[-1]) if len(values) else None


def final_table(groups: list[RunGroup], loss: str, x: str) -> str:
    """Return the final figures of all groups as text."""
    header, rows, notes = final_table_cells(groups, loss, x)
    return "\n".join([aligned(header, rows), *notes])


def final_table_cells(
    groups: list[RunGroup], loss: str, x: str, several: bool | None = None, seeds: bool | None = None
) -> tuple[list[str], list[list[str]], list[str]]:
    """Return (header, rows, notes on what they are) of the final figures of all groups of runs, best first.

    groups: the baseline first. loss: what counts, "loss" or "bits_per_byte". x: "tokens" or "bytes"; differences are
    taken at equal amounts of it. several, seeds: whether there is a column for differences, for the spread between
    seeds (None: if these groups need it).
    """
    validated = all(one.figures[f"validate_{loss}"] is not None for group in groups for one in group.members)
    split, name = ("validate", "validation") if validated else ("train", "training")
    baseline = groups[0]
    several = len(groups) > 1 if several is None else several
    seeds = any(len(group.members) > 1 for group in groups) if seeds is None else seeds
    header = [
        "run",
        "parameters",
        "tokens",
        "train loss",
        "val. loss",
        *(["± seeds"] if seeds else []),
        "accuracy",
        "bits/byte",
        *(["difference"] if several else []),
        "tokens/s",
        "seconds",
        "status",
    ]
    rows = []
    for group in sorted(groups, key=lambda group: _none_last(group.figure(f"{split}_{loss}"))):
        f = group.figure
        apart = "baseline" if group is baseline else fixed(_difference(group, baseline, split, x=x, loss=loss), 4, "+")
        rows.append(
            [
                group.label,
                count(f("parameters")),
                count(f("tokens")),
                fixed(f("train_loss"), 4),
                fixed(f("validate_loss"), 4),
                *([fixed(_deviation(group, "validate_loss"), 4)] if seeds else []),
                fixed(f(f"{split}_accuracy"), 4),
                fixed(f(f"{split}_bits_per_byte"), 4),
                *([apart] if several else []),
                fixed(f("tokens_per_second"), 0),
                fixed(f("seconds"), 0 if (f("seconds") or 0) >= 100 else 1),
                _status(group),
            ]
        )
    notes = ["one run: there are no differences to draw"]
    if len(groups) > 1:
        words = "bits per byte" if loss == "bits_per_byte" else loss
        notes = [f"difference: {name} {words} minus {baseline.label}'s at equal {x}, below 0 is better"]
    if seeds:
        notes.append("n: means over n seeds; ± seeds: standard deviation of the validation loss between them")
    notes += [said for group in groups for said in between_directions(group.label, [one.run for one in group.members])]
    notes.append(f"accuracy, bits/byte: {name}; train loss: mean over the last 2% of the steps")
    return header, rows, notes


def _difference(group: RunGroup, baseline: RunGroup, split: str, x: str, loss: str) -> float | None:
    """Return the mean over the pairs of runs; None if their data are not the same."""
    if OTHER_DATA in unlike(group.run, baseline.run):
        return None

    def curve(one: Loaded) -> Curve:
        return curve_of(one.tables[split], x, loss, log=True, text_of=text_of(one.run, split))

    pairs = [(one, other) for one, others in group.beside(baseline) for other in others]
    found = [difference_at_end(curve(one), curve(other), noisy=split == "train") for one, other in pairs]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known else None


def _deviation(group: RunGroup, figure: str) -> float | None:
    values = [value for one in group.members if (value := one.figures[figure]) is not None]
    return statistics.stdev(values) if len(values) > 1 else None


def _status(group: RunGroup) -> str:
    found = Counter(printable(one.run.get("status") or "-") for one in group.members)
    return ", ".join(status if len(found) == 1 else f"{number} {status}" for status, number in found.items())


def _none_last(value: float | None) -> float:
    return float("inf") if value is None else value
