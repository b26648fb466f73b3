"""Compare two arms, each at its own best learning rate, chosen on one part of the data and judged on another.

The best of several noisy figures looks better than it is, more so the more there are. So seed s on one half of the
documents is judged at the rate that is best for the other seeds on the other half: no loss helps to choose the rate
at which it is judged. This is cross-fitting (M. Stone, Journal of the Royal Statistical Society B 36, 1974, for
validation that chooses; V. Chernozhukov et al., Econometrics Journal 21, 2018, for both directions averaged). Each
loss is judged once, so the choice costs nothing except that it rests on somewhat fewer seeds. With one seed only the
documents are split: luck of that seed then still flatters the arm with more rates.
"""

import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lmplay.errors import UserError
from lmplay.stats.verdict import PairedLosses


@dataclass(frozen=True)
class ChosenRates:
    """Two arms at the learning rates chosen for them.

    losses: each arm at the rate chosen for it, ready for `compare`. candidate, baseline: the best rate of each arm by
    all that was measured. notes: sentences for the reader (a best rate at the edge of its grid, choices that differ).
    candidate_at_edge, baseline_at_edge: the best is the lowest or the highest of several.
    """

    losses: PairedLosses
    candidate: float
    baseline: float
    candidate_at_edge: bool
    baseline_at_edge: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _ChosenArm:
    """One arm: its losses (S, D) at the rates chosen for them, its best rate over all losses."""

    losses: np.ndarray
    best: float
    at_edge: bool
    notes: list[str]


def choose_rates(
    candidate: Mapping[float, np.ndarray],
    baseline: Mapping[float, np.ndarray],
    tokens: np.ndarray,
    seeds: Sequence[Hashable],
    documents: Sequence[str],
    unit: str = "nats per token",
) -> ChosenRates:
    """Return both arms at their best learning rates.

    candidate, baseline: {learning rate: (S, D) summed nats of each document under each seed}; NaN or inf if it
    diverged. tokens: (D,). documents: (D,) a name of each that stays the same (such as "dataset/number"). Raises
    UserError if every rate of an arm diverged, or if a rate does well on the other seeds and diverged on the seed
    that judges.
    """
    half = _halves(documents)
    notes = []
    if len(seeds) == 1 and max(len(candidate), len(baseline)) > 1:
        notes.append("one seed: learning rates are chosen and judged under the same seed, on different documents")
    ours = _choose("candidate", candidate, half, seeds)
    theirs = _choose("baseline", baseline, half, seeds)
    return ChosenRates(
        losses=PairedLosses(ours.losses, theirs.losses, tokens=tokens, seeds=tuple(seeds), unit=unit),
        candidate=ours.best,
        baseline=theirs.best,
        candidate_at_edge=ours.at_edge,
        baseline_at_edge=theirs.at_edge,
        notes=(*notes, *ours.notes, *theirs.notes),
    )


def _choose(arm: str, rates: Mapping[float, np.ndarray], half: np.ndarray, seeds: Sequence[Hashable]) -> _ChosenArm:
    """Return an arm whose losses are judged at rates chosen without them. half: (D,) one part of the documents."""
    grid = sorted(rates)
    losses = np.stack([np.asarray(rates[rate], dtype=np.float64) for rate in grid])  # (rates, S, D)
    best = grid[_best(losses, arm)]
    at_edge = len(grid) > 1 and best in (grid[0], grid[-1])
    notes = []
    if at_edge:
        further = f"below {best:g}" if best == grid[0] else f"above {best:g}"
        notes.append(f"the {arm}'s best learning rate {best:g} is at the edge of its grid: try some {further}")
    judged, chosen = np.empty(losses.shape[1:]), set()
    for s in range(len(seeds)):
        others = np.arange(len(seeds)) != s if len(seeds) > 1 else np.array([True])
        for part in (half, ~half):
            chosen_on = ~part if not part.all() and part.any() else np.ones_like(part)
            rate = _best(losses[:, others][:, :, chosen_on], arm)
            judged[s, part] = losses[rate, s, part]
            if part.any():
                chosen.add(grid[rate])
        if not np.isfinite(judged[s]).all():
            raise UserError(
                f"with learning rate {max(chosen):g} the {arm} does well under other seeds and diverges under seed "
                f"{seeds[s]}: leave that rate out"
            )
    if len(chosen) > 1:
        notes.append(
            f"the {arm}'s learning rate is not settled: {', '.join(f'{rate:g}' for rate in sorted(chosen))} are each "
            "best on part of the seeds and documents"
        )
    return _ChosenArm(losses=judged, best=best, at_edge=at_edge, notes=notes)


def _best(losses: np.ndarray, arm: str) -> int:
    """Return the index of the rate with the lowest sum of losses (rates, S, D)."""
    sums = losses.sum((1, 2))
    sums = np.where(np.isfinite(sums), sums, math.inf)
    if np.isinf(sums).all():
        raise UserError(f"the {arm} diverges at every learning rate that was tried: try lower ones")
    return int(sums.argmin())


def _halves(documents: Sequence[str]) -> np.ndarray:
    """Return every second document (D,) in the order of a hash of their names: a split independent of their order."""
    order = np.argsort(
        [hashlib.blake2b(str(name).encode(), digest_size=8).hexdigest() for name in documents], kind="stable"
    )
    half = np.zeros(len(order), dtype=bool)
    half[order[::2]] = True
    return half
