"""How far the losses of one run lie apart on different machines, at one seed.

Sums are rounded in another order on another machine, and training makes the last digits grow. With losses x[s, m] of
seed s on machine m, the variance between machines is the pooled variance within seeds, sum of (x[s, m] - mean[s])^2
over sum of (machines[s] - 1). The difference of two machines has twice that variance.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MachineSpread:
    """sd: standard deviation of the difference between two machines, nats per token. df: its degrees of freedom."""

    sd: float
    df: int
    n_runs: int


def machine_spread(losses: Iterable[Sequence[float]]) -> MachineSpread | None:
    """Return the spread between machines; None if no seed was trained on two.

    losses: of each seed, the final validation loss on each machine, nats per token.
    """
    rows = [np.asarray(row, dtype=float) for row in losses if len(row) > 1]
    if not rows:
        return None
    df = sum(len(row) - 1 for row in rows)
    squares = sum(float(((row - row.mean()) ** 2).sum()) for row in rows)
    return MachineSpread(math.sqrt(2 * squares / df), df, sum(map(len, rows)))
