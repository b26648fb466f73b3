"""The runs of a comparison on a real Ray cluster: three nodes on this machine, of which one is lost half way."""

import json
import os
import re
import threading
import time
from pathlib import Path

import pytest

from lmplay.cli import compare as command
from lmplay.cli import probe
from lmplay.probe.sizes import SIZES, Size
from lmplay.runs.names import step_of
from lmplay.runs.run import read_run
from support.results import differences, results
from support.scripts import script, small_families
from support.small import make_text, write_plan

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.extra, pytest.mark.slow, pytest.mark.process]

N_STEPS = 1000
FLAGS = (
    f"--baseline mine:narrow --exp mine:wide --seeds 3 --max-steps {N_STEPS} --save-interval 100 "
    "--validation-interval 500 --validation-tokens 200 --context-len 16 --batch-size 4 --mini-batch-size 4 "
    "--warmup-steps 2 --device cpu --compile off"
).split()
MODEL = '''"""One of the user's own, which counts the steps that all its trainings take together."""
import os
from dataclasses import dataclass
from torch import nn

variants = {"narrow": {"width": 8}, "wide": {"width": 16}}

@dataclass
class Config:
    vocab_size: int = 257
    max_len: int = 16
    width: int = 8

class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.Sequential(*(nn.Linear(config.width, config.width) for _ in range(12)))
        self.head = nn.Linear(config.width, config.vocab_size)

    def forward(self, tokens):
        if self.training and os.environ.get("COUNTED"):
            with open(os.path.join(os.environ["COUNTED"], str(os.getpid())), "ab") as file:
                file.write(b".")
        return self.head(self.layers(self.table(tokens)))
'''


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A head and two nodes of a core each, with data folders of their own; what trains on them is counted."""
    from ray.cluster_utils import Cluster

    (tmp_path / "counted").mkdir()
    monkeypatch.setenv("COUNTED", "")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")

    def node(name):
        own = {"LMPLAY_DATA": str(tmp_path / name), "COUNTED": str(tmp_path / "counted"), "OMP_NUM_THREADS": "1"}
        return {"num_cpus": 1, "env_vars": own, "object_store_memory": 80 * 2**20}

    made = Cluster(initialize_head=True, head_node_args=node("head"))
    try:
        made.nodes = {name: made.add_node(**node(name)) for name in ("first", "second")}
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def environment_of(process):
    words = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return dict(word.decode().split("=", 1) for word in words if b"=" in word)


def remove_one(cluster, out, lost):
    """Remove the first node on which a run has saved a checkpoint that is here, and is not near its end."""
    while not lost:
        time.sleep(0.05)
        for saved in out.glob("*/checkpoints/step_*/state.json"):
            run = saved.parents[2]
            try:
                info = json.loads((run / "run.json").read_text())
                home = Path(environment_of(info["process"]["pid"])["LMPLAY_DATA"]).name
            except (OSError, ValueError, KeyError):
                continue
            if home in cluster.nodes and 0 < step_of(saved.parent) < N_STEPS * 0.7 and info["status"] == "running":
                cluster.remove_node(cluster.nodes[home], allow_graceful=False)
                lost.append(run.name)
                return


def verdict(said):
    """What was printed of losses and of the verdict; memory and times are the machine's."""
    return [line for line in said.splitlines() if "%" in line and "tok/s" not in line and "tokens/s" not in line]


def test_a_node_that_is_lost_costs_its_time_only(cluster, work, capfd):
    (work / "experiments" / "mine").mkdir(parents=True)
    (work / "experiments" / "mine" / "model.py").write_text(MODEL, encoding="utf-8")
    (work / "one.txt").write_text(make_text(60, 1), encoding="utf-8")
    plan = write_plan(
        work, "plain", {"one": {"files": "one.txt"}}, [{"datasets": ["one"]}], {"train": "bpe", "vocab_size": 300}
    )
    lost: list[str] = []
    ends = threading.Thread(target=remove_one, args=(cluster, work / "away", lost), daemon=True)
    ends.start()
    words = [*FLAGS, "--training-plan", plan, "--json", "-"]
    status = command.main([*words, "--on", f"ray://{cluster.address}", "--out", "away"])
    away = capfd.readouterr()
    lost.append("")  # ends the thread
    ends.join()
    assert status == 0, away.err
    assert lost[0], "no node was removed"
    assert command.main([*words, "--threads", "1", "--out", "here"]) == 0
    here = capfd.readouterr()

    one, other = (json.loads(said)["candidates"] for said in (away.out, here.out))
    for found in (*one, *other):
        found["verdict"].pop("at_equal_seconds", None)
    assert [found["verdict"] for found in one] == [found["verdict"] for found in other]
    runs = sorted(path.parent.name for path in (work / "here").glob("*/run.json"))
    assert runs == sorted(path.parent.name for path in (work / "away").glob("*/run.json")) and len(runs) == 6
    for run in runs:
        assert differences(results(work / "away" / run), results(work / "here" / run)) == []

    gone_on = re.findall(r"was lost .*goes on elsewhere from step (\d+)", away.err)
    assert max(map(int, gone_on)) >= 100, away.err
    # a run that nobody lost is trained once; what is trained again is what the lost node did after its checkpoint
    steps = sum(file.stat().st_size for file in (work.parent / "counted").iterdir())
    assert 6 * N_STEPS <= steps < 7 * N_STEPS
    assert away.err.count("run 1 of 6") == 1 and "run 7" not in away.err

    assert command.main([*words, "--on", f"ray://{cluster.address}", "--out", "away"]) == 0
    assert "-> " not in capfd.readouterr().err  # all is there: nothing is trained
    assert steps == sum(file.stat().st_size for file in (work.parent / "counted").iterdir())
    assert os.environ["COUNTED"] == ""


COUNTING = """
import os

class Model(Model):
    def body(self, tokens, cache=None):
        if self.training and not tokens.is_meta and os.environ.get("COUNTED"):
            with open(os.path.join(os.environ["COUNTED"], str(os.getpid())), "ab") as file:
                file.write(b".")
        return super().body(tokens, cache)
"""


@pytest.fixture
def counted(cluster, work, plans, experiment, capfd):
    """Trains on the cluster by a command, twice, and returns the runs that it left.

    Each was begun once and is finished. Those of `mine` took the steps that they say, besides checks of the model.
    """
    experiment("mine", COUNTING)

    def train(command):
        passes = []
        for _ in range(2):
            command(f"ray://{cluster.address}")
            passes.append(sum(file.stat().st_size for file in (work.parent / "counted").iterdir()))
        begun = re.findall(r"^run \d+ of \d+: .* -> (\S+)", capfd.readouterr().err, re.MULTILINE)
        runs = [read_run(path.parent) for path in work.glob("gpt_out/*/run.json")]
        assert sorted(map(Path, begun)) == sorted(run.folder.relative_to(work) for run in runs)
        assert {run.get("status") for run in runs} == {"finished"}
        own = [run for run in runs if run.spec == "mine:tiny"]
        steps = sum(run.get("progress", "step") for run in own)
        assert passes[0] == passes[1] and steps <= passes[0] <= steps + 20 * len(own)
        return runs

    return train


@pytest.mark.thorough
def test_a_ladder_on_ray_trains_each_run_once(counted, plans):
    words = (
        "--exp mine:tiny --baseline gpt2ish:tiny --ladder 1x16,1x32 --seeds 2 --max-tokens 6000 --device cpu".split()
    )
    words += "--context-len 16 --batch-size 4 --warmup-steps 2 --validation-tokens 500 --compile off".split()
    words += ["--training-plan", plans["plain"], "--lr", "4e-3"]
    runs = counted(lambda on: command.main([*words, "--on", on]))
    # 2 arms: 2 pairs at 2 sizes, 2 rates beside each other at the top; 2 of the baseline below
    assert len(runs) == 2 * (4 + 2) + 2


@pytest.mark.thorough
def test_a_probe_on_ray_trains_each_run_once(counted, work, monkeypatch):
    monkeypatch.setitem(SIZES, "quick", Size(n_layer=1, n_head=2, n_embd=16, steps=60, batch_size=4))
    words = ["--exp", "mine", "llama2", "--tasks", "parity", "copy", "--seeds", "2", "--device", "cpu"]
    runs = counted(lambda on: probe.main([*words, "--on", on]))
    assert len(runs) == 2 * 2 * 2 and {run.get("progress", "step") for run in runs} == {60}


@pytest.mark.thorough
def test_families_on_ray_trains_each_run_once(counted, plans):
    settings = {"training_plan": plans["plain"], "max_steps": 60}
    families = script("families")
    runs = counted(lambda on: small_families(families, candidate="mine:tiny", on=on, **settings))
    assert len(runs) == 4 + 2 + 2  # the baseline against itself, the candidate, the rival
