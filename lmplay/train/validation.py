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
    many were scored; by_dataset: loss of each."""

    loss: float
    accuracy: float
    bits_per_byte: float
    n_tokens: int
    losses: np.ndarray
    tokens: np.ndarray
    by_dataset: dict[str, float]


@torch.no_grad()
def validate(model: torch.nn.Module, feed: ValidationFeed, mini_batch_size: int, device: torch.device, precision,
             progress=lambda done: None) -> ValidationResult:
    """Scores every validation document. `precision` makes the context to compute in."""
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
                losses.index_add_(0, labels, result.losses.cpu().double())
                tokens.index_add_(0, labels, torch.ones_like(labels))
                n_correct += int(result.correct.sum())
                progress(inputs.numel())
    model.train(was_training)
    total, n_tokens = float(losses.sum()), int(tokens.sum())
    by_dataset = {}
    for name, (first, count) in feed.datasets.items():
        part = slice(first, first + count)
        by_dataset[name] = float(losses[part].sum() / max(1, int(tokens[part].sum())))
    return ValidationResult(total / max(1, n_tokens), n_correct / max(1, n_tokens),
                            total / np.log(2) / max(1.0, n_bytes), n_tokens, losses.numpy(), tokens.numpy(), by_dataset)
