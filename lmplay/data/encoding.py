"""Read documents and encode them in source order, on all cores and in bounded memory."""

import hashlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from lmplay.data.store import INT64
from lmplay.data.tokenizers import Tokenizer
from lmplay.data.types import Document
from lmplay.processes import end_with_parent, worker_context

BATCH_CHARACTERS = 2**18  # encoded by a worker at a time
IN_PROCESS_CHARACTERS = 2**24  # with less text, starting workers costs more than they save


@dataclass(frozen=True)
class Position:
    """How far a source was read: the number of its documents, and a hex hash of all that they said."""

    documents: int
    text: str


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


class Reading:
    """The documents of a source as they are read, and how far."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self._documents = iter(documents)
        self._n = 0
        self._hash = hashlib.blake2b(digest_size=16)

    @property
    def position(self) -> Position:
        """How far the source was read."""
        return Position(self._n, self._hash.hexdigest())

    def _note(self, document: Document) -> int:
        """Note a document that was read; return its number of characters."""
        self._n += 1
        size = 0
        self._hash.update(b"%d\n" % len(document))
        for text, scored in document:
            said = text.encode("utf-8", "surrogatepass")
            self._hash.update(b"%d %d\n" % (scored, len(said)))
            self._hash.update(said)
            size += len(text)
        return size

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
        beforehand(_measured(first, tokenizer, read or (opened - started) / characters, before))
    if processes > 1 and is_much:
        yield from _encoded_by_workers(chain(first, batches), tokenizer, processes)
        return
    for batch in chain(first, batches):
        yield _encode(batch.documents, tokenizer), batch.characters, batch.position


def _measured(first: list[_Batch], tokenizer: Tokenizer, read_s: float, before: int) -> FirstPart:
    """Encode two batches of the first part and return what they cost; the first of them finds all caches empty."""
    _encode(first[0].documents, tokenizer)
    started = time.perf_counter()
    last = _encode(first[-1].documents, tokenizer)
    seconds = time.perf_counter() - started
    return FirstPart(
        documents=len(first[-1].documents),
        characters=first[-1].characters,
        n_bytes=sum(len(text.encode("utf-8", "surrogatepass")) for doc in first[-1].documents for text, _ in doc),
        tokens=len(last.tokens),
        read_s=read_s,
        encode_s=seconds / first[-1].characters,
        before=before,
    )


def _encoded_by_workers(
    batches: Iterator[_Batch], tokenizer: Tokenizer, processes: int
) -> Generator[tuple[Encoded, int, Position]]:
    from concurrent.futures import Future, ProcessPoolExecutor

    pool = ProcessPoolExecutor(processes, worker_context(), _start_worker, (tokenizer,))
    try:
        in_work: deque[tuple[Future[Encoded], int, Position]] = deque()
        for batch in batches:
            in_work.append((pool.submit(_encode_in_worker, batch.documents), batch.characters, batch.position))
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
