"""Several processes that share out each step give what one gives, and end together."""

import csv
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lmplay.cli.trainer import main
from lmplay.errors import HUNG, STOPPED
from support.ranks import start_ranks, train_runs
from support.small import ROOT, TINY
from support.thorough import first
from support.trainer_process import At, TrainerProcess

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
    for file in ("train.csv", "validate.csv"):
        of_one, of_other = column(one, file, "loss"), column(other, file, "loss")
        assert len(of_one)
        np.testing.assert_allclose(of_other, of_one, rtol=relative)
    np.testing.assert_array_equal(column(other, "train.csv", "tokens"), column(one, "train.csv", "tokens"))
    weights, others = (load_file(max(run.glob("checkpoints/step_*")) / "model.safetensors") for run in (one, other))
    assert weights.keys() == others.keys()
    whole = np.sqrt(sum(float((w**2).sum()) for w in weights.values()))
    apart = np.sqrt(sum(float(((others[name] - w) ** 2).sum()) for name, w in weights.items()))
    assert apart < 1e-3 * whole


@pytest.mark.process
@pytest.mark.parametrize("n", first(1, [2, 3]))
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


def of(experiment: str, *more: str) -> list[str]:
    """Flags for another experiment, as small as gpt2ish is above."""
    return [experiment if word == "gpt2ish" else word for word in [*TINY, *SHORT]] + [*more]


SMALL_PLDR = "--set n_unit=1 --set metric_hidden=8 --set n_hidden=16 --set chunk=4".split()
# pldr's rate is low: at 1e-3 another micro-batch size alone moves its losses by 8e-5 in 30 steps
# regularizers, hidden tokens, directions, derived tensors, Muon's shared matrices: what each needs of the ranks
FAMILIES = {
    "pldr": of("pldr", *SMALL_PLDR, "--set", "dag_metric=0.01", "--set", "dag_operator=0.01", "--lr", "1e-4"),
    "bert": of("bert", *NO_DROPOUT),
    "both_ways": of("both_ways", *NO_DROPOUT),
    "derive": of("unified_weights", *NO_DROPOUT),
    "muon": of("gpt2ish", *NO_DROPOUT, "--optimizer", "muon", "--set", "n_layer=3"),
}
TABLE = """
class Table(nn.Embedding):
    pass


Plain = Model


class Model(Plain):
    def __init__(self, config):
        super().__init__(config)
        self.tokens_embedding = nn.Embedding(config.vocab_size, config.n_embd, sparse=True)
        self.head.weight = nn.Parameter(self.head.weight.detach().clone())
"""


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "steps"),
    [(2, 8), pytest.param(2, 30, marks=pytest.mark.thorough), pytest.param(3, 30, marks=pytest.mark.thorough)],
)
@pytest.mark.thorough
def test_ranks_train_what_one_process_trains_of_every_kind(work, plans, experiment, n, steps):
    experiment("table", TABLE)
    runs = FAMILIES | {"sparse": of("table", *NO_DROPOUT)}
    runs = {
        name: [*flags, "--training-plan", plans["plain"], "--max-steps", str(steps)] for name, flags in runs.items()
    }
    for flags in flags_of(runs, "one"):
        assert main(flags) == 0
    train_runs(n, flags_of(runs, "many"), work)
    for name in runs:
        exact = 1e-4 if name == "muon" else RELATIVE  # whose products are bfloat16
        assert_equal_runs(work / "gpt_out" / f"{name}-one", work / "gpt_out" / f"{name}-many", exact)


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "steps"),
    [(2, 8), pytest.param(2, 30, marks=pytest.mark.thorough), pytest.param(3, 30, marks=pytest.mark.thorough)],
)
def test_sharded_ranks_train_what_one_process_trains(work, plans, n, steps):
    runs = {
        "gpt": [*GPT, "--training-plan", plans["plain"], "--set", "n_layer=2"],
        "llama": [*LLAMA, "--training-plan", plans["answers"], "--set", "n_layer=2"],
        # trained by Muon; at its own rate another micro-batch size alone moves its losses by 3e-4 in 30 steps
        "modern": [*of("modern", "--set", "n_layer=2", "--lr", "0.01"), "--training-plan", plans["plain"]],
    }
    if steps == 30:
        more = {name: FAMILIES[name] for name in ("both_ways", "bert", "muon")}
        runs |= {name: [*flags, "--training-plan", plans["plain"]] for name, flags in more.items()}
    runs = {name: [*flags, "--max-steps", str(steps)] for name, flags in runs.items()}
    for flags in flags_of(runs, "one"):
        assert main(flags) == 0
    train_runs(n, [[*flags, "--shard"] for flags in flags_of(runs, "many")], work)
    for name in runs:
        exact = 1e-4 if name in ("muon", "modern") else RELATIVE
        assert_equal_runs(work / "gpt_out" / f"{name}-one", work / "gpt_out" / f"{name}-many", exact)
    assert json.loads((work / "gpt_out" / "gpt-many" / "run.json").read_text())["device"]["ranks"]["sharded"] is True


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "exact"), first(1, [(FAMILIES["muon"], 1e-4), (GPT, RELATIVE)]), ids=["muon", "adamw"]
)
def test_a_sharded_run_goes_on_with_another_number_of_ranks_and_alone(work, plans, kind, exact):
    flags = [*kind, "--training-plan", plans["plain"]]
    assert main([*flags, "--run-name", "whole"]) == 0
    kill = {1: At(forward=True, count=14, signals=(signal.SIGKILL,))}
    ranks = [rank.wait() for rank in start_ranks(2, [*flags, "--run-name", "run", "--shard"], work, kill)]
    assert ranks[0].status == STOPPED
    assert ranks[0].err.count("another process of this run has ended") == 1 and "Traceback" not in ranks[0].err
    out = work / "gpt_out"
    assert saved_in(out / "run") == ["step_00000010"]
    shutil.copytree(out / "run", out / "other")
    train_runs(3, [[*flags, "--run-name", "run", "--shard"]], work)
    assert main([*flags, "--run-name", "other"]) == 0
    for name in ("run", "other"):
        assert_equal_runs(out / "whole", out / name, exact)


HANGS = """
import os

class Model(Model):
    n_calls = 0

    def body(self, tokens, cache=None):
        if self.training and tokens.device.type == "cpu":
            self.n_calls += 1
            if self.n_calls > 20 and os.environ.get("RANK") == "{rank}":
                {how}
        return super().body(tokens, cache)
"""
WITH_THE_LOCK, WITHOUT = "import ctypes; ctypes.PyDLL(None).sleep(1000)", "import time; time.sleep(1000)"


@pytest.mark.process
@pytest.mark.skipif(os.name != "posix", reason="a system without the signals of Unix")
@pytest.mark.parametrize(("rank", "how"), first(1, [(1, WITH_THE_LOCK), (1, WITHOUT), (0, WITHOUT)]))
def test_a_rank_that_hangs_says_so_and_rank_0_alone_writes(work, plans, experiment, rank, how):
    experiment("mine", HANGS.format(rank=rank, how=how))
    flags = ["mine" if word == "gpt2ish" else word for word in TINY]
    flags += ["--training-plan", plans["plain"], "--max-steps", "30", "--run-name", "run"]
    ranks = [one.wait() for one in start_ranks(2, flags, work, LMPLAY_HANG_SECONDS="4")]
    said = [line for one in ranks for line in one.err.splitlines() if "it hung at" in line]
    assert len(said) == 1 and "it hung at experiments/mine/model.py:" in said[0] and said[0] in ranks[rank].err
    assert ranks[rank].status == (HUNG if platform.libc_ver()[0] == "glibc" or how == WITHOUT else -signal.SIGKILL)
    assert ranks[1 - rank].status == STOPPED
    info = json.loads((work / "gpt_out" / "run" / "run.json").read_text(encoding="utf-8"))
    assert info["status"] == ("hung" if rank == 0 else "stopped") and info["process"]["pid"] == ranks[0].pid
    assert ("it hung at" if rank == 0 else "another process of this run has ended") in info["error"]
    log = work / "gpt_out" / "run" / "train.log"
    assert how == WITHOUT or not log.exists()  # the guard of rank 1 has not written


@pytest.mark.process
@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--exp", "table"], "--shard can't train tables with row-sparse gradients: leave --shard out"),
        (["--exp", "unified_weights"], "--shard can't train a model with derive()"),
    ],
)
def test_what_cannot_be_sharded_is_refused_in_one_line(work, plans, experiment, flags, why):
    experiment("table", TABLE)
    ranks = [r.wait() for r in start_ranks(2, [*TINY, "--training-plan", plans["plain"], "--shard", *flags], work)]
    said = [line for rank in ranks for line in rank.err.splitlines() if line.startswith("lmp_trainer:")]
    assert len(said) == 1 and why in said[0] and 2 in [rank.status for rank in ranks]
    assert not list(work.glob("gpt_out/*/run.json"))


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


def steps_of(run: Path) -> int:
    """How many steps train.csv has."""
    table = run / "train.csv"
    return len(table.read_text(encoding="utf-8").splitlines()) - 1 if table.exists() else 0


def wait_until_it_trains(process: TrainerProcess, run: Path, beyond: int) -> None:
    deadline = time.monotonic() + 90
    while steps_of(run) <= beyond:
        assert process.status is None and time.monotonic() < deadline, process.err
        time.sleep(0.05)


def saved_in(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


LONG = [*TINY, "--max-steps", "1000000", "--lr-schedule", "constant", "--validation-interval", "1000000"]


@pytest.mark.process
@pytest.mark.slow
def test_the_launcher_passes_signals_on_and_says_which_process_has_died(work, plans, trainer):
    run = work / "gpt_out" / "run"
    flags = [*LONG, "--training-plan", plans["plain"], "--run-name", "run", "--devices", "2"]
    first = trainer.start(*flags)
    wait_until_it_trains(first, run, 2)
    os.kill(first.pid, signal.SIGUSR1)
    assert first.wait().status == STOPPED and "the same command continues it" in first.err
    saved = saved_in(run)
    assert len(saved) == 1 and saved[0] == f"step_{steps_of(run):08d}"
    before = steps_of(run)
    second = trainer.start(*flags)
    wait_until_it_trains(second, run, before)
    os.kill(json.loads((run / "run.json").read_text())["process"]["pid"], signal.SIGKILL)
    started = time.monotonic()
    assert second.wait().status == STOPPED and time.monotonic() - started < 30
    assert second.err.rstrip().splitlines()[-1] == (
        "lmp_trainer: process 0 of the 2 that train this run was ended by SIGKILL, and the others with it: "
        "type the same command to continue"
    )
    assert saved_in(run) == saved


@pytest.mark.process
@pytest.mark.thorough
@pytest.mark.parametrize("launcher", ["lmp_trainer", "torchrun"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("to", ["launcher", "group"])
def test_a_signal_to_launcher_or_group_saves_once(work, plans, launcher, number, to):
    run = work / "gpt_out" / "run"
    words = ["lmplay.cli.trainer", *LONG, "--training-plan", plans["plain"], "--run-name", "run"]
    signals = "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", signals, "-m", *words]
    command = [sys.executable, "-m", *([*words, "--devices", "2"] if launcher == "lmp_trainer" else torchrun)]
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, start_new_session=True, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        deadline = time.monotonic() + 90
        while steps_of(run) <= 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        (os.kill if to == "launcher" else os.killpg)(process.pid, number)
        _, said = process.communicate(timeout=60)
    assert said.count("the same command continues it") == 1, said
    assert saved_in(run) == [f"step_{steps_of(run):08d}"]


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--devices", "0"], "--devices takes a number of at least 1, or all, not '0'"),
        (["--devices", "two"], "--devices takes a number of at least 1, or all, not 'two'"),
        (["--devices", "2", "--device", "cuda:0"], "--device cuda:0 names one: leave one of them out"),
        (["--devices", "all", "--device", "cpu"], "--devices N starts N processes on the CPU"),
    ],
)
def test_devices_that_cannot_be_are_refused(work, capsys, flags, why):
    assert main(["--exp", "gpt2ish:tiny", *flags]) == 2
    assert why in capsys.readouterr().err and not (work / "gpt_out").exists()
