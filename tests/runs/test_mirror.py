"""A run's folder that grows on one machine, and its copy on another."""

import json
import random
import shutil

import pytest

from lmplay.checksums import seal
from lmplay.errors import UserError
from lmplay.runs import mirror
from lmplay.runs.checkpoints import find_all
from lmplay.runs.mirror import Gone, Mirror, Piece, Watched, packed_run


def same(change):
    pass


def saved(folder, step, size=50, keep=False):
    """Write a checkpoint as a trainer does: beside, and renamed."""
    target = folder / "checkpoints" / f"step_{step:08d}"
    beside = target.with_name(f".{target.name}.1.tmp")
    beside.mkdir(parents=True)
    (beside / "model.safetensors").write_bytes(random.Random(step).randbytes(size))
    (beside / "state.json").write_text(json.dumps(seal({"step": step, "keep": keep, "checksums": {}})))
    beside.rename(target)
    return target


def written(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folders(tmp_path):
    """The folder that is watched, and that of the copy."""
    for name in ("there", "here"):
        (tmp_path / name).mkdir()
    return tmp_path / "there", tmp_path / "here"


def test_a_copy_follows_files_that_grow_are_cut_back_and_vanish(folders, monkeypatch):
    monkeypatch.setattr(mirror, "PIECE", 64)  # a checkpoint comes in several pieces
    there, here = folders
    watched, copy = Watched(there), Mirror(here, same)
    table, draw = there / "train.csv", random.Random(0)

    def follow():
        changes = list(watched.changes())
        for change in changes:
            copy.take(change)
        assert written(here) == written(there)
        return changes

    table.write_bytes(b"step,loss\n")
    saved(there, 2, size=1000)
    assert len(follow()) > 16
    assert follow() == []
    for _ in range(20):
        content = table.read_bytes()
        keep = draw.choice([len(content), len(content), draw.randrange(len(content))])
        table.write_bytes(content[:keep] + draw.randbytes(draw.randrange(1, 200)))
        follow()
    shutil.rmtree(there / "checkpoints" / "step_00000002")
    (there / "run.json").write_text("{}")
    saved(there, 4)
    copy.folder.joinpath("notes.txt").write_text("the user's own")
    for change in watched.changes():
        copy.take(change)
    own = written(here)
    assert own.pop("notes.txt") and own.keys() == written(there).keys()
    assert [one.name for one in find_all(here / "checkpoints")] == ["step_00000004"]


def test_what_grows_comes_as_its_end_alone(folders):
    there, _ = folders
    (there / "train.csv").write_bytes(b"a" * 1000)
    watched = Watched(there)
    with open(there / "train.csv", "ab") as file:
        file.write(b"bb")
    assert list(watched.changes()) == [Piece("train.csv", 1000, b"bb", ends=True)]


def test_a_copy_that_is_cut_off_anywhere_has_whole_checkpoints_only(folders, monkeypatch):
    monkeypatch.setattr(mirror, "PIECE", 64)
    there, here = folders
    watched = Watched(there)
    (there / "train.csv").write_bytes(b"step\n1\n2\n")
    changes = []
    for step in (2, 4):
        checkpoint = saved(there, step, size=150)
        changes += watched.changes()
    whole = {path.name: written(path) for path in find_all(there / "checkpoints")}
    for n in range(len(changes) + 1):
        shutil.rmtree(here)
        here.mkdir()
        copy = Mirror(here, same)
        for change in changes[:n]:
            copy.take(change)
        copy.clear()
        found = find_all(here / "checkpoints")
        assert all(written(path) == whole[path.name] for path in found)
        assert not found or (here / "train.csv").is_file()  # what a checkpoint counts on is there before it
        assert {path.name for path in here.glob("checkpoints/*")} == {path.name for path in found}
    assert checkpoint.name in {path.name for path in found}


def test_run_json_says_where_the_copy_is(folders):
    there, here = folders
    (there / "run.json").write_text(json.dumps({"settings": {"out": "/elsewhere"}}))
    watched = Watched(there / "nothing")
    watched.folder = there
    copy = Mirror(here, lambda info: info["settings"].update(out="gpt_out"))
    for change in watched.changes():
        copy.take(change)
    info = json.loads((here / "run.json").read_text())
    assert info["settings"] == {"out": "gpt_out"} and info == seal(info)


@pytest.mark.parametrize("path", ["../run.json", "/etc/passwd", "checkpoints/../../x", "notes.txt", ""])
def test_nothing_is_written_elsewhere(folders, path):
    for change in (Piece(path, 0, b"x", ends=True), Gone(path)):
        with pytest.raises(UserError, match="is no file of a run"):
            Mirror(folders[1], same).take(change)
    assert not written(folders[1])


def test_backups_do_not_travel_but_the_newest_checkpoint_does(folders):
    there, _ = folders
    saved(there, 2, keep=True)
    saved(there, 4)
    saved(there, 6, keep=True)
    (there / "notes.txt").write_text("the user's own")
    paths = [packed.path for packed in packed_run(there, bytes)]
    assert {path.split("/")[1] for path in paths} == {"step_00000004", "step_00000006"}
