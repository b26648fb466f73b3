"""Compressed files that expand without end are cut off; those that people have are read."""

import bz2
import gzip
import json
import lzma

import pytest

from lmplay.data import local_files, opened_files
from lmplay.data.json_checks import Checked
from lmplay.data.local_files import data_files, file_rows
from lmplay.data.plans import read_dataset
from lmplay.errors import UserError

pyarrow = pytest.importorskip("pyarrow")
PACK = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True),
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(opened_files, "EXPANDED_AT_LEAST", 2**16)
    monkeypatch.setattr(local_files, "LONGEST_LINE", 2**20)


def rows(folder, name):
    spec = read_dataset(Checked("test", {"files": [name]}), "d")
    return [row for _, row in file_rows(spec, data_files(spec, spec.files, folder))]


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_a_bomb_is_cut_off_and_a_text_is_read(tmp_path, kind, name):
    row = {"txt": "x" * 99 + "\n", "jsonl": json.dumps({"text": "x" * 99}) + "\n", "csv": "x" * 99 + "\n"}[name[2:]]
    head = "text\n" if name == "a.csv" else ""
    path = tmp_path / f"{name}.{kind}"
    path.write_bytes(PACK[kind]((head + row * 9).encode()))
    assert rows(tmp_path, path.name)
    path.write_bytes(PACK[kind]((head + row * 80_000).encode()))  # 8 MB of a few kB
    if path.stat().st_size * opened_files.EXPANSION > 8_000_000:  # bzip2 and gzip do less harm: one endless line
        path.write_bytes(PACK[kind](b"x" * 2**25))
    with pytest.raises(UserError, match="times its own size|longer than|field larger"):
        rows(tmp_path, path.name)


def test_a_table_of_one_text_a_million_times(tmp_path):
    from pyarrow import parquet

    table = pyarrow.table({"text": pyarrow.array(["the same text again and again"] * 1_000_000).dictionary_encode()})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="times its own size"):
        rows(tmp_path, "a.parquet")


def test_a_line_without_end(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * 2**20}) + "\n")
    with pytest.raises(UserError, match="a.jsonl:1: the line is longer than 1 MiB"):
        rows(tmp_path, "a.jsonl")


def test_what_is_no_file(tmp_path):
    import os

    os.mkfifo(tmp_path / "a.txt")
    (tmp_path / "b.txt").symlink_to("/dev/zero")
    for name in ("a.txt", "b.txt"):
        with pytest.raises(UserError):
            rows(tmp_path, name)
