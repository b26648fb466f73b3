"""The scripts of benchmarks/: they answer `--help`, and what they take from lmplay is there."""

import argparse
import ast
import importlib
import json
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


def test_the_page_of_ladders_has_verdicts_and_multipliers(tmp_path, monkeypatch):
    page = script("results_page")
    rung = {"rung": "2x64", "parameters": 229376, "tokens": 1146880, "pairs": 4, "verdict": "better"}
    rung |= {"baseline_loss": 4.66, "candidate_loss": 4.26, "difference": -0.4, "low": -0.45, "high": -0.35}
    rung |= {"ln_m_flops": 0.9, "ln_m_flops_low": 0.7, "ln_m_flops_high": None, "beyond": False}
    rung |= {"ln_m_seconds": None, "ln_m_seconds_low": None, "ln_m_seconds_high": None}
    rung |= {"baseline_flops": 2.3e12, "candidate_flops": 2.1e12, "verdict_at_rung": {}}
    law = {"limit": 2.0, "factor": 2.5, "exponent": 0.2, "center": 28.0}
    ladder = {"model": "modern:d2", "baseline": "llama2:6l", "sentences": ["better over the ladder"], "law": law}
    ladder |= {"notes": ["a note"], "below": [{"flops": 4e11, "loss": 5.1}]}
    ladder["rungs"] = [rung, rung | {"rung": "3x96", "baseline_flops": 1e13, "candidate_flops": 1e13}]
    for name in ("KEPT", "PAGE", "PICTURE"):
        monkeypatch.setattr(page, name, tmp_path / name)
    (tmp_path / "one.json").write_text(json.dumps({"state": "done", "ladders": [ladder]}))
    (tmp_path / "two.json").write_text(json.dumps({"ladders": [ladder | {"baseline": "gpt2ish:tiny"}]}))
    monkeypatch.setattr(sys, "argv", ["results_page.py", str(tmp_path / "one.json"), "--command", "lmp_compare it"])
    page.main()
    monkeypatch.setattr(sys, "argv", ["results_page.py", str(tmp_path / "two.json"), str(tmp_path / "one.json")])
    page.main()
    text = (tmp_path / "PAGE").read_text()
    assert text.count("## `modern:d2` against") == 2 and text.count("lmp_compare it") == 1
    assert "| 2x64 | 229,376 | 1,146,880 | 4 | 4.6600 | 4.2600 | -0.4000 | -0.4500 to -0.3500 | better |" in text
    assert "2.46 (2.01 to any)" in text and "M in seconds" not in text
    assert (tmp_path / "PICTURE").read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "one.json").write_text(json.dumps({"state": "running"}))
    with pytest.raises(SystemExit, match="no finished ladder"):
        page.read(tmp_path / "one.json")


def test_the_page_of_the_families_begins_with_the_tuned_ones():
    families = script("families")
    rung = {"rung": "2x64", "tokens": 458752, "batch_size": 16, "pairs": 4, "verdict": "better", "baseline_loss": 4.1}
    rung |= {"difference": -0.1, "low": -0.12, "high": -0.08, "ln_m_flops": 0.25, "ln_m_flops_low": 0.2}
    rung |= {"ln_m_flops_high": 0.3, "beyond": False, "all_parameters": 500_000, "baseline_parameters": 400_000}
    rung |= {"deployed": 400_000, "settings": {"attention_position:tiny": {"lr": 0.003, "embedding_lr": 4.0}}}
    row = {"sentences": ["better over the ladder", "trend not decided"], "notes": [], "device": "CPU", "torch": "2.13"}
    found = {"2": {"attention_position:tiny against gpt2ish:tiny": row | {"rungs": [rung]}}}
    found["2"]["unified_embedding:tiny against gpt2ish:tiny"] = {"why_none": "it crashed"}
    text = "\n".join(families.tuned_lines(found))
    assert "## Tuned, against `gpt2ish`, 2 tokens per parameter" in text and "it crashed" in text
    cells = "better | -0.1000 | -0.1200 to -0.0800 | 4 | 1.28 (1.22 to 1.35) | 0.50 (+25%) | 0.40 | lr 0.003"
    assert f"| `attention_position:tiny` | 2x64 | {cells}, embedding_lr 4 |" in text
    left_out = text.partition("Not trained for this table: ")[2]
    assert "`modern_pldr:d2`" in left_out and "`attention_position:tiny`" not in left_out
    assert "is not there yet" in "\n".join(families.tuned_lines({}))
    assert families.PAGE.read_text(encoding="utf-8") == families.page(json.loads(families.RESULTS.read_text("utf-8")))


@pytest.mark.thorough
@pytest.mark.process
def test_tuned_families_trains_nothing_twice(plans, work, monkeypatch, capfd):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    tuned = script("tuned_families")
    monkeypatch.setattr(tuned, "TUNED", work / "tuned.json")
    monkeypatch.setattr(tuned, "LADDERS", {2: "1x16,1x32"})
    monkeypatch.setattr(tuned, "PAIRS", {2: (2, 2)})
    monkeypatch.setattr(tuned, "GRIDS", {"gpt2ish:tiny": ("lr=0.001,0.002", "embedding_lr=1,4")})
    monkeypatch.setattr(tuned.families, "write_page", lambda: None)
    args = argparse.Namespace(k=1, third=False, extend=0, jobs=2, plan=plans["plain"], out=work / "out", minutes=None)
    pairs, found, begun = [tuned.Pair(name, "gpt2ish:tiny") for name in ("llama2:tiny", "attention_norm:tiny")], {}, []
    for _ in range(2):
        tuned.train(pairs, args, found)
        begun.append(re.findall(r"^run \d+ of \d+: .* -> (\S+)", capfd.readouterr().err, re.M))
    assert len(begun[0]) == len(set(begun[0])) == 3 * (4 + 2 * 2 + 2) + 2 and begun[1] == []
    assert set(json.loads((work / "tuned.json").read_text())["1"]) == {
        tuned.name_of(*vars(pair).values()) for pair in pairs
    }
