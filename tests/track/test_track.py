"""Trackers: what lmplay records arrives in them, once, and a run that goes on continues the same tracked run.

Each package is the real one; what was written is read back from its own files.
"""

import json
import os
import re
import shutil
import sqlite3
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lmplay.errors import UserError
from lmplay.runs.alive import this_process
from lmplay.runs.run import read_run
from lmplay.runs.settings import TRACKERS
from lmplay.track import follow as following
from lmplay.track.follow import follow, send_run
from lmplay.track.trackers import check_trackers
from lmplay.train.settings import read_config
from lmplay.train.tracking import Followers
from support.making_runs import make_run

CREATED = "2026-11-01T00:00:00Z"
SAMPLE = "=== step {step}, 1,000 tokens, validation loss 3.0000\n--- 1\n⟦Once⟧ upon <a> time {step}\n\n"
pytestmark = pytest.mark.extra


def from_tensorboard(work):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in work.glob("tensorboard/*/*/events*")}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    scalars = {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}
    texts = {
        name.removesuffix("/text_summary"): [
            (one.step, one.tensor_proto.string_val[0].decode()) for one in events.Tensors(name)
        ]
        for name in events.Tags()["tensors"]
    }
    config = dict(re.findall(r"^\| (\S+) \| (.*) \|$", texts["config"][0][1], re.M))
    return folder.name, folder.parent.name, texts["tags"][0][1], config, scalars, texts


def records_of(file: Path):
    """Yield the records of wandb's log: LevelDB's format, blocks of 32 KiB with pieces of records, after 7 bytes."""
    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield whole
            whole = b""


def from_wandb(work):
    from wandb.proto.wandb_internal_pb2 import Record

    scalars, texts, about, ids = {}, {}, None, set()
    for file in sorted(work.glob("wandb/offline-run-*/*.wandb")):
        for data in records_of(file):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                about = record.run
                ids.add(about.run_id)
            if record.WhichOneof("record_type") == "history":
                row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                for name, value in row.items():
                    if name.endswith("/path"):
                        text = (file.parent / "files" / value).read_text()
                        texts.setdefault(name.removesuffix("/path"), []).append((row["_step"], text))
                    elif not name.startswith("_"):
                        scalars.setdefault(name, []).append((row["_step"], value))
    assert len(ids) == 1
    config = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in about.config.update}
    return about.display_name, about.run_group, ", ".join(about.tags), config, scalars, texts


def from_trackio(work):
    database = sqlite3.connect(work / "trackio" / "lmplay.db")
    runs = {run for (run,) in database.execute("select distinct run_name from metrics")}
    (config,) = {config for (config,) in database.execute("select distinct config from configs")}
    scalars, texts = {}, {}
    for step, row in database.execute("select step, metrics from metrics order by id"):
        for name, value in json.loads(row).items():
            if isinstance(value, dict):
                text = (work / "trackio" / "media" / value["file_path"]).read_text()
                texts.setdefault(name, []).append((step, text))
            else:
                scalars.setdefault(name, []).append((step, value))
    (name,), config = runs, json.loads(config)
    return name, config["_Group"], config["tags"], config, scalars, texts


def from_mlflow(work):
    from mlflow import MlflowClient

    client = MlflowClient()
    (experiment,) = [one for one in client.search_experiments() if one.name == "lmplay"]
    (run,) = client.search_runs([experiment.experiment_id])
    scalars = {
        name: sorted((one.step, one.value) for one in client.get_metric_history(run.info.run_id, name))
        for name in run.data.metrics
    }
    texts = {}
    for folder in client.list_artifacts(run.info.run_id):
        for file in client.list_artifacts(run.info.run_id, folder.path):
            local = Path(client.download_artifacts(run.info.run_id, file.path))
            texts.setdefault(folder.path, []).append((int(local.stem.rsplit("_", 1)[1]), local.read_text()))
    tags = run.data.tags
    return run.info.run_name, tags["group"], tags["tags"], run.data.params, scalars, texts


def send(run, tracker):
    if tracker in ("wandb", "trackio"):  # they look where they are once in a process; wandb writes the last at its end
        words, path = [sys.executable, "-m", "lmplay.track", str(run.folder), tracker], os.pathsep.join(sys.path)
        subprocess.run(words, check=True, env=os.environ | {"PYTHONPATH": path})
    else:
        send_run(run, tracker)


NUMBER_OF = {
    "tensorboard": lambda work: {path.parent for path in work.glob("tensorboard/*/*/events*")},
    "wandb": lambda work: {path.name.rpartition("-")[2] for path in work.glob("wandb/offline-run-*")},
    "trackio": lambda work: set(
        sqlite3.connect(work / "trackio" / "lmplay.db").execute("select distinct run_id from metrics")
    ),
    "mlflow": lambda work: set(sqlite3.connect(work / "mlflow.db").execute("select run_uuid from runs")),
}
READERS = {"tensorboard": from_tensorboard, "wandb": from_wandb, "trackio": from_trackio, "mlflow": from_mlflow}


@pytest.fixture(params=TRACKERS)
def tracker(request, work, monkeypatch):
    """The name of a tracker that is installed and writes into the working folder only."""
    pytest.importorskip(request.param)
    if request.param == "tensorboard":
        pytest.importorskip("torch.utils.tensorboard")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(work / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{work}/mlflow.db")
    return request.param


@pytest.fixture
def run(work):
    """A finished run with samples, beside a ledger that judges it."""
    folder = make_run(
        work / "gpt_out" / "mine",
        steps=40,
        seed=3,
        created=CREATED,
        progress={"step": 40, "seconds": 8.0},
        device={"type": "cpu"},
        columns={"x_rank": lambda tokens: 1 + 0 * tokens},
    )
    (folder / "samples.txt").write_text("".join(SAMPLE.format(step=step) for step in (20, 40)))
    judge(work, "at first", "2026-11-02", -0.5)
    return read_run(folder)


def judge(work, how: str, when: str, difference: float) -> None:
    verdict = {"sentence": f"better {how}", "difference": difference, "low": -0.75, "high": -0.25}
    arms = {
        "candidate": {"label": "mine", "runs": ["gpt_out/mine"]},
        "baseline": {"label": "gpt2ish:tiny", "runs": []},
    }
    arms |= {"hypothesis": "x", "aa": False, "p": 0.01}
    with open(work / "gpt_out" / "verdicts.jsonl", "a") as file:
        file.write(json.dumps({**arms, "plan": "quick", "time": when, "verdict": verdict}) + "\nnot JSON\n")


@pytest.mark.process  # wandb writes from a process of its own
def test_what_was_recorded_arrives_once(tracker, run, work):
    send(run, tracker)
    with open(run.folder / "train.csv", "a") as file:  # it goes on from an earlier checkpoint
        lines = (run.folder / "train.csv").read_text().splitlines()
        file.write(lines[-1] + "\n" + lines[-1].replace("main,40.0,", "main,41.0,") + "\nmain,42.0,cut o")
    judge(work, "again", "2026-11-03", -0.625)
    send(run, tracker)
    send(run, tracker)
    name, group, tags, config, scalars, texts = READERS[tracker](work)
    assert (name, group, tags) == ("mine", "gpt2ish", "gpt2ish:tiny, quick, seed 3, cpu")
    assert float(config["settings.lr"]) == 0.001 and float(config["config.n_layer"]) == 4
    assert config["data.hash"] == "ddddaaaa"
    for split, table, steps in (("train", "train", range(1, 42)), ("validation", "validate", range(4, 41, 4))):
        losses = dict(zip(run.table(table)["step"], run.table(table)["loss"], strict=True))
        assert [step for step, _ in scalars[f"{split}/loss"]] == list(steps)
        assert np.allclose([v for _, v in scalars[f"{split}/loss"]], [losses[step] for step in steps], rtol=1e-6)
    assert len(scalars["system/tokens_per_second"]) == len(scalars["train/x_rank"]) == 41
    assert [step for step, _ in texts["samples"]] == [20, 40]
    assert "upon" in texts["samples"][1][1] and "time 40" in texts["samples"][1][1]
    assert sorted(value for _, value in scalars["verdict/difference"])[::-1] == [-0.5, -0.625]
    assert "better again" in texts["verdict"][-1][1]
    assert all("against gpt2ish:tiny on quick" in text for _, text in texts["verdict"])


@pytest.mark.process
def test_a_run_that_is_begun_anew_is_another_one(tracker, run, work):
    send(run, tracker)
    shutil.rmtree(run.folder / "track")  # as --fresh does, and going back to before a cool-down
    (run.folder / "train.csv").write_text("".join((run.folder / "train.csv").open().readlines()[:11]))
    send(run, tracker)
    assert len(NUMBER_OF[tracker](work)) == 2
    send(run, tracker)
    assert len(NUMBER_OF[tracker](work)) == 2


def test_a_tracker_that_fails_is_tried_again_and_said(run, work, monkeypatch, capsys):
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(following, "POLL_SECONDS", 0.0)
    (work / "tensorboard").write_text("in the way")
    follow(run.folder, "tensorboard")
    assert capsys.readouterr().err.count("Traceback") == following.MOST_AT_END
    with pytest.raises(UserError, match="can't be sent to tensorboard"):
        send_run(run, "tensorboard")
    (work / "tensorboard").unlink()
    follow(run.folder, "tensorboard")
    assert len(from_tensorboard(work)[4]["train/loss"]) == 40


FOLLOWS = """
import runpy, sys
from lmplay.track import follow
follow.POLL_SECONDS = 3600.0
sys.argv[1:] = {words!r}
runpy.run_module("lmplay.track", run_name="__main__")
"""


@pytest.mark.process
def test_the_end_of_a_training_wakes_its_follower(run):
    pytest.importorskip("tensorboard")
    run.info |= {"status": "running", "process": this_process()}
    run.write()
    script = [sys.executable, "-c", FOLLOWS.format(words=[str(run.folder), "tensorboard"])]
    env = os.environ | {"PYTHONPATH": str(Path(following.__file__).resolve().parents[2])}
    follower = subprocess.Popen(script, stdin=subprocess.PIPE, env=env)
    deadline = time.monotonic() + 120
    while not (run.folder / "track" / "tensorboard.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    run.info["status"] = "finished"
    run.write()
    follower.stdin.close()
    try:
        assert follower.wait(120) == 0
    finally:
        follower.kill()


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="sessions share alike elsewhere")
def test_a_follower_stands_back_from_the_training(run):
    pytest.importorskip("tensorboard")
    followers = Followers(run.folder, ("tensorboard",))
    followers.start()
    pid = followers.processes["tensorboard"].pid
    assert os.getpriority(os.PRIO_PROCESS, pid) == 19
    assert Path(f"/proc/{pid}/autogroup").read_text().split()[-1] == "19"
    followers.wait()
    assert followers.processes["tensorboard"].stdin.closed  # which wakes it
    assert followers.processes["tensorboard"].returncode == 0


@pytest.mark.process
def test_a_training_is_tracked_while_it_runs_and_goes_on_in_the_same_tracked_run(trainer, plans, work):
    pytest.importorskip("tensorboard")
    words = ["--exp", "gpt2ish", "--set", "n_layer=1", "--set", "n_embd=16", "--set", "n_head=2", "--device", "cpu"]
    words += ["--context-len", "16", "--batch-size", "4", "--training-plan", plans["plain"], "--run-name", "a"]
    words += ["--validation-interval", "4", "--validation-tokens", "1000", "--backup-interval", "8"]
    config = work / "config.json"
    config.write_text(json.dumps({"track": ["tensorboard"]}))
    assert trainer(*words, "--max-steps", "12", "--use-config", str(config)).status == 0
    shutil.rmtree(work / "gpt_out" / "a" / "checkpoints" / "step_00000012")
    assert trainer(*words, "--max-steps", "12", "--track", "tensorboard").status == 0
    name, group, _, config, scalars, texts = from_tensorboard(work)
    assert (name, group) == ("a", "gpt2ish") and config["settings.batch_size"] == "4"
    run = read_run(work / "gpt_out" / "a")
    for split, table in (("train", "train"), ("validation", "validate")):
        found = run.table(table)
        assert [step for step, _ in scalars[f"{split}/loss"]] == list(found["step"])
        assert np.allclose([value for _, value in scalars[f"{split}/loss"]], found["loss"], rtol=1e-6)
    assert [step for step, _ in texts["samples"]] == [4, 8, 12]
    assert b"Traceback" not in (run.folder / "track" / "tensorboard.log").read_bytes()


def test_nothing_is_read_without_end_or_written_through_a_link(run, work):
    pytest.importorskip("tensorboard")
    note = run.folder / "track" / "tensorboard.json"
    note.parent.mkdir()
    for path in (note, run.folder / "samples.txt", run.folder.parent / "verdicts.jsonl"):
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    send_run(run, "tensorboard")
    assert len(from_tensorboard(work)[4]["train/loss"]) == 40
    shutil.rmtree(note.parent)
    (work / "mine").mkdir()
    note.parent.symlink_to(work / "mine")
    with pytest.raises(UserError, match="is a link"):
        send_run(run, "tensorboard")
    assert not any((work / "mine").iterdir())


def test_what_is_missing_or_unknown_is_said(work):
    with pytest.raises(UserError, match=r"no_such_tracker is missing.*pip install 'lmplay\[no_such_tracker\]'"):
        check_trackers(("no_such_tracker",))
    (work / "config.json").write_text('{"track": ["tensorbored"]}')
    with pytest.raises(UserError, match="track must be one of tensorboard"):
        read_config("config.json")
