"""--tune: each arm gets its own best of the same grid, and a best value at the edge extends it for all."""

import re

import pytest

from lmplay.cli import compare as command
from lmplay.compare.tuning import Axis, applied, axes_of, axis_of, extended, points
from lmplay.errors import UserError
from lmplay.runs.settings import Settings
from lmplay.stats.choices import Choice, Edge, edges_of
from support.small import TINY


def test_an_axis_is_read_and_sorted():
    assert axis_of("lr=2e-3,1e-3,1e-3") == Axis("lr", (1e-3, 2e-3))
    assert axis_of("--warmup-steps=10") == Axis("warmup_steps", (10,))
    assert axis_of("optimizer=muon,adamw") == Axis("optimizer", ("muon", "adamw"))
    assert axis_of("any_field=tanh,none") == Axis("any_field", ("tanh", "none"))


@pytest.mark.parametrize(
    "text, why",
    [
        ("lr", "takes FIELD=A,B,C"),
        ("lr=1,,2", "takes FIELD=A,B,C"),
        ("lr=1e-3,nan", "is no value to try"),
        ("lr=0,1", "--lr must be more than 0"),
        ("lr=fast", "--tune lr=fast: --lr must be a number"),
        ("optimizer=best", "must be one of adamw"),
        ("batch_size=8,16", "is the same for all arms"),
        ("max_tokens=8,16", "is the same for all arms"),
        ("vocab_size=8,16", "is the same for all arms"),
    ],
)
def test_what_can_not_be_tuned_is_one_line(text, why):
    with pytest.raises(UserError, match=re.escape(why)):
        axes_of([text])


def test_a_field_is_named_once():
    with pytest.raises(UserError, match="there twice"):
        axes_of(["lr=1,2", "lr=3"])


def test_points_are_all_combinations_and_settings():
    axes = axes_of(["lr=1e-3,2e-3", "embedding_std=1,10", "beta2=0.9"])
    found = points(axes)
    assert [str(one) for one in found] == [
        f"lr {lr}, embedding_std {factor}" for lr in ("0.001", "0.002") for factor in (1, 10)
    ]
    settings = applied(Settings(set=("embedding_std=3", "n_layer=2")), found[-1])
    assert settings.lr == 2e-3 and settings.set == ("n_layer=2", "embedding_std=10")
    assert (
        applied(Settings(), Choice((("warmup_steps", 20.0), ("decay_all", "on")))).as_json()
        | {
            "warmup_steps": 20,
            "decay_all": True,
        }
        == applied(Settings(), Choice((("warmup_steps", 20.0), ("decay_all", "on")))).as_json()
    )


def test_a_grid_grows_in_its_own_ratio_and_never_across_0():
    axes = axes_of(["lr=1e-3,2e-3", "weight_decay=0,0.1,0.3", "optimizer=adamw,muon"])
    both = [Edge("lr", 2e-3, 1), Edge("weight_decay", 0.3, 1), Edge("optimizer", 0, 1)]
    assert extended(axes, both)[0].values == (1e-3, 2e-3, 4e-3)
    assert extended(axes, both)[1].values == (0, 0.1, 0.3, 0.9)
    assert extended(axes, [Edge("lr", 1e-3, -1), Edge("weight_decay", 0, -1)])[0].values == (5e-4, 1e-3, 2e-3)
    assert extended(axes, [Edge("weight_decay", 0, -1)]) == axes


def test_edges_are_those_of_numbers_with_others_beside_them():
    grid = points(axes_of(["lr=1,2,4", "act=a,b"]))
    best = Choice((("lr", 4.0), ("act", "a")))
    assert edges_of(best, grid) == (Edge("lr", 4.0, 1),)
    assert edges_of(Choice((("lr", 2.0), ("act", "b"))), grid) == ()
    assert "candidate's best learning rate 4 is at the edge of its grid: try some above 4" in (
        edges_of(best, grid)[0].sentence("the candidate")
    )


@pytest.mark.slow
@pytest.mark.process  # runs are trained in processes of their own
@pytest.mark.thorough
def test_the_best_at_the_edge_extends_the_grid_of_both_arms(plans, work, capfd):
    flags = ["--training-plan", plans["plain"], *TINY[2:], "--max-steps", "8", "--validation-tokens", "1000"]
    flags += ["--exp", "llama2:tiny", "--baseline", "gpt2ish:tiny", "--seeds", "1"]
    assert command.main([*flags, "--tune", "lr=1e-5,1e-4", "--tune", "mlp_ratio=2", "--extend", "1"]) == 0
    out, err = capfd.readouterr()
    assert len(re.findall(r"^run \d of", err, re.M)) == 6
    assert "a best value is at the edge, so all arms get more: lr=1e-05,0.0001,0.001; mlp_ratio=2" in err
    assert "llama2:tiny lr 0.001" in out and "gpt2ish:tiny lr 0.001" in out
    assert out.count("at the edge of its grid: try some above 0.001") == 2 and "not tuned" not in out
    assert all("mlp_ratio=2" in path.name for path in work.glob("gpt_out/*_s0"))
    assert command.main([*flags, "--tune", "mlp_ratio=2", "--lr", "1e-4"]) == 0  # of runs that are there
    out, err = capfd.readouterr()
    assert "the arms were not tuned" in out and "run 1 of" not in err
    assert command.main([*flags, "--tune", "no_field=1,2"]) == 2
    out, err = capfd.readouterr()
    assert "no_field" in err and "Traceback" not in err
