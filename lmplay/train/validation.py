"""Score the validation documents."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from lmplay.contract import NOT_SCORED, Experiment
from lmplay.data.plan_spec import NEWEST_ORDER, Plan
from lmplay.data.store import TokenStore
from lmplay.errors import UserError
from lmplay.initial_values import seed_of
from lmplay.model.adapters import derived_once
from lmplay.model.loss import Score, score
from lmplay.model.proofs import prove_shortcuts
from lmplay.runs.names import DATASET_PREFIX, MIDWAY_PREFIX
from lmplay.train.batches import Batch
from lmplay.train.held_out import count_midway, scored_spans
from lmplay.train.position_losses import PositionLosses
from lmplay.train.ranks import ALONE, Ranks

WINDOWS_AT_ONCE = 64  # are made into a batch together, so that random masks don't depend on the micro-batch size


class ValidationFeed:
    """The validation documents of one phase, packed into windows in their order, each token scored once.

    About `max_tokens` per dataset are taken (0: all), in whole documents. A long document is cut to DOCUMENT_SHARE of
    max_tokens, or to more if the documents are few: how precise a comparison is depends on the number of documents, not
    on their length. It is cut to its beginning, or, if nothing is scored there, around its first scored token.
    `documents` names them; labels in the batches are indices into it. data_order: in the first, the beginning stays.

    Midway only the first documents of each dataset are scored, about `midway_tokens` (0: all), in the same windows as
    at the end: a document's loss under given weights is the same.
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
        midway_tokens: int = 0,
    ) -> None:
        self.experiment, self.stores, self.context_len, self.bos = experiment, stores, context_len, bos
        self.documents: list[dict[str, Any]] = []
        self.datasets: dict[str, tuple[int, int]] = {}  # name: first document, how many
        self._spans: dict[str, np.ndarray] = {}  # name: where each document begins and ends in the store, (n, 2)
        self._n_midway: dict[str, int] = {}  # name: how many of its documents, the first ones, are scored midway
        for name, store in stores.items():
            begins, ends = scored_spans(store, max_tokens, data_order)
            self._spans[name] = np.stack([begins, ends], axis=1)
            self.datasets[name] = (len(self.documents), len(begins))
            self._n_midway[name] = count_midway(begins, ends, midway_tokens)
            n_bytes = store.bytes_between(begins, ends)
            self.documents += [
                {"dataset": name, "document": i, "tokens": int(ends[i] - begins[i]), "bytes": round(float(n_bytes[i]))}
                for i in range(len(begins))
            ]

    @property
    def has_part(self) -> bool:
        """Whether fewer documents are scored midway than at the end."""
        return any(self._n_midway[name] < count for name, (_, count) in self.datasets.items())

    @cached_property
    def scored_midway(self) -> np.ndarray:
        """Which documents are scored midway, (documents,) bool."""
        found = np.zeros(len(self.documents), dtype=bool)
        for name, (first, _) in self.datasets.items():
            found[first : first + self._n_midway[name]] = True
        return found

    @cached_property
    def scored_tokens(self) -> np.ndarray:
        """How many tokens of each document are scored, (documents,) int64, as means over the directions."""
        found = torch.zeros(len(self.documents), dtype=torch.int64)
        for batch in self.batches():
            assert batch.labels is not None
            labels = batch.labels[batch.targets != NOT_SCORED]
            found.index_add_(0, labels, torch.ones_like(labels))
        return (found // (len(self.experiment.direction_names) or 1)).numpy()

    def batches(self, midway: bool = False) -> Iterator[Batch]:
        """Yield batches of up to WINDOWS_AT_ONCE windows. The last window of a dataset may be shorter."""
        for name, store in self.stores.items():
            lengths = np.diff(self._spans[name])[:, 0]
            starts = np.concatenate([[0], np.cumsum(lengths)])  # of each document, in what is scored
            n_tokens = int(starts[-1])
            whole = n_tokens // self.context_len * self.context_len
            step = WINDOWS_AT_ONCE * self.context_len
            chunks = [(s, min(s + step, whole), self.context_len) for s in range(0, whole, step)]
            if whole < n_tokens:
                chunks.append((whole, n_tokens, n_tokens - whole))
            end = int(starts[self._n_midway[name]]) if midway else n_tokens
            for start, stop, length in chunks:
                if start < end:
                    yield self._batch(name, store, starts, span=(start, stop), length=length, end=min(stop, end))

    def _batch(
        self, name: str, store: TokenStore, starts: np.ndarray, span: tuple[int, int], length: int, end: int
    ) -> Batch:
        """Return the batch of the tokens of `span`, without the windows and the documents that begin at `end`."""
        start, stop = span
        numbers = np.searchsorted(starts, np.arange(start, stop), "right") - 1
        tokens, scored, n_bytes = _read(store, self._spans[name], starts, start=start, stop=stop)
        labels = torch.from_numpy(np.where(scored, numbers + self.datasets[name][0], NOT_SCORED)).view(-1, length)
        inputs, targets, moved = self.experiment.make_batch(
            torch.from_numpy(tokens).view(-1, length), self.bos, seed_of("validation", name, start), labels
        )
        assert moved is not None  # as labels were given
        if end < stop:  # all windows are made, so that random masks are the same
            _, scored, n_bytes = _read(store, self._spans[name], starts, start=start, stop=end)
            rows = -(-(end - start) // length) * (len(self.experiment.direction_names) or 1)
            inputs, targets, moved = inputs[:rows], targets[:rows], moved[:rows]
            beyond = moved >= self.datasets[name][0] + self._n_midway[name]
            targets = targets.masked_fill(beyond, NOT_SCORED)
        n_scored = int((targets != NOT_SCORED).sum())
        return Batch(
            inputs=inputs,
            targets=targets,
            n_scored=n_scored,
            n_bytes=n_bytes * (n_scored / scored.sum() if scored.any() else 1.0),
            labels=moved,
            directions=self.experiment.direction_names,
        )


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


@dataclass
class ValidationResult:
    """What a validation found, as means over the directions in which the experiment reads.

    loss: nats per scored token. losses: (documents,) float64, summed nats of each document, NaN of one that was left
    out midway. tokens: (documents,) int64, how many were scored. by_dataset: loss of each of which a token was scored.
    midway: the same on the documents that are scored midway, if these are not all and all were scored.
    """

    loss: float
    accuracy: float
    bits_per_byte: float
    n_tokens: int
    losses: np.ndarray
    tokens: np.ndarray
    by_dataset: dict[str, float]
    positions: PositionLosses | None = None
    midway: "ValidationResult | None" = None


class _Sums:
    """What scoring adds up. losses, tokens, correct: (documents,), over all directions; n_bytes: of the text."""

    def __init__(self, feed: ValidationFeed, by_position: bool) -> None:
        self.feed, self.n_bytes = feed, 0.0
        self.directions = feed.experiment.direction_names
        self.losses = torch.zeros(len(feed.documents), dtype=torch.float64)
        self.tokens, self.correct = (torch.zeros(len(feed.documents), dtype=torch.int64) for _ in range(2))
        keeps = by_position or bool(self.directions)
        self.positions = PositionLosses(feed.context_len, self.directions) if keeps else None
        both = bool(self.directions) and feed.has_part
        self.positions_midway = PositionLosses(feed.context_len, self.directions) if both else None

    def add(self, result: Score, labels: torch.Tensor, rows: torch.Tensor | None, length: int) -> None:
        """Add a micro-batch. labels: the document of each scored token; rows, length: as PositionLosses has them."""
        losses = result.losses.cpu().double()
        self.losses.index_add_(0, labels, losses)
        self.tokens.index_add_(0, labels, torch.ones_like(labels))
        self.correct.index_add_(0, labels, result.correct.cpu().long())
        if self.positions is not None:
            self.positions.add(losses, rows, length)
        if self.positions_midway is not None:
            inside = torch.from_numpy(self.feed.scored_midway)[labels]
            rows = (torch.arange(len(labels)) if rows is None else rows.cpu())[inside]
            self.positions_midway.add(losses[inside], rows, length)

    def tensors(self) -> list[torch.Tensor]:
        """Return what the ranks add up."""
        kept = [one for one in (self.positions, self.positions_midway) if one is not None]
        return [self.losses, self.tokens, self.correct, *(of for one in kept for of in (one.sums, one.counts))]

    def result(self, midway: bool) -> ValidationResult:
        """Return what was found. Raises UserError if no token was scored."""
        feed = self.feed
        if midway:
            return self._on(feed.scored_midway, self.n_bytes, self.positions)
        found = self._on(np.ones(len(feed.documents), dtype=bool), self.n_bytes, self.positions)
        if feed.has_part:
            n_bytes = np.array([document["bytes"] for document in feed.documents], dtype=np.float64)
            part = float(n_bytes[feed.scored_midway].sum() / max(1.0, n_bytes.sum()))
            found.midway = self._on(feed.scored_midway, self.n_bytes * part, self.positions_midway)
        return found

    def _on(self, chosen: np.ndarray, n_bytes: float, positions: PositionLosses | None) -> ValidationResult:
        """Return the figures on the chosen documents, (documents,) bool."""
        n = len(self.directions) or 1
        losses = np.where(chosen, self.losses.numpy() / n, np.nan)
        tokens = np.where(chosen, self.tokens.numpy() // n, 0)
        total, n_tokens = float(losses[chosen].sum()), int(tokens.sum())  # NaN, too, if a loss that counts is
        if not n_tokens:
            raise UserError("none of the validation tokens is scored, so there is no loss: raise --validation-tokens")
        parts = {name: slice(first, first + count) for name, (first, count) in self.feed.datasets.items()}
        return ValidationResult(
            loss=total / n_tokens,
            accuracy=int(self.correct.numpy()[chosen].sum()) / n / n_tokens,
            bits_per_byte=total / np.log(2) / max(1.0, n_bytes / n),
            n_tokens=n_tokens,
            losses=losses,
            tokens=tokens,
            by_dataset={
                name: float(losses[part][chosen[part]].sum()) / int(tokens[part].sum())
                for name, part in parts.items()
                if tokens[part].any()
            },
            positions=positions,
        )


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
    midway: bool = False,
) -> ValidationResult:
    """Score the validation documents. `precision` makes the context to compute in. ranks: who share them out.

    midway: those only that are scored midway. Losses by position are kept if asked for, and for an experiment that
    reads in several directions. Raises UserError if no token is scored.
    """
    sums = _Sums(feed, by_position)
    was_training = model.training
    model.eval()
    for batch in itertools.islice(feed.batches(midway), 0 if ranks.sharded else 1):
        prove_shortcuts(model, batch.inputs.to(device), batch.targets.to(device), precision)
    with derived_once(model, precision):
        for batch in feed.batches(midway):
            sums.n_bytes += batch.n_bytes
            for inputs, targets, rows, labels in _parts(ranks, batch, micro_batch_size, device):
                with precision():
                    result = score(model, inputs, targets, rows)
                assert labels is not None  # ValidationFeed labels every token with its document
                sums.add(result, labels, rows, length=inputs.size(1))
    model.train(was_training)
    ranks.add_up(*sums.tensors())
    return sums.result(midway)


def validation_row(result: ValidationResult, feed: ValidationFeed, plan: Plan) -> dict[str, Any]:
    """Return the figures of validate.csv. The columns are the same for all phases of the plan.

    Where fewer documents are scored midway, the row of all of them also has their figures, with MIDWAY_PREFIX.
    """
    row: dict[str, Any] = {
        "loss": result.loss,
        "accuracy": result.accuracy,
        "bits_per_byte": result.bits_per_byte,
        "validation_tokens": result.n_tokens,
        "validation_documents": int(np.isfinite(result.losses).sum()),
    }
    row |= _by_part(result, feed, plan)
    if feed.has_part:
        of = result.midway
        names = ("loss", "accuracy", "bits_per_byte", *_by_part(result, feed, plan))
        known = {} if of is None else {name: getattr(of, name) for name in names[:3]} | _by_part(of, feed, plan)
        row |= {MIDWAY_PREFIX + name: known.get(name) for name in names}
    return row


def _by_part(result: ValidationResult, feed: ValidationFeed, plan: Plan) -> dict[str, float | None]:
    """Return the losses on single datasets of the plan, and in single directions."""
    found = {
        DATASET_PREFIX + name: result.by_dataset.get(name) if len(feed.datasets) > 1 else None
        for phase in plan.phases
        if len(phase.datasets) > 1
        for name in phase.datasets
    }
    return found | (result.positions.by_direction() if result.positions is not None else {})


def scored_documents(feed: ValidationFeed) -> list[dict[str, Any]]:
    """Return the documents with how many tokens of each are scored at the end."""
    return [
        document | {"scored_tokens": int(n)} for document, n in zip(feed.documents, feed.scored_tokens, strict=True)
    ]
