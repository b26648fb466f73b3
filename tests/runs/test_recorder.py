import csv

import numpy as np
import pytest

from lmplay.runs.names import TRAIN_COLUMNS, VALIDATE_COLUMNS
from lmplay.runs.recorder import Recorder


def row(step, **more):
    return {"plan_step": "a_b", "step": step, "samples": step * 4, "tokens": step * 64, "loss": 1 / 3, **more}


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


DOCUMENTS = [
    {"dataset": "x", "document": 0, "tokens": 3, "bytes": 9},
    {"dataset": "x", "document": 1, "tokens": 2, "bytes": 4},
]


def test_rows_are_appended_under_one_header(tmp_path):
    for first in (1, 3):  # by two processes, one after the other
        recorder = Recorder(tmp_path)
        for step in (first, first + 1):
            recorder.train(row(step, x_width=2.5, nothing=None))
        recorder.flush()
        recorder.flush()
    lines = (tmp_path / "train.csv").read_text().splitlines()
    assert lines[0].split(",") == [*TRAIN_COLUMNS, "x_width", "nothing"] and len(lines) == 5
    rows = read(tmp_path / "train.csv")
    assert [r["step"] for r in rows] == ["1", "2", "3", "4"]
    assert (
        rows[0]["loss"] == "0.33333333"
        and rows[0]["x_width"] == "2.5"
        and rows[0]["nothing"] == rows[0]["seconds"] == ""
    )


def test_nothing_is_written_before_it_is_flushed(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.train(row(1))
    assert not (tmp_path / "train.csv").exists()
    assert recorder.sizes() == {"train.csv": (tmp_path / "train.csv").stat().st_size}


def test_losses_of_documents(tmp_path):
    recorder = Recorder(tmp_path)
    losses = np.array([1.5, np.pi])
    recorder.validation(row(12, validation_tokens=5), losses, DOCUMENTS)
    recorder.validation(row(24), losses * 2, DOCUMENTS)
    recorder.flush()
    folder = tmp_path / "validate_documents"
    assert sorted(p.name for p in folder.iterdir()) == ["a_b_00000012.npy", "a_b_00000024.npy", "documents_a_b.csv"]
    saved = np.load(folder / "a_b_00000012.npy", allow_pickle=False)
    assert saved.dtype == np.float64 and (saved == losses).all()
    assert [r["bytes"] for r in read(folder / "documents_a_b.csv")] == ["9", "4"]
    assert read(tmp_path / "validate.csv")[0]["validation_tokens"] == "5"
    assert (tmp_path / "validate.csv").read_text().splitlines()[0].split(",") == VALIDATE_COLUMNS


def test_cut_back_to_a_checkpoint(tmp_path):
    """What came after the checkpoint is gone, and what is written then is as if it had never been."""

    def go(recorder, steps):
        for step in steps:
            recorder.train(row(step))
            if step % 2 == 0:
                recorder.validation(row(step), np.array([float(step)]), DOCUMENTS)
                recorder.sample(f"sample {step} \N{SNOWMAN}\n")

    recorder = Recorder(tmp_path)
    go(recorder, [1, 2, 3])
    sizes = recorder.sizes()
    go(recorder, [4, 5, 6])
    recorder.sizes()
    with open(tmp_path / "train.csv", "a") as file:
        file.write("a_b,7,half a r")
    recorder = Recorder(tmp_path)
    recorder.cut_back(sizes, 3)
    go(recorder, [4, 5])
    recorder.flush()
    assert [r["step"] for r in read(tmp_path / "train.csv")] == list("12345")
    assert [r["step"] for r in read(tmp_path / "validate.csv")] == ["2", "4"]
    assert (tmp_path / "samples.txt").read_text(encoding="utf-8") == "sample 2 \N{SNOWMAN}\nsample 4 \N{SNOWMAN}\n"
    assert sorted(p.name for p in (tmp_path / "validate_documents").glob("*.npy")) == [
        "a_b_00000002.npy",
        "a_b_00000004.npy",
    ]


def test_cut_back_to_nothing(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.train(row(1, x_old=1.0))
    recorder.sizes()
    recorder = Recorder(tmp_path)
    recorder.cut_back({}, 0)
    recorder.train(row(1, x_new=1.0))
    recorder.flush()
    assert read(tmp_path / "train.csv")[0]["x_new"] == "1"


def test_text_with_commas_and_quotes_survives(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.train(row(1) | {"plan_step": 'a, "b"'})
    recorder.flush()
    assert read(tmp_path / "train.csv")[0]["plan_step"] == 'a, "b"'


@pytest.mark.parametrize(
    "value, cell",
    [(1.0, "1"), (1e-12, "1e-12"), (123456789.0, "1.2345679e+08"), (float("nan"), "nan"), (7, "7"), (None, "")],
)
def test_cells(tmp_path, value, cell):
    recorder = Recorder(tmp_path)
    recorder.train(row(1) | {"bytes": value})
    recorder.flush()
    assert read(tmp_path / "train.csv")[0]["bytes"] == cell


def test_a_figure_without_a_column_is_said_once(tmp_path, capsys):
    for first in (1, 3):  # by two processes, one after the other
        recorder = Recorder(tmp_path)
        recorder.train(row(first, x_width=float("nan")))
        assert capsys.readouterr().err == ""
        for step in (first + 1, first + 2):
            recorder.train(row(step, x_width=1.0, x_late=7.0))
        recorder.flush()
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1 and "train.csv has no column x_late" in err and "left out" in err
    assert "x_late" not in read(tmp_path / "train.csv")[0]
