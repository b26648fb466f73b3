"""Order the training samples: which window of tokens comes at which position.

The order is a pure function of (phase of the plan, seed, position), at the same cost for every position. So runs with
one plan and seed see the same tokens at the same position, whatever the micro-batch size and however often they were
interrupted. It uses 64-bit integer arithmetic only: the same on every platform and with every library version.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from lmplay.data.plan_spec import NEWEST_ORDER, PhaseSpec
from lmplay.data.store import TokenStore

BLOCK = 16384  # positions over which the shares of interleaved datasets are exact
STRETCH = 16  # windows that share where they begin; fewer would put more seams into the text
# Rounds of the Feistel network: enough for permutations of a handful to be evenly distributed, too (see the tests).
ROUNDS = 24
AHEAD = 512  # windows that are found together: a few take hundreds of small operations, and many take as many


@dataclass
class Windows:
    """Consecutive samples: `count` windows of `T` tokens.

    tokens: (count, T) int64. scored: (count, T) bool, False where a token is context only; None where all are scored.
    bytes: (count,) float64, UTF-8 bytes of each window's scored text.
    datasets: (count,) int64, index into the phase's list of datasets.
    """

    tokens: np.ndarray
    scored: np.ndarray | None
    bytes: np.ndarray
    datasets: np.ndarray


class SampleOrder:
    """The samples of one phase of a plan.

    A dataset's N training tokens are a circle. Each epoch cuts it at another position and divides it into ceil(N / T)
    windows, visited in a random order. The last window runs on into tokens that the first one holds already. They are
    not scored there, so every token is scored exactly once per epoch.

    Each STRETCH windows are a circle of their own, cut at another position. So windows of one epoch begin anywhere in
    the period of a text that repeats itself, as verse and tables do. Otherwise learned positions would lock on to the
    one position of an epoch, and the loss would jump where the next epoch begins. One window of a stretch runs on from
    its end to its beginning. `version` 1 is the order of runs made before, which has no stretches.

    Cuts are between documents if all have the same length and windows hold a whole number of them. Windows then begin
    with a document. Several datasets are interleaved by their weights (shares of the windows); by default each gives
    documents at the same rate.

    Without `shuffle` the windows are consecutive pieces of the joined documents, from the first token on; what does not
    fill a last window is left out. This is the usual packing of pre-training: the rest of a group of documents is
    carried into the next.

    n_windows: the number of windows in the phase. Those beyond exist too, as if the phase went on.
    """

    def __init__(
        self,
        phase: PhaseSpec,
        stores: dict[str, TokenStore],
        context_len: int,
        seed: int,
        *,
        shuffle: bool = True,
        version: int = NEWEST_ORDER,
    ):
        self.context_len = context_len
        self.parts = [
            _Part(
                stores[name],
                context_len,
                key=_key(seed, phase.name, name) if shuffle else None,
                stretch=STRETCH if shuffle and version > 1 else None,
            )
            for name in phase.datasets
        ]
        self._block_key = _key(seed, phase.name)
        self._block = lru_cache(maxsize=2)(self._shuffled_block)
        if phase.weights is None:
            weights = [part.store.n_tokens / part.store.n_documents for part in self.parts]
        else:
            weights = [phase.weights[name] for name in phase.datasets]
        self._counts = _block_counts(weights)
        self._labels = np.repeat(np.arange(len(self.parts)), self._counts)
        self.n_windows = self._n_windows(phase)

    def windows(self, first: int, count: int) -> Windows:
        """Return the samples at positions `first` to `first + count - 1`."""
        datasets, indices = self._located(np.arange(first, first + count, dtype=np.int64))
        tokens = np.empty((count, self.context_len), dtype=np.int64)
        scored = np.ones((count, self.context_len), dtype=bool)
        n_bytes = np.empty(count, dtype=np.float64)
        all_scored = True
        for number, part in enumerate(self.parts):
            rows = np.flatnonzero(datasets == number)
            if len(rows):
                n_bytes[rows], part_scored = part.read(indices[rows], rows, tokens, scored)
                all_scored &= part_scored
        return Windows(tokens, None if all_scored else scored, n_bytes, datasets)

    def _located(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the dataset at each position, and the number of windows of that dataset before it."""
        if len(self.parts) == 1:
            return np.zeros_like(positions), positions
        datasets, indices = np.empty_like(positions), np.empty_like(positions)
        blocks, within = np.divmod(positions, BLOCK)
        for block in np.unique(blocks):
            here = blocks == block
            labels, ranks = self._block(int(block))
            datasets[here] = labels[within[here]]
            indices[here] = block * self._counts[datasets[here]] + ranks[within[here]]
        return datasets, indices

    def _shuffled_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the dataset at each position of the block, and its rank among those of the same dataset there."""
        key = mix64(np.array([self._block_key + block & _MASK], dtype=np.uint64))
        labels = self._labels[np.argsort(mix64(np.arange(BLOCK, dtype=np.uint64) ^ key))]
        ranks = np.empty(BLOCK, dtype=np.int64)
        for number, count in enumerate(self._counts):
            ranks[labels == number] = np.arange(count)
        return labels, ranks

    def _n_windows(self, phase: PhaseSpec) -> int:
        if phase.tokens is not None:
            return -(-phase.tokens // self.context_len)
        # the fraction is taken from the decimal digits: 0.1 epochs of 1000 windows are 100, not 101
        epochs = Fraction(str(phase.epochs if phase.epochs is not None else 1))
        ends = []
        for number, part in enumerate(self.parts):
            last = max(1, math.ceil(epochs * part.n_windows)) - 1
            if len(self.parts) > 1:
                block, rank = divmod(last, int(self._counts[number]))
                labels, _ = self._block(block)
                last = block * BLOCK + int(np.flatnonzero(labels == number)[rank])
            ends.append(last + 1)
        return max(ends) if phase.stop == "all_exhausted" else min(ends)


class _Part:
    """The windows of one dataset in the order of the phase: shuffled by `key`, or as in the store if it is None.

    stretch: the windows of a stretch; None makes all of them one.
    """

    def __init__(self, store: TokenStore, context_len: int, key: int | None, stretch: int | None):
        self.store = store
        self.context_len = context_len
        self.n_windows = max(1, store.n_tokens // context_len) if key is None else -(-store.n_tokens // context_len)
        self._key = key
        self._unit = _document_len(store, context_len)
        self._stretch = stretch if stretch and self.n_windows >= 2 * stretch else self.n_windows
        self._found = lru_cache(maxsize=2)(self._find)

    def read(
        self, indices: np.ndarray, rows: np.ndarray, tokens: np.ndarray, scored: np.ndarray
    ) -> tuple[np.ndarray, bool]:
        """Fill `rows` of tokens and scored with this dataset's windows number `indices`.

        The indices rise. Returns the scored bytes of each, and whether all that was written to `scored` is True.
        """
        groups = indices // AHEAD
        found = [(self._found(group), indices[groups == group] % AHEAD) for group in np.unique(groups).tolist()]
        spans = np.concatenate([of[:, within] for (of, _), within in found], axis=1)
        n_bytes = np.concatenate([of[within] for (_, of), within in found])
        all_scored = True
        for row, *span, new in zip(rows.tolist(), *spans.tolist(), strict=True):
            at = 0
            for begin, stop in self._pieces(*span):
                end = at + stop - begin
                tokens[row, at:end] = self.store.tokens(begin, stop)
                mask = self.store.scored(begin, stop)
                if mask is not None:
                    scored[row, at:end] = mask
                    all_scored = False
                at = end
            if new < self.context_len:
                scored[row, new:] = False
                all_scored = False
        return n_bytes, all_scored

    def _find(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """Return of AHEAD windows what `_located_in_store` does, (4, AHEAD), and their scored bytes, (AHEAD,)."""
        indices = np.arange(group * AHEAD, (group + 1) * AHEAD, dtype=np.int64)
        first, start, size, n_new = self._located_in_store(indices)
        over = np.maximum(start + n_new - size, 0)
        return np.stack([first, start, size, n_new]), self._bytes(first + start, n_new - over) + self._bytes(
            first, over
        )

    def _located_in_store(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return of each window: where its stretch begins in the store, where the window begins in the stretch, the
        tokens of the stretch, and how many tokens of the window this epoch has not seen in its stretch.
        """
        n, length = self.store.n_tokens, self.context_len
        epochs, within = np.divmod(indices, self.n_windows)
        if self._key is None:
            return (
                np.zeros_like(within),
                within * length,
                np.full_like(within, n),
                np.minimum(n - within * length, length),
            )
        keys = mix64(epochs.astype(np.uint64) + np.uint64(self._key))
        cuts = (mix64(~keys) % np.uint64(n)).astype(np.int64) // self._unit * self._unit
        windows = permuted(within.astype(np.uint64), self.n_windows, keys).astype(np.int64)
        stretches = np.minimum(windows // self._stretch, self.n_windows // self._stretch - 1)
        begins = stretches * self._stretch * length
        sizes = np.where(stretches == self.n_windows // self._stretch - 1, n - begins, self._stretch * length)
        inside = windows * length - begins
        turned = np.zeros_like(inside)
        if self._stretch < self.n_windows:
            turned = self._turned(mix64(mix64(~keys)), stretches)
        return (cuts + begins) % n, (turned + inside) % sizes, sizes, np.minimum(sizes - inside, length)

    def _turned(self, keys: np.ndarray, stretches: np.ndarray) -> np.ndarray:
        """Return by how many tokens the windows of each stretch are moved: spread evenly, as the golden ratio does."""
        fractions = keys + stretches.astype(np.uint64) * np.uint64(_GOLDEN) >> np.uint64(32)
        chosen = fractions * np.uint64(self.context_len // self._unit) >> np.uint64(32)
        return chosen.astype(np.int64) * self._unit

    def _pieces(self, first: int, start: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield the pieces of the store that a window is joined of; it goes round in its stretch, which the store's end
        may part.
        """
        n, left = self.store.n_tokens, self.context_len
        while left:
            begin = (first + start) % n
            count = min(left, size - start, n - begin)
            yield begin, begin + count
            left, start = left - count, (start + count) % size

    def _bytes(self, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return the scored bytes of `counts` tokens from `starts` on, round the whole store."""
        n = self.store.n_tokens
        starts = starts % n
        over = np.maximum(starts + counts - n, 0)
        ends = starts + counts - over
        return self.store.bytes_between(starts, ends) + self.store.bytes_between(np.zeros_like(over), over)


def _document_len(store: TokenStore, context_len: int) -> int:
    """Return the length of the documents if all have the same one and it divides the context; else 1."""
    length, rest = divmod(store.n_tokens, store.n_documents)
    if store.n_documents == 1 or rest or context_len % length or (np.diff(store.document_offsets) != length).any():
        return 1
    return length


def permuted(indices: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """Return where a pseudo-random permutation of 0..n-1 takes each index; indices and keys (m,) uint64, a key each.

    It is a Feistel network on a grid of about sqrt(n) x sqrt(n) cells. The few cells beyond n are left by walking on
    along the cycle (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). The cost does not depend on n.
    """
    height = math.isqrt(n - 1) + 1 if n > 1 else 1
    sides = np.uint64(height), np.uint64(-(-n // height))
    rounds = mix64(keys + np.arange(1, ROUNDS + 1, dtype=np.uint64)[:, None] * np.uint64(_GOLDEN))
    result = indices
    outside = np.ones(len(indices), dtype=bool)
    while outside.any():
        halves = list(np.divmod(result[outside], sides[1]))
        for number, round_keys in enumerate(rounds[:, outside]):
            side = number % 2
            halves[side] = (halves[side] + mix64(halves[1 - side] ^ round_keys) % sides[side]) % sides[side]
        result = result.copy()
        result[outside] = halves[0] * sides[1] + halves[1]
        outside = result >= np.uint64(n)
    return result


_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def mix64(x: np.ndarray) -> np.ndarray:
    """Apply the output function of SplitMix64 (Steele, Lea and Flood, 2014), a bijection of uint64."""
    x = x + np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _key(*parts: object) -> int:
    text = "\0".join(["lmplay order 1", *map(str, parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _block_counts(weights: list[float]) -> np.ndarray:
    """Return the number of a block's positions for each dataset: by largest remainder, at least one."""
    shares = np.array(weights, dtype=np.float64) / sum(weights) * BLOCK
    counts = np.maximum(np.floor(shares), 1).astype(np.int64)
    while counts.sum() < BLOCK:
        counts[np.argmax(shares - counts)] += 1
    while counts.sum() > BLOCK:
        counts[np.argmax(counts)] -= 1
    return counts
