"""What version 95b9b23 left behind stays good: runs load, write, plot and go on; plans, stores, orders and seeds keep
their hashes.
"""

import csv
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmplay.data import documents, plans, prepare
from lmplay.data.order import SampleOrder
from lmplay.initial_values import seed_of
from support.thorough import first

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))
HASHES = json.loads((FIXTURES / "hashes.json").read_text(encoding="utf-8"))
RESUMED = ("by_data", "by_plan")


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """A working folder, the current one, with the old runs in gpt_out, their text, their plan and their experiment."""
    folder = tmp_path / "old"
    shutil.copytree(FIXTURES / "runs", folder / "gpt_out")
    shutil.copytree(FIXTURES / "experiments", folder / "experiments")
    for name in ("one.txt", "two.txt", "frozen_plan.json"):
        shutil.copy(FIXTURES / name, folder)
        os.utime(folder / name, (1_700_000_000, 1_700_000_000))  # a store is named by the times of its files
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LMPLAY_DATA", str(tmp_path / "data"))
    return folder


def lmp(command: str, *flags: str) -> subprocess.CompletedProcess:
    """The finished `lmp_<command>` in a process of its own."""
    code = f"import sys; from lmplay.cli.{command} import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def losses(run: Path, name: str) -> list[list[float]]:
    with open(run / f"{name}.csv", encoding="utf-8", newline="") as file:
        return [[int(row["step"]), float(row["loss"])] for row in csv.DictReader(file)]


def short_hash(value) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=8).hexdigest()


@pytest.mark.process
@pytest.mark.parametrize("run", EXPECTED)
def test_an_old_run_writes_the_same_greedy_text(old, run):
    done = lmp("generator", "--run", run, "--device", "cpu", "--no-do-sample", "--max-len", "24", "one")
    assert done.stdout == EXPECTED[run]["greedy"]


@pytest.mark.process
@pytest.mark.parametrize("run", first(1, RESUMED))
def test_an_old_run_goes_on_to_the_same_losses(old, run):
    expected = EXPECTED[run]
    done = lmp("trainer", *expected["flags"], "--run-name", run)
    assert "continuing after" in done.stderr and str(expected["stopped_at"]) in done.stderr
    for table, name in (("train", "train_loss"), ("validate", "validation_loss")):
        steps, values = zip(*losses(old / "gpt_out" / run, table))
        wanted_steps, wanted = zip(*expected[name])
        assert steps == wanted_steps
        assert values == pytest.approx(wanted, abs=1e-4)


@pytest.mark.process
@pytest.mark.thorough
def test_old_runs_are_plotted_and_grouped_with_a_new_one(old):
    """A run with another seed, trained today in the old order, is drawn as one line with the old one: a setting that is
    younger counts as what runs did before. In the new order it is a line of its own.
    """
    flags = EXPECTED["by_plan"]["flags"]
    lmp("trainer", *flags, "--run-name", "by_plan")
    lmp("trainer", *flags, "--run-name", "again", "--seed", "1", "--data-order", "1")
    lmp("trainer", *flags, "--run-name", "anew", "--seed", "2")
    orders = [
        json.loads((old / "gpt_out" / name / "run.json").read_text(encoding="utf-8")) for name in ("by_plan", "anew")
    ]
    assert [info["settings"]["data_order"] for info in orders] == [1, 2]
    done = lmp("plotstats", "--baseline", "gpt2ish")
    assert (old / "gpt_out" / "log_loss.png").stat().st_size > 10_000
    rows = [line for line in done.stdout.splitlines() if line.startswith("frozen")]
    assert len([row for row in rows if "(n=2)" in row]) == 1, done.stdout
    for run in ("gpt2ish", "llama2"):
        assert run in done.stdout


@pytest.mark.parametrize("name", HASHES["plans"])
def test_plans_keep_their_hashes(name):
    assert plans.load_plan(str(ROOT / "plans" / f"{name}.json")).hash == HASHES["plans"][name]


@pytest.mark.parametrize("name", HASHES["prepared"])
def test_data_and_stores_keep_their_hashes_and_names(old, name):
    plan = plans.plan_from_files(["one.txt", "two.txt"]) if name == "--data" else plans.load_plan("frozen_plan.json")
    data = prepare.prepare(plan, progress=False)
    stores = {
        f"{dataset}-{split}": {"folder": store.folder.name, "hash": store.hash}
        for split, of_split in (("train", data.train), ("validation", data.validation))
        for dataset, store in of_split.items()
    }
    assert HASHES["prepared"][name] == {
        "plan": plan.hash,
        "data": data.hash,
        "tokenizer": data.tokenizer.fingerprint,
        "stores": stores,
    }


@pytest.mark.parametrize("name", HASHES["synthetic_documents"])
def test_synthetic_tasks_keep_their_documents(name):
    plan = plans.load_plan(str(ROOT / "plans" / f"{name}.json"))
    (spec,) = plan.datasets.values()
    for split, expected in HASHES["synthetic_documents"][name].items():
        assert short_hash(list(itertools.islice(documents.documents(spec, plan.folder, split), 10))) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    first(2, HASHES["synthetic"]),
)
def test_synthetic_stores_keep_their_content(old, name):
    data = prepare.prepare(plans.load_plan(str(ROOT / "plans" / f"{name}.json")), progress=False)
    assert data.hash == HASHES["synthetic"][name]["data"]


def test_the_order_of_samples_and_the_seeds_are_as_before(old):
    plan = plans.load_plan("frozen_plan.json")
    data = prepare.prepare(plan, progress=False)
    for phase in plan.phases:
        for shuffle, expected in HASHES["order"][phase.name].items():
            order = SampleOrder(phase, data.train, 32, 7, shuffle=shuffle == "True", version=1)
            assert short_hash(order.windows(3, 9).tokens.tolist()) == expected
    assert HASHES["seeds"] == {name: seed_of(name, 0, 3) for name in HASHES["seeds"]}
