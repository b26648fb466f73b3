"""both_ways: both directions of each window in one model, its losses recorded each by itself."""

from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from lmplay import contract, registry
from lmplay.errors import UserError
from support.small import TINY

ROOT = Path(__file__).resolve().parents[2]


def test_parameters_are_gpt2ishs_and_two_markers():
    counts = []
    for name in ("gpt2ish", "both_ways"):
        experiment = contract.load(registry.read_entry(ROOT / "experiments" / name))
        with torch.device("meta"):
            counts.append(sum(p.numel() for p in experiment.build(experiment.config("6l", 50257)).parameters()))
    assert counts[1] - counts[0] == 2 * 768


def test_both_losses_are_recorded(trainer, plans, work):
    """And are what the checkpoint's model makes of the windows, whatever the mini-batch size."""
    flags = [
        *TINY,
        "--training-plan",
        plans["plain"],
        "--max-steps",
        "4",
        "--validation-interval",
        "2",
        "--validation-tokens",
        "1000",
        "--loss-by-position",
        "4",
    ]
    run = trainer(*flags, "--exp", "both_ways", "--run-name", "both")
    assert run.status == 0, run.err
    tables = {
        name: pandas.read_csv(work / "gpt_out/both" / f"{name}.csv")
        for name in ("train", "validate", "validate_positions")
    }
    train, validate, positions = tables.values()
    np.testing.assert_allclose((train["x_loss_forward"] + train["x_loss_backward"]) / 2, train["loss"], rtol=1e-5)
    np.testing.assert_allclose((validate["loss_forward"] + validate["loss_backward"]) / 2, validate["loss"], rtol=1e-5)
    assert (train["x_loss_forward"] != train["x_loss_backward"]).all()
    assert train["samples"].tolist() == [4, 8, 12, 16] and train["tokens"].tolist() == [
        64,
        128,
        192,
        256,
    ]  # 4 windows of 16
    beside = trainer(*flags, "--exp", "gpt2ish", "--run-name", "one")
    assert beside.status == 0, beside.err
    one = pandas.read_csv(work / "gpt_out/one/train.csv")
    np.testing.assert_allclose(train["bytes"], one["bytes"])
    np.testing.assert_allclose(train["flops"], 2 * one["flops"])
    documents = [
        (work / f"gpt_out/{name}/validate_documents/documents_one.csv").read_text() for name in ("both", "one")
    ]
    assert documents[0] == documents[1]  # so that the two can be compared document by document
    for way in ("forward", "backward"):
        of_last = positions[(positions["way"] == way) & (positions["step"] == 4)]
        assert (
            of_last["first_position"].iloc[0] == of_last["last_position"].iloc[0] == 1
            and of_last["last_position"].iloc[-1] == 16
        )
        mean = (of_last["loss"] * of_last["scored_tokens"]).sum() / of_last["scored_tokens"].sum()
        assert mean == pytest.approx(validate[f"loss_{way}"].iloc[-1], rel=1e-5)
    small = trainer(*flags, "--exp", "both_ways", "--run-name", "small", "--mini-batch-size", "1")
    assert small.status == 0, small.err
    np.testing.assert_allclose(
        pandas.read_csv(work / "gpt_out/small/train.csv")["x_loss_backward"], train["x_loss_backward"], rtol=1e-4
    )
    text = (work / "gpt_out/both/samples.txt").read_text()
    assert "--- 1, forward" in text and "--- 1, backward" in text


def test_forward_and_backward_feeds_see_the_same_tokens_and_no_other_marker():
    experiment = contract.load(registry.read_entry(ROOT / "experiments/both_ways"))
    experiment = experiment.bound(experiment.config("tiny", 50, 6))
    window = torch.randint(50, (5, 6), generator=torch.Generator().manual_seed(0))
    inputs, targets, labels = experiment.make_batch(
        window, 49, 0, torch.arange(30).view(5, 6).masked_fill(window < 10, -100)
    )
    assert torch.equal(targets[::2].masked_fill(window < 10, -100), targets[::2])
    assert torch.equal(labels[1::2].flip(1), labels[::2]) and torch.equal(targets[1::2].flip(1), targets[::2])
    assert inputs[::2, 0].eq(50).all() and inputs[1::2, 0].eq(51).all() and (inputs[:, 1:] < 50).all()


def test_a_tied_head_is_refused():
    """It would predict the markers, too."""
    experiment = contract.load(registry.read_entry(ROOT / "experiments" / "both_ways"))
    with pytest.raises(UserError, match="tied"), torch.device("meta"):
        experiment.build(experiment.config("6l", 50257, tied=True))
