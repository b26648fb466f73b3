"""What a run writes about itself while it trains: train.csv, validate.csv, losses of documents and by position, samples.

Rows are buffered and appended. A checkpoint notes the size of each file (`sizes`); a run that is continued cuts them back
to it (`cut_back`), so that its files end up as if it had never stopped.
"""

import csv
import io
import os
from pathlib import Path

import numpy as np

from lmplay.files import sync, written_beside

POSITION = ["plan_step", "step", "samples", "tokens", "bytes", "flops", "seconds"]


TRAIN = POSITION + ["loss", "accuracy", "bits_per_byte", "learning_rate", "gradient_norm", "tokens_per_second"]


VALIDATE = POSITION + ["loss", "accuracy", "bits_per_byte", "validation_tokens", "validation_documents"]


POSITIONS = ["plan_step", "step", "tokens", "way", "first_position", "last_position", "scored_tokens", "loss"]


EXTRA_PREFIX = "x_"


FILES = ("train.csv", "validate.csv", "validate_positions.csv", "samples.txt")


class Recorder:
    """Appends to the files of one run's folder. Which columns a CSV has is settled by its first row."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._columns: dict[str, list[str]] = {}
        self._pending: dict[str, list[list[str]]] = {name: [] for name in FILES if name.endswith(".csv")}

    def train(self, row: dict) -> None:
        self._add("train.csv", TRAIN, row)

    def validation(self, row: dict, document_losses: np.ndarray, documents: list[dict]) -> None:
        """A row of validate.csv, and the summed loss in nats of each document, in the order of `documents`."""
        self._add("validate.csv", VALIDATE, row)
        folder = self.folder / "validate_documents"
        folder.mkdir(exist_ok=True)
        names = folder / f"documents_{row['plan_step']}.csv"
        if not names.exists():
            with written_beside(names) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, ["dataset", "document", "tokens", "bytes", "scored_tokens"])
                writer.writeheader()
                writer.writerows(documents)
        content = io.BytesIO()  # written by numpy, a full disk is an error without a number
        np.save(content, document_losses)
        with written_beside(folder / f"{row['plan_step']}_{row['step']:08d}.npy") as beside:
            beside.write_bytes(content.getvalue())

    def positions(self, rows: list[dict]) -> None:
        """Rows of validate_positions.csv: the loss of one validation in each range of positions."""
        for row in rows:
            self._add("validate_positions.csv", POSITIONS, {name: row[name] for name in POSITIONS})

    def sample(self, text: str) -> None:
        with open(self.folder / "samples.txt", "a", encoding="utf-8", newline="\n") as file:
            file.write(text)

    def flush(self) -> None:
        """Hands what is pending to the system."""
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
        """Flushes to the disk; the sizes belong into the checkpoint that is written next."""
        self.flush()
        paths = [self.folder / name for name in FILES if (self.folder / name).exists()]
        for path in paths:
            sync(path)
        return {path.name: path.stat().st_size for path in paths}

    def cut_back(self, sizes: dict[str, int], step: int) -> None:
        """Undoes what was written after the checkpoint of `step`."""
        for name in FILES:
            path = self.folder / name
            if path.exists() and path.stat().st_size > sizes.get(name, 0):
                os.truncate(path, sizes.get(name, 0))
        for path in (self.folder / "validate_documents").glob("*.npy"):
            if int(path.stem.rsplit("_", 1)[1]) > step:
                path.unlink()

    def _add(self, name: str, columns: list[str], row: dict) -> None:
        if name not in self._columns:
            self._columns[name] = self._header(name) or columns + [key for key in row if key not in columns]
        self._pending[name].append([_cell(row.get(column)) for column in self._columns[name]])

    def _header(self, name: str) -> list[str] | None:
        path = self.folder / name
        if not path.exists():
            return None
        with open(path, newline="", encoding="utf-8") as file:
            return next(csv.reader(file), None)


def _cell(value) -> str:
    if value is None:
        return ""
    return f"{value:.8g}" if isinstance(value, float) else str(value)
