"""Keep a copy of a run's folder that grows on another machine.

Where it is trained, `Watched` finds what has changed. Where the copy is, `Mirror` takes it in. A checkpoint arrives
with its state.json last, without which it counts as not there: whenever the other machine is lost, the copy can go on.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lmplay.checksums import of_bytes, of_file, seal
from lmplay.data.carried import PIECE, Packed, pack
from lmplay.errors import UserError
from lmplay.files import beside_of, make_folder, sync, sync_all, write_json
from lmplay.runs import checkpoints
from lmplay.runs.names import CHECKPOINTS, RUN_JSON, STATE, WRITTEN


@dataclass(frozen=True)
class Piece:
    """Bytes of a file. path: POSIX, in the run's folder. offset: where they begin. ends: they are the file's last."""

    path: str
    offset: int
    content: bytes
    ends: bool


@dataclass(frozen=True)
class Gone:
    """A file that is not there any more."""

    path: str


Change = Piece | Gone


@dataclass(frozen=True)
class _Known:
    """A file as the copy has it."""

    size: int
    changed: int
    checksum: int


class Watched:
    """A run's folder that is being written. What is in it at first is what the copy has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, _Known] = {}
        for path in self._paths():
            status = path.stat()
            self._known[self._name(path)] = _Known(status.st_size, status.st_mtime_ns, of_file(path))

    def changes(self) -> Iterator[Change]:
        """Yield what has changed since the last call: files, then checkpoints, then what is gone.

        The checkpoints are looked up first, so that what is read of the other files is at least as new.
        """
        paths = self._paths()
        lost: set[Path] = set()  # checkpoints that were deleted while they were read
        for path in paths:
            if path.parent in lost:
                continue
            try:
                yield from self._of_file(path)
            except FileNotFoundError:
                lost.add(path.parent)
        there = set(map(self._name, paths))
        for name in [name for name in reversed(self._known) if name not in there]:  # state.json before its weights
            del self._known[name]
            yield Gone(name)

    def _paths(self) -> list[Path]:
        """Return the files of the run, those of whole checkpoints last, and of each its state.json last."""
        return files_of(self.folder, checkpoints.find_all(self.folder / CHECKPOINTS))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _of_file(self, path: Path) -> Iterator[Piece]:
        name, status = self._name(path), path.stat()
        known = self._known.get(name)
        if known and (known.size, known.changed) == (status.st_size, status.st_mtime_ns):
            return
        offset = checksum = 0
        if known and status.st_size >= known.size and of_file(path, known.size) == known.checksum:
            offset, checksum = known.size, known.checksum  # it has grown
        with open(path, "rb") as file:
            file.seek(offset)
            content = file.read(PIECE)
            while True:
                following = file.read(PIECE) if len(content) == PIECE else b""
                yield Piece(name, offset, content, ends=not following)
                offset, checksum = offset + len(content), of_bytes(content, checksum)
                if not following:
                    break
                content = following
        self._known[name] = _Known(offset, status.st_mtime_ns, checksum)


class Mirror:
    """The copy of a run's folder. mend: changes what run.json says of the machine on which it was written."""

    def __init__(self, folder: Path, mend: Callable[[dict[str, Any]], None]) -> None:
        self.folder, self._mend = folder, mend
        self._coming: dict[str, Path] = {}  # files of which not all pieces are there

    def take(self, change: Change) -> None:
        """Take in a change. Raises OSError where it can't be written."""
        path = self._path(change.path)
        if isinstance(change, Gone):
            path.unlink(missing_ok=True)
            if path.parent != self.folder and path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()
            return
        make_folder(path.parent)
        if change.offset and change.path not in self._coming:
            with open(path, "r+b") as file:
                file.seek(change.offset)
                file.write(change.content)
                file.truncate()
        else:
            self._add(path, change)
        if change.ends and path.name == STATE:
            sync_all(path.parent)

    def clear(self) -> None:
        """Remove what has come in part."""
        for beside in self._coming.values():
            beside.unlink(missing_ok=True)
        self._coming.clear()
        saved = self.folder / CHECKPOINTS
        whole = checkpoints.find_all(saved)
        for folder in saved.glob("step_*"):
            if folder not in whole:
                shutil.rmtree(folder, ignore_errors=True)

    def _add(self, path: Path, piece: Piece) -> None:
        beside = self._coming.setdefault(piece.path, beside_of(path.with_name(f"{path.name}.part")))
        with beside.open("ab" if piece.offset else "wb") as file:
            file.write(piece.content)
        if not piece.ends:
            return
        del self._coming[piece.path]
        sync(beside)
        if piece.path == RUN_JSON:
            info = json.loads(beside.read_text(encoding="utf-8"))
            self._mend(info)
            write_json(path, seal(info))
            beside.unlink()
        else:
            os.replace(beside, path)

    def _path(self, name: str) -> Path:
        parts = PurePosixPath(name).parts
        if not parts or parts[0] not in WRITTEN or ".." in parts:
            raise UserError(f"{name!r} is no file of a run: {self.folder} does not take it")
        return self.folder.joinpath(*parts)


def packed_run(folder: Path, put: Callable[[bytes], object]) -> list[Packed]:
    """Pack what another machine needs to go on with a run: all but the checkpoints that are kept for good."""
    saved = checkpoints.find_all(folder / CHECKPOINTS)
    needed = [one for one in saved if one == saved[-1] or not checkpoints.read_state(one)["keep"]]
    return pack(folder, files_of(folder, needed), put)


def files_of(folder: Path, saved: list[Path]) -> list[Path]:
    """Return the files of a run with these of its checkpoints; of each checkpoint state.json comes last."""
    parts = [folder / name for name in sorted(WRITTEN - {CHECKPOINTS})]
    found = [path for part in parts for path in (sorted(part.rglob("*")) if part.is_dir() else [part])]
    found += [path for one in saved for path in sorted(one.iterdir(), key=lambda path: (path.name == STATE, path.name))]
    return [path for path in found if path.is_file() and not _is_passing(path.relative_to(folder))]


def _is_passing(path: Path) -> bool:
    """Tell whether a file is one that is being written, or bytecode."""
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)
