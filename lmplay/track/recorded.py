"""Read what a run records, piece by piece: rows of its tables, samples, verdicts, and what it is."""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from lmplay.files import check_plain
from lmplay.runs import names
from lmplay.runs.run import Run
from lmplay.text import printable

# What a tracker calls the columns: of the machine, or else of the split.
SYSTEM = ("tokens_per_second", names.MFU)
LEFT_OUT = {names.PLAN_STEP, names.STEP, "samples", "validation_documents", "validation_tokens"}
SPLITS = {"train": "train", "validate": "validation"}


@dataclass(order=True)
class Event:
    """What was recorded at one step. time: seconds since 1970. texts: by name."""

    step: int
    time: float = field(compare=False, default=0.0)
    scalars: dict[str, float] = field(compare=False, default_factory=dict)
    texts: dict[str, str] = field(compare=False, default_factory=dict)


class Tail:
    """The whole lines of a file that were not read before. A file that was cut is read from its start."""

    def __init__(self, path: Path):
        self.path, self.offset = path, 0

    def read(self) -> str:
        """Return the text of the new whole lines; "" if there are none or there is no file."""
        try:
            check_plain(self.path)
            with open(self.path, "rb") as file:
                if file.seek(0, 2) < self.offset:
                    self.offset = 0
                file.seek(self.offset)
                data = file.read()
        except OSError:
            return ""
        data = data[: data.rfind(b"\n") + 1]
        self.offset += len(data)
        return data.decode("utf-8", errors="replace")


class Recorded:
    """Reads one run's folder from its beginning, and on each further call what is new."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._tails = {split: Tail(folder / file) for split, file in names.TABLES.items()}
        self._headers: dict[str, list[str]] = {}
        self._samples, self._left = Tail(folder / names.SAMPLES), ""

    def read(self, run: Run, ended: bool) -> list[Event]:
        """Return what was recorded since the last call, by ascending step; the two splits of one step are two events.

        ended: whether nothing more comes, so that the last sample is whole.
        """
        began = _began(run)
        events = [event for split in SPLITS for event in self._rows(split, began)]
        return sorted([*events, *self._new_samples(began, ended)])

    def _rows(self, split: str, began: float) -> Iterator[Event]:
        tail = self._tails[split]
        if tail.offset == 0:
            self._headers.pop(split, None)
        for cells in csv.reader(tail.read().splitlines()):
            header = self._headers.setdefault(split, cells)
            if header is cells:
                continue
            row = {
                name: value for name, cell in zip(header, cells, strict=False) if (value := _number(cell)) is not None
            }
            if names.STEP in row:
                named = {_name(split, name): value for name, value in row.items() if _is_sent(name)}
                yield Event(int(row[names.STEP]), began + row.get("seconds", 0.0), named)

    def _new_samples(self, began: float, ended: bool) -> Iterator[Event]:
        """Yield the samples of each validation, once the next one begins or the run has ended."""
        self._left += self._samples.read()
        heads = list(names.SAMPLE_HEAD.finditer(self._left))
        ends = [head.start() for head in heads[1:]]
        if heads and ended:
            ends.append(len(self._left))
        for head, end in zip(heads, ends, strict=False):
            step = int(head[1].split(",")[0])
            yield Event(step, began, texts={"samples": self._left[head.end() : end].strip("\n")})
        if ends:
            self._left = self._left[ends[-1] :]


def _is_sent(column: str) -> bool:
    return column not in LEFT_OUT and not column.startswith(names.MIDWAY_PREFIX)


def verdict_event(run: Run, entry: dict[str, Any], step: int) -> Event:
    """Return a verdict of the ledger as what a tracker shows at a step, the last one that it has."""
    verdict, baseline = entry["verdict"], printable(entry.get("baseline", {}).get("label"))
    numbers = {f"verdict/{name}": verdict.get(name) for name in ("difference", "low", "high")}
    text = f"against {baseline} on {printable(entry.get('plan'))}: {printable(verdict['sentence'])}"
    return Event(
        max(step, 0),
        _began(run) + (run.number("progress", "seconds") or 0.0),
        {name: float(value) for name, value in numbers.items() if isinstance(value, (int, float))},
        {"verdict": text},
    )


def config_of(run: Run) -> dict[str, Any]:
    """Return the settings of a run and what it is, as flat names with plain values."""
    found: dict[str, Any] = {f"settings.{name}": run.settings[name] for name in run.settings}
    found |= {f"config.{name}": run.value("config", name) for name in run.keys("config")}
    for path in (
        *(
            "experiment.name",
            "experiment.variant",
            "experiment.parent",
            "experiment.code_hash",
            "plan.name",
            "plan.hash",
        ),
        *("data.hash", "tokenizer.spec", "tokenizer.vocab_size", "parameters.total", "flops_per_token"),
        *("device.type", "device.name", "device.threads", "versions.lmplay", "versions.python", "versions.torch"),
        "git.commit",
    ):
        if (value := run.get(*path.split("."))) is not None:
            found[path] = value
    return {
        name: value if isinstance(value, (int, float, str, bool)) else _text(value) for name, value in found.items()
    }


def tags_of(run: Run) -> list[str]:
    """Return what a person would look for: model, plan, seed and device."""
    seed = run.settings["seed"]
    words = [run.spec, printable(run.get("plan", "name")), f"seed {seed}", printable(run.get("device", "type"))]
    return [word[:64] for word in words if word and word != "None"]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def _name(split: str, column: str) -> str:
    if column in SYSTEM:
        return f"system/{column}"
    if column in names.COUNTERS:
        return f"progress/{column}" if split == "train" else f"progress_at_validation/{column}"
    return f"{SPLITS[split]}/{column}"


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _began(run: Run) -> float:
    """Return when a run was created, in seconds since 1970; 0 if that is not known."""
    try:
        return datetime.fromisoformat(str(run.get("created"))).timestamp()
    except ValueError:
        return 0.0
