"""Write a token store: one split of a dataset, tokenized once, memory-mapped by every run.

A store is a folder:
    meta.json               counts, types, content hash, what made it
    tokens_00000.bin ...    the documents' tokens in source order, each document closed by an EOT token
    document_offsets.bin    int64 (n_documents + 1,): where each document begins in the stream
    byte_offsets.bin        int64 (n_documents + 1,): UTF-8 bytes of scored text before each document
    token_checksums.bin     uint32: the checksum of each MiB of each shard of tokens
    unscored.bin            int64 (n, 2): begin and end of each run of tokens that is context only (prompts)

It is written in a folder of its own beside, which a killed process leaves: the next one goes on there.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lmplay.data.encoding import Encoded, FirstPart, Position, Reading, Stream, encoded
from lmplay.data.store import DamagedStore, TokenStore
from lmplay.data.store_files import StoreFiles
from lmplay.data.store_lock import PROGRESS, only_builder, partial_of, remove_leftovers
from lmplay.data.tokenizers import Tokenizer
from lmplay.data.types import Document
from lmplay.errors import UserError
from lmplay.files import make_folder, sync
from lmplay.text import count

if TYPE_CHECKING:
    from tqdm import tqdm


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
    beforehand: Callable[[FirstPart], None] | None = None,
) -> TokenStore:
    """Tokenize documents into a new store at `folder`, or open the store that is there.

    Documents keep their order, whatever the number of processes; those without text are skipped. They are taken
    whole until the next one would pass `max_tokens`, at least one. `label` names the dataset on the progress bar and in
    errors, `made_by` is kept in meta.json. Memory use does not grow with the data.
    The folder appears complete or not at all; a damaged one is replaced. Of several builders of one folder, one builds
    and the others wait. If one was killed, the next goes on where it stood, provided that `documents` can be read from
    the beginning again and say the same up to there. `beforehand` is told what the first part of much text cost, and
    may raise UserError before anything more is done. Raises UserError if no document has text, OSError if the disk is
    full (nothing is left then).
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
        files = StoreFiles(partial_of(folder), tokenizer, made_by or {}, max_tokens)
        with _bar(label, progress) as bar:
            reading = _gone_on(files, documents, bar)
            if reading is None:
                files = StoreFiles(partial_of(folder), tokenizer, made_by or {}, max_tokens)
                files.begin()
                reading = Reading(documents)
            elif progress:
                bar.clear()
                print(f"{label}: goes on after {files}", file=sys.stderr)
            _write(
                folder, encoded(reading, tokenizer, processes, beforehand), files, label=label or folder.name, bar=bar
            )
    if progress:
        print(f"{label}: {files}", file=sys.stderr)
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


def _gone_on(files: StoreFiles, documents: Iterable[Document], bar: "tqdm") -> Reading | None:
    """Return the documents that follow those in `files`, which a killed process has left; None to begin anew.

    The documents before are read again, of a stream the last one alone: they must be the same.
    """
    if isinstance(documents, Iterator) or not files.go_on() or files.position is None:
        return None
    if files.position.bookmark and isinstance(documents, Stream):
        if found := Reading.after(documents, files.position):
            return found
    else:
        reading = Reading(documents)
        bar.set_postfix_str("read again", refresh=False)
        for characters in reading.pass_over(files.position.documents):
            bar.update(characters)
        if (reading.position.documents, reading.position.text) == (files.position.documents, files.position.text):
            return reading
    files.leave()
    bar.reset()
    return None


def _write(
    folder: Path, batches: Generator[tuple[Encoded, int, Position]], files: StoreFiles, *, label: str, bar: "tqdm"
) -> None:
    try:
        with contextlib.closing(batches):
            for batch, characters, position in batches:
                more = files.add(batch, position)
                bar.update(characters)
                bar.set_postfix_str(f"{files.n_documents:,} documents, {count(files.n_tokens)} tokens", refresh=False)
                if not more:
                    break
        if not files.n_documents:
            raise UserError(
                f"{label}: no document with text; check where the documents come from and which fields are read"
            )
        files.finish()
        if folder.exists():  # damaged
            os.rename(folder, partial_of(folder.with_name(f"{folder.name}.old")))
        os.rename(files.folder, folder)
        (folder / PROGRESS).unlink(missing_ok=True)
        sync(folder.parent)
        remove_leftovers(folder.parent)
    except BaseException as error:
        files.leave(error)
        raise


def _bar(label: str, progress: bool) -> "tqdm":
    from tqdm import tqdm

    # disable=None: silent where stderr is no terminal
    return tqdm(desc=label, unit="B", unit_scale=True, leave=False, disable=None if progress else True)
