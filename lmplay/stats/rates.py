"""Each side at its own best learning rate, chosen on one part of the data and judged on another."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

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


def choose_rates(candidate: Mapping[float, np.ndarray], baseline: Mapping[float, np.ndarray], tokens: np.ndarray,
                 seeds: Sequence[Hashable], documents: Sequence[str]) -> ChosenRates:
    """candidate, baseline: {learning rate: (S, D) summed nats of each document under each seed}; NaN or inf where it diverged.

    tokens: (D,); documents: (D,) a name of each that stays the same (such as "dataset/number").
    """
    raise NotImplementedError
