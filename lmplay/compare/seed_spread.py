"""How far seeds of one model lie apart, by the runs that are there."""

import json
from collections.abc import Hashable

from lmplay.compare.jobs import RunIndex
from lmplay.runs.run import Run
from lmplay.runs.settings import Settings
from lmplay.stats.prior import Prior, prior_from_runs

SIZES_ALIKE = 2.0  # the spread between seeds of a model up to twice as large, or half as large, says something
ALIKE = (
    ("plan", "hash"),
    ("data", "hash"),
    ("progress", "phases"),
    ("settings", "validation_tokens"),
    ("settings", "same_init"),
)


class SeedSpread:
    """Measures the spread between seeds on all finished runs in --out of one plan and about one size."""

    def __init__(self, index: RunIndex):
        self.index = index
        self._known: dict[tuple[str, str], Prior | None] = {}

    def prior(self, candidate: Run, baseline: Run) -> Prior | None:
        """Return the spread for a pair of models as it was when first asked for: later looks use the same one."""
        pair = group_of(candidate), group_of(baseline)
        if pair not in self._known:
            losses = self._losses(baseline)
            self._known[pair] = prior_from_runs(losses, pair, f"earlier runs in {self.index.settings.out}")
        return self._known[pair]

    def _losses(self, baseline: Run) -> dict[Hashable, dict[Hashable, float]]:
        """Return {group of runs: {seed: final validation loss}}."""
        losses: dict[Hashable, dict[Hashable, float]] = {}
        for run in self.index.runs:
            loss = run.number("progress", "validation_loss")
            if run.get("status") == "finished" and loss is not None and _are_alike(run, baseline):
                losses.setdefault(group_of(run), {})[run.settings["seed"]] = loss
        return losses


def group_of(run: Run) -> str:
    """Return what all runs that differ in their seed only have in common, as text."""
    settings = {key: run.settings[key] for key in Settings().identity if key not in ("seed", "validation_interval")}
    return json.dumps([run.code_hash, run.config, settings], sort_keys=True, default=str)


def _are_alike(run: Run, baseline: Run) -> bool:
    own, size = run.number("parameters", "total"), baseline.number("parameters", "total")
    if not own or not size or not 1 / SIZES_ALIKE <= own / size <= SIZES_ALIKE:
        return False
    return all(run.value(*keys) == baseline.value(*keys) for keys in ALIKE)
