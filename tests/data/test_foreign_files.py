"""Data as people have it: folders, marks, columns, saved datasets, token ids, and formats that are refused."""

import json
import shutil

import numpy as np
import pytest

from lmplay.cli import trainer
from lmplay.convert.hf_tokenizer import _byte_pairs
from lmplay.data import foreign_files
from lmplay.data.documents import documents
from lmplay.data.plans import plan_from_files
from lmplay.data.tokenizers import load_tokenizer
from lmplay.errors import UserError
from lmplay.runs.run import read_run
from support.small import TINY, make_text


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def texts(*paths, split="train", **given):
    [spec] = plan_from_files(list(map(str, paths)), **given).datasets.values()
    return [document[0][0] for document in documents(spec, "", split)]


def all_of(*paths, **given):
    """Texts of both splits: a tenth is held out, if there are enough."""
    found = texts(*paths, **given)
    try:
        found += texts(*paths, split="validation", **given)
    except UserError as error:
        assert "no documents to validate on" in str(error)
    return sorted(found)


def test_a_folder(here):
    for name, text in (("b.txt", "two"), ("deep/a.txt", "one"), ("deep/.hidden", "x"), (".git/c.txt", "x")):
        (here / "books" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "books" / name).write_text(text)
    rows = [{"text": f"row {k}"} for k in range(3)]
    (here / "books" / "rows.json").write_text(json.dumps(rows))
    assert all_of("books") == ["one", "row 0", "row 1", "row 2", "two"]
    (here / "none").mkdir()
    with pytest.raises(UserError, match="there are no files in the folder 'none'"):
        texts("none")


@pytest.mark.parametrize("name", ["a.docx", "a.EPUB", "a.pdf"])
def test_what_is_no_text_is_refused(here, name):
    (here / name).write_bytes(b"PK\3\4")
    with pytest.raises(UserError, match=r"files are not read: make text of it first, .* (pandoc|pdftotext) a"):
        texts(name)


def test_saved_datasets(here):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"story": [f"story {k}" for k in range(30)], "n": list(range(30))})
    rows.select(range(29, -1, -1)).save_to_disk("one", num_shards=2)
    datasets.DatasetDict({"train": rows, "test": rows.select([3])}).save_to_disk("split")
    stories = sorted(f"story {k}" for k in range(30))
    assert all_of("one", column="story") == all_of("split", column="story") == stories
    assert all_of("split/train", held_out=["split/test"], column="story") == sorted([*stories, "story 3"])
    with pytest.raises(UserError, match="wants the column 'text', which is not there"):
        texts("one")
    shutil.rmtree("split/train")
    (here / "split/dataset_dict.json").write_text('{"splits": ["test"]}')
    with pytest.raises(UserError, match="it has no split 'train': name one of test"):
        texts("split")


@pytest.mark.parametrize("chunk", [7, 2**20])
def test_token_ids_of_nanogpt(here, chunk, monkeypatch):
    """Documents between EOT tokens, characters cut in two at the end of a chunk included."""
    monkeypatch.setattr(foreign_files, "CHUNK", chunk)
    _byte_pairs(load_tokenizer("bytes")).save(str(here / "tokenizer.json"))
    (here / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    stories = [f"Zoë {'日本' * k}\n{k}" for k in range(20)]
    ids = [i for story in stories for i in [*story.encode(), 256]]
    np.array(ids, dtype=np.uint16).tofile("train.bin")
    assert all_of("train.bin") == sorted(stories)
    np.array([256, 256, *b"one", 256], dtype=np.uint16).tofile("odd.bin")
    assert all_of("odd.bin") == ["one"]
    np.array([999], dtype=np.uint16).tofile("other.bin")
    with pytest.raises(UserError, match="it has the id 999"):
        texts("other.bin")


def test_token_ids_without_marks(here):
    _byte_pairs(load_tokenizer("bytes")).save(str(here / "tokenizer.json"))
    (here / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    text = make_text(300, 1)
    np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint16).tofile("train.bin")
    found = all_of("train.bin")
    assert len(found) > 5 and sorted("".join(found)) == sorted(text) and all(one in text for one in found)
    (here / "tokenizer.json").unlink()
    (here / "meta.pkl").write_bytes(b"")
    with pytest.raises(UserError, match=r"of characters by meta\.pkl"):
        texts("train.bin")


def test_a_run_on_them(here, capsys):
    """The flags reach the data; another separator is another run; a flag without --data is refused."""
    words = [make_text(1, k).strip() for k in range(12)]
    (here / "words.txt").write_text("\n<|endoftext|>\n".join(words), encoding="utf-8")
    (here / "rows.jsonl").write_text("".join(json.dumps({"story": word}) + "\n" for word in words))
    (here / "held.jsonl").write_text(json.dumps({"story": "held out, never trained on"}) + "\n")
    always = [*TINY, "--tokenizer", "bytes", "--max-steps", "1"]
    flags = ["--data", "rows.jsonl", "--text-column", "story", "--validation-data", "held.jsonl"]
    for given in (flags, ["--data", "words.txt", "--data-separator", "<|endoftext|>"], ["--data", "words.txt"]):
        assert trainer.main([*always, *given]) == 0, capsys.readouterr().err
    runs = {folder.name: read_run(folder) for folder in (here / "gpt_out").iterdir() if not folder.name.startswith(".")}
    assert len(runs) == 3
    of_rows = next(run for run in runs.values() if run.settings["text_column"] == "story")
    [data] = of_rows.get("data", "datasets").values()
    assert data["train"]["documents"] == 12 and data["validation"]["documents"] == 1
    marked = next(run for run in runs.values() if run.settings["data_separator"])
    [data] = marked.get("data", "datasets").values()
    assert data["train"]["documents"] + data["validation"]["documents"] == 12
    assert trainer.main([*always, "--training-plan", "quick", "--text-column", "story"]) == 2
    assert "--text-column goes with --data" in capsys.readouterr().err
