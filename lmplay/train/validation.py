"""Score the validation documents."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lmplay.contract import NOT_SCORED, Experiment
from lmplay.data.plan_spec import NEWEST_ORDER, Plan
from lmplay.data.store import TokenStore
from lmplay.errors import UserError
from lmplay.initial_values import seed_of
from lmplay.model.adapters import derived_once
from lmplay.model.loss import score
from lmplay.model.proofs import prove_shortcuts
from lmplay.runs.names import DATASET_PREFIX, DIRECTION
from lmplay.train.batches import Batch
from lmplay.train.ranks import ALONE, Ranks

DOCUMENT_SHARE = 0.02
WINDOWS_AT_ONCE = 64  # are made into a batch together, so that random masks don't depend on the micro-batch size


class ValidationFeed:
    """The validation documents of one phase, packed into windows in their order, each token scored once.

    About `max_tokens` per dataset are taken (0: all), in whole documents. A long document is cut to DOCUMENT_SHARE of
    max_tokens, or to more if the documents are few: how precise a comparison is depends on the number of documents, not
    on their length. It is cut to its beginning, or, if nothing is scored there, around its first scored token.
    `documents` names them; labels in the batches are indices into it. data_order: in the first, the beginning stays.
    """

    def __init__(
        self,
        experiment: Experiment,
        stores: dict[str, TokenStore],
        context_len: int,
        bos: int,
        max_tokens: int,
        *,
        data_order: int = NEWEST_ORDER,
    ) -> None:
        self.experiment, self.stores, self.context_len, self.bos = experiment, stores, context_len, bos
        self.documents: list[dict[str, Any]] = []
        self.datasets: dict[str, tuple[int, int]] = {}  # name: first document, how many
        self._spans: dict[str, np.ndarray] = {}  # name: where each document begins and ends in the store, (n, 2)
        for name, store in stores.items():
            offsets = np.asarray(store.document_offsets[: max_tokens + 1] if max_tokens else store.document_offsets)
            begins, ends = offsets[:-1], offsets[1:]
            if max_tokens and store.n_tokens > max_tokens:
                begins, ends = _cut(store, begins, ends, _longest(ends - begins, max_tokens), data_order)
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
        """Yield batches of up to WINDOWS_AT_ONCE windows. The last window of a dataset may be shorter."""
        for name, store in self.stores.items():
            first_document, _ = self.datasets[name]
            lengths = np.diff(self._spans[name])[:, 0]
            starts = np.concatenate([[0], np.cumsum(lengths)])  # of each document, in what is scored
            n_tokens = int(starts[-1])
            whole = n_tokens // self.context_len * self.context_len
            step = WINDOWS_AT_ONCE * self.context_len
            chunks = [(s, min(s + step, whole), self.context_len) for s in range(0, whole, step)]
            if whole < n_tokens:
                chunks.append((whole, n_tokens, n_tokens - whole))
            for start, stop, length in chunks:
                numbers = np.searchsorted(starts, np.arange(start, stop), "right") - 1
                tokens, scored, n_bytes = _read(store, self._spans[name], starts, start=start, stop=stop)
                labels = torch.from_numpy(np.where(scored, numbers + first_document, NOT_SCORED)).view(-1, length)
                inputs, targets, moved = self.experiment.make_batch(
                    torch.from_numpy(tokens).view(-1, length), self.bos, seed_of("validation", name, start), labels
                )
                n_scored = int((targets != NOT_SCORED).sum())
                yield Batch(
                    inputs=inputs,
                    targets=targets,
                    n_scored=n_scored,
                    n_bytes=n_bytes * (n_scored / scored.sum() if scored.any() else 1.0),
                    labels=moved,
                    directions=self.experiment.direction_names,
                )


def _longest(lengths: np.ndarray, max_tokens: int) -> int:
    """Return the most tokens that are taken of one document."""
    low, high = max(1, round(max_tokens * DOCUMENT_SHARE)), max_tokens
    while low < high:  # the most with which all documents fit
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(lengths, middle).sum() <= max_tokens else (low, middle - 1)
    return low


def _cut(
    store: TokenStore, begins: np.ndarray, ends: np.ndarray, longest: int, data_order: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return where what is taken of each document begins and ends: at most `longest` tokens, some of them scored."""
    cut = np.minimum(ends, begins + longest)
    first = store.first_scored(begins, ends)
    moved = first >= cut
    if data_order == 1 and not moved.all():
        return begins, cut
    begins = np.where(moved, np.maximum(begins, np.minimum(first - longest // 2, ends - longest)), begins)
    return begins, np.minimum(ends, begins + longest)


def _read(
    store: TokenStore, spans: np.ndarray, starts: np.ndarray, *, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return tokens `start` to `stop` of the joined documents, which of them are scored, and the scored bytes."""
    tokens, scored, n_bytes = [], [], 0.0
    for number in range(int(np.searchsorted(starts, start, "right")) - 1, int(np.searchsorted(starts, stop, "left"))):
        shift = spans[number, 0] - starts[number]
        begin, end = int(max(start, starts[number]) + shift), int(min(stop, starts[number + 1]) + shift)
        tokens.append(store.tokens(begin, end))
        mask = store.scored(begin, end)
        scored.append(np.ones(end - begin, dtype=bool) if mask is None else mask)
        n_bytes += float(store.bytes_between(begin, end))
    return np.concatenate(tokens), np.concatenate(scored), n_bytes


class PositionLosses:
    """Losses by position in the order in which windows are fed, one row per direction.

    sums: (directions, context_len) float64, in nats. counts: (directions, context_len), scored tokens.
    """

    def __init__(self, context_len: int, directions: tuple[str, ...]) -> None:
        self.directions = directions or ("",)
        self.sums = torch.zeros(len(self.directions), context_len, dtype=torch.float64)
        self.counts = torch.zeros_like(self.sums)

    def add(self, losses: torch.Tensor, rows: torch.Tensor | None, length: int) -> None:
        """Add the losses of the tokens `rows` (None: all) of windows of `length` tokens, each in all directions."""
        rows = torch.arange(len(losses)) if rows is None else rows.cpu()
        index = rows // length % len(self.directions) * self.sums.size(1) + rows % length
        self.sums.view(-1).index_add_(0, index, losses)
        self.counts.view(-1).index_add_(0, index, torch.ones_like(losses))

    def by_direction(self) -> dict[str, float]:
        """Return the mean loss of each direction, by "loss_<direction>"; nothing if there is only one."""
        sums, counts = self.sums.sum(1).tolist(), self.counts.sum(1).tolist()
        named = zip(self.directions, sums, counts, strict=True)
        return {f"loss_{direction}": total / n for direction, total, n in named if direction and n}

    def rows(self, bins: int) -> list[dict[str, Any]]:
        """Return the mean loss in about `bins` ranges of positions, from 1: the first alone, then ever wider."""
        length = self.sums.size(1)
        limits = [1, *np.geomspace(2, length + 1, bins), length + 1] if bins < length else np.arange(1, length + 2)
        edges = np.unique(np.rint(limits).astype(int)).tolist()
        found = []
        for number, direction in enumerate(self.directions):
            for first, beyond in itertools.pairwise(edges):
                n = int(self.counts[number, first - 1 : beyond - 1].sum())
                if n:
                    found.append(
                        {
                            DIRECTION: direction,
                            "first_position": first,
                            "last_position": beyond - 1,
                            "scored_tokens": n,
                            "loss": float(self.sums[number, first - 1 : beyond - 1].sum()) / n,
                        }
                    )
        return found


@dataclass
class ValidationResult:
    """What a validation found, as means over the directions in which the experiment reads.

    loss: nats per scored token. losses: (documents,) float64, summed nats of each document. tokens: (documents,) int64,
    how many were scored. by_dataset: loss of each of which a token was scored.
    """

    loss: float
    accuracy: float
    bits_per_byte: float
    n_tokens: int
    losses: np.ndarray
    tokens: np.ndarray
    by_dataset: dict[str, float]
    positions: PositionLosses | None = None


def _parts(
    ranks: Ranks, batch: Batch, size: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]]:
    """Yield the micro-batches of this rank; of a sharded model, as many as the other ranks have."""
    part = ranks.share(batch)
    if not ranks.sharded:
        yield from part.parts(size, device)
        return
    for one in part.rounds(-(-part.most_rows(ranks.size) // size)):
        for scored in (True, False):
            yield from one.parts(len(one.inputs), device, scored=scored)


@torch.no_grad()
def validate(
    model: torch.nn.Module,
    feed: ValidationFeed,
    micro_batch_size: int,
    device: torch.device,
    precision: Callable[[], AbstractContextManager],
    by_position: bool = False,
    *,
    ranks: Ranks = ALONE,
) -> ValidationResult:
    """Score every validation document. `precision` makes the context to compute in. ranks: who share it out.

    Losses by position are kept if asked for, and for an experiment that reads in several directions.
    Raises UserError if no token is scored.
    """
    directions = feed.experiment.direction_names
    positions = PositionLosses(feed.context_len, directions) if by_position or directions else None
    losses = torch.zeros(len(feed.documents), dtype=torch.float64)
    tokens = torch.zeros(len(feed.documents), dtype=torch.int64)
    n_correct, n_bytes = 0, 0.0
    was_training = model.training
    model.eval()
    for batch in itertools.islice(feed.batches(), 0 if ranks.sharded else 1):
        prove_shortcuts(model, batch.inputs.to(device), batch.targets.to(device), precision)
    with derived_once(model, precision):
        for batch in feed.batches():
            n_bytes += batch.n_bytes
            for inputs, targets, rows, labels in _parts(ranks, batch, micro_batch_size, device):
                with precision():
                    result = score(model, inputs, targets, rows)
                assert labels is not None  # ValidationFeed labels every token with its document
                of_tokens = result.losses.cpu().double()
                losses.index_add_(0, labels, of_tokens)
                if positions is not None:
                    positions.add(of_tokens, rows, inputs.size(1))
                tokens.index_add_(0, labels, torch.ones_like(labels))
                n_correct += int(result.correct.sum())
    model.train(was_training)
    right = torch.tensor(n_correct)
    ranks.add_up(losses, tokens, right, *([] if positions is None else [positions.sums, positions.counts]))
    n_correct = int(right)
    n = len(directions) or 1
    losses, tokens = losses / n, tokens // n
    total, n_tokens = float(losses.sum()), int(tokens.sum())
    if not n_tokens:
        raise UserError("none of the validation tokens is scored, so there is no loss: raise --validation-tokens")
    parts = {name: slice(first, first + count) for name, (first, count) in feed.datasets.items()}
    by_dataset = {
        name: float(losses[part].sum()) / int(tokens[part].sum()) for name, part in parts.items() if tokens[part].any()
    }
    return ValidationResult(
        loss=total / n_tokens,
        accuracy=n_correct / n / n_tokens,
        bits_per_byte=total / np.log(2) / max(1.0, n_bytes / n),
        n_tokens=n_tokens,
        losses=losses.numpy(),
        tokens=tokens.numpy(),
        by_dataset=by_dataset,
        positions=positions,
    )


def validation_row(result: ValidationResult, feed: ValidationFeed, plan: Plan) -> dict[str, Any]:
    """Return the figures of validate.csv. The columns are the same for all phases of the plan."""
    row: dict[str, Any] = {
        "loss": result.loss,
        "accuracy": result.accuracy,
        "bits_per_byte": result.bits_per_byte,
        "validation_tokens": result.n_tokens,
        "validation_documents": len(feed.documents),
    }
    row |= {
        DATASET_PREFIX + name: result.by_dataset.get(name) if len(feed.datasets) > 1 else None
        for phase in plan.phases
        if len(phase.datasets) > 1
        for name in phase.datasets
    }
    return row | (result.positions.by_direction() if result.positions is not None else {})


def scored_documents(result: ValidationResult, feed: ValidationFeed) -> list[dict[str, Any]]:
    """Return the documents with how many tokens of each were scored."""
    return [document | {"scored_tokens": int(n)} for document, n in zip(feed.documents, result.tokens, strict=True)]
