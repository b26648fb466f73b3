"""Code that came with a run is executed only if it is trusted."""

import json
import os
import py_compile
import shutil
import sys

import pytest

from lmplay.cli import generator, plotstats, trainer
from lmplay.errors import UserError
from lmplay.runs import trust
from lmplay.runs.folder import find_run
from support.results import unseal, unsealed
from support.small import TINY

MARK = "executed"


@pytest.fixture
def own(work, plans, monkeypatch):
    """A run that is made in this working folder, and a data folder that knows it."""
    monkeypatch.delenv("LMPLAY_TRUST_CODE", raising=False)
    flags = ["--training-plan", plans["plain"], "--max-steps", "2", "--run-name", "own"]
    assert trainer.main([*TINY, *flags]) == 0
    return work / "gpt_out" / "own"


@pytest.fixture
def stranger(own, monkeypatch, tmp_path):
    """A copy of the run whose code leaves a mark when it is executed, in a data folder that has not seen it."""
    run = own.parent / "a stranger's"
    shutil.copytree(own, run)
    shutil.rmtree(run / "code" / "gpt2ish" / "__pycache__", ignore_errors=True)
    with open(run / "code" / "gpt2ish" / "model.py", "a") as file:
        file.write(f"\n\nopen({str(own.parent.parent / MARK)!r}, 'w').close()\n")
    return run


def write(run, *flags):
    return generator.main(["--run", str(run), "--max-len", "3", "--device", "cpu", *flags, "a"])


def executed(run):
    return (run.parent.parent / MARK).exists()


def test_a_run_that_was_made_here_needs_no_word(own, monkeypatch, tmp_path):
    assert write(own) == 0
    unseal(own)
    code = own / "code" / "gpt2ish" / "model.py"
    code.write_text(code.read_text() + "\n\nhelper = 1\n")
    assert write(own) == 2
    # what equals an installed experiment needs none either, whoever made it
    code.write_text("# a comment\n" + code.read_text().replace("\n\nhelper = 1\n", ""))
    monkeypatch.setenv("LMPLAY_DATA", str(tmp_path / "another"))
    assert write(own) == 0


def test_a_strangers_run_is_refused_with_the_command_that_trusts_it(stranger, capsys):
    assert write(stranger) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "not made here" in line and not executed(stranger)
    import shlex

    command = line.partition("trust it with ")[2].partition(" (LMPLAY")[0]
    name, *flags = shlex.split(command)
    assert name == "lmp_trainer" and trainer.main(flags) == 0
    assert write(stranger) == 0 and executed(stranger)
    moved = stranger.with_name("moved")
    stranger.rename(moved)
    assert write(moved) == 0


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_other_ways_to_trust(stranger, how, monkeypatch):
    if how == "environment":
        monkeypatch.setenv("LMPLAY_TRUST_CODE", "1")
    assert write(stranger, *(["--trust-code", str(stranger.parent)] if how == "flag" else [])) == 0
    assert executed(stranger)
    monkeypatch.delenv("LMPLAY_TRUST_CODE", raising=False)
    assert write(stranger) == (0 if how == "flag" else 2)


def _package(code):
    (code / "model").mkdir()
    (code / "model" / "__init__.py").write_bytes((code / "model.py").read_bytes())


def _link(code):
    elsewhere = code.parent.parent.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / "__init__.py").write_bytes((code / "model.py").read_bytes())
    (code / "model").symlink_to(elsewhere)


def _bytecode(code):
    (code / "other.py").write_text("x = 1\n")


@pytest.mark.parametrize("trick", [_package, _link, _bytecode])
def test_nothing_can_be_added_to_trusted_code(own, trick, capsys):
    trick(own / "code" / "gpt2ish")
    assert write(own) == 2 and "not made here" in capsys.readouterr().err


def test_bytecode_and_libraries_beside_the_source_are_not_executed(own, stranger):
    code, evil = own / "code" / "gpt2ish" / "model.py", stranger / "code" / "gpt2ish" / "model.py"
    stat = code.stat()
    cached = code.parent / "__pycache__" / f"model.{sys.implementation.cache_tag}.pyc"
    py_compile.compile(str(evil), cfile=str(cached), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    os.utime(code, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert write(own) == 0 and not executed(stranger)


def test_a_run_whose_experiment_has_the_name_of_what_is_left_out(own, stranger):
    (stranger / "code" / "gpt2ish").rename(stranger / "code" / "__pycache__")
    shutil.copytree(own / "code" / "gpt2ish", stranger / "code" / "gpt2ish")
    info = json.loads((stranger / "run.json").read_text())
    info["experiment"]["name"] = "__pycache__"
    (stranger / "run.json").write_text(json.dumps(unsealed(info)))
    assert write(stranger) == 2 and not executed(stranger)


def test_plots_and_reports_execute_nothing(stranger):
    assert plotstats.main(["--report", "--each-run"]) == 0
    assert find_run(stranger, stranger.parent).config["n_layer"] == 1
    assert not executed(stranger)


def test_a_folder_without_runs_is_said(work, capsys):
    assert trainer.main(["--trust-code", str(work)]) == 2
    assert "no run's folder" in capsys.readouterr().err


def test_code_with_links_is_not_trusted(stranger):
    (stranger / "code" / "more").symlink_to("gpt2ish")
    with pytest.raises(UserError, match="links"):
        trust.trust_below(stranger)
