"""What a model is fed: batches of the training data by position, and the validation documents."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmplay.contract import NOT_SCORED, Experiment

DOCUMENT_SHARE = 0.02
SLAB = 64  # validation windows that are made into a batch together: random masks don't depend on the mini-batch size


@dataclass
class Batch:
    """inputs and targets (B, T) int64 on the CPU; targets are -100 where they are not scored. n_bytes: of the scored text;
    where the experiment hides some of its targets, their share of it. ways: names of the ways in which each window is read, where
    there are several; the rows are then those of the first window, in their order, those of the second, ..."""

    inputs: Tensor
    targets: Tensor
    n_scored: int
    n_bytes: float
    labels: Tensor | None = None
    ways: tuple[str, ...] = ()

    @property
    def n_windows(self) -> int:
        return len(self.inputs) // self.n_ways

    @property
    def n_ways(self) -> int:
        return len(self.ways) or 1

    def way_losses(self, losses: Tensor, rows: Tensor | None) -> dict[str, Tensor]:
        """Of a part's losses and indices of scored tokens: what they add to the mean loss of each way, by "loss_<way>"."""
        if not self.ways:
            return {}
        index = torch.arange(len(losses), device=losses.device) if rows is None else rows
        way = index // self.inputs.size(1) % len(self.ways)
        sums = losses.new_zeros(len(self.ways)).index_add_(0, way, losses)  # each way scores the same tokens
        return {f"loss_{name}": total * len(self.ways) / self.n_scored for name, total in zip(self.ways, sums)}

    def parts(self, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
        """The batch `size` rows at a time, on `device`: inputs, targets, indices of the scored tokens, their labels (CPU).

        Parts without a scored token are left out. Indices and labels are None where every token is scored, or unlabelled.
        """
        size += -size % self.n_ways  # no window is parted
        for start in range(0, len(self.inputs), size):
            inputs, targets = self.inputs[start : start + size], self.targets[start : start + size]
            labels = None if self.labels is None else self.labels[start : start + size].flatten()
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
        labels, offered = None, windows.tokens.size
        if windows.scored is not None:
            labels, offered = torch.from_numpy(np.where(windows.scored, 0, NOT_SCORED)), int(windows.scored.sum())
        inputs, targets, labels = self.experiment.make_batch(
            torch.from_numpy(windows.tokens), self.bos, seed_of(self.seed, "make_batch", first), labels
        )
        n_scored = int((targets != NOT_SCORED).sum())
        return Batch(
            inputs,
            targets,
            n_scored,
            float(windows.bytes.sum()) * (n_scored / offered if offered else 1.0),
            ways=self.experiment.ways,
        )


class ValidationFeed:
    """The validation documents of one step of a plan, packed into windows in their order, each token scored once.

    About `max_tokens` of each dataset are taken (0: all): whole documents, but of a long one its beginning only, a
    DOCUMENT_SHARE of max_tokens, or more where the documents are too few. For how sure a comparison is depends on how many
    documents it has, not on how long they are. `documents` names them, and labels in the batches are indices into it.
    """

    def __init__(self, experiment: Experiment, stores: dict, context_len: int, bos: int, max_tokens: int):
        self.experiment, self.stores, self.context_len, self.bos = experiment, stores, context_len, bos
        self.documents: list[dict] = []
        self.datasets: dict[str, tuple[int, int]] = {}  # name: first document, how many
        self._spans: dict[str, np.ndarray] = {}  # name: where each document begins and ends in the store, (n, 2)
        for name, store in stores.items():
            offsets = np.asarray(store.document_offsets[: max_tokens + 1] if max_tokens else store.document_offsets)
            begins, ends = offsets[:-1], offsets[1:]
            if max_tokens and store.n_tokens > max_tokens:
                ends = np.minimum(ends, begins + _longest(ends - begins, max_tokens))
                count = int(np.searchsorted(np.cumsum(ends - begins), max_tokens, "right"))
                begins, ends = begins[:count], ends[:count]
            self._spans[name] = np.stack([begins, ends], axis=1)
            self.datasets[name] = (len(self.documents), len(begins))
            n_bytes = store.bytes_between(begins, ends)
            self.documents += [
                {"dataset": name, "document": i, "tokens": int(ends[i] - begins[i]), "bytes": round(float(n_bytes[i]))}
                for i in range(len(begins))
            ]

    def batches(self) -> Iterator[Batch]:
        """Batches of up to SLAB windows; the last window of a dataset is as short as it happens to be."""
        for name, store in self.stores.items():
            first_document, _ = self.datasets[name]
            starts = np.concatenate(
                [[0], np.cumsum(np.diff(self._spans[name])[:, 0])]
            )  # of each document, in what is scored
            n_tokens = int(starts[-1])
            whole = n_tokens // self.context_len * self.context_len
            step = SLAB * self.context_len
            slabs = [(s, min(s + step, whole), self.context_len) for s in range(0, whole, step)]
            if whole < n_tokens:
                slabs.append((whole, n_tokens, n_tokens - whole))
            for start, stop, length in slabs:
                numbers = np.searchsorted(starts, np.arange(start, stop), "right") - 1
                tokens, scored, n_bytes = _read(store, self._spans[name], starts, start, stop)
                labels = torch.from_numpy(np.where(scored, numbers + first_document, NOT_SCORED)).view(-1, length)
                inputs, targets, labels = self.experiment.make_batch(
                    torch.from_numpy(tokens).view(-1, length), self.bos, seed_of("validation", name, start), labels
                )
                n_scored = int((targets != NOT_SCORED).sum())
                yield Batch(
                    inputs,
                    targets,
                    n_scored,
                    n_bytes * (n_scored / scored.sum() if scored.any() else 1.0),
                    labels,
                    self.experiment.ways,
                )


def _longest(lengths: np.ndarray, max_tokens: int) -> int:
    """How much of a document is taken at the most."""
    low, high = max(1, round(max_tokens * DOCUMENT_SHARE)), max_tokens
    while low < high:  # the most with which all documents fit
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(lengths, middle).sum() <= max_tokens else (low, middle - 1)
    return low


def _read(store, spans: np.ndarray, starts: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Tokens `start` to `stop` of the documents' `spans` joined together, which of them are scored, and the scored bytes."""
    tokens, scored, n_bytes = [], [], 0.0
    for number in range(int(np.searchsorted(starts, start, "right")) - 1, int(np.searchsorted(starts, stop, "left"))):
        shift = spans[number, 0] - starts[number]
        begin, end = int(max(start, starts[number]) + shift), int(min(stop, starts[number + 1]) + shift)
        tokens.append(store.tokens(begin, end))
        mask = store.scored(begin, end)
        scored.append(np.ones(end - begin, dtype=bool) if mask is None else mask)
        n_bytes += float(store.bytes_between(begin, end))
    return np.concatenate(tokens), np.concatenate(scored), n_bytes


def seed_of(*parts) -> int:
    """A 63-bit seed that depends on all parts, and is the same everywhere."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
