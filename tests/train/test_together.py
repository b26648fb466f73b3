"""Runs that are trained together: each is the run that it would have been alone."""

import csv

import pytest
import torch

from lmplay.runs.run import read_run
from lmplay.runs.settings import Settings
from lmplay.train.loop import Trainer
from lmplay.train.setup import set_up
from lmplay.train.stacked_step import NotStackable
from lmplay.train.together import Together

SMALL = {"set": ("n_layer=1", "n_embd=16", "n_head=2"), "context_len": 16, "batch_size": 4, "device": "cpu"}


def settings(plan, name, seed, **more):
    given = {**SMALL, "validation_interval": 50, "validation_tokens": 100, "max_steps": 8, **more}
    return Settings(exp="gpt2ish", training_plan=plan, run_name=f"{name}_{seed}", seed=seed, **given)


def trainers(plan, name, seeds=(0, 1, 2), **more):
    return [Trainer(set_up(settings(plan, name, seed, **more)), alone=False) for seed in seeds]


def alone(plan, name, seed, **more):
    trainer = Trainer(set_up(settings(plan, name, seed, **more)))
    return trainer.train()


def figures(work, name, seed, table):
    with open(work / "gpt_out" / f"{name}_{seed}" / table, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    wanted = ("step", "samples", "loss", "accuracy", "learning_rate", "gradient_norm", "validation_documents")
    return [[float(row[key]) for key in wanted if key in row] for row in rows]


def same(work, one, other, seeds):
    for seed in seeds:
        for table in ("train.csv", "validate.csv"):
            expected = figures(work, one, seed, table)
            found = figures(work, other, seed, table)
            assert expected and len(found) >= len(expected)
            for a, b in zip(found[-len(expected) :], expected, strict=True):
                assert a == pytest.approx(b, rel=2e-5)


def test_each_run_is_the_one_it_would_have_been_alone(plans, work):
    assert Together(trainers(plans["plain"], "t", (0, 1))).train() == ["finished"] * 2
    for seed in range(2):
        assert alone(plans["plain"], "a", seed) == "finished"
    same(work, "a", "t", range(2))
    run = read_run(work / "gpt_out" / "t_1")
    assert run.get("status") == "finished" and run.get("together", "seeds") == 2


def test_goes_on_alone_and_alone_goes_on_together(plans, work):
    constant = {"lr_schedule": "constant", "warmup_steps": 1}
    for seed in range(2):
        alone(plans["plain"], "whole", seed, **constant)
        alone(plans["plain"], "b", seed, **constant, max_steps=4)
    Together(trainers(plans["plain"], "c", (0, 1), **constant, max_steps=4)).train()
    assert Together(trainers(plans["plain"], "b", (0, 1), **constant)).train() == ["finished"] * 2
    for seed in range(2):
        alone(plans["plain"], "c", seed, **constant)
    same(work, "whole", "b", range(2))
    same(work, "whole", "c", range(2))


class Spoiled(Trainer):
    """A run whose weights are not finite any more after its fourth step."""

    def next_batch(self, feed, phase):
        if self.state.step == 3:
            with torch.no_grad():
                self.model.head.weight[0] = float("inf")
        return super().next_batch(feed, phase)


def test_one_that_fails_leaves_the_others(plans, work):
    made = trainers(plans["plain"], "f")
    made[1] = Spoiled(made[1].setup, made[1].state, alone=False)
    outcomes = Together(made).train()
    assert outcomes[0] == outcomes[2] == "finished"
    alone(plans["plain"], "a", 2)
    same(work, "a", "f", [2])
    assert "not finite" in str(outcomes[1])
    assert read_run(work / "gpt_out" / "f_1").get("status") == "failed"


@pytest.mark.parametrize(
    ("more", "why"),
    [({"max_minutes": 1.0}, "--max-minutes"), ({"set": (*SMALL["set"], "dropout=0.1")}, "random")],
)
def test_what_can_not_be_stacked_is_said(plans, work, more, why):
    with pytest.raises(NotStackable, match=why):
        Together(trainers(plans["plain"], "n", **more)).train()
