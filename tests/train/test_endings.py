"""How a training ends that does not reach its end: the model crashes, hangs, leaves, or has no room."""

import json
import os
import platform
import signal
import time

import pytest

import lmplay
from lmplay import errors
from lmplay.cli import trainer as command
from lmplay.runs.settings import Settings
from lmplay.train.loop import Trainer
from lmplay.train.setup import set_up
from lmplay.train.watchdog import Watchdog, hang_seconds
from support.small import TINY
from support.trainer_process import At

IN_STEP_3 = """
class Model(Model):
    n_calls = 0

    def body(self, tokens, cache=None):
        if self.training and tokens.device.type == "cpu":
            print("call", self.n_calls)
            self.n_calls += 1
            if self.n_calls > 4:        # two micro-batches a step
                {what}
        return super().body(tokens, cache)
"""
RAISES = 'raise ValueError("a mistake\\nof its author")'


@pytest.fixture
def trained(plans, work, experiment):
    """Trains an experiment that does `what` in its third step; returns what came of it."""

    def train(what, **how):
        experiment("mine", IN_STEP_3.format(what=what))
        fields = ("n_layer=1", "n_embd=16", "n_head=2")
        settings = Settings(
            exp="mine", set=fields, training_plan=plans["plain"], context_len=16, batch_size=4, mini_batch_size=2,
            max_steps=6, device="cpu", run_name="run",
        )  # fmt: skip
        trainer = Trainer(set_up(settings), **how)
        with pytest.raises(BaseException) as ended:
            trainer.train()
        info = json.loads((work / "gpt_out" / "run" / "run.json").read_text(encoding="utf-8"))
        log = work / "gpt_out" / "run" / "train.log"
        return ended.value, info, log.read_text(encoding="utf-8")

    return train


def test_a_model_that_crashes(trained, work, capsys):
    error, info, log = trained(RAISES)
    line = (work / "experiments" / "mine" / "model.py").read_text(encoding="utf-8").splitlines().index(
        "                " + RAISES
    ) + 1  # fmt: skip
    assert isinstance(error, errors.ModelCrashed) and "\n" not in str(error)
    assert f"in step 3: experiments/mine/model.py:{line}: ValueError: a mistake (" in str(error)
    assert "train.log" in str(error)
    assert info["status"] == "crashed" and info["progress"]["step"] == info["process"]["step"] == 2
    assert info["error"] == f"experiments/mine/model.py:{line}: ValueError: a mistake"
    assert info["process"]["ended"]
    assert "call 0\n" in log and "Traceback" in log and log.endswith("of its author\n")
    assert "call" not in capsys.readouterr().out.partition("small")[2]


@pytest.mark.parametrize(
    "what, kind, status",
    [
        ("raise SystemExit(0)", errors.ModelCrashed, "crashed"),
        ('open("no_such_file")', errors.ModelCrashed, "crashed"),
        ("tokens.requires_grad_()", errors.ModelCrashed, "crashed"),
        ('raise FloatingPointError("of its own")', errors.ModelCrashed, "crashed"),
        ('raise __import__("torch").OutOfMemoryError("no room")', errors.UserError, "stopped"),
    ],
)
def test_other_ends(trained, what, kind, status):
    error, info, _ = trained(what)
    assert type(error) is kind and info["status"] == status
    assert info["error"] and "\n" not in info["error"]


def test_what_fails_behind_the_model_is_its_crash(trained):
    """The backward pass raises; no line of the experiment runs then."""
    error, info, log = trained("hidden = super().body(tokens, cache).exp(); return hidden.add_(1)")
    assert isinstance(error, errors.ModelCrashed) and info["status"] == "crashed" and "Traceback" in log


def test_exit_status_and_one_line(plans, work, experiment, capsys):
    experiment("mine", IN_STEP_3.format(what=RAISES).replace("> 4", "> 12"))
    flags = ["--exp", "mine", *TINY[2:], "--training-plan", plans["plain"], "--max-steps", "30", "--run-name", "run"]
    assert command.main(flags) == 3
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("lmp_trainer: mine crashed in step ") and not any("Traceback" in line for line in said)


def test_a_crash_before_the_training(plans, work, experiment, capsys):
    """Reading model.py, building the model: no run has a log yet."""
    experiment("mine", RAISES)
    assert command.main(["--exp", "mine", *TINY[2:], "--training-plan", plans["plain"]]) == 3
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("lmp_trainer: experiments/mine/model.py:") and "ValueError: a mistake (" in said[-1]
    path = said[-1].partition("(")[2].partition(" has the traceback)")[0]
    with open(path, encoding="utf-8") as file:
        assert "Traceback" in file.read()


SLEEPS = IN_STEP_3.format(what="import time; time.sleep(1000)").replace("> 4", "> 20")


@pytest.fixture
def hanging(plans, experiment):
    experiment("mine", SLEEPS)
    return ["--exp", "mine", *TINY[2:], "--training-plan", plans["plain"], "--max-steps", "30", "--run-name", "run"]


def test_a_model_that_hangs_is_ended(trainer, hanging, work):
    hung = trainer(*hanging, env={"LMPLAY_HANG_SECONDS": "2"})
    assert hung.status == 6 and "it hung at experiments/mine/model.py:" in hung.err.splitlines()[-1]
    run = work / "gpt_out" / "run"
    info = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert info["status"] == "hung" and "experiments/mine/model.py:" in info["error"]
    assert "time.sleep(1000)" in (run / "train.log").read_text(encoding="utf-8")


@pytest.mark.process
@pytest.mark.skipif(os.name != "posix", reason="a system without the signals of Unix")
def test_a_hang_that_keeps_pythons_lock_is_ended(trainer, hanging, work):
    """No thread of Python can run: another process ends it."""
    file = work / "experiments" / "mine" / "model.py"
    keeps = "import ctypes; ctypes.PyDLL(None).sleep(1000)"
    file.write_text(file.read_text(encoding="utf-8").replace("import time; time.sleep(1000)", keeps), encoding="utf-8")
    hung = trainer(*hanging, env={"LMPLAY_HANG_SECONDS": "2"})
    last = hung.err.splitlines()[-1]
    assert last.startswith("run: no sign of life for ") and "it hung at experiments/mine/model.py:" in last
    assert hung.status == (6 if platform.libc_ver()[0] == "glibc" else -signal.SIGKILL)
    run = work / "gpt_out" / "run"
    info = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert info["status"] == "hung" and "experiments/mine/model.py:" in info["error"] and info["process"]["ended"]
    assert "most recent call first" in (run / "train.log").read_text(encoding="utf-8")


# in C, without Python's lock, and deaf to signals as a long product is: Python's own handlers wait
DEAF = "import ctypes; c = ctypes.CDLL(None); m = bytearray(64); b = (ctypes.c_char * 64).from_buffer(m)"
DEAF += "; c.pthread_mutex_lock(b); c.pthread_mutex_lock(b)"


@pytest.mark.process
@pytest.mark.skipif(os.name != "posix", reason="a system without the signals of Unix")
@pytest.mark.parametrize("waits", ["import time; time.sleep(1000)", DEAF], ids=["in Python", "in a long operation"])
def test_the_second_signal_ends_a_hang(trainer, hanging, work, waits):
    """The first says that it waits for what is computed."""
    file = work / "experiments" / "mine" / "model.py"
    file.write_text(file.read_text(encoding="utf-8").replace("import time; time.sleep(1000)", waits), encoding="utf-8")
    process = trainer.start(*hanging)
    log = work / "gpt_out" / "run" / "train.log"
    deadline = time.monotonic() + 100
    while not (log.exists() and "call 20" in log.read_text(encoding="utf-8")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    while "once more leaves at once" not in process.err and time.monotonic() < deadline:
        time.sleep(0.05)
    while process.status is None and time.monotonic() < deadline:  # from a second on it is a second wish
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.25)
    assert process.wait().status == 130


def test_slow_steps_and_long_waits_do_not_hang():
    hangs = []
    watchdog = Watchdog(0.4, hangs.append)
    with watchdog():
        for seconds in (0.2, 0.3, 0.3):
            time.sleep(seconds)
            watchdog.beat()
        with watchdog.resting():
            time.sleep(1.0)
        time.sleep(1.0)  # far below 10 times the longest so far
    assert not hangs
    watchdog = Watchdog(0.2, hangs.append)
    with watchdog():
        deadline = time.monotonic() + 60
        while not hangs and time.monotonic() < deadline:
            time.sleep(0.02)
    assert hangs


@pytest.mark.parametrize("text, seconds", [("", 1800.0), ("0", 0.0), ("2.5", 2.5)])
def test_how_long_is_a_setting(monkeypatch, text, seconds):
    monkeypatch.setenv("LMPLAY_HANG_SECONDS", text)
    assert hang_seconds() == seconds


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_how_long_is_no_number(monkeypatch, text):
    monkeypatch.setenv("LMPLAY_HANG_SECONDS", text)
    with pytest.raises(errors.UserError, match="LMPLAY_HANG_SECONDS"):
        hang_seconds()


def test_a_killed_run_says_so(trainer, plans, work):
    flags = [*TINY, "--training-plan", plans["plain"], "--max-steps", "6", "--run-name", "run"]
    killed = trainer(*flags, at=At(forward=True, count=5, signals=(signal.SIGKILL,)))
    assert killed.status == -signal.SIGKILL
    assert lmplay.list_runs(work / "gpt_out")["status"].tolist() == ["killed"]
