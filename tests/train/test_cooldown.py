"""Runs whose length changes on the way: cooled down, trained past their end; and checkpoints that are kept for good."""

import csv
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lmplay.cli import generator
from support.small import TINY
from support.thorough import first
from support.trainer_process import At

PARTS = 2  # forward passes of a step
FLAGS = [
    *TINY,
    "--run-name",
    "run",
    "--save-interval",
    "4",
    "--validation-interval",
    "50",
    "--validation-tokens",
    "500",
]
STOPPED = 130
KILL, TERMINATE = (signal.SIGKILL,), (signal.SIGTERM,)


def flags(plans, *more, plan="plain"):
    return [*FLAGS, "--training-plan", plans[plan], *map(str, more)]


def rates(run: Path) -> list[float]:
    with open(run / "train.csv", newline="", encoding="utf-8") as file:
        return [float(row["learning_rate"]) for row in csv.DictReader(file)]


def losses(run: Path) -> list[str]:
    with open(run / "train.csv", newline="", encoding="utf-8") as file:
        return [row["loss"] for row in csv.DictReader(file)]


def weights(run: Path, step: int) -> bytes:
    folder = run / "checkpoints" / f"step_{step:08d}"
    return (folder / "model.safetensors").read_bytes() + (folder / "optimizer.safetensors").read_bytes()


def steps(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in (run / "checkpoints").iterdir())


def phases(run: Path) -> list[dict]:
    return json.loads((run / "run.json").read_text())["progress"]["phases"]


@pytest.fixture
def run(work) -> Path:
    return work / "gpt_out" / "run"


# ---------------------------------------------------------------- cooling down

WSD = ["--lr-schedule", "wsd", "--max-steps", 100, "--lr", 0.01]


def stopped_at(step: int, trainer, plans, *more, plan="plain"):
    assert (
        trainer(
            *flags(plans, *WSD, *more, plan=plan), at=At(forward=True, count=step * PARTS, signals=TERMINATE)
        ).status
        == STOPPED
    )


def test_a_stopped_run_cools_down_from_where_it_stands(trainer, plans, run):
    stopped_at(13, trainer, plans, "--final-lr-fraction", 0.1)
    whole = flags(plans, *WSD, "--final-lr-fraction", 0.1, "--cooldown-now", 0.5)
    done = trainer(*whole)
    assert done.status == 0 and "finished after 19 steps" in done.err
    assert rates(run)[:13] == pytest.approx([0.005] + [0.01] * 12)
    assert rates(run)[13:] == pytest.approx([0.001 + 0.009 * (1 - k / 6) for k in range(6)])
    assert phases(run) == [
        {
            "name": "one",
            "n_updates": 19,
            "n_scheduled": 100,
            "cooldown": {"start": 13, "updates": 6, "level": 1.0, "windows": 76},
        }
    ]
    for again in (whole, flags(plans, *WSD, "--final-lr-fraction", 0.1)):
        assert "is finished: 19 steps" in trainer(*again).err
    assert phases(run)[0]["cooldown"]["updates"] == 6 and len(rates(run)) == 19


@pytest.mark.parametrize("typed_again", first(1, [["--cooldown-now", 0.7], []]), ids=["with", "without"])
@pytest.mark.parametrize(
    "at",
    [
        At(forward=True, count=6 * PARTS, signals=KILL),
        At(forward=True, count=1, signals=KILL),
        At(forward=True, count=3 * PARTS, signals=TERMINATE),
    ],
    ids=["killed", "killed at once", "stopped"],
)
def test_a_cool_down_that_was_interrupted_goes_on_to_the_bit(trainer, plans, run, work, at, typed_again):
    stopped_at(10, trainer, plans)
    shutil.copytree(run, work / "gpt_out" / "begun")
    assert trainer(*flags(plans, *WSD, "--cooldown-now", 0.7)).status == 0
    wanted = run.rename(work / "gpt_out" / "wanted")
    (work / "gpt_out" / "begun").rename(run)
    trainer(*flags(plans, *WSD, "--cooldown-now", 0.7), at=at)
    assert steps(run)[-1] < 17
    assert trainer(*flags(plans, *WSD, *typed_again)).status == 0
    assert steps(run)[-1] == steps(wanted)[-1] == 17
    assert weights(run, 17) == weights(wanted, 17)
    assert rates(run) == rates(wanted) and losses(run) == losses(wanted) and phases(run) == phases(wanted)


def test_the_part_is_the_cooldown_fraction_if_not_said(trainer, plans, run):
    stopped_at(10, trainer, plans, "--cooldown-fraction", 0.3)
    assert trainer(*flags(plans, *WSD, "--cooldown-fraction", 0.3, "--cooldown-now")).status == 0
    assert len(rates(run)) == 13


def test_a_finished_run_of_constant_rate_is_cooled_down_past_its_budget(trainer, plans, run):
    constant = ["--lr-schedule", "constant", "--max-steps", 10, "--lr", 0.01]
    assert trainer(*flags(plans, *constant)).status == 0
    assert trainer(*flags(plans, *constant, "--cooldown-now", 0.5)).status == 0
    assert rates(run)[10:] == pytest.approx([0.01 * (1 - k / 5) for k in range(5)])


def test_a_cool_down_ends_a_plan_of_two_steps(trainer, plans, run):
    """In the first step: the second one is not trained any more. In the second: the first stays as it was."""
    stopped_at(6, trainer, plans, plan="two_steps")
    assert trainer(*flags(plans, *WSD, "--cooldown-now", 0.5, plan="two_steps")).status == 0
    assert [phase["n_updates"] for phase in phases(run)] == [9] and len(rates(run)) == 9
    shutil.rmtree(run)
    stopped_at(14, trainer, plans, plan="two_steps")
    assert trainer(*flags(plans, *WSD, "--cooldown-now", 0.5, plan="two_steps")).status == 0
    found = phases(run)
    assert (
        [phase["n_updates"] for phase in found] == [10, 11]
        and found[1]["cooldown"]["start"] == 4
        and len(rates(run)) == 21
    )


def test_where_there_is_nothing_to_cool_down(trainer, plans, run):
    assert (
        "--cooldown-now: there is no checkpoint of gpt_out/run"
        in trainer(*flags(plans, *WSD, "--cooldown-now")).complaint
    )
    assert not run.exists()
    stopped_at(4, trainer, plans)
    assert (
        "--cooldown-now and --fresh exclude each other"
        in trainer(*flags(plans, *WSD, "--cooldown-now", "--fresh")).complaint
    )
    assert "0.1 of 4 steps is less than one" in trainer(*flags(plans, *WSD, "--cooldown-now", 0.1)).complaint
    assert "--cooldown-now must be more than 0, not 0" in trainer(*flags(plans, *WSD, "--cooldown-now", 0)).complaint
    assert "leave out --max-minutes" in trainer(*flags(plans, *WSD, "--cooldown-now", "--max-minutes", 5)).complaint
    assert "cooldown" not in phases(run)[0]
    shutil.rmtree(run)
    cosine = ["--lr-schedule", "cosine", "--max-steps", 6]
    assert trainer(*flags(plans, *cosine)).status == 0
    assert "the learning rate has come down already" in trainer(*flags(plans, *cosine, "--cooldown-now", 0.5)).complaint


def test_the_checkpoint_before_a_cool_down_and_those_asked_for_are_kept(trainer, plans, run):
    """Of a wsd schedule: before its first lower rate. Of one that was asked for: that from which it began."""
    wsd = ["--lr-schedule", "wsd", "--max-steps", 20, "--lr", 0.01, "--cooldown-fraction", 0.5, "--warmup-steps", 2]
    assert trainer(*flags(plans, *wsd, "--backup-at", "3, 6")).status == 0
    assert steps(run) == [3, 6, 10, 16, 20]
    assert rates(run)[2:11] == [0.01] * 9 and rates(run)[11] < 0.01
    shutil.rmtree(run)
    constant = ["--lr-schedule", "constant", "--max-steps", 10, "--lr", 0.01]
    assert trainer(*flags(plans, *constant)).status == 0
    assert trainer(*flags(plans, *constant, "--cooldown-now", 1.0)).status == 0
    assert steps(run) == [10, 16, 20]
    assert json.loads((run / "checkpoints/step_00000010/state.json").read_text())["keep"] is True
    assert "--backup-at takes whole numbers from 1" in trainer(*flags(plans, *constant, "--backup-at", "3,x")).complaint


# ---------------------------------------------------------------- past the end


@pytest.mark.thorough
def test_extra_steps_are_as_if_planned_where_the_schedule_allows(trainer, plans, run, work):
    constant = ["--lr-schedule", "constant"]
    assert trainer(*flags(plans, *constant, "--max-steps", 14)).status == 0
    wanted = run.rename(work / "gpt_out" / "wanted")
    assert trainer(*flags(plans, *constant, "--max-steps", 10)).status == 0
    assert trainer(*flags(plans, *constant, "--max-steps", 10, "--extra-steps", 4)).status == 0
    assert weights(run, 14) == weights(wanted, 14) and losses(run) == losses(wanted)
    for again in (["--extra-steps", 4], []):
        assert "is finished: 14 steps" in trainer(*flags(plans, *constant, "--max-steps", 10, *again)).err
    assert trainer(*flags(plans, *constant, "--max-steps", 10, "--extra-steps", 6)).status == 0
    assert len(rates(run)) == 16


@pytest.mark.thorough
def test_extra_steps_of_a_schedule_that_has_ended(trainer, plans, run, work):
    """At the rate with which it has ended, also across an interruption; at a rate of 0 nothing would be learned."""
    cosine = ["--lr-schedule", "cosine", "--max-steps", 8, "--lr", 0.01, "--final-lr-fraction", 0.2]
    assert trainer(*flags(plans, *cosine)).status == 0
    before = rates(run)
    shutil.copytree(run, work / "gpt_out" / "copy")
    assert trainer(*flags(plans, *cosine, "--extra-steps", 6)).status == 0
    assert rates(run) == before + [pytest.approx(0.002)] * 6
    assert phases(run) == [{"name": "one", "n_updates": 14, "n_scheduled": 8}]
    wanted = run.rename(work / "gpt_out" / "wanted")
    (work / "gpt_out" / "copy").rename(run)
    trainer(*flags(plans, *cosine, "--extra-steps", 6), at=At(forward=True, count=5 * PARTS, signals=KILL))
    assert 8 <= steps(run)[-1] < 14
    assert trainer(*flags(plans, *cosine, "--extra-steps", 6)).status == 0
    assert weights(run, 14) == weights(wanted, 14)
    shutil.rmtree(run)
    assert trainer(*flags(plans, *cosine[:-2])).status == 0
    refused = trainer(*flags(plans, *cosine[:-2], "--extra-steps", 6))
    assert "ends after 8 steps with a learning rate of 0" in refused.complaint and steps(run)[-1] == 8


# ---------------------------------------------------------------- backups


@pytest.mark.thorough
def test_backups_are_kept_listed_and_used(trainer, plans, run, work, capsys):
    backups = ["--lr-schedule", "constant", "--max-steps", 20, "--backup-interval", 5]
    assert (
        trainer(*flags(plans, *backups), at=At(forward=True, count=11 * PARTS, signals=KILL)).status == -signal.SIGKILL
    )
    generator.main(["--list"])
    assert capsys.readouterr().out.splitlines()[-1].endswith("killed")
    assert trainer(*flags(plans, *backups)).status == 0
    assert steps(run) == [5, 10, 15, 16, 20]
    (run / "checkpoints" / "step_00000019").mkdir()
    (run / "checkpoints" / "step_00000019" / "state.json").write_text("{")
    generator.main(["--list"])
    listed, said = capsys.readouterr()
    assert said.count("\n") == 1 and "step_00000019/state.json can't be read" in said and "left out" in said
    shutil.rmtree(run / "checkpoints" / "step_00000019")
    head, *lines = listed.splitlines()
    assert head.split() == "checkpoint experiment plan steps val. loss status of the run".split()
    for line, step in zip(lines, (5, 10, 15, 16, 20), strict=True):
        kept = "" if step == 16 else " (kept)"
        assert line.startswith(f"gpt_out/run/checkpoints/step_{step:08d}{kept} ")
        *_, at, loss, status = line.split()
        assert at == str(step) and (loss == "-") == (step < 20) and status == "finished"  # validated at the end alone
    # past the end with other intervals: backups stay, the others take turns
    longer = [flag for flag in flags(plans, *backups) if flag not in ("--backup-interval", "5")]
    assert trainer(*longer, "--extra-steps", 16).status == 0
    assert steps(run) == [5, 10, 15, 20, 32, 36]

    def write(place):
        return subprocess.run(
            [sys.executable, "-m", "lmplay.cli.generator", "--run", place, "--seed", "3", "--max-len", "40", "a"],
            capture_output=True,
            text=True,
        )

    early, late = write("run/checkpoints/step_00000005"), write("run")
    assert (
        early.returncode == late.returncode == 0 and "step_00000005" in early.stderr and "step_00000036" in late.stderr
    )
    assert early.stdout != late.stdout
    assert write("gpt_out/run/checkpoints/step_00000005").stdout == early.stdout
    missing = write("run/checkpoints/step_00000006")
    assert (
        missing.returncode == 2
        and "the run gpt_out/run has no checkpoint 'step_00000006', but step_00000005, step_00000010" in missing.stderr
    )

    started = [
        *FLAGS[:-8],
        "--training-plan",
        plans["plain"],
        "--initial-model",
        "run/checkpoints/step_00000005",
        "--lr",
        "1e-12",
        "--max-steps",
        2,
    ]
    done = trainer(*started)
    assert done.status == 0, done.err
    (other,) = [path for path in (work / "gpt_out").iterdir() if "from=" in path.name]
    assert "from=run-step_00000005" in other.name
    from safetensors.torch import load_file

    found, wanted = (
        load_file(other / "checkpoints/step_00000002/model.safetensors"),
        load_file(run / "checkpoints/step_00000005/model.safetensors"),
    )
    assert all((found[name] - wanted[name]).abs().max() < 1e-6 for name in wanted)
