"""Estimate a paired difference and the two parts of its variance: between seeds and between documents.

The module docstring of `verdict` explains the estimates and names their sources.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmplay.stats.prior import PRIOR_TEST, Prior


@dataclass(frozen=True)
class Evidence:
    """What the losses say of the difference: its estimate for each seed (S,), and the two parts of its variance."""

    per_seed: np.ndarray
    n_documents: int
    seed_variance: float  # between seeds; divided by the number of seeds it is part A
    seed_df: float  # 0: nothing is known about other seeds
    prior_share: float
    documents_variance: float  # part B
    documents_df: float

    @property
    def n_seeds(self) -> int:
        return len(self.per_seed)

    @property
    def difference(self) -> float:
        return float(self.per_seed.mean())

    @property
    def knows_seeds(self) -> bool:
        return self.seed_df > 0

    @property
    def knows_documents(self) -> bool:
        return self.n_documents > 1

    @property
    def covers(self) -> str:
        if self.knows_seeds:
            return "seeds and documents" if self.knows_documents else "seeds only"
        return "documents only" if self.knows_documents else "nothing"

    def squared_by_documents(self, confidence: float) -> float:
        """Return the documents' part of the squared half-width of the interval."""
        return t_quantile(self.documents_df, confidence) ** 2 * self.documents_variance

    def half_width(self, confidence: float, seeds: int) -> float:
        """Return half the width of the interval with `seeds` seeds, by the present estimates."""
        if self.covers == "nothing":
            return math.inf
        squared = self.squared_by_documents(confidence)
        if self.knows_seeds:
            squared += t_quantile(self.seed_df + seeds - self.n_seeds, confidence) ** 2 * self.seed_variance / seeds
        return math.sqrt(squared)


def weigh(difference: np.ndarray, tokens: np.ndarray, prior: Prior | None) -> tuple[Evidence, list[str]]:
    """Return the evidence in the differences (S, D) on documents of `tokens` (D,) > 0, and notes on the prior."""
    per_seed, documents_variance = _documents(difference, tokens)
    seed_variance, seed_df, prior_share, notes = _seeds(per_seed, prior)
    evidence = Evidence(
        per_seed=per_seed,
        n_documents=len(tokens),
        seed_variance=seed_variance,
        seed_df=seed_df,
        prior_share=prior_share,
        documents_variance=documents_variance,
        documents_df=documents_df(tokens),
    )
    return evidence, notes


def documents_df(tokens: np.ndarray) -> float:
    """Return the degrees of freedom of the documents' part: Kish's effective number less one, at least 1."""
    return max(1.0, float(1 / np.sum((tokens / tokens.sum()) ** 2)) - 1)


def document_covariance(losses: Sequence[np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """Return the documents' part of the covariance (R, R) of R mean losses per token, by the jackknife.

    losses: R arrays (S, D) on the same documents; S may differ. tokens: (D,) > 0. What the seeds' part holds already is
    subtracted; the result has no negative variance of any sum.
    """
    share = tokens / tokens.sum()
    pulls = [_pulls(np.asarray(one), tokens) for one in losses]
    means, noise = np.stack([mean for mean, _ in pulls]), np.stack([own for _, own in pulls])  # (R, D)
    without = _without(share)
    covariance = (means * without) @ means.T - np.diag((noise * without).sum(1))
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.maximum(values, 0.0)) @ vectors.T


def _pulls(difference: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (D,) how each document pulls at the mean over the seeds, and how much of its square is seeds' noise."""
    n_seeds, share = len(difference), tokens / tokens.sum()
    pull = difference / tokens.sum() - (difference.sum(1) / tokens.sum())[:, None] * share  # (S, D)
    mean = pull.mean(0)
    noise = ((pull - mean) ** 2).sum(0) / (n_seeds * (n_seeds - 1)) if n_seeds > 1 else np.zeros(len(tokens))
    return mean, noise


def _without(share: np.ndarray) -> np.ndarray:
    """Return the jackknife's factor (D,): the figure without document d differs by pull / (1 - share)."""
    n_documents = len(share)
    return (n_documents - 1) / n_documents / (1 - share) ** 2 if n_documents > 1 else np.zeros(1)


def _documents(difference: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, float]:
    """Return (difference per token for each seed (S,), the documents' part of the variance of the mean).

    difference: (S, D); tokens: (D,) > 0.
    """
    mean, noise = _pulls(difference, tokens)
    variance = float(np.sum(_without(tokens / tokens.sum()) * (mean**2 - noise)))
    return difference.sum(1) / tokens.sum(), max(0.0, variance)


def _seeds(per_seed: np.ndarray, prior: Prior | None) -> tuple[float, float, float, list[str]]:
    """Return (variance between seeds, its degrees of freedom, the prior's share of these, notes).

    The first three are 0 if nothing is known.
    """
    from scipy.special import fdtri

    df = len(per_seed) - 1
    own = float(per_seed.var(ddof=1)) if df else 0.0
    if prior is None:
        return own, df, 0.0, []
    spread = f"the spread between seeds measured on {prior.source}"
    if df and own > prior.seed_variance * fdtri(df, prior.df, 1 - PRIOR_TEST):
        differs = f"({math.sqrt(prior.seed_variance):.2g}) is not used: these runs differ more ({math.sqrt(own):.2g})"
        return own, df, 0.0, [f"{spread} {differs}"]
    together = df + prior.df
    pooled = (df * own + prior.df * prior.seed_variance) / together
    part = prior.df / together
    note = f"{spread} is used: it counts for {prior.df:.3g} of {together:.3g} degrees of freedom ({part:.0%})"
    return pooled, together, part, [note]


def t_quantile(df: float, confidence: float) -> float:
    """Return the two-sided quantile of Student's t."""
    from scipy.special import stdtrit

    return float(-stdtrit(df, (1 - confidence) / 2))
