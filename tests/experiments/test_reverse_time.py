from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lmplay import code_diff, contract, registry

FOLDER = Path(__file__).resolve().parents[2] / "experiments"


@pytest.fixture(scope="module")
def experiments():
    return [contract.load(registry.read_entry(FOLDER / name)) for name in ("reverse_time", "gpt2ish")]


def build(experiment):
    torch.manual_seed(0)
    return experiment.build(experiment.config("tiny", 50, 12, n_layer=2, n_head=2, n_embd=16)).eval()


def test_make_batch(experiments):
    reverse_time, _ = experiments
    inputs, targets, _ = reverse_time.make_batch(torch.tensor([[1, 2, 3, 4]]), 49, seed=0)
    assert inputs.tolist() == [[49, 4, 3, 2]] and targets.tolist() == [[4, 3, 2, 1]]
    documents = torch.tensor([[-100, -100, 0, 1]])  # a prompt of two tokens is read last, and not scored
    inputs, targets, labels = reverse_time.make_batch(torch.tensor([[0, 2, 3, 4]]), 49, 0, documents)
    assert inputs.tolist() == [[49, 4, 3, 2]] and targets.tolist() == [[4, 3, -100, -100]]
    assert labels.tolist() == [[1, 0, -100, -100]]


@torch.no_grad()
def test_is_gpt2ish_on_the_reversed_window(experiments):
    window = torch.randint(50, (4, 12), generator=torch.Generator().manual_seed(1))
    losses = []
    for experiment, read in zip(experiments, (window, window.flip(1))):
        inputs, targets, _ = experiment.make_batch(read, 49, seed=0)
        losses.append(F.cross_entropy(build(experiment)(inputs).transpose(1, 2), targets, reduction="none"))
    assert torch.equal(*losses)


def test_says_that_it_reads_from_the_end(experiments):
    assert [experiment.reversed for experiment in experiments] == [True, False]
    assert [experiment.parent for experiment in experiments] == ["gpt2ish", None]


def test_differs_from_gpt2ish_by_the_idea_alone():
    ours, theirs = (registry.read_entry(FOLDER / name) for name in ("reverse_time", "gpt2ish"))
    added = [line for line in code_diff.diff(ours, theirs).splitlines() if line.startswith("+") and line[1:3] != "++"]
    assert 5 < len(added) < 25
    assert ours.variants.items() <= theirs.variants.items() and "tiny" in ours.variants
