"""permute against the orders as the paper has them, and the published code's feeds."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from lmplay import contract, registry
from lmplay.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FEEDS = np.load(ROOT / "tests/golden/arrows/feeds.npz")
LENGTH = 8


def windows(stride: int) -> torch.Tensor:
    """The published code leaves out the last window that fits."""
    return torch.from_numpy(FEEDS["stream"]).long().unfold(0, LENGTH, stride)[: -1 if stride < LENGTH else None]


def fed(name: str, window: torch.Tensor, variant: str | None = None, bos: int = 0, **fields):
    experiment = contract.load(registry.read_entry(ROOT / "experiments" / name))
    config = experiment.config(variant or next(iter(experiment.variants)), 37, window.size(1), **fields)
    inputs, targets, _ = experiment.bound(config).make_batch(window, bos, seed=0)
    return inputs.numpy(), targets.numpy()


@pytest.mark.parametrize(
    "golden, stride, name, order",
    [
        ("forward", 3, "gpt2ish", None),
        ("forward", 3, "permute", "forward"),
        ("backward", 3, "reverse_time", None),
        ("backward", 3, "permute", "backward"),
        ("stride5", 5, "reverse_time", None),
        ("middle_out", 3, "permute", "middle_out"),
        ("random", 3, "permute", ",".join(map(str, FEEDS["perm_random"].tolist()))),
    ],
)
def test_feeds_are_those_of_the_published_code(golden, stride, name, order):
    inputs, targets = fed(name, windows(stride), **({"order": order} if order else {}))
    np.testing.assert_array_equal(inputs, FEEDS[f"{golden}/input_ids"])
    np.testing.assert_array_equal(targets, FEEDS[f"{golden}/target_ids"])


def test_both_ways_feeds_as_the_published_code():
    inputs, targets = fed("both_ways", windows(LENGTH)[: len(FEEDS["both/input_ids"]) // 2])
    np.testing.assert_array_equal(inputs, FEEDS["both/input_ids"])
    np.testing.assert_array_equal(targets, FEEDS["both/target_ids"])


IN_WORDS = {  # of 12 places, written out by hand
    "forward": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
    "backward": [11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
    "middle_out": [6, 5, 7, 4, 8, 3, 9, 2, 10, 1, 11, 0],
    "end_in": [0, 11, 1, 10, 2, 9, 3, 8, 4, 7, 5, 6],
    "even_odd": [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11],
    "odd_even": [1, 3, 5, 7, 9, 11, 0, 2, 4, 6, 8, 10],
    "backward_forward": [5, 4, 3, 2, 1, 0, 6, 7, 8, 9, 10, 11],
    "forward_backward": [0, 1, 2, 3, 4, 5, 11, 10, 9, 8, 7, 6],
    "middle_out_concatenated": [3, 2, 4, 1, 5, 0, 9, 8, 10, 7, 11, 6],
    "end_in_concatenated": [0, 5, 1, 4, 2, 3, 6, 11, 7, 10, 8, 9],
    "middle_out_interleaved": [3, 9, 2, 8, 4, 10, 1, 7, 5, 11, 0, 6],
    "end_in_interleaved": [0, 6, 5, 11, 1, 7, 4, 10, 2, 8, 3, 9],
}


def order_of(variant: str, length: int) -> list[int]:
    experiment = contract.load(registry.read_entry(ROOT / "experiments/permute"))
    return list(experiment.module.places(experiment.config(variant, 37, length).order, length))


@pytest.mark.parametrize("variant", IN_WORDS)
def test_named_orders(variant):
    assert order_of(variant, 12) == IN_WORDS[variant]


def test_all_eighteen_are_orders_of_every_length_and_seeds_differ():
    variants = registry.read_entry(ROOT / "experiments/permute").variants.keys() - {"tiny"}
    assert len(variants) == 18 and IN_WORDS.keys() < variants
    for length in (1, 2, 7, 20, 256):
        assert all(sorted(order_of(variant, length)) == list(range(length)) for variant in variants)
    drawn = [order_of(f"uniform_{seed}", 64) for seed in (0, 5, 10, 15)]
    assert len({tuple(order) for order in drawn}) == 4
    for seed in (0, 5):
        chunks = torch.tensor(order_of(f"chunks_{seed}", 64)).view(-1, 8)
        assert (chunks.diff(dim=1) == 1).all() and (chunks[:, 0] % 8 == 0).all() and (chunks[:, 0].diff() != 8).any()
    assert order_of("uniform_0", 64) == order_of(
        "uniform_0", 64
    )  # the same in another process: random.Random of a number


def test_a_short_window_leaves_out_the_places_it_has_not():
    experiment = contract.load(registry.read_entry(ROOT / "experiments/permute"))
    bound = experiment.bound(experiment.config("middle_out", 37, 8))
    inputs, targets, labels = bound.make_batch(torch.arange(10, 15)[None], 0, 0, torch.arange(5)[None])
    assert targets.tolist() == [[14, 13, 12, 11, 10]] and inputs.tolist() == [[0, 14, 13, 12, 11]]  # of 4 3 5 2 6 1 7 0
    assert labels.tolist() == [[4, 3, 2, 1, 0]]


@pytest.mark.parametrize(
    "order", ["0,1,2", "0,1,2,3,4,5,6,6", "middle", "0,1,2,3,4,5,6,7,", "end_in:3", "uniform:x", ""]
)
def test_what_is_no_order_is_refused(order):
    experiment = contract.load(registry.read_entry(ROOT / "experiments/permute"))
    with pytest.raises(UserError, match="order must be one of"):
        experiment.build(experiment.config("middle_out", 37, 8, order=order, n_layer=1, n_head=1, n_embd=8))


@pytest.mark.parametrize(
    "name, variant, ways",
    [
        ("gpt2ish", "tiny", [("", 36, [0, 1, 2, 3])]),
        ("reverse_time", "tiny", [("", 36, [3, 2, 1, 0])]),
        ("permute", "tiny", [("", 36, [2, 1, 3, 0])]),
        ("both_ways", "tiny", [("forward", 37, [0, 1, 2, 3]), ("backward", 38, [3, 2, 1, 0])]),
    ],
)
def test_how_windows_are_read_is_seen(name, variant, ways):
    experiment = contract.load(registry.read_entry(ROOT / "experiments" / name))
    directions = experiment.bound(experiment.config(variant, 37, 4)).directions(36, 4)
    assert [dataclasses.astuple(direction) for direction in directions] == ways
    assert [(d.forward, d.reversed) for d in directions] == [(o == [0, 1, 2, 3], o == [3, 2, 1, 0]) for _, _, o in ways]


@pytest.mark.parametrize(
    "name, order",
    [("gpt2ish", None), ("reverse_time", None), ("permute", "middle_out"), ("permute", "2,0,1"), ("both_ways", None)],
)
def test_the_probabilities_of_all_windows_add_up_to_one(name, order):
    """Whatever the order: what a model gives to all windows of 3 tokens of a vocabulary of 4."""
    experiment = contract.load(registry.read_entry(ROOT / "experiments" / name))
    config = experiment.config("tiny", 4, 3, n_layer=1, n_head=1, n_embd=8, **({"order": order} if order else {}))
    torch.manual_seed(0)
    model = experiment.build(config).double().eval()
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)
    inputs, targets, _ = experiment.bound(config).make_batch(every, 3, seed=0)
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(4 * model(inputs).transpose(1, 2), targets, reduction="none").sum(1)
    for way in losses.view(len(every), -1).t():
        assert (-way).exp().sum().item() == pytest.approx(1, abs=1e-12)
        assert way.std() > 0.01  # and not all the same
