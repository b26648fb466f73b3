"""Folders and files where a command does not expect them: each flag that takes a path, and each kind of oddity."""

import os
import shutil
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")

from lmplay.cli import cleanmodel, compare, generator, plotstats, probe, tokenizer, trainer
from lmplay.cli import eval as lmp_eval
from support.fuzzing import Tally
from support.small import TINY, make_text

pytestmark = pytest.mark.slow
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
    "two dashes": "--",
    "quotes": "'a\"b`c",
    "percents": "%s%n%",
    "read-only": "frozen",
    "below what is read-only": "frozen/x",
    "unreadable": "closed",
    "below what is unreadable": "closed/x",
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
    for name, mode in (("frozen", 0o555), ("closed", 0o000)):
        (work / name).mkdir()
        (work / name).chmod(mode)
    import socket

    socket.socket(socket.AF_UNIX).bind("socket")
    yield work
    for name in ("frozen", "closed"):
        (work / name).chmod(0o755)


@pytest.fixture
def tally():
    tally = Tally()
    yield tally
    assert not tally.faults, "\n\n".join(f"=== {key}\n{case}" for key, case in tally.faults.items())


WAITED_FOR = ("pipe",)  # a pipe is written to once it has a reader
DATA = ["--data", "text.txt", "--tokenizer", "bytes", "--max-steps", "1"]


def train(*flags):
    return [*TINY, *DATA, *flags]


def some(cases):
    """Return the cases; a ninth of them, from all over, unless LMPLAY_FUZZ=full."""
    return cases if os.environ.get("LMPLAY_FUZZ") == "full" else cases[::9]


def test_paths_of_the_trainer(here, tally):
    assert trainer.main(train("--dry-run")) == 0
    cases = []
    for odd in ODD.values():
        cases += [train(f"{flag}={odd}") for flag in ("--out", "--run-name")]
        for flag in ("--use-config", "--initial-model", "--trust-code", "--copy", "--tokenizer", "--set", "--diff"):
            cases.append(train(f"{flag}={odd}", "--dry-run"))
        cases += [train(f"{flag}={odd}", "--dry-run") for flag in ("--prompts", "--recipe", "--validation-data")]
        cases += [[f"{flag}={odd}"] for flag in ("--verify", "--prune")]
        cases += [train("--dry-run", "--tokenizer", f"{kind}:{odd}") for kind in ("bpe", "sentencepiece")]
        cases.append([*TINY, *DATA[2:], f"--training-plan={odd}", "--dry-run"])
        cases.append([*TINY, *DATA[2:], "--dry-run", "--data", odd, "text.txt"])
    for argv in some(cases):
        tally.run(trainer.main, argv)
    assert (here / "file").read_text() == "x"


@pytest.mark.parametrize("variable", ["LMPLAY_DATA", "LMPLAY_EXPERIMENTS", "LMPLAY_OUT", "LMPLAY_TRUST_CODE", "HOME"])
def test_paths_in_the_environment(here, tally, monkeypatch, variable):
    if variable == "HOME":
        monkeypatch.delenv("LMPLAY_DATA")
    for odd in some(list(ODD.values())):
        monkeypatch.setenv(variable, odd)
        tally.run(trainer.main, train("--run-name", "r"), odd)
        tally.run(generator.main, ["--max-len", "1", "--device", "cpu", "a"], odd)


@pytest.mark.thorough
def test_paths_of_other_commands(here, tally):
    assert trainer.main(train("--run-name", "r")) == 0
    Path("few.txt").write_text("a few words")
    write = ["--run", "r", "--max-len", "1", "--device", "cpu"]
    cases = []
    for odd in ODD.values():
        cases += [
            (generator, [f"--run={odd}", *write[2:]]),
            (generator, [*write, "--", odd]),
            (generator, [*write, f"--dump-tensors={odd}", "a"]),
            (generator, ["--run", "r", "--device", "cpu", f"--save-attention={odd}", "a"]),
            (generator, ["--run", "r", "--device", "cpu", f"--score={odd}"]),
            (generator, ["--run", "r", "--device", "cpu", "--score=few.txt", f"-o={odd}"]),
            (generator, [*write, f"--prompts={odd}"]),
            (generator, [f"--out={odd}", "--list"]),
            (lmp_eval, [f"--out={odd}", "--tasks", "x.yaml", "--", "r"]),
            (lmp_eval, ["r", f"--tasks={odd}", "--device", "cpu"]),
            (lmp_eval, ["--tasks", "x.yaml", "--device", "cpu", "--", odd]),
            (cleanmodel, ["r", f"-o{odd}", "--format", "hf", "--text", "text.txt", "--device", "cpu"]),
            (cleanmodel, ["-o", "made", "--", odd]),
            (cleanmodel, ["r", "-o", "made", f"--bolt-on={odd}", "--device", "cpu", "--text", "text.txt"]),
            (cleanmodel, ["r", f"-o{odd}", "--text", "text.txt", "--device", "cpu"]),
            (cleanmodel, ["r", "-o", "made", f"--text={odd}", "--device", "cpu"]),
            (plotstats, ["--", odd]),
            (plotstats, [f"--out={odd}"]),
            *[(plotstats, ["r", "--split=validate", f"{flag}={odd}"]) for flag in ("--to", "--baseline", "--group")],
            *[(plotstats, ["r", "--split=validate", f"--json={odd}"])] * (odd not in WAITED_FOR),
            (plotstats, ["r", "--split=validate", "--report", f"--to={odd}"]),
            (probe, ["--exp", "nothing_such", f"--out={odd}"]),
            (probe, [f"--exp={odd}", "--max-steps", "1"]),
            (probe, ["--exp", "gpt2ish", f"--tasks={odd}", "--max-steps", "1"]),
            (compare, ["--dry-run", "--exp", "gpt2ish", *TINY[2:], *DATA, f"--baseline={odd}"]),
            (compare, [f"--from={odd}"]),
            (tokenizer, ["inspect", "--", odd]),
            (tokenizer, ["encode", "bytes", "--", odd]),
            (tokenizer, ["train", "--vocab-size", "270", f"-o={odd}", "text.txt"]),
            (compare, ["--dry-run", "--exp", "gpt2ish", *TINY[2:], *DATA, f"--out={odd}"]),
        ]
    for main, argv in some(cases):
        tally.run(main.main, argv)
        shutil.rmtree("made", ignore_errors=True)
    assert (here / "file").read_text() == "x" and Path("text.txt").stat().st_size
