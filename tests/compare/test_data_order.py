"""Runs of the first data order are compared among themselves, never with those of today."""

import json

import pytest

from lmplay.cli import compare as compare_command
from lmplay.cli import trainer as trainer_command
from lmplay.runs.run import read_run
from support.results import unsealed
from support.small import TINY, make_text

BUDGET = ["--max-steps", "500"]  # more than the text has under the first order
ARMS = ["--baseline", "gpt2ish:tiny", "--exp", "llama2:tiny", "--seeds", "1", "--dry-run"]


@pytest.fixture
def flags(work):
    (work / "t.txt").write_text(make_text(12, 3), encoding="utf-8")
    return [*TINY[2:], "--data", "t.txt", "--tokenizer", "bytes", "--validation-tokens", "300", *BUDGET]


@pytest.fixture
def older(flags, work):
    """Trains a model as an earlier version did, whose run.json knows of no order."""

    def train(exp, name):
        words = ["--exp", exp, *flags, "--same-init", "--data-order", "1", "--run-name", name]
        assert trainer_command.main(words) == 0
        file = work / "gpt_out" / name / "run.json"
        info = unsealed(json.loads(file.read_text(encoding="utf-8")))
        assert 0 < info["progress"]["step"] < 500  # it ended with its data
        for later in ("data_order", "epochs"):
            del info["settings"][later]
        file.write_text(json.dumps(info), encoding="utf-8")

    return train


def test_older_runs_are_compared_with_each_other_and_with_none_of_today(flags, older, work, capfd):
    def compare(*words):
        assert compare_command.main([*ARMS, *flags, *words]) == 0
        return capfd.readouterr()

    older("gpt2ish:tiny", "base")
    said = compare()
    assert "2 of 2 runs would be trained" in said.out
    assert "nearest is gpt_out/base: data_order is 1 instead of 2 (--data-order 1 uses it)" in said.out
    said = compare("--data-order", "1")
    assert "is there: gpt_out/base" in said.out and "1 of 2 runs would be trained" in said.out
    older("llama2:tiny", "candidate")
    said = compare()  # the comparison that was made with them is made again
    assert "0 of 2 runs would be trained" in said.out and "data order 1: all runs are there in it" in said.err
    assert "2 of 2 runs would be trained" in compare("--data-order", "2").out
    assert "2 of 2 runs would be trained" in compare("--max-steps", "3").out  # another budget is another comparison
    assert read_run(work / "gpt_out" / "base").settings["data_order"] == 1
