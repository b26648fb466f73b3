"""Commands on systems that lack what Linux has: Windows, a device without float64, torch without oneDNN, no locks."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).parent / "support" / "other_systems.py"
MODEL = "--exp gpt2ish:tiny --set n_layer=1 --set n_embd=16 --set n_head=2"
REST = "--context-len 16 --batch-size 4 --device cpu --data text.txt --tokenizer bytes --validation-tokens 200"
TEXT = "".join(f"In the {n}th year the ship came back, and {n * 7} people saw it.\n\n" for n in range(60))


@pytest.fixture
def run(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")

    def run(what, *commands):
        """Run commands one after another in one process; return their statuses and all that was said."""
        found = subprocess.run(
            [sys.executable, str(DRIVER), what],
            input="\n".join(commands),
            cwd=tmp_path,
            env=os.environ | {"LMPLAY_DATA": str(tmp_path / "data"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=500,
        )
        lines = found.stdout.splitlines()
        return json.loads(lines[-1]) if lines and lines[-1].startswith("[") else None, found.stdout + found.stderr

    return run


def losses(folder):
    with open(folder / "train.csv", newline="", encoding="utf-8") as file:
        return [row["loss"] for row in csv.DictReader(file)]


@pytest.mark.process
def test_windows(run, tmp_path):
    """Train, stop and go on, compare (which starts processes), write and plot; the losses are those of here."""
    statuses, said = run(
        "windows",
        f"trainer {MODEL} {REST} --max-steps 4 --lr-schedule constant --run-name r",
        f"trainer {MODEL} {REST} --max-steps 4 --lr-schedule constant --run-name r --extra-steps 2",
        "generator Once --run r --max-len 5 --device cpu",
        "plotstats r",
        f"compare --exp llama2:tiny --baseline gpt2ish:tiny {MODEL.partition(':tiny ')[2]} {REST} "
        "--seeds 1 --max-steps 2 --no-report",
    )
    assert statuses == [0, 0, 0, 0, 0], said
    statuses, said = run("no_onednn", f"trainer {MODEL} {REST} --max-steps 4 --lr-schedule constant --run-name here")
    assert statuses == [0], said
    assert losses(tmp_path / "gpt_out" / "r")[:4] == losses(tmp_path / "gpt_out" / "here")


@pytest.mark.process
@pytest.mark.thorough
def test_no_float64(run):
    statuses, said = run(
        "no_float64",
        f"trainer {MODEL} {REST} --max-steps 2 --loss-by-position 2 --run-name r",
        "generator --score text.txt --run r --device cpu",
        "cleanmodel r -o big --bolt-on unified_embedding:tiny --device cpu",
        "generator Once --run big --max-len 3 --device cpu",
    )
    assert statuses == [0, 0, 0, 0], said


@pytest.mark.thorough
@pytest.mark.process
def test_torch_without_onednn(run):
    statuses, said = run("no_onednn", f"trainer {MODEL} {REST} --amp --max-steps 1 --run-name r")
    assert statuses == [0], said


@pytest.mark.process
def test_a_disk_without_locks(run, tmp_path):
    statuses, said = run("no_locks", f"trainer {MODEL} {REST} --max-steps 1 --run-name r")
    assert statuses == [2]
    assert "locks" in said and str(tmp_path) in said and "LMPLAY_DATA" in said
    assert "Traceback" not in said
