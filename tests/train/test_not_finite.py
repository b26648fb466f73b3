"""What is not finite: a step of float16 that overflows, weights that are saved, weights that are read."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lmplay import errors
from lmplay.cli import cleanmodel, generator, trainer
from lmplay.runs import checkpoints
from lmplay.runs.settings import Settings
from lmplay.train.optimizers import make_optimizers
from lmplay.train.step import change_weights
from support.small import TINY

BUDGET = ["--max-steps", "3", "--validation-tokens", "300", "--lr-schedule", "constant"]


class Two(nn.Module):
    """A model with a matrix for Muon, and an embedding and a head for AdamW."""

    def __init__(self):
        super().__init__()
        self.embedding, self.middle, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7)

    def forward(self, tokens):
        return self.head(torch.tanh(self.middle(self.embedding(tokens))))


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_gradient_that_overflows_keeps_all_optimizers_from_their_step(value, clip):
    torch.manual_seed(1)
    model, settings = Two(), dataclasses.replace(Settings(), grad_clip=clip)
    optimizers = make_optimizers(model, "muon", 0.01, 0.1, (0.9, 0.95), 1e-8)
    assert len(optimizers) == 2
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step(spoil):
        scaler.scale(model(torch.arange(7)).logsumexp(-1).sum()).backward()
        if spoil:
            model.middle.weight.grad[1, 2] = value
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        change_weights(optimizers, list(model.parameters()), scaler, settings)
        return [name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])]

    assert len(step(spoil=False)) == 5
    assert step(spoil=True) == [] and scaler.get_scale() == 512.0
    assert len(step(spoil=False)) == 5 and not checkpoints.not_finite(model.state_dict())


def test_no_copy_is_needed_to_find_what_is_not_finite():
    tensors = {
        "whole": torch.tensor([3e38, 3e38]),
        "empty": torch.empty(0),
        "count": torch.tensor(3),
        "nan": torch.tensor([1.0, float("nan"), 2.0]),
        "least": torch.tensor([[1.0, -float("inf")]]),
        "largest": torch.tensor(float("inf"), dtype=torch.bfloat16),
        "both": torch.tensor([float("inf"), -float("inf")]),
    }
    assert checkpoints.not_finite(tensors) == ["nan", "least", "largest", "both"]


@pytest.fixture
def run(work, plans, capfd):
    """Trains and returns the folder of the run; what else is typed comes last."""

    def train(*words, status=0):
        flags = [*TINY, *BUDGET, "--training-plan", plans["plain"], "--run-name", "r", *words]
        assert trainer.main([str(word) for word in flags]) == status
        return work / "gpt_out" / "r"

    return train


def test_weights_that_are_not_finite_are_not_saved(run, capfd):
    """A step to infinity, of the parameter that the loss does not show: the checkpoint before it is the newest."""
    folder = run(
        "--lr", "1e38", "--save-interval", "1", "--weight-decay", "1e38", "--decay-all", status=errors.DIVERGED
    )
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert "not finite" in line and "lower --lr" in line
    for saved in checkpoints.find_all(folder / "checkpoints"):
        assert not checkpoints.not_finite(load_file(saved / "model.safetensors"))


def test_commands_refuse_weights_that_are_not_finite(run, capfd, work, plans):
    folder = run("--max-steps", "2")
    (newest,) = checkpoints.find_all(folder / "checkpoints")
    tensors = load_file(newest / "model.safetensors")
    tensors["norm.bias"][3] = float("nan")
    save_file(tensors, newest / "model.safetensors")
    checkpoints.write_state(newest, checkpoints.read_state(newest), {})
    (work / "text.txt").write_text("some text to score")
    capfd.readouterr()
    for command, words in (
        (generator, ["--run", folder, "--score", "text.txt"]),
        (generator, ["--run", folder, "a"]),
        (cleanmodel, [folder, "-o", work / "clean"]),
        (trainer, [*TINY, *BUDGET, "--training-plan", plans["plain"], "--initial-model", folder]),
    ):
        status = command.main([str(word) for word in words])
        err = capfd.readouterr().err.strip().splitlines()
        assert status == 2 and "norm.bias" in err[-1] and "not finite" in err[-1], (words, err)
    assert not (work / "clean").exists()


def test_a_mask_of_infinities_is_read(tmp_path):
    class Masked(Two):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.full((3, 3), -float("inf")).triu(1))

    saved = checkpoints.save(tmp_path, 1, Masked(), [], {"keep": False})
    checkpoints.load_weights(saved, Masked())
