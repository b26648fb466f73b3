"""Memory that runs out in training, and models that can't fit."""

import csv
import gc
import json

import pytest
import torch

from lmplay.errors import UserError
from lmplay.runs.settings import Settings
from lmplay.train import memory
from lmplay.train.checking import check_setup
from lmplay.train.loop import Trainer
from lmplay.train.setup import set_up

HUNGRY = """
import torch

class Model(Model):
    def body(self, tokens, cache=None):
        if len(tokens) > 2 and not tokens.is_meta:
            torch.empty(2**50)
        return super().body(tokens, cache)
"""


def settings(plans, out, **more):
    values = dict(
        set=("n_layer=1", "n_embd=16", "n_head=2"),
        training_plan=plans["plain"],
        context_len=16,
        device="cpu",
        batch_size=8,
        max_steps=3,
        validation_interval=2,
        validation_tokens=64,
        lr_schedule="constant",
        out=str(out),
        run_name="r",
    )
    return Settings(**(values | more))


def rows(folder):
    with open(folder / "train.csv", newline="", encoding="utf-8") as file:
        return [row["loss"] for row in csv.DictReader(file)]


def test_memory_runs_out(plans, experiment, tmp_path, capsys):
    """A real allocation fails: the step is done again with micro-batches of two, and the numbers are those of two."""
    hungry = experiment("hungry", HUNGRY)
    two = Trainer(set_up(settings(plans, tmp_path / "two", exp=hungry, mini_batch_size=2)))
    two.train()
    trainer = Trainer(set_up(settings(plans, tmp_path / "all", exp=hungry)))
    assert trainer.train() == "finished"
    assert "out of memory: 2 sequences per micro-batch from step 1 on" in capsys.readouterr().err
    for name, weight in two.model.state_dict().items():
        assert torch.equal(weight, trainer.model.state_dict()[name]), name
    assert rows(tmp_path / "all" / "r") == rows(tmp_path / "two" / "r")
    with open(tmp_path / "all" / "r" / "run.json", encoding="utf-8") as file:
        assert json.load(file)["progress"]["micro_batch_size"] == 2
    del trainer  # and its lock
    gc.collect()
    longer = Trainer(set_up(settings(plans, tmp_path / "all", exp=hungry, extra_steps=2)))
    assert longer.micro_batches.size == 2


def test_a_single_sequence_does_not_fit(plans, experiment, tmp_path):
    hungry = experiment("hungry", HUNGRY.replace("len(tokens) > 2", "tokens.numel() > 256"))
    trainer = Trainer(set_up(settings(plans, tmp_path, exp=hungry, context_len=300)))
    with pytest.raises(UserError, match="out of memory with a single sequence"):
        trainer.train()


def test_errors_that_have_to_do_with_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert memory.is_out_of_memory(caught.value)
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2) @ torch.zeros(3)
    assert not memory.is_out_of_memory(caught.value)
    assert memory.is_out_of_memory(torch.OutOfMemoryError())


def test_a_model_that_cannot_fit(plans, tmp_path):
    """400 GB of weights, or a context whose activations are: refused before anything is built."""
    for more in (
        dict(set=("n_layer=2", "n_embd=65536", "n_head=64")),
        dict(set=("n_layer=2", "n_embd=768", "n_head=96"), context_len=200_000),
    ):
        setup = set_up(settings(plans, tmp_path, **more))
        with pytest.raises(UserError, match="of memory are free: choose a shorter --context-len"):
            check_setup(setup)
        assert not setup.folder.exists()


def test_the_micro_batch_fits_into_memory(plans, tmp_path, monkeypatch):
    """As many sequences as the free memory has room for, by what a step keeps; with much memory, all."""
    setup = set_up(settings(plans, tmp_path, batch_size=64))
    device = torch.device("cpu")
    assert memory.micro_batch_size(setup, device) == 64
    one = memory.activation_bytes(setup.experiment, setup.config, False)
    assert one <= setup.cost.kept_bytes
    weights = 12 * setup.cost.parameters  # beside the weights themselves: gradients and two moments
    monkeypatch.setattr("lmplay.train.memory.free_memory", lambda _: int((5.5 * one + weights) / 0.7))
    assert memory.micro_batch_size(setup, device) == 5
    monkeypatch.setattr("lmplay.train.memory.free_memory", lambda _: 1)
    assert memory.micro_batch_size(setup, device) == 1
