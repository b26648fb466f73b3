"""Read runs again and again while they train: of each file only what is new."""

import csv
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from lmplay.errors import UserError
from lmplay.files import check_plain
from lmplay.runs import names
from lmplay.runs.run import Run, read_run
from lmplay.runs.tables import LONGEST_LINE, in_order, parse, read_header
from lmplay.text import printable

if TYPE_CHECKING:
    import pandas

SEEN = 256  # bytes before the end of what was read, by which a file that was cut back and grew again is known
Stamp = tuple[int, int, int]  # of a file: its inode, its size, when it was changed in nanoseconds


def stamp(path: Path) -> Stamp | None:
    """Return what changes with a file, None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


class GrowingTable:
    """A CSV file that a run writes. Each `read` reads the rows that came since the last."""

    def __init__(self, path: Path, columns: Iterable[str]) -> None:
        self.path, self._columns = path, {names.PLAN_STEP, names.STEP, *columns}
        self.bytes_read = 0  # in all, of rows
        self._forget()

    def _forget(self) -> None:
        self._stamp: Stamp | None = None
        self._header: list[str] = []
        self._end, self._tail = 0, b""  # of the whole lines that were read
        self._frame: pandas.DataFrame | None = None

    def read(self) -> "pandas.DataFrame":
        """Return the table as `Run.table` does. A file that was cut back or replaced is read anew.

        Raises UserError if the file can't be read.
        """
        import pandas

        now = stamp(self.path)
        if now is None:
            self._forget()
        elif now != self._stamp:
            try:
                check_plain(self.path)
                with open(self.path, "rb") as file:
                    self._read_new(file, now)
            except OSError as error:
                raise UserError(f"{self.path} can't be read ({error.strerror})") from None
            except (ValueError, KeyError, csv.Error) as error:  # pandas raises many kinds of them
                raise UserError(f"{self.path} is damaged and can't be read ({printable(error)})") from None
        return pandas.DataFrame() if self._frame is None else self._frame

    def _read_new(self, file: BinaryIO, now: Stamp) -> None:
        tail = _bytes(file, self._end - len(self._tail), self._end)
        if self._stamp and (self._stamp[0] != now[0] or tail != self._tail):
            self._forget()
        if not self._header:
            self._header = read_header(self.path)
            self._end = _bytes(file, 0, LONGEST_LINE).find(b"\n") + 1
        data = _bytes(file, self._end, now[1])
        data = data[: data.rfind(b"\n") + 1]
        self._stamp = now
        wanted = [name for name in self._header if name.removeprefix(names.MIDWAY_PREFIX) in self._columns]
        if data and wanted:
            first_line = _bytes(file, 0, LONGEST_LINE).partition(b"\n")[0] + b"\n"
            fresh, _ = parse(BytesIO(first_line + data), wanted, self.path.name)
            self._frame = in_order(fresh if self._frame is None else _joined(self._frame, fresh), [], self.path.name)
            self.bytes_read += len(data)
            self._end += len(data)
            self._tail = _bytes(file, max(0, self._end - SEEN), self._end)


def _bytes(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _joined(before: "pandas.DataFrame", fresh: "pandas.DataFrame") -> "pandas.DataFrame":
    """Return two tables below one another. The phases stay categories."""
    import pandas
    from pandas.api.types import union_categoricals

    joined = pandas.concat([before, fresh], ignore_index=True)
    if names.PLAN_STEP in joined:
        joined[names.PLAN_STEP] = union_categoricals([before[names.PLAN_STEP], fresh[names.PLAN_STEP]])
    return joined


class GrowingRuns:
    """Runs that are read again only where their files have changed."""

    def __init__(self) -> None:
        self._runs: dict[Path, tuple[Stamp | None, Run]] = {}
        self._tables: dict[tuple[Path, str], tuple[frozenset[str], GrowingTable]] = {}

    def run(self, folder: Path) -> Run:
        """Return the run in a folder. Raises as `read_run` does."""
        now = stamp(folder / names.RUN_JSON)
        if folder not in self._runs or self._runs[folder][0] != now:
            self._runs[folder] = now, read_run(folder)
        return self._runs[folder][1]

    def table(self, run: Run, split: str, columns: Iterable[str]) -> "pandas.DataFrame":
        """Return the table of one split ("train" or "validate") of a run, at least with these columns it has."""
        wanted, key = frozenset(columns), (run.folder, split)
        if key not in self._tables or not wanted <= self._tables[key][0]:
            known = self._tables[key][0] if key in self._tables else frozenset()
            wanted |= known
            self._tables[key] = wanted, GrowingTable(run.folder / names.TABLES[split], wanted)
        return self._tables[key][1].read()

    def bytes_read(self) -> int:
        """Return how many bytes of rows were read in all."""
        return sum(table.bytes_read for _, table in self._tables.values())

    def keep(self, folders: Iterable[Path]) -> None:
        """Forget all other runs."""
        kept = set(folders)
        self._runs = {folder: found for folder, found in self._runs.items() if folder in kept}
        self._tables = {key: found for key, found in self._tables.items() if key[0] in kept}
