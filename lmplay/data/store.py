"""Read a token store: one split of a dataset, memory-mapped by every run."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from lmplay.errors import UserError

FORMAT = 1
INT64 = "<i8"


class TokenStore:
    """A finished store, open for reading; opening costs the same whatever its size.

    n_tokens, n_documents, n_bytes (UTF-8 bytes of scored text), hash (hex, of the content), dtype, vocab_size,
    eot (id of the EOT token), document_offsets (int64 (n_documents + 1,): where each document begins).
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
        self.document_offsets = self._map("document_offsets.bin", INT64, self.n_documents + 1)
        self._byte_offsets = self._map("byte_offsets.bin", INT64, self.n_documents + 1)
        # begins and ends alternate and never decrease: an odd number of them at or before a token means unscored
        self._unscored = self._map("unscored.bin", INT64, 2 * meta["n_unscored"])

    @classmethod
    def open(cls, folder: Path) -> "TokenStore":
        """Open the store in a folder. Raises UserError if it holds no whole store."""
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8-sig"))
            if meta["format"] != FORMAT:
                raise damaged(folder, f"has format {meta['format']}, and this version of lmplay reads {FORMAT}")
            return cls(folder, meta)
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            raise damaged(folder, f"is damaged ({error})") from error

    def _map(self, name: str, dtype: DTypeLike, length: int) -> np.ndarray:
        path, dtype = self.folder / name, np.dtype(dtype)
        if path.stat().st_size != length * dtype.itemsize:
            sizes = f"{path.stat().st_size} bytes instead of {length * dtype.itemsize}"
            raise damaged(self.folder, f"is damaged ({name} has {sizes})")
        if not length:
            return np.empty(0, dtype)
        # as a plain array: slicing the memmap subclass costs several times more
        return np.asarray(np.memmap(path, dtype, mode="r", shape=(length,)))

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Return tokens of the stream, int64 (stop - start,), read from the mapped files."""
        if not 0 <= start <= stop <= self.n_tokens:
            raise IndexError(f"tokens {start} to {stop} of {self.n_tokens}")
        shard, begin = divmod(start, self._shard_tokens)
        if begin + stop - start <= self._shard_tokens:
            return (
                self._shards[shard][begin : begin + stop - start].astype(np.int64)
                if stop > start
                else np.empty(0, np.int64)
            )
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
        """Return scored bytes between token positions, float64; linear inside a document, so adjacent ranges add up."""
        return self._bytes_before(stops) - self._bytes_before(starts)

    def _bytes_before(self, positions: ArrayLike) -> np.ndarray:
        positions = np.asarray(positions, dtype=np.int64)
        document = np.searchsorted(self.document_offsets[1:-1], positions, side="right")
        begin, end = self.document_offsets[document], self.document_offsets[document + 1]
        low, high = self._byte_offsets[document], self._byte_offsets[document + 1]
        return low + (positions - begin) / (end - begin) * (high - low)


def damaged(folder: Path, what: str) -> UserError:
    """Return an error that tells to delete the folder."""
    return UserError(f"{folder} {what}: delete this folder and type the command again, it is prepared anew")


def shard_name(number: int) -> str:
    """Return the file name of a shard of tokens."""
    return f"tokens_{number:05d}.bin"
