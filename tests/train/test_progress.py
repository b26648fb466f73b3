"""The line that shows how a run trains: what fits, a smoothed loss, the recent rate."""

import io
import os
import time

import pytest

from lmplay.train import progress
from lmplay.train.progress import LEAST_IMPORTANT, Progress, fitted

PARTS = {
    "bar": "|" * 19,
    "phase": "a_phase ",
    "steps": "120/93000:",
    "loss": " loss 3.142",
    "accuracy": " acc 31.4%",
    "validation": " val (finetune) 3.200",
    "rate": " | 12.5k tok/s",
    "mfu": ", MFU 12.5%",
    "tokens": " | 1.2M tokens",
    "left": " | 10:00 left",
}


@pytest.mark.parametrize("width", range(20, 139, 7))
def test_the_least_important_is_left_out_first(width):
    kept = fitted(PARTS, width)
    line, there = "".join(kept.values()), [name for name in LEAST_IMPORTANT if name in kept]
    assert there == list(LEAST_IMPORTANT[len(LEAST_IMPORTANT) - len(there) :])
    assert "120/93000: loss 3.142" in line
    assert len(line) <= max(width, len("120/93000: loss 3.142"))
    assert kept == PARTS or len(line) + len(PARTS[LEAST_IMPORTANT[-len(there) - 1]]) > width


def test_everything_is_shown_where_there_is_no_terminal():
    assert fitted(PARTS, None) == PARTS


@pytest.fixture
def shown(monkeypatch):
    """A progress on no terminal, and a clock to set."""
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())
    one = Progress()
    one.start(1000, 0, 0)
    return one, clock


def test_the_loss_is_a_mean_over_the_last_steps(shown):
    one, _ = shown
    losses = [5.0, *([3.0, 4.0] * 60)]
    for step, loss in enumerate(losses, 1):
        one.update("p", step, loss=loss, accuracy=0.5, tokens=step, seconds_left=None)
        if step == 1:
            assert "loss 5.000" in one._text()
    weights = [progress.SMOOTHING**k for k in range(len(losses))]
    mean = sum(w * v for w, v in zip(weights, reversed(losses), strict=True)) / sum(weights)
    assert f"loss {mean:.3f}" in one._text()


def test_the_rate_and_the_time_left_are_recent(shown):
    one, clock = shown
    for second in range(1, 101):  # slow at first, then ten times as fast
        clock[0] = 100.0 + second
        done = second if second <= 60 else 60 + 10 * (second - 60)
        one.update("p", done, loss=1.0, accuracy=0.5, tokens=100 * done, seconds_left=None)
        one._text()
    assert "| 1k tok/s" in one._text()
    assert "| 00:54 left" in one._text()  # 540 steps at 10 a second


def test_rows_are_written_while_a_run_trains(tmp_path, monkeypatch):
    from lmplay.runs import recorder, tables

    clock = [0.0]
    monkeypatch.setattr(recorder.time, "monotonic", lambda: clock[0])
    one = recorder.Recorder(tmp_path)
    row = {"plan_step": "p", "samples": 1, "tokens": 1, "bytes": 1, "flops": 1, "seconds": 1.0, "loss": 2.0}
    one.train({**row, "step": 1})
    assert not (tmp_path / "train.csv").exists()
    clock[0] = recorder.WRITE_SECONDS
    one.train({**row, "step": 2})
    assert list(tables.read_table(tmp_path / "train.csv")[0]["step"]) == [1, 2]
    one.train({**row, "step": 3})
    assert len(tables.read_table(tmp_path / "train.csv")[0]) == 2
    assert time.monotonic() == clock[0]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such terminals")
@pytest.mark.parametrize("columns", [80, 40, 20])
def test_a_narrow_terminal(monkeypatch, columns):
    """No line is as wide as the terminal, which would break it; steps and loss are there."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    monkeypatch.setenv("TERM", "screen")
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        shown = Progress()
        shown.start(1000, 0, 0, of_a_token=1e-6)
        shown.validated(2.5, part=columns == 80)
        shown.update("a_long_phase", 10, loss=1.0, accuracy=0.5, tokens=100_000, seconds_left=None)
        shown.close()
        print("all was shown", file=terminal, flush=True)
        text = b""
        while b"all was shown" not in text:
            text += os.read(ours, 10_000)
    os.close(ours)
    last = text.decode().split("\r")[-3 if columns > 20 else -3]
    assert max(len(line.rstrip("\n")) for line in text.decode().split("\r")) < columns
    assert "10/1000: loss 1.000"[: columns - 1] in last and ("|" in last) == (columns > 20)
    assert ("val (part) 2.500" in last) == (columns == 80) and ("left" in last) == (columns > 20)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such terminals")
def test_a_terminal_that_does_not_say_how_wide_it_is(monkeypatch):
    """Some containers' terminals have 0 columns: the bar takes 80."""
    import pty

    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        progress = Progress()
        progress.start(10, 0, 0)
        progress.update("quick", 10, loss=1.0, accuracy=0.5, tokens=100, seconds_left=None)
        progress.close()
        end, shown = "all was shown", b""
        print(end, file=terminal, flush=True)
        while end.encode() not in shown:
            shown += os.read(ours, 10_000)
    os.close(ours)
    assert "10/10: loss 1.000" in shown.decode() and max(map(len, shown.decode().split("\r"))) <= 80
