"""Looking at the verdict after each added seed, without more than 5% of wrong verdicts in all."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Looks:
    """A plan of looks: after `first` seeds, then after each further one, up to `max_seeds`; fixed before the first look.

    `compare(losses, prior, confidence=looks.confidence_at(n_seeds), margin=...)` at each look; stop as soon as
    `verdict.decided`. All intervals together hold the true difference with probability `confidence`.
    """

    max_seeds: int
    first: int = 2
    confidence: float = 0.95

    def confidence_at(self, n_seeds: int) -> float:
        """The confidence that the interval after so many seeds must have; UserError for a number that is no look."""
        raise NotImplementedError
