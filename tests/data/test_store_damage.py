"""A damaged store is noticed when it is read, and prepared anew."""

import json
import shutil

import numpy as np
import pytest

from lmplay.data import store, store_meta
from lmplay.data.store import BLOCK_CHECKSUMS, OFFSETS, DamagedStore, TokenStore
from lmplay.data.store_meta import verify_store
from lmplay.data.store_writer import build
from lmplay.data.tokenizers import load_tokenizer
from lmplay.errors import UserError

BYTES = load_tokenizer("bytes")
DOCUMENTS = [[("question ", False), (f"answer {k} " + "x" * 300, True)] for k in range(40)]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 4 KiB, so that a small store has several."""
    for module in (store, store_meta):
        monkeypatch.setattr(module, "BLOCK", 4096)


@pytest.fixture
def folder(tmp_path, small_blocks):
    return build(tmp_path / "stores" / "s", DOCUMENTS, BYTES).folder


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)


def test_a_block_is_checked_when_it_is_first_read(folder):
    whole = TokenStore.open(folder).tokens(0, 12_000)
    flip(folder / "tokens_00000.bin", 2 * 4096 + 5)  # uint16: a block holds 2048 tokens
    damaged = TokenStore.open(folder)
    np.testing.assert_array_equal(damaged.tokens(0, 4096), whole[:4096])
    np.testing.assert_array_equal(damaged.tokens(6144, 12_000), whole[6144:])
    assert not (folder / "damaged.txt").exists()
    for start in (4000, 4100, 6143):
        with pytest.raises(DamagedStore, match="tokens_00000.bin, block 2.*type the command again"):
            damaged.tokens(start, start + 1000)
    with pytest.raises(DamagedStore, match="block 2"):
        TokenStore.open(folder)


@pytest.mark.parametrize("name", ["tokens_00000.bin", BLOCK_CHECKSUMS, "meta.json", *OFFSETS])
def test_what_is_damaged_is_prepared_anew(folder, name, capsys):
    good = {path.name: path.read_bytes() for path in folder.iterdir()}
    flip(folder / name, len(good[name]) // 2)
    with pytest.raises(DamagedStore, match=name):
        opened = TokenStore.open(folder)
        opened.check_offsets()
        opened.check_tokens()
    build(folder, DOCUMENTS, BYTES)
    assert "it is prepared anew" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == good
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == ["s"]


@pytest.mark.parametrize("name", ["tokens_00000.bin", "byte_offsets.bin"])
def test_a_store_without_checksums_is_read_and_gets_them(folder, name):
    meta = json.loads((folder / "meta.json").read_text())
    old = {key: value for key, value in meta.items() if "checksum" not in key}
    (folder / "meta.json").write_text(json.dumps(old))
    (folder / BLOCK_CHECKSUMS).unlink()
    assert TokenStore.open(folder).tokens(0, 10).size == build(folder, DOCUMENTS, BYTES).tokens(0, 10).size == 10
    shutil.copytree(folder, folder.with_name("other"))
    verify_store(folder)
    assert json.loads((folder / "meta.json").read_text()) == meta
    verify_store(folder)
    flip(folder.with_name("other") / name, 4000 if name.startswith("t") else 80)
    with pytest.raises(UserError, match="its hash"):
        verify_store(folder.with_name("other"))


def test_several_shards(tmp_path, small_blocks, monkeypatch):
    from lmplay.data import store_files

    monkeypatch.setattr(store_files, "SHARD_TOKENS", 3000)
    folder = build(tmp_path / "s", DOCUMENTS, BYTES).folder
    verify_store(folder)
    flip(folder / "tokens_00002.bin", 4096 + 7)
    damaged = TokenStore.open(folder)
    damaged.tokens(0, 8000)
    with pytest.raises(DamagedStore, match="tokens_00002.bin, block 1"):
        damaged.tokens(8900, 9100)
