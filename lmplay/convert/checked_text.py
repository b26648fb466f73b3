"""Compare two models on real text: their logits and their losses."""

import glob
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lmplay import contract
from lmplay.data.store import TokenStore
from lmplay.errors import UserError
from lmplay.files import data_folder, read_clean
from lmplay.model import adapters
from lmplay.model.loss import score
from lmplay.runs.trained import TrainedRun

LARGEST_DIFFERENCE = 1e-4  # of two logits that count as equal, in float32
CHECKED_TOKENS = 8192


@dataclass
class Text:
    """Real text to compare models on: token ids (n,) int64 in the text's order, and where they are from.

    scored: (n,) bool, which of them a loss is over; None: all. Prompts are not.
    """

    tokens: Tensor
    origin: str
    scored: Tensor | None = None

    @property
    def n_scored(self) -> int:
        """How many tokens a loss is over."""
        return len(self.tokens) if self.scored is None else int(self.scored.sum())

    def batches(self, run: TrainedRun, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the inputs and targets (directions, T) of each context, as the run's experiment makes them."""
        labels = torch.zeros_like(self.tokens)
        if self.scored is not None:
            labels[~self.scored] = contract.NOT_SCORED
        for window, of_window in zip(self.tokens.split(run.context_len), labels.split(run.context_len), strict=True):
            inputs, targets, _ = run.experiment.make_batch(window[None], run.tokenizer.eot, 0, of_window[None])
            yield inputs.to(device), targets.to(device)


def text_for(run: TrainedRun, file: Path | None) -> Text:
    """Return up to CHECKED_TOKENS of the file, or of the validation documents that the run was scored on.

    Without either, those of the run's samples. Raises UserError if there are none, and for a file that is not text.
    """
    if file is None and (stores := _validation_stores(run)):
        ends = [min(CHECKED_TOKENS // len(stores), store.n_tokens) for store in stores]
        masks = [store.scored(0, end) for store, end in zip(stores, ends, strict=True)]
        return Text(
            tokens=torch.cat([torch.from_numpy(store.tokens(0, end)) for store, end in zip(stores, ends, strict=True)]),
            origin="validation text",
            scored=torch.cat(
                [
                    torch.ones(end, dtype=torch.bool) if mask is None else torch.from_numpy(mask)
                    for mask, end in zip(masks, ends, strict=True)
                ]
            ),
        )
    if file is None:
        file = run.run.samples
        if not file.is_file():
            raise UserError(
                "the run's validation text is not on this machine and it has no samples: name a text with --text FILE"
            )
    text = read_clean(file, limit=16 * CHECKED_TOKENS)
    tokens = run.tokenizer.encode(text)[:CHECKED_TOKENS]
    if not tokens:
        raise UserError(f"{file} is empty: there is nothing to compare on")
    return Text(tokens=torch.tensor(tokens), origin=file.name)


def _validation_stores(run: TrainedRun) -> list[TokenStore]:
    """Return this machine's stores of the run's validation documents."""
    found = []
    for name in run.run.get("data", "datasets") or {}:
        wanted = run.run.get("data", "datasets", name, "validation", "hash")
        for folder in sorted((data_folder() / "stores").glob(f"{glob.escape(Path(name).name)}-validation-*")):
            try:
                store = TokenStore.open(folder)
            except UserError:
                continue
            if store.hash == wanted and store.vocab_size == run.tokenizer.vocab_size and store.n_tokens:
                found.append(store)
                break
    return found


@torch.no_grad()
def largest_difference(one: torch.nn.Module, other: torch.nn.Module, run: TrainedRun, text: Text) -> float:
    """Return the largest difference of the two models' logits on the text; infinite if one of them is not finite."""
    largest = 0.0
    with adapters.derived_once(one), adapters.derived_once(other):
        for inputs, _ in text.batches(run, adapters.device_of(one)):
            ours, theirs = (adapters.split_output(model(inputs))[0].float() for model in (one, other))
            if ours.shape != theirs.shape:
                return math.inf
            difference = float((ours - theirs).abs().max())
            largest = max(largest, difference if math.isfinite(difference) else math.inf)
    return largest


@torch.no_grad()
def loss_on(model: torch.nn.Module, run: TrainedRun, text: Text) -> float:
    """Return the model's mean loss on the scored tokens of the text, in nats per token; NaN if there are none."""
    losses = []
    with adapters.derived_once(model):
        for inputs, targets in text.batches(run, adapters.device_of(model)):
            rows = (targets.flatten() != contract.NOT_SCORED).nonzero().squeeze(1)
            if len(rows):
                losses.append(score(model, inputs, targets, rows).losses.cpu().double())
    return float(torch.cat(losses).mean()) if losses else math.nan
