"""--extra-steps of a run that has cooled down: it trains on from before that, as if it had not."""

import csv
import dataclasses
import shutil

import pytest

from lmplay.errors import UserError
from lmplay.runs.run import read_run
from lmplay.runs.settings import Settings
from lmplay.train.loop import Trainer
from lmplay.train.resume import open_run
from lmplay.train.setup import set_up


def trained(settings, cooldown=None):
    """Train to the end of what is asked for; return the state."""
    setup = set_up(settings)
    trainer = Trainer(setup, open_run(setup, cooldown=cooldown))
    if not trainer.finished:
        assert trainer.train() == "finished"
    trainer.state.release()
    return trainer.state


def rows(run):
    with open(run / "train.csv", newline="", encoding="utf-8") as file:
        return [(row["step"], row["loss"], row["learning_rate"]) for row in csv.DictReader(file)]


def steps(run):
    return sorted(int(path.name.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*"))


def weights(run, step):
    return (run / "checkpoints" / f"step_{step:08d}" / "model.safetensors").read_bytes()


@pytest.fixture
def asked(plans, work):
    small = {"set": ("n_layer=1", "n_embd=16", "n_head=2"), "device": "cpu", "context_len": 16, "batch_size": 4}
    small |= {"validation_interval": 50, "validation_tokens": 500, "warmup_steps": 2, "lr": 0.01, "run_name": "run"}
    return Settings(training_plan=plans["plain"], out=str(work / "gpt_out"), **small)


@pytest.mark.parametrize("schedule", ["wsd", "constant"])
def test_a_cooled_run_becomes_what_a_longer_budget_would_have_made(asked, work, capsys, schedule):
    """What it was stays beside it; cut off after going back, it goes on the same way."""
    run, aside = work / "gpt_out" / "run", work / "gpt_out" / ".replaced" / "run"
    asked = dataclasses.replace(asked, lr_schedule=schedule, cooldown_fraction=0.5, max_steps=12)
    longer = dataclasses.replace(asked, extra_steps=6)
    trained(dataclasses.replace(longer, run_name="wanted"))
    trained(asked)
    if schedule == "constant":
        assert trained(asked, cooldown=0.25).step == 15
    began, ended = (6, 12) if schedule == "wsd" else (12, 15)
    before, cooled = rows(run), weights(run, ended)
    assert began in steps(run)
    (run / "track").mkdir()
    (run / "track" / "tensorboard.json").write_text("{}")
    setup = set_up(longer)
    open_run(setup).release()  # and nothing is trained
    said = capsys.readouterr().err
    assert f"going back to step {began}, before the cool-down, and on to step 18; what the run was is" in said
    assert (aside / "track" / "tensorboard.json").exists() and not (run / "track").exists()  # another is begun
    assert rows(aside) == before and weights(aside, ended) == cooled and steps(run)[-1] == began
    assert read_run(aside).check("load").get("status") == "finished"
    assert trained(longer).step == 18
    assert "going back" not in capsys.readouterr().err and not aside.with_name("run.2").exists()
    wanted = work / "gpt_out" / "wanted"
    assert rows(run) == rows(wanted) and weights(run, 18) == weights(wanted, 18)
    assert trained(longer).step == 18  # typed again, it is finished
    if schedule == "wsd":  # it has cooled down again, and goes back again
        assert trained(dataclasses.replace(asked, extra_steps=8)).step == 20
        assert len(rows(run)) == 20 and weights(aside.with_name("run.2"), 18) == weights(wanted, 18)


def test_what_can_not_go_back_says_so(asked, work):
    run = work / "gpt_out" / "run"
    asked = dataclasses.replace(asked, lr_schedule="constant", max_steps=6)
    trained(asked)
    trained(asked, cooldown=0.5)
    (run / "checkpoints" / "step_00000006").rename(work / "kept")
    with pytest.raises(UserError, match="its checkpoint from before that, step 6, is gone"):
        trained(dataclasses.replace(asked, extra_steps=4))
    shutil.move(work / "kept", run / "checkpoints" / "step_00000006")
    with open(run / "checkpoints" / "step_00000006" / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    with pytest.raises(UserError, match="model.safetensors can't be read.* from which the run would go on"):
        trained(dataclasses.replace(asked, extra_steps=4))
    assert steps(run) == [6, 9] and not (work / "gpt_out" / ".replaced").exists()
