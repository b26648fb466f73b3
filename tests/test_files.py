"""Reading text for a user, and flags that are too small: one line that says what is wrong."""

import io
import os
import random
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lmplay import files
from lmplay.errors import UserError, check_at_least
from lmplay.files import read_text
from lmplay.text import without_half_surrogates
from support.lossy_disk import LossyDisk


def test_a_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffgröße\r\n".encode())
    assert read_text(path) == "\ufeffgröße\r\n"
    assert read_text(str(path), encoding="utf-8-sig") == "größe\r\n"
    assert read_text(path, encoding="utf-8-sig", limit=3) == "grö"


def test_a_dash_is_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO("größe".encode())))
    assert read_text("-") == "größe"
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"abc\xff")))
    with pytest.raises(UserError, match=r"^the prompt in standard input is not UTF-8 text \(byte 3\)$"):
        read_text("-", "the prompt in")


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "picture").write_bytes(b"\x89PNG")
    for name, said in (
        ("picture", "is not UTF-8 text (byte 0)"),
        ("nowhere", "can't be read: No such file or directory"),
        (".", "can't be read: Is a directory"),
    ):
        with pytest.raises(UserError) as error:
            read_text(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name} {said}"


def test_a_flag_that_is_too_small():
    check_at_least(1, seeds=1, max_len=None)
    with pytest.raises(UserError, match="^--max-len must be at least 1, not 0$"):
        check_at_least(1, seeds=1, max_len=0)


def test_half_surrogates_are_replaced():
    assert without_half_surrogates("größe 😀") == "größe 😀"
    assert without_half_surrogates("a\ud83db") == "a\ufffdb"
    assert without_half_surrogates("\ud83d\ude00") == "😀"


def ended() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.process
def test_what_a_killed_command_left_is_removed_by_the_next_that_writes_there(tmp_path):
    gone, here = ended(), f"{files._machine()}-"
    for name in (f".a.{here}{gone}.tmp", f".old form.{gone}.tmp"):
        (tmp_path / name).write_text("half")
    (tmp_path / f".folder.{here}{gone}.tmp").mkdir()
    kept = {f".a.{here}{os.getppid()}.tmp", f".a.0000-{gone}.tmp", ".a.tmp", "a.1.tmp", ".hidden"}
    kept -= {f".a.0000-{gone}.tmp"} if here == "0000-" else set()
    for name in kept:
        (tmp_path / name).write_text("of others")
    replaced = tmp_path / f".lost.{here}{gone}.old.tmp"  # killed between two names: what was there is put back
    replaced.mkdir()
    (replaced / "x").write_text("1")
    files.write_json(tmp_path / "new.json", {})
    assert {path.name for path in tmp_path.iterdir()} == kept | {"new.json", "lost"}
    assert (tmp_path / "lost" / "x").read_text() == "1"


def test_a_long_name_leaves_room(tmp_path):
    name = "ä" * 125  # 250 bytes
    with files.written_beside(tmp_path / name) as beside:
        beside.write_text("1")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_disk_that_forgets(tmp_path):
    """What is synced is there after a power loss; what is not may be missing, and is missing for some choice."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "before").write_text("was there")
    disk, fsync = LossyDisk(root), os.fsync
    disk.watch()
    try:
        files.make_folder(root / "a" / "b")
        with files.written_beside(root / "a" / "b" / "file") as beside:
            beside.write_text("synced")
        (root / "a" / "loose").write_text("not synced")
        with open(root / "before", "a") as file:
            file.write(", and more")
    finally:
        os.fsync = fsync
    loose, before = set(), set()
    for seed in range(30):
        after = tmp_path / str(seed)
        disk.surviving(after, random.Random(seed))
        assert (after / "a" / "b" / "file").read_text() == "synced"
        assert (after / "before").read_text().startswith("was there")
        before.add((after / "before").read_text())
        path = after / "a" / "loose"
        loose.add(path.read_text() if path.exists() else None)
    assert {None, ""} <= loose and len(before) > 1
