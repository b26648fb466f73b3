"""What a comparison judges, what it refuses to judge, and that every output says so."""

import csv
import io

import numpy as np
import pandas
import pytest

from lmplay.report.arms import Arm
from lmplay.report.comparison import as_text, compare_arms
from lmplay.report.page import as_html
from lmplay.report.report import as_csv, as_markdown, of_comparison
from lmplay.stats.prior import Prior
from support.judged_runs import make_judged_run


def arm_of(folder, experiment, seeds=(0, 1, 2), effect=0.0, **more) -> Arm:
    """Return an arm with a run for each seed."""
    runs = {k: make_judged_run(folder / f"{experiment}{k}", experiment, k, effect, **more) for k in seeds}
    return Arm(f"{experiment}:tiny", {1e-3: runs})


def outputs_of(comparison) -> dict[str, str]:
    """Return the comparison as text, page, Markdown and CSV."""
    report = of_comparison(comparison)
    page = as_html(report)
    return {"text": as_text(comparison), "page": page, "markdown": as_markdown(report), "csv": as_csv(report)}


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_earlier_runs_and_their_share_stand_in_every_output(tmp_path):
    base, idea = arm_of(tmp_path, "gpt2ish"), arm_of(tmp_path, "idea", effect=-0.2)
    prior = Prior(1e-4, 6, "earlier runs in gpt_out (4 runs, under shared seeds)", ("older7", "older8"))
    found = outputs_of(compare_arms(base, [idea], prior_of=lambda one, other: prior))
    for kind in ("text", "page", "markdown"):
        assert "counts for 6 of 8 degrees of freedom (75%)" in found[kind], kind
        assert "older7, older8" in found[kind], kind
    first, second = rows_of(found["csv"])
    assert (second["prior_runs"], float(second["prior_share"])) == ("older7 older8", 0.75)
    assert first["prior_runs"] == ""


def diverging(arm: Arm, *numbers: int) -> Arm:
    """Return an arm whose loss was not finite in these pairs."""
    return Arm(arm.label, {rate: runs | dict.fromkeys(numbers) for rate, runs in arm.runs.items()})


PRIOR = Prior(1e-4, 30, "earlier runs in gpt_out (31 runs, seeds not paired)", ("older",))


def verdict_of(base: Arm, idea: Arm):
    comparison = compare_arms(base, [idea], prior_of=lambda one, other: PRIOR, margin=0.5)
    return comparison, comparison.candidates[0]


def test_nothing_is_better_by_the_seeds_that_did_not_diverge(tmp_path):
    base, idea = arm_of(tmp_path, "gpt2ish", range(5)), arm_of(tmp_path, "idea", range(5), effect=-0.2)
    assert verdict_of(base, idea)[1].word == "better"
    comparison, one = verdict_of(base, diverging(idea, 0, 1, 2, 3))
    assert one.word == "not decided" and one.held_back and one.arm.failed == [0, 1, 2, 3]
    assert not one.at_equal and not one.savings
    found = outputs_of(comparison)
    for kind in ("text", "page", "markdown"):
        assert "diverged (the loss was not finite): 4 seeds, 0, 1, 2, 3" in found[kind].replace("\\", ""), kind
        assert "which is not decided therefore" in found[kind], kind
    base_row, row = rows_of(found["csv"])
    assert (row["verdict"], row["failed_seeds"], row["failed_seed_numbers"]) == ("not decided", "4", "0 1 2 3")
    assert base_row["failed_seeds"] == "0"


def test_seeds_that_diverge_in_both_arms_hold_nothing_back(tmp_path):
    base, idea = arm_of(tmp_path, "gpt2ish"), arm_of(tmp_path, "idea", effect=-0.2)
    comparison, one = verdict_of(diverging(base, 1), diverging(idea, 1))
    assert one.word == "better" and one.savings and one.arm.failed == comparison.baseline.failed == [1]
    for kind, text in outputs_of(comparison).items():
        assert kind == "csv" or text.count("diverged (the loss was not finite): 1 seed, 1") >= 2, kind


def test_the_baseline_is_not_flattered_either(tmp_path):
    base, idea = arm_of(tmp_path, "gpt2ish"), arm_of(tmp_path, "idea", effect=0.2)
    assert verdict_of(base, idea)[1].word == "worse"
    assert verdict_of(diverging(base, 1), idea)[1].word == "not decided"
    assert verdict_of(base, diverging(idea, 1))[1].word == "worse"  # it diverged, and the rest is worse


def test_no_equality_where_one_diverged(tmp_path):
    base, idea = arm_of(tmp_path, "gpt2ish"), arm_of(tmp_path, "idea")
    assert verdict_of(base, idea)[1].word == "equal"
    assert verdict_of(base, diverging(idea, 2))[1].word == "not decided"


def test_seeds_of_an_arm_with_other_seeds(tmp_path):
    """Pair number 1 of an arm that begins at seed 3 is seed 4."""
    base, idea = arm_of(tmp_path, "gpt2ish"), arm_of(tmp_path, "idea")
    other = Arm("idea (other seeds)", diverging(idea, 1).runs, first_seed=3)
    assert verdict_of(base, other)[1].arm.failed == [4]


def test_steady_times_are_compared_and_the_spread_stands_beside(tmp_path):
    base, idea = arm_of(tmp_path, "gpt2ish"), arm_of(tmp_path, "idea", effect=-0.2, seconds_a_step=0.3)
    comparison = compare_arms(base, [idea])
    assert "seconds" in comparison.candidates[0].at_equal and "seconds" in comparison.candidates[0].savings
    found = outputs_of(comparison)
    for kind in ("text", "page", "markdown"):
        assert "the spread of tokens/s is 0.0% within runs, 0.0% between runs" in found[kind], kind
    _, row = rows_of(found["csv"])
    assert float(row["tokens_per_second_spread_within_runs"]) < 1e-6
    assert row["at_equal_seconds_difference"] and row["seconds_needed"]


MACHINES = {"device": {"name": "another processor"}, "number of devices": {"ranks": {"n": 2}}}


@pytest.mark.parametrize("what", ["between", "within", *MACHINES])
def test_unsteady_times_are_not_compared(tmp_path, what):
    """A copy of a model under other work on the machine: no verdict at equal seconds."""
    base, copy = arm_of(tmp_path, "gpt2ish"), arm_of(tmp_path, "copy")
    if what in MACHINES:
        copy = arm_of(tmp_path / "elsewhere", "copy", device=MACHINES[what])
    else:
        late = copy.runs[1e-3][1].folder / "train.csv"
        table = pandas.read_csv(late)
        table["seconds"] += 0.4 * (table["step"] if what == "between" else np.clip(table["step"] - 90, 0, None))
        table.to_csv(late, index=False)
    comparison = compare_arms(base, [copy])
    one = comparison.candidates[0]
    assert "seconds" not in one.at_equal and "seconds" not in one.savings and "flops" in one.at_equal
    for kind, text in outputs_of(comparison).items():
        if kind == "csv":
            row = rows_of(text)[1]
            assert not row["at_equal_seconds_low"] and not row["seconds_needed"] and row["flops_needed"]
            worst = max(float(row[f"tokens_per_second_spread_{name}_runs"]) for name in ("within", "between"))
            assert (worst > 0.03) == (what not in MACHINES)
        else:
            assert "times are not comparable here: the spread of tokens/s is" in text, kind
            for which in MACHINES:
                assert (f"not all runs had the same {which}" in text) == (which == what), (kind, which)
