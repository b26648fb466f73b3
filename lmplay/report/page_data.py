"""The curves of a report, as plain numbers: each group's mean and spread over all axes, and its difference to the baseline."""

import math
from dataclasses import dataclass

import numpy as np
import pandas

from lmplay.errors import UserError
from lmplay.report.groups import curve_of, same_tokenizer
from lmplay.runs.run import Run
from lmplay.runs.validations import Validations, read_validations
from lmplay.stats.curves import Curve, difference, mean_and_range, smooth, together
from lmplay.stats.prior import Prior
from lmplay.stats.verdict import PairedLosses, Verdict, compare

AXES = ("tokens", "step", "seconds", "flops")


METRICS = ("loss", "accuracy", "bits_per_byte")


SPLITS = ("train", "validate")


SMOOTHED = 0.05  # of x to both sides of each point, in training curves


POINTS = 300  # of a curve


JUDGED = 40  # of a difference that is judged document by document


DIGITS = 5


@dataclass(frozen=True)
class Pair:
    """A run, and the baseline's that it is compared with: one, or all of them where they share no seed."""

    run: Run
    others: list[Run]


@dataclass(frozen=True)
class Terms:
    """How differences are judged (see `verdict.compare`)."""

    confidence: float = 0.95
    prior: Prior | None = None


class Tables:
    """The tables and validations of runs, read once and kept until they are forgotten."""

    def __init__(self):
        self._read: dict[tuple, pandas.DataFrame] = {}
        self._validations: dict[str, Validations | None] = {}

    def table(self, run: Run, split: str) -> pandas.DataFrame:
        key = str(run.folder), split
        if key not in self._read:
            self._read[key] = run.table(split, {*AXES, *METRICS})
        return self._read[key]

    def curve(self, run: Run, split: str, x: str, y: str) -> Curve:
        curve = curve_of(self.table(run, split), x, y, log=True)
        return smooth(curve, SMOOTHED) if split == "train" else curve

    def validations(self, run: Run) -> Validations | None:
        key = str(run.folder)
        if key not in self._validations:
            try:
                self._validations[key] = read_validations(run)
            except UserError:
                self._validations[key] = None
        return self._validations[key]

    def forget(self, runs: list[Run]) -> None:
        for run in runs:
            self._validations.pop(str(run.folder), None)
            for split in SPLITS:
                self._read.pop((str(run.folder), split), None)


def course(runs: list[Run], tables: Tables) -> dict[str, dict]:
    """{split: {"x": {axis: [...]}, "y": {metric: [mean, lowest, highest]}, "runs": {metric: [a list each run]}}}, for JSON.

    All of them at the same points; lowest, highest and runs only where there are several runs.
    """
    found = {}
    for split in SPLITS:
        curves = {
            metric: [curve for run in runs if len(curve := tables.curve(run, split, "tokens", metric))]
            for metric in METRICS
        }
        grid = next((mean_and_range(of)[0].x for of in curves.values() if of), np.array([]))
        if not len(grid):
            continue
        grid = grid[_spaced(grid, POINTS)]
        x = {"tokens": grid}
        for axis in AXES[1:]:
            along = [
                np.interp(grid, table["tokens"], table[axis])
                for run in runs
                if len(table := tables.table(run, split)) and {"tokens", axis} <= set(table)
            ]
            if along:
                x[axis] = np.mean(along, axis=0)
        y, single = {}, {}
        for metric, of in curves.items():
            values = np.array([np.interp(np.log(grid), np.log(curve.x), curve.y, np.nan, np.nan) for curve in of])
            if len(of):
                y[metric] = [_plain(values.mean(0))]
            if len(of) > 1:
                y[metric] += [_plain(values.min(0)), _plain(values.max(0))]
                single[metric] = [_plain(row) for row in values]
        found[split] = {"x": {axis: _plain(values) for axis, values in x.items()}, "y": y, "runs": single}
    return found


def differences(pairs: list[Pair], terms: Terms, tables: Tables) -> dict[str, dict]:
    """{split: {metric: {axis: {"x", "y", "low", "high": [...], "covers": what the interval is over}}}}, for JSON."""
    judged = {axis: _judge(pairs, axis, terms, tables) for axis in ("tokens", "flops", "seconds")}
    alike = same_tokenizer([run for pair in pairs for run in (pair.run, *pair.others)])
    found = {}
    for split in SPLITS:
        for metric in METRICS if alike else ("bits_per_byte",):  # which alone compares across tokenizers
            for axis in AXES:
                one = _over_seeds(pairs, split, metric, axis, terms, tables)
                if split == "validate" and metric != "accuracy":
                    one = _joined(one, _over_documents(judged, pairs, metric, axis, tables))
                if one is not None:
                    x, y, low, high, covers = one
                    found.setdefault(split, {}).setdefault(metric, {})[axis] = {
                        "x": _plain(x),
                        "y": _plain(y),
                        "low": _plain(low),
                        "high": _plain(high),
                        "covers": covers,
                    }
    return found


def _over_seeds(pairs: list[Pair], split: str, metric: str, axis: str, terms: Terms, tables: Tables) -> tuple | None:
    """(x, y, low, high, covers): the mean of the paired differences and Student's interval of it."""
    curves = []
    for pair in pairs:
        others = [curve for other in pair.others if len(curve := tables.curve(other, split, axis, metric))]
        curve = tables.curve(pair.run, split, axis, metric)
        if others and len(curve) and len(apart := difference(curve, mean_and_range(others)[0])):
            curves.append(apart)
    if not curves:
        return None
    kept, values = together(curves)
    index = _spaced(kept.x, POINTS // 2)
    x, values, nothing = kept.x[index], values[:, index], np.full(len(index), np.nan)
    paired = len(curves) > 1 and all(len(pair.others) == 1 for pair in pairs)
    if not paired:
        return x, values.mean(0), nothing, nothing, ""
    from scipy.special import stdtrit

    n = len(curves)
    half = -stdtrit(n - 1, (1 - terms.confidence) / 2) * values.std(0, ddof=1) / math.sqrt(n)
    return x, values.mean(0), values.mean(0) - half, values.mean(0) + half, "seeds"


def _judge(pairs: list[Pair], axis: str, terms: Terms, tables: Tables) -> tuple[np.ndarray, list[Verdict]] | None:
    """(how much of the axis, verdicts there on the validation loss); None where the runs were not validated on the same tokens."""
    if not pairs or any(len(pair.others) != 1 for pair in pairs):
        return None
    sides = [[tables.validations(pair.run) for pair in pairs], [tables.validations(pair.others[0]) for pair in pairs]]
    everyone = [*sides[0], *sides[1]]
    if None in everyone or not same_tokenizer([run for pair in pairs for run in (pair.run, *pair.others)]):
        return None
    first = everyone[0]
    if any(one.documents != first.documents or not np.allclose(one.tokens, first.tokens) for one in everyone):
        return None
    begin, end = (choose(getattr(one.trajectory, axis)[at] for one in everyone) for choose, at in ((max, 0), (min, -1)))
    places = np.mean(
        [np.interp(first.trajectory.tokens, one.trajectory.tokens, getattr(one.trajectory, axis)) for one in sides[0]],
        axis=0,
    )
    places = np.unique(np.append(places[(places >= begin) & (places < end)], end))
    if begin > end:
        return None
    places = places[_spaced(places, JUDGED)]
    numbers = tuple(range(len(pairs)))
    try:
        return places, [
            compare(
                PairedLosses(
                    *(np.stack([one.trajectory.at(axis, x) for one in side]) for side in sides), first.tokens, numbers
                ),
                terms.prior,
                terms.confidence,
            )
            for x in places
        ]
    except UserError:  # a loss is not finite
        return None


def _over_documents(judged: dict, pairs: list[Pair], metric: str, axis: str, tables: Tables) -> tuple | None:
    """As `_over_seeds`, from what was judged document by document; None where that says nothing about this metric and axis."""
    found = judged["tokens" if axis == "step" else axis]
    if found is None:
        return None
    places, verdicts = found
    runs = [run for pair in pairs for run in (pair.run, *pair.others)]
    last = [tables.table(run, "validate").iloc[-1] for run in runs]
    unit = 1.0
    if metric == "bits_per_byte":  # of the same text in the same tokens: proportional to the loss
        units = [row["bits_per_byte"] / row["loss"] for row in last]
        if not np.allclose(units, units[0], rtol=1e-5):
            return None
        unit = units[0]
    if axis == "step":  # are equal steps equal tokens?
        per_step = [tables.validations(run).trajectory.tokens[-1] / row["step"] for run, row in zip(runs, last)]
        if not np.allclose(per_step, per_step[0]):
            return None
    if axis in (
        "tokens",
        "step",
    ):  # judged at tokens of the data, where the axis counts those that were scored, or updates
        along = tables.validations(runs[0]).trajectory.tokens
        table = tables.table(runs[0], "validate").dropna(subset=["flops", "seconds", "loss"]).tail(len(along))
        places = np.interp(places, along, table[axis])
    y, low, high = (
        np.array([getattr(verdict, name) for verdict in verdicts]) * unit for name in ("difference", "low", "high")
    )
    return places, y, low, high, verdicts[-1].covers


def _joined(earlier: tuple | None, later: tuple | None) -> tuple | None:
    """`later`, before it `earlier` (a plan's earlier steps are not judged by document)."""
    if earlier is None or later is None:
        return later or earlier
    before = earlier[0] < later[0][0] * (1 - 1e-9)
    return *(np.append(a[before], b) for a, b in zip(earlier[:4], later[:4])), later[4]


def _spaced(x: np.ndarray, most: int) -> np.ndarray:
    """Positions of at most so many of the ascending points, first and last among them, half evenly in x, half in its logarithm."""
    if len(x) <= most:
        return np.arange(len(x))
    places = [
        np.searchsorted(x, np.linspace(x[0], x[-1], most // 2)),
        np.searchsorted(x, np.geomspace(x[0], x[-1], most // 2)),
    ]
    return np.unique(np.clip(np.concatenate([*places, [0, len(x) - 1]]), 0, len(x) - 1))


def _plain(values: np.ndarray) -> list[float | None]:
    """For JSON: rounded to what can be seen, None for what is not known."""
    return [
        None if not math.isfinite(value) else float(f"{value:.{DIGITS + 1}g}")
        for value in np.asarray(values, dtype=float).tolist()
    ]
