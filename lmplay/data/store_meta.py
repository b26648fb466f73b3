"""Write a store's meta.json with the checksums of its files; check a whole store."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lmplay.checksums import BLOCK, CHECKSUMS, of_bytes, of_file, seal
from lmplay.data.store import BLOCK_CHECKSUMS, OFFSETS, TokenStore, shard_name
from lmplay.files import write_json


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Write the checksums of a store's files, and meta.json."""
    sums = np.fromiter(map(of_bytes, _blocks(_shards(folder, meta))), "<u4").tobytes()
    with open(folder / BLOCK_CHECKSUMS, "wb") as file:
        file.write(sums)
        file.flush()
        os.fsync(file.fileno())
    of_files = {name: of_file(folder / name) for name in OFFSETS}
    write_json(folder / "meta.json", seal({**meta, CHECKSUMS: {**of_files, BLOCK_CHECKSUMS: of_bytes(sums)}}))


def verify_store(folder: Path) -> None:
    """Check a whole store. One without checksums gets them if its content has its hash.

    Raises DamagedStore, and UserError if the store can't be marked as damaged.
    """
    store = TokenStore.open(folder)
    store.check_offsets()
    store.check_tokens()
    if store.has_checksums:
        return
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8-sig"))
    files = {"tokens": _shards(folder, meta), **{name.removesuffix(".bin"): [folder / name] for name in OFFSETS}}
    if content_hash({name: _hashed(paths) for name, paths in files.items()}) != store.hash:
        raise store.mark("its hash")
    write_meta(folder, meta)


def content_hash(parts: "dict[str, hashlib.blake2b]") -> str:
    """Return the hash of a store from those of its parts."""
    return hashlib.blake2b(b"".join(part.digest() for part in parts.values()), digest_size=16).hexdigest()


def _hashed(paths: list[Path]) -> "hashlib.blake2b":
    found = hashlib.blake2b(digest_size=16)
    for content in _blocks(paths):
        found.update(content)
    return found


def _shards(folder: Path, meta: dict[str, Any]) -> list[Path]:
    return [folder / shard_name(number) for number in range(-(-meta["n_tokens"] // meta["shard_tokens"]))]


def _blocks(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        with open(path, "rb") as file:
            while content := file.read(BLOCK):
                yield content
