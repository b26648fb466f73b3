"""Compare two arms, each at its own best settings, chosen on one part of the data and judged on another.

The best of several noisy figures looks better than it is, more so the more there are. So seed s on one half of the
documents is judged at the point of the grid that is best for the other seeds on the other half: no loss helps to choose
the point at which it is judged. A point is a learning rate, or a choice of several settings. This is cross-fitting (M.
Stone, Journal of the Royal Statistical Society B 36, 1974, for validation that chooses; V. Chernozhukov et al.,
Econometrics Journal 21, 2018, for both directions averaged). Each loss is judged once, so the choice costs nothing
except that it rests on somewhat fewer seeds. With one seed only the documents are split: luck of that seed then still
flatters the arm with more points.
"""

import hashlib
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lmplay.errors import UserError
from lmplay.stats.choices import Choice, Edge, as_choice, edges_of
from lmplay.stats.verdict import PairedLosses

Point = float | Choice


@dataclass(frozen=True)
class ChosenRates:
    """Two arms at the points of their grids that were chosen for them.

    losses: each arm at the point chosen for it, ready for `compare`. candidate, baseline: the best point of each arm by
    all that was measured. notes: sentences for the reader (a best value at the edge of its grid, choices that differ).
    candidate_edges, baseline_edges: where the best is the lowest or the highest of several.
    """

    losses: PairedLosses
    candidate: Point
    baseline: Point
    candidate_edges: tuple[Edge, ...]
    baseline_edges: tuple[Edge, ...]
    notes: tuple[str, ...]

    @property
    def candidate_at_edge(self) -> bool:
        return bool(self.candidate_edges)

    @property
    def baseline_at_edge(self) -> bool:
        return bool(self.baseline_edges)


@dataclass(frozen=True)
class _ChosenArm:
    """One arm: its losses (S, D) at the points chosen for them, its best point over all losses."""

    losses: np.ndarray
    best: Point
    edges: tuple[Edge, ...]
    notes: list[str]


def choose_rates(
    candidate: Mapping[Point, np.ndarray],
    baseline: Mapping[Point, np.ndarray],
    tokens: np.ndarray,
    seeds: Sequence[Hashable],
    documents: Sequence[str],
    unit: str = "nats per token",
) -> ChosenRates:
    """Return both arms at their best learning rates, or at their best choices of settings.

    candidate, baseline: {point: (S, D) summed nats of each document under each seed}; NaN or inf if it
    diverged. tokens: (D,). documents: (D,) a name of each that stays the same (such as "dataset/number"). Raises
    UserError if every rate of an arm diverged, or if a rate does well on the other seeds and diverged on the seed
    that judges.
    """
    half = _halves(documents)
    notes = []
    if len(seeds) == 1 and max(len(candidate), len(baseline)) > 1:
        what = "learning rates" if _only_rates((*candidate, *baseline)) else "settings"
        notes.append(f"one seed: {what} are chosen and judged under the same seed, on different documents")
    ours = _choose("candidate", candidate, half, seeds)
    theirs = _choose("baseline", baseline, half, seeds)
    return ChosenRates(
        losses=PairedLosses(ours.losses, theirs.losses, tokens=tokens, seeds=tuple(seeds), unit=unit),
        candidate=ours.best,
        baseline=theirs.best,
        candidate_edges=ours.edges,
        baseline_edges=theirs.edges,
        notes=(*notes, *ours.notes, *theirs.notes),
    )


def _choose(arm: str, rates: Mapping[Point, np.ndarray], half: np.ndarray, seeds: Sequence[Hashable]) -> _ChosenArm:
    """Return an arm whose losses are judged at points chosen without them. half: (D,) one part of the documents."""
    grid = sorted(rates, key=lambda point: as_choice(point).key)
    losses = np.stack([np.asarray(rates[rate], dtype=np.float64) for rate in grid])  # (points, S, D)
    what = "learning rate" if _only_rates(grid) else "choice of settings"
    best = grid[_best(losses, arm, what)]
    edges = edges_of(as_choice(best), [as_choice(point) for point in grid])
    notes = [edge.sentence(f"the {arm}") for edge in edges]
    judged, chosen = np.empty(losses.shape[1:]), set()
    for s in range(len(seeds)):
        others = np.arange(len(seeds)) != s if len(seeds) > 1 else np.array([True])
        for part in (half, ~half):
            chosen_on = ~part if not part.all() and part.any() else np.ones_like(part)
            rate = _best(losses[:, others][:, :, chosen_on], arm, what)
            judged[s, part] = losses[rate, s, part]
            if part.any():
                chosen.add(grid[rate])
        if not np.isfinite(judged[s]).all():
            point = max(chosen, key=lambda point: as_choice(point).key)
            raise UserError(
                f"with {_named(point)} the {arm} does well under other seeds and diverges under seed "
                f"{seeds[s]}: leave that {'rate' if _only_rates(grid) else 'choice'} out"
            )
    if len(chosen) > 1:
        notes.append(
            f"the {arm}'s {what} is not settled: {_listed(chosen)} are each best on part of the seeds and documents"
        )
    return _ChosenArm(losses=judged, best=best, edges=edges, notes=notes)


def _only_rates(grid: Iterable[Point]) -> bool:
    return all(as_choice(point).of_rates for point in grid)


def _named(point: Point) -> str:
    choice = as_choice(point)
    return f"learning rate {choice.values[0][1]:g}" if _only_rates([point]) else str(choice)


def _listed(chosen: Iterable[Point]) -> str:
    points = sorted(chosen, key=lambda point: as_choice(point).key)
    return (
        ", ".join(f"{as_choice(one).values[0][1]:g}" for one in points)
        if _only_rates(points)
        else ("; ".join(map(str, points)))
    )


def _best(losses: np.ndarray, arm: str, what: str) -> int:
    """Return the index of the point with the lowest sum of losses (points, S, D)."""
    sums = losses.sum((1, 2))
    sums = np.where(np.isfinite(sums), sums, math.inf)
    if np.isinf(sums).all():
        raise UserError(f"the {arm} diverges at every {what} that was tried: try lower ones")
    return int(sums.argmin())


def _halves(documents: Sequence[str]) -> np.ndarray:
    """Return every second document (D,) in the order of a hash of their names: a split independent of their order."""
    order = np.argsort(
        [hashlib.blake2b(str(name).encode(), digest_size=8).hexdigest() for name in documents], kind="stable"
    )
    half = np.zeros(len(order), dtype=bool)
    half[order[::2]] = True
    return half
