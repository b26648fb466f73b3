"""What a model is fed: batches of the training data by position, and the validation documents."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmplay.contract import NOT_SCORED, Experiment

SLAB = 64   # validation windows that are made into a batch together: random masks don't depend on the mini-batch size


@dataclass
class Batch:
    """inputs and targets (B, T) int64 on the CPU; targets are -100 where they are not scored."""

    inputs: Tensor
    targets: Tensor
    n_scored: int
    n_bytes: float
    labels: Tensor | None = None

    def parts(self, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
        """The batch `size` rows at a time, on `device`: inputs, targets, indices of the scored tokens, their labels (CPU).

        Parts without a scored token are left out. Indices and labels are None where every token is scored, or unlabelled.
        """
        for start in range(0, len(self.inputs), size):
            inputs, targets = self.inputs[start:start + size], self.targets[start:start + size]
            labels = None if self.labels is None else self.labels[start:start + size].flatten()
            rows = None
            mask = targets.flatten() != NOT_SCORED
            if not mask.all():
                rows = mask.nonzero().squeeze(1)
                if not len(rows):
                    continue
                labels = None if labels is None else labels[rows]
            yield _to(inputs, device), _to(targets, device), None if rows is None else _to(rows, device), labels


class TrainingFeed:
    """The batches of one step of a plan. `order` is a lmplay.data.order.SampleOrder."""

    def __init__(self, experiment: Experiment, order, bos: int, seed: int):
        self.experiment, self.order, self.bos, self.seed = experiment, order, bos, seed

    def batch(self, first: int, count: int) -> Batch:
        """The samples at positions `first` to `first + count - 1`: always the same for the same seed."""
        windows = self.order.windows(first, count)
        labels = None
        if windows.scored is not None:
            labels = torch.from_numpy(np.where(windows.scored, 0, NOT_SCORED))
        inputs, targets, labels = self.experiment.make_batch(
            torch.from_numpy(windows.tokens), self.bos, seed_of(self.seed, "make_batch", first), labels)
        return Batch(inputs, targets, int((targets != NOT_SCORED).sum()), float(windows.bytes.sum()))


class ValidationFeed:
    """The validation documents of one step of a plan, packed into windows in their order, each token scored once.

    Of each dataset whole documents within `max_tokens` are taken (0: all); a first document that is longer is cut.
    `documents` names them, and labels in the batches are indices into it.
    """

    def __init__(self, experiment: Experiment, stores: dict, context_len: int, bos: int, max_tokens: int):
        self.experiment, self.stores, self.context_len, self.bos = experiment, stores, context_len, bos
        self.documents: list[dict] = []
        self.datasets: dict[str, tuple[int, int, int]] = {}     # name: first document, documents, tokens
        for name, store in stores.items():
            count, tokens = store.n_documents, store.n_tokens
            if max_tokens and tokens > max_tokens:
                count = max(1, int(np.searchsorted(store.document_offsets, max_tokens, "right")) - 1)
                tokens = min(int(store.document_offsets[count]), max_tokens)
            self.datasets[name] = (len(self.documents), count, tokens)
            offsets = np.minimum(store.document_offsets[:count + 1], tokens)
            n_bytes = store.bytes_between(offsets[:-1], offsets[1:])
            self.documents += [{"dataset": name, "document": i, "tokens": int(offsets[i + 1] - offsets[i]),
                                "bytes": round(float(n_bytes[i]))} for i in range(count)]
        self.n_bytes = sum(d["bytes"] for d in self.documents)

    def batches(self) -> Iterator[Batch]:
        """Batches of up to SLAB windows; the last window of a dataset is as short as it happens to be."""
        for name, store in self.stores.items():
            first_document, count, n_tokens = self.datasets[name]
            whole = n_tokens // self.context_len * self.context_len
            step = SLAB * self.context_len
            starts = [(s, min(s + step, whole), self.context_len) for s in range(0, whole, step)]
            if whole < n_tokens:
                starts.append((whole, n_tokens, n_tokens - whole))
            offsets = np.asarray(store.document_offsets[:count + 1])
            for start, stop, length in starts:
                labels = np.searchsorted(offsets, np.arange(start, stop), "right") - 1 + first_document
                scored = store.scored(start, stop)
                if scored is not None:
                    labels[~scored] = NOT_SCORED
                window = torch.from_numpy(store.tokens(start, stop)).view(-1, length)
                inputs, targets, labels = self.experiment.make_batch(
                    window, self.bos, seed_of("validation", name, start), torch.from_numpy(labels).view(-1, length))
                yield Batch(inputs, targets, int((targets != NOT_SCORED).sum()), 0.0, labels)


def seed_of(*parts) -> int:
    """A 63-bit seed that depends on all parts, and is the same everywhere."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
