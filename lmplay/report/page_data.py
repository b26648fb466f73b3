"""Turn the curves of a report into plain numbers: each group's mean and range, and its difference to the baseline."""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import pandas

from lmplay.errors import UserError
from lmplay.report.groups import SPLITS, same_tokenizer
from lmplay.report.measured_text import text_of
from lmplay.report.phase_curves import curve_of
from lmplay.runs.names import DATASET_PREFIX, TABLES
from lmplay.runs.run import Run
from lmplay.runs.tables import read_header
from lmplay.runs.validations import Validations, read_validations
from lmplay.stats.curves import Curve, difference, mean_and_range, smooth, together
from lmplay.stats.prior import Prior
from lmplay.stats.savings import AXES
from lmplay.stats.verdict import PairedLosses, Verdict, compare

X_COLUMNS = ("tokens", "step", "seconds", "flops")


METRICS = ("loss", "accuracy", "bits_per_byte", "gradient_norm")


SMOOTHED = 0.05  # of x to both sides of each point, in training curves


POINTS = 300  # of a curve


DIGITS = 6


@dataclass(frozen=True)
class Pair:
    """A run, and the baseline's runs that it is compared with: one, or all of them if they share no seed."""

    run: Run
    others: list[Run]


@dataclass(frozen=True)
class JudgeSettings:
    """How differences are judged (see `verdict.compare`). compares_times: whether there are any at equal seconds."""

    confidence: float = 0.95
    prior: Prior | None = None
    compares_times: bool = True


@dataclass(frozen=True)
class Judged:
    """The verdict on the validation loss at the end of an axis. low, high: its interval; covers: what that is over.

    verdict: in full, in nats per token.
    """

    x: float
    y: float
    low: float
    high: float
    covers: str
    verdict: Verdict

    def as_json(self) -> dict[str, object]:
        """Return the verdict for JSON."""
        x, y, low, high = _plain(np.array([self.x, self.y, self.low, self.high]))
        return {"x": x, "y": y, "low": low, "high": high, "covers": self.covers}


class Tables:
    """The tables and validations of runs, read once and kept until they are forgotten. read: (run, split, columns)."""

    def __init__(self, read: Callable[[Run, str, Iterable[str]], pandas.DataFrame] = Run.table) -> None:
        self._table = read
        self._smoothed: dict[tuple[str, str, str, str], Curve] = {}
        self._read: dict[tuple[str, str], pandas.DataFrame] = {}
        self._validations: dict[str, Validations | None] = {}

    def table(self, run: Run, split: str) -> pandas.DataFrame:
        """Return the table of one split ("train" or "validate") of a run."""
        key = str(run.folder), split
        if key not in self._read:
            self._read[key] = self._table(run, split, {*X_COLUMNS, *metrics_of([run])})
        return self._read[key]

    def curve(self, run: Run, split: str, x: str, y: str) -> Curve:
        """Return column `y` over column `x` of a run; smoothed in training."""
        if split != "train":
            return self.points(run, split, x, y)
        key = str(run.folder), split, x, y
        if key not in self._smoothed:
            self._smoothed[key] = smooth(self.points(run, split, x, y), SMOOTHED)
        return self._smoothed[key]

    def points(self, run: Run, split: str, x: str, y: str) -> Curve:
        """Return column `y` over column `x` of a run as it was measured."""
        return curve_of(self.table(run, split), x, y, log=True, text_of=text_of(run, split))

    def validations(self, run: Run) -> Validations | None:
        """Return a run's validations; None if they can't be read."""
        key = str(run.folder)
        if key not in self._validations:
            try:
                self._validations[key] = read_validations(run)
            except UserError:
                self._validations[key] = None
        return self._validations[key]

    def forget(self, runs: list[Run]) -> None:
        """Free the memory that these runs take."""
        for run in runs:
            self._validations.pop(str(run.folder), None)
            self._smoothed = {key: curve for key, curve in self._smoothed.items() if key[0] != str(run.folder)}
            for split in SPLITS:
                self._read.pop((str(run.folder), split), None)


def metrics_of(runs: list[Run]) -> list[str]:
    """Return the columns that the page can draw: METRICS, and losses on single datasets and in single directions."""
    headers = [read_header(run.folder / table) for run in runs for table in TABLES.values()]
    return list(dict.fromkeys([*METRICS, *(c for header in headers for c in header if c.startswith(DATASET_PREFIX))]))


def group_curves(runs: list[Run], tables: Tables) -> dict[str, dict]:
    """Return the curves of a group of runs, for JSON.

    {split: {"x": {axis: [...]}, "y": {metric: [mean]}, "runs": {metric: [a list for each run]}, "raw": ...}}, all at
    the same points; runs only if there are several. raw is as runs, single points without smoothing, in training.
    """
    found = {}
    for split in SPLITS:
        curves = {
            metric: [curve for run in runs if len(curve := tables.curve(run, split, "tokens", metric))]
            for metric in metrics_of(runs)
        }
        grid = next((mean_and_range(of)[0].x for of in curves.values() if of), np.array([]))
        if not len(grid):
            continue
        grid = grid[_spaced(grid, POINTS)]
        y, single, raw = {}, {}, {}
        for metric, of in curves.items():
            if len(of) and split == "train":
                points = [tables.points(run, split, "tokens", metric) for run in runs]
                raw[metric] = [_plain(_picked(one, grid)) for one in points if len(one)]
            values = np.array([np.interp(np.log(grid), np.log(curve.x), curve.y, np.nan, np.nan) for curve in of])
            if len(of):
                y[metric] = [_plain(values.mean(0))]
            if len(of) > 1:
                single[metric] = [_plain(row) for row in values]
        x = _axes([tables.table(run, split) for run in runs], grid)
        found[split] = {"x": {axis: _plain(values) for axis, values in x.items()}, "y": y, "runs": single, "raw": raw}
    return found


def _picked(curve: Curve, grid: np.ndarray) -> np.ndarray:
    """Return single points of a curve, those nearest below the grid's; NaN outside of it."""
    index = np.searchsorted(curve.x, grid * (1 + 1e-9), side="right") - 1
    return np.where((index >= 0) & (grid <= curve.x[-1] * (1 + 1e-9)), curve.y[np.maximum(index, 0)], np.nan)


def _axes(tables: list[pandas.DataFrame], tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Return what had been used of each axis after these tokens, means over the runs that know it."""
    found = {"tokens": tokens}
    for axis in X_COLUMNS[1:]:
        along = [
            np.interp(tokens, table["tokens"], table[axis])
            for table in tables
            if len(table) and {"tokens", axis} <= set(table)
        ]
        if along:
            found[axis] = np.mean(along, axis=0)
    return found


def differences(pairs: list[Pair], settings: JudgeSettings, tables: Tables) -> dict[str, dict]:
    """Return {split: {metric: {axis: {"x", "y", "verdict"}}}} for JSON.

    verdict: what the whole comparison says at the end, with the interval of lmp_compare's verdict; None without one.
    """
    runs = [run for pair in pairs for run in (pair.run, *pair.others)]
    judged = {axis: judge(pairs, axis, settings, tables) for axis in AXES}
    metrics = (
        metrics_of(runs) if _same_tokenizer(pairs) else ["bits_per_byte"]
    )  # which alone compares across tokenizers
    found: dict[str, dict] = {}
    for split in SPLITS:
        for metric in metrics:
            for axis in X_COLUMNS:
                if axis == "seconds" and not settings.compares_times:
                    continue
                curve = _over_seeds(pairs, split, metric, axis=axis, tables=tables)
                if curve is None:
                    continue
                verdict = None
                if split == "validate" and metric in ("loss", "bits_per_byte"):
                    verdict = _at_end(judged, pairs, metric, axis=axis, tables=tables)
                if verdict and abs(curve.x[-1] - verdict.x) <= 1e-3 * verdict.x:
                    curve.y[-1] = verdict.y  # of documents that are weighed as the verdict weighs them
                found.setdefault(split, {}).setdefault(metric, {})[axis] = {
                    "x": _plain(curve.x),
                    "y": _plain(curve.y),
                    "verdict": verdict and verdict.as_json(),
                }
    return found


def _same_tokenizer(pairs: list[Pair]) -> bool:
    return same_tokenizer([run for pair in pairs for run in (pair.run, *pair.others)])


def _over_seeds(pairs: list[Pair], split: str, metric: str, axis: str, tables: Tables) -> Curve | None:
    """Return the mean of the paired differences."""
    curves = []
    for pair in pairs:
        others = [curve for other in pair.others if len(curve := tables.curve(other, split, axis, metric))]
        curve = tables.curve(pair.run, split, axis, metric)
        if others and len(curve) and len(apart := difference(curve, mean_and_range(others)[0])):
            curves.append(apart)
    if not curves:
        return None
    kept, values = together(curves)
    return Curve(kept.x, values.mean(0), kept.starts).at(_spaced(kept.x, POINTS // 2)) if len(kept) else None


def judge(pairs: list[Pair], axis: str, settings: JudgeSettings, tables: Tables) -> Judged | None:
    """Return the verdict at the end of an axis; None if the runs were not validated on the same tokens."""
    if not pairs or any(len(pair.others) != 1 for pair in pairs) or not _same_tokenizer(pairs):
        return None
    candidate = [one for pair in pairs if (one := tables.validations(pair.run))]
    baseline = [one for pair in pairs if (one := tables.validations(pair.others[0]))]
    if len(candidate) < len(pairs) or len(baseline) < len(pairs):
        return None
    everyone, first = [*candidate, *baseline], candidate[0]
    if any(one.documents != first.documents or not np.allclose(one.tokens, first.tokens) for one in everyone):
        return None
    scored = ~np.any([np.isnan(one.trajectory.losses[-1]) for one in everyone], axis=0)  # all, unless one still trains
    candidate, baseline = ([_on(one, scored) for one in arm] for arm in (candidate, baseline))
    everyone, first = [*candidate, *baseline], candidate[0]
    begin = max(getattr(one.trajectory, axis)[0] for one in everyone)
    end = min(getattr(one.trajectory, axis)[-1] for one in everyone)
    if begin > end:
        return None
    try:
        ours, theirs = (np.stack([one.trajectory.at(axis, end) for one in arm]) for arm in (candidate, baseline))
        losses = PairedLosses(ours, theirs, first.tokens, tuple(range(len(pairs))))
        verdict = compare(losses, settings.prior, settings.confidence)
    except UserError:  # a loss is not finite
        return None
    return Judged(end, verdict.difference, low=verdict.low, high=verdict.high, covers=verdict.covers, verdict=verdict)


def _on(one: Validations, scored: np.ndarray) -> Validations:
    """Return validations on the documents that are scored, (D,) bool."""
    if scored.all():
        return one.completed
    trajectory = replace(one.trajectory, losses=one.trajectory.losses[:, scored])
    documents = tuple(itertools.compress(one.documents, scored))
    return Validations(documents, tokens=one.tokens[scored], trajectory=trajectory)


def _at_end(
    judged: dict[str, Judged | None], pairs: list[Pair], metric: str, axis: str, tables: Tables
) -> Judged | None:
    """Return the verdict at the end of an axis; None if there is none for this metric and axis."""
    found = judged["tokens" if axis == "step" else axis]
    if found is None or not math.isfinite(found.low):
        return None
    runs = [run for pair in pairs for run in (pair.run, *pair.others)]
    unit = _bits_per_nat(runs, tables) if metric == "bits_per_byte" else 1.0
    if unit is None or (axis == "step" and not _equal_steps_are_equal_tokens(runs, tables)):
        return None
    first = tables.validations(runs[0])
    if first and axis in ("tokens", "step"):  # judged at tokens of the data; the axis counts scored ones, or steps
        along = first.trajectory.tokens
        table = tables.table(runs[0], "validate").dropna(subset=["flops", "seconds", "loss"]).tail(len(along))
        found = replace(found, x=float(np.interp(found.x, along, table[axis])))
    return replace(found, y=found.y * unit, low=found.low * unit, high=found.high * unit)


def _bits_per_nat(runs: list[Run], tables: Tables) -> float | None:
    """Return bits per byte for a nat per token; None if it differs between runs of the same text in the same tokens."""
    last = [tables.table(run, "validate").iloc[-1] for run in runs]
    units = [row["bits_per_byte"] / row["loss"] for row in last]
    return units[0] if np.allclose(units, units[0], rtol=1e-5) else None


def _equal_steps_are_equal_tokens(runs: list[Run], tables: Tables) -> bool:
    per_step = [
        found.trajectory.tokens[-1] / tables.table(run, "validate").iloc[-1]["step"]
        for run in runs
        if (found := tables.validations(run))
    ]
    return np.allclose(per_step, per_step[0])


def _spaced(x: np.ndarray, most: int) -> np.ndarray:
    """Return indices of at most `most` ascending points, with first and last, half even in x, half in its logarithm."""
    if len(x) <= most:
        return np.arange(len(x))
    even = np.searchsorted(x, np.linspace(x[0], x[-1], most // 2))
    log = np.searchsorted(x, np.geomspace(x[0], x[-1], most // 2))
    return np.unique(np.clip(np.concatenate([even, log, [0, len(x) - 1]]), 0, len(x) - 1))


def _plain(values: np.ndarray) -> list[float | None]:
    """Return numbers for JSON: rounded to what can be seen, None for what is not known."""
    return [
        float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
        for value in np.asarray(values, dtype=float).tolist()
    ]
