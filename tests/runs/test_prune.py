"""Checkpoints are removed on purpose: the run plots, compares and says so."""

import json
import socket

import pytest

import lmplay
from lmplay.cli import compare, trainer
from lmplay.errors import UserError
from lmplay.runs.folder import only_trainer
from support.making_runs import make_run
from support.small import TINY


@pytest.fixture
def flags(plans, work):
    return [*TINY[2:], "--exp", "gpt2ish:tiny", "--training-plan", plans["plain"], "--max-steps", "4"]


def info_of(folder):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def test_a_pruned_run(flags, work, capsys):
    assert trainer.main([*flags, "--run-name", "run", "--save-interval", "2"]) == 0
    run = work / "gpt_out" / "run"
    rows = (run / "train.csv").read_bytes()
    assert trainer.main(["--prune", "run"]) == 0
    assert "2 checkpoints removed" in capsys.readouterr().out
    assert list(run.glob("checkpoints/*")) == [] and (run / "train.csv").read_bytes() == rows
    assert info_of(run)["status"] == "finished" and info_of(run)["pruned"]["step"] == 4
    before = (run / "run.json").read_bytes()
    assert trainer.main([*flags, "--run-name", "run"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "removed by lmp_trainer --prune" in said and "--fresh" in said
    assert (run / "train.csv").read_bytes() == rows and (run / "run.json").read_bytes() == before
    assert trainer.main(["--prune", "run"]) == 0 and "no checkpoints to remove" in capsys.readouterr().out
    with pytest.raises(UserError, match="removed by lmp_trainer --prune"):
        lmplay.load_run("run")
    assert len(lmplay.curves("run", "train")) == 4
    assert trainer.main([*flags, "--run-name", "run", "--fresh"]) == 0
    assert "pruned" not in info_of(run) and (work / "gpt_out" / ".replaced" / "run" / "train.csv").read_bytes() == rows


@pytest.mark.process
def test_pruned_runs_are_compared_and_not_trained_again(plans, work, capfd):
    words = ["--training-plan", plans["plain"], *TINY[2:], "--max-steps", "4", "--seeds", "1", "--no-report"]
    words += ["--exp", "llama2:tiny", "--baseline", "gpt2ish:tiny"]
    assert compare.main(words) == 0
    first = capfd.readouterr().out
    assert trainer.main(["--prune", *[folder.name for folder in (work / "gpt_out").glob("[!.]*/")]]) == 0
    capfd.readouterr()
    assert compare.main(words) == 0
    out, err = capfd.readouterr()
    assert out == first and "run 1 of" not in err


@pytest.mark.parametrize(
    "more",
    [{"status": "stopped"}, {"status": "running"}, {"status": "running", "process": {"host": socket.gethostname()}}],
    ids=["stopped", "running", "killed"],
)
def test_a_run_that_could_go_on_is_refused(tmp_path, capsys, more):
    """Nothing is removed, not even from those beside it that are finished."""
    for name, facts in (("done", {}), ("begun", more)):
        checkpoint = make_run(tmp_path / name, **facts) / "checkpoints" / "step_00000300"
        checkpoint.mkdir(parents=True)
        (checkpoint / "state.json").write_text("{}", encoding="utf-8")
    assert trainer.main(["--prune", "done", "begun", "--out", str(tmp_path)]) == 2
    assert "begun is not finished" in capsys.readouterr().err
    assert len(list(tmp_path.glob("*/checkpoints/*/state.json"))) == 2


def test_a_run_in_use_and_links(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "state.json").write_text("{}", encoding="utf-8")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step_00000300").symlink_to(elsewhere)
    (run / "checkpoints" / "mine.txt").write_text("notes", encoding="utf-8")
    lock = only_trainer(run)
    assert trainer.main(["--prune", str(run)]) == 5
    lock.release()
    assert trainer.main(["--prune", str(run)]) == 0
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["mine.txt"]
    assert (elsewhere / "state.json").exists()
