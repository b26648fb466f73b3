"""Compute what each token of a text costs a model."""

import numpy as np
import torch

from lmplay.contract import Direction
from lmplay.errors import UserError
from lmplay.model.adapters import derived_once
from lmplay.model.loss import score
from lmplay.runs.trained import TrainedRun

BATCH_TOKENS = 8192


@torch.inference_mode()
def token_losses(run: TrainedRun, direction: Direction, ids: list[int], context_len: int) -> np.ndarray:
    """Return (n,) float64: the nats of each of the tokens `ids`, in the text's order whatever the direction.

    Windows of up to context_len tokens overlap by half. A token's loss is the mean over the windows that hold it: at
    the edge of a window there is nothing before it, forwards or backwards.
    """
    text, n = torch.tensor(ids), len(ids)
    length = min(context_len, n)
    starts = sorted({*range(0, n - length, max(1, length // 2)), n - length})
    names = [one.name for one in run.experiment.directions(run.tokenizer.eot, length)]
    sums, counts = np.zeros(n), np.zeros(n)
    device = next(run.model.parameters()).device
    rows_at_once = max(1, BATCH_TOKENS // length)
    with derived_once(run.model):
        for k in range(0, len(starts), rows_at_once):
            positions = torch.tensor(starts[k : k + rows_at_once])[:, None] + torch.arange(length)
            inputs, targets, labels = run.experiment.make_batch(text[positions], run.tokenizer.eot, 0, positions)
            assert labels is not None
            rows = slice(names.index(direction.name), None, len(names))
            result = score(run.model, inputs[rows].to(device), targets[rows].to(device))
            at = labels[rows].flatten().numpy()
            np.add.at(sums, at, result.losses.double().cpu().numpy())
            np.add.at(counts, at, 1)
    return sums / counts


def losses_of_text(text: str, tracks: list[tuple[str, TrainedRun, Direction]]) -> tuple[list[bytes], np.ndarray]:
    """Return the bytes of each token of `text`, and (tokens, tracks) its loss for one or two (name, run, direction).

    Raises UserError if the losses do not compare.
    """
    first = tracks[0][1]
    for name, run, _ in tracks:
        if not run.experiment.causal:
            raise UserError(
                f"{name}: {run.experiment.name} is not causal: what it says of a token is no probability of the text"
            )
        if run.tokenizer.fingerprint != first.tokenizer.fingerprint:
            raise UserError(
                f"{tracks[0][0]} and {name} cut text into different tokens "
                f"({first.tokenizer.spec}, {run.tokenizer.spec}): "
                "only runs with one tokenizer can be scored token for token"
            )
    ids = first.tokenizer.encode(text)
    if not ids:
        raise UserError("there is no text to score")
    context_len = min(run.context_len for _, run, _ in tracks)
    losses = np.stack([token_losses(run, direction, ids, context_len) for _, run, direction in tracks], axis=1)
    return [first.tokenizer.decode_bytes([token]) for token in ids], losses
