"""What a run has done stays, whatever became of its checkpoints."""

import json
import os
import signal

import pytest

from lmplay.cli import generator
from lmplay.cli import trainer as command
from lmplay.code_hash import code_hash
from support.results import unsealed
from support.small import TINY
from support.trainer_process import At

FLAGS = [*TINY, "--run-name", "run", "--validation-interval", "2", "--validation-tokens", "300"]


@pytest.fixture
def train(trainer, plans):
    return lambda *more, **how: trainer(*FLAGS, "--training-plan", plans["plain"], *more, **how)


@pytest.fixture
def run(work, train):
    """A finished run of 4 steps."""
    assert train("--max-steps", "4").status == 0
    return work / "gpt_out" / "run"


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}


def deleted(run):
    for path in sorted((run / "checkpoints").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def moved(run):
    (run / "checkpoints").rename(run.parent.parent / "elsewhere")


def dead_link(run):
    moved(run)
    (run / "checkpoints").symlink_to("../nowhere", target_is_directory=True)


def without_state(run):
    for path in run.glob("checkpoints/*/state.json"):
        path.unlink()


def a_file(run):
    moved(run)
    (run / "checkpoints").write_text("they are on the other disk", encoding="utf-8")


@pytest.mark.parametrize("lose", [deleted, moved, dead_link, without_state, a_file])
def test_lost_checkpoints_are_said(run, train, lose):
    lose(run)
    before = snapshot(run)
    for steps in ("2", "4", "6"):
        refused = train("--max-steps", steps)
        assert refused.status == 2 and "after step 4" in refused.complaint and "--fresh" in refused.complaint
    assert snapshot(run) == before
    fresh = train("--max-steps", "2", "--fresh")
    assert fresh.status == 0, fresh.err
    assert snapshot(run.parent / ".replaced" / "run") == before
    info = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert info["progress"]["step"] == info["checkpoint_step"] == 2


def test_the_step_of_the_last_checkpoint_is_recorded(run, train):
    for steps in ("4", "6"):
        assert train("--max-steps", steps, "--lr-schedule", "constant", "--run-name", "other").status == 0
        info = json.loads((run.parent / "other" / "run.json").read_text(encoding="utf-8"))
        assert info["checkpoint_step"] == int(steps)


def test_each_fresh_keeps_the_one_before(run, train):
    kept = [snapshot(run)]
    for seed in ("1", "2"):
        assert train("--max-steps", "2", "--fresh", "--seed", seed).status == 0
        kept.append(snapshot(run))
    aside = run.parent / ".replaced"
    assert [snapshot(folder) for folder in (aside / "run", aside / "run.2", run)] == kept


def test_rows_before_the_first_checkpoint_move_aside(work, train):
    killed = train("--max-steps", "4", at=At(event="os.rename", path="step_00000004", signals=(signal.SIGKILL,)))
    run = work / "gpt_out" / "run"
    rows = (run / "train.csv").read_bytes()
    assert killed.status != 0 and rows.count(b"\n") == 5
    again = train("--max-steps", "4")
    assert again.status == 0 and ".replaced" in again.err
    assert (run.parent / ".replaced" / "run" / "train.csv").read_bytes() == rows


def test_a_run_without_the_key_starts_again_and_is_kept(run, train):
    info = json.loads((run / "run.json").read_text(encoding="utf-8"))
    del info["checkpoint_step"]
    (run / "run.json").write_text(json.dumps(unsealed(info)), encoding="utf-8")
    moved(run)
    before = snapshot(run)
    again = train("--max-steps", "2")
    assert again.status == 0 and ".replaced" in again.err
    assert snapshot(run.parent / ".replaced" / "run") == before


def test_rows_without_run_json_move_aside(run, train):
    moved(run)
    (run / "run.json").unlink()
    before = snapshot(run)
    assert train("--max-steps", "2").status == 0
    assert snapshot(run.parent / ".replaced" / "run") == before


def test_checkpoints_behind_a_relative_link_are_found_where_the_run_is_kept(run, train):
    moved(run)
    (run / "checkpoints").symlink_to(os.path.join("..", "..", "elsewhere"), target_is_directory=True)
    assert "is finished" in train("--max-steps", "4").err
    assert train("--max-steps", "2", "--fresh").status == 0
    assert (run.parent / ".replaced" / "run" / "checkpoints" / "step_00000004" / "state.json").is_file()
    assert not (run / "checkpoints").is_symlink()


def test_notes_of_the_user_in_a_run_stay_with_it(run, train):
    (run / "notes.md").write_text("promising", encoding="utf-8")
    assert train("--max-steps", "2", "--fresh").status == 0
    assert (run.parent / ".replaced" / "run" / "notes.md").is_file()


def test_a_run_folder_that_is_a_dead_link(work, train):
    (work / "gpt_out").mkdir()
    (work / "gpt_out" / "run").symlink_to("nowhere", target_is_directory=True)
    assert "leads nowhere" in train("--max-steps", "2").complaint


READS = """
from pathlib import Path

TABLE = float(Path(__file__).with_name("table.txt").read_text())


class Model(Model):
    def forward(self, tokens, cache=None):
        return super().forward(tokens, cache) * TABLE
"""


def test_a_file_that_the_model_reads_belongs_to_the_run(work, plans, experiment, capsys):
    """Another content is another model; the run's own copy loads without the folder; older runs go on."""
    experiment("mine", READS)
    table = work / "experiments" / "mine" / "table.txt"
    flags = ["--exp", "mine", *FLAGS[2:], "--training-plan", plans["plain"], "--lr-schedule", "constant", "--max-steps"]
    table.write_text("1.0")
    assert command.main([*flags, "2"]) == 0
    run = work / "gpt_out" / "run"
    assert (
        run / "code" / "mine" / "table.txt"
    ).read_text() == "1.0" and "no part of its code" not in capsys.readouterr().err
    table.write_text("0.5")
    assert command.main([*flags, "4"]) == 2 and "the code in" in capsys.readouterr().err
    table.unlink()
    assert generator.main(["--run", "run", "--device", "cpu", "--max-len", "2", "--seed", "1", "a"]) == 0
    table.write_text("1.0")
    info = unsealed(json.loads((run / "run.json").read_text(encoding="utf-8")))  # as an older version wrote it
    info["experiment"]["code_hash"] = code_hash(table.parent, [table.parent / "model.py"])
    (run / "run.json").write_text(json.dumps(info), encoding="utf-8")
    (run / "code" / "mine" / "table.txt").unlink()
    for state in run.glob("checkpoints/*/state.json"):
        state.write_text(json.dumps(unsealed(json.loads(state.read_text()))))
    assert command.main([*flags, "4"]) == 0
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["progress"]["step"] == 4
