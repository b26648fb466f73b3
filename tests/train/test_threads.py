"""The threads of a run: those that were asked for, and those that it had where it goes on."""

import pytest
import torch

from lmplay.errors import UserError
from lmplay.runs.run import read_run
from lmplay.runs.settings import Settings
from lmplay.train.loop import Trainer
from lmplay.train.setup import set_up

SMALL = {"set": ("n_layer=1", "n_embd=16", "n_head=2"), "context_len": 16, "batch_size": 4, "device": "cpu"}


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train(plan, **more):
    rest = {"validation_tokens": 100, "lr_schedule": "constant", "warmup_steps": 1, "run_name": "run"}
    Trainer(set_up(Settings(training_plan=plan, **SMALL, **rest, **more))).train()


def test_are_recorded_and_kept(plans, work):
    train(plans["plain"], threads=2, max_steps=2)
    torch.set_num_threads(1)
    train(plans["plain"], max_steps=3)
    assert torch.get_num_threads() == 2
    assert read_run(work / "gpt_out" / "run").get("device", "threads") == 2


def test_less_than_none_is_refused():
    with pytest.raises(UserError, match="--threads must be at least 0"):
        Settings(threads=-1)
