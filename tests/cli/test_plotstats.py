import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from support.making_runs import fall, make_run

ROOT = str(Path(__file__).resolve().parents[2])
PLOTS = ["log_accuracy.png", "log_diff_accuracy.png", "log_diff_loss.png", "log_loss.png"]


def plotstats(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "lmplay.cli.plotstats", *map(str, arguments)],
        cwd=cwd,
        text=True,
        encoding="utf-8",
        capture_output=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": ROOT, "MPLBACKEND": "agg", **environment},
    )


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


@pytest.fixture
def two(tmp_path):
    make_run(tmp_path / "gpt_out" / "base")
    make_run(tmp_path / "gpt_out" / "idea", experiment="idea", loss=lambda t: fall(t) - 0.125)
    return tmp_path


@pytest.mark.process
def test_all_runs_of_gpt_out_are_drawn_and_tabled(two):
    result = plotstats(cwd=two)
    assert (result.returncode, result.stderr) == (0, "")
    assert files(two / "gpt_out") == PLOTS
    for name in PLOTS:
        data = (two / "gpt_out" / name).read_bytes()
        assert data.startswith(b"\x89PNG") and data[-8:-4] == b"IEND"
        width, height = struct.unpack(">II", data[16:24])
        assert width >= 1500 and height >= 800
        assert os.path.join("gpt_out", name) in result.stdout
    header, best, second = result.stdout.splitlines()[:3]
    assert (
        best.startswith("idea:tiny")
        and " -0.1250 " in best
        and second.startswith("gpt2ish:tiny")
        and " baseline " in second
    )
    for line in (best, second):  # aligned: every cell ends below the end of its title
        assert len(line) == len(header) and line.index("3.457M") + len("3.457M") == header.index("parameters") + len(
            "parameters"
        )
    assert "3.84M" in best and "64,000" in best


@pytest.mark.process
def test_linear_other_format_and_folder(two):
    result = plotstats(
        "idea", "base", "--linear", "--format", "svg", "--to", "plots/new", "--baseline", "idea", cwd=two
    )
    assert result.returncode == 0
    assert files(two / "plots" / "new") == ["accuracy.svg", "diff_accuracy.svg", "diff_loss.svg", "loss.svg"]
    assert files(two / "gpt_out") == [] and " +0.1250 " in result.stdout


@pytest.mark.process
def test_one_run_has_no_differences(two):
    result = plotstats("gpt_out/idea", cwd=two)
    assert result.returncode == 0 and files(two / "gpt_out") == ["log_accuracy.png", "log_loss.png"]
    assert (
        "there are no differences to draw" in result.stdout
        and "status" in result.stdout
        and "baseline" not in result.stdout
    )


@pytest.mark.process
def test_a_baseline_that_was_not_named_is_added(two):
    result = plotstats("idea", "--baseline", "base", cwd=two)
    assert result.returncode == 0 and files(two / "gpt_out") == PLOTS and " -0.1250 " in result.stdout


@pytest.mark.process
def test_broken_runs_are_named_and_the_rest_is_drawn(two):
    out = two / "gpt_out"
    (out / "broken").mkdir()
    (out / "broken" / "run.json").write_text("{")
    (out / "notes").mkdir()  # a folder of the user: nothing in it is of a run
    header = (out / "idea" / "train.csv").read_text().split("\n")[0] + "\n"
    for name in ("fresh", "killed"):
        make_run(out / name, experiment=name)
    (out / "fresh" / "train.csv").write_text(header)
    (out / "fresh" / "validate.csv").unlink()
    whole = (out / "killed" / "train.csv").read_bytes()
    (out / "killed" / "train.csv").write_bytes(whole[:-9])
    result = plotstats(cwd=two)
    assert result.returncode == 0 and files(out) == PLOTS
    lines = result.stderr.splitlines()
    for name, what in {
        "broken": "can't be read",
        "fresh": "no data yet",
        "killed": "last line is cut off",
    }.items():
        assert (
            len([line for line in lines if line.startswith("lmp_plotstats: ") and name in line and what in line]) == 1
        )
    assert len(lines) == 3 and "killed:tiny" in result.stdout and "fresh" not in result.stdout


@pytest.mark.process
@pytest.mark.parametrize(
    "arguments, said",
    [
        (["nowhere"], "no run or folder 'nowhere'"),
        (["--out", "empty"], "no runs in empty: train one with"),
        (["--baseline", "gpt2is"], "Did you mean 'gpt2ish'?"),
        (["--column", "x_none"], "no run has a column 'x_none'"),
        (["--plan-step", "man"], "Did you mean 'main'?"),
        (["--to", "gpt_out/base/run.json"], "name another folder with --to"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(two, arguments, said):
    result = plotstats(*arguments, cwd=two)
    assert (
        result.returncode == 2
        and said in result.stderr
        and len(result.stderr.splitlines()) == 1
        and "Traceback" not in result.stderr
    )
    assert files(two / "gpt_out") == []


@pytest.mark.process
def test_only_broken_runs_is_an_error(tmp_path):
    folder = make_run(tmp_path / "gpt_out" / "a")
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**info, "format": 99}))
    result = plotstats(cwd=tmp_path)
    assert result.returncode == 2 and "update lmplay" in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.process
def test_each_run_is_drawn_if_asked(two):
    make_run(two / "gpt_out" / "base1", seed=1)
    assert "gpt2ish:tiny (n=2)" in plotstats(cwd=two).stdout
    result = plotstats("--each-run", cwd=two)
    assert result.returncode == 0 and "(n=" not in result.stdout and "gpt2ish:tiny seed 1" in result.stdout


@pytest.mark.process
def test_wrong_flags_are_refused(two):
    for arguments in (["--smooth", "-3"], ["--smooth", "much"], ["--x", "hours"], ["--format", "gif"]):
        assert plotstats(*arguments, cwd=two).returncode == 2


@pytest.mark.process
def test_without_a_display_show_says_so(two):
    result = plotstats("--show", cwd=two)
    assert result.returncode == 0 and "needs a display" in result.stderr and files(two / "gpt_out") == PLOTS


@pytest.mark.process
def test_help_loads_nothing_heavy():
    code = (
        "import sys; from lmplay.cli import plotstats; plotstats.parser().format_help(); "
        "print([m for m in ('numpy', 'pandas', 'matplotlib', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout.strip() == "[]"
    help_ = subprocess.run(
        [sys.executable, "-m", "lmplay.cli.plotstats", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert help_.returncode == 0 and "--baseline" in help_.stdout
