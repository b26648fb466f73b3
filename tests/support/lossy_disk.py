"""A disk that forgets, when the power fails, what was not written through to it.

`LossyDisk.watch` follows os.fsync. At any moment `surviving` makes a copy of a folder as a disk could hold it after a
power loss: of a file, the content of its last sync; of a folder, the names of its last sync. What was not synced may be
there, or in part, or not at all: a random choice for each file and each name.
"""

import os
import random
import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass
class _Folder:
    names: dict[str, int]  # the number of the file or folder with each name, as of the last sync


class LossyDisk:
    """What has reached the disk of the files below `root`, which is synced when this is made."""

    def __init__(self, root: Path):
        self.root = root
        self._content: dict[int, bytes] = {}  # of files, as of their last sync
        self._folders: dict[int, _Folder] = {}
        self._kept_open: dict[int, int] = {}  # so that no number is given to another file
        self._fsync = os.fsync
        for path in [root, *root.rglob("*")]:
            if not path.is_symlink():
                self._sync_path(path)

    def watch(self, except_of: str | None = None) -> None:
        """Follow what this process syncs from now on, except paths that hold `except_of`."""

        def fsync(file) -> None:
            self._fsync(file)
            number = file if isinstance(file, int) else file.fileno()
            if except_of is None or except_of not in os.readlink(f"/proc/self/fd/{number}"):
                self._note(number)

        os.fsync = fsync

    def _sync_path(self, path: Path) -> None:
        file = os.open(path, os.O_RDONLY)
        try:
            self._note(file)
        finally:
            os.close(file)

    def _note(self, file: int) -> None:
        about = os.fstat(file)
        if about.st_ino not in self._kept_open:
            self._kept_open[about.st_ino] = os.dup(file)
        if stat.S_ISDIR(about.st_mode):
            names = {entry.name: entry.inode() for entry in os.scandir(f"/proc/self/fd/{file}")}
            self._folders[about.st_ino] = _Folder(names)
        else:
            with open(f"/proc/self/fd/{file}", "rb") as again:
                self._content[about.st_ino] = again.read()

    def surviving(self, target: Path, draw: random.Random) -> None:
        """Write to `target` what a power loss at this moment leaves of `root`."""
        now: dict[int, Path] = {}
        for path in [self.root, *self.root.rglob("*")]:
            now[path.lstat().st_ino] = path
        self._restore(self.root.stat().st_ino, target, now, draw)

    def _restore(self, number: int, target: Path, now: dict[int, Path], draw: random.Random) -> None:
        path = now.get(number)
        if path is not None and path.is_symlink():
            target.symlink_to(os.readlink(path))
        elif number in self._content or (path is not None and path.is_file()):
            target.write_bytes(self._bytes(number, path, draw))
        else:
            target.mkdir()
            for name, inner in self._names(number, path, draw).items():
                if inner in now or inner in self._content or inner in self._folders:
                    self._restore(inner, target / name, now, draw)

    def _bytes(self, number: int, path: Path | None, draw: random.Random) -> bytes:
        """Return the content of the last sync, or more of what was written since."""
        synced = self._content.get(number, b"")
        written = path.read_bytes() if path is not None else synced
        if written == synced or draw.random() < 0.6:
            return synced
        if written.startswith(synced):
            return written[: draw.randint(len(synced), len(written))]
        return draw.choice([written, synced, written[: draw.randint(0, len(written))]])

    def _names(self, number: int, path: Path | None, draw: random.Random) -> dict[str, int]:
        """Return the names of the last sync, with some of the changes since."""
        synced = self._folders[number].names if number in self._folders else {}
        if path is None:
            return synced
        written = {entry.name: entry.inode() for entry in os.scandir(path)}
        names = dict(synced)
        for name in sorted({*synced, *written}):
            if synced.get(name) != written.get(name) and draw.random() < 0.4:
                if name in written:
                    names[name] = written[name]
                else:
                    del names[name]
        return names
