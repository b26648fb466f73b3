"""Notice damage: checksums of files, of parts of files, and of what a JSON file says.

A checksum is the CRC-32 of zlib, an int: it finds each flipped bit and each torn write, and costs a second a gigabyte.
It is no protection against a person who means to deceive.
"""

import json
import zlib
from pathlib import Path
from typing import Any

CHECKSUM = "checksum"  # key of a JSON file: of the rest of it
CHECKSUMS = "checksums"  # key of a JSON file: of other files
BLOCK = 2**20  # bytes read at a time; a shard of tokens has one checksum for each


def of_bytes(content: Any, before: int = 0) -> int:
    """Return the checksum of bytes, or of what `before` is the checksum of, followed by them."""
    return zlib.crc32(content, before)


def of_file(path: Path, size: int | None = None, *, start: int = 0, before: int = 0) -> int:
    """Return the checksum of a file, of its first `size` bytes if that is given.

    start: those before it are not read; `before` is their checksum. Raises OSError.
    """
    with open(path, "rb") as file:
        file.seek(start)
        left = -1 if size is None else size - start
        while left and (content := file.read(BLOCK if left < 0 else min(BLOCK, left))):
            before = zlib.crc32(content, before)
            left -= len(content) if left > 0 else 0
    return before


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a JSON file with a checksum of it, which `broken_seal` checks."""
    rest = {key: value for key, value in content.items() if key != CHECKSUM}
    return {**rest, CHECKSUM: _of_json(rest)}


def broken_seal(content: dict[str, Any]) -> str | None:
    """Return what is wrong with the content of a JSON file, None if nothing is or if it was written without a seal.

    A sealed file has two keys of checksums, so that damage to the name of one key does not make it look older.
    """
    if CHECKSUM not in content and CHECKSUMS not in content:
        return None
    rest = {key: value for key, value in content.items() if key != CHECKSUM}
    if CHECKSUMS not in content or content.get(CHECKSUM) != _of_json(rest):
        return "its content is not what was written"
    return None


def _of_json(content: dict[str, Any]) -> int:
    """Return the checksum of what a JSON file says; spaces and the order of keys do not count."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
