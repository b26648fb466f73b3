"""Read rows of local files: text, jsonl, csv and parquet, each also compressed.

A text file is cut at blank lines into documents of about 64 KiB. In a small dataset they are a 200th of all its text,
but at least 256 bytes. So a book by itself has documents to train on and to hold out, and a small file among many stays
whole. Line ends become "\\n".
"""

import csv
import glob
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from lmplay.data.foreign_files import arrow_rows, files_of_folder, refuse_other_formats, token_rows
from lmplay.data.opened_files import damage_reported, endless, import_pyarrow, kind_of, most_bytes, open_data, suffix_of
from lmplay.data.plan_spec import DatasetSpec
from lmplay.data.types import Row, Where
from lmplay.errors import UserError, did_you_mean
from lmplay.files import typed_path
from lmplay.text import in_words

LONGEST_LINE = 2**28  # bytes of a row


def training_files(spec: DatasetSpec, folder: Path) -> list[Path]:
    """Return the files to train on: those that are held out are not among them. Raises UserError if none is left."""
    found = data_files(spec, spec.files, folder)
    held_out = {file.resolve() for file in held_out_files(spec, folder)}
    files = [file for file in found if file.resolve() not in held_out]
    if not files:
        raise UserError(f"dataset {spec.name!r}: all its files are held out for validation: name others to train on")
    return files


def held_out_files(spec: DatasetSpec, folder: Path) -> list[Path]:
    """Return the files that are held out for validation; none where another part of the data is."""
    return data_files(spec, spec.validation.get("files", ()), folder)


def data_files(spec: DatasetSpec, patterns: Iterable[str], folder: Path) -> list[Path]:
    """Return the files that names and patterns stand for, pattern by pattern, each sorted.

    They are relative to `folder`, else to the working folder; a folder stands for all files in it. Raises UserError: no
    match, an empty file, a format that is not read.
    """
    files: list[Path] = []
    for pattern in patterns:
        for base in (Path(folder), Path()):
            path = base / typed_path(pattern)
            if path.is_dir():
                if found := files_of_folder(path):
                    break
                continue
            names = [path] if path.is_file() else sorted(glob.glob(_pattern(base, path), recursive=True))
            if found := [Path(name) for name in names if Path(name).is_file()]:
                break
        else:
            why = "there are no files in the folder" if path.is_dir() else "no file matches"
            raise UserError(f"dataset {spec.name!r}: {why} {pattern!r}")
        files += [file for file in found if file not in files]
    for file in files:
        refuse_other_formats(file)
        if file.stat().st_size == 0:
            raise UserError(f"{file}: the data file is empty")
    return files


def _pattern(base: Path, path: Path) -> str:
    """Return the pattern `path` for glob: what is there by that very name, brackets and all, is no pattern."""
    known = base if path.is_relative_to(base) else Path(path.anchor)
    rest = list(path.relative_to(known).parts)
    while rest and (known / rest[0]).is_dir():
        known /= rest.pop(0)
    return os.path.join(glob.escape(str(known)), *rest)


def file_rows(spec: DatasetSpec, files: Sequence[Path]) -> Iterator[tuple[Where, Row]]:
    """Yield ((file, line or row number), row) of every file; a row is a dict of columns, or one text."""
    texts = sum(file.stat().st_size for file in files if kind_of(file) == "text")
    for file in files:
        with damage_reported(file):
            if kind_of(file) == "text":
                yield from _text_rows(file, min(max(texts // 200, 256), 65536), spec.separator)
            elif kind_of(file) == "jsonl":
                yield from _json_rows(file)
            elif kind_of(file) == "csv":
                yield from _csv_rows(file)
            elif kind_of(file) == "arrow":
                yield from arrow_rows(spec, file)
            elif kind_of(file) == "tokens":
                yield from token_rows(file)
            else:
                yield from _parquet_rows(spec, file)


def _text_rows(file: Path, size: int, separator: str | None) -> Iterator[tuple[Where, Row]]:
    with open_data(file) as opened, io.TextIOWrapper(opened, encoding="utf-8-sig") as text:
        pieces = _separated(text, separator) if separator else _pieces(_lines(text, 2 * size), size)
        for k, piece in enumerate(pieces):
            if "\0" in piece:
                raise UserError(f"{file}: is not text (it has NUL bytes)")
            yield (file, k + 1), piece


def _separated(text: TextIO, separator: str) -> Iterator[str]:
    """Yield what stands between separators, without blank lines around; nothing for what is blank."""
    rest = ""
    while more := text.read(2**20):
        known = max(0, len(rest) - len(separator))  # as far as there is no separator in the rest
        rest += more
        while (at := rest.find(separator, known)) >= 0:
            if piece := rest[:at].strip("\n"):
                yield piece
            rest, known = rest[at + len(separator) :], 0
    if piece := rest.strip("\n"):
        yield piece


def _lines(text: TextIO, limit: int) -> Iterator[str]:
    """Yield lines; those of more than `limit` characters in parts, cut after a space if there is one."""
    rest = ""
    while more := text.readline(limit):
        line, rest = rest + more, ""
        cut = line.rfind(" ") + 1
        if len(more) == limit and not more.endswith("\n") and cut:
            line, rest = line[:cut], line[cut:]
        yield line
    if rest:
        yield rest


def _pieces(lines: Iterator[str], size: int) -> Iterator[str]:
    """Yield the lines joined to pieces of `size` characters, extended to the next blank line, at most twice `size`."""
    piece: list[str] = []
    length, blank = 0, False
    for line in lines:
        if length >= size and ((blank and not line.isspace()) or length + len(line) > 2 * size):
            yield "".join(piece)
            piece, length = [], 0
        piece.append(line)
        length += len(line)
        blank = line.isspace()
    if piece:
        yield "".join(piece)


def _json_rows(file: Path) -> Iterator[tuple[Where, Row]]:
    """Yield the objects of a file: one a line, or those of the one array that a .json may be."""
    with open_data(file) as lines:
        for number, coded in enumerate(iter(lambda: lines.readline(LONGEST_LINE), b""), 1):
            if len(coded) == LONGEST_LINE:
                raise UserError(f"{file}:{number}: the line is longer than {LONGEST_LINE >> 20} MiB")
            line = coded.decode("utf-8-sig" if number == 1 else "utf-8")
            if line.isspace():
                continue
            if number == 1 and line.lstrip().startswith("[") and suffix_of(file) == ".json":
                yield from _array_rows(file, line + lines.read().decode("utf-8"))
                return
            row = _parsed(f"{file}:{number}", line)
            if not isinstance(row, dict):
                raise UserError(
                    f"{file}:{number}: each line must be a JSON object, this one is {in_words(type(row))}"
                    + (" (an array of objects belongs into a .json file)" if isinstance(row, list) else "")
                )
            yield (file, number), row


def _array_rows(file: Path, text: str) -> Iterator[tuple[Where, Row]]:
    rows = _parsed(str(file), text)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UserError(f"{file}: item {number} of the array is {in_words(type(row))}, not a JSON object")
        yield (file, number), row


def _parsed(where: str, text: str) -> Any:
    """Return the value of JSON text. An integer too long for Python stays text: nobody may ask for it."""
    try:
        return json.loads(text, parse_int=_integer)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.rstrip() else ""
        raise UserError(f"{where}: not valid JSON: {error.msg} at {line}column {error.colno}") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply") from None


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= 4000 else digits


def _csv_rows(file: Path) -> Iterator[tuple[Where, Row]]:
    csv.field_size_limit(LONGEST_LINE)
    with open_data(file) as opened, io.TextIOWrapper(opened, encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, strict=True)
        header = next(rows, [])
        for row in rows:
            if len(row) == len(header):
                yield (file, rows.line_num), dict(zip(header, row, strict=True))
            elif row:
                raise UserError(f"{file}:{rows.line_num}: has {len(row)} columns, the header has {len(header)}")


def _parquet_rows(spec: DatasetSpec, file: Path) -> Iterator[tuple[Where, Row]]:
    import_pyarrow(file)
    import pyarrow.parquet

    with open_data(file) as opened:
        # parquet is read from its end: a compressed one has to be held whole
        source = pyarrow.parquet.ParquetFile(file if file.suffix.lower() == ".parquet" else io.BytesIO(opened.read()))
        columns, present = spec.columns, source.schema_arrow.names
        number, left = 0, most_bytes(file)
        missing = [name for name in columns if name not in present]
        if missing:
            raise UserError(
                f"{file}: dataset {spec.name!r} wants the column {missing[0]!r}, which is not there."
                f"{did_you_mean(missing[0], present)}"
            )
        for batch in source.iter_batches(batch_size=1000, columns=columns):
            left -= batch.nbytes
            if left < 0:
                raise endless(file)
            for row in batch.to_pylist():
                number += 1
                yield (file, number), row
