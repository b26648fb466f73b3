"""Say whether a direction of reading is harder than another, in models that read in several.

Both losses are of one model and of the same tokens. So their difference has nothing of the spread between models but
what seeds add to it.
"""

import math
from collections.abc import Sequence

import numpy as np

from lmplay.runs.names import DATASET_PREFIX, EXTRA_PREFIX, TABLES
from lmplay.runs.run import Run
from lmplay.runs.tables import read_header
from lmplay.stats.evidence import t_quantile
from lmplay.text import counted

CONFIDENCE = 0.95


def directions_of(run: Run) -> list[str]:
    """Return the names of the directions in which a run's model reads, [] if it has one only.

    They are those whose losses stand in train.csv and in validate.csv; of datasets they stand in the latter only.
    """
    trained = read_header(run.folder / TABLES["train"])
    columns = [c for c in read_header(run.folder / TABLES["validate"]) if c.startswith(DATASET_PREFIX)]
    names = [c.removeprefix(DATASET_PREFIX) for c in columns if EXTRA_PREFIX + c in trained]
    return names if len(names) > 1 else []


def between_directions(label: str, runs: Sequence[Run]) -> list[str]:
    """Return a sentence for each direction but the first, on the loss in it minus that in the first.

    runs: of one arm, one for each seed. The loss is that of the last validation. The interval is Student's, over the
    seeds: it does not hold what other validation documents would change.
    """
    names = directions_of(runs[0]) if runs else []
    sentences = []
    for name in names[1:]:
        found = [difference for run in runs if (difference := _difference(run, name, names[0])) is not None]
        if found:
            sentences.append(f"{label}: {name} minus {names[0]}, in one model: {_verdict(np.array(found), name)}")
    return sentences


def _difference(run: Run, name: str, first: str) -> float | None:
    """Return the difference at the last validation in nats per token; None if it is not known."""
    columns = [DATASET_PREFIX + name, DATASET_PREFIX + first]
    table = run.table("validate", columns)
    if not len(table) or not set(columns) <= set(table):
        return None
    difference = float(table[columns[0]].iloc[-1] - table[columns[1]].iloc[-1])
    return difference if math.isfinite(difference) else None


def _verdict(differences: np.ndarray, name: str) -> str:
    n, mean = len(differences), float(differences.mean())
    said = f"{mean:+.4f} nats per token"
    if n == 1:
        return f"{said} (1 seed: nothing is decided)"
    half = t_quantile(n - 1, CONFIDENCE) * float(differences.std(ddof=1)) / math.sqrt(n)
    word = "not decided" if abs(mean) <= half else f"{name} is {'harder' if mean > 0 else 'easier'}"
    return f"{word}, {said} ({CONFIDENCE:.0%} interval {mean - half:+.4f} to {mean + half:+.4f}, {counted(n, 'seed')})"
