"""Read the CSV files of a run."""

import csv
import io
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lmplay.errors import UserError
from lmplay.files import check_plain
from lmplay.runs.names import DATASET_PREFIX, EXTRA_PREFIX, MIDWAY_PREFIX, PLAN_STEP, STEP
from lmplay.text import printable

if TYPE_CHECKING:
    import pandas

LONGEST_LINE = 2**20  # characters of a header
TEXT_COLUMNS = (PLAN_STEP,)
NO_NUMBER = ["", "NA", "N/A", "NaN", "nan", "NULL", "null", "None"]
SPARSE_COLUMNS = (
    EXTRA_PREFIX,
    DATASET_PREFIX,
    MIDWAY_PREFIX,
)  # may be empty: not reported at every step, or for a dataset of another phase, or midway


def read_header(path: Path) -> list[str]:
    """Return the names of a CSV file's columns, [] if there is no such file or no whole first line."""
    try:
        check_plain(path)
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            line = file.readline(LONGEST_LINE)
        return next(csv.reader([line]), []) if line.endswith("\n") else []
    except (OSError, csv.Error):
        return []


def read_table(path: Path, columns: Iterable[str] | None = None) -> tuple["pandas.DataFrame", list[str]]:
    """Read a CSV file that a run wrote: (a table as `Run.table` describes, what was odd in it, one line each).

    A last line that was cut off (the run was killed, or is writing just now) is left out. If a step was recorded twice,
    the later row counts. Raises UserError if the file can't be read.
    """
    import pandas

    header = read_header(path)
    asked = {PLAN_STEP, STEP, *(columns or ())}
    wanted = [name for name in header if columns is None or name.removeprefix(MIDWAY_PREFIX) in asked]
    if not wanted:
        return pandas.DataFrame(), []
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            cut_off = file.read(1) != b"\n"
            source: Path | io.BytesIO = path
            if cut_off:
                file.seek(0)
                data = file.read(size)
                source = io.BytesIO(data[: data.rfind(b"\n") + 1])
        frame, notes = parse(source, wanted, path.name)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from None
    except (ValueError, KeyError, csv.Error) as error:  # pandas raises many kinds of them
        raise UserError(f"{path} is damaged and can't be read ({printable(error)})") from None
    if cut_off:
        notes.append(f"{path.name}: the last line is cut off and left out")
    return in_order(frame, notes, path.name), notes


def parse(source: Path | io.BytesIO, wanted: list[str], name: str) -> tuple["pandas.DataFrame", list[str]]:
    """Return the wanted columns of a CSV file called `name`, and what was odd in them."""
    import pandas

    numbers = [column for column in wanted if column not in TEXT_COLUMNS]
    sparse = {column for column in numbers if column.startswith(SPARSE_COLUMNS)}
    kinds = {column: "float64" if column in numbers else "category" for column in wanted}
    empty = {column: NO_NUMBER for column in numbers}  # a phase may be called NA
    try:
        frame = pandas.read_csv(source, usecols=wanted, dtype=kinds, keep_default_na=False, na_values=empty)
        whole = not any(
            frame[column].abs().eq(math.inf).any() or (column not in sparse and frame[column].isna().any())
            for column in numbers
        )
    except (ValueError, pandas.errors.ParserError):
        whole = False
    if whole:
        return frame, []
    # Something is missing, odd or ragged: read it as text, which says what.
    if isinstance(source, io.BytesIO):
        source.seek(0)
    notes: list[str] = []
    ragged: list[list[str]] = []
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


def in_order(frame: "pandas.DataFrame", notes: list[str], name: str) -> "pandas.DataFrame":
    """Return the rows by ascending step, each step once; `notes` gets a line if one was recorded twice."""
    step = frame.get("step")
    if step is None or len(step) == 0 or (math.isfinite(step.iloc[0]) and (step.diff().iloc[1:] > 0).all()):
        return frame
    whole = frame.dropna(subset="step")
    ordered = whole.drop_duplicates("step", keep="last").sort_values("step", kind="stable")
    if len(ordered) < len(whole):
        notes.append(f"{name}: {len(whole) - len(ordered)} step(s) recorded twice, the later row counts")
    return ordered.reset_index(drop=True)
