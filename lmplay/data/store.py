"""Read a token store: one split of a dataset, memory-mapped by every run.

What is read is checked first, each block of tokens once. A damaged store is marked, and prepared anew by the next
command that needs it.
"""

import json
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from lmplay.checksums import BLOCK, CHECKSUMS, broken_seal, of_bytes, of_file
from lmplay.errors import UserError

FORMAT = 1
INT64 = "<i8"
OFFSETS = ("document_offsets.bin", "byte_offsets.bin", "unscored.bin")
BLOCK_CHECKSUMS = "token_checksums.bin"  # uint32 for each BLOCK bytes of each shard
MARK = "damaged.txt"  # what is wrong with a store that was found damaged


class TokenStore:
    """A finished store, open for reading; opening costs the same whatever its size.

    n_tokens, n_documents, n_bytes (UTF-8 bytes of scored text), hash (hex, of the content), dtype, vocab_size,
    eot (id of the EOT token).
    """

    def __init__(self, folder: Path, meta: dict):
        self.folder = folder
        self.n_tokens: int = meta["n_tokens"]
        self.n_documents: int = meta["n_documents"]
        self.n_bytes: int = meta["n_bytes"]
        self.hash: str = meta["hash"]
        self.vocab_size: int = meta["vocab_size"]
        self.eot: int = meta["eot"]
        self.dtype = np.dtype(meta["dtype"])
        self._shard_tokens: int = meta["shard_tokens"]
        self._shards = [
            self._map(shard_name(number), self.dtype, min(self._shard_tokens, self.n_tokens - begin))
            for number, begin in enumerate(range(0, self.n_tokens, self._shard_tokens))
        ]
        self._n_unscored: int = meta["n_unscored"]
        self._offsets = {name: self._map(name, INT64, length) for name, length in self._lengths().items()}
        self._checksums: dict[str, int] = meta.get(CHECKSUMS, {})
        self._unread = [np.ones(-(-shard.nbytes // BLOCK), dtype=bool) for shard in self._shards]

    @classmethod
    def open(cls, folder: Path) -> "TokenStore":
        """Open the store in a folder. Raises DamagedStore if it holds no whole store."""
        try:
            if (folder / MARK).exists():
                raise DamagedStore(folder, (folder / MARK).read_text(encoding="utf-8", errors="replace").strip())
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8-sig"))
            if broken := broken_seal(meta):
                raise DamagedStore(folder, f"is damaged (meta.json: {broken})")
            if meta["format"] != FORMAT:
                raise UserError(
                    f"{folder} has format {meta['format']}, and this version of lmplay reads {FORMAT}: delete this "
                    "folder and type the command again, it is prepared anew"
                )
            return cls(folder, meta)
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedStore(folder, f"is damaged ({error})") from error

    def _lengths(self) -> dict[str, int]:
        counts = (self.n_documents + 1, self.n_documents + 1, 2 * self._n_unscored)
        return dict(zip(OFFSETS, counts, strict=True))

    def _map(self, name: str, dtype: DTypeLike, length: int) -> np.ndarray:
        path, dtype = self.folder / name, np.dtype(dtype)
        if path.stat().st_size != length * dtype.itemsize:
            sizes = f"{path.stat().st_size} bytes instead of {length * dtype.itemsize}"
            raise DamagedStore(self.folder, f"is damaged ({name} has {sizes})")
        if not length:
            return np.empty(0, dtype)
        # as a plain array: slicing the memmap subclass costs several times more
        return np.asarray(np.memmap(path, dtype, mode="r", shape=(length,)))

    @cached_property
    def document_offsets(self) -> np.ndarray:
        """Where each document begins, int64 (n_documents + 1,)."""
        return self._checked("document_offsets.bin")

    @cached_property
    def _byte_offsets(self) -> np.ndarray:
        return self._checked("byte_offsets.bin")

    @cached_property
    def _unscored(self) -> np.ndarray:
        # begins and ends alternate and never decrease: an odd number of them at or before a token means unscored
        return self._checked("unscored.bin")

    def check_offsets(self) -> None:
        """Read the offsets through. Raises DamagedStore."""
        for name in OFFSETS:
            self._checked(name)

    def check_tokens(self) -> None:
        """Read all tokens through. Raises DamagedStore."""
        for number, shard in enumerate(self._shards):
            self._check_blocks(number, 0, len(shard))

    @property
    def has_checksums(self) -> bool:
        """Whether damage to it is noticed: stores of earlier versions have no checksums."""
        return bool(self._checksums)

    def _checked(self, name: str) -> np.ndarray:
        """Return the array in a file of offsets, read through: a disk that fails says so here, not in the mapping."""
        found = of_file(self.folder / name)
        if found != self._checksums.get(name, found):
            raise self.mark(name)
        return self._offsets[name]

    @cached_property
    def _block_checksums(self) -> np.ndarray | None:
        """Checksums of all blocks of tokens, shard after shard; None for a store of an earlier version."""
        if BLOCK_CHECKSUMS not in self._checksums:
            return None
        try:
            content = (self.folder / BLOCK_CHECKSUMS).read_bytes()
        except FileNotFoundError:
            raise self.mark(BLOCK_CHECKSUMS) from None
        if of_bytes(content) != self._checksums[BLOCK_CHECKSUMS]:
            raise self.mark(BLOCK_CHECKSUMS)
        return np.frombuffer(content, "<u4")

    def _check_blocks(self, number: int, begin: int, end: int) -> None:
        """Check the blocks of a shard that hold its tokens `begin` to `end` - 1, those not read before."""
        per_block, unread = BLOCK // self.dtype.itemsize, self._unread[number]
        first, last = begin // per_block, -(-end // per_block)
        if not unread[first:last].any():
            return
        sums, before = self._block_checksums, sum(len(blocks) for blocks in self._unread[:number])
        with open(self.folder / shard_name(number), "rb") as file:
            for block in first + np.flatnonzero(unread[first:last]):
                file.seek(int(block) * BLOCK)
                found = of_bytes(file.read(BLOCK))
                if sums is not None and found != sums[before + block]:
                    raise self.mark(f"{shard_name(number)}, block {block} of {BLOCK // 2**20} MiB")
                unread[block] = False

    def mark(self, what: str) -> UserError:
        """Mark the store as damaged, and return an error that says so; `what`: the part that is."""
        line = f"is damaged ({what}: its content is not what was written)"
        try:
            (self.folder / MARK).write_text(line + "\n", encoding="utf-8")
        except OSError:
            return UserError(
                f"{self.folder} {line}, and can't be changed: delete this folder, or name another data "
                "folder with LMPLAY_DATA"
            )
        return DamagedStore(self.folder, line)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Return tokens of the stream, int64 (stop - start,), read from the mapped files."""
        if not 0 <= start <= stop <= self.n_tokens:
            raise IndexError(f"tokens {start} to {stop} of {self.n_tokens}")
        shard, begin = divmod(start, self._shard_tokens)
        if start == stop:
            return np.empty(0, np.int64)
        if begin + stop - start <= self._shard_tokens:
            self._check_blocks(shard, begin, begin + stop - start)
            return self._shards[shard][begin : begin + stop - start].astype(np.int64)
        border = (shard + 1) * self._shard_tokens
        return np.concatenate([self.tokens(start, border), self.tokens(border, stop)])

    def scored(self, start: int, stop: int) -> np.ndarray | None:
        """Return bool (stop - start,), False where a token is context only; None if all are scored."""
        if start == stop or not len(self._unscored):
            return None
        before = np.searchsorted(self._unscored, start, side="right")
        after = np.searchsorted(self._unscored, stop, side="left")
        if before == after and before % 2 == 0:
            return None
        counts = before + np.searchsorted(self._unscored[before:after], np.arange(start, stop), side="right")
        return counts % 2 == 0

    def bytes_between(self, starts: ArrayLike, stops: ArrayLike) -> np.ndarray:
        """Return scored bytes between token positions, float64: those of a document spread over its scored tokens.

        Adjacent ranges add up, and where no token is scored there are no bytes.
        """
        return self._bytes_before(stops) - self._bytes_before(starts)

    def first_scored(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """Return the first scored token from each start to its stop, both of one document, else the stop; int64."""
        if not len(self._unscored):
            return np.asarray(starts)
        number = np.searchsorted(self._unscored, starts, side="right")
        ends = np.append(self._unscored, self.n_tokens)[number]  # of the unscored tokens that a start lies in
        return np.minimum(np.where(number % 2 == 1, ends, starts), stops)

    def _bytes_before(self, positions: ArrayLike) -> np.ndarray:
        positions = np.asarray(positions, dtype=np.int64)
        document = np.searchsorted(self.document_offsets[1:-1], positions, side="right")
        begin, end = self.document_offsets[document], self.document_offsets[document + 1]
        low, high = self._byte_offsets[document], self._byte_offsets[document + 1]
        if not len(self._unscored):
            return low + (positions - begin) / (end - begin) * (high - low)
        before, whole = self._n_scored(begin, end, positions)
        return low + before / np.maximum(whole, 1) * (high - low)

    def _n_scored(self, begin: np.ndarray, end: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how many tokens of each document, from `begin` to `end`, are scored before `at`, and in all."""
        first = np.searchsorted(self._unscored, begin, side="right") // 2 * 2
        beyond = np.searchsorted(self._unscored, end, side="left")
        before, whole = at - begin, end - begin
        for number in range(0, int(np.max(beyond - first, initial=0)), 2):  # range by range, of all documents at once
            index = np.minimum(first + number, len(self._unscored) - 2)
            starts, stops = (
                np.clip(np.where(first + number < beyond, self._unscored[index + k], 0), begin, end) for k in (0, 1)
            )
            before = before - (np.minimum(stops, at) - np.minimum(starts, at))
            whole = whole - (stops - starts)
        return before, whole


class DamagedStore(UserError):
    """A store is not what was written. The next command that needs it prepares it anew."""

    def __init__(self, folder: Path, what: str) -> None:
        super().__init__(f"{folder} {what}: type the command again, it is prepared anew")
        self.folder, self.what = folder, what

    def __reduce__(self) -> tuple[type["DamagedStore"], tuple[Path, str]]:
        """Let it travel from the process that has found the damage."""
        return DamagedStore, (self.folder, self.what)


def shard_name(number: int) -> str:
    """Return the file name of a shard of tokens."""
    return f"tokens_{number:05d}.bin"
