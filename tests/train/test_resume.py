"""A run that is stopped at any moment and continued leaves what a run leaves that was never stopped.

The weights are the same to the bit and, clock columns aside, the files."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmplay.runs.settings import OPTIMIZERS
from lmplay.train.stopping import ONE_WISH_SECONDS
from support.small import TINY
from support.thorough import first
from support.trainer_process import At

CLOCKS = {"seconds", "tokens_per_second", "mfu"}
KILL, INTERRUPT, TERMINATE = (signal.SIGKILL,), (signal.SIGINT,), (signal.SIGTERM,)
# 20 steps of two micro-batches, a checkpoint every 4th, a validation every 6th
FLAGS = [
    *TINY,
    "--set",
    "dropout=0.1",
    "--set",
    "attention_dropout=0.1",
    "--set",
    "embedding_dropout=0.2",
    "--run-name",
    "run",
    "--max-steps",
    "20",
    "--save-interval",
    "4",
    "--validation-interval",
    "6",
    "--validation-tokens",
    "900",
]
PARTS = 2  # forward passes of a step

# What happens, the checkpoint that is the newest after it, and whether the run gets to its end before it
KILLS = {
    "before the first checkpoint": (At(forward=True, count=3 * PARTS, signals=KILL), None),
    "before the first step": (At(event="open", path="run.json", signals=KILL), None),
    "in the middle of a step": (At(forward=True, count=6 * PARTS, signals=KILL), 4),
    "right after a checkpoint": (At(forward=True, count=8 * PARTS + 1, signals=KILL), 8),
    "after the losses of documents, before their row": (
        At(event="os.rename", path="one_00000012.npy", signals=KILL),
        8,
    ),
    "before the samples are written": (At(event="open", path="samples.txt", count=4, signals=KILL), 8),
    "before the first checkpoint is there": (At(event="os.rename", path="step_00000004", signals=KILL), None),
    "before a checkpoint has its state": (At(event="os.rename", path=".state.json", count=2, signals=KILL), 4),
    "before a checkpoint gets its name": (At(event="os.rename", path="step_00000012", signals=KILL), 8),
    "before an old checkpoint is deleted": (At(event="os.rename", path=".step_00000004.", count=3, signals=KILL), 12),
    "while an old checkpoint is deleted": (At(event="os.remove", path="model.safetensors", signals=KILL), 12),
    "before run.json says so": (At(event="os.rename", path=".run.json", count=5, signals=KILL), 12),
    "before the last checkpoint": (At(event="os.rename", path="step_00000020", signals=KILL), 16),
    "after the last checkpoint": (At(event="os.rename", path=".run.json", count=7, signals=KILL), 20),
}
# each run of the tests asks these; the others are asked by -m thorough
OFTEN = (
    "in the middle of a step",
    "after the losses of documents, before their row",
    "before a checkpoint gets its name",
    "before an old checkpoint is deleted",
    "after the last checkpoint",
)


def flags_for(plan, *more):
    return [*FLAGS, "--training-plan", plan, *more]


def newest(run: Path) -> int | None:
    steps = [int(p.name.removeprefix("step_")) for p in run.glob("checkpoints/step_*") if (p / "state.json").is_file()]
    return max(steps, default=None)


def rows(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k not in CLOCKS} for row in csv.DictReader(file)]


def kept(run: Path) -> list[str]:
    """The checkpoints that stay: all except the one before the newest, which a stopped run has somewhere else."""
    names = sorted(p.name for p in (run / "checkpoints").iterdir())
    return [
        name for name in names if json.loads((run / "checkpoints" / name / "state.json").read_text())["keep"]
    ] + names[-1:]


def assert_same_run(found: Path, wanted: Path):
    step = newest(wanted)
    assert newest(found) == step
    for name in ("model", "optimizer"):
        ours, theirs = (run / "checkpoints" / f"step_{step:08d}" / f"{name}.safetensors" for run in (found, wanted))
        assert ours.read_bytes() == theirs.read_bytes(), f"other bits in {name}.safetensors"
    states = [
        json.loads((run / "checkpoints" / f"step_{step:08d}" / "state.json").read_text()) for run in (found, wanted)
    ]
    for state in states:
        # what the clock says, the length of the files that hold it, and the checksums of both
        for key in ("seconds", "files", "checksum", "checksums"):
            state.pop(key, None)
    assert states[0] == states[1]
    for name in ("train.csv", "validate.csv"):
        assert (found / name).read_text().splitlines()[0] == (wanted / name).read_text().splitlines()[0]
        assert rows(found / name) == rows(wanted / name)
    assert (found / "samples.txt").read_bytes() == (wanted / "samples.txt").read_bytes()
    ours, theirs = ({p.name: p.read_bytes() for p in (run / "validate_documents").iterdir()} for run in (found, wanted))
    assert ours == theirs
    assert kept(found) == kept(wanted)
    assert not list(found.rglob(".*"))
    meta = [json.loads((run / "run.json").read_text()) for run in (found, wanted)]
    for one in meta:
        for key in ("created", "command", "run", "process", "checksum", "checksums"):
            one.pop(key, None)
        one["settings"].pop("run_name")
        one["device"].pop("peak_flops", None)  # measured, and raised where a later start finds more
        for key in ("seconds", "peak_memory_bytes", "mfu"):
            one["progress"].pop(key)
    assert meta[0] == meta[1]
    assert sorted(p.name for p in found.iterdir()) == sorted(p.name for p in wanted.iterdir())


@pytest.fixture(scope="module")
def never_stopped(plans, tmp_path_factory):
    """Runs that were left alone, by plan and further flags, each trained once."""
    made = {}

    def get(plan: str, *more: str) -> Path:
        if (plan, more) not in made:
            from support.trainer_process import TrainerProcess

            folder = tmp_path_factory.mktemp("never_stopped")
            process = TrainerProcess(flags_for(plans[plan], *more), folder).wait()
            assert process.status == 0, process.err
            made[plan, more] = folder / "gpt_out" / "run"
        return made[plan, more]

    return get


@pytest.mark.parametrize("moment", [pytest.param(m, marks=() if m in OFTEN else pytest.mark.thorough) for m in KILLS])
def test_killed_and_continued(trainer, plans, work, never_stopped, moment):
    at, checkpoint = KILLS[moment]
    wanted = never_stopped("plain")
    assert trainer(*flags_for(plans["plain"]), at=at).status == -signal.SIGKILL
    run = work / "gpt_out" / "run"
    assert newest(run) == checkpoint
    again = trainer(*flags_for(plans["plain"]))
    assert again.status == 0, again.err
    assert ("continuing after step" in again.err) == (checkpoint is not None)
    assert_same_run(run, wanted)


def test_killed_again_and_again(trainer, plans, work, never_stopped):
    for count in (5, 6, 7):
        assert (
            trainer(*flags_for(plans["plain"]), at=At(forward=True, count=count * PARTS, signals=KILL)).status
            == -signal.SIGKILL
        )
    assert newest(work / "gpt_out" / "run") == 12
    assert trainer(*flags_for(plans["plain"])).status == 0
    assert_same_run(work / "gpt_out" / "run", never_stopped("plain"))


@pytest.mark.parametrize(
    "moment",
    [
        At(forward=True, count=1),
        At(forward=True, count=7 * PARTS - 1),  # inside a step
        At(event="os.rename", path="one_00000006.npy"),  # while it validates
        At(event="os.rename", path="step_00000008"),  # while it saves
        At(forward=True, count=20 * PARTS),  # in the last step
    ],
    ids=["at once", "step", "validation", "saving", "last step"],
)
@pytest.mark.parametrize(
    "signals", [INTERRUPT, pytest.param(TERMINATE, marks=pytest.mark.thorough)], ids=["SIGINT", "SIGTERM"]
)
def test_stopped_and_continued(trainer, plans, work, never_stopped, moment, signals):
    stopped = trainer(
        *flags_for(plans["plain"]), at=At(moment.forward, moment.event, moment.path, moment.count, signals)
    )
    assert "once more leaves at once" in stopped.err and "Traceback" not in stopped.err
    run = work / "gpt_out" / "run"
    step = newest(run)
    status = json.loads((run / "run.json").read_text())["status"]
    assert len(rows(run / "train.csv")) == step
    if step == 20:
        assert stopped.status == 0 and status == "finished" and moment.count == 20 * PARTS
    else:
        assert stopped.status == 130 and status == "stopped" and "the same command continues it" in stopped.err
    assert trainer(*flags_for(plans["plain"])).status == 0
    assert_same_run(run, never_stopped("plain"))


@pytest.mark.parametrize("signals", [(signal.SIGHUP,), (signal.SIGUSR1,)], ids=["SIGHUP", "SIGUSR1"])
def test_a_closed_terminal_and_a_warning_stop_it(trainer, plans, work, never_stopped, signals):
    stopped = trainer(*flags_for(plans["plain"]), at=At(forward=True, count=6 * PARTS, signals=signals))
    run = work / "gpt_out" / "run"
    assert stopped.status == 130 and newest(run) == 6
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    assert trainer(*flags_for(plans["plain"])).status == 0
    assert_same_run(run, never_stopped("plain"))


def test_second_interrupt_leaves_at_once(trainer, plans, work, never_stopped):
    at = At(forward=True, count=6 * PARTS, signals=INTERRUPT * 2, pause=ONE_WISH_SECONDS)
    assert trainer(*flags_for(plans["plain"]), at=at).status == 130
    assert newest(work / "gpt_out" / "run") == 4  # nothing was saved any more
    assert trainer(*flags_for(plans["plain"])).status == 0
    assert_same_run(work / "gpt_out" / "run", never_stopped("plain"))


def test_two_signals_at_once_are_one_wish(trainer, plans, work, never_stopped):
    """As `timeout` signals a whole group, of which one process passes it on."""
    at = At(forward=True, count=6 * PARTS, signals=TERMINATE * 2 + INTERRUPT)
    stopped = trainer(*flags_for(plans["plain"]), at=at)
    assert stopped.status == 130 and newest(work / "gpt_out" / "run") == 6
    assert trainer(*flags_for(plans["plain"])).status == 0
    assert_same_run(work / "gpt_out" / "run", never_stopped("plain"))


@pytest.mark.parametrize(
    "at, checkpoint",
    first(
        2,
        [
            (At(forward=True, count=12 * PARTS, signals=KILL), 10),  # in the second step
            (At(event="os.rename", path="step_00000010", signals=KILL), 8),  # between the two
            (At(forward=True, count=10 * PARTS, signals=TERMINATE), 10),  # in the last step of the first
            (At(forward=True, count=17 * PARTS, signals=INTERRUPT), 17),
        ],
    ),
    ids=[
        "killed in the second",
        "killed at the end of the first",
        "stopped at the end of the first",
        "stopped in the second",
    ],
)
def test_plan_of_two_steps(trainer, plans, work, never_stopped, at, checkpoint):
    wanted = never_stopped("two_steps", "--batch-size", "4")
    assert (wanted / "checkpoints" / "step_00000010").is_dir(), "the first step's checkpoint is kept"
    first = trainer(*flags_for(plans["two_steps"], "--batch-size", "4"), at=at)
    run = work / "gpt_out" / "run"
    assert first.status == (130 if at.signals != KILL else -signal.SIGKILL) and newest(run) == checkpoint
    assert trainer(*flags_for(plans["two_steps"], "--batch-size", "4")).status == 0
    assert_same_run(run, wanted)


@pytest.mark.parametrize(
    "name",
    first(1, sorted(set(OPTIMIZERS) - {"adamw"}, key=lambda name: name != "muon")),
)
def test_optimizers_continue(trainer, plans, work, never_stopped, name):
    wanted = never_stopped("plain", "--optimizer", name)
    stopped = trainer(
        *flags_for(plans["plain"], "--optimizer", name), at=At(forward=True, count=9 * PARTS, signals=TERMINATE)
    )
    assert stopped.status == 130 and newest(work / "gpt_out" / "run") == 9
    assert trainer(*flags_for(plans["plain"], "--optimizer", name)).status == 0
    assert_same_run(work / "gpt_out" / "run", wanted)


@pytest.mark.parametrize("more", [["--amp"], ["--lr-schedule", "wsd"], ["--exp", "reverse_time"]], ids=" ".join)
def test_other_settings_continue(trainer, plans, work, never_stopped, more):
    wanted = never_stopped("answers", *more)
    killed = trainer(*flags_for(plans["answers"], *more), at=At(forward=True, count=16, signals=KILL))
    assert killed.status == -signal.SIGKILL and newest(work / "gpt_out" / "run") >= 8
    assert trainer(*flags_for(plans["answers"], *more)).status == 0
    assert_same_run(work / "gpt_out" / "run", wanted)


@pytest.mark.thorough
@pytest.mark.slow
def test_installed_command_is_killed_from_outside(plans, work, never_stopped):
    """The command as users have it; killed as soon as its second checkpoint is there."""
    command = [str(Path(sys.executable).with_name("lmp_trainer")), *flags_for(plans["plain"])]
    if not Path(command[0]).exists():
        command[:1] = [sys.executable, "-c", "from lmplay.cli.trainer import main; raise SystemExit(main())"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not (newest(work / "gpt_out" / "run") or 0) >= 8 and time.monotonic() < deadline:
            time.sleep(0.001)
        process.kill()
    assert newest(work / "gpt_out" / "run") >= 8
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert_same_run(work / "gpt_out" / "run", never_stopped("plain"))


@pytest.mark.thorough
def test_a_larger_budget_goes_on_where_the_schedule_allows(trainer, plans, work, never_stopped):
    """constant: as if the larger budget had been asked for at once. cosine: other learning rates, so refused."""
    wanted = never_stopped("plain", "--lr-schedule", "constant")
    short = [*flags_for(plans["plain"], "--lr-schedule", "constant"), "--max-steps", "12"]
    assert trainer(*short).status == 0
    assert trainer(*flags_for(plans["plain"], "--lr-schedule", "constant")).status == 0
    assert newest(work / "gpt_out" / "run") == 20
    ours, theirs = (
        run / "checkpoints" / "step_00000020" / "model.safetensors" for run in (work / "gpt_out" / "run", wanted)
    )
    assert ours.read_bytes() == theirs.read_bytes()
    assert [row for row in rows(work / "gpt_out" / "run" / "train.csv")] == rows(wanted / "train.csv")
    shutil.rmtree(work / "gpt_out")
    assert trainer(*flags_for(plans["plain"]), "--max-steps", "12").status == 0
    refused = trainer(*flags_for(plans["plain"]))
    assert "cosine" in refused.complaint and "12 steps, not 20" in refused.complaint
    assert newest(work / "gpt_out" / "run") == 12


def test_a_smaller_budget_is_an_end(trainer, plans, work):
    flags = [*flags_for(plans["two_steps"]), "--lr-schedule", "constant", "--warmup-steps", "0"]
    assert trainer(*flags, at=At(forward=True, count=14 * PARTS, signals=TERMINATE)).status == 130
    for steps in ("13", "5"):
        less = trainer(*flags, "--max-steps", steps)
        assert less.status == 0 and "is finished: 14 steps" in less.err
    assert trainer(*flags).status == 0 and newest(work / "gpt_out" / "run") == 20
