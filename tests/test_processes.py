"""Worker processes: they never run the user's program again, and they end with the process that started them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
print("top level")
from lmplay.runs.settings import Settings
from lmplay.train.worker import train_apart

settings = Settings(
    exp="pldr:tiny", data=("one.txt",), tokenizer="bytes", context_len=32, batch_size=2, max_steps=2,
    validation_tokens=64, device="cpu", run_name="scripted",
)
print(train_apart(settings, ["script.py"]))
print(__file__, __spec__)
"""
POOL = """
print("top level")
from concurrent.futures import ProcessPoolExecutor
from lmplay.processes import worker_context

with ProcessPoolExecutor(2, worker_context()) as pool:
    print(sum(pool.map(abs, [-1, -2])))
"""
WAITING = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from lmplay.processes import end_with_parent, worker_context

pool = ProcessPoolExecutor(1, worker_context(), end_with_parent)
print(pool.submit(os.getpid).result(), flush=True)
time.sleep(300)
"""


def run_script(folder: Path, text: str) -> list[str]:
    (folder / "script.py").write_text(text, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "LMPLAY_EXPERIMENTS": str(ROOT / "experiments")}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.thorough
@pytest.mark.process
def test_a_script_without_a_main_guard_trains_and_runs_once(tmp_path):
    (tmp_path / "one.txt").write_text("a line of text to train on\n" * 200, encoding="utf-8")
    first, status, main = run_script(tmp_path, SCRIPT)
    assert (first, status) == ("top level", "finished")
    assert main == f"{tmp_path / 'script.py'} None" or main == "script.py None"  # as it was before


@pytest.mark.process
def test_a_pool_in_a_script_without_a_main_guard(tmp_path):
    assert run_script(tmp_path, POOL) == ["top level", "3"]


@pytest.mark.process
def test_a_program_that_is_typed_in_may_start_workers(tmp_path):
    """As at a prompt or in a notebook: there is no file of the program."""
    done = subprocess.run([sys.executable, "-"], input=POOL, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == ["top level", "3"], done.stderr


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for the worker in /proc")
def test_a_worker_ends_with_its_parent(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", WAITING], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    worker = Path("/proc") / parent.stdout.readline().strip()
    assert worker.name.isdigit() and worker.exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 30
    while worker.exists() and "\nState:\tZ" not in (worker / "status").read_text() and time.monotonic() < end:
        time.sleep(0.05)
    assert time.monotonic() < end
