"""Write and open the ZIP of a verdict: files with checksums, from anybody, so nothing in it is believed.

Layout: verdict.json (what was judged, and size and SHA-256 of every other file), page.html, runs/NUMBER/ as folders of
runs without weights.
"""

import contextlib
import hashlib
import json
import os
import re
import stat
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from lmplay.checksums import CHECKSUMS, broken_seal, seal
from lmplay.errors import UserError
from lmplay.files import BROKEN_ZIP, check_plain, parse_json
from lmplay.own_files import own_file
from lmplay.text import printable

FORMAT = 1
VERDICT = "verdict.json"
PAGE = "page.html"
RUNS = "runs"

MOST_FILES = 20_000
LARGEST_FILE = 2**26  # bytes, unpacked
LARGEST = 2**29  # bytes, of all files, unpacked
END_RECORD = struct.Struct("<4s4H2LH")  # of a ZIP without a comment, its last bytes


def write_archive(target: Path, content: dict[str, Any], files: Mapping[str, bytes]) -> None:
    """Write the ZIP, whole or not at all. content: of verdict.json, without the checksums; files: all others, by name.

    Raises UserError for names that not every system takes, for more than is opened again, and for a disk that fails.
    """
    for name in files:
        if why := _wrong_name(name):
            raise UserError(f"{target} can't be written: a file would be called {printable(name)!r} ({why})")
    if len(files) > MOST_FILES or sum(map(len, files.values())) > LARGEST:
        raise UserError(f"{target} can't be written: {len(files)} files are more than such a file may hold")
    sums = {name: [len(data), hashlib.sha256(data).hexdigest()] for name, data in files.items()}
    head = json.dumps(seal({"format": FORMAT, **content, CHECKSUMS: sums}), indent=1, allow_nan=False).encode()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with own_file(target) as beside, zipfile.ZipFile(beside, "w") as archive:
            for name, data in {VERDICT: head, **files}.items():
                info = zipfile.ZipInfo(name)  # of no date: equal content makes equal bytes
                info.external_attr = (stat.S_IFREG | 0o644) << 16
                archive.writestr(info, data, zipfile.ZIP_DEFLATED, compresslevel=9)
    except OSError as error:
        raise UserError(f"{target} can't be written ({error.strerror}): name another file") from None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Unpack a ZIP into a folder that is removed at the end; yield the folder and the content of verdict.json.

    Raises UserError, before anything of it is used, unless names, sizes and checksums are as they must be.
    """
    with tempfile.TemporaryDirectory(prefix="lmplay-") as folder:
        try:
            check_plain(path)
            content = _unpack(path, Path(folder))
        except OSError as error:
            raise UserError(f"{path} can't be read ({error.strerror or printable(error)})") from None
        except BROKEN_ZIP as error:
            _refuse(path, f"it is damaged: {printable(error)[:200]}")
        yield Path(folder), content


def _unpack(path: Path, folder: Path) -> dict[str, Any]:
    """Write the files of a ZIP into a folder. Raises UserError, OSError and BROKEN_ZIP."""
    _check_end(path)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_members(path, members)
        by_name = {member.filename: member for member in members}
        if VERDICT not in by_name:
            _refuse(path, f"it has no {VERDICT}")
        content = parse_json(_read(archive, by_name.pop(VERDICT)), constants=False)
        if not isinstance(content, dict) or CHECKSUMS not in content or broken_seal(content):
            _refuse(path, f"its {VERDICT} is not what was written")
        if (version := content.get("format")) != FORMAT:
            _refuse(path, f"its format is {printable(version)[:20]}, and {FORMAT} is known: update lmplay")
        noted = content[CHECKSUMS]
        if not isinstance(noted, dict) or set(noted) != set(by_name):
            odd = sorted(set(noted) ^ set(by_name))[:1] if isinstance(noted, dict) else [VERDICT]
            _refuse(path, f"{printable(odd[0])[:100]} is missing, or is not listed")
        for name, member in by_name.items():
            data = _read(archive, member)
            if noted[name] != [len(data), hashlib.sha256(data).hexdigest()]:
                _refuse(path, f"the checksum of {printable(name)[:100]} is wrong")
            file = folder.joinpath(*name.split("/"))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    return content


def _check_end(path: Path) -> None:
    """Raise UserError for a ZIP whose list of files is longer than one of ours: it would fill the memory."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - END_RECORD.size))
        end = file.read()
    if len(end) < END_RECORD.size or not end.startswith(b"PK\5\6"):
        _refuse(path, "it is no ZIP, or was cut off")
    _, _, _, _, n_files, list_size, _, _ = END_RECORD.unpack(end)
    if n_files > MOST_FILES or list_size > 512 * MOST_FILES or size > LARGEST:
        _refuse(path, "it holds more than a verdict does")


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Raise UserError unless all files have plain names and sizes that fit."""
    if len(members) > MOST_FILES or sum(member.file_size for member in members) > LARGEST:
        _refuse(path, "it holds more than a verdict does")
    seen = set()
    for member in members:
        shown = printable(member.filename)[:100]
        kind = stat.S_IFMT(member.external_attr >> 16)
        if why := _wrong_name(member.filename):
            _refuse(path, f"a file is called {shown!r} ({why})")
        if member.filename.casefold() in seen:
            _refuse(path, f"{shown} is there twice")
        seen.add(member.filename.casefold())
        if kind not in (0, stat.S_IFREG) or member.flag_bits & 1:
            _refuse(path, f"{shown} is no plain file")
        if member.file_size > LARGEST_FILE:
            _refuse(path, f"{shown} is larger than {LARGEST_FILE >> 20} MiB")


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Return a file of its declared size at most, whatever it unpacks to. Raises BROKEN_ZIP."""
    with archive.open(member) as file:
        data = file.read(member.file_size + 1)
    if len(data) != member.file_size:
        raise ValueError("a file does not have the size that it says")
    return data


def _wrong_name(name: str) -> str | None:
    """Return why a file may not be called so, None if it may."""
    parts = name.split("/")
    if len(parts) > 12 or len(os.fsencode(name)) > 400:
        return "too long"
    if name not in (VERDICT, PAGE) and (parts[0] != RUNS or len(parts) < 3):
        return "not one of a verdict's files"
    if any(not part or part.startswith(".") or part.endswith((".", " ")) for part in parts):
        return "not a plain path"
    return "a character that not every system takes" if re.search(r'[\x00-\x1f\x7f\\:*?"<>|]', name) else None


def _refuse(path: Path, why: str) -> NoReturn:
    raise UserError(f"{path} is not a verdict that can be used: {why}; ask for the file anew")
