"""Prepared data in one file: read where the plan's text is another, or gone; a broken file takes nothing over."""

import json
import shutil
import zipfile

import numpy as np
import pytest

from lmplay.cli.trainer import command, main
from lmplay.data.exported import MANIFEST, import_data
from lmplay.data.plans import load_plan
from lmplay.data.prepare import prepare, vocabulary
from lmplay.errors import UserError

TEXTS = [f"Story {k}: the fox number {k * 7 % 13} saw an owl and {k} hens" for k in range(60)]


def plan_of(folder, tokenizer="bytes", texts=TEXTS):
    folder.mkdir(exist_ok=True)
    (folder / "stories.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    datasets = {"stories": {"files": "stories.jsonl", "validation": {"fraction": 0.2}}}
    path = folder / "p.json"
    path.write_text(json.dumps({"tokenizer": tokenizer, "datasets": datasets, "steps": [{"datasets": ["stories"]}]}))
    return path


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Move to a machine: its name is that of its data folder."""

    def move(name):
        monkeypatch.setenv("LMPLAY_DATA", str(tmp_path / name))
        return tmp_path / name

    move("here")
    return move


@pytest.mark.parametrize("flags", [(), ("--tokenizer", "bpe:300"), ("--tokenizer", "bytes")], ids=str)
def test_the_same_tokens_where_the_text_is_another(machine, tmp_path, capsys, flags):
    path = plan_of(tmp_path / "p", {"train": "bpe", "vocab_size": 280})
    file, asked = tmp_path / "out.zip", flags[1] if flags else None
    assert main(["--training-plan", str(path), *flags, "--export-data", str(file)]) == 0
    assert "MB for lmp_trainer --import-data" in capsys.readouterr().out
    ours = prepare(load_plan(str(path)), asked, progress=False)
    there = machine("there")
    plan_of(tmp_path / "p", {"train": "bpe", "vocab_size": 280}, texts=[text.upper() for text in TEXTS])
    assert main(["--import-data", str(file)]) == 0
    assert "plan p" in capsys.readouterr().out
    theirs = prepare(load_plan(str(path)), asked, progress=False)
    assert theirs.hash == ours.hash and theirs.tokenizer.fingerprint == ours.tokenizer.fingerprint
    assert vocabulary(load_plan(str(path)), asked).size == ours.tokenizer.vocab_size
    for split in ("train", "validation"):
        one, other = (getattr(each, split)["stories"] for each in (ours, theirs))
        assert np.array_equal(one.tokens(0, one.n_tokens), other.tokens(0, other.n_tokens))
        assert other.folder.is_relative_to(there)
    # another tokenizer, or another plan, is prepared from the text that is here
    assert prepare(load_plan(str(path)), "bpe:290", progress=False).hash != ours.hash
    (tmp_path / "p" / "stories.jsonl").unlink()
    assert prepare(load_plan(str(path)), asked, progress=False).hash == ours.hash


def test_what_is_no_export_takes_nothing_over(machine, tmp_path):
    file, path = tmp_path / "out.zip", plan_of(tmp_path / "p")
    assert main(["--training-plan", str(path), "--export-data", str(file)]) == 0
    machine("nothing is prepared here")
    with pytest.raises(UserError, match="is there already"):
        command(["--training-plan", str(path), "--export-data", str(file)])
    assert not (tmp_path / "nothing is prepared here" / "stores").exists()
    there, broken = machine("there"), tmp_path / "broken.zip"
    broken.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    for wrong, message in (
        (tmp_path / "none.zip", "can't be read"),
        (broken, "no whole file"),
        (path, "no whole file"),
    ):
        with pytest.raises(UserError, match=message):
            import_data(str(wrong))
    with zipfile.ZipFile(file) as zipped:
        manifest, names = json.loads(zipped.read(MANIFEST)), zipped.namelist()
    store = manifest["stores"]["train"]["stories"]
    for change in ({"format": 2}, {"stores": {"train": {"stories": "../../elsewhere"}}}, {"fingerprint": "a/b"}):
        shutil.copy(file, broken)
        with zipfile.ZipFile(broken, "w") as zipped, zipfile.ZipFile(file) as source:
            for name in names:
                zipped.writestr(name, json.dumps(manifest | change) if name == MANIFEST else source.read(name))
        with pytest.raises(UserError, match="no whole file"):
            import_data(str(broken))
    assert not (there / "imported").exists() and not (there / "stores" / store).exists()


def test_an_export_that_is_damaged_or_too_large_for_the_disk(machine, tmp_path, monkeypatch):
    file, path, broken = tmp_path / "out.zip", plan_of(tmp_path / "p"), tmp_path / "broken.zip"
    assert main(["--training-plan", str(path), "--export-data", str(file)]) == 0
    there = machine("there")
    with zipfile.ZipFile(file) as zipped:
        stored = next(entry for entry in zipped.infolist() if "/tokens_" in entry.filename)
    content = bytearray(file.read_bytes())
    begin = stored.header_offset + 30 + len(stored.filename)
    content[begin : begin + stored.compress_size] = b"\xff" * stored.compress_size  # what zlib can't read
    broken.write_bytes(content)
    with pytest.raises(UserError, match="no whole file"):
        import_data(str(broken))
    free = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    with pytest.raises(UserError, match="takes .* GB of disk"):
        import_data(str(file))
    assert not (there / "imported").exists() and not (there / stored.filename).parent.exists()
