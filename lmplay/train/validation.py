"""Scoring the validation documents."""

from dataclasses import dataclass

import numpy as np
import torch

from lmplay.contract import derived_once
from lmplay.train.feed import ValidationFeed
from lmplay.train.objective import score


@dataclass
class ValidationResult:
    """loss in nats a scored token; losses (documents,) float64, summed nats of each document, and tokens (documents,) int64, how
    many were scored; by_dataset: loss of each. All of it is the mean over the ways in which an experiment reads."""

    loss: float
    accuracy: float
    bits_per_byte: float
    n_tokens: int
    losses: np.ndarray
    tokens: np.ndarray
    by_dataset: dict[str, float]
    positions: "PositionLosses | None" = None


class PositionLosses:
    """Losses by position in the order in which windows are fed: sums (ways, context_len) in nats, float64, and how many tokens."""

    def __init__(self, context_len: int, ways: tuple[str, ...]):
        self.ways = ways or ("",)
        self.sums = torch.zeros(len(self.ways), context_len, dtype=torch.float64)
        self.counts = torch.zeros_like(self.sums)

    def add(self, losses: torch.Tensor, rows: torch.Tensor | None, length: int) -> None:
        """`losses` of the tokens `rows` (None: of all) of windows of `length` tokens, those of one window in their order of ways."""
        rows = torch.arange(len(losses)) if rows is None else rows.cpu()
        index = rows // length % len(self.ways) * self.sums.size(1) + rows % length
        self.sums.view(-1).index_add_(0, index, losses)
        self.counts.view(-1).index_add_(0, index, torch.ones_like(losses))

    def by_way(self) -> dict[str, float]:
        """The mean loss of each way, by "loss_<way>"; nothing where there is one way."""
        means = self.sums.sum(1) / self.counts.sum(1).clamp(min=1)
        return {f"loss_{way}": mean for way, mean in zip(self.ways, means.tolist()) if way}

    def rows(self, bins: int) -> list[dict]:
        """The mean loss in each of about so many ranges of positions, counted from 1: the first alone, then ever wider ones."""
        length = self.sums.size(1)
        places = [1, *np.geomspace(2, length + 1, bins), length + 1] if bins < length else np.arange(1, length + 2)
        edges = np.unique(np.rint(places).astype(int)).tolist()
        found = []
        for number, way in enumerate(self.ways):
            for first, beyond in zip(edges, edges[1:]):
                n = int(self.counts[number, first - 1 : beyond - 1].sum())
                if n:
                    found.append(
                        {
                            "way": way,
                            "first_position": first,
                            "last_position": beyond - 1,
                            "scored_tokens": n,
                            "loss": float(self.sums[number, first - 1 : beyond - 1].sum()) / n,
                        }
                    )
        return found


@torch.no_grad()
def validate(
    model: torch.nn.Module,
    feed: ValidationFeed,
    mini_batch_size: int,
    device: torch.device,
    precision,
    progress=lambda done: None,
    by_position: bool = False,
) -> ValidationResult:
    """Scores every validation document. `precision` makes the context to compute in. Losses by position are kept if wanted, and of an
    experiment that reads in several ways."""
    ways = feed.experiment.ways
    positions = PositionLosses(feed.context_len, ways) if by_position or ways else None
    losses = torch.zeros(len(feed.documents), dtype=torch.float64)
    tokens = torch.zeros(len(feed.documents), dtype=torch.int64)
    n_correct, n_bytes = 0, 0.0
    was_training = model.training
    model.eval()
    with derived_once(model, precision):
        for batch in feed.batches():
            n_bytes += batch.n_bytes
            for inputs, targets, rows, labels in batch.parts(mini_batch_size, device):
                with precision():
                    result = score(model, inputs, targets, rows)
                of_tokens = result.losses.cpu().double()
                losses.index_add_(0, labels, of_tokens)
                if positions is not None:
                    positions.add(of_tokens, rows, inputs.size(1))
                tokens.index_add_(0, labels, torch.ones_like(labels))
                n_correct += int(result.correct.sum())
                progress(inputs.numel())
    model.train(was_training)
    if ways:
        losses, tokens, n_correct, n_bytes = (
            losses / len(ways),
            tokens // len(ways),
            n_correct / len(ways),
            n_bytes / len(ways),
        )
    total, n_tokens = float(losses.sum()), int(tokens.sum())
    by_dataset = {}
    for name, (first, count) in feed.datasets.items():
        part = slice(first, first + count)
        by_dataset[name] = float(losses[part].sum() / max(1, int(tokens[part].sum())))
    return ValidationResult(
        total / max(1, n_tokens),
        n_correct / max(1, n_tokens),
        total / np.log(2) / max(1.0, n_bytes),
        n_tokens,
        losses.numpy(),
        tokens.numpy(),
        by_dataset,
        positions,
    )
