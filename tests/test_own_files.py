"""What a person or another tool made is never overwritten in silence, whatever writes in its place."""

import os

import pytest

from lmplay import own_files
from lmplay.cli import plotstats
from lmplay.errors import UserError
from support.making_runs import make_run
from support.small import ROOT


def write(path, text):
    with own_files.own_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def test_own_files_are_replaced(tmp_path, capsys):
    path = tmp_path / "table.csv"
    for text in ("first", "second", "third"):
        write(path, text)
    assert path.read_text() == "third" and os.listdir(tmp_path) == ["table.csv"]
    path = path.rename(tmp_path / "moved.csv")
    write(path, "fourth")  # it is known by its content
    assert os.listdir(tmp_path) == ["moved.csv"] and capsys.readouterr().err == ""


def test_files_of_others_are_kept(tmp_path, capsys):
    path = tmp_path / "table.csv"
    for mine in ("my notes", "more notes"):
        path.write_text(mine)
        write(path, "figures")
        assert path.read_text() == "figures"
    assert (tmp_path / "table.kept.csv").read_text() == "my notes"
    assert (tmp_path / "table.kept2.csv").read_text() == "more notes"
    assert capsys.readouterr().err.count("it is kept as") == 2


def test_a_file_that_was_changed_is_its_user_s(tmp_path):
    path = tmp_path / "table.csv"
    write(path, "figures")
    path.write_text("figures, and what I think of them")
    write(path, "new figures")
    assert (tmp_path / "table.kept.csv").read_text() == "figures, and what I think of them"


def test_links_are_kept(tmp_path):
    (tmp_path / "real.csv").write_text("data")
    path = tmp_path / "table.csv"
    path.symlink_to("real.csv")
    write(path, "figures")
    assert (tmp_path / "real.csv").read_text() == "data" and os.readlink(tmp_path / "table.kept.csv") == "real.csv"


def test_without_a_memory_everything_is_kept(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LMPLAY_DATA", str(tmp_path / "file" / "below"))
    path = tmp_path / "table.csv"
    write(path, "figures")
    write(path, "new figures")
    assert path.read_text() == "new figures" and (tmp_path / "table.kept.csv").read_text() == "figures"


def test_a_typed_file_of_another_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    own_files.refuse_other(path, "--dump-tensors")
    path.write_bytes(b"weights")
    with pytest.raises(UserError, match="--dump-tensors .*another file is there"):
        own_files.refuse_other(path, "--dump-tensors")
    path.unlink()
    write(path, "tensors")
    own_files.refuse_other(path, "--dump-tensors")


def test_the_plots_and_the_page(tmp_path, capsys):
    make_run(tmp_path / "run", steps=30)
    words = [str(tmp_path / "run"), "--out", str(tmp_path), "--to", str(tmp_path / "plots"), "--report"]
    assert plotstats.main(words) == 0
    names = sorted(os.listdir(tmp_path / "plots"))
    assert plotstats.main(words) == 0 and sorted(os.listdir(tmp_path / "plots")) == names
    for name in names:
        (tmp_path / "plots" / name).write_bytes(b"my own")
    assert plotstats.main(words) == 0
    kept = sorted(set(os.listdir(tmp_path / "plots")) - set(names))
    assert len(kept) == len(names) and {(tmp_path / "plots" / name).read_bytes() for name in kept} == {b"my own"}


@pytest.mark.parametrize("room", ["report", "probe", "generate", "compare"])
def test_every_writer_asks_what_is_there(room):
    for path in (ROOT / "lmplay" / room).glob("*.py"):
        source = path.read_text(encoding="utf-8")
        for other in ("written_beside(", "write_json(", ".savefig(path", 'open(path, "w'):
            assert other not in source, f"{path}: write with own_file"
