"""Runs of a comparison side by side, and seeds together: the same runs, whatever way they were trained."""

import json

import pytest

from lmplay.cli import compare as command
from lmplay.compare.backends import How
from lmplay.compare.sites import Processes
from lmplay.runs.run import read_run
from support.small import TINY

pytestmark = pytest.mark.process  # runs are trained in processes of their own

FLAGS = [*TINY[2:], "--max-steps", "4", "--validation-tokens", "200", "--threads", "1", "--baseline", "gpt2ish:tiny"]


@pytest.fixture
def compare(plans, work, capfd):
    """Runs `lmp_compare` in the working folder: (exit status, stdout, stderr)."""

    def run(*words):
        status = command.main(["--training-plan", plans["plain"], *FLAGS, *words])
        return status, *capfd.readouterr()

    return run


def weights(folder):
    """The checksums of all weights below a folder, by run."""
    files = sorted(folder.glob("*/checkpoints/step_00000004/state.json"))
    sums = [json.loads(file.read_text("utf-8"))["checksums"]["checkpoint"]["model.safetensors"] for file in files]
    return dict(zip((file.parts[-4] for file in files), sums, strict=True))


@pytest.mark.slow
def test_side_by_side_they_are_the_same_to_the_bit(compare, work):
    status, said, _ = compare("--exp", "llama2:tiny", "--seeds", "2", "--out", "one", "--no-report")
    assert status == 0
    status, side_by_side, shown = compare(
        "--exp", "llama2:tiny", "--seeds", "2", "--out", "two", "--jobs", "2", "--no-report"
    )
    assert status == 0
    assert weights(work / "one") == weights(work / "two") and len(weights(work / "two")) == 4
    assert "gpt2ish:tiny, seed 0: " in shown and "llama2:tiny, seed 1: " in shown


@pytest.mark.slow
def test_seeds_together_and_a_model_that_does_not_stack(compare, work):
    status, _, shown = compare("--exp", "pldr:tiny", "--seeds", "2", "--together", "2", "--no-report")
    assert status == 0
    runs = {file.parent.name: read_run(file.parent) for file in (work / "gpt_out").glob("*/run.json")}
    together = {name for name, run in runs.items() if run.get("together")}
    assert len(runs) == 4 and together == {name for name in runs if name.startswith("gpt2ish")}
    assert "the seeds of pldr:tiny are trained one by one: its forward" in shown
    assert {run.get("device", "threads") for run in runs.values()} == {1}


def test_as_many_seeds_are_added_as_train_together_and_are_needed():
    site = Processes()
    assert How(site).seeds_to_add(5, left=6) == How(site).seeds_to_add(None, left=6) == 1
    assert [How(site, together=4).seeds_to_add(n, left=6) for n in (1, 3, 9, None)] == [1, 3, 4, 4]
    assert [How(site, together=4, auto=True).seeds_to_add(n, left=2) for n in (1, 9, None)] == [1, 2, 1]


@pytest.mark.thorough
@pytest.mark.slow
def test_seeds_are_added_together_until_it_is_sure(compare, work):
    """A model against itself is never sure: 2 seeds at first, then 2 more."""
    status, said, shown = compare("--aa", "--until-sure", "--max-seeds", "4", "--no-report", "--together", "2")
    assert status == 0 and "(4 seeds," in said
    assert shown.count("after 2 seeds: not decided") == 1 and "after 3 seeds" not in shown
    runs = [read_run(file.parent) for file in (work / "gpt_out").glob("*/run.json")]
    assert [run.get("together", "seeds") for run in runs] == [2] * 8
