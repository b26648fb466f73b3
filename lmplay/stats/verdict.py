"""Is the candidate better than the baseline? The paired difference of their validation losses, with an interval."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PairedLosses:
    """Losses of candidate and baseline under the same seeds, on the same documents.

    candidate, baseline: (S, D) float64, summed nats of each validation document d under each seed s.
    tokens: (D,) scored tokens of each document (or its bytes, where tokenizers differ: then `unit` is "nats a byte").
    seeds: the S seeds, in the order of the rows.
    Raises UserError if shapes do not fit, a loss is not finite, a seed is there twice, or there is nothing to compare.
    """

    candidate: np.ndarray
    baseline: np.ndarray
    tokens: np.ndarray
    seeds: tuple[Hashable, ...]
    unit: str = "nats a token"


@dataclass(frozen=True)
class Prior:
    """The spread between seeds, measured on other runs of the same plan and size (`prior_from_runs`).

    seed_variance: variance over seeds of the paired difference of two runs' validation losses, in (nats a token)^2.
    df: the degrees of freedom it was estimated with. source: in words, for the reader.
    """

    seed_variance: float
    df: float
    source: str


@dataclass(frozen=True)
class Verdict:
    """What `compare` found. All losses in `unit`; a difference is candidate - baseline: below 0 is better.

    [low, high] holds the true difference with `confidence`, over what `covers` says: "seeds and documents", "documents only"
    (one seed, no prior), "seeds only" (one document) or "nothing" (neither: the interval is infinite).
    word: "better", "worse", "equal" (within `margin`, or to the bit) or "not decided"; `label` is the same for a table.
    bound: no difference larger than this (the larger end of the interval, without its sign).
    seed_sd: between seeds, of the paired difference (NaN if unknown); seed_df: its degrees of freedom;
    prior_share: how much of these come from earlier runs, 0..1. document_se: what documents add to the standard error;
    document_df. more_seeds: about how many more seeds would decide, by the present estimates; None if decided, if it
    cannot be said, or if seeds would not help (`notes` says which). notes: sentences for the reader.
    """

    difference: float
    low: float
    high: float
    confidence: float
    margin: float | None
    covers: str
    word: str
    candidate_loss: float
    baseline_loss: float
    n_seeds: int
    n_documents: int
    seed_sd: float
    seed_df: float
    prior_share: float
    document_se: float
    document_df: float
    more_seeds: int | None
    notes: tuple[str, ...]
    unit: str

    @property
    def decided(self) -> bool:
        return self.word != "not decided"

    @property
    def bound(self) -> float:
        return max(abs(self.low), abs(self.high))

    @property
    def label(self) -> str:
        """A few words for a cell of a table, such as "better", "equal within 0.01", "not decided: about 3 more seeds"."""
        raise NotImplementedError

    def sentence(self) -> str:
        """The verdict with its figures, in one sentence of plain text."""
        raise NotImplementedError


def compare(losses: PairedLosses, prior: Prior | None = None, confidence: float = 0.95,
            margin: float | None = None) -> Verdict:
    """The verdict on a candidate. `margin` (nats a token): differences within +-margin count as none."""
    raise NotImplementedError


def prior_from_runs(losses: Mapping[Hashable, Mapping[Hashable, float]], pair: tuple[Hashable, Hashable],
                    source: str = "earlier runs") -> Prior | None:
    """The spread between seeds in runs of one plan and size, without what `pair` itself tells; None if nothing is left.

    losses: {experiment and settings: {seed: final validation loss, nats a token}}, the pair's own runs included.
    pair: the keys of candidate and baseline (one of them, or both, may be missing in `losses`).
    """
    raise NotImplementedError
