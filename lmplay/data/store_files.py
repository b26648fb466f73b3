"""The files of a store while it is written, and what is needed to go on after the process was killed.

progress.json in the folder says how much of each file was written through to the disk, with hashes, and how far the
source was read. What a killed process wrote after that is cut off again.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lmplay.checksums import BLOCK
from lmplay.data.encoding import Encoded, Position, dtype_of
from lmplay.data.store import FORMAT, INT64, shard_name
from lmplay.data.store_lock import PROGRESS
from lmplay.data.store_meta import content_hash, write_meta
from lmplay.data.tokenizers import Tokenizer
from lmplay.files import remove_leftovers, sync, write_json

SHARD_TOKENS = 2**28
COMMIT_TOKENS, COMMIT_SECONDS = 2**25, 5.0  # at least so much lies between two notes of how far it is
_OFFSETS = ("document_offsets", "byte_offsets", "unscored")


class _NotLeft(Exception):
    """There is nothing to go on with."""


class StoreFiles:
    """A store that is being written, in a folder of its own.

    position: how far the source was read when it was last written through to the disk, None if it never was.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, made_by: dict[str, Any], max_tokens: int | None = None):
        self.folder, self.tokenizer, self.made_by, self.max_tokens = folder, tokenizer, made_by, max_tokens
        self.n_tokens = self.n_documents = self.n_bytes = self.n_unscored = 0
        self.position: Position | None = None
        self._committed = (0, time.monotonic())
        self._shard: BinaryIO | None = None
        self._files: dict[str, BinaryIO] = {}
        self._hashes = {name: hashlib.blake2b(digest_size=16) for name in ("tokens", *_OFFSETS)}

    def begin(self) -> None:
        """Begin anew."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self._files = {name: _open(self.folder / f"{name}.bin") for name in _OFFSETS}
        for name in ("document_offsets", "byte_offsets"):
            self._append(name, np.zeros(1, INT64))

    def go_on(self) -> bool:
        """Go on with what a killed process has left; tell whether there is anything whole that was to become this."""
        try:
            self._go_on()
        except (_NotLeft, OSError, ValueError, KeyError, TypeError):
            self._close_all()
            return False
        return True

    def _go_on(self) -> None:
        left = json.loads((self.folder / PROGRESS).read_text(encoding="utf-8"))
        if left["of"] != json.loads(json.dumps(self._identity)):
            raise _NotLeft
        remove_leftovers(self.folder)  # of a progress.json that was being written
        self.n_tokens, self.n_documents = left["n_tokens"], left["n_documents"]
        self.n_bytes, self.n_unscored = left["n_bytes"], left["n_unscored"]
        sizes = {"document_offsets": self.n_documents + 1, "byte_offsets": self.n_documents + 1}
        for name in _OFFSETS:
            size = 8 * sizes.get(name, 2 * self.n_unscored)
            self._files[name] = self._reopened(f"{name}.bin", size, self._hashes[name])
        width = dtype_of(self.tokenizer).itemsize
        for number, begin in enumerate(range(0, self.n_tokens, SHARD_TOKENS)):
            size = width * min(SHARD_TOKENS, self.n_tokens - begin)
            if self._shard is not None:
                self._shard.close()
            self._shard = self._reopened(shard_name(number), size, self._hashes["tokens"])
        if {name: found.hexdigest() for name, found in self._hashes.items()} != left["hashes"]:
            raise _NotLeft
        for shard in self.folder.glob("tokens_*"):
            if shard.name >= shard_name(-(-self.n_tokens // SHARD_TOKENS)):
                shard.unlink()
        row, commit = left.get("bookmark") or (None, None)
        bookmark = None if row is None else (int(row), str(commit))
        self.position = Position(left["read"], left["text"], bookmark, left.get("last", ""))
        self._committed = (self.n_tokens, time.monotonic())

    def _reopened(self, name: str, size: int, found: "hashlib.blake2b") -> BinaryIO:
        """Return a file, opened to be appended to after its first `size` bytes, which are hashed."""
        file = _open_again(self.folder / name)
        left = size
        while left and (content := file.read(min(BLOCK, left))):
            found.update(content)
            left -= len(content)
        if left:
            file.close()
            raise _NotLeft
        file.truncate(size)
        file.seek(size)
        return file

    @property
    def _layout(self) -> dict[str, Any]:
        """How the store is written."""
        return {
            "format": FORMAT,
            "dtype": dtype_of(self.tokenizer).str,
            "shard_tokens": SHARD_TOKENS,
            "vocab_size": self.tokenizer.vocab_size,
            "eot": self.tokenizer.eot,
            "made_by": self.made_by,
        }

    @property
    def _identity(self) -> dict[str, Any]:
        """What the store is to become."""
        return self._layout | {"max_tokens": self.max_tokens}

    @property
    def _counts(self) -> dict[str, int]:
        """How much is written."""
        return {
            "n_documents": self.n_documents,
            "n_tokens": self.n_tokens,
            "n_bytes": self.n_bytes,
            "n_unscored": self.n_unscored,
        }

    def __str__(self) -> str:
        return f"{self.n_documents:,} documents, {self.n_tokens:,} tokens, {self.n_bytes / 1e6:,.1f} MB"

    def add(self, batch: Encoded, position: Position) -> bool:
        """Append documents, read up to `position`; return False if the documents end here because of max_tokens."""
        ends, more = np.cumsum(batch.lengths), True
        tokens, n_bytes, unscored = batch.tokens, batch.n_bytes, batch.unscored
        if self.max_tokens is not None and len(ends):
            keep = int(np.searchsorted(ends, self.max_tokens - self.n_tokens, side="right"))
            if keep < len(ends):
                keep, more = max(keep, 0 if self.n_documents else 1), False
                cut = ends[keep - 1] if keep else 0
                ends, tokens, n_bytes = ends[:keep], tokens[:cut], n_bytes[:keep]
                unscored = unscored[unscored[:, 0] < cut]
        self._append("document_offsets", self.n_tokens + ends)
        self._append("byte_offsets", self.n_bytes + np.cumsum(n_bytes))
        self._append("unscored", self.n_tokens + unscored)
        self._append_tokens(tokens)
        self.n_tokens += len(tokens)
        self.n_documents += len(ends)
        self.n_bytes += int(n_bytes.sum())
        self.n_unscored += len(unscored)
        tokens_before, moment = self._committed
        if more and self.n_tokens - tokens_before >= COMMIT_TOKENS and time.monotonic() - moment >= COMMIT_SECONDS:
            self._commit(position)
        return more

    def _commit(self, position: Position) -> None:
        """Write all through to the disk, and note how far it is."""
        for file in self._opened():
            file.flush()
            os.fsync(file.fileno())
        sync(self.folder)
        write_json(
            self.folder / PROGRESS,
            {
                "of": self._identity,
                **self._counts,
                "hashes": {name: found.hexdigest() for name, found in self._hashes.items()},
                "read": position.documents,
                "text": position.text,
                **({"bookmark": position.bookmark, "last": position.last} if position.bookmark else {}),
            },
        )
        self.position, self._committed = position, (self.n_tokens, time.monotonic())

    def _append_tokens(self, tokens: np.ndarray) -> None:
        self._hashes["tokens"].update(tokens.data)
        at = 0
        while at < len(tokens):
            number, begin = divmod(self.n_tokens + at, SHARD_TOKENS)
            if begin == 0 or self._shard is None:
                if self._shard is not None:
                    _close(self._shard)
                self._shard = _open(self.folder / shard_name(number))
            piece = tokens[at : at + SHARD_TOKENS - begin]
            self._shard.write(piece.data)
            at += len(piece)

    def _append(self, name: str, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values, INT64)
        self._hashes[name].update(values.data)
        self._files[name].write(values.data)

    def _opened(self) -> list[BinaryIO]:
        return [file for file in (self._shard, *self._files.values()) if file is not None and not file.closed]

    def finish(self) -> None:
        """Write what is buffered through to the disk, and meta.json."""
        for file in self._opened():
            _close(file)
        meta = self._layout | self._counts | {"hash": content_hash(self._hashes)}
        write_meta(self.folder, meta)  # syncs the folder as well

    def leave(self, error: BaseException | None = None) -> None:
        """Leave what the next preparation can go on with; remove all if there is no such thing, or the disk is full."""
        self._close_all()
        is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if self.position is None or is_full:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _close_all(self) -> None:
        for file in self._opened():
            with contextlib.suppress(OSError):  # closing writes what is buffered: on a full disk that fails again
                file.close()


def _open(path: Path) -> BinaryIO:
    return open(path, "wb")


def _open_again(path: Path) -> BinaryIO:
    return open(path, "r+b")


def _close(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
