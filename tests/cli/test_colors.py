"""Colors on a terminal that has them, and nothing of them elsewhere."""

import json
import os
import re
import threading

import pytest

from lmplay.cli import colors, trainer
from lmplay.output import shows_colors

REPORT = """\
                parameters  val. loss  difference           interval  verdict
base                  1.2M     3.1416                                baseline
idea                  1.2M     3.0000     -0.1416  -0.15 to -0.13      better
other                 1.2M     3.2000     +0.0584  +0.05 to +0.07       worse
plan quick, after 1M tokens of training; a difference below 0 is better

idea: better by 0.1416 nats: 95% interval of the difference
  at equal flops: worse by 0.1 nats
  warning: something
"""


@pytest.fixture
def shown(monkeypatch):
    """Call a function with a real terminal as standard output; return what it returns and what was shown."""
    pty = pytest.importorskip("pty")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def call(function, *arguments):
        ours, theirs = pty.openpty()
        with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
            patch.setattr("sys.stdout", terminal)
            reader = threading.Thread(target=read_all, args=(ours, text := bytearray()), daemon=True)
            reader.start()
            found = function(*arguments)
            print("end of all", file=terminal, flush=True)
            reader.join(60)
        os.close(ours)
        return found, text.decode().replace("\r", "")

    return call


def read_all(terminal: int, text: bytearray) -> None:
    while b"end of all" not in text:
        text += os.read(terminal, 10_000)


def test_the_words_of_verdicts_stand_out(shown):
    text, _ = shown(colors.with_verdicts, REPORT)
    assert text.count(f"{colors.BETTER}better{colors.PLAIN}") == 2
    assert text.count(f"{colors.WORSE}worse{colors.PLAIN}") == 2
    assert "0 is better\n" in text and f"{colors.BOLD}  warning:{colors.PLAIN}" in text
    assert re.sub(r"\x1b\[[0-9;]*m", "", text) == REPORT


@pytest.mark.parametrize("name, value", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_without_colors(shown, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert shown(colors.with_verdicts, REPORT)[0] == REPORT and shown(colors.styled, "a", colors.BOLD)[0] == "a"


def test_a_pipe_has_none(tmp_path):
    assert colors.with_verdicts(REPORT) == REPORT
    with open(tmp_path / "file", "w") as file:
        assert not shows_colors(file)


def test_the_list_of_configs_has_names_in_bold_and_the_same_columns(shown, capsys):
    status, text = shown(trainer.main, ["--use-config", "list"])
    assert status == 0 and f"{colors.BOLD}pldr_v500{colors.PLAIN} " in text
    assert trainer.main(["--use-config", "list"]) == 0
    assert re.sub(r"\x1b\[[0-9;]*m", "", text) == capsys.readouterr().out + "end of all\n"


def test_the_lists_as_json(capsys):
    for flags in (["--exp", "list"], ["--training-plan", "list"], ["--use-config", "list"]):
        assert trainer.main([*flags, "--json"]) == 0
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
        if flags[0] == "--exp":
            gpt2 = rows["gpt2ish"]
            assert gpt2["summary"] and "tiny" in gpt2["variants"] and gpt2["fields"]["n_layer"] > 0
            assert gpt2["error"] is None and rows["llama2"]["parent"] in (None, *rows)
        else:
            assert all(row["description"] for row in rows.values()) and len(rows) > 5
    assert trainer.main(["--exp", "gpt2ish", "--json"]) == 2 and "--json goes with a list" in capsys.readouterr().err
