"""What writes the files of a run, and stand-ins for a rank that writes nothing."""

from pathlib import Path
from typing import Any

import numpy as np

from lmplay.runs.recorder import Recorder
from lmplay.runs.run import Run
from lmplay.train.progress import Progress


class NoRecorder(Recorder):
    """Records nothing."""

    def train(self, row: dict[str, Any]) -> None:
        """Leave the row."""

    def validation(self, row: dict[str, Any], document_losses: np.ndarray, documents: list[dict[str, Any]]) -> None:
        """Leave the row."""

    def positions(self, rows: list[dict[str, Any]]) -> None:
        """Leave the rows."""

    def sample(self, text: str) -> None:
        """Leave the text."""

    def flush(self) -> None:
        """Have nothing pending."""

    def sizes(self) -> dict[str, int]:
        """Return nothing: the checkpoint is rank 0's."""
        return {}

    def cut_back(self, sizes: dict[str, int], step: int, checksums: dict[str, list[int]] | None = None) -> None:
        """Leave the files to rank 0."""


class UnwrittenRun(Run):
    """A run whose run.json another rank writes."""

    def write(self) -> None:
        """Leave the file to rank 0."""


class NoProgress(Progress):
    """Shows nothing."""

    def start(self, total: int, done: int, tokens: int, of_a_token: float = 0.0) -> None:
        """Stay closed."""

    def note(self, text: str) -> None:
        """Leave it to rank 0."""


def writers(folder: Path, info: dict[str, Any], writes: bool) -> tuple[Recorder, Run, Progress]:
    """Return what records a run, its run.json with `info`, and what shows its progress. writes: whether they do."""
    if writes:
        return Recorder(folder), Run(folder, info), Progress()
    return NoRecorder(folder), UnwrittenRun(folder, info), NoProgress()
