"""Write a token store: one split of a dataset, tokenized once, memory-mapped by every run.

A store is a folder:
    meta.json               counts, types, content hash, what made it
    tokens_00000.bin ...    the documents' tokens in source order, each document closed by an EOT token
    document_offsets.bin    int64 (n_documents + 1,): where each document begins in the stream
    byte_offsets.bin        int64 (n_documents + 1,): UTF-8 bytes of scored text before each document
    token_checksums.bin     uint32: the checksum of each MiB of each shard of tokens
    unscored.bin            int64 (n, 2): begin and end of each run of tokens that is context only (prompts)
"""

import contextlib
import hashlib
import os
import shutil
import signal
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from lmplay.data.store import FORMAT, INT64, DamagedStore, TokenStore, shard_name
from lmplay.data.store_lock import only_builder, partial_of, remove_leftovers
from lmplay.data.store_meta import content_hash, write_meta
from lmplay.data.tokenizers import Tokenizer
from lmplay.data.types import Document
from lmplay.errors import UserError
from lmplay.files import make_folder, sync
from lmplay.processes import end_with_parent, worker_context
from lmplay.text import count

if TYPE_CHECKING:
    from tqdm import tqdm

SHARD_TOKENS = 2**28
BATCH_CHARACTERS = 2**18  # encoded by a worker at a time
IN_PROCESS_CHARACTERS = 2**24  # with less text, starting workers costs more than they save


def build(
    folder: Path,
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    *,
    processes: int = 1,
    progress: bool = False,
    max_tokens: int | None = None,
    label: str = "",
    made_by: dict | None = None,
) -> TokenStore:
    """Tokenize documents into a new store at `folder`, or open the store that is there.

    Documents keep their order, whatever the number of processes; those without text are skipped. They are taken
    whole until the next one would pass `max_tokens`, at least one. `label` names the dataset on the progress bar and in
    errors, `made_by` is kept in meta.json. Memory use does not grow with the data.
    The folder appears complete or not at all; a damaged one is replaced. Of several builders of one folder, one builds
    and the others wait. Raises UserError if no document has text, OSError if the disk is full (nothing is left then).
    """
    store = _intact(folder)
    if store is not None:
        return store
    make_folder(folder.parent)
    with only_builder(folder, label):
        store = _intact(folder)
        if store is not None:  # another builder was first
            return store
        remove_leftovers(folder.parent)
        with _bar(label, progress) as bar:
            writer = _write(
                folder,
                _encoded(documents, tokenizer, processes),
                _Writer(partial_of(folder), tokenizer),
                max_tokens=max_tokens,
                label=label or folder.name,
                made_by=made_by or {},
                bar=bar,
            )
    if progress:
        print(f"{label}: {writer}", file=sys.stderr)
    return TokenStore.open(folder)


def _intact(folder: Path) -> TokenStore | None:
    """Return the store at `folder`, None if there is none or a damaged one."""
    if not folder.exists():
        return None
    try:
        store = TokenStore.open(folder)
        store.check_offsets()
    except DamagedStore as error:
        print(f"{folder} {error.what}: it is prepared anew", file=sys.stderr)
        return None
    return store


def _write(
    folder: Path,
    batches: "Generator[tuple[_Batch, int]]",
    writer: "_Writer",
    *,
    max_tokens: int | None,
    label: str,
    made_by: dict,
    bar: "tqdm",
) -> "_Writer":
    try:
        with contextlib.closing(batches):
            for batch, characters in batches:
                more = writer.add(batch, max_tokens)
                bar.update(characters)
                bar.set_postfix_str(f"{writer.n_documents:,} documents, {count(writer.n_tokens)} tokens", refresh=False)
                if not more:
                    break
        if not writer.n_documents:
            raise UserError(
                f"{label}: no document with text; check where the documents come from and which fields are read"
            )
        writer.finish(made_by)
        if folder.exists():  # damaged
            os.rename(folder, partial_of(folder.with_name(f"{folder.name}.old")))
        os.rename(writer.folder, folder)
        sync(folder.parent)
        remove_leftovers(folder.parent)
        return writer
    except BaseException:
        writer.abandon()
        raise


class _Writer:
    """A store that is being written, in a folder of its own."""

    def __init__(self, folder: Path, tokenizer: Tokenizer):
        self.folder, self.tokenizer = folder, tokenizer
        self.n_tokens = self.n_documents = self.n_bytes = self.n_unscored = 0
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self._shard: BinaryIO | None = None
        self._hashes = {
            name: hashlib.blake2b(digest_size=16) for name in ("tokens", "document_offsets", "byte_offsets", "unscored")
        }
        self._files: dict[str, BinaryIO] = {
            name: _new_file(folder / f"{name}.bin") for name in self._hashes if name != "tokens"
        }
        for name in ("document_offsets", "byte_offsets"):
            self._append(name, np.zeros(1, INT64))

    def __str__(self) -> str:
        return f"{self.n_documents:,} documents, {self.n_tokens:,} tokens, {self.n_bytes / 1e6:,.1f} MB"

    def add(self, batch: "_Batch", max_tokens: int | None) -> bool:
        """Append a batch of documents; return False if the documents end here because of max_tokens."""
        tokens, lengths, n_bytes, unscored = batch
        ends, more = np.cumsum(lengths), True
        if max_tokens is not None and len(ends):
            keep = int(np.searchsorted(ends, max_tokens - self.n_tokens, side="right"))
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
        return more

    def _append_tokens(self, tokens: np.ndarray) -> None:
        self._hashes["tokens"].update(tokens.data)
        at = 0
        while at < len(tokens):
            number, begin = divmod(self.n_tokens + at, SHARD_TOKENS)
            if begin == 0 or self._shard is None:
                if self._shard is not None:
                    _close(self._shard)
                self._shard = _new_file(self.folder / shard_name(number))
            piece = tokens[at : at + SHARD_TOKENS - begin]
            self._shard.write(piece.data)
            at += len(piece)

    def _append(self, name: str, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values, INT64)
        self._hashes[name].update(values.data)
        self._files[name].write(values.data)

    def _opened(self) -> list[BinaryIO]:
        return [file for file in (self._shard, *self._files.values()) if file is not None]

    def finish(self, made_by: dict) -> None:
        """Write what is buffered through to the disk, and meta.json."""
        for file in self._opened():
            _close(file)
        meta = {
            "format": FORMAT,
            "n_documents": self.n_documents,
            "n_tokens": self.n_tokens,
            "n_bytes": self.n_bytes,
            "n_unscored": self.n_unscored,
            "dtype": _dtype(self.tokenizer).str,
            "shard_tokens": SHARD_TOKENS,
            "vocab_size": self.tokenizer.vocab_size,
            "eot": self.tokenizer.eot,
            "hash": content_hash(self._hashes),
            "made_by": made_by,
        }
        write_meta(self.folder, meta)  # syncs the folder as well

    def abandon(self) -> None:
        """Remove what is there."""
        for file in self._opened():
            with contextlib.suppress(OSError):  # closing writes what is buffered: on a full disk that fails again
                file.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _new_file(path: Path) -> BinaryIO:
    return open(path, "wb")


def _close(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


# tokens, tokens of each document, scored bytes of each document, (n, 2) begin and end of unscored runs
_Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _encode(documents: list[Document], tokenizer: Tokenizer) -> _Batch:
    encoded = iter(tokenizer.encode_batch([text for document in documents for text, _ in document]))
    ids: list[int] = []
    lengths: list[int] = []
    n_bytes: list[int] = []
    unscored: list[tuple[int, int]] = []
    for document in documents:
        begin, document_bytes = len(ids), 0
        for text, scored in document:
            at = len(ids)
            ids.extend(next(encoded))
            if scored:
                document_bytes += len(text.encode("utf-8", "surrogatepass"))
            elif len(ids) > at:
                unscored.append((at, len(ids)))
        if not document[-1][1]:
            unscored.append((len(ids), len(ids) + 1))
        ids.append(tokenizer.eot)
        lengths.append(len(ids) - begin)
        n_bytes.append(document_bytes)
    return (
        np.array(ids, _dtype(tokenizer)),
        np.array(lengths, INT64),
        np.array(n_bytes, INT64),
        np.array(unscored, INT64).reshape(-1, 2),
    )


def _batches(documents: Iterable[Document]) -> Iterator[tuple[list[Document], int]]:
    """Yield lists of documents, with their number of characters."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        size = sum(len(text) for text, _ in document)
        if size:
            batch.append(document)
            characters += size
        if characters >= BATCH_CHARACTERS:
            yield batch, characters
            batch, characters = [], 0
    if batch:
        yield batch, characters


def _encoded(documents: Iterable[Document], tokenizer: Tokenizer, processes: int) -> Generator[tuple[_Batch, int]]:
    """Yield encoded batches in source order, with their numbers of characters; a bounded number is ever in work."""
    batches = _batches(documents)
    first: list[tuple[list[Document], int]] = []
    characters = 0
    while processes > 1 and characters < IN_PROCESS_CHARACTERS and (more := next(batches, None)):
        first.append(more)
        characters += more[1]
    if characters < IN_PROCESS_CHARACTERS:
        for batch, size in chain(first, batches):
            yield _encode(batch, tokenizer), size
        return

    from concurrent.futures import Future, ProcessPoolExecutor

    pool = ProcessPoolExecutor(processes, worker_context(), _start_worker, (tokenizer,))
    try:
        in_work: deque[tuple[Future[_Batch], int]] = deque()
        for batch, size in chain(first, batches):
            in_work.append((pool.submit(_encode_in_worker, batch), size))
            if len(in_work) > 2 * processes:
                future, size = in_work.popleft()
                yield future.result(), size
        while in_work:
            future, size = in_work.popleft()
            yield future.result(), size
    finally:
        pool.shutdown(cancel_futures=True)


_worker_tokenizer: Tokenizer  # of this process, if it is a worker


def _start_worker(tokenizer: Tokenizer) -> None:
    global _worker_tokenizer
    _worker_tokenizer = tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers share the cores already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the builder ends its workers
    end_with_parent()  # a builder that is killed cannot end its workers, which would wait for work for ever


def _encode_in_worker(documents: list[Document]) -> _Batch:
    return _encode(documents, _worker_tokenizer)


def _bar(label: str, progress: bool) -> "tqdm":
    from tqdm import tqdm

    # disable=None: silent where stderr is no terminal
    return tqdm(desc=label, unit="B", unit_scale=True, leave=False, disable=None if progress else True)


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype("<u2" if tokenizer.vocab_size <= 65536 else "<u4")
