"""The token store: one split of a dataset, tokenised once, memory-mapped by every run.

A store is a folder:
    meta.json               counts, types, content hash, what made it
    tokens_00000.bin ...    the documents' tokens in source order, each document closed by an end-of-text token
    document_offsets.bin    int64 (n_documents + 1,): where each document begins in the stream
    byte_offsets.bin        int64 (n_documents + 1,): UTF-8 bytes of scored text before each document
    unscored.bin            int64 (n, 2): begin and end of each run of tokens that is context only (prompts)
"""

import contextlib
import hashlib
import os
import shutil
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lmplay.errors import UserError
from lmplay.files import sync, write_json

if TYPE_CHECKING:
    from lmplay.data.tokenizers import Tokenizer
from lmplay.data.store import FORMAT, INT64, Document, TokenStore, shard_name

SHARD_TOKENS = 2**28


BATCH_CHARACTERS = 2**18  # what a worker encodes at a time


IN_PROCESS_CHARACTERS = 2**24  # with less text than this, starting workers costs more than they save


def build(
    folder: Path,
    documents: Iterable[Document],
    tokenizer: "Tokenizer",
    processes: int = 1,
    progress: bool = False,
    max_tokens: int | None = None,
    label: str = "",
    made_by: dict | None = None,
) -> TokenStore:
    """Tokenises documents into a new store at `folder`, or opens the one that is there.

    Documents keep their order, whatever the number of processes; those without text are skipped. They are taken
    whole until the next would pass `max_tokens`, at least one. `label` names the dataset on the progress bar and in
    errors, `made_by` is kept in meta.json. Memory use does not grow with the data.
    The folder appears complete or not at all. Of several builders of one folder, one builds and the others wait.
    Raises UserError where there is no document with text, OSError where the disk is full (nothing is left then).
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _only_builder(folder, label):
            if not folder.exists():  # no other builder was first
                _remove_leftovers(folder.parent)
                _write(folder, documents, tokenizer, processes, progress, max_tokens, label, made_by)
    return TokenStore.open(folder)


def _write(folder, documents, tokenizer, processes, progress, max_tokens, label, made_by) -> None:
    partial = _partial(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    writer = _Writer(partial, tokenizer)
    try:
        with contextlib.closing(_encoded(documents, tokenizer, processes)) as batches, _bar(label, progress) as bar:
            for batch, characters in batches:
                more = writer.add(batch, max_tokens)
                bar.update(characters)
                bar.set_postfix_str(
                    f"{writer.n_documents:,} documents, {writer.n_tokens / 1e6:.1f}M tokens", refresh=False
                )
                if not more:
                    break
        if not writer.n_documents:
            raise UserError(
                f"{label or folder.name}: no document with text; check where the documents come from and which fields are read"
            )
        writer.finish(made_by)
        os.rename(partial, folder)
        sync(folder.parent)
    except BaseException:
        writer.abandon()
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if progress:
        print(
            f"{label}: {writer.n_documents:,} documents, {writer.n_tokens:,} tokens, {writer.n_bytes / 1e6:,.1f} MB",
            file=sys.stderr,
        )


class _Writer:
    def __init__(self, folder: Path, tokenizer: "Tokenizer"):
        self.folder, self.tokenizer = folder, tokenizer
        self.n_tokens = self.n_documents = self.n_bytes = self.n_unscored = 0
        self._shard = None
        self._hashes = {
            name: hashlib.blake2b(digest_size=16) for name in ("tokens", "document_offsets", "byte_offsets", "unscored")
        }
        self._files = {name: open(folder / f"{name}.bin", "wb") for name in self._hashes if name != "tokens"}
        for name in ("document_offsets", "byte_offsets"):
            self._append(name, np.zeros(1, INT64))

    def add(self, batch: "_Batch", max_tokens: int | None) -> bool:
        """False when the documents end here because of max_tokens."""
        tokens, lengths, n_bytes, unscored = batch
        ends, more = np.cumsum(lengths), True
        if max_tokens is not None and len(ends):
            keep = int(np.searchsorted(ends, max_tokens - self.n_tokens, side="right"))
            if keep < len(ends):
                keep, more = max(keep, 0 if self.n_documents else 1), False
                cut = ends[keep - 1] if keep else 0
                ends, tokens, n_bytes, unscored = (
                    ends[:keep],
                    tokens[:cut],
                    n_bytes[:keep],
                    unscored[unscored[:, 0] < cut],
                )
        self._append("document_offsets", self.n_tokens + ends)
        self._append("byte_offsets", self.n_bytes + np.cumsum(n_bytes))
        self._append("unscored", self.n_tokens + unscored)
        self._hashes["tokens"].update(tokens)
        at = 0
        while at < len(tokens):
            number, begin = divmod(self.n_tokens + at, SHARD_TOKENS)
            if begin == 0:
                self._close(self._shard)
                self._shard = open(self.folder / shard_name(number), "wb")
            piece = tokens[at : at + SHARD_TOKENS - begin]
            self._shard.write(piece)
            at += len(piece)
        self.n_tokens += len(tokens)
        self.n_documents += len(ends)
        self.n_bytes += int(n_bytes.sum())
        self.n_unscored += len(unscored)
        return more

    def _append(self, name: str, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values, INT64)
        self._hashes[name].update(values)
        self._files[name].write(values)

    def finish(self, made_by: dict | None) -> None:
        for file in (self._shard, *self._files.values()):
            self._close(file)
        content = hashlib.blake2b(b"".join(part.digest() for part in self._hashes.values()), digest_size=16).hexdigest()
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
            "hash": content,
            "made_by": made_by or {},
        }
        write_json(self.folder / "meta.json", meta)  # syncs the folder as well

    def abandon(self) -> None:
        for file in (self._shard, *self._files.values()):
            with contextlib.suppress(OSError):  # closing writes what is buffered: on a full disk that fails again
                if file:
                    file.close()

    @staticmethod
    def _close(file) -> None:
        if file:
            file.flush()
            os.fsync(file.fileno())
            file.close()


# tokens, tokens of each document, scored bytes of each document, (n, 2) begin and end of unscored runs
_Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _encode(documents: list[Document], tokenizer: "Tokenizer") -> _Batch:
    encoded = iter(tokenizer.encode_batch([text for document in documents for text, _ in document]))
    ids, lengths, n_bytes, unscored = [], [], [], []
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
    """Lists of documents, with their number of characters."""
    batch, characters = [], 0
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


def _encoded(documents: Iterable[Document], tokenizer: "Tokenizer", processes: int) -> Iterator[tuple[_Batch, int]]:
    """Encoded batches in source order, with their numbers of characters; a bounded number is ever in work."""
    batches = _batches(documents)
    first, characters = [], 0
    while processes > 1 and characters < IN_PROCESS_CHARACTERS and (batch := next(batches, None)):
        first.append(batch)
        characters += batch[1]
    if characters < IN_PROCESS_CHARACTERS:
        for batch, size in chain(first, batches):
            yield _encode(batch, tokenizer), size
        return

    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start_worker, (tokenizer,))
    try:
        in_work = deque()
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


def _start_worker(tokenizer: "Tokenizer") -> None:
    global _worker_tokenizer
    _worker_tokenizer = tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers share the cores already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the builder ends its workers
    threading.Thread(target=_end_with_builder, daemon=True).start()


def _end_with_builder() -> None:
    # a builder that is killed cannot end its workers, which would wait for work for ever
    import multiprocessing

    multiprocessing.parent_process().join()
    os._exit(1)


def _encode_in_worker(documents: list[Document]) -> _Batch:
    return _encode(documents, _worker_tokenizer)


@contextlib.contextmanager
def _only_builder(folder: Path, label: str = "", wait: bool = True):
    """Holds the lock of `folder`, which the system takes back from a process that dies; yields whether it is held."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            yield False
            return
        print(f"{label or folder.name}: another process prepares this dataset; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield True
    finally:
        lock.release()


def _partial(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


def _remove_leftovers(parent: Path) -> None:
    """What killed builders of any store have left; those of living ones are locked."""
    for partial in parent.glob(".*.partial"):
        with _only_builder(parent / partial.name[1 : -len(".partial")], wait=False) as dead:
            if dead:
                shutil.rmtree(partial, ignore_errors=True)


def _bar(label: str, progress: bool):
    from tqdm import tqdm

    # disable=None: silent where stderr is no terminal
    return tqdm(desc=label, unit="B", unit_scale=True, leave=False, disable=None if progress else True)


def _dtype(tokenizer: "Tokenizer") -> np.dtype:
    return np.dtype("<u2" if tokenizer.vocab_size <= 65536 else "<u4")
