"""Several processes that share out each step give what one gives, and end together."""

import csv
import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lmplay.cli.trainer import main
from lmplay.errors import STOPPED
from support.ranks import start_ranks, train_runs
from support.small import TINY
from support.trainer_process import At

NO_DROPOUT = "--set dropout=0 --set attention_dropout=0 --set embedding_dropout=0".split()
# batches of 5 rows, which neither 2 nor 3 ranks share out evenly; the last of the data has fewer
SHORT = "--batch-size 5 --max-steps 30 --validation-interval 15 --validation-tokens 900 --save-interval 10".split()
GPT = [*TINY, *NO_DROPOUT, *SHORT]
LLAMA = ["llama2" if word == "gpt2ish" else word for word in [*TINY, *SHORT]]
RELATIVE = 1e-5


def flags_of(runs: dict[str, list[str]], suffix: str) -> list[list[str]]:
    return [[*flags, "--run-name", f"{name}-{suffix}"] for name, flags in runs.items()]


def column(folder: Path, file: str, name: str) -> np.ndarray:
    with open(folder / file, newline="", encoding="utf-8") as table:
        return np.array([float(row[name]) for row in csv.DictReader(table) if row[name]])


def assert_equal_runs(one: Path, other: Path, relative: float = RELATIVE) -> None:
    """Losses of all steps and of validations are equal, rounding aside, and so are the weights in the end."""
    for file, name in (("train.csv", "loss"), ("validate.csv", "loss"), ("train.csv", "gradient_norm")):
        of_one, of_other = column(one, file, name), column(other, file, name)
        assert len(of_one)
        np.testing.assert_allclose(of_other, of_one, rtol=relative * (100 if name == "gradient_norm" else 1))
    np.testing.assert_array_equal(column(other, "train.csv", "tokens"), column(one, "train.csv", "tokens"))
    weights, others = (load_file(max(run.glob("checkpoints/step_*")) / "model.safetensors") for run in (one, other))
    assert weights.keys() == others.keys()
    whole = np.sqrt(sum(float((w**2).sum()) for w in weights.values()))
    apart = np.sqrt(sum(float(((others[name] - w) ** 2).sum()) for name, w in weights.items()))
    assert apart < 1e-3 * whole


@pytest.mark.process
@pytest.mark.parametrize("n", [2, 3])
def test_ranks_train_what_one_process_trains(work, plans, n):
    runs = {
        "gpt": [*GPT, "--training-plan", plans["plain"]],
        "llama": [*LLAMA, "--training-plan", plans["two_steps"], "--max-steps", "16"],
        "masked": [*GPT, "--training-plan", plans["answers"], "--max-steps", "12"],
    }
    for flags in flags_of(runs, "one"):
        assert main(flags) == 0
    train_runs(n, flags_of(runs, "many"), work)
    for name in runs:
        assert_equal_runs(work / "gpt_out" / f"{name}-one", work / "gpt_out" / f"{name}-many")
    info = json.loads((work / "gpt_out" / "gpt-many" / "run.json").read_text())
    assert info["device"]["ranks"]["n"] == n and info["device"]["ranks"]["backend"] == "gloo"
    assert len(info["device"]["ranks"]["on"]) == n


@pytest.mark.process
def test_a_run_of_two_ranks_of_which_one_is_killed_goes_on_alone(work, plans):
    flags = [*GPT, "--training-plan", plans["plain"]]
    assert main([*flags, "--run-name", "whole"]) == 0
    ranks = start_ranks(
        2, [*flags, "--run-name", "run"], work, {1: At(forward=True, count=14, signals=(signal.SIGKILL,))}
    )
    ranks[1].wait()
    started = time.monotonic()
    ranks[0].wait()
    assert time.monotonic() - started < 30
    assert ranks[1].status == -signal.SIGKILL and ranks[0].status == STOPPED
    assert ranks[0].err.count("another process of this run has ended") == 1 and "Traceback" not in ranks[0].err
    saved = [path.name for path in sorted((work / "gpt_out" / "run" / "checkpoints").iterdir())]
    assert saved == ["step_00000010"]
    assert main([*flags, "--run-name", "run"]) == 0
    assert_equal_runs(work / "gpt_out" / "whole", work / "gpt_out" / "run")


@pytest.mark.process
@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_one_rank_saves_once_and_stops_all(work, plans, told):
    flags = [*GPT, "--training-plan", plans["plain"], "--run-name", "run", "--save-interval", "1000"]
    usr1 = At(forward=True, count=7, signals=(signal.SIGUSR1,))
    ranks = [rank.wait() for rank in start_ranks(2, flags, work, {told: usr1})]
    assert [rank.status for rank in ranks] == [STOPPED, STOPPED]
    saved = [path.name for path in (work / "gpt_out" / "run" / "checkpoints").iterdir()]
    assert saved == ["step_00000007"]
    assert "stopped after 7 steps" in ranks[0].err and ranks[1].err == ""
