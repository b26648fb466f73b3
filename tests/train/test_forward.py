"""The trainer trains an experiment's forward, and says where it can't take a shortcut."""

import json
import math

import pandas
import pytest

from lmplay.runs.settings import Settings
from lmplay.train.loop import Trainer
from lmplay.train.setup import set_up

BLIND = """
class Model(Model):
    def forward(self, tokens, cache=None):
        logits = super().forward(tokens, cache)
        return 0 * logits if {when} else logits
"""


def train(plan, exp):
    settings = Settings(
        exp=exp,
        set=("n_layer=1", "n_embd=16", "n_head=2"),
        training_plan=plan,
        context_len=16,
        batch_size=4,
        max_steps=4,
        validation_interval=2,
        validation_tokens=200,
        device="cpu",
        run_name="r",
    )
    trainer = Trainer(set_up(settings))
    assert trainer.train() == "finished"
    folder = trainer.setup.folder
    tables = [pandas.read_csv(folder / f"{name}.csv")["loss"] for name in ("train", "validate")]
    return *tables, json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize("when", ["self.training", "tokens.size(1) > 1"])
def test_what_forward_does_at_times_only_is_trained_and_said_once(plans, experiment, when, capsys):
    experiment("mine", BLIND.format(when=when))
    training, validation, info = train(plans["plain"], "mine")
    assert training.tolist() == pytest.approx([math.log(257)] * 4, abs=1e-5)
    if when != "self.training":
        assert validation.tolist() == pytest.approx([math.log(257)] * len(validation), abs=1e-5)
    assert list(info["shortcuts_not_taken"]) == ["head"]
    assert capsys.readouterr().err.count("note: forward is ") == 1


def test_a_forward_that_is_head_of_body_goes_without_a_word(plans, experiment, capsys):
    experiment("mine")
    training, _, info = train(plans["plain"], "mine")
    assert training.iloc[-1] < training.iloc[0] and "shortcuts_not_taken" not in info
    assert "note:" not in capsys.readouterr().err
