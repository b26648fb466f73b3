"""Add up validation losses by position in the window."""

import itertools
from typing import Any

import numpy as np
import torch

from lmplay.runs.names import DIRECTION


class PositionLosses:
    """Losses by position in the order in which windows are fed, one row per direction.

    sums: (directions, context_len) float64, in nats. counts: (directions, context_len), scored tokens.
    """

    def __init__(self, context_len: int, directions: tuple[str, ...]) -> None:
        self.directions = directions or ("",)
        self.sums = torch.zeros(len(self.directions), context_len, dtype=torch.float64)
        self.counts = torch.zeros_like(self.sums)

    def add(self, losses: torch.Tensor, rows: torch.Tensor | None, length: int) -> None:
        """Add the losses of the tokens `rows` (None: all) of windows of `length` tokens, each in all directions."""
        rows = torch.arange(len(losses)) if rows is None else rows.cpu()
        index = rows // length % len(self.directions) * self.sums.size(1) + rows % length
        self.sums.view(-1).index_add_(0, index, losses)
        self.counts.view(-1).index_add_(0, index, torch.ones_like(losses))

    def by_direction(self) -> dict[str, float]:
        """Return the mean loss of each direction, by "loss_<direction>"; nothing if there is only one."""
        sums, counts = self.sums.sum(1).tolist(), self.counts.sum(1).tolist()
        named = zip(self.directions, sums, counts, strict=True)
        return {f"loss_{direction}": total / n for direction, total, n in named if direction and n}

    def rows(self, bins: int) -> list[dict[str, Any]]:
        """Return the mean loss in about `bins` ranges of positions, from 1: the first alone, then ever wider."""
        length = self.sums.size(1)
        limits = [1, *np.geomspace(2, length + 1, bins), length + 1] if bins < length else np.arange(1, length + 2)
        edges = np.unique(np.rint(limits).astype(int)).tolist()
        found = []
        for number, direction in enumerate(self.directions):
            for first, beyond in itertools.pairwise(edges):
                n = int(self.counts[number, first - 1 : beyond - 1].sum())
                if n:
                    found.append(
                        {
                            DIRECTION: direction,
                            "first_position": first,
                            "last_position": beyond - 1,
                            "scored_tokens": n,
                            "loss": float(self.sums[number, first - 1 : beyond - 1].sum()) / n,
                        }
                    )
        return found
