"""A candidate that crashes is listed, and the others are judged."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lmplay.cli import compare as command
from lmplay.runs.folder import only_trainer
from support.small import ROOT, TINY

pytestmark = pytest.mark.process  # runs are trained in processes of their own

CRASHES = """
class Model(Model):
    def body(self, tokens, cache=None):
        if self.training and tokens.shape[0] > 1:
            raise RuntimeError("a mistake of the author")
        return super().body(tokens, cache)
"""


@pytest.fixture
def flags(plans, work):
    return ["--training-plan", plans["plain"], *TINY[2:], "--max-steps", "8", "--seeds", "1", "--no-report"]


def row_of(text: str, label: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"{label} "))


def test_the_others_are_judged(flags, experiment, capfd):
    experiment("crashes", CRASHES)
    candidates = ["--exp", "crashes:tiny", "llama2:tiny", "--baseline", "gpt2ish:tiny"]
    assert command.main([*flags, *candidates]) == 3
    out, err = capfd.readouterr()
    assert row_of(out, "crashes:tiny").endswith("crashed") and not row_of(out, "llama2:tiny").endswith(" none")
    assert (
        "crashes:tiny: no verdict: its training crashed: crashes crashed in step 1: experiments/crashes/model.py" in out
    )
    assert "the others go on" in err and "Traceback" not in err
    again = command.main([*flags, *candidates])  # nothing is trained
    out, err = capfd.readouterr()
    assert again == 3 and row_of(out, "crashes:tiny").endswith("crashed") and "run 1 of" not in err
    assert "crashed before, under the same code: experiments/crashes/model.py" in err
    last = ["--exp", "llama2:tiny", "crashes:tiny", "--baseline", "gpt2ish:tiny"]  # its second seed is not waited for
    assert command.main([*flags, *last, "--retry-crashed", "--seeds", "2"]) == 3
    assert "run 1 of 4: crashes:tiny, seed 0" in capfd.readouterr().err


def test_one_that_cannot_be_loaded(flags, experiment, capfd):
    experiment("mistyped", "import no_such_module_anywhere")
    candidates = ["--exp", "mistyped:tiny", "llama2:tiny", "--baseline", "gpt2ish:tiny"]
    assert command.main([*flags, *candidates]) == 2
    out, _ = capfd.readouterr()
    assert row_of(out, "mistyped:tiny").endswith("crashed") and not row_of(out, "llama2:tiny").endswith(" none")


def test_a_single_candidate_ends_the_comparison(flags, experiment, capfd):
    experiment("crashes", CRASHES)
    assert command.main([*flags, "--exp", "crashes:tiny", "--baseline", "gpt2ish:tiny"]) == 3
    out, err = capfd.readouterr()
    assert out == "" and "a mistake of the author" in err.splitlines()[-1]


PRINTS = """
print("loaded")

class Model(Model):
    def body(self, tokens, cache=None):
        print("called")
        return super().body(tokens, cache)
"""


def test_what_a_model_prints_is_in_its_log(flags, experiment, capfd, work):
    experiment("prints", PRINTS)
    assert command.main([*flags, "--exp", "prints:tiny", "--baseline", "gpt2ish:tiny"]) == 0
    out, _ = capfd.readouterr()
    assert "loaded" not in out and "called" not in out and out.startswith(" ")
    (log,) = (work / "gpt_out").glob("prints*/train.log")
    assert "loaded\n" in log.read_text(encoding="utf-8") and "called\n" in log.read_text(encoding="utf-8")
    assert not list((work / "gpt_out").glob("gpt2ish*/train.log"))


DIVERGES = """
class Model(Model):
    def body(self, tokens, cache=None):
        hidden = super().body(tokens, cache)
        return hidden if hidden.is_meta else hidden * float("nan")
"""


def test_all_seeds_of_a_candidate_diverge(flags, experiment, capfd):
    experiment("diverges", DIVERGES)
    models = ["--exp", "diverges:tiny", "--baseline", "gpt2ish:tiny", "--allow-leak"]
    assert command.main([*flags, *models]) == 4
    assert "diverged" in capfd.readouterr().out


def test_a_run_that_another_process_trains_is_waited_for(flags, capfd, work):
    """The candidate's run is held meanwhile; the baseline's comes first, and the candidate's once it is free."""
    models = ["--exp", "llama2:tiny", "--baseline", "gpt2ish:tiny"]
    assert command.main([*flags, *models, "--dry-run"]) == 0
    folders = {
        line.partition(":")[0]: line.split("-> ")[1].partition(";")[0]
        for line in capfd.readouterr().out.splitlines()[:2]
    }
    held, looks = threading.Event(), []

    def hold_until_it_waits():
        lock = only_trainer(work / folders["llama2"])  # a lock is of one thread
        held.set()
        deadline = time.monotonic() + 100
        while "waiting for" not in "".join(looks) and time.monotonic() < deadline:
            looks.append(capfd.readouterr().err)
            time.sleep(0.05)
        lock.release()

    thread = threading.Thread(target=hold_until_it_waits, daemon=True)
    thread.start()
    held.wait()
    assert command.main([*flags, *models]) == 0
    thread.join()
    said = "".join(looks) + capfd.readouterr().err
    assert "llama2:tiny, seed 0: another process trains it" in said
    assert (work / folders["llama2"] / "run.json").is_file() and not (work / f"{folders['llama2']}_2").exists()


@pytest.mark.slow
def test_a_signal_to_the_whole_group_loses_nothing(flags, work):
    """As `timeout` sends it: to lmp_compare, to its trainer, and to what started that."""
    words = [*flags, "--max-steps", "1000000", "--validation-interval", "1000", "--exp", "llama2:tiny"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "LMPLAY_EXPERIMENTS": str(ROOT / "experiments")}
    line = [sys.executable, "-m", "lmplay.cli.compare", *words, "--baseline", "gpt2ish:tiny"]
    process = subprocess.Popen(line, cwd=work, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 200
    while not list(work.glob("gpt_out/*/run.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=100)[1]
    assert process.returncode == 130 and "the same command goes on" in said and "Traceback" not in said
    (run,) = work.glob("gpt_out/*/run.json")
    assert json.loads(run.read_text(encoding="utf-8"))["status"] == "stopped"
    assert list(run.parent.glob("checkpoints/step_*"))
