"""Each side at its own best learning rate, chosen on one part of the data and judged on another.

The best of several noisy figures looks better than it is, the more so the more there are. So seed s on one half of the
documents is judged at the rate that is best for the other seeds on the other half: no loss helps to choose the rate that it is
judged at (cross-fitting: M. Stone, Journal of the Royal Statistical Society B 36, 1974, for validation that chooses; V.
Chernozhukov et al., Econometrics Journal 21, 2018, for both directions averaged). Each loss is judged once, so that nothing is lost to the
choice but its being made on somewhat fewer seeds. With one seed only the documents are split: what is luck of that seed then
still flatters the side with more rates.
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
    """losses: each side at the rate chosen for it, ready for `compare`. candidate, baseline: the best rate of each side by
    all that was measured. notes: sentences for the reader (a best rate at the edge of its grid, choices that differ).
    candidate_at_edge, baseline_at_edge: the best is the lowest or the highest of several.
    """

    losses: PairedLosses
    candidate: float
    baseline: float
    candidate_at_edge: bool
    baseline_at_edge: bool
    notes: tuple[str, ...]


def choose_rates(
    candidate: Mapping[float, np.ndarray],
    baseline: Mapping[float, np.ndarray],
    tokens: np.ndarray,
    seeds: Sequence[Hashable],
    documents: Sequence[str],
    unit: str = "nats a token",
) -> ChosenRates:
    """candidate, baseline: {learning rate: (S, D) summed nats of each document under each seed}; NaN or inf where it diverged.

    tokens: (D,); documents: (D,) a name of each that stays the same (such as "dataset/number"). Raises UserError where every
    rate of a side diverged, or one that did well on the other seeds did on the seed that judges.
    """
    half = _halves(documents)
    notes, judged, best, at_edge = [], [], [], []
    if len(seeds) == 1 and max(len(candidate), len(baseline)) > 1:
        notes.append("one seed: learning rates are chosen and judged under the same seed, on different documents")
    for side, rates in (("candidate", candidate), ("baseline", baseline)):
        grid = sorted(rates)
        losses = np.stack([np.asarray(rates[rate], dtype=np.float64) for rate in grid])  # (rates, S, D)
        overall = grid[_best(losses, side)]
        best.append(overall)
        at_edge.append(len(grid) > 1 and overall in (grid[0], grid[-1]))
        if at_edge[-1]:
            further = f"below {overall:g}" if overall == grid[0] else f"above {overall:g}"
            notes.append(f"the {side}'s best learning rate {overall:g} is at the edge of its grid: try some {further}")
        result, chosen = np.empty(losses.shape[1:]), set()
        for s in range(len(seeds)):
            others = np.arange(len(seeds)) != s if len(seeds) > 1 else np.array([True])
            for part in (half, ~half):
                where = ~part if not part.all() and part.any() else np.ones_like(part)
                rate = _best(losses[:, others][:, :, where], side)
                result[s, part] = losses[rate, s, part]
                if part.any():
                    chosen.add(grid[rate])
            if not np.isfinite(result[s]).all():
                raise UserError(
                    f"with learning rate {max(chosen):g} the {side} does well under other seeds and diverges under seed "
                    f"{seeds[s]}: leave that rate out"
                )
        if len(chosen) > 1:
            notes.append(
                f"the {side}'s learning rate is not settled: {', '.join(f'{rate:g}' for rate in sorted(chosen))} are each best on "
                "part of the seeds and documents"
            )
        judged.append(result)
    return ChosenRates(PairedLosses(*judged, tokens, tuple(seeds), unit), *best, *at_edge, tuple(notes))


def _best(losses: np.ndarray, side: str) -> int:
    """The rate with the lowest sum of losses (rates, S, D)."""
    sums = losses.sum((1, 2))
    sums = np.where(np.isfinite(sums), sums, math.inf)
    if np.isinf(sums).all():
        raise UserError(f"the {side} diverges at every learning rate that was tried: try lower ones")
    return int(sums.argmin())


def _halves(documents: Sequence[str]) -> np.ndarray:
    """Every second document (D,) in the order of a hash of their names: a split that has nothing to do with their order."""
    order = np.argsort(
        [hashlib.blake2b(str(name).encode(), digest_size=8).hexdigest() for name in documents], kind="stable"
    )
    half = np.zeros(len(order), dtype=bool)
    half[order[::2]] = True
    return half
