import json
import math
import os
import shutil

import numpy as np
import pytest

from lmplay.errors import UserError
from lmplay.runs.folder import find_run, find_runs, trained_folders
from lmplay.runs.run import read_run
from lmplay.runs.tables import read_header, read_table
from support.making_runs import fall, make_run
from support.results import unseal


def names(runs):
    return [run.folder.name for run in runs]


def test_a_run_a_folder_and_a_name_find_the_same_run(tmp_path, monkeypatch):
    out = tmp_path / "out"
    make_run(out / "a", steps=3)
    make_run(out / "b", steps=3)
    assert names(find_runs([], out)[0]) == ["a", "b"]
    assert names(find_runs([out], tmp_path)[0]) == ["a", "b"]
    assert names(find_runs([out / "b"], tmp_path)[0]) == ["b"]
    assert names(find_runs(["b"], out)[0]) == ["b"]
    assert names(find_runs(["b", out, str(out / "b") + "/"], out)[0]) == ["b", "a"]
    # a folder that happens to have the run's name does not hide it
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    assert names(find_runs(["b"], out)[0]) == ["b"]


def test_broken_foreign_and_newer_runs_are_named_and_the_rest_is_read(tmp_path):
    make_run(tmp_path / "good", steps=3)
    for name, text in {
        "no_json": "{",
        "list": "[1]",
        "other_tool": '{"name": "x"}',
        "binary": "\udcff",
        "deep": "[" * 100_000,
        "newer": '{"format": 2, "experiment": {"name": "x"}}',
        "no_number": '{"format": NaN, "experiment": {"name": "x"}}',
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    (tmp_path / "notes").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "log_loss.png").write_bytes(b"")
    runs, skipped = find_runs([tmp_path], tmp_path)
    assert names(runs) == ["good"]
    assert len(skipped) == 7 and all("\n" not in line for line in skipped)
    for name, why in {
        "no_json": "can't be read",
        "list": "not lmplay's",
        "newer": "update lmplay",
    }.items():
        assert any(name in line and why in line for line in skipped)


def test_nothing_there_is_one_line_that_says_what_to_type(tmp_path):
    with pytest.raises(UserError, match="lmp_trainer --exp"):
        find_runs([], tmp_path / "missing")
    make_run(tmp_path / "gpt2ish-tiny", steps=3)
    with pytest.raises(UserError, match="Did you mean 'gpt2ish-tiny'"):
        find_runs(["gpt2ish-tinny"], tmp_path)


def test_tables_hold_what_was_written(tmp_path):
    run = read_run(
        make_run(tmp_path / "a", steps=20, every=5, columns={"x_gate": lambda t: t / 2, "later": lambda t: -t})
    )
    table = run.table("train")
    tokens = np.arange(1, 21) * 12_800.0
    np.testing.assert_allclose(table["loss"], fall(tokens), rtol=1e-12)
    np.testing.assert_allclose(table["x_gate"], tokens / 2)
    np.testing.assert_allclose(table["later"], -tokens)  # a column that this version does not know
    assert list(table["plan_step"].unique()) == ["main"]
    assert list(run.table("validate")["step"]) == [5, 10, 15, 20]
    assert list(run.table("train", ["loss", "nothing"]).columns) == ["plan_step", "step", "loss"]
    assert run.notes == []


def test_a_cut_off_last_line_is_left_out_and_said(tmp_path):
    folder = make_run(tmp_path / "a", steps=20)
    path = folder / "train.csv"
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(last + 1, len(whole)):  # wherever the plug was pulled
        path.write_bytes(whole[:cut])
        table, notes = read_table(path, ["loss"])
        assert list(table["step"]) == list(range(1, 20)), cut
        assert notes == ["train.csv: the last line is cut off and left out"]
    path.write_bytes(whole[:30])  # within the header
    assert read_header(path) == [] and len(read_table(path)[0]) == 0


def test_only_a_header_an_empty_and_a_missing_file_hold_no_rows(tmp_path):
    path = tmp_path / "train.csv"
    assert len(read_table(path)[0]) == 0
    path.write_bytes(b"")
    assert len(read_table(path)[0]) == 0
    path.write_text("plan_step,step,loss\n")
    assert read_table(path)[0].shape == (0, 3) and read_table(path)[1] == []


def test_odd_cells_are_missing_and_said(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text(
        "plan_step,step,loss,accuracy,x_new,loss_wiki\nmain,1,3.5,0.1,,\nmain,2,nan,0.2,7,\nmain,3,inf,0.3,8,\n"
        "main,4,hello,0.4,,2.5\nmain,5,,0.5,9,\n"
    )
    table, notes = read_table(path)
    assert notes == ["train.csv: 3 cell(s) of loss that are no finite number are left out"]
    assert table["loss"].notna().tolist() == [True, False, False, False, False]
    assert table["accuracy"].tolist() == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert table["x_new"].tolist()[1:3] == [7, 8] and math.isnan(table["x_new"][0])
    path.write_text("plan_step,step,loss,x_new\nmain,1,3.5,\nmain,2,3.4,7\n")
    assert read_table(path)[1] == []  # an experiment need not report at every step
    path.write_bytes(b"plan_step,step,loss\nmain,1,3.5\nmain,\x00\x00\x00,\xff\nmain,3,3.25\n")
    table, notes = read_table(path)
    assert table["loss"].tolist() == [3.5, 3.25] and notes


def test_ragged_rows_are_left_out_and_said(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("plan_step,step,loss\nmain,1,3.5\nmain,2,3.main,2,3.25\nmain,3,3.0\n")
    table, notes = read_table(path)
    assert table["step"].tolist() == [1, 3]
    assert notes == ["train.csv: 1 row(s) with too many cells are left out"]


def test_of_steps_recorded_twice_the_later_counts(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("plan_step,step,loss\nmain,1,5\nmain,2,4\nmain,3,3\nmain,2,4.5\nmain,3,3.5\nmain,4,2\n")
    table, notes = read_table(path)
    assert table["loss"].tolist() == [5, 4.5, 3.5, 2]
    assert notes == ["train.csv: 2 step(s) recorded twice, the later row counts"]


def test_values_of_any_type_in_run_json_break_nothing(tmp_path):
    folder = make_run(tmp_path / "a", steps=3)
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(
        json.dumps({**info, "run": "x\x1b[31m\ny", "parameters": [1], "settings": None, "config": 3})
    )
    run = read_run(folder)
    assert run.name == "x [31m y" and run.number("parameters", "total") is None and run.get("settings", "seed") is None
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="not a run's folder"):
        read_run(folder)


@pytest.fixture
def trained(tmp_path):
    """Two runs in out/, "early" with two checkpoints, and "late", trained after it, with one; "begun" has none."""
    for number, (name, steps) in enumerate({"early": (10, 20), "late": (5,), "begun": ()}.items()):
        folder = make_run(tmp_path / "out" / name, steps=3)
        (folder / "checkpoints").mkdir()
        for step in steps:
            (folder / "checkpoints" / f"step_{step:08d}").mkdir()
            (folder / "checkpoints" / f"step_{step:08d}" / "state.json").write_text("{}")
        os.utime(folder / "run.json", (number, number))
    return tmp_path / "out"


def test_one_run_is_found_by_path_name_checkpoint_or_as_the_newest(trained):
    for path in (trained / "early", str(trained / "early"), "early"):
        run = find_run(path, trained)
        assert run.folder == trained / "early" and run.chosen is None and run.checkpoint.name == "step_00000020"
    for path in (trained / "early/checkpoints/step_00000010", "early/checkpoints/step_00000010"):
        run = find_run(path, trained)
        assert run.folder == trained / "early" and run.checkpoint == run.chosen == run.checkpoints[0]
    assert find_run(None, trained).name == "late"  # begun is younger, and has nothing to load
    assert find_run("begun", trained).checkpoint is None
    with pytest.raises(UserError, match="has no checkpoint 'step_00000011', but step_00000010, step_00000020$"):
        find_run("early/checkpoints/step_00000011", trained)
    with pytest.raises(UserError, match="there is no run 'earlie' in .* Did you mean 'early'"):
        find_run("earlie", trained)
    with pytest.raises(UserError, match="no trained run in .*: train one first"):
        find_run(None, trained / "nothing")
    assert [folder.name for folder in trained_folders(trained)] == ["early", "late"]


@pytest.mark.parametrize(
    "level, lacks, missing",
    [
        ("compare", {"plan": 1}, "plan"),
        ("compare", {"plan": {"name": "quick"}}, "plan.hash"),
        ("compare", {"settings": []}, "settings"),
        ("load", {"config": None}, "config"),
        ("load", {"tokenizer": {"spec": "bytes"}}, "tokenizer.fingerprint"),
    ],
)
def test_what_a_command_needs_and_run_json_lacks_is_one_line(tmp_path, level, lacks, missing):
    run = read_run(make_run(tmp_path / "a", steps=3))
    assert run.check("compare").check("load") is run
    run.info |= lacks
    run.write()
    unseal(run.folder)
    run = read_run(run.folder)  # good enough to be drawn
    with pytest.raises(UserError, match=f"^{run.file} is damaged: '{missing}' is missing") as error:
        run.check(level)
    assert "\n" not in str(error.value)
