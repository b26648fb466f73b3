"""Open data files, also compressed ones, and say of damaged ones in one line what is wrong; how large they are."""

import csv
import io
import lzma
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from lmplay.errors import UserError
from lmplay.files import check_plain

EXPANDED_AT_LEAST, EXPANSION = 2**26, 250  # bytes, and times its size, that a file may hold: text shrinks to a 20th
TYPICAL_EXPANSION = 3  # of compressed text
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".csv": "csv"}
_KINDS |= {".arrow": "arrow", ".bin": "tokens"}


def kind_of(file: Path) -> str:
    """Return the kind of rows that a file holds, by its name: "text" where nothing else is known."""
    return _KINDS.get(suffix_of(file), "text")


def suffix_of(file: Path) -> str:
    """Return what a file's name ends with, the ending of a compressed one left aside; "" without."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@contextmanager
def damage_reported(file: Path) -> Iterator[None]:
    """Turn errors of damaged and unreadable files into a UserError of one line."""
    try:
        yield
    except UnicodeDecodeError:
        raise UserError(f"{file}: is not UTF-8 text (a binary file, or another encoding)") from None
    except EOFError:
        raise UserError(f"{file}: the compressed file is cut short; fetch it again") from None
    except (zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{file}: the compressed file is damaged ({error})") from None
    except csv.Error as error:
        raise UserError(f"{file}: damaged csv ({error})") from None
    except MemoryError:
        raise UserError(f"{file}: one of its rows does not fit into memory") from None
    except OSError as error:
        raise UserError(f"{file}: can't be read ({error.strerror or str(error).splitlines()[0]})") from None
    except ValueError as error:
        if type(error).__module__.startswith("pyarrow"):
            raise UserError(f"{file}: can't be read ({str(error).splitlines()[0]})") from None
        raise


def open_data(file: Path) -> IO[bytes]:
    """Open the file for reading its bytes, decompressed."""
    check_plain(file)
    if file.suffix.lower() not in COMPRESSED:
        return open(file, "rb")
    return io.BufferedReader(_Expanded(file, _decompressed(file)))


def _decompressed(file: Path) -> IO[bytes]:
    suffix = file.suffix.lower()
    if suffix == ".gz":
        import gzip

        return cast(IO[bytes], gzip.open(file))
    if suffix == ".bz2":
        import bz2

        return bz2.open(file)
    if suffix == ".xz":
        return lzma.open(file)
    return import_pyarrow(file).input_stream(str(file), compression="zstd")


class _Expanded(io.RawIOBase):
    """What a compressed file holds, until that is far more than any text: a few bytes can stand for a full disk."""

    def __init__(self, file: Path, source: IO[bytes]):
        self._file, self._source = file, source
        self._left = most_bytes(file)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise endless(self._file)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._source.close()
        super().close()


def most_bytes(file: Path) -> int:
    """Return how many bytes of text a file may hold."""
    return max(EXPANDED_AT_LEAST, EXPANSION * file.stat().st_size)


def endless(file: Path) -> UserError:
    return UserError(
        f"{file}: it holds more than {EXPANSION} times its own size, which is no text that somebody wrote: "
        "unpack it and look at it"
    )


def import_pyarrow(file: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise UserError(f"{file}: reading this kind of file needs pyarrow: pip install 'lmplay[hub]'") from None
    return pyarrow


@dataclass(frozen=True)
class Size:
    """How large a source is, about. documents: of it; n_bytes: of the text that is beside these documents."""

    documents: float = 0
    n_bytes: float = 0


def size_of_files(files: Sequence[Path]) -> Size | None:
    """Return how large files are, by their sizes, the lengths of their first lines and what parquet says of its rows.

    None where that can't be said of one of them.
    """
    documents = n_bytes = 0.0
    for file in files:
        compressed = file.suffix.lower() in COMPRESSED
        size = file.stat().st_size * (TYPICAL_EXPANSION if compressed else 1)
        kind = kind_of(file)
        if kind == "text":
            n_bytes += size
        elif kind in ("jsonl", "csv"):
            with damage_reported(file), open_data(file) as opened:
                start = opened.read(2**20)
            lines = start.count(b"\n")
            if lines < 2 or start.lstrip()[:1] == b"[":
                return None
            documents += size * lines / len(start)
        elif kind == "parquet" and not compressed:
            import_pyarrow(file)
            import pyarrow.parquet

            with damage_reported(file):
                documents += pyarrow.parquet.ParquetFile(file).metadata.num_rows
        else:
            return None
    return Size(documents, n_bytes)
