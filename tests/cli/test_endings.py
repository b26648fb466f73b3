"""How commands end: what is printed never ends what is computed, and the exit status says how it went."""

import io
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from lmplay import errors, output
from lmplay.cli import command
from lmplay.train import stopping
from support.small import EXPERIMENTS, TINY


def lost_pipe() -> int:
    """A pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def start(folder, *words, shell="", **streams):
    """Run a command of lmplay in a folder; `shell` goes behind it, such as ">&-"."""
    env = {**os.environ, "PYTHONPATH": str(EXPERIMENTS.parent), "LMPLAY_EXPERIMENTS": str(EXPERIMENTS)}
    env.pop("PYTHONUNBUFFERED", None)
    line = ["bash", "-c", f'exec "$@" {shell}', "bash", sys.executable, "-m", f"lmplay.cli.{words[0]}", *words[1:]]
    return subprocess.run(line, cwd=folder, env=env, timeout=200, text=True, **streams)


def test_what_is_printed_without_a_reader_is_dropped():
    stream = output.LastingText(lost_pipe())
    for _ in range(3):
        print("unheard" * 5000, file=stream, flush=True)
    assert isinstance(stream.file.error, BrokenPipeError)


def test_all_of_it_arrives_where_it_can():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    stream, text = output.LastingText(writer, "utf-8"), "\u00e9t\u00e9 \udcff\n" * 50_000
    heard = io.BytesIO()

    def read():
        while part := os.read(reader, 1 << 16):
            heard.write(part)

    thread = threading.Thread(target=read)
    thread.start()
    stream.write(text)
    stream.flush()
    os.close(writer)
    thread.join()
    assert heard.getvalue() == text.encode("utf-8", "backslashreplace") and stream.file.error is None


@pytest.mark.process
@pytest.mark.parametrize("shell, status", [(">&-", 0), (">/dev/full", 2), ("2>&- >&-", 0), ("2>/dev/full", 0)], ids=str)
def test_lists_without_an_output(tmp_path, shell, status):
    done = start(tmp_path, "trainer", "--exp", "list", shell=shell, capture_output=True)
    assert done.returncode == status and "Traceback" not in done.stderr
    assert ("could be written (No space left" in done.stderr) == (status == 2)


@pytest.mark.process
@pytest.mark.parametrize("shell", ["", ">&- 2>&-", ">/dev/full 2>/dev/full"])
def test_a_training_needs_no_output(plans, work, shell):
    """Progress, warnings and the last line have no reader; the run is as any other."""
    writer = lost_pipe()
    flags = [*TINY, "--training-plan", plans["plain"], "--max-steps", "2", "--run-name", "unheard"]
    done = start(work, "trainer", *flags, shell=shell, stdout=writer, stderr=writer)
    info = json.loads((work / "gpt_out" / "unheard" / "run.json").read_text(encoding="utf-8"))
    assert done.returncode == 0 and info["status"] == "finished" and info["progress"]["step"] == 2


@pytest.mark.parametrize(
    "error, status",
    [
        (errors.UserError, 2),
        (errors.ModelCrashed, 3),
        (errors.Diverged, 4),
        (errors.Locked, 5),
        (errors.Hung, 6),
        (KeyboardInterrupt, 130),
    ],
)
def test_exit_statuses(error, status, capsys):
    def fails(words):
        raise error("why")

    assert command.run_command("lmp_any", fails, []) == status
    said = capsys.readouterr().err
    assert said == f"lmp_any: {'interrupted' if status == 130 else 'why'}\n"
    assert error is KeyboardInterrupt or issubclass(error, errors.UserError)


def test_signals_are_heard_and_the_old_handlers_come_back():
    heard = []
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    with stopping.heard(stopping.Wishes(heard.append, heard.append)):
        for number in (signal.SIGHUP, signal.SIGUSR1):  # at once: one wish
            signal.raise_signal(number)
    assert heard == [signal.SIGHUP]
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before


def test_a_hang_up_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.heard(stopping.Wishes(pytest.fail, pytest.fail)):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_wish_while_nobody_reads_is_heard():
    kept = os.dup(2)
    try:
        os.dup2(lost_pipe(), 2)
        stopping.say(b"stopping")
    finally:
        os.dup2(kept, 2)


def test_training_in_a_thread(plans, work):
    """Only the main thread may hear signals; others train all the same."""
    from lmplay.cli import trainer

    ends = []
    flags = [*TINY, "--training-plan", plans["plain"], "--max-steps", "2", "--run-name", "threaded"]
    thread = threading.Thread(target=lambda: ends.append(trainer.main(flags)))
    thread.start()
    thread.join()
    assert ends == [0]


INTERRUPTED = """
import os, signal, sys
sys.argv = ["lmp_trainer", "--prune", "x"]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
stop = lambda: os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(lambda event, args: event == "import" and args[0] == {module!r} and stop())
from lmplay.cli.trainer import main
sys.exit(main())
"""


@pytest.mark.process
@pytest.mark.parametrize(
    "module, said", [("lmplay.runs.settings", ""), ("lmplay.runs.prune", "lmp_trainer: interrupted\n")]
)
def test_ctrl_c_while_modules_are_imported(module, said, tmp_path):
    """Those of the command, before it runs, and those that it imports as it runs."""
    script = [sys.executable, "-c", INTERRUPTED.format(module=module)]
    env = {**os.environ, "PYTHONPATH": str(EXPERIMENTS.parent)}
    ended = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=100, env=env, check=False)
    assert (ended.returncode, ended.stderr) == (130, said)


def test_ctrl_c_that_an_import_makes_an_error_of(capsys):
    def imports(argv):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("numpy could not be imported") from error

    assert command.run_command("lmp_x", imports, []) == 130
    assert capsys.readouterr().err == "lmp_x: interrupted\n"
