"""The difference between the directions that one model reads in, against scipy's interval."""

import json

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from lmplay.report.directions import between_directions
from lmplay.runs.run import read_run
from support.judged_runs import make_judged_run

FORWARD, BACKWARD = [2.0, 2.1, 2.05, 2.2], [2.03, 2.12, 2.09, 2.21]


def run_with(folder, seed: int, forward: float, backward: float, trained: bool = True):
    """A run whose last validation has these losses; `trained`: whether train.csv has their columns, too."""
    run = make_judged_run(folder / f"r{seed}", "both_ways", seed)
    for name, columns in (
        ("validate.csv", {"loss_forward": forward, "loss_backward": backward}),
        ("train.csv", {"x_loss_forward": 0.5, "x_loss_backward": 0.5} if trained else {}),
    ):
        header, *rows, last = (run.folder / name).read_text().splitlines()
        extra = "".join(f",{value}" for value in columns.values())
        early = ",9.0" * len(columns)
        lines = [header + "".join(f",{column}" for column in columns), *(row + early for row in rows), last + extra]
        (run.folder / name).write_text("\n".join(lines) + "\n")
    return read_run(run.folder)


@pytest.mark.parametrize("sign, word", [(1, "backward is harder"), (-1, "backward is easier")])
def test_the_interval_over_seeds_is_students(tmp_path, sign, word):
    pairs = list(zip(FORWARD, BACKWARD, strict=True))
    runs = [run_with(tmp_path, k, *pair[::sign]) for k, pair in enumerate(pairs)]
    [said] = between_directions("both_ways:tiny", runs)
    differences = sign * (np.array(BACKWARD) - np.array(FORWARD))
    low, high = ttest_1samp(differences, 0.0).confidence_interval(0.95)
    assert f"{word}, {differences.mean():+.4f} nats per token" in said and low * high > 0
    assert f"(95% interval {low:+.4f} to {high:+.4f}, 4 seeds)" in said


def test_what_is_not_decided_says_so(tmp_path):
    runs = [run_with(tmp_path, 0, 2.0, 2.03), run_with(tmp_path, 1, 2.1, 2.09)]
    assert "not decided" in between_directions("both_ways:tiny", runs)[0]
    [one] = between_directions("both_ways:tiny", runs[:1])
    assert "+0.0300" in one and "1 seed: nothing is decided" in one


def test_losses_of_datasets_are_no_directions(tmp_path):
    assert between_directions("gpt2ish:tiny", [run_with(tmp_path, 0, 2.0, 2.1, trained=False)]) == []
    assert json.loads((tmp_path / "r0" / "run.json").read_text())  # and the run is one
