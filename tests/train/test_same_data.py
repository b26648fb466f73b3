"""A run is its data, not how they are called: spellings of one file, and files of one name."""

import json
import os
import shutil

import pytest

from lmplay.cli import compare as compare_command
from lmplay.cli import trainer as command
from lmplay.report.groups import group_seeds, unlike
from lmplay.runs.run import read_run
from support.small import TINY, make_text

FLAGS = [*TINY, "--tokenizer", "bytes", "--validation-tokens", "300", "--max-steps", "2"]


@pytest.fixture
def train(work, capfd):
    """Trains on files and returns the exit status and what was said."""

    def run(*files, name="r", more=()):
        named = ["--run-name", name] if name else []
        status = command.main([*FLAGS, *named, *more, "--data", *map(str, files)])
        return status, capfd.readouterr().err

    return run


def test_spellings_of_one_file_are_one_run(train, work):
    (work / "here").mkdir()
    for name in ("one.txt", "two.txt"):
        (work / "here" / name).write_text(make_text(20, 3), encoding="utf-8")
    files = ["here/one.txt", "here/two.txt"]
    assert train(*files)[0] == 0
    os.symlink("here", work / "there")
    for spelled in (["./here/one.txt", "here/../here/two.txt"], [work / "here" / "one.txt", "there/two.txt"]):
        status, said = train(*spelled)
        assert status == 0 and "is finished" in said, said
    # runs of two spellings are alike, whatever looks at them
    assert train(*(work / name for name in files), name="s", more=["--seed", "1"])[0] == 0
    runs = [read_run(work / "gpt_out" / name) for name in "rs"]
    assert runs[0].get("plan", "hash") != runs[1].get("plan", "hash") and runs[0].plan_key == runs[1].plan_key
    assert unlike(*runs) == [] and group_seeds(runs, [1.0, 1.0]) == [[0, 1]]
    # other text under the same name is another
    (work / "here" / "one.txt").write_text(make_text(20, 4), encoding="utf-8")
    status, said = train(*files)
    assert status == 2 and "the data of the run r changed" in said


def test_a_comparison_uses_runs_of_another_spelling(train, work, capfd):
    (work / "one.txt").write_text(make_text(20, 3), encoding="utf-8")
    assert train("one.txt", more=["--same-init", "--validation-interval", "1"])[0] == 0
    arms = ["--baseline", "gpt2ish:6l", "--exp", "llama2", "--seeds", "1", "--dry-run"]
    assert compare_command.main([*arms, *FLAGS[2:], "--data", str(work / "one.txt")]) == 0
    out = capfd.readouterr().out
    assert "is there: gpt_out/r" in out and "1 of 2 runs would be trained" in out, out


def test_files_of_one_name_are_runs_of_their_own(train, work):
    for folder, seed in (("a", 3), ("b", 4), ("c", 3)):
        (work / folder).mkdir()
        (work / folder / "input.txt").write_text(make_text(20, seed), encoding="utf-8")
    assert train("a/input.txt", name=None)[0] == 0
    (first,) = (work / "gpt_out").glob("*/run.json")
    assert train("b/input.txt", name=None)[0] == 0
    (second,) = [path for path in (work / "gpt_out").glob("*/run.json") if path != first]
    data = json.loads(second.read_text(encoding="utf-8"))["data"]["hash"]
    assert second.parent.name == f"{first.parent.name}_{data[:8]}"
    for file in ("./b/input.txt", "c/input.txt", "a/input.txt"):  # each goes on where it was; c is a copy of a
        status, said = train(file, name=None)
        assert status == 0 and "is finished" in said
    assert len(list((work / "gpt_out").glob("*/run.json"))) == 2
    # a file that changed is no other file
    (work / "a" / "input.txt").write_text(make_text(20, 5), encoding="utf-8")
    assert train("a/input.txt", name=None)[0] == 2


def test_plan_files_of_one_name_are_too(work, capfd):
    for folder, seed in (("a", 3), ("b", 4)):
        (work / folder).mkdir()
        (work / folder / "text.txt").write_text(make_text(20, seed), encoding="utf-8")
        plan = {"tokenizer": "bytes", "datasets": {"d": {"files": "text.txt"}}, "steps": [{"datasets": ["d"]}]}
        (work / folder / "p.json").write_text(json.dumps(plan), encoding="utf-8")
        assert command.main([*FLAGS, "--training-plan", f"{folder}/p.json"]) == 0
    assert len(list((work / "gpt_out").glob("*/run.json"))) == 2
    shutil.copy(work / "b" / "text.txt", work / "a" / "text.txt")
    assert command.main([*FLAGS, "--training-plan", "a/p.json"]) == 2  # it changed
