"""What is held out is never trained on, whichever patterns take it in."""

import hashlib
import json
import os

import pytest

from lmplay.data import documents
from lmplay.data.plans import load_plan
from lmplay.data.prepare import prepare
from lmplay.errors import UserError


@pytest.fixture
def plan(tmp_path):
    """Makes a plan of jsonl files: `plan({"d": {...}})`; each file holds rows that name it."""
    for name, n in (("part_a", 6), ("part_b", 5), ("part_held_out", 4), ("other", 3)):
        rows = [json.dumps({"text": f"{name} {k}"}) + "\n" for k in range(n)]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    os.symlink("part_held_out.jsonl", tmp_path / "part_link.jsonl")

    def make(datasets):
        path = tmp_path / "p.json"
        steps = [{"datasets": list(datasets)}]
        path.write_text(json.dumps({"tokenizer": "bytes", "datasets": datasets, "steps": steps}), encoding="utf-8")
        return load_plan(str(path))

    return make


def texts(plan, name, split):
    return [document[0][0] for document in documents.documents(plan.datasets[name], plan.folder, split)]


@pytest.mark.parametrize("files", ["part_*.jsonl", ["./part_a.jsonl", "part_b.jsonl", "./part_held_out.jsonl"]])
def test_a_pattern_of_training_files_leaves_the_held_out_file_alone(plan, files):
    made = plan({"d": {"files": files, "validation": {"files": "part_held_out.jsonl"}}})
    assert len(texts(made, "d", "train")) == 11 and not any("held" in text for text in texts(made, "d", "train"))
    assert len(texts(made, "d", "validation")) == 4
    data = prepare(made, progress=False)
    assert (data.train["d"].n_documents, data.validation["d"].n_documents) == (11, 4)


def test_another_dataset_does_not_train_on_it_either(plan):
    held_out = {"files": "other.jsonl", "validation": {"files": "part_held_out.jsonl"}}
    with pytest.raises(UserError, match=r"dataset 'b' trains on .*part_held_out.jsonl, which dataset 'a' holds out"):
        prepare(plan({"a": held_out, "b": {"files": "part_h*.jsonl"}}), progress=False)


def test_all_files_held_out_is_one_line(plan):
    made = plan({"d": {"files": "part_held*.jsonl", "validation": {"files": "part_*.jsonl"}}})
    with pytest.raises(UserError, match="dataset 'd': all its files are held out for validation"):
        prepare(made, progress=False)


def test_what_does_not_overlap_keeps_its_origin(plan):
    """Prepared data is found again: the origin of a source is what it was."""
    made = plan({"d": {"files": "part_[ab].jsonl", "validation": {"files": "other.jsonl"}}})
    stats = [(made.folder / f"{name}.jsonl").stat() for name in ("part_a", "part_b", "other")]
    names = ["part_a.jsonl", "part_b.jsonl", "other.jsonl"]
    parts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in zip(names, stats, strict=True)]
    expected = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    assert documents.origin(made.datasets["d"], made.folder) == expected
