"""lmp_compare for a program: --json, --run-name, --confidence, --baseline RUN, LMPLAY_OUT."""

import json
from pathlib import Path

import pytest

from lmplay.cli import compare as command
from lmplay.runs.run import read_run
from support.small import TINY

pytestmark = pytest.mark.process  # runs are trained in processes of their own

SIDES = ["--exp", "llama2:tiny", "--baseline", "gpt2ish:tiny"]


@pytest.fixture
def compare(plans, work, capfd):
    """Runs `lmp_compare --json -` in the working folder: (exit status, the object, stderr)."""

    def run(*words):
        small = [*TINY[2:], "--max-steps", "6", "--validation-tokens", "1000", "--no-report", "--json", "-"]
        status = command.main(["--training-plan", plans["plain"], *small, *map(str, words)])
        out, err = capfd.readouterr()
        return status, json.loads(out), err

    return run


def test_one_object(compare, work, monkeypatch):
    monkeypatch.setenv("LMPLAY_OUT", "elsewhere")
    status, planned, _ = compare(*SIDES, "--seeds", 2, "--run-name", "night", "--dry-run")
    assert status == 0 and planned["to_train"] == 4 and not (work / "elsewhere").exists()
    status, found, err = compare(*SIDES, "--seeds", 2, "--run-name", "night", "--confidence", "0.8")
    assert status == 0, err
    (one,) = found["candidates"]
    assert status == 0 == found["status"] and found["state"] == "done" and "llama2:tiny" in err
    folders = [Path(folder) for folder in (*found["baseline"]["runs"], *one["runs"])]
    assert sorted(map(str, folders)) == sorted(run["folder"] for run in planned["planned"])
    assert all(folder.parent == Path("elsewhere") and folder.name.startswith("night_") for folder in folders)
    runs = [read_run(folder) for folder in folders]
    assert [run.code_hash for run in runs] == [found["baseline"]["code_hash"]] * 2 + [one["code_hash"]] * 2
    ours, theirs = (sum(run.get("progress", "validation_loss") for run in of) / 2 for of in (runs[2:], runs[:2]))
    assert one["verdict"]["difference"] == pytest.approx(ours - theirs, abs=1e-4)
    assert one["verdict"]["confidence"] == 0.8 and one["verdict"]["word"] == one["word"] in err
    assert one["seeds"] == [0, 1] and one["failed_seeds"] == [] and one["prior"] is None and one["crashed"] is None
    # a narrower interval at less confidence, from the same runs
    _, wide, err = compare(*SIDES, "--seeds", 2, "--confidence", "0.95")
    verdict = wide["candidates"][0]["verdict"]
    assert verdict["low"] < one["verdict"]["low"] and verdict["high"] > one["verdict"]["high"] and "run 1 of" not in err
    status, refused, _ = compare(*SIDES, "--confidence", "1.5")
    assert (status, refused["status"], refused["state"]) == (2, 2, "error") and "--confidence" in refused["error"]


def test_the_kept_code_of_a_run_is_the_baseline(compare, experiment, work):
    experiment("best")
    _, first, _ = compare("--exp", "best:tiny", "--baseline", "gpt2ish:tiny", "--seeds", 1)
    kept = first["candidates"][0]["runs"][0]
    model = work / "experiments" / "best" / "model.py"
    model.write_text(model.read_text(encoding="utf-8") + "\n\nclass Model(Model):\n    changed = True\n")
    status, found, err = compare("--exp", "best:tiny", "--baseline", kept, "--seeds", 2)
    assert status == 0 and err.count("run ") and found["baseline"]["runs"][0] == kept
    assert found["baseline"]["code_hash"] == first["candidates"][0]["code_hash"] != found["candidates"][0]["code_hash"]
    for arm in (found["baseline"], found["candidates"][0]):
        assert arm["label"] == f"best:tiny ({arm['code_hash'][:8]})"
        assert {read_run(Path(folder)).code_hash for folder in arm["runs"]} == {arm["code_hash"]}
    # the same code and seeds: equal to the bit, whichever folder the code came from
    assert found["candidates"][0]["verdict"]["label"] == "exactly equal"
    status, refused, _ = compare("--exp", kept, "--baseline", "best:tiny", "--seeds", 1)
    assert status == 0 and refused["baseline"]["code_hash"] == found["candidates"][0]["code_hash"]
    assert compare("--exp", kept, "--baseline", kept)[1]["error"].startswith("best:tiny is the baseline")


def test_a_crash_is_an_object_too(compare, experiment):
    experiment("crashes", "class Model(Model):\n    def forward(self, tokens):\n        return 1 / 0\n")
    status, found, _ = compare("--exp", "crashes:tiny", "--baseline", "gpt2ish:tiny", "--seeds", 1)
    assert status == found["status"] == 3 and "ZeroDivisionError" in found["error"]
    status, found, _ = compare("--exp", "crashes:tiny", "llama2:tiny", "--baseline", "gpt2ish:tiny", "--seeds", 1)
    assert status == 3 and [one["word"] for one in found["candidates"]] == ["crashed", "not decided"]
    assert "ZeroDivisionError" in found["candidates"][0]["crashed"]


@pytest.mark.parametrize("more", [("--tune", "nothing=1"), ("--tune", "nothing=1,2"), ("--set", "nothing=1")], ids=str)
def test_a_dry_run_refuses_fields_that_no_model_has(compare, more):
    status, refused, err = compare(*SIDES, *more, "--dry-run")
    assert status == 2 and "nothing" in refused["error"] and "nothing" in err.splitlines()[-1]
