"""Losses with a known difference, a known spread between seeds and a known one between documents."""

import numpy as np

TRUTH = -0.02
LEVEL = 3.0  # nats a token of the baseline


def planted(
    random: np.random.Generator,
    n_seeds: int,
    n_documents: int = 100,
    seeds: float = 0.01,
    documents: float = 0.1,
    rest: float = 0.05,
    truth: float = TRUTH,
    lengths: float = 0.8,
):
    """(candidate (S, D), baseline (S, D), tokens (D,)).

    A token's loss is LEVEL + what is common to both sides (document, seed and both: far larger than the difference) +
    on the candidate's side truth + normal seeds' effect + documents' effect (Student's t with 3 degrees of freedom:
    heavy tails) + rest, these with the standard deviations given. Lengths are lognormal: of 100 documents the longest
    10 hold about 30% of the tokens.
    """
    tokens = np.floor(np.exp(lengths * random.standard_normal(n_documents)) * 400) + 5
    common = (
        LEVEL
        + random.standard_normal(n_documents)
        + 0.3 * random.standard_normal((n_seeds, 1))
        + 0.05 * random.standard_normal((n_seeds, n_documents))
    )
    added = (
        truth
        + seeds * random.standard_normal((n_seeds, 1))
        + documents * random.standard_t(3, n_documents) / np.sqrt(3)
        + rest * random.standard_normal((n_seeds, n_documents))
    )
    return (common + added) * tokens, common * tokens, tokens


def holds(share: float, of: float, repetitions: int) -> bool:
    """Is the share of repetitions not below `of`, except by chance (three standard errors of a binomial)?"""
    return share >= of - 3 * np.sqrt(of * (1 - of) / repetitions)
