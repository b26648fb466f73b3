"""How far seeds of the compared models lie apart, by earlier runs of the same models."""

import json
from collections.abc import Hashable, Iterable

from lmplay.compare.jobs import RunIndex
from lmplay.runs.names import OFF_RECIPE
from lmplay.runs.run import Run
from lmplay.runs.settings import Settings
from lmplay.stats.prior import Prior, prior_from_runs

# What an earlier run must share with the run that it speaks for, besides its code and its Config.
ALIKE = (
    ("data", "hash"),
    ("progress", "phases"),
    ("settings", "batch_size"),
    ("settings", "max_minutes"),
    ("settings", "optimizer"),
    ("settings", "initial_model"),
    ("settings", "validation_tokens"),
    ("settings", "same_init"),
)


class SeedSpread:
    """Measures the spread between seeds on finished runs in --out of the two arms' own code, size and budget."""

    def __init__(self, index: RunIndex):
        self.index = index
        self._known: dict[tuple[str, str], Prior | None] = {}

    def prior(self, candidate: Run, baseline: Run, compared: Iterable[Run]) -> Prior | None:
        """Return the spread for a pair of models as it was when first asked for: later looks use the same one.

        compared: all runs that are part of the comparison or may become part of it. They never enter, nor does
        another run with the settings and the seed of one of them.
        """
        pair = group_of(candidate), group_of(baseline)
        if pair not in self._known:
            left_out = {(group_of(run), run.settings["seed"]) for run in compared}
            runs = self._earlier((candidate, baseline), left_out)
            losses: dict[Hashable, dict[Hashable, float]] = {}
            for (group, seed), run in runs.items():
                losses.setdefault(group, {})[seed] = run.get("progress", "validation_loss")
            source, names = f"earlier runs in {self.index.settings.out}", tuple(run.name for run in runs.values())
            self._known[pair] = prior_from_runs(losses, source=source, names=names)
        return self._known[pair]

    def _earlier(self, arms: tuple[Run, Run], left_out: set[tuple[str, int]]) -> dict[tuple[str, int], Run]:
        """Return {(group, seed): run} of the earlier runs of both arms, one run for each."""
        found: dict[tuple[str, int], Run] = {}
        for run in self.index.runs:
            if run.get("status") != "finished" or run.number("progress", "validation_loss") is None:
                continue
            if not any(_is_one_of(run, arm) for arm in arms) or run.value(*OFF_RECIPE):
                continue  # rates that are tried lie further apart than seeds do
            key = group_of(run), run.settings["seed"]
            if key not in left_out:
                found.setdefault(key, run)
        return found


def group_of(run: Run) -> str:
    """Return what all runs that differ in their seed only have in common, as text."""
    names = set(Settings().identity) - {"exp", "seed", "validation_interval"}
    settings = {name: run.settings[name] for name in names}
    return json.dumps([run.spec, run.code_hash, run.config, settings], sort_keys=True, default=str)


def _is_one_of(run: Run, arm: Run) -> bool:
    """Tell whether a run is one of an arm's model: of its code, at its plan, size and budget."""
    if (run.spec, run.code_hash, run.config) != (arm.spec, arm.code_hash, arm.config):
        return False
    return run.plan_key == arm.plan_key and all(run.value(*keys) == arm.value(*keys) for keys in ALIKE)
