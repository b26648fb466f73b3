"""Record a run while it trains: train.csv, validate.csv, losses of documents and by position, samples.

Rows are buffered and appended. A checkpoint notes the size of each file (`sizes`). A run that is continued cuts its
files back to it (`cut_back`): they end up as if it had never stopped.
"""

import csv
import io
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from lmplay.checksums import of_file
from lmplay.files import make_folder, sync, written_beside
from lmplay.runs import names

WRITE_SECONDS = 3.0


class Recorder:
    """Appends to the files of one run's folder. The first row of a CSV settles which columns it has."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.checksums: dict[str, list[int]] = {}  # [size, checksum] of what is saved, by its path in the folder
        self._columns: dict[str, list[str]] = {}
        self._left_out = set(names.NEWER_COLUMNS)  # what was reported after the first row, and was said or need not be
        self._written = time.monotonic()
        self._pending: dict[str, list[list[str]]] = {name: [] for name in names.RECORDED if name.endswith(".csv")}

    def train(self, row: dict[str, Any]) -> None:
        """Add a row of train.csv; every WRITE_SECONDS it is written, so that curves can be drawn while training."""
        self._add(names.TRAIN_CSV, names.TRAIN_COLUMNS, row)
        if time.monotonic() - self._written >= WRITE_SECONDS:
            self.flush()

    def validation(self, row: dict[str, Any], document_losses: np.ndarray, documents: list[dict[str, Any]]) -> None:
        """Add a row of validate.csv; write the summed loss in nats of each document, in the order of `documents`."""
        self._add(names.VALIDATE_CSV, names.VALIDATE_COLUMNS, row)
        folder = self.folder / names.DOCUMENT_LOSSES
        make_folder(folder)
        table = folder / names.documents_name(row[names.PLAN_STEP])
        if not table.exists():
            with written_beside(table) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, names.DOCUMENT_COLUMNS)
                writer.writeheader()
                writer.writerows(documents)
        content = io.BytesIO()  # written by numpy, a full disk is an error without a number
        np.save(content, document_losses)
        with written_beside(folder / names.losses_name(row[names.PLAN_STEP], row[names.STEP])) as beside:
            beside.write_bytes(content.getvalue())

    def positions(self, rows: list[dict[str, Any]]) -> None:
        """Add rows of validate_positions.csv: the loss of one validation in each range of positions."""
        for row in rows:
            self._add(names.POSITIONS_CSV, names.POSITION_COLUMNS, {name: row[name] for name in names.POSITION_COLUMNS})

    def sample(self, text: str) -> None:
        """Add text to samples.txt."""
        with open(self.folder / names.SAMPLES, "a", encoding="utf-8", newline="\n") as file:
            file.write(text)

    def flush(self) -> None:
        """Hand what is pending to the system."""
        self._written = time.monotonic()
        for name, rows in self._pending.items():
            if rows:
                path = self.folder / name
                new = not path.exists() or path.stat().st_size == 0
                with open(path, "a", newline="", encoding="utf-8") as file:
                    writer = csv.writer(file, lineterminator="\n")
                    if new:
                        writer.writerow(self._columns[name])
                    writer.writerows(rows)
                rows.clear()

    def sizes(self) -> dict[str, int]:
        """Flush to the disk, and return the size of each file, for the checkpoint that is written next."""
        self.flush()
        paths = [self.folder / name for name in names.RECORDED if (self.folder / name).exists()]
        for path in (*paths, self.folder):
            sync(path)
        sizes = {path.name: path.stat().st_size for path in paths}
        self.checksums = checksums_of(self.folder, self.checksums, sizes)
        return sizes

    def cut_back(self, sizes: dict[str, int], step: int, checksums: dict[str, list[int]] | None = None) -> None:
        """Undo what was written after the checkpoint of `step`, when the files had these sizes and checksums."""
        self.checksums = dict(checksums or {})
        for name in names.RECORDED:
            path = self.folder / name
            if path.exists() and path.stat().st_size > sizes.get(name, 0):
                os.truncate(path, sizes.get(name, 0))
        for path in (self.folder / names.DOCUMENT_LOSSES).glob("*.npy"):
            if int(path.stem.rsplit("_", 1)[1]) > step:
                path.unlink()

    def _add(self, name: str, columns: list[str], row: dict[str, Any]) -> None:
        if name not in self._columns:
            self._columns[name] = self._header(name) or columns + [key for key in row if key not in columns]
        late = [key for key in row if key not in self._columns[name] and key not in self._left_out]
        if late:
            self._left_out.update(late)
            print(
                f"warning: {name} has no column {late[0]}{f' and {len(late) - 1} more' if late[1:] else ''}, since its "
                "first row had none: left out; report it from the first step on, as nan if there is no figure yet",
                file=sys.stderr,
            )
        self._pending[name].append([_cell(row.get(column)) for column in self._columns[name]])

    def _header(self, name: str) -> list[str] | None:
        path = self.folder / name
        if not path.exists():
            return None
        with open(path, newline="", encoding="utf-8-sig") as file:
            return next(csv.reader(file), None)


def checksums_of(
    folder: Path, known: dict[str, list[int]], sizes: dict[str, int] | None = None
) -> dict[str, list[int]]:
    """Return [size, checksum] of each file that a run has written, by its path in the folder, weights aside.

    known: those of before, which may have grown since if `sizes` names them. Of each file only what is new is read.
    """
    sums = dict(known)
    for name, size in (sizes or {}).items():
        start, before = known.get(name, (0, 0))
        sums[name] = [size, of_file(folder / name, size, start=start, before=before)]
    for part in (names.CODE, names.TOKENIZER, names.DOCUMENT_LOSSES):  # written once
        for path in sorted((folder / part).rglob("*")):
            name = path.relative_to(folder).as_posix()
            if name not in sums and path.is_file() and path.suffix not in (".tmp", ".pyc"):
                sums[name] = [path.stat().st_size, of_file(path)]
    return sums


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.8g}" if isinstance(value, float) else str(value)
