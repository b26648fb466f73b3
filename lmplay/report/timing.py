"""Whether the times of runs compare: how steady their speed was, and whether their machines are alike."""

from collections.abc import Iterable

import numpy as np

from lmplay.runs.names import RANKS
from lmplay.runs.run import Run
from lmplay.stats.speed import SpeedSpread, speed_spread
from lmplay.text import printable

MACHINE = {  # and what it is where run.json does not say
    "device": (("device", "name"), None),
    "number of devices": (("device", RANKS, "n"), 1),
    "number of threads": (("device", "threads"), None),
}


def machines_differ(runs: Iterable[Run]) -> dict[str, list[str]]:
    """Return {"device", say: the values} of what is not the same in all runs."""
    all_runs = list(runs)
    values = {
        what: sorted({printable(run.get(*keys) or otherwise) for run in all_runs})
        for what, (keys, otherwise) in MACHINE.items()
    }
    return {what: of for what, of in values.items() if len(of) > 1}


def timing_of(pairs: list[tuple[Run, Run]]) -> SpeedSpread:
    """Return the spread of tokens/s within and between the runs of both arms, by their train.csv."""
    arms = [[pair[arm] for pair in pairs] for arm in (0, 1)]
    differ = machines_differ([run for arm in arms for run in arm])
    machines = f"and not all runs had the same {' and '.join(differ)}" if differ else ""
    return speed_spread([[_used(run) for run in arm] for arm in arms], machines)


def _used(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens and the seconds that a run had used after each step that is recorded."""
    table = run.table("train", ["tokens", "seconds"])
    if not {"tokens", "seconds"} <= set(table):
        return np.empty(0), np.empty(0)
    table = table.dropna(subset=["tokens", "seconds"])
    return table["tokens"].to_numpy(dtype=float), table["seconds"].to_numpy(dtype=float)
