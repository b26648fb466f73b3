"""Compute what each token of a text costs a model."""

import numpy as np
import torch

from lmplay.contract import Reading
from lmplay.model.adapters import derived_once
from lmplay.model.loss import score
from lmplay.runs.trained import TrainedRun

BATCH_TOKENS = 8192


@torch.inference_mode()
def token_losses(run: TrainedRun, reading: Reading, ids: list[int], context_len: int) -> np.ndarray:
    """(n,) float64: nats of each of the tokens `ids`, in their order, whatever the order in which they are read.

    Windows of up to context_len tokens that overlap by half are scored one by one, and a token's loss is the mean over those that
    hold it: at the edge of each window there is nothing before it, forwards or backwards.
    """
    text, n = torch.tensor(ids), len(ids)
    length = min(context_len, n)
    starts = sorted({*range(0, n - length, max(1, length // 2)), n - length})
    names = [one.name for one in run.experiment.readings(run.tokenizer.eot, length)]
    sums, counts = np.zeros(n), np.zeros(n)
    device = next(run.model.parameters()).device
    rows_at_once = max(1, BATCH_TOKENS // length)
    with derived_once(run.model):
        for k in range(0, len(starts), rows_at_once):
            places = torch.tensor(starts[k : k + rows_at_once])[:, None] + torch.arange(length)
            inputs, targets, labels = run.experiment.make_batch(text[places], run.tokenizer.eot, 0, places)
            mine = slice(names.index(reading.name), None, len(names))
            result = score(run.model, inputs[mine].to(device), targets[mine].to(device))
            where = labels[mine].flatten().numpy()
            np.add.at(sums, where, result.losses.double().cpu().numpy())
            np.add.at(counts, where, 1)
    return sums / counts
