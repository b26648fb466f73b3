"""From folders of runs to pictures of all of them and a table: what lmp_plotstats does."""

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas

from lmplay.errors import UserError, did_you_mean
from lmplay.report import figure, final_figures
from lmplay.report.final_figures import final_table
from lmplay.report.groups import Group, Loaded, choose_baseline, curve_of, group_seeds, matching, same_tokenizer, unlike
from lmplay.report.groups import labels as labels_of
from lmplay.runs.folder import find_runs
from lmplay.runs.names import TABLES
from lmplay.runs.run import Run
from lmplay.runs.tables import read_header
from lmplay.stats.curves import Curve, difference, make_curve, mean_and_range, smooth, thin
from lmplay.text import printable

X_AXES = {  # the choice: column, label
    "tokens": ("tokens", "training tokens"),
    "samples": ("samples", "training samples (windows)"),
    "steps": ("step", "updates"),
    "seconds": ("seconds", "training time"),
    "flops": ("flops", "training FLOPs"),
    "bytes": ("bytes", "bytes of training text"),
}


Y_LABELS = {"loss": "loss (nats a token)", "accuracy": "accuracy (share of tokens)", "bits_per_byte": "bits per byte"}


SPLITS = {"train": "training", "validate": "validation"}


ENOUGH_VALIDATIONS = 4


FLAG = " †"


@dataclass(frozen=True)
class Choices:
    """What to draw and how. `smooth` is in percent, None for the default; `columns` are drawn besides loss and accuracy, each a name or a
    pattern such as "x_*".

    `each_run`: a line for each run, instead of one for all that differ in their seed only.
    """

    baseline: str | None = None
    x: str = "tokens"
    log: bool = True
    split: str | None = None
    smooth: float | None = None
    raw: bool = False
    plan_step: str | None = None
    bits_per_byte: bool = False
    columns: tuple[str, ...] = ()
    each_run: bool = False

    @property
    def column(self) -> str:
        return X_AXES[self.x][0]


@dataclass
class Overlay:
    """`groups[0]` is the baseline; `loss` ("loss" or "bits_per_byte") is what counts."""

    groups: list[Group]
    loss: str
    pictures: dict[str, figure.Picture] = field(default_factory=dict)  # by file name, without the suffix
    table: str = ""
    warnings: list[str] = field(default_factory=list)  # one line each
    folder: Path = Path()  # the one that holds the runs


def overlay(places: list[str | Path], out: Path, choices: Choices) -> Overlay:
    """Reads the runs at `places` (see `reading.find_runs`) and lays out all pictures and the table; writes nothing.

    Raises UserError if there is nothing to draw, or for an unknown baseline, plan step or column.
    """
    runs, warnings = find_runs(places, out)
    if choices.baseline and not matching(runs, choices.baseline):
        runs += _elsewhere(choices.baseline, out)
    loaded, choices = _load(runs, choices, warnings)
    runs = [one.run for one in loaded]
    lengths = [one.figures["tokens"] or 0 for one in loaded]
    chosen = choose_baseline(runs, choices.baseline, lengths)
    members = [[i] for i in range(len(runs))] if choices.each_run else group_seeds(runs, lengths)
    labels = labels_of([runs[group[0]] for group in members], list(map(len, members)))
    groups = sorted(
        (Group([loaded[i] for i in group], label) for group, label in zip(members, labels)),
        key=lambda group: (all(one is not loaded[chosen] for one in group.members), group.label),
    )
    alike = same_tokenizer(runs)
    layout = _Layout(groups, choices, alike, warnings)
    folder = runs[chosen].folder
    return Overlay(
        groups,
        layout.loss,
        dict(layout.pictures()),
        final_table(groups, layout.loss, "tokens" if alike else "bytes"),
        warnings,
        folder.parent if folder.name not in ("", "..") else folder.resolve().parent,
    )


def _elsewhere(baseline: str, out: Path) -> list[Run]:
    """The baseline as a run that is not among those to draw; none if it is no run either."""
    try:
        return find_runs([baseline], out)[0][:1]
    except UserError:
        return []


def _load(runs: list[Run], choices: Choices, warnings: list[str]) -> tuple[list[Loaded], Choices]:
    """The runs that have data, and the choices with each pattern of columns as the columns it stands for.

    What is left out, and why, goes to `warnings`.
    """
    files = [run.folder / name for run in runs for name in TABLES.values()] if choices.columns else []
    known = {name for file in files for name in read_header(file)}
    for pattern in choices.columns:
        if not fnmatch.filter(known, pattern):
            raise UserError(f"no run has a column {pattern!r}.{did_you_mean(pattern, known)}")
    choices = replace(
        choices,
        columns=tuple(
            dict.fromkeys(column for pattern in choices.columns for column in sorted(fnmatch.filter(known, pattern)))
        ),
    )
    needed = {choices.column, "tokens", "seconds", "loss", "accuracy", "bits_per_byte", *choices.columns}
    needed |= set() if same_tokenizer(runs) else {"bytes"}
    loaded, steps = [], set()
    for run in runs:
        try:
            tables = {split: run.table(split, needed) for split in SPLITS}
        except UserError as error:
            warnings.append(f"{error}: left out")
            continue
        warnings += [f"{run.name}: {note}" for note in run.notes]
        if not any(map(len, tables.values())):
            warnings.append(f"{run.name}: has no data yet, left out")
            continue
        if choices.plan_step is not None:
            for table in tables.values():
                steps |= set(map(str, table["plan_step"].unique())) if "plan_step" in table else set()
            tables = {split: _only(table, choices.plan_step) for split, table in tables.items()}
            if not any(map(len, tables.values())):
                warnings.append(f"{run.name}: has no plan step {choices.plan_step!r}, left out")
                continue
        loaded.append(Loaded(run, tables, final_figures.final_figures(run, tables["train"], tables["validate"])))
    if steps and choices.plan_step not in steps:
        raise UserError(f"no run has a plan step {choices.plan_step!r}.{did_you_mean(choices.plan_step, steps)}")
    if not loaded:
        raise UserError(f"no run to draw: {'; '.join(warnings)}")
    return loaded, choices


def _only(table: pandas.DataFrame, step: str) -> pandas.DataFrame:
    return table[table["plan_step"] == step] if "plan_step" in table else table.iloc[:0]


class _Layout:
    """Works out what all pictures of one call share. `groups[0]` is the baseline."""

    def __init__(self, groups: list[Group], choices: Choices, tokenizers_alike: bool, warnings: list[str]):
        self.choices, self.warnings, self.baseline = choices, warnings, groups[0]
        self.loss = "bits_per_byte" if choices.bits_per_byte or not tokenizers_alike else "loss"
        self.split = choices.split or self._best_split(groups)
        self.drawn = [group for group in groups if self._has_points(group)]
        if not self.drawn:
            raise UserError(
                f"no run has {SPLITS[self.split]} {_words(self.loss)} over {choices.x} yet: "
                "choose another --split or --x, or train on"
            )
        self.compared = len(self.drawn) > 1 and self.drawn[0] is self.baseline
        self.notes, self.flagged = self._unlike(tokenizers_alike)
        self.unit, self.x_label = self._x_unit()
        self.styles = figure.line_styles([group.run.spec for group in self.drawn], 0)
        curves = [mean_and_range(self._curves(group, self.loss), choices.log)[0] for group in self.drawn]
        spans = [(curve.x[0], curve.x[-1]) for curve in curves]
        self.end = max(end for _, end in spans)
        self.begin = figure.visible_from([end for _, end in spans], min(begin for begin, _ in spans), choices.log)
        self.steps = self._steps()

    def pictures(self) -> Iterator[tuple[str, figure.Picture]]:
        """(file name, picture) of loss, accuracy and the chosen columns, and of their differences to the baseline."""
        prefix, label = "log_" if self.choices.log else "", self.baseline.label
        better = {"loss": f"below 0: better than {label}", "accuracy": f"above 0: better than {label}"}
        columns = {"loss": self.loss, "accuracy": "accuracy", **{name: name for name in self.choices.columns}}
        for file, column in columns.items():
            self._choose_split(column)
            zero = {id(one): self._curve(one, column) for one in self.baseline.members}
            lines, differences = [], []
            for i, group in enumerate(self.drawn):  # one by one: all curves at once would take much memory
                lines.append(self._line(i, self._curves(group, column)))
                if self.compared and i:
                    pairs = [
                        (self._curve(one, column), [zero[id(other)] for other in others])
                        for one, others in group.beside(self.baseline)
                    ]
                    differences.append(
                        self._line(
                            i,
                            [
                                difference(curve, mean_and_range(others, self.choices.log)[0], self.choices.log)
                                for curve, others in pairs
                            ],
                        )
                    )
            what = f"{SPLITS[self.split].capitalize()} {_words(column)}"
            y_label = Y_LABELS.get(column, printable(column))
            yield from self._picture(
                prefix + file,
                f"{what}, {self._where()}",
                [],
                y_label,
                lines,
                floor=self._floor() if column == "loss" else None,
            )
            if self.compared:
                yield from self._picture(
                    f"{prefix}diff_{file}",
                    f"{what} minus that of {label}, {self._where()}",
                    [better.get(file)],
                    f"difference in {y_label}",
                    differences,
                    zero=f"{label} (baseline)",
                )

    def _choose_split(self, column: str) -> None:
        """A column that an experiment reports is drawn from where it is: often of training only. Decides how much is smoothed."""
        tables = [one.tables for group in self.drawn for one in group.members]
        if column in self.choices.columns and self.choices.split is None:
            self.split = next(
                (split for split in ("validate", "train") if any(column in found[split] for found in tables)),
                self.split,
            )
        default = 0.0 if self.split == "validate" else 5.0 if self.choices.log else 2.0
        self.percent = default if self.choices.smooth is None else self.choices.smooth
        self.half_width = self.percent / 100 * (1 if self.choices.log else self.end)

    def _picture(
        self,
        name: str,
        title: str,
        subtitle: list[str | None],
        y_label: str,
        lines: list[figure.Line | None],
        zero: str | None = None,
        floor: float | None = None,
    ) -> Iterator[tuple[str, figure.Picture]]:
        lines = [line for line in lines if line]
        if lines:
            begin = max(self.begin, min(line.curve.x[0] for line in lines)) if self.choices.log else self.begin
            subtitle = [
                *subtitle,
                "mean of n seeds, band from the lowest to the highest" if any(line.band for line in lines) else None,
                self._smoothing(),
            ]
            yield (
                name,
                figure.Picture(
                    title,
                    "  ·  ".join(filter(None, subtitle)),
                    self.x_label,
                    y_label,
                    lines,
                    self.choices.log,
                    begin,
                    zero,
                    self.steps,
                    self.notes,
                    floor,
                ),
            )
        else:
            self.warnings.append(f"{name} is not drawn: the runs have no such {SPLITS[self.split]} figures in common")

    def _floor(self) -> float | None:
        """The entropy of the data, where all drawn runs have one dataset and know it."""
        found = set()
        for group in self.drawn:
            datasets = group.run.get("data", "datasets")
            name = next(iter(datasets)) if isinstance(datasets, dict) and len(datasets) == 1 else ""
            found.add(group.run.number("data", "datasets", name, "entropy"))
        return found.pop() if len(found) == 1 else None

    def _line(self, i: int, curves: list[Curve]) -> figure.Line | None:
        """What is kept of the curves of a group: no more points than a picture shows."""
        curves = [curve for curve in curves if len(curve)]
        if not curves:
            return None
        log = self.choices.log
        label = self.drawn[i].label + FLAG * (i in self.flagged) + " (baseline)" * (i == 0 and self.compared)
        mean, *band = (
            self._thin(one) for one in mean_and_range([smooth(curve, self.half_width, log) for curve in curves], log)
        )
        if not len(mean):
            self.warnings.append(
                f"{self.drawn[i].label}: its runs have no part in common, not drawn (--each-run draws them)"
            )
            return None
        raw = None
        if self.choices.raw:
            raw = self._thin(
                make_curve(*(np.concatenate([getattr(curve, axis) for curve in curves]) for axis in "xy"), log=log)
            )
        return figure.Line(label, mean, raw, *self.styles[i], tuple(band) if len(curves) > 1 else None)

    def _thin(self, curve: Curve) -> Curve:
        return thin(curve, self.begin, self.end, figure.PIXEL_COLUMNS, self.choices.log)

    def _curves(self, group: Group, column: str) -> list[Curve]:
        """Of the runs that have one."""
        curves = [self._curve(one, column) for one in group.members]
        return [curve for curve in curves if len(curve)] or curves[:1]

    def _curve(self, one: Loaded, column: str) -> Curve:
        curve = curve_of(one.tables[self.split], self.choices.column, column, self.choices.log)
        curve.x = curve.x / self.unit
        return curve

    def _best_split(self, groups: list[Group]) -> str:
        """Validation, which is less noisy and the same for all, if every run has a few of them to make a curve."""
        few = [
            group.label
            for group in groups
            if any(len(one.tables["validate"]) < ENOUGH_VALIDATIONS for one in group.members)
        ]
        if few:
            named = few[0] if len(few) == 1 else f"{len(few)} runs"
            self.warnings.append(
                f"training figures are drawn, because {named} had fewer than {ENOUGH_VALIDATIONS} "
                "validations (--split validate draws them)"
            )
        return "train" if few else "validate"

    def _has_points(self, group: Group) -> bool:
        found = any(
            len(curve_of(one.tables[self.split], self.choices.column, self.loss, self.choices.log)) > 0
            for one in group.members
        )
        if not found:
            consequence = "no differences are drawn" if group is self.baseline else "not drawn"
            self.warnings.append(
                f"{group.label}: has no {SPLITS[self.split]} {_words(self.loss)} over {self.choices.x} yet, "
                f"{consequence}"
            )
        return found

    def _unlike(self, tokenizers_alike: bool) -> tuple[list[str], set[int]]:
        """Notes on what is not alike, and which of the drawn runs they are about."""
        reasons: dict[str, list[int]] = {}
        for i, group in enumerate(self.drawn):
            for reason in unlike(group.run, self.baseline.run):
                reasons.setdefault(reason, []).append(i)
        notes = []
        for reason, members in reasons.items():
            names = ", ".join(self.drawn[i].label for i in members[:4])
            names += f" and {len(members) - 4} more" * (len(members) > 4)
            other = f" than {self.baseline.label}" if reason.startswith(("other", "another")) else ""
            notes.append(f"{FLAG.strip()} {reason}{other}: {names}")
        if not tokenizers_alike:
            notes.append(
                "Tokenizers differ: losses are compared in bits per byte; accuracies of different tokenizers do not "
                "compare." + " Equal tokens are not equal text: see --x bytes." * (self.choices.x == "tokens")
            )
        devices = {printable(one.run.get("device", "name")) for group in self.drawn for one in group.members}
        if self.choices.x == "seconds" and len(devices) > 1:
            notes.append(f"Times are of different devices: {', '.join(sorted(devices))}")
        self.warnings += [note.removeprefix(FLAG.strip()).strip() for note in notes]
        return notes, {i for members in reasons.values() for i in members}

    def _x_unit(self) -> tuple[float, str]:
        label = X_AXES[self.choices.x][1]
        if self.choices.x != "seconds":
            return 1.0, label
        longest = max(one.figures["seconds"] or 0 for group in self.drawn for one in group.members)
        unit, name = (
            (3600.0, "hours") if longest >= 3 * 3600 else (60.0, "minutes") if longest >= 300 else (1.0, "seconds")
        )
        return unit, f"{label} ({name})"

    def _steps(self) -> list[tuple[float, str]]:
        """Where the plan's steps begin in the first run that has seen most of them, named if it is not so in all."""
        begins = [self._begins(group.members[0]) for group in self.drawn]
        chosen = max(begins, key=len)
        alike = all(abs(x - chosen.get(name, x)) <= 0.02 * x for other in begins for name, x in other.items())
        label = self.drawn[begins.index(chosen)].label
        return [(x, name if alike else f"{name} ({label})") for name, x in chosen.items()]

    def _begins(self, one: Loaded) -> dict[str, float]:
        table = next((table for table in one.tables.values() if {"plan_step", self.choices.column} <= set(table)), None)
        if table is None:
            return {}
        codes = table["plan_step"].cat.codes
        first = table[codes != codes.shift()]
        return {printable(name): x / self.unit for name, x in zip(first["plan_step"], first[self.choices.column])}

    def _smoothing(self) -> str:
        if not self.half_width:
            return "not smoothed"
        width = f"±{self.percent:g}% of the {self.choices.x if self.choices.log else 'longest run'}"
        return f"smoothed: mean over {width} around each point, at the ends a line fitted to twice that"

    def _where(self) -> str:
        """The plan, its data, and the experiment if there is only one."""
        plans = list(dict.fromkeys(printable(group.run.get("plan", "name") or "unnamed") for group in self.drawn))
        text = f"plan {plans[0]}" if len(plans) == 1 else f"{len(plans)} plans"
        datasets = self.baseline.run.get("data", "datasets")
        if len(plans) == 1 and isinstance(datasets, dict) and list(datasets) != plans:
            names = printable(", ".join(datasets))
            text += f" ({names})" if len(names) < 40 else f" ({len(datasets)} datasets)"
        if self.choices.plan_step is not None:
            text += f", step {printable(self.choices.plan_step)}"
        specs = {group.run.spec for group in self.drawn}
        return f"{specs.pop()} on {text}" if len(specs) == 1 and len(self.drawn) > 1 else text


def _words(column: str) -> str:
    return "bits per byte" if column == "bits_per_byte" else printable(column)


def write(found: Overlay, folder: Path, kind: str) -> list[Path]:
    """Writes all pictures to `folder`, which is made if it is missing, as "png", "svg" or "pdf"."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"no plots can be written to {folder} ({error.strerror}): name another folder with --to"
        ) from None
    paths = []
    for name, picture in found.pictures.items():
        paths.append(folder / f"{''.join(c if c.isalnum() or c in '_-.' else '_' for c in name)}.{kind}")
        figure.save(picture, paths[-1])
    return paths
