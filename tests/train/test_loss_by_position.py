"""Validation losses by position in the order in which windows are fed."""

import json
import math
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
import torch.nn.functional as F

from lmplay import contract, registry
from lmplay.data.documents import documents
from lmplay.data.plans import load_plan
from lmplay.data.prepare import prepare
from lmplay.model.device import precision
from lmplay.train.validation import PositionLosses, ValidationFeed, validate

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def feed_of(plans):
    def make(name: str, plan: str = "plain"):
        data = prepare(load_plan(plans[plan]), progress=False)
        experiment = contract.load(registry.read_entry(ROOT / "experiments" / name))
        config = experiment.config("tiny", data.tokenizer.vocab_size, 16, n_layer=1, n_head=2, n_embd=16)
        torch.manual_seed(0)
        experiment, model = experiment.bound(config), experiment.build(config).eval()
        return model, ValidationFeed(experiment, data.validation, 16, data.tokenizer.eot, 3000)

    return make


@pytest.mark.parametrize(
    "name, plan", [("gpt2ish", "plain"), ("reverse_time", "plain"), ("both_ways", "plain"), ("reverse_time", "answers")]
)
def test_sums_are_those_of_the_tokens_one_by_one(feed_of, name, plan):
    model, feed = feed_of(name, plan)
    cpu = torch.device("cpu")
    result = validate(model, feed, 7, cpu, partial(precision, cpu, False, 16), by_position=True)
    ways = len(feed.experiment.direction_names) or 1
    sums, counts = np.zeros((ways, 16)), np.zeros((ways, 16))
    for batch in feed.batches():
        with torch.no_grad():
            losses = F.cross_entropy(model(batch.inputs).transpose(1, 2), batch.targets, reduction="none")
        for row, (of_row, targets) in enumerate(zip(losses.tolist(), batch.targets.tolist())):
            for position, (loss, target) in enumerate(zip(of_row, targets)):
                if target != -100:
                    sums[row % ways, position] += loss
                    counts[row % ways, position] += 1
    np.testing.assert_array_equal(result.positions.counts.numpy(), counts)
    np.testing.assert_allclose(result.positions.sums.numpy(), sums, rtol=1e-5)
    assert (
        sums.sum() / ways == pytest.approx(float(result.losses.sum()), rel=1e-5)
        and result.n_tokens == counts.sum() / ways
    )
    assert result.loss == pytest.approx(sums.sum() / counts.sum(), rel=1e-5)
    assert validate(model, feed, 7, cpu, partial(precision, cpu, False, 16)).positions is None or ways > 1


def test_ranges_hold_every_position_once():
    losses = PositionLosses(256, ())
    losses.add(torch.arange(256.0).double().repeat(2), None, 256)
    for bins in (1, 2, 5, 8, 16, 300):
        rows = losses.rows(bins)
        assert [r["first_position"] for r in rows] == [1] + [r["last_position"] + 1 for r in rows[:-1]] and rows[-1][
            "last_position"
        ] == 256
        assert (
            rows[0]["last_position"] == 1
            and rows[0]["loss"] == 0
            and abs(len(rows) - bins - 1) <= max(1, bins // 4)
            or bins == 300
        )
        assert sum(r["scored_tokens"] for r in rows) == 512
        assert rows[-1]["loss"] == pytest.approx((rows[-1]["first_position"] + 254) / 2)
    assert len(losses.rows(300)) == 256


def test_the_first_position_agrees_in_both_directions(trainer, work):
    """It is predicted from the BOS token alone: only the frequencies of tokens can be learned, in both directions."""
    plan = work / "p.json"
    plan.write_text(
        json.dumps(
            {
                "tokenizer": "bytes",
                "steps": [{"datasets": ["d"]}],
                "datasets": {
                    "d": {"synthetic": "reversible", "max_documents": 6000, "settings": {"symbols": 4, "length": 6}}
                },
            }
        )
    )
    spec = load_plan(str(plan)).datasets["d"]
    counts = Counter(
        c for document in documents(spec, work) for c in document[0][0] + "#"
    )  # and the end of each document
    unigram = -sum(n / counts.total() * math.log(n / counts.total()) for n in counts.values())
    for name in ("gpt2ish", "reverse_time"):
        run = trainer(
            "--exp",
            name,
            "--set",
            "n_layer=1",
            "--set",
            "n_embd=16",
            "--set",
            "n_head=2",
            "--context-len",
            "12",
            "--batch-size",
            "32",
            "--lr",
            "0.01",
            "--training-plan",
            plan,
            "--max-steps",
            "100",
            "--validation-interval",
            "50",
            "--loss-by-position",
            "3",
            "--device",
            "cpu",
            "--run-name",
            name,
        )
        assert run.status == 0, run.err
        table = pandas.read_csv(work / f"gpt_out/{name}/validate_positions.csv")
        assert table["step"].unique().tolist() == [50, 100] and table["way"].isna().all()
        last = table[table["step"] == 100]
        assert (
            last["scored_tokens"].sum()
            == pandas.read_csv(work / f"gpt_out/{name}/validate.csv")["validation_tokens"].iloc[-1]
        )
        assert last["loss"].iloc[0] == pytest.approx(unigram, abs=0.05)
        assert last["loss"].iloc[-1] < unigram - 0.04


def test_a_run_without_it_has_no_such_file(trainer, plans, work):
    from support.small import TINY

    assert trainer(*TINY, "--training-plan", plans["plain"], "--max-steps", "1", "--run-name", "r").status == 0
    assert not (work / "gpt_out/r/validate_positions.csv").exists()
