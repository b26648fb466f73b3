"""Documents, one at a time, from wherever a plan says: the hub, local files, the text that comes with Python, synthetic tasks.

A document is a list of (text, scored) segments: plain text is one segment, a prompt is not scored and its answer is.
Which documents are held out for validation is decided by their position in the source alone, so that training and
validation never share one, streamed or not.
"""

import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from lmplay.data import tasks
from lmplay.data.local_files import data_files, file_rows
from lmplay.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from lmplay.data.plans import DatasetSpec


Document = list[tuple[str, bool]]


_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__"}


def documents(spec: "DatasetSpec", plan_folder: Path, split: str = "train") -> Iterator[Document]:
    """The documents of a dataset, in order: those to train on (`split` "train"), or those held out ("validation").

    Documents without any text to score are left out. Raises UserError: a source that is not there, cannot be reached, is
    damaged, lacks a column, or has no documents for this split.
    """
    found = False
    for where, row in _rows_of_split(spec, Path(plan_folder), split == "validation"):
        document = (
            row
            if isinstance(row, list)
            else [(_valid(row), True)]
            if isinstance(row, str)
            else _map_fields(spec, row, where)
        )
        if any(scored and text.strip() for text, scored in document):
            found = True
            yield document
    if not found:
        held_out = f" with 'validation' {spec.validation}" if split == "validation" else ""
        raise UserError(
            f"dataset {spec.name!r}: no documents to {'validate' if split == 'validation' else 'train'} on{held_out}: "
            "give it more text, or hold out another part of it in a plan (plans/README.md, validation)"
        )


def origin(spec: "DatasetSpec", plan_folder: Path) -> str:
    """Hex hash of what documents are read from, without reading it: names, sizes, times of files, or Python's version.

    What the hub holds is not asked for, so that a prepared dataset needs no network; a plan's "revision" fixes it.
    """
    parts = []
    if spec.kind == "files":
        held_out = data_files(spec, spec.validation.get("files", ()), plan_folder)
        for path in [*data_files(spec, spec.source, plan_folder), *held_out]:
            parts.append((path.name, path.stat().st_size, path.stat().st_mtime_ns))
    elif spec.kind == "embedded":
        parts = [sys.version_info[:3], *((name, (_library() / name).stat().st_size) for name in _library_files())]
    elif spec.kind == "synthetic":
        parts = [tasks.code_of(spec.source)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _rows_of_split(spec, folder, validation: bool) -> Iterator[tuple]:
    """(where, row) of the split; a row is a text, a dict of columns or a whole document."""
    held_out, cap = spec.validation, spec.max_documents
    if "skip" in held_out:
        start = cap + held_out["skip"]
        return _rows(spec, folder, start, start + held_out["documents"]) if validation else _rows(spec, folder, 0, cap)
    most = held_out.get("max_documents")
    if "fraction" not in held_out:  # a split or files of its own
        return _rows(spec, folder, 0, most, held_out) if validation else _rows(spec, folder, 0, cap)
    rows = enumerate(_rows(spec, folder, 0, cap))
    picks = islice(held_out_documents(spec.name, held_out["fraction"]), most)
    return _picked(rows, picks) if validation else _not_picked(rows, picks)


def held_out_documents(name: str, fraction: float) -> Iterator[int]:
    """Ascending positions of validation documents: one of every 1 / fraction, chosen by a hash of name and position.

    One a block rather than each by its own hash, so that a small dataset has its share, too.
    """
    share = Fraction(str(fraction))
    block, start = 0, 0
    while True:
        stop = -(-(block + 1) // share)
        number = int.from_bytes(hashlib.sha256(f"{name}\0{start}".encode()).digest()[:8])
        yield start + number % (stop - start)
        block, start = block + 1, stop


def _picked(rows, picks):
    pick = next(picks)
    for k, row in rows:
        if k == pick:
            yield row
            pick = next(picks, None)
            if pick is None:
                return


def _not_picked(rows, picks):
    pick = next(picks)
    for k, row in rows:
        if k == pick:
            pick = next(picks, None)
        else:
            yield row


def _rows(spec, folder, start, stop, held_out={}):
    if spec.kind == "hub":
        from lmplay.data.hub import hub_rows  # what only the hub needs

        return hub_rows(spec, held_out.get("split", spec.split), start, stop)
    if spec.kind == "files":
        return islice(file_rows(spec, held_out.get("files", spec.source), folder), start, stop)
    if spec.kind == "synthetic":
        return tasks.documents(spec, start, stop)
    return islice(_library_rows(), start, stop)


@cache
def _library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _library_files() -> list[str]:
    """The standard library's sources, without tests and what is not part of it, in an order that is the same everywhere."""
    files = []
    for folder, folders, names in os.walk(_library()):
        folders[:] = [name for name in folders if name not in _NOT_LIBRARY]
        inside = os.path.relpath(folder, _library()).replace(os.sep, "/").removeprefix(".")
        files += [f"{inside}/{name}".removeprefix("/") for name in names if name.endswith(".py")]
    return sorted(files)


def _library_rows():
    for name in _library_files():
        try:
            text = (_library() / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a few files declare another encoding
        if text.strip():
            yield name, text


def _map_fields(spec, row: dict, where) -> Document:
    if spec.messages:
        return _conversation(_field(spec, row, spec.messages, where, list), where)
    if not spec.prompt:
        return [("\n\n".join(filter(None, (_field(spec, row, name, where) for name in spec.text))), True)]
    prompt = "\n".join(filter(None, (_field(spec, row, name, where) for name in spec.prompt)))
    answer = _field(spec, row, spec.answer, where)
    return [(prompt + "\n\n", False), (answer, True)] if prompt else [(answer, True)]


def _field(spec, row: dict, name: str, where, kind=str):
    """The text (or list) in a column; a null is an empty one."""
    if name not in row:
        raise UserError(
            f"{_place(where)}: dataset {spec.name!r} wants the column {name!r}, which is not there."
            f"{did_you_mean(name, row)}"
        )
    value = kind() if row[name] is None else row[name]
    if not isinstance(value, kind):
        raise UserError(
            f"{_place(where)}: the column {name!r} holds {type(value).__name__}, "
            f"not {'text' if kind is str else 'a list of messages'}"
        )
    return _valid(value) if kind is str else value


def _conversation(messages: list, where) -> Document:
    """Turns as "User: ..." and "Assistant: ..." with blank lines between, to the assistant's last; its turns are scored."""
    document, pending = [], ""
    for k, message in enumerate(messages):
        right = isinstance(message, dict) and isinstance(message.get("role"), str)
        if not (right and isinstance(message.get("content"), str | None)):
            raise UserError(f"{_place(where)}: message {k + 1} is not an object with the texts 'role' and 'content'")
        role, content = message["role"], _valid(message.get("content") or "")
        pending += ("\n\n" if k else "") + role.capitalize() + ": "
        if role == "assistant":
            document += [(pending, False), (content, True)]
            pending = ""
        else:
            pending += content
    return document


def _place(where) -> str:
    """`where` is a file or dataset, or that with a line or row number."""
    return ":".join(map(str, where)) if isinstance(where, tuple) else str(where)


def _valid(text: str) -> str:
    """Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes the replacement character."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
