"""Read documents and encode them in source order, on all cores and in bounded memory."""

import hashlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Protocol, runtime_checkable

import numpy as np

from lmplay.data.store import INT64
from lmplay.data.tokenizers import Tokenizer
from lmplay.data.types import Bookmark, Document
from lmplay.processes import end_with_parent, worker_context

BATCH_CHARACTERS = 2**18  # encoded by a worker at a time
IN_PROCESS_CHARACTERS = 2**24  # with less text, starting workers costs more than they save


@dataclass(frozen=True)
class Position:
    """How far a source was read: the number of its documents, and a hex hash of all that they said.

    bookmark: of the last document, where the source can be read from there on; last: a hex hash of what that said.
    """

    documents: int
    text: str
    bookmark: Bookmark | None = None
    last: str = ""


@runtime_checkable
class Stream(Iterable[Document], Protocol):
    """Documents that can be read from the last one on, which spares the download of those before."""

    bookmark: Bookmark | None

    def again(self, bookmark: Bookmark) -> Iterator[Document]:
        """Read from the document at a bookmark on."""


@dataclass(frozen=True)
class Encoded:
    """Documents as tokens, in source order.

    tokens (n,) of `dtype_of`; lengths: tokens of each document; n_bytes: scored bytes of each; unscored (k, 2): begin
    and end of each run of tokens that is context only.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    n_bytes: np.ndarray
    unscored: np.ndarray


@dataclass(frozen=True)
class FirstPart:
    """What was measured on some of the first documents that are encoded, in one process.

    documents, characters, n_bytes, tokens: of them. read_s, encode_s: seconds per character. before: the documents of
    the source before all of these.
    """

    documents: int
    characters: int
    n_bytes: int
    tokens: int
    read_s: float
    encode_s: float
    before: int = 0


@dataclass(frozen=True)
class _Batch:
    documents: list[Document]
    characters: int
    position: Position  # after them
    encoded: Encoded | None = None  # of one that the time was taken with


class Reading:
    """The documents of a source as they are read, and how far."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self._source, self._documents = documents, iter(documents)
        self._n = 0
        self._hash = hashlib.blake2b(digest_size=16)
        self._last: Document = []

    @classmethod
    def after(cls, source: Stream, position: Position) -> "Reading | None":
        """Go on after a position without what is before it; None if its last document is not there any more."""
        assert position.bookmark is not None
        found = cls(())
        found._source, found._documents = source, source.again(position.bookmark)
        last = next(found._documents, [])
        if _hash_of(last) != position.last:
            return None
        found._n, found._last = position.documents, last
        found._hash.update(position.text.encode())  # what it said is known by its hash alone
        return found

    @property
    def position(self) -> Position:
        """How far the source was read."""
        bookmark = self._source.bookmark if isinstance(self._source, Stream) else None
        return Position(self._n, self._hash.hexdigest(), bookmark, _hash_of(self._last) if bookmark else "")

    def _note(self, document: Document) -> int:
        """Note a document that was read; return its number of characters."""
        self._n, self._last = self._n + 1, document
        _add_to(self._hash, document)
        return sum(len(text) for text, _ in document)

    def pass_over(self, n_documents: int) -> Iterator[int]:
        """Read documents and do nothing with them; yield the number of characters of each."""
        for document in islice(self._documents, n_documents):
            yield self._note(document)

    def batches(self) -> Iterator[_Batch]:
        """Yield the documents with text, about BATCH_CHARACTERS at a time."""
        batch: list[Document] = []
        characters = 0
        for document in self._documents:
            if size := self._note(document):
                batch.append(document)
                characters += size
            if characters >= BATCH_CHARACTERS:
                yield _Batch(batch, characters, self.position)
                batch, characters = [], 0
        if batch:
            yield _Batch(batch, characters, self.position)


def _hash_of(document: Document) -> str:
    found = hashlib.blake2b(digest_size=16)
    _add_to(found, document)
    return found.hexdigest()


def _add_to(found: "hashlib.blake2b", document: Document) -> None:
    found.update(b"%d\n" % len(document))
    for text, scored in document:
        said = text.encode("utf-8", "surrogatepass")
        found.update(b"%d %d\n" % (scored, len(said)))
        found.update(said)


def encoded(
    reading: Reading,
    tokenizer: Tokenizer,
    processes: int,
    beforehand: Callable[[FirstPart], None] | None = None,
) -> Generator[tuple[Encoded, int, Position]]:
    """Yield (encoded documents, their number of characters, the position after them); few are ever in work.

    beforehand: is told what the first part cost, if there is much text; what it raises ends the encoding.
    """
    before = reading.position.documents
    batches = reading.batches()
    first: list[_Batch] = []
    characters, started, opened = 0, time.perf_counter(), 0.0
    while characters < IN_PROCESS_CHARACTERS and (more := next(batches, None)):
        first.append(more)
        characters += more.characters
        opened = opened or time.perf_counter()  # reading the first takes in that the source is opened
    is_much = characters >= IN_PROCESS_CHARACTERS
    if is_much and beforehand:
        read = (time.perf_counter() - opened) / (characters - first[0].characters) if len(first) > 1 else 0.0
        first[0], first[-1], part = _measured(first, tokenizer, read or (opened - started) / characters, before)
        beforehand(part)
    if processes > 1 and is_much:
        yield from _encoded_by_workers(chain(first, batches), tokenizer, processes)
        return
    for batch in chain(first, batches):
        yield batch.encoded or _encode(batch.documents, tokenizer), batch.characters, batch.position


def _measured(
    first: list[_Batch], tokenizer: Tokenizer, read_s: float, before: int
) -> tuple[_Batch, _Batch, FirstPart]:
    """Encode the first and the last batch of the first part; return them, and what the last one cost.

    The first finds all caches empty. It may be the last one, too.
    """
    begin = replace(first[0], encoded=_encode(first[0].documents, tokenizer))
    last = first[-1] if len(first) > 1 else begin
    started = time.perf_counter()
    found = _encode(last.documents, tokenizer)
    seconds = time.perf_counter() - started
    part = FirstPart(
        documents=len(last.documents),
        characters=last.characters,
        n_bytes=sum(len(text.encode("utf-8", "surrogatepass")) for doc in last.documents for text, _ in doc),
        tokens=len(found.tokens),
        read_s=read_s,
        encode_s=seconds / last.characters,
        before=before,
    )
    return begin, replace(last, encoded=found), part


def _encoded_by_workers(
    batches: Iterator[_Batch], tokenizer: Tokenizer, processes: int
) -> Generator[tuple[Encoded, int, Position]]:
    from concurrent.futures import Future, ProcessPoolExecutor

    pool = ProcessPoolExecutor(processes, worker_context(), _start_worker, (tokenizer,))
    try:
        in_work: deque[tuple[Future[Encoded], int, Position]] = deque()
        for batch in batches:
            future: Future[Encoded] = Future()
            if batch.encoded is None:
                future = pool.submit(_encode_in_worker, batch.documents)
            else:
                future.set_result(batch.encoded)
            in_work.append((future, batch.characters, batch.position))
            if len(in_work) > 2 * processes:
                future, size, position = in_work.popleft()
                yield future.result(), size, position
        while in_work:
            future, size, position = in_work.popleft()
            yield future.result(), size, position
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(documents: list[Document], tokenizer: Tokenizer) -> Encoded:
    texts = iter(tokenizer.encode_arrays([text for document in documents for text, _ in document]))
    eot = np.array([tokenizer.eot], np.uint32)
    parts: list[np.ndarray] = []
    end = 0  # of all tokens so far
    lengths: list[int] = []
    n_bytes: list[int] = []
    unscored: list[tuple[int, int]] = []
    for document in documents:
        begin, document_bytes = end, 0
        for text, scored in document:
            at, ids = end, next(texts)
            parts.append(ids)
            end += len(ids)
            if scored:
                document_bytes += len(text.encode("utf-8", "surrogatepass"))
            elif end > at:
                unscored.append((at, end))
        if not document[-1][1]:
            unscored.append((end, end + 1))
        parts.append(eot)
        end += 1
        lengths.append(end - begin)
        n_bytes.append(document_bytes)
    return Encoded(
        tokens=np.concatenate(parts).astype(dtype_of(tokenizer)),
        lengths=np.array(lengths, INT64),
        n_bytes=np.array(n_bytes, INT64),
        unscored=np.array(unscored, INT64).reshape(-1, 2),
    )


_worker_tokenizer: Tokenizer  # of this process, if it is a worker


def _start_worker(tokenizer: Tokenizer) -> None:
    global _worker_tokenizer
    _worker_tokenizer = tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers share the cores already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the builder ends its workers
    end_with_parent()  # a builder that is killed cannot end its workers, which would wait for work for ever


def _encode_in_worker(documents: list[Document]) -> Encoded:
    return _encode(documents, _worker_tokenizer)


def dtype_of(tokenizer: Tokenizer) -> np.dtype:
    """Return the type of the tokens in a store."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 65536 else "<u4")
