"""What a preparation comes to is said before it begins, and what does not fit is refused."""

import gzip
import json
import re
import shutil
from collections import namedtuple

import pytest

from lmplay.data import encoding
from lmplay.data.opened_files import size_of_files
from lmplay.data.plans import load_plan
from lmplay.data.prepare import prepare
from lmplay.errors import UserError

ROWS = [{"noise": "-" * 500, "text": f"{k} " + "lorem ipsum " * (20 + k % 7)} for k in range(3000)]


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LMPLAY_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(encoding, "IN_PROCESS_CHARACTERS", 20_000)
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 10_000)
    return tmp_path / "data"


def plan_of(folder, datasets, **phase):
    path = folder / "p.json"
    steps = [{"datasets": list(datasets), **phase}]
    path.write_text(json.dumps({"tokenizer": "bytes", "datasets": datasets, "steps": steps}), encoding="utf-8")
    return load_plan(str(path))


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return {"rows": {"files": "rows.jsonl", "validation": {"fraction": 0.1}}}


def number(text):
    return float(re.sub("[kMB]$", "", text)) * {"k": 1e3, "M": 1e6, "B": 1e9}.get(text[-1], 1)


@pytest.mark.parametrize("more", [{}, {"max_tokens": 100_000}, {"max_documents": 1000}])
def test_it_comes_to_what_was_said(tmp_path, rows, capfd, more):
    rows["rows"] |= more
    store = prepare(plan_of(tmp_path, rows), processes=1).train["rows"]
    said = next(line for line in capfd.readouterr().err.splitlines() if "about" in line)
    found = re.match(r"rows \(train\): about (\S+) documents, (\S+) GB of text, (\S+) tokens: \S+ s and (\S+) GB", said)
    assert found, said
    on_disk = sum(file.stat().st_size for file in store.folder.iterdir())
    for value, true in zip(found.groups(), (store.n_documents, store.n_bytes / 1e9, store.n_tokens, on_disk / 1e9)):
        assert number(value) == pytest.approx(true, rel=0.05), said


def test_what_does_not_fit_is_refused(tmp_path, rows, data_folder, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**5, 10**5))
    with pytest.raises(UserError, match="dataset 'rows' needs about .* GB of disk, and .* set LMPLAY_DATA") as error:
        prepare(plan_of(tmp_path, rows), processes=1)
    assert "\n" not in str(error.value)
    assert not [path for path in (data_folder / "stores").iterdir() if path.is_dir()]


def test_it_is_said_that_most_is_never_read(tmp_path, capfd):
    task = {"synthetic": "copy", "validation": {"skip": 0, "documents": 10}}
    datasets = {"few": task | {"max_documents": 100}, "many": task | {"max_documents": 2000}}
    prepare(plan_of(tmp_path, datasets, stop="first_exhausted"), processes=1)
    lines = [line for line in capfd.readouterr().err.splitlines() if "reads about" in line]
    assert len(lines) == 1 and lines[0].startswith("many (train): about 2k documents")
    assert "p reads about 100 of the documents: a plan with 'max_documents': 105 prepares no others" in lines[0]


def test_files_say_how_large_they_are(tmp_path):
    text = "\n".join(row["text"] for row in ROWS)
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "c.csv").write_text("text\n" + "".join(f"{row['text']}\n" for row in ROWS), encoding="utf-8")
    (tmp_path / "d.json").write_text(json.dumps(ROWS), encoding="utf-8")
    assert size_of_files([tmp_path / "a.txt"]).n_bytes == len(text)
    assert size_of_files([tmp_path / "b.txt.gz"]).n_bytes == 3 * (tmp_path / "b.txt.gz").stat().st_size
    both = size_of_files([tmp_path / "a.txt", tmp_path / "c.csv"])
    assert both.n_bytes == len(text) and both.documents == pytest.approx(len(ROWS), rel=0.01)
    assert size_of_files([tmp_path / "d.json"]) is None


def test_parquet_files_say_how_many_rows_they_have(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    pq.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert size_of_files([tmp_path / "rows.parquet"]).documents == len(ROWS)
