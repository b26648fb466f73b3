"""--ladder: sizes, what is carried up, and the real command on a micro ladder."""

import json
import re

import pytest

from lmplay.cli import compare as command
from lmplay.compare.rungs import Rung, base_settings, batch_at, carried, size_of, sizes_of, with_rate
from lmplay.errors import OUT_OF_TIME, UserError
from lmplay.runs.settings import Settings
from lmplay.stats.choices import Choice
from lmplay.stats.share_out import decidable, half_widths, share_out
from support.small import TINY


def test_sizes_are_layers_width_and_heads():
    assert size_of("d3").fields == ("n_layer=3", "n_head=3", "n_embd=192")
    assert size_of("3x96").fields == ("n_layer=3", "n_head=3", "n_embd=96")
    assert [one.name for one in sizes_of("laptop")] == ["2x64", "3x96", "4x128"]
    assert [size_of(name).below().name for name in ("d3", "d1", "2x64", "1x16")] == ["d2", "1x32", "1x32", "1x8"]
    for wrong in ("d0", "tiny", "2x15", "d2"):
        with pytest.raises(UserError, match="--ladder"):
            sizes_of(wrong)


@pytest.mark.parametrize("more", [{"max_steps": 9}, {"set": ("n_layer=2",)}, {"epochs": 1.0}])
def test_what_a_ladder_sets_can_not_be_typed(more):
    with pytest.raises(UserError, match="--ladder sets"):
        base_settings(Settings(**more), "d2,d3")


def test_rates_and_decay_are_carried_by_the_rules():
    low, high = (
        Rung(size_of("2x64"), 10**6, tokens=10**6, batch_size=16),
        Rung(size_of("4x256"), 16 * 10**6, 16 * 10**6, 46),
    )
    assert batch_at(16, 16e6, 1e6) == 46  # 16 * 16^0.383
    chosen = Choice((("lr", 0.01), ("embedding_lr", 4.0), ("mlp_ratio", 2.0)))
    settings = Settings(weight_decay=0.1)
    found = dict(carried(chosen, settings, low, high).values)
    assert found["lr"] == pytest.approx(0.01 * (46 / 16) ** 0.5 / 2, rel=1e-3) and found["embedding_lr"] == 4.0
    assert found["mlp_ratio"] == 2.0
    assert found["weight_decay"] == pytest.approx(0.1 * (46 / 16) ** 0.5 / 16, rel=1e-3)
    muon = dict(carried(chosen, Settings(optimizer="muon", muon_scale="rows"), low, high).values)
    assert muon["lr"] == pytest.approx(0.01 * (46 / 16) ** 0.5, rel=1e-3)
    assert (muon["embedding_lr"], muon["head_lr"]) == (2.0, 0.5)  # AdamW's, by the width
    muon = dict(carried(chosen, Settings(optimizer="muon", muon_scale="match_rms"), low, high).values)
    assert muon["lr"] == pytest.approx(0.01 * (46 / 16) ** 0.5 / 2, rel=1e-3)  # a step's norm grows by sqrt(4)
    assert (muon["embedding_lr"], muon["head_lr"]) == (4.0, 1.0)
    assert carried(chosen, settings, low, low) == chosen
    assert dict(with_rate(Choice(), Settings(lr=0.02), 0.5).values) == {"lr": 0.01}


def test_seeds_are_shared_out_for_the_trend():
    sizes, costs = (13.5, 14.2, 14.8), (57, 168, 419)
    pairs = share_out(sizes, costs, 3)
    assert sum(n * cost for n, cost in zip(pairs, costs)) <= 3 * sum(costs)
    assert pairs[0] == max(pairs) and min(pairs) >= 2
    assert half_widths(sizes, pairs)[0] < 0.85 * half_widths(sizes, (3, 3, 3))[0]
    assert share_out(sizes, costs, 2) == (2, 2, 2)
    assert share_out((13.0, 14.0), (1, 1), 4) == (4, 4)
    effect, trend = decidable(sizes, (3, 3, 3), spread=0.05)
    assert decidable(sizes, (3, 3, 3), spread=0.1) == pytest.approx((2 * effect, 2 * trend))


@pytest.fixture
def climb(plans, work, capfd):
    def run(*words):
        flags = [*TINY[8:], "--training-plan", plans["plain"], "--validation-tokens", "1000", "--max-tokens", "600"]
        flags += ["--exp", "llama2:tiny", "--baseline", "gpt2ish:tiny", "--ladder", "1x16,1x32", "--seeds", "2"]
        status = command.main([*flags, *words])
        return status, *capfd.readouterr()

    return run


@pytest.mark.slow
@pytest.mark.process  # runs are trained in processes of their own
def test_a_micro_ladder(climb, work):
    status, out, err = climb("--dry-run", "--tune", "lr=1e-3,4e-3")
    assert status == 0 and not list(work.glob("gpt_out/*/run.json"))
    assert re.search(r"^1x8 .*baseline only$", out, re.M) and re.search(r"^1x32 .* 2$", out, re.M)
    assert "with 80% power" in out and "minutes of training" in out and "warning: " in out
    status, out, err = climb("--lr", "4e-3", "--on", "processes:2")
    assert status == 0, err
    begun = re.findall(r"^run \d+ of \d+: .* -> (\S+)", err, re.M)
    assert len(begun) == len(set(begun)) == 14  # each run is trained once
    runs = [json.loads(path.read_text())["settings"] for path in work.glob("gpt_out/*/run.json")]
    # 2 arms: 2 pairs at 2 sizes, 2 rates beside each other at the top; 2 of the baseline below
    assert len(runs) == 2 * (4 + 2) + 2 and sorted({run["seed"] for run in runs}) == [0, 1, 1000]
    lowest, top = ([run for run in runs if f"n_embd={width}" in run["set"]] for width in (16, 32))
    assert len(lowest) == 4 and {(run["max_tokens"], run["lr"]) for run in lowest} == {(600, 4e-3)}
    carried_up = 4e-3 * (top[0]["batch_size"] / lowest[0]["batch_size"]) ** 0.5 / 2**0.5
    assert sorted({run["lr"] for run in top}) == pytest.approx([carried_up / 2, carried_up], rel=1e-3)
    assert "the arms were not tuned" in out
    # losses of a few steps may not fall from size to size
    assert "does not fall from size to size" in out or "per tenfold compute" in out
    again, said, err = climb("--lr", "4e-3")
    assert (again, said) == (0, out) and "run 1 of" not in err  # nothing is trained again


@pytest.mark.process
def test_a_ladder_is_refused_or_fitted_before_it_begins(climb, work):
    """Fields that no model has; a time that is too short, and one that allows more than the fewest pairs."""
    for values in ("nothing=1", "nothing=1,2"):
        status, out, err = climb("--dry-run", "--tune", values)
        assert (status, out) == (2, "") and "nothing" in err.splitlines()[-1]
    status, out, err = climb("--budget", "0.01s")
    assert (
        status == OUT_OF_TIME and out == "" and "--budget is too short: the shortest ladder would take about" in err
    ), (
        status,
        err,
    )
    status, out, err = climb("--budget", "2h", "--seeds", "3", "--dry-run")
    assert status == 0 and re.search(
        r"^budget 2 h: .* tokens per parameter, pairs at the rungs \d+, \d+: about", out, re.M
    )
    pairs = [int(n) for n in re.findall(r"rungs (\d+), (\d+):", out)[0]]
    assert sum(pairs) > 4 and "% of compute over the ladder" in out
    assert not list(work.glob("gpt_out/*/run.json"))
