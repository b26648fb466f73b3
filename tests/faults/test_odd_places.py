"""Folders and files where a command does not expect them: each flag that takes a path, and each kind of oddity."""

import os
import shutil
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")

from lmplay.cli import cleanmodel, compare, generator, plotstats, tokenizer, trainer
from support.fuzzing import Tally
from support.small import TINY, make_text

ODD = {
    "a file": "file",
    "below a file": "file/below",
    "missing": "nothing/at/all",
    "a pipe": "pipe",
    "a device": "/dev/zero",
    "nothing": "/dev/null",
    "of the system": "/proc/self",
    "a file of the system": "/proc/self/mem",
    "a loop": "loop",
    "a dead link": "dead",
    "a long name": "x" * 300,
    "a long path": "/".join(["x" * 200] * 30),
    "a home": "~/in a home",
    "nobody's home": "~nobody_such/x",
    "brackets": "a[1]",
    "spaces": " a b ",
    "letters": "größe \U0001f600",
    "direction": "\u202eabc",
    "bytes": "caf\udce9",
    "a line break": "a\nb",
    "a control character": "a\x1b[31mb",
    "dots": "../x/..",
    "dashes": "--x",
    "empty": "",
    "a folder": "folder",
    "a socket": "socket",
}


@pytest.fixture
def here(work, monkeypatch):
    """A working folder with what the odd names mean, a text and a run."""
    monkeypatch.setenv("HOME", str(work / "home"))
    (work / "home").mkdir()
    (work / "folder").mkdir()
    (work / "file").write_text("x")
    os.mkfifo(work / "pipe")
    (work / "loop").symlink_to("loop")
    (work / "dead").symlink_to("nowhere")
    (work / "text.txt").write_text(make_text(40, 1), encoding="utf-8")
    import socket

    socket.socket(socket.AF_UNIX).bind("socket")
    return work


@pytest.fixture
def tally():
    tally = Tally()
    yield tally
    assert not tally.faults, "\n\n".join(f"=== {key}\n{case}" for key, case in tally.faults.items())


DATA = ["--data", "text.txt", "--tokenizer", "bytes", "--max-steps", "1"]


def train(*flags):
    return [*TINY, *DATA, *flags]


def test_paths_of_the_trainer(here, tally):
    assert trainer.main(train("--dry-run")) == 0
    trains = ["--out", "--run-name"]
    asks = [
        "--training-plan",
        "--use-config",
        "--initial-model",
        "--trust-code",
        "--copy",
        "--tokenizer",
        "--set",
        "--diff",
    ]
    for flag in trains + asks:
        for odd in ODD.values():
            more = [] if flag in trains else ["--dry-run"]
            argv = [
                *TINY,
                *DATA[2:],
                *(["--data", "text.txt"] if flag != "--training-plan" else []),
                f"{flag}={odd}",
                *more,
            ]
            tally.run(trainer.main, argv)
    for odd in ODD.values():
        tally.run(
            trainer.main, [*TINY, "--tokenizer", "bytes", "--max-steps", "1", "--dry-run", "--data", odd, "text.txt"]
        )
        tally.run(trainer.main, train("--dry-run", "--tokenizer", f"bpe:{odd}"))
        tally.run(trainer.main, train("--dry-run", "--tokenizer", f"sentencepiece:{odd}"))
    assert (here / "file").read_text() == "x"


@pytest.mark.parametrize("variable", ["LMPLAY_DATA", "LMPLAY_EXPERIMENTS", "HOME"])
def test_paths_in_the_environment(here, tally, monkeypatch, variable):
    for odd in ODD.values():
        if variable == "HOME":
            monkeypatch.delenv("LMPLAY_DATA", raising=False)
        monkeypatch.setenv(variable, odd)
        tally.run(trainer.main, train("--run-name", "r"), odd)
        tally.run(generator.main, ["--max-len", "1", "--device", "cpu", "a"], odd)


def test_paths_of_other_commands(here, tally):
    assert trainer.main(train("--run-name", "r")) == 0
    for odd in ODD.values():
        tally.run(generator.main, ["--run", odd, "--max-len", "1", "--device", "cpu"])
        tally.run(generator.main, ["--run", "r", "--max-len", "1", "--device", "cpu", "--", odd])
        tally.run(generator.main, ["--run", "r", "--device", "cpu", f"--dump-tensors={odd}", "a"])
        tally.run(generator.main, [f"--out={odd}", "--list"])
        tally.run(cleanmodel.main, ["r", f"-o{odd}", "--text", "text.txt", "--device", "cpu"])
        tally.run(cleanmodel.main, ["r", "-o", "made", f"--text={odd}", "--device", "cpu"])
        shutil.rmtree("made", ignore_errors=True)
        tally.run(plotstats.main, ["--", odd])
        tally.run(plotstats.main, [f"--out={odd}"])
        tally.run(tokenizer.main, ["inspect", "--", odd])
        tally.run(tokenizer.main, ["encode", "bytes", "--", odd])
        tally.run(tokenizer.main, ["train", "--vocab-size", "270", f"-o={odd}", "text.txt"])
        tally.run(compare.main, ["--dry-run", "--exp", "gpt2ish", *TINY[2:], *DATA, f"--out={odd}"])
    assert (here / "file").read_text() == "x" and Path("text.txt").stat().st_size
