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
    """Real text to compare models on: token ids (n,) int64 in the text's order, and where they are from."""

    tokens: Tensor
    origin: str

    def batches(self, run: TrainedRun, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the inputs and targets (directions, T) of each context, as the run's experiment makes them."""
        for window in self.tokens.split(run.context_len):
            inputs, targets, _ = run.experiment.make_batch(window[None], run.tokenizer.eot, 0)
            yield inputs.to(device), targets.to(device)


def text_for(run: TrainedRun, file: Path | None) -> Text:
    """Return up to CHECKED_TOKENS of the file, or of the validation documents that the run was scored on.

    Without either, those of the run's samples. Raises UserError if there are none, and for a file that is not text.
    """
    if file is None and (stores := _validation_stores(run)):
        share = CHECKED_TOKENS // len(stores)
        return Text(
            tokens=torch.cat([torch.from_numpy(store.tokens(0, min(share, store.n_tokens))) for store in stores]),
            origin="validation text",
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
    """Return the model's mean loss on the text, in nats per token."""
    losses = []
    with adapters.derived_once(model):
        for inputs, targets in text.batches(run, adapters.device_of(model)):
            rows = (targets.flatten() != contract.NOT_SCORED).nonzero().squeeze(1)
            losses.append(score(model, inputs, targets, rows).losses.double().cpu())
    return float(torch.cat(losses).mean())
