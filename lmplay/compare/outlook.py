"""Say what a comparison would do before it does it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmplay.text import counted


@dataclass(frozen=True)
class PlannedRun:
    """What would become of a job.

    state: "finished", "failed" or "crashed": it is there; "begun": it would go on; "missing": it would be trained.
    folder: of the run. line: all that in words.
    """

    label: str
    state: str
    folder: Path
    line: str


@dataclass(frozen=True)
class Outlook:
    """What a comparison would do.

    at_first: more runs may follow. notes: sentences. seconds: that the training would take, None if it is not known.
    """

    runs: list[PlannedRun]
    at_first: bool = False
    notes: list[str] = field(default_factory=list)
    seconds: float | None = None

    @property
    def lines(self) -> list[str]:
        """A line for each run, and one that counts them."""
        missing = sum(run.state in ("begun", "missing") for run in self.runs)
        at_first = " at first" if self.at_first else ""
        total = f"{missing} of {counted(len(self.runs), 'run')} would be trained{at_first}"
        return [*(run.line for run in self.runs), total, *self.notes]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a program."""
        keys = ("label", "state", "line")
        runs = [{key: getattr(run, key) for key in keys} | {"folder": str(run.folder)} for run in self.runs]
        to_train = sum(run.state in ("begun", "missing") for run in self.runs)
        return {"planned": runs, "to_train": to_train, "seconds": self.seconds, "notes": self.notes}
