"""Validations midway: when they are, what they score, what they cost, and what a run that goes on keeps."""

import csv
import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from lmplay import contract, registry
from lmplay.data.plans import load_plan
from lmplay.data.prepare import prepare
from lmplay.errors import UserError
from lmplay.model.device import precision
from lmplay.runs.run import read_run
from lmplay.runs.settings import Settings
from lmplay.runs.validations import read_validations
from lmplay.train.held_out import MIDWAY_SHARE, STEP_COST, choose_validations
from lmplay.train.loop import Trainer
from lmplay.train.phases import lay_out
from lmplay.train.setup import set_up
from lmplay.train.validation import ValidationFeed, scored_documents, validate, validation_row

CPU = torch.device("cpu")
EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


@pytest.mark.parametrize(
    "name, plan", [("gpt2ish", "answers"), ("reverse_time", "answers"), ("both_ways", "plain"), ("bert", "plain")]
)
def test_a_document_costs_midway_what_it_costs_at_the_end(plans, name, plan):
    """Of models that read forward, backward, in both directions and with random masks."""
    data = prepare(load_plan(plans[plan]), progress=False)
    experiment = contract.load(registry.read_entry(EXPERIMENTS / name))
    config = experiment.config("tiny", data.tokenizer.vocab_size, 16, n_layer=1, n_head=2, n_embd=16)
    torch.manual_seed(0)
    experiment, model = experiment.bound(config), experiment.build(config).eval()
    feed = ValidationFeed(experiment, data.validation, 16, data.tokenizer.eot, 3000, midway_tokens=700)
    midway, whole = (
        validate(model, feed, 7, CPU, partial(precision, CPU, False, 16), midway=part) for part in (True, False)
    )
    scored = feed.scored_midway
    assert feed.has_part and 2 <= scored.sum() < len(feed.documents) and midway.tokens.sum() <= 700
    assert np.isnan(midway.losses).tolist() == (~scored).tolist() and np.isfinite(whole.losses).all()
    np.testing.assert_allclose(midway.losses[scored], whole.losses[scored], rtol=1e-5)
    assert midway.tokens[scored].tolist() == whole.tokens[scored].tolist() and not midway.tokens[~scored].any()
    assert feed.scored_tokens.tolist() == whole.tokens.tolist()
    # the row of all documents has the figures of the part, too
    row, part = (validation_row(one, feed, load_plan(plans[plan])) for one in (whole, midway))
    assert row["midway_loss"] == pytest.approx(part["loss"], rel=1e-5) and part["midway_loss"] is None
    assert row["midway_accuracy"] == pytest.approx(part["accuracy"], rel=1e-9)
    assert row["midway_bits_per_byte"] == pytest.approx(part["bits_per_byte"], rel=0.05)
    for direction in experiment.direction_names:
        assert row[f"midway_loss_{direction}"] == pytest.approx(part[f"loss_{direction}"], rel=1e-5)
    assert row.keys() == part.keys() and part["validation_documents"] == scored.sum()
    assert [one["scored_tokens"] for one in scored_documents(feed)] == whole.tokens.tolist()
    # a loss that counts and is not finite is not left out as a document that is not scored midway
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    for part in (True, False):
        broken = validate(model, feed, 7, CPU, partial(precision, CPU, False, 16), midway=part)
        assert np.isnan([broken.loss, broken.bits_per_byte, *broken.by_dataset.values()]).all()


def settings_of(plans, work, plan="plain", **more):
    given = {"set": ("n_layer=1", "n_embd=16", "n_head=2"), "device": "cpu", "context_len": 16, "batch_size": 16}
    given |= {"training_plan": plans[plan], "out": str(work / "gpt_out"), "run_name": "run", "warmup_steps": 2}
    return Settings(**{**given, **more})


@pytest.mark.parametrize("plan", ["plain", "two_steps"])
@pytest.mark.parametrize("steps, batch_size", [(4, 16), (60, 2), (200, 16), (3000, 64), (10**6, 8)])
def test_validations_midway_take_two_percent_at_most(plans, work, plan, steps, batch_size):
    settings = settings_of(plans, work, plan, max_steps=steps, batch_size=batch_size, validation_tokens=3000)
    data, chosen = prepare(load_plan(plans[plan]), progress=False), set()
    for seed in (0, 7):
        phases = lay_out(dataclasses.replace(settings, seed=seed), load_plan(plans[plan]), data, 16)
        chosen.add(choose_validations(settings, phases, data.validation, context_len=16))
    ((interval, midway),) = chosen
    n_steps, spent = sum(phase.n_steps for phase in phases), 0
    experiment = contract.load(registry.find("gpt2ish")[0])
    for phase in phases:
        stores = {name: data.validation[name] for name in phase.datasets}
        feed = ValidationFeed(experiment, stores, 16, 0, 3000, midway_tokens=midway)
        spent = max(spent, int(feed.scored_tokens[feed.scored_midway].sum()))
    count = (n_steps - 1) // interval
    if midway != 1:  # of a run that is too short to pay for two documents
        assert spent * count <= MIDWAY_SHARE * STEP_COST * n_steps * batch_size * 16
    assert count == 19 or steps < 10**6 or plan == "two_steps"
    assert count >= 2 or steps == 4


def test_with_an_interval_that_was_typed_all_is_scored(plans, work):
    setup = set_up(settings_of(plans, work, validation_interval=3))
    assert (setup.settings.validation_interval, setup.settings.midway_tokens) == (3, 0)
    setup = set_up(settings_of(plans, work, validation_interval=3, midway_tokens=500))
    assert (setup.settings.validation_interval, setup.settings.midway_tokens) == (3, 500)


def table(run, name="validate.csv"):
    with open(run / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_by_default_keeps_its_validations_when_it_goes_on(plans, work, monkeypatch):
    asked = settings_of(
        plans, work, max_steps=40, lr_schedule="constant", lr=0.01, batch_size=64, validation_tokens=4000
    )
    setup = set_up(asked)
    trainer, shown = Trainer(setup), []
    monkeypatch.setattr(trainer.progress, "validated", lambda loss, phase, part: shown.append(part))
    assert trainer.train() == "finished"
    run, resolved = work / "gpt_out" / "run", setup.settings
    rows = table(run)
    assert shown == [True] * (len(rows) - 1) + [False]  # the losses of midway and of the end are of other documents
    interval, info = resolved.validation_interval, json.loads((run / "run.json").read_text())
    assert 5 <= interval <= 13 and resolved.midway_tokens > 0
    assert info["settings"]["validation_interval"] == interval
    assert info["settings"]["midway_tokens"] == resolved.midway_tokens
    assert [int(row["step"]) for row in rows] == [*range(interval, 40, interval), 40]
    assert {row["midway_loss"] for row in rows[:-1]} == {""} and float(rows[-1]["midway_loss"]) > 0
    assert int(rows[0]["validation_tokens"]) <= resolved.midway_tokens < int(rows[-1]["validation_tokens"])
    found = read_validations(read_run(run))
    part = np.isfinite(found.trajectory.losses[0])
    assert found.tokens.sum() == int(rows[-1]["validation_tokens"]) and part.sum() == int(
        rows[0]["validation_documents"]
    )
    assert np.isfinite(found.completed.trajectory.losses).all()
    # it goes on with what it has, whatever its new length would choose
    assert Trainer(set_up(dataclasses.replace(asked, max_steps=60))).train() == "finished"
    assert [int(row["step"]) for row in table(run)] == sorted({*range(interval, 60, interval), 40, 60})
    for other in ({"validation_interval": interval + 1}, {"midway_tokens": 17}):
        with pytest.raises(UserError, match=f"{next(iter(other)).split('_')[0]}.* was "):
            Trainer(set_up(dataclasses.replace(asked, max_steps=70, **other)))


def test_the_best_is_sought_and_a_run_stopped_early_on_the_same_documents(plans, work):
    """The end scores all documents, whose loss is another; the best is of those that are scored at all times."""
    more = {"lr": 3.0, "early_stop": 2, "keep_best": True, "backup_at": "7", "batch_size": 4}
    more |= {"validation_interval": 3, "midway_tokens": 400}
    setup = set_up(settings_of(plans, work, max_steps=60, lr_schedule="constant", grad_clip=0.0, **more))
    trainer = Trainer(setup)
    assert trainer.train() == "finished"
    run, rows = work / "gpt_out" / "run", table(work / "gpt_out" / "run")
    assert setup.settings.midway_tokens and trainer.state.step < 60
    midway = [float(row["midway_loss"] or row["loss"]) for row in rows]
    assert len(midway) == 2 + (best := int(np.argmin(midway))) + 1  # two in a row did not lower it
    assert all(row["midway_loss"] == "" for row in rows[:-1]) and rows[-1]["midway_loss"] != ""
    assert json.loads((run / "run.json").read_text())["progress"]["validation_loss"] == pytest.approx(
        float(rows[-1]["loss"])
    )
    kept = {int(path.name.removeprefix("step_")) for path in (run / "checkpoints").iterdir()}
    assert {7, int(rows[best]["step"]), trainer.state.step} <= kept
    assert read_run(run).at_best().chosen.name == f"step_{int(rows[best]['step']):08d}"
