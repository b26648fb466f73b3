"""Read documents one at a time from the hub, local files, the standard library's sources and synthetic tasks.

A document is a list of (text, scored) segments: plain text is one segment, a prompt is not scored and its answer is.
The position in the source alone decides which documents are held out for validation. So training and validation never
share one, streamed or not.
"""

import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import cache
from itertools import dropwhile, islice
from pathlib import Path
from typing import Any, TypeVar

from lmplay.data import tasks
from lmplay.data.local_files import file_rows, held_out_files, training_files
from lmplay.data.opened_files import Size
from lmplay.data.package_sources import package_origin, package_rows
from lmplay.data.plan_spec import PROMPT_END, TURN_END, DatasetSpec, turn_head
from lmplay.data.types import Document, Row, Where
from lmplay.errors import UserError, did_you_mean
from lmplay.text import in_words, without_half_surrogates

_Content = TypeVar("_Content", str, list)
_Numbered = tuple[int, tuple[Where, Row]]  # a row, with its number in the source

_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__"}


def documents(spec: DatasetSpec, plan_folder: Path, split: str = "train") -> Iterator[Document]:
    """Yield the documents of a dataset in order: those to train on (`split` "train") or those held out ("validation").

    Documents without any text to score are left out. Raises UserError for a source that is missing, cannot be reached,
    is damaged, lacks a column, or has no documents for this split.
    """
    for _, document in documents_from(spec, plan_folder, split):
        yield document


def documents_from(
    spec: DatasetSpec, plan_folder: Path, split: str, first_row: int = 0
) -> Iterator[tuple[int, Document]]:
    """Yield (row, document) of the documents of a split whose rows come from `first_row` on.

    Rows are counted in the source, from 0. Raises UserError as `documents` does.
    """
    found = first_row > 0
    for number, (where, row) in _rows_of_split(spec, Path(plan_folder), split == "validation", first_row):
        document = _as_document(spec, row, where)
        if any(scored and text.strip() for text, scored in document):
            found = True
            yield number, document
    if not found:
        held_out = f" with 'validation' {spec.validation}" if split == "validation" else ""
        raise UserError(
            f"dataset {spec.name!r}: no documents to {'validate' if split == 'validation' else 'train'} on{held_out}: "
            "give it more text, or hold out another part of it in a plan (plans/README.md, validation)"
        )


def _as_document(spec: DatasetSpec, row: Row, where: Where) -> Document:
    if isinstance(row, list):
        return row
    if isinstance(row, str):
        return [(without_half_surrogates(row), True)]
    return _map_fields(spec, row, where)


def origin(spec: DatasetSpec, plan_folder: Path) -> str:
    """Return a hex hash of the source without reading it: names, sizes and times of files, or versions of libraries.

    The hub is not asked for its content, so that a prepared dataset needs no network; a plan's "revision" fixes it.
    """
    parts: list[Any] = []
    if spec.kind == "files":
        for path in [*training_files(spec, plan_folder), *held_out_files(spec, plan_folder)]:
            parts.append((path.name, path.stat().st_size, path.stat().st_mtime_ns))
    elif spec.kind == "embedded" and spec.source == "packages":
        parts = list(package_origin())
    elif spec.kind == "embedded":
        parts = [sys.version_info[:3], *((name, (_library() / name).stat().st_size) for name in _library_files())]
    elif spec.kind == "synthetic":
        parts = [tasks.code_of(spec.source_id)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _rows_of_split(spec: DatasetSpec, folder: Path, validation: bool, first: int) -> Iterator[_Numbered]:
    """Yield the rows of a split, from that of number `first` in the source on."""
    held_out, cap = spec.validation, spec.max_documents
    most = held_out.get("max_documents")
    if "distributions" in held_out:
        rows = enumerate(package_rows(held_out["distributions"], validation))
        return islice(rows, first, most if validation else cap)
    if "fraction" in held_out:
        rows = enumerate(_rows(spec, folder, first, cap), first)
        of_all = islice(held_out_documents(spec.name, held_out["fraction"]), most)
        picks = dropwhile(lambda pick: pick < first, of_all)
        return _picked(rows, picks) if validation else _not_picked(rows, picks)
    if not validation:
        return enumerate(_rows(spec, folder, first, cap), first)
    if "skip" in held_out:
        assert cap is not None  # the plan was refused without it
        start = cap + held_out["skip"]
        at = max(start, first)
        return enumerate(_rows(spec, folder, at, start + held_out["documents"]), at)
    return enumerate(_rows(spec, folder, first, most, held_out), first)  # a split or files of its own


def held_out_documents(name: str, fraction: float) -> Iterator[int]:
    """Yield positions of validation documents, ascending: one of every 1 / fraction, by a hash of name and position.

    Each block of positions gives one, rather than each position by its own hash. So a small dataset has its share, too.
    """
    share = Fraction(str(fraction))
    block, start = 0, 0
    while True:
        stop = -(-(block + 1) // share)
        number = int.from_bytes(hashlib.sha256(f"{name}\0{start}".encode()).digest()[:8])
        yield start + number % (stop - start)
        block, start = block + 1, stop


def _picked(rows: Iterable[_Numbered], picks: Iterator[int]) -> Iterator[_Numbered]:
    pick = next(picks, None)
    for k, row in rows if pick is not None else ():
        if k == pick:
            yield k, row
            pick = next(picks, None)
            if pick is None:
                return


def _not_picked(rows: Iterable[_Numbered], picks: Iterator[int]) -> Iterator[_Numbered]:
    pick = next(picks, None)
    for k, row in rows:
        if k == pick:
            pick = next(picks, None)
        else:
            yield k, row


def _rows(
    spec: DatasetSpec, folder: Path, start: int, stop: int | None, held_out: dict | None = None
) -> Iterator[tuple[Where, Row]]:
    """Yield (where, row) of the rows `start` to `stop`; `held_out`: a split or files of its own."""
    held_out = held_out or {}
    if spec.kind == "hub":
        from lmplay.data.hub import hub_rows  # what only the hub needs

        return hub_rows(spec, held_out.get("split", spec.split), start, stop)
    if spec.kind == "files":
        files = held_out_files(spec, folder) if "files" in held_out else training_files(spec, folder)
        return islice(file_rows(spec, files), start, stop)
    if spec.kind == "synthetic":
        return tasks.documents(spec.source_id, settings=spec.settings, seed=spec.seed, start=start, stop=stop)
    return islice(_library_rows(), start, stop)


@cache
def _library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _library_files() -> list[str]:
    """Return the standard library's sources without its tests and installed packages, in the same order everywhere."""
    files = []
    for folder, folders, names in os.walk(_library()):
        folders[:] = [name for name in folders if name not in _NOT_LIBRARY]
        inside = os.path.relpath(folder, _library()).replace(os.sep, "/").removeprefix(".")
        files += [f"{inside}/{name}".removeprefix("/") for name in names if name.endswith(".py")]
    return sorted(files)


def _library_rows() -> Iterator[tuple[Where, Row]]:
    for name in _library_files():
        try:
            text = (_library() / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a few files declare another encoding
        if text.strip():
            yield name, text


def embedded_bytes(spec: DatasetSpec) -> Size | None:
    """Return the size of the standard library's sources; None for the packages, parts of which are left out."""
    if spec.source == "packages":
        return None
    return Size(n_bytes=sum((_library() / name).stat().st_size for name in _library_files()))


def _map_fields(spec: DatasetSpec, row: dict[str, Any], where: Where) -> Document:
    if spec.messages:
        return _conversation(_field(spec, row, spec.messages, where, list), where)

    def text(column: str) -> str:
        return without_half_surrogates(_field(spec, row, column, where, str))

    if spec.answer is None:
        return [("\n\n".join(filter(None, map(text, spec.text))), True)]
    prompt = "\n".join(filter(None, map(text, spec.prompt)))
    answer = text(spec.answer)
    return [(prompt + PROMPT_END, False), (answer, True)] if prompt else [(answer, True)]


def _field(spec: DatasetSpec, row: dict[str, Any], name: str, where: Where, kind: type[_Content]) -> _Content:
    """Return the text or list in a column; a null is an empty one."""
    if name not in row:
        raise UserError(
            f"{_shown(where)}: dataset {spec.name!r} wants the column {name!r}, which is not there."
            f"{did_you_mean(name, row)}"
        )
    value = kind() if row[name] is None else row[name]
    if not isinstance(value, kind):
        raise UserError(
            f"{_shown(where)}: the column {name!r} holds {in_words(type(value))}, "
            f"not {'text' if kind is str else 'a list of messages'}"
        )
    return value


def _conversation(messages: list, where: Where) -> Document:
    """Return turns as "User: ..." and "Assistant: ..." with blank lines between, up to the assistant's last.

    The assistant's turns are scored.
    """
    document: Document = []
    pending = ""
    for k, message in enumerate(messages):
        right = isinstance(message, dict) and isinstance(message.get("role"), str)
        if not (right and isinstance(message.get("content"), str | None)):
            raise UserError(f"{_shown(where)}: message {k + 1} is not an object with the texts 'role' and 'content'")
        role, content = message["role"], without_half_surrogates(message.get("content") or "")
        pending += (TURN_END if k else "") + turn_head(role)
        if role == "assistant":
            document += [(pending, False), (content, True)]
            pending = ""
        else:
            pending += content
    return document


def _shown(where: Where) -> str:
    return ":".join(map(str, where)) if isinstance(where, tuple) else str(where)
