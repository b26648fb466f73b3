"""What the commands share: words in, an exit status out, --version, examples."""

import errno
import importlib
import json
import os
import shutil
from pathlib import Path

import pytest

from lmplay import __version__
from lmplay.cli.command import command_parser, run_command
from support.small import TINY

COMMANDS = ("cleanmodel", "compare", "eval", "generator", "plotstats", "probe", "tokenizer", "trainer")


@pytest.mark.parametrize("name", COMMANDS)
def test_version_and_examples(name, capsys):
    module = importlib.import_module(f"lmplay.cli.{name}")
    with pytest.raises(SystemExit) as end:
        module.main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"lmplay {__version__}\n"
    with pytest.raises(SystemExit) as end:
        module.main(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0 and shown.startswith(f"usage: lmp_{name} ") and module.EXAMPLES in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_unknown_flags_are_one_line(name, capsys):
    """The words of a call, not those of the process, are read."""
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"lmplay.cli.{name}").main(["--no-such-flag"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and said.startswith(f"lmp_{name}: ")


@pytest.mark.process
def test_run_json_has_the_words_as_they_were_given(plans, work, trainer):
    flags = [*TINY, "--training-plan", plans["plain"], "--max-steps", "1", "--run-name", "one"]
    assert trainer(*flags).status == 0
    assert json.loads((work / "gpt_out" / "one" / "run.json").read_text())["command"] == ["lmp_trainer", *flags]


@pytest.mark.parametrize("number", ["ENOSPC", "EIO", "EROFS", "EDQUOT"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_disk_that_fails_is_one_line(number, inside, capsys):
    """Also where an error holds others, as that of a folder that was copied."""
    code = getattr(errno, number)
    error = OSError(code, os.strerror(code), "/some/file")
    if inside:
        error = shutil.Error([("/from", "/some/file", str(error))])

    def fail(argv):
        raise error

    assert run_command("lmp_trainer", fail, []) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and os.strerror(code).lower() in said and "type the command again" in said


def test_two_dashes_may_be_a_value(capsys):
    parser = command_parser("x", "", "")
    parser.add_argument("--to", type=Path)
    parser.add_argument("--n", type=int)
    assert parser.parse_args(["--to=--"]).to == Path("--")
    with pytest.raises(SystemExit):
        parser.parse_args(["--n=--"])
    assert "invalid int value" in capsys.readouterr().err
