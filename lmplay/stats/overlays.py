"""From folders of runs to pictures of all of them and a table: what lmp_plotstats does."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import pandas

from lmplay.errors import UserError, did_you_mean
from lmplay.stats import comparing, plotting
from lmplay.stats.curves import Curve, difference, smooth, thin
from lmplay.stats.reading import Run, find_runs, printable, read_header
from lmplay.stats.table import aligned, count, fixed

X_LABELS = {"tokens": "training tokens", "samples": "training samples (windows)", "steps": "updates", "seconds": "training time",
            "flops": "training FLOPs", "bytes": "bytes of training text"}
SPLIT_NAMES = {"train": "training", "validate": "validation"}
ENOUGH_VALIDATIONS = 4
MARK = " †"


@dataclass(frozen=True)
class Choices:
    """What to draw and how; `smooth` is a percentage, None for the default; `columns` are drawn besides loss and accuracy."""

    baseline: str | None = None
    x: str = "tokens"
    log: bool = True
    split: str | None = None
    smooth: float | None = None
    raw: bool = False
    plan_step: str | None = None
    bits_per_byte: bool = False
    columns: tuple[str, ...] = ()


@dataclass
class Loaded:
    """A run with its tables and its label."""

    run: Run
    tables: dict[str, pandas.DataFrame]
    label: str = ""
    figures: dict[str, float | None] = field(default_factory=dict)


@dataclass
class Overlay:
    pictures: dict[str, plotting.Picture]     # by file name, without the suffix
    table: str
    warnings: list[str]
    folder: Path                              # the one that holds the runs


def overlay(places: list[str], out: Path, choices: Choices) -> Overlay:
    """Reads the runs at `places` (see `reading.find_runs`) and lays out all pictures and the table; writes nothing.

    Raises UserError if there is nothing to draw, or for an unknown baseline, plan step or column.
    """
    runs, warnings = find_runs(places, out)
    if choices.baseline and not comparing.matching(runs, choices.baseline):
        runs += _elsewhere(choices.baseline, out)
    loaded = _load(runs, choices, warnings)
    if not loaded:
        raise UserError("no run to draw: " + ("; ".join(warnings) or "none has data yet"))
    for one, label in zip(loaded, comparing.labels([one.run for one in loaded])):
        one.label = label
    baseline = comparing.choose_baseline([one.run for one in loaded], choices.baseline, [one.figures["tokens"] or 0 for one in loaded])
    loaded.insert(0, loaded.pop(baseline))
    loaded[1:] = sorted(loaded[1:], key=lambda one: one.label)
    return _Layout(loaded, choices, warnings).result()


def _elsewhere(baseline: str, out: Path) -> list[Run]:
    """The baseline as a run that is not among those to draw; none if it is no run either."""
    try:
        found, _ = find_runs([baseline], out)
    except UserError:
        return []
    return found[:1]


def _load(runs: list[Run], choices: Choices, warnings: list[str]) -> list[Loaded]:
    x = "step" if choices.x == "steps" else choices.x
    needed = {x, "tokens", "seconds", "loss", "accuracy", "bits_per_byte", *(("bytes",) if not comparing.same_tokenizer(runs) else ()),
              *choices.columns}
    known = {column for run in runs for name in ("train.csv", "validate.csv") for column in read_header(run.folder / name)} \
        if choices.columns else set()
    for column in choices.columns:
        if column not in known:
            raise UserError(f"no run has a column {column!r}.{did_you_mean(column, known)}")
    loaded, steps = [], {}
    for run in runs:
        try:
            tables = {split: run.table(split, needed) for split in SPLIT_NAMES}
        except UserError as error:
            warnings.append(f"{error}: left out")
            continue
        warnings += [f"{run.name}: {note}" for note in run.notes]
        if not any(len(table) for table in tables.values()):
            warnings.append(f"{run.name}: has no data yet, left out")
            continue
        for table in tables.values():
            steps.update(dict.fromkeys(_steps_of(table)))
        if choices.plan_step is not None:
            tables = {split: _only(table, choices.plan_step) for split, table in tables.items()}
            if not any(len(table) for table in tables.values()):
                warnings.append(f"{run.name}: has no plan step {choices.plan_step!r}, left out")
                continue
        loaded.append(Loaded(run, tables, figures=comparing.final_figures(run, tables["train"], tables["validate"])))
    if choices.plan_step is not None and choices.plan_step not in steps and steps:
        raise UserError(f"no run has a plan step {choices.plan_step!r}.{did_you_mean(choices.plan_step, steps)}")
    return loaded


def _steps_of(table: pandas.DataFrame) -> list[str]:
    return [str(name) for name in table["plan_step"].unique()] if "plan_step" in table else []


def _only(table: pandas.DataFrame, step: str) -> pandas.DataFrame:
    return table[table["plan_step"] == step] if "plan_step" in table else table.iloc[:0]


class _Layout:
    """Works out what all pictures of one call share. `loaded[0]` is the baseline."""

    def __init__(self, loaded: list[Loaded], choices: Choices, warnings: list[str]):
        self.choices, self.warnings = choices, warnings
        self.baseline = loaded[0]
        self.tokenizers_alike = comparing.same_tokenizer(one.run for one in loaded)
        self.loss = "bits_per_byte" if choices.bits_per_byte or not self.tokenizers_alike else "loss"
        self.x = "step" if choices.x == "steps" else choices.x
        self.split, why = self._choose_split(loaded)
        self.loaded = [one for one in loaded if self._drawable(one)]
        if not self.loaded:
            raise UserError(f"no run has {SPLIT_NAMES[self.split]} figures over {choices.x} yet: choose another --split or --x, or train on")
        self.all_loaded = loaded
        self.compared = len(self.loaded) > 1 and self.loaded[0] is self.baseline
        if len(self.loaded) > 1 and not self.compared:
            warnings.append(f"{self.baseline.label}: the baseline has no {SPLIT_NAMES[self.split]} figures over {choices.x}, no differences drawn")
        self.notes, self.flagged = self._unlike()
        percent = choices.smooth if choices.smooth is not None else 0.0 if self.split == "validate" else 5.0 if choices.log else 2.0
        self.percent = percent
        self.unit, self.x_label = self._x_unit()
        self.styles = plotting.line_styles([one.run.spec for one in self.loaded], 0)
        spans = [(curve.x[0], curve.x[-1]) for curve in (self._curve(one, self.loss) for one in self.loaded)]
        self.end = max(end for _, end in spans)
        self.begin = plotting.visible_from([end for _, end in spans], min(begin for begin, _ in spans), choices.log)
        self.half_width = percent / 100 * (1 if choices.log else self.end)
        self.choice_of_split = why

    def _choose_split(self, loaded: list[Loaded]) -> tuple[str, str]:
        if self.choices.split:
            return self.choices.split, ""
        few = [one.label for one in loaded if len(one.tables["validate"]) < ENOUGH_VALIDATIONS]
        if not few:
            return "validate", ""
        named = few[0] if len(few) == 1 else f"{len(few)} runs"
        return "train", f"training figures are drawn, because {named} had fewer than {ENOUGH_VALIDATIONS} validations (--split validate draws them)"

    def _drawable(self, one: Loaded) -> bool:
        if len(comparing.curve_of(one.tables[self.split], self.x, self.loss, self.choices.log)):
            return True
        self.warnings.append(f"{one.label}: has no {SPLIT_NAMES[self.split]} {_words(self.loss)} over {self.choices.x} yet, not drawn")
        return False

    def _unlike(self) -> tuple[list[str], set[int]]:
        """Notes on what is not alike, and which of the drawn runs they are about."""
        reasons: dict[str, list[int]] = {}
        for i, one in enumerate(self.loaded):
            for reason in comparing.unlike(one.run, self.baseline.run):
                reasons.setdefault(reason, []).append(i)
        notes = []
        for reason, members in reasons.items():
            names = ", ".join(self.loaded[i].label for i in members[:4]) + (f" and {len(members) - 4} more" if len(members) > 4 else "")
            notes.append(f"†  {reason} than {self.baseline.label}: {names}" if reason.startswith(("other", "another"))
                         else f"†  {reason}: {names}")
        if not self.tokenizers_alike:
            notes.append("Tokenizers differ: losses are compared in bits per byte; accuracies of different tokenizers do not compare."
                         + (" Equal tokens are not equal text: see --x bytes." if self.choices.x == "tokens" else ""))
        devices = {str(one.run.get("device", "name")) for one in self.loaded}
        if self.choices.x == "seconds" and len(devices) > 1:
            notes.append(f"Times are of different devices: {', '.join(sorted(map(printable, devices)))}")
        self.warnings += [note.replace("†  ", "") for note in notes]
        return notes, {i for members in reasons.values() for i in members}

    def _x_unit(self) -> tuple[float, str]:
        label = X_LABELS[self.choices.x]
        if self.choices.x != "seconds":
            return 1.0, label
        longest = max(one.figures["seconds"] or 0 for one in self.loaded)
        unit, name = (1.0, "seconds") if longest < 300 else (60.0, "minutes") if longest < 3 * 3600 else (3600.0, "hours")
        return unit, f"{label} ({name})"

    def _curve(self, one: Loaded, column: str) -> Curve:
        curve = comparing.curve_of(one.tables[self.split], self.x, column, self.choices.log)
        curve.x = curve.x / self.unit
        return curve

    def _line(self, i: int, curve: Curve) -> plotting.Line | None:
        """What is kept of a curve: no more points than a picture shows."""
        if not len(curve):
            return None
        label = self.loaded[i].label + (MARK if i in self.flagged else "")
        if i == 0 and self.compared:
            label += " (baseline)"
        shown = [thin(c, self.begin, self.end, plotting.PIXEL_COLUMNS, self.choices.log) for c in (
            smooth(curve, self.half_width, self.choices.log), *((curve,) if self.choices.raw else ()))]
        return plotting.Line(label, shown[0], shown[1] if self.choices.raw else None, *self.styles[i])

    def _steps(self) -> list[tuple[float, str]]:
        """Where the plan's steps begin in the first run that has seen most of them, named if it is not so in all."""
        begins = [dict(self._begins(one)) for one in self.loaded]
        chosen = max(begins, key=len)
        alike = all(abs(x - chosen.get(name, x)) <= 0.02 * x for other in begins for name, x in other.items())
        label = self.loaded[begins.index(chosen)].label
        return [(x, name if alike else f"{name} ({label})") for name, x in chosen.items()]

    def _begins(self, one: Loaded) -> list[tuple[str, float]]:
        table = next((table for table in one.tables.values() if "plan_step" in table and self.x in table), None)
        if table is None:
            return []
        codes = table["plan_step"].cat.codes
        first = table[codes != codes.shift()]
        return [(printable(name), x / self.unit) for name, x in zip(first["plan_step"], first[self.x])]

    def _statement(self) -> str:
        if not self.half_width:
            return "not smoothed"
        width = f"{self.percent:g}% of the" if self.choices.log else count(self.half_width, 2)
        unit = self.x_label.rsplit("(")[-1].rstrip(")") if self.choices.x == "seconds" and not self.choices.log else self.choices.x
        return f"smoothed: mean over ±{width} {unit} around each point, at the ends a line fitted to twice that"

    def _picture(self, title: str, subtitle: str, y_label: str, lines: list[plotting.Line | None], zero: str | None) -> plotting.Picture | None:
        lines = [line for line in lines if line]
        if not lines:
            return None
        return plotting.Picture(title, "  ·  ".join(part for part in (subtitle, self._statement()) if part), self.x_label, y_label, lines,
                                self.choices.log, self.begin, zero, self._steps(), self.notes)

    def pictures(self) -> dict[str, plotting.Picture]:
        found = {}
        prefix = "log_" if self.choices.log else ""
        baseline = self.baseline.label
        for file, column, better in [("loss", self.loss, "below"), ("accuracy", "accuracy", "above"),
                                     *((column, column, None) for column in self.choices.columns)]:
            where = self._where()
            what = _words(column) if column not in ("loss", "accuracy") else f"{SPLIT_NAMES[self.split]} {column}"
            what = f"{SPLIT_NAMES[self.split]} {what}" if column == "bits_per_byte" else what
            zero = self._curve(self.baseline, column)
            plain, apart = [], []
            for i, one in enumerate(self.loaded):
                curve = self._curve(one, column)
                plain.append(self._line(i, curve))
                if self.compared and i:
                    apart.append(self._line(i, difference(curve, zero, self.choices.log)))
            found[prefix + file] = self._picture(f"{_capital(what)}, {where}", "", _axis(column), plain, None)
            if self.compared:
                sign = f"{better} 0: better than {baseline}" if better else ""
                found[f"{prefix}diff_{file}"] = self._picture(f"{_capital(what)} minus that of {baseline}, {where}", sign,
                                                              f"difference in {_axis(column)}", apart, f"{baseline} (baseline)")
            for name in (prefix + file, f"{prefix}diff_{file}"):
                if name in found and found[name] is None:
                    del found[name]
                    self.warnings.append(f"nothing to draw for {name}: the runs have no {SPLIT_NAMES[self.split]} {column} in common")
        return found

    def _where(self) -> str:
        plans = list(dict.fromkeys(printable(one.run.get("plan", "name") or "unnamed") for one in self.loaded))
        text = f"plan {plans[0]}" if len(plans) == 1 else f"{len(plans)} plans"
        datasets = self.baseline.run.get("data", "datasets")
        if len(plans) == 1 and isinstance(datasets, dict) and list(datasets) != plans:
            names = printable(", ".join(datasets))
            text += f" ({names})" if len(names) < 40 else f" ({len(datasets)} datasets)"
        specs = {one.run.spec for one in self.loaded}
        text += f", step {printable(self.choices.plan_step)}" if self.choices.plan_step is not None else ""
        return f"{specs.pop()} on {text}" if len(specs) == 1 and len(self.loaded) > 1 else text

    def table(self) -> str:
        """Final figures of all runs that were read, drawn or not; best first."""
        split = "validate" if all(one.figures["validate_loss"] is not None for one in self.all_loaded) else "train"
        x = "tokens" if self.tokenizers_alike else "bytes"
        loss = self.loss
        name = SPLIT_NAMES[split]
        header = ["run", "parameters", "tokens", "train loss", "val. loss", "accuracy", "bits/byte", "difference", "tokens/s", "seconds", "status"]
        rows = []
        for one in sorted(self.all_loaded, key=lambda one: _or_last(one.figures[f"{split}_{loss}"])):
            f = one.figures
            apart = None if one is self.baseline else comparing.difference_at_end(
                one.tables[split], self.baseline.tables[split], x, loss, noisy=split == "train")
            rows.append([one.label, count(f["parameters"]), count(f["tokens"]), fixed(4)(f["train_loss"]), fixed(4)(f["validate_loss"]),
                         fixed(4)(f[f"{split}_accuracy"]), fixed(4)(f[f"{split}_bits_per_byte"]),
                         "baseline" if one is self.baseline else fixed(4, signed=True)(apart), fixed(0)(f["tokens_per_second"]),
                         fixed(0 if (f["seconds"] or 0) >= 100 else 1)(f["seconds"]), printable(one.run.get("status") or "-")])
        if len(rows) == 1:
            header, rows = ([cell for i, cell in enumerate(line) if header[i] != "difference"] for line in (header, rows[0]))
            rows = [rows]
        lines = [aligned(header, rows)]
        if len(self.all_loaded) > 1:
            lines.append(f"difference: {name} {_words(loss)} minus {self.baseline.label}'s at equal {x}, below 0 is better")
        lines.append(f"accuracy and bits/byte: {name}; train loss: mean of the last 2% of the updates")
        return "\n".join(lines)

    def result(self) -> Overlay:
        pictures = self.pictures()
        if self.choice_of_split:
            self.warnings.append(self.choice_of_split)
        folder = self.baseline.run.folder
        return Overlay(pictures, self.table(), self.warnings, folder.parent if folder.name not in ("", "..") else folder.resolve().parent)


def _or_last(value: float | None) -> float:
    return float("inf") if value is None else value


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _words(column: str) -> str:
    return "bits per byte" if column == "bits_per_byte" else column


def _axis(column: str) -> str:
    return {"loss": "loss (nats a token)", "accuracy": "accuracy (share of tokens)", "bits_per_byte": "bits per byte"}.get(column, printable(column))


def write(found: Overlay, folder: Path, kind: str) -> list[Path]:
    """Writes all pictures to `folder`, which is made if it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--to {folder} is no folder") from None
    paths = []
    for name, picture in found.pictures.items():
        path = folder / f"{''.join(c if c.isalnum() or c in '_-.' else '_' for c in name)}.{kind}"
        plotting.save(picture, path)
        paths.append(path)
        print(f"wrote {path}", file=sys.stdout)
    return paths
