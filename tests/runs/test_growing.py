"""Runs that are read again and again while they grow."""

import json

import pandas
import pytest

from lmplay.errors import UserError
from lmplay.runs.growing import GrowingRuns
from lmplay.runs.run import read_run
from support.making_runs import make_run

COLUMNS = ("tokens", "seconds", "loss")


def same(growing, run, split="train"):
    pandas.testing.assert_frame_equal(growing.table(run, split, COLUMNS), run.table(split, COLUMNS))


def test_only_new_rows_are_read_and_the_table_is_the_same(tmp_path):
    run = read_run(make_run(tmp_path / "a", steps=60, plan_steps=("first", "second")))
    path = run.folder / "train.csv"
    lines = path.read_text().splitlines(keepends=True)
    growing = GrowingRuns()
    for end in (0, 1, 20, 20, 45, 61):  # into the second phase, too; with a last line that is being written
        path.write_text("".join(lines[:end]) + "first,61.0,30")
        before = growing.bytes_read()
        table = growing.table(run, "train", COLUMNS)
        assert len(table) == max(0, end - 1)
        assert growing.bytes_read() - before <= sum(map(len, lines[1:61]))
    same(growing, run)
    assert growing.bytes_read() == sum(map(len, lines[1:]))
    assert growing.table(run, "train", COLUMNS) is growing.table(run, "train", COLUMNS)


def test_a_file_that_was_cut_back_and_grew_again_is_read_anew(tmp_path):
    run = read_run(make_run(tmp_path / "a", steps=40))
    other = read_run(make_run(tmp_path / "b", steps=40, loss=lambda t: 2 + 0 * t))
    growing, path = GrowingRuns(), run.folder / "train.csv"
    same(growing, run)
    lines = path.read_text().splitlines(keepends=True)
    others = (other.folder / "train.csv").read_text().splitlines(keepends=True)
    path.write_text(
        "".join(lines[:21] + others[21:] + [others[-1].replace("40.0", "41.0", 1)])
    )  # a run that was resumed
    same(growing, run)
    assert growing.table(run, "train", COLUMNS)["loss"].iloc[-1] == 2
    path.unlink()
    assert len(growing.table(run, "train", COLUMNS)) == 0
    path.mkdir()
    with pytest.raises(UserError, match="can't be read"):
        growing.table(run, "train", COLUMNS)


def test_run_json_is_read_again_where_it_changed(tmp_path):
    folder = make_run(tmp_path / "a", steps=5)
    growing = GrowingRuns()
    first = growing.run(folder)
    assert growing.run(folder) is first
    (folder / "run.json").write_text(json.dumps({**first.info, "status": "stopped"}))
    assert growing.run(folder).get("status") == "stopped"
