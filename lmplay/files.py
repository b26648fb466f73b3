"""Files and folders that are there whole or not at all, whenever the plug is pulled."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync(path: Path) -> None:
    """Makes sure that a file's content, or a folder's list of names, is on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def written_beside(target: Path) -> Iterator[Path]:
    """A path to write a file or a folder to; renamed to `target` if the block ends well, removed if not."""
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield beside
        if beside.is_dir():
            for path in beside.rglob("*"):
                if path.is_file():
                    sync(path)
        sync(beside)
        if beside.is_dir() and target.exists():  # a folder is not replaced in one go
            old = target.with_name(f".{target.name}.old.tmp")
            os.replace(target, old)
            os.replace(beside, target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(beside, target)
        sync(target.parent)
    finally:
        if beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
        else:
            beside.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    """Writes JSON, whole or not at all."""
    with written_beside(path) as beside:
        beside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def data_folder() -> Path:
    """$LMPLAY_DATA, or ~/.cache/lmplay: token stores, trained tokenizers, downloaded vocabularies. May not exist yet."""
    named = os.environ.get("LMPLAY_DATA")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "lmplay"
