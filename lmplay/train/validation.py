"""Scoring the validation documents."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from lmplay.contract import NOT_SCORED, Experiment
from lmplay.model.adapters import derived_once
from lmplay.model.initial_values import seed_of
from lmplay.model.loss import score
from lmplay.train.batches import Batch

DOCUMENT_SHARE = 0.02
SLAB = 64  # validation windows that are made into a batch together: random masks don't depend on the mini-batch size


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
                    self.experiment.direction_names,
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
    ways = feed.experiment.direction_names
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
