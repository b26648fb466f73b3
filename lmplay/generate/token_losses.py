"""Compute what each token of a text costs a model."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from lmplay.contract import Direction
from lmplay.errors import UserError
from lmplay.generate.writing import choose_direction
from lmplay.model.adapters import derived_once
from lmplay.model.loss import score
from lmplay.runs.trained import TrainedRun

BATCH_TOKENS = 8192


class Track(NamedTuple):
    """A run whose losses of a text are computed in one direction."""

    name: str
    run: TrainedRun
    direction: Direction


def tracks_of(runs: Sequence[TrainedRun], direction: str | None) -> list[Track]:
    """Return the tracks of one run or two: of one run that has two directions, both; else one for each run.

    direction: its name, None for the first. Raises UserError for an unknown one, and for a run that is named twice.
    """
    tracks: list[Track] = []
    for run in runs:
        name = (run.run.chosen or run.run.folder).name
        _check_causal(name, run)
        directions = run.experiment.directions(run.tokenizer.eot, run.context_len)
        if direction or len(runs) > 1 or len(directions) > 2:
            has_it = run.experiment.direction_names or len(runs) == 1
            directions = [choose_direction(run, direction if has_it else None)]
        tracks += [Track(f"{name} {one.name}".rstrip(), run, one) for one in directions]
    if len(tracks) == 2 and tracks[0].name == tracks[1].name:
        raise UserError(f"--score: {tracks[0].name} is named twice")
    return tracks


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
            np.add.at(sums, at, result.losses.cpu().double().numpy())
            np.add.at(counts, at, 1)
    return sums / counts


def _check_causal(name: str, run: TrainedRun) -> None:
    """Raise UserError if the run's model sees later tokens."""
    if not run.experiment.causal:
        raise UserError(
            f"{name}: {run.experiment.name} is not causal: what it says of a token is no probability of the text"
        )


def losses_of_text(text: str, tracks: Sequence[Track]) -> tuple[list[bytes], np.ndarray]:
    """Return the bytes of each token of `text`, and (tokens, tracks) its loss by each of one or two tracks.

    Raises UserError if the losses do not compare.
    """
    _, first, _ = tracks[0]
    for name, run, _ in tracks:
        _check_causal(name, run)
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
