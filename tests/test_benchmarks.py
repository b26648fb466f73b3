"""The scripts of benchmarks/: they answer `--help`, and what they take from lmplay is there."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lmplay.runs.run import read_run
from support.scripts import script, small_families

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_names_from_lmplay_exist(path):
    """Also those that a function imports when it is called."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "lmplay":
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def test_what_they_ask_of_a_trainer_exists():
    """Two scripts step a Trainer by hand, so its methods and attributes must be those that they name."""
    loop = ast.parse((ROOT / "lmplay" / "train" / "loop.py").read_bytes())
    (trainer,) = [node for node in loop.body if isinstance(node, ast.ClassDef) and node.name == "Trainer"]
    known = {node.name for node in trainer.body if isinstance(node, ast.FunctionDef)}
    known |= {node.attr for node in ast.walk(trainer) if isinstance(node, ast.Attribute)}
    for path in SCRIPTS:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "trainer":
                assert node.attr in known, f"{path.name}:{node.lineno} trainer.{node.attr}"


@pytest.mark.process
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_help(path, tmp_path):
    done = subprocess.run(
        [sys.executable, path, "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "--" in done.stdout


def test_the_table_of_what_is_captured_is_that_of_the_results():
    """Every experiment is in it: after a new one, `python benchmarks/gpu_check.py table` has its line for the docs."""
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    table = text.partition("<!-- captured -->\n")[2].partition("\n<!-- /captured -->")[0]
    assert table.splitlines() == script("gpu_check").table_rows()


def test_the_table_of_speed_is_that_of_the_results():
    """After new results, `python benchmarks/speed.py --table` writes it."""
    committed = script("parts/committed")
    text = committed.PAGE.read_text(encoding="utf-8")
    table = text.partition(committed.BEGIN)[2].partition("\n" + committed.END)[0]
    assert table.splitlines() == committed.table_rows()


def test_what_became_slower_is_said():
    slower = script("parts/committed").slower
    times = {"a shape": {"sides": {"eager": {"milliseconds": 10.0, "milliseconds_quartiles": [9.0, 11.0]}}}}
    rates = {"MB/s": {"lmplay": {"median": 50.0, "ratio": 1.0, "quartiles": [1, 1], "median_quartiles": [48.0, 52.0]}}}

    def by(factor, found):
        if isinstance(found, dict):
            return {name: by(factor, value) for name, value in found.items()}
        return [factor * value for value in found] if isinstance(found, list) else factor * found

    for found, worse, better in ((times, 1.3, 0.7), (rates, 0.7, 1.3)):
        assert slower(found, found, ("part",)) == slower(by(better, found), found, ("part",)) == []
        [line] = slower(by(worse, found), found, ("part",))
        assert line.startswith("slower than committed: part, ")
    assert slower({"new": 1}, None, ("part",)) == []


@pytest.mark.thorough
@pytest.mark.process
def test_families_trains_side_by_side_what_its_rows_need(plans, work, capfd):
    settings = {"training_plan": plans["plain"], "max_steps": 6, "out": "out", "on": "processes:2"}
    begun = []
    for _ in range(2):
        assert small_families(script("families"), **settings) == ["itself", "llama2:tiny"]
        begun.append(re.findall(r"^run \d+ of \d+: .* -> (\S+)", capfd.readouterr().err, re.M))
    assert len(begun[0]) == len(set(begun[0])) == 8 and begun[1] == []  # the second time all is there
    runs = [read_run(path.parent) for path in work.glob("out/*/run.json")]
    assert sorted((run.spec, run.get("settings", "seed")) for run in runs) == [
        *(("gpt2ish:tiny", seed) for seed in range(4)),
        *((spec, seed) for spec in ("gpt2ish:tiny_wide", "llama2:tiny") for seed in range(2)),
    ]
    assert {run.get("progress", "step") for run in runs} == {6}
