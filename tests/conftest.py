"""What tests share: text, plans and experiments of their own, and real trainer processes that are over in a moment."""

import json
import os
import random
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: the models are tiny, and the same bits are wanted every time

import pytest

from support.small import EXPERIMENTS, make_text, write_plan
from support.trainer_process import TrainerProcess

PROCESS_FIXTURES = {"trainer"}
os.environ.setdefault("LMPLAY_HANG_SECONDS", "0")  # nothing listens to what trains in this process
_unmarked = False  # whether the test that runs now is one that must start no process


def _refuse_processes(event: str, arguments: tuple) -> None:
    if _unmarked and event in ("subprocess.Popen", "os.fork", "os.posix_spawn"):
        command = arguments[1] if event == "subprocess.Popen" else ()
        if "git" not in command[:1]:  # run.json notes the commit
            raise RuntimeError(f"{event}: a test that starts a process carries the marker `process`")


sys.addaudithook(_refuse_processes)


def pytest_collection_modifyitems(items):
    for item in items:
        if PROCESS_FIXTURES & set(item.fixturenames):
            item.add_marker("process")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Hold tests to their markers: only those marked `process`, `slow` or `gpu` start one."""
    global _unmarked
    _unmarked = not any(item.get_closest_marker(name) for name in ("process", "slow", "gpu"))
    try:
        return (yield)
    finally:
        _unmarked = False


@pytest.fixture(scope="session", autouse=True)
def prepared_data(tmp_path_factory):
    """Prepared data goes into a folder of this session; runs made elsewhere, tests/fixtures/runs, are trusted."""
    os.environ["LMPLAY_DATA"] = str(tmp_path_factory.mktemp("data"))
    os.environ["LMPLAY_TRUST_CODE"] = "1"


@pytest.fixture(scope="session")
def plans(tmp_path_factory) -> dict[str, str]:
    """Plan files over text made on the spot: `plain`, `answers` (prompts of very different length), `two_steps`."""
    folder = tmp_path_factory.mktemp("plans")
    for name, seed in (("one", 1), ("two", 2)):
        (folder / f"{name}.txt").write_text(make_text(60, seed), encoding="utf-8")
    draw = random.Random(3)
    rows = [
        {
            "question": "x" * draw.choice((1, 5, 100, 400)),
            "answer": "".join(draw.choices("abcde", k=draw.choice((1, 20, 60)))),
        }
        for _ in range(120)
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    one, two = {"files": "one.txt"}, {"files": "two.txt"}
    return {
        "plain": write_plan(folder, "plain", {"one": one}, [{"datasets": ["one"]}]),
        "answers": write_plan(
            folder,
            "answers",
            {"answers": {"files": "answers.jsonl", "prompt": "question", "answer": "answer"}},
            [{"datasets": ["answers"]}],
        ),
        "two_steps": write_plan(
            folder,
            "two_steps",
            {"one": one, "two": two},
            [
                {"name": "first", "datasets": ["one"], "tokens": 640},
                {"name": "second", "datasets": ["one", "two"], "tokens": 640},
            ],
        ),
    }


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    """An empty working folder that is the current one."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def experiment(work):
    """Makes an experiment in the working folder, gpt2ish and an addition: `experiment("mine", "causal = False")`."""

    def make(name: str, addition: str = "") -> str:
        folder = work / "experiments" / name
        folder.mkdir(parents=True)
        source = (EXPERIMENTS / "gpt2ish" / "model.py").read_text(encoding="utf-8")
        (folder / "model.py").write_text(f"{source}\n\n{addition}\n", encoding="utf-8")
        return name

    return make


@pytest.fixture
def trainer(work):
    """Runs `lmp_trainer` with the given flags in the working folder, as a process of its own, and waits for its end."""

    def run(*flags: str, **options) -> TrainerProcess:
        return start_trainer(*flags, **options).wait()

    def start_trainer(*flags: str, **options) -> TrainerProcess:
        process = TrainerProcess([str(f) for f in flags], work, **options)
        started.append(process)
        return process

    started: list[TrainerProcess] = []
    run.start = start_trainer
    yield run
    for process in started:
        process.end()
