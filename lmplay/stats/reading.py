"""Finds the folders that runs have left and reads what they hold: run.json, train.csv, validate.csv."""

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lmplay import code_hash, registry
from lmplay.errors import UserError, did_you_mean
from lmplay.registry import DEFAULT_EXPERIMENT

if TYPE_CHECKING:
    import pandas

FORMAT = 1
FILES = {"train": "train.csv", "validate": "validate.csv"}
TEXT_COLUMNS = ("plan_step",)
SPARSE_COLUMNS = ("x_", "loss_")  # reported by an experiment, or for a dataset of another plan step: may be empty


def printable(text: object) -> str:
    """`text` on one line without control characters: what a run says of itself goes to terminals and pictures."""
    return re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in str(text))).strip()


@dataclass
class Run:
    """A run's folder and its run.json. Tables are read on demand; what was odd in them is added to `notes`."""

    folder: Path
    info: dict
    notes: list[str] = field(default_factory=list)

    def get(self, *keys: str):
        """The value at this path of keys in run.json; None where it is missing."""
        value = self.info
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def number(self, *keys: str) -> float | None:
        """As `get`, but None for everything that is no finite number."""
        value = self.get(*keys)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return value if is_number and math.isfinite(value) else None

    @property
    def name(self) -> str:
        return printable(self.get("run") or self.folder.resolve().name)

    @property
    def experiment(self) -> str:
        return printable(self.get("experiment", "name"))

    @property
    def spec(self) -> str:
        """NAME:VARIANT, or NAME where run.json names no variant."""
        variant = self.get("experiment", "variant")
        return self.experiment + (f":{printable(variant)}" if variant else "")

    @cached_property
    def code_hash(self) -> str:
        """The hash of what the run's code does. Runs from before that hash have it computed from their copy of the code."""
        known = str(self.get("experiment", "code_hash"))
        name = self.get("experiment", "name")
        if self.get("experiment", "code_hash_version") == code_hash.VERSION or Path(name).name != name:
            return known
        entry = registry.Entry(name, self.folder / "code" / name)
        try:
            return entry.code_hash if entry.code_files else known
        except OSError:
            return known

    def table(self, split: str, columns: Iterable[str] | None = None) -> "pandas.DataFrame":
        """One row an update (`split` "train") or a validation ("validate"), by ascending step; a missing file gives none.

        `columns` limits what is read to those (where the file has them) and to what orders the rows; None reads all.
        Every column but plan_step is float64 with NaN for what is missing.
        """
        frame, notes = read_table(self.folder / FILES[split], columns)
        self.notes += [note for note in notes if note not in self.notes]
        return frame


def is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file()


def read_run(folder: Path) -> Run:
    """The run in `folder`; raises UserError for a folder that no version of lmplay known here has written."""
    path = folder / "run.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is not a run's folder (it has no run.json)") from None
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, no JSON
        raise UserError(f"{path} cannot be read ({printable(error)})") from None
    except RecursionError:
        raise UserError(f"{path} cannot be read (nested too deeply)") from None
    run = Run(folder, info if isinstance(info, dict) else {})
    version = run.number("format")
    if version is None or not isinstance(run.get("experiment", "name"), str):
        raise UserError(f"{path} is not lmplay's (it needs the keys format and experiment.name)")
    if version > FORMAT:
        raise UserError(f"{path} was written by a newer lmplay (format {version}, known is {FORMAT}): update lmplay")
    return run


def find_runs(places: Iterable[str | Path], out: Path) -> tuple[list[Run], list[str]]:
    """The runs at `places`: each a run's folder, a folder of runs, or the name of a run in `out`. No places: those in `out`.

    Returns (runs, skipped): each run once, in the order found, and one line for each folder that could not be read.
    Raises UserError for a place that does not exist, and where there is no run's folder at all.
    """
    places = list(places)
    folders = [folder for place in places for folder in _folders_at(place, out)] if places else _folders_in(out)
    runs, skipped, seen = [], [], set()
    for folder in folders:
        if folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        try:
            runs.append(read_run(folder))
        except UserError as error:
            skipped.append(str(error))
    if not folders:
        where = ", ".join(map(str, places)) or str(out)
        raise UserError(
            f"no runs in {where}: train one with 'lmp_trainer --exp {DEFAULT_EXPERIMENT}', "
            "or name the folder that holds runs"
        )
    return runs, skipped


def _folders_at(place: str | Path, out: Path) -> list[Path]:
    path, inside = Path(place), out / place
    for folder in (path, inside):
        if is_run(folder):
            return [folder]
    for folder in (path, inside):
        if folder.is_dir():
            return _folders_in(folder)
    names = [folder.name for folder in _folders_in(out) if is_run(folder)]
    near = did_you_mean(str(place), names)
    raise UserError(f"no run or folder {str(place)!r}, nor a run of that name in {out}.{near}")


def _folders_in(folder: Path) -> list[Path]:
    """All folders in `folder` that are not hidden, runs or not; sorted by name."""
    if not folder.is_dir():
        return []
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror})") from None


def read_header(path: Path) -> list[str]:
    """The names of the columns of a CSV file; [] where there is no such file or no whole first line."""
    try:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            line = file.readline()
    except OSError:
        return []
    return next(csv.reader([line]), []) if line.endswith("\n") else []


def read_table(path: Path, columns: Iterable[str] | None = None) -> tuple["pandas.DataFrame", list[str]]:
    """A CSV file that a run wrote -> (table as `Run.table` describes, what was odd in it, one line each).

    A last line that was cut off (the run was killed, or is writing just now) is left out. Where an update was recorded
    twice, the later row counts.
    """
    import pandas

    header = read_header(path)
    wanted = [name for name in header if columns is None or name in {"plan_step", "step", *columns}]
    if not wanted:
        return pandas.DataFrame(), []
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            cut_off = file.read(1) != b"\n"
            source = path
            if cut_off:
                file.seek(0)
                data = file.read(size)
                source = io.BytesIO(data[: data.rfind(b"\n") + 1])
        frame, notes = _parse(pandas, source, wanted, path.name)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    if cut_off:
        notes.append(f"{path.name}: the last line is cut off and left out")
    return _in_order(frame, notes, path.name), notes


def _parse(pandas, source, wanted: list[str], name: str) -> tuple["pandas.DataFrame", list[str]]:
    numbers = [column for column in wanted if column not in TEXT_COLUMNS]
    sparse = {column for column in numbers if column.startswith(SPARSE_COLUMNS)}
    kinds = {column: "float64" if column in numbers else "category" for column in wanted}
    try:
        frame = pandas.read_csv(source, usecols=wanted, dtype=kinds)
        whole = not any(
            frame[column].abs().eq(math.inf).any() or column not in sparse and frame[column].isna().any()
            for column in numbers
        )
    except (ValueError, pandas.errors.ParserError):
        whole = False
    if whole:
        return frame, []
    # Something is missing, odd or ragged: read it as text, which says what.
    if isinstance(source, io.BytesIO):
        source.seek(0)
    notes, ragged = [], []
    texts = pandas.read_csv(
        source,
        dtype=object,
        keep_default_na=False,
        encoding_errors="replace",
        engine="python",
        on_bad_lines=ragged.append,
    )
    if ragged:
        notes.append(f"{name}: {len(ragged)} row(s) with too many cells are left out")
    frame = pandas.DataFrame({column: texts[column].astype("category") for column in wanted if column in TEXT_COLUMNS})
    for column in numbers:
        text = texts[column].fillna("").str.strip()
        values = pandas.to_numeric(text, errors="coerce").astype("float64")
        values[~values.abs().lt(math.inf)] = math.nan
        odd = int((values.isna() & (text != "")).sum())
        if odd:
            notes.append(f"{name}: {odd} cell(s) of {printable(column)} that are no finite number are left out")
        frame[column] = values
    return frame[wanted], notes


def _in_order(frame: "pandas.DataFrame", notes: list[str], name: str) -> "pandas.DataFrame":
    step = frame.get("step")
    if step is None or len(step) == 0 or math.isfinite(step.iloc[0]) and (step.diff().iloc[1:] > 0).all():
        return frame
    whole = frame.dropna(subset="step")
    ordered = whole.drop_duplicates("step", keep="last").sort_values("step", kind="stable")
    if len(ordered) < len(whole):
        notes.append(f"{name}: {len(whole) - len(ordered)} step(s) recorded twice, the later row counts")
    return ordered.reset_index(drop=True)
