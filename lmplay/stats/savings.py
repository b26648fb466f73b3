"""How much sooner the candidate gets as far as the baseline, and what is between them at equal cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmplay.stats.verdict import Prior, Verdict

AXES = ("tokens", "flops", "seconds")


@dataclass(frozen=True)
class Trajectory:
    """The validations of one run, in the last step of its plan.

    tokens, flops, seconds: (K,) float64, ascending: what training had used at each validation (the axes).
    losses: (K, D) float64, summed nats of each validation document.
    """

    tokens: np.ndarray
    flops: np.ndarray
    seconds: np.ndarray
    losses: np.ndarray


@dataclass(frozen=True)
class Saving:
    """What the candidate needs to reach the baseline's final validation loss, as a share of what the baseline needed.

    axis: one of AXES. factor: 0.8 is 20% less; inf: not reached within the candidate's run (then `low` may still be finite).
    [low, high]: its interval at `confidence`, high = inf if it is not certain that the candidate gets there at all.
    candidate, baseline: the amounts themselves (candidate inf if not reached).
    """

    axis: str
    factor: float
    low: float
    high: float
    confidence: float
    candidate: float
    baseline: float
    notes: tuple[str, ...]

    def sentence(self) -> str:
        raise NotImplementedError


def savings(candidate: Sequence[Trajectory], baseline: Sequence[Trajectory], document_tokens: np.ndarray,
            seeds: Sequence, prior: Prior | None = None, confidence: float = 0.95) -> dict[str, Saving]:
    """A Saving for each axis. One trajectory a seed on both sides, in the order of `seeds`; document_tokens: (D,)."""
    raise NotImplementedError


def compare_at_equal(axis: str, candidate: Sequence[Trajectory], baseline: Sequence[Trajectory],
                     document_tokens: np.ndarray, seeds: Sequence, prior: Prior | None = None,
                     confidence: float = 0.95, margin: float | None = None) -> tuple[Verdict, float]:
    """The verdict at equal `axis` (one of AXES): where the first of all runs ends. Returns (verdict, that amount)."""
    raise NotImplementedError
