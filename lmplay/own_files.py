"""Write files where a person's may lie, and replace only what lmplay wrote and nobody has changed since.

lmplay remembers the hashes of what it wrote, in the data folder. It knows its own files by their content, wherever they
were moved.
"""

import contextlib
import hashlib
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from lmplay.errors import UserError
from lmplay.files import data_folder, written_beside

WRITTEN = "written.txt"


@contextlib.contextmanager
def own_file(target: Path) -> Iterator[Path]:
    """As `written_beside`. A file that is there and is not lmplay's, unchanged, is kept under a free name beside it."""
    _keep_other(target)
    with written_beside(target) as beside:
        yield beside
        digest = _hash(beside)
    with contextlib.suppress(OSError, UserError):  # it is then not known to be lmplay's, and kept
        data_folder().mkdir(parents=True, exist_ok=True)
        with open(data_folder() / WRITTEN, "a", encoding="utf-8") as file:
            file.write(f"{digest}\n")


def check_new(target: Path, flag: str) -> None:
    """Raise UserError that names `flag` if a new file can't be put at `target`, or if a person's is there."""
    if target.is_dir():
        raise UserError(f"{flag} takes a file to write, and {target} is a folder")
    if not target.parent.is_dir():
        raise UserError(f"{flag}: there is no folder {target.parent}")
    refuse_other(target, flag)


def refuse_other(target: Path, flag: str) -> None:
    """Raise UserError that names `flag` if something is at `target` that lmplay did not write, or that was changed."""
    if os.path.lexists(target) and not _is_own(target):
        raise UserError(f"{flag} {target}: another file is there; choose another name, or delete it")


def _keep_other(target: Path) -> None:
    if os.path.lexists(target) and not target.is_dir() and not _is_own(target):
        keep_aside(target)


def keep_aside(target: Path) -> None:
    """Keep a file that would be replaced under a free name beside it, and say so."""
    names = (f"{target.stem}.kept{'' if n == 1 else n}{target.suffix}" for n in itertools.count(1))
    free = next(path for path in (target.with_name(name) for name in names) if not os.path.lexists(path))
    target.rename(free)
    print(f"{target} is not as lmplay wrote it: it is kept as {free}", file=sys.stderr)


def _is_own(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with open(data_folder() / WRITTEN, encoding="utf-8", errors="replace") as file:
            return f"{_hash(path)}\n" in set(file)
    except (OSError, UserError):
        return False


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
