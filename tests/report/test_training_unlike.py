"""Runs that were trained otherwise than the baseline are flagged, and their labels say how."""

import pytest

from lmplay.report.groups import labels
from lmplay.report.overlay import overlay
from lmplay.report.plot_options import PlotOptions
from lmplay.report.report import as_csv, as_markdown, of_overlay
from lmplay.report.training_unlike import planned_steps, training_unlike
from lmplay.runs.run import read_run
from support.making_runs import make_run


@pytest.fixture
def make(tmp_path):
    def made(name, steps=196, experiment="gpt2ish", **more):
        progress = {"phases": [{"name": "main", "n_updates": steps}]}
        settings = more.pop("settings", {}) | {"seed": more.pop("seed", 0)}
        folder = tmp_path / name
        make_run(folder, experiment=experiment, steps=steps, progress=progress, settings=settings, **more)
        return read_run(folder)

    return made


def test_other_budgets_are_said(make, tmp_path):
    make("a"), make("a1", seed=1), make("b", 60, experiment="llama2")
    found = overlay([tmp_path], tmp_path, PlotOptions())
    names = [group.label for group in found.groups]
    assert names == ["gpt2ish:tiny 196 steps (n=2)", "llama2:tiny 60 steps"]
    assert "60 steps instead of 196: llama2:tiny 60 steps" in found.warnings
    assert all("llama2:tiny 60 steps" in text for text in (found.table, as_csv(of_overlay(found))))
    assert "60 steps instead of 196" in as_markdown(of_overlay(found))
    drawn = [line.label for line in found.pictures["log_loss"].lines]
    assert drawn == ["gpt2ish:tiny 196 steps (n=2) (baseline)", "llama2:tiny 60 steps †"]
    assert any("60 steps instead of 196" in note for note in found.pictures["log_loss"].notes)


@pytest.mark.parametrize(
    "settings, reason, label",
    [
        ({"batch_size": 8}, "batch size 8 instead of 50", "batch_size=8"),
        ({"optimizer": "muon"}, "optimizer muon instead of adamw", "optimizer=muon"),
        ({"lr_schedule": "linear"}, "schedule linear instead of cosine", "lr_schedule=linear"),
        ({"warmup_steps": 7}, "schedule warmup_steps=7 instead of warmup_steps=50", "warmup_steps=7"),
        ({"max_minutes": 5.0}, "minutes at most 5 instead of none", "max_minutes=5"),
    ],
)
def test_other_settings_of_the_training_are_said(make, settings, reason, label):
    a, b = make("a"), make("b", experiment="llama2", settings=settings)
    assert reason in training_unlike(b, a)
    ours, theirs = labels([a, b])
    assert theirs.startswith("llama2:tiny") and label in theirs and label.split("=")[0] in ours


def test_what_is_alike_is_not_flagged(make):
    """Another rate or seed, a step more or less, a budget that is not known, and settings without effect."""
    a = make("a")
    for i, more in enumerate(
        (
            {"settings": {"lr": 3e-3}},
            {"steps": 197},
            {"seed": 4},
            {"settings": {"cooldown_fraction": 0.5, "restart_steps": 9}},
        )
    ):
        other = make(f"x{i}", experiment="llama2", **more)
        assert training_unlike(other, a) == [] and labels([a, other]) == ["gpt2ish:tiny", "llama2:tiny"]
    unknown = make("unknown", 60, experiment="llama2")
    unknown.info["progress"] = {"phases": "all"}
    assert planned_steps(unknown) is None and training_unlike(unknown, a) == []


def test_another_batch_with_the_same_text_is_no_other_budget(make):
    a = make("a", settings={"batch_size": 16})
    assert training_unlike(make("b", 392, settings={"batch_size": 8}), a) == ["batch size 8 instead of 16"]
    assert training_unlike(make("c", 392, tokenizer="bbbb"), make("d")) == []  # the same text in other tokens


def test_many_budgets_have_one_name_each(make):
    runs = [make("a"), make("b", 198, experiment="llama2"), make("c", 60, experiment="mamba")]
    assert labels(runs) == ["gpt2ish:tiny 196 steps", "llama2:tiny 196 steps", "mamba:tiny 60 steps"]
