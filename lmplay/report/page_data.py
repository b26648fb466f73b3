"""Turn the curves of a report into plain numbers: each group's mean and range, and its difference to the baseline."""

import math
from dataclasses import dataclass

import numpy as np
import pandas

from lmplay.errors import UserError
from lmplay.report.groups import SPLITS, curve_of, same_tokenizer
from lmplay.report.measured_text import text_of
from lmplay.runs.run import Run
from lmplay.runs.validations import Validations, read_validations
from lmplay.stats.curves import Curve, difference, mean_and_range, smooth, together
from lmplay.stats.prior import Prior
from lmplay.stats.savings import AXES
from lmplay.stats.verdict import PairedLosses, Verdict, compare

X_COLUMNS = ("tokens", "step", "seconds", "flops")


METRICS = ("loss", "accuracy", "bits_per_byte")


SMOOTHED = 0.05  # of x to both sides of each point, in training curves


POINTS = 300  # of a curve


JUDGED = 40  # points of a difference that is judged document by document


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
class Difference:
    """A difference to the baseline: x, y, low, high (points,). covers: what the interval is over; "" without one."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    covers: str

    def as_json(self) -> dict[str, object]:
        """Return the difference for JSON."""
        arrays = {"x": self.x, "y": self.y, "low": self.low, "high": self.high}
        return {**{name: _plain(values) for name, values in arrays.items()}, "covers": self.covers}


@dataclass(frozen=True)
class _Judged:
    """Verdicts on the validation loss, at amounts of an axis, ascending."""

    amounts: np.ndarray
    verdicts: list[Verdict]


class Tables:
    """The tables and validations of runs, read once and kept until they are forgotten."""

    def __init__(self) -> None:
        self._read: dict[tuple[str, str], pandas.DataFrame] = {}
        self._validations: dict[str, Validations | None] = {}

    def table(self, run: Run, split: str) -> pandas.DataFrame:
        """Return the table of one split ("train" or "validate") of a run."""
        key = str(run.folder), split
        if key not in self._read:
            self._read[key] = run.table(split, {*X_COLUMNS, *METRICS})
        return self._read[key]

    def curve(self, run: Run, split: str, x: str, y: str) -> Curve:
        """Return column `y` over column `x` of a run; smoothed in training."""
        curve = curve_of(self.table(run, split), x, y, log=True, text_of=text_of(run, split))
        return smooth(curve, SMOOTHED) if split == "train" else curve

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
            for split in SPLITS:
                self._read.pop((str(run.folder), split), None)


def group_curves(runs: list[Run], tables: Tables) -> dict[str, dict]:
    """Return the curves of a group of runs, for JSON.

    {split: {"x": {axis: [...]}, "y": {metric: [mean, lowest, highest]}, "runs": {metric: [a list for each run]}}},
    all of them at the same points; lowest, highest and runs only if there are several runs.
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
        y, single = {}, {}
        for metric, of in curves.items():
            values = np.array([np.interp(np.log(grid), np.log(curve.x), curve.y, np.nan, np.nan) for curve in of])
            if len(of):
                y[metric] = [_plain(values.mean(0))]
            if len(of) > 1:
                y[metric] += [_plain(values.min(0)), _plain(values.max(0))]
                single[metric] = [_plain(row) for row in values]
        x = _axes([tables.table(run, split) for run in runs], grid)
        found[split] = {"x": {axis: _plain(values) for axis, values in x.items()}, "y": y, "runs": single}
    return found


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
    """Return {split: {metric: {axis: a Difference as JSON}}}."""
    judged = {axis: _judge(pairs, axis, settings, tables) for axis in AXES}
    metrics = METRICS if _same_tokenizer(pairs) else ("bits_per_byte",)  # which alone compares across tokenizers
    found: dict[str, dict] = {}
    for split in SPLITS:
        for metric in metrics:
            for axis in X_COLUMNS:
                if axis == "seconds" and not settings.compares_times:
                    continue
                one = _over_seeds(pairs, split, metric, axis=axis, settings=settings, tables=tables)
                if split == "validate" and metric != "accuracy":
                    one = _joined(one, _over_documents(judged, pairs, metric, axis=axis, tables=tables))
                if one is not None:
                    found.setdefault(split, {}).setdefault(metric, {})[axis] = one.as_json()
    return found


def _same_tokenizer(pairs: list[Pair]) -> bool:
    return same_tokenizer([run for pair in pairs for run in (pair.run, *pair.others)])


def _over_seeds(
    pairs: list[Pair], split: str, metric: str, axis: str, settings: JudgeSettings, tables: Tables
) -> Difference | None:
    """Return the mean of the paired differences with Student's interval of it."""
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
    x, values, n = kept.x[index], values[:, index], len(curves)
    mean = values.mean(0)
    if n < 2 or any(len(pair.others) != 1 for pair in pairs):
        unknown = np.full(len(index), np.nan)
        return Difference(x, mean, low=unknown, high=unknown, covers="")
    from scipy.special import stdtrit

    half = -stdtrit(n - 1, (1 - settings.confidence) / 2) * values.std(0, ddof=1) / math.sqrt(n)
    return Difference(x, mean, low=mean - half, high=mean + half, covers="seeds")


def _judge(pairs: list[Pair], axis: str, settings: JudgeSettings, tables: Tables) -> _Judged | None:
    """Return verdicts along an axis; None if the runs were not validated on the same tokens."""
    if not pairs or any(len(pair.others) != 1 for pair in pairs) or not _same_tokenizer(pairs):
        return None
    candidate = [one for pair in pairs if (one := tables.validations(pair.run))]
    baseline = [one for pair in pairs if (one := tables.validations(pair.others[0]))]
    if len(candidate) < len(pairs) or len(baseline) < len(pairs):
        return None
    everyone, first = [*candidate, *baseline], candidate[0]
    if any(one.documents != first.documents or not np.allclose(one.tokens, first.tokens) for one in everyone):
        return None
    begin = max(getattr(one.trajectory, axis)[0] for one in everyone)
    end = min(getattr(one.trajectory, axis)[-1] for one in everyone)
    if begin > end:
        return None
    along = [
        np.interp(first.trajectory.tokens, one.trajectory.tokens, getattr(one.trajectory, axis)) for one in candidate
    ]
    amounts = np.mean(along, axis=0)
    amounts = np.unique(np.append(amounts[(amounts >= begin) & (amounts < end)], end))
    amounts = amounts[_spaced(amounts, JUDGED)]
    verdicts = []
    try:
        for x in amounts:
            ours, theirs = (np.stack([one.trajectory.at(axis, x) for one in arm]) for arm in (candidate, baseline))
            losses = PairedLosses(ours, theirs, first.tokens, tuple(range(len(pairs))))
            verdicts.append(compare(losses, settings.prior, settings.confidence))
    except UserError:  # a loss is not finite
        return None
    return _Judged(amounts, verdicts)


def _over_documents(
    judged: dict[str, _Judged | None], pairs: list[Pair], metric: str, axis: str, tables: Tables
) -> Difference | None:
    """Return the difference as judged document by document; None if that says nothing about this metric and axis."""
    found = judged["tokens" if axis == "step" else axis]
    if found is None:
        return None
    runs = [run for pair in pairs for run in (pair.run, *pair.others)]
    unit = _bits_per_nat(runs, tables) if metric == "bits_per_byte" else 1.0
    if unit is None or (axis == "step" and not _equal_steps_are_equal_tokens(runs, tables)):
        return None
    amounts, first = found.amounts, tables.validations(runs[0])
    if first and axis in ("tokens", "step"):  # judged at tokens of the data; the axis counts scored ones, or steps
        along = first.trajectory.tokens
        table = tables.table(runs[0], "validate").dropna(subset=["flops", "seconds", "loss"]).tail(len(along))
        amounts = np.interp(amounts, along, table[axis])
    y, low, high = (
        np.array([getattr(verdict, name) for verdict in found.verdicts]) * unit
        for name in ("difference", "low", "high")
    )
    return Difference(amounts, y, low=low, high=high, covers=found.verdicts[-1].covers)


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


def _joined(earlier: Difference | None, later: Difference | None) -> Difference | None:
    """Return `later`, preceded by `earlier` (earlier phases of a plan are not judged by document)."""
    if earlier is None or later is None:
        return later or earlier
    before = earlier.x < later.x[0] * (1 - 1e-9)
    return Difference(
        x=np.append(earlier.x[before], later.x),
        y=np.append(earlier.y[before], later.y),
        low=np.append(earlier.low[before], later.low),
        high=np.append(earlier.high[before], later.high),
        covers=later.covers,
    )


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
