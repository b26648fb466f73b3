"""Steps that are captured: the functions that a graph records do what an eager step does, to the bit, on any device."""

import dataclasses
import random

import pytest
import torch
from torch import nn

from lmplay.contract import NOT_SCORED
from lmplay.errors import UserError
from lmplay.runs.settings import Settings
from lmplay.train.batches import Batch
from lmplay.train.capture_checks import check_repeats
from lmplay.train.capture_choice import choose, trial
from lmplay.train.captured_memory import untouched
from lmplay.train.captured_step import NotCapturable
from lmplay.train.setup import set_up
from support.taking import CPU, LENGTH, ROWS, Taking

CASES = [
    ("gpt2ish", 6, "adamw"),
    ("gpt2ish", 4, "adamw"),
    ("gpt2ish", 4, "sgd"),
    ("llama2", 2, "muon"),
    ("unified_weights", 6, "adamw"),
    ("unified_weights", 4, "adamw"),  # derives tensors, once for several micro-batches
    ("both_ways", 4, "adamw"),
    ("modern:d2_all", 4, "muon"),
]


def same(name, micro, optimizer, *, hidden=0, tolerance=0.0, **where):
    eager = Taking(name, micro, optimizer, **where)
    figures, weights = eager.train(eager.eagerly, hidden=hidden)
    taking = Taking(name, micro, optimizer, **where)
    of_captured, captured = taking.train(taking.captured, hidden=hidden)
    for one, other in zip(figures, of_captured, strict=True):
        assert one.keys() == other.keys()
        assert other == pytest.approx(one, rel=tolerance, abs=0)
    for one, other in zip(weights, captured, strict=True):
        torch.testing.assert_close(other, one, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name, micro, optimizer", CASES)
def test_captured_steps_are_eager_ones(name, micro, optimizer):
    same(name, micro, optimizer)


@pytest.mark.parametrize("micro", [6, 4])
def test_tokens_that_are_not_scored(micro):
    """Their list is padded, so that sums come in another order."""
    same("gpt2ish", micro, "adamw", hidden=5, tolerance=1e-5)


@pytest.mark.parametrize("name", ["gpt2ish", "llama2", "modern:d2_all", "pldr:tiny", "unified_weights"])
@pytest.mark.parametrize("micro", [6, 4])
def test_the_whole_step_can_be_recorded(name, micro, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # pldr asks a CPU, and no other device
    taking = Taking(name, micro, n_embd=32)
    with untouched(taking.model, taking.optimizers):
        check_repeats(taking.captured.rehearsal(taking.batch(0)), CPU)


def test_a_trial_leaves_nothing_behind():
    taking = Taking("gpt2ish", 4)
    before = [p.clone() for p in taking.model.parameters()]
    with untouched(taking.model, taking.optimizers):
        taking.captured.rehearsal(taking.batch(0))()
    assert all(p.equal(old) for p, old in zip(taking.model.parameters(), before, strict=True))
    assert not any(value.any() for o in taking.optimizers for state in o.state.values() for value in state.values())


class Faulty(nn.Module):
    def __init__(self, fault):
        super().__init__()
        self.fault, self.calls, self.weight = fault, 0, nn.Parameter(torch.ones(5))

    def forward(self):
        self.calls += 1
        self.fault(self, self.weight * 2)
        self.weight.sum().backward()


FAULTS = {
    "a number": lambda model, x: x.sum().item(),
    "a branch": lambda model, x: 1 if x.sum() > 0 else 2,
    "depends on numbers": lambda model, x: (x > 0).nonzero(),
    "by a mask": lambda model, x: x[x > 0],
    "in Python": lambda model, x: x * random.random(),
    "the same in each step": lambda model, x: x * model.calls,
}


@pytest.mark.parametrize("why", FAULTS)
def test_what_a_graph_would_get_wrong_is_refused(why):
    model = Faulty(FAULTS[why])
    with pytest.raises(NotCapturable, match="asks for a number" if why == "a branch" else why):
        check_repeats(model, CPU)
    check_repeats(Faulty(lambda model, x: x.exp()), CPU)


SEEDED = torch.library.Library("lmplay_test", "FRAGMENT")
SEEDED.define("attend(Tensor x) -> (Tensor, Tensor)", tags=torch.Tag.nondeterministic_seeded)
SEEDED.impl("attend", lambda x: (x * 2, torch.zeros((), dtype=torch.int64)), "CompositeExplicitAutograd")


def test_what_is_drawn_on_the_device_may_leave_its_seed_on_the_cpu():
    """As an attention kernel with dropout does: its seed and offset are tensors without dimensions on the CPU."""
    device = torch.device("meta")
    x = torch.zeros(4, device=device)
    check_repeats(lambda: torch.ops.lmplay_test.attend(x), device)
    check_repeats(lambda: x.bernoulli(0.5), device)
    with pytest.raises(NotCapturable, match="on the CPU"):
        check_repeats(lambda: torch.rand(()), device)


def test_a_model_that_counts_in_python_is_refused_and_counts_on():
    taking = Taking("gpt2ish", 6).with_fault(lambda model, x: None)
    taking.eagerly(taking.batch(0), 0)
    why, _ = trial(taking.captured, taking.batch(0))
    assert why == "it changes calls in each step" and taking.model.calls == 1


@pytest.mark.parametrize("micro, optimizer", [(6, "adamw"), (4, "adamw"), (4, "sgd"), (6, "muon")])
@pytest.mark.parametrize("before", [0, 2])
def test_a_trial_that_fails_midway_is_as_if_there_had_been_none(micro, optimizer, before):
    """It fails in the steps that would be recorded, in a run that starts and in one that has taken steps."""
    calls = []

    def fault(model, x):
        del model.calls  # what it counts is not asked here
        calls.append(1)
        if len(calls) == fail_at:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    def begun():
        taking = Taking("gpt2ish", micro, optimizer).with_fault(fault)
        for step in range(before):
            taking.captured.set_rates(1.0)
            taking.eagerly(taking.batch(step), step)
        calls.clear()
        return taking

    fail_at = 0
    counted = begun()
    assert trial(counted.captured, counted.batch(0)) == (None, 0.0)
    found, last = [], len(calls) - 1
    for fail_at in (last, 0):
        taking = begun()
        if fail_at:
            assert "CUDA error" in trial(taking.captured, taking.batch(0))[0] and len(calls) == fail_at
        taking.captured.release()
        found.append(taking.released())
    assert found[0][0] == found[1][0]
    assert all(one.equal(other) for one, other in zip(found[0][1], found[1][1], strict=True))


def test_short_batches_and_unscored_parts_are_taken_eagerly():
    taking = Taking("gpt2ish", 4)
    batch = taking.batch(0)
    assert taking.captured.takes(batch)
    batch.targets[3:], batch.n_scored = NOT_SCORED, 3 * LENGTH
    assert not taking.captured.takes(batch)
    short = Batch(batch.inputs[:5], batch.targets[:5], 3 * LENGTH, 1.0)
    assert not taking.captured.takes(short)


def choice(taking, asked, **more):
    eager = dataclasses.replace(taking.captured.eager, settings=Settings(batch_size=ROWS, cuda_graph=asked))
    return choose(
        eager, taking.batch(0), **{"micro_batch_size": taking.micro, "before": None, "resumed": False, **more}
    )


def test_a_cpu_has_no_choice():
    taking = Taking("gpt2ish", 6)
    assert choice(taking, "auto") == choice(taking, "off") == (None, None)
    with pytest.raises(UserError, match="has no CUDA graphs"):
        choice(taking, "on")
    with pytest.raises(UserError, match="has no CUDA graphs"):  # before the data are looked for
        set_up(Settings(exp="gpt2ish:tiny", device="cpu", cuda_graph="on", training_plan="no_such_plan"))


on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has no CUDA device here")]


def gpu(test):
    """Mark a test of a GPU."""
    for mark in on_gpu:
        test = mark(test)
    return test


@gpu
@pytest.mark.parametrize("name, micro, optimizer", CASES)
@pytest.mark.parametrize("amp", [False, True])
def test_graphs_on_a_gpu(name, micro, optimizer, amp):
    """With dropout: the masks are those of eager steps."""
    where = {"device": torch.device("cuda", 0), "amp": amp, "n_embd": 32}
    eager = Taking(name, micro, optimizer, **where)
    figures, weights = eager.train(eager.eagerly)
    taking = Taking(name, micro, optimizer, capture=True, **where)
    of_captured, captured = taking.train(taking.captured)
    for one, other in zip(figures, of_captured, strict=True):
        assert other == pytest.approx(one, rel=1e-3)
    for one, other in zip(weights, captured, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-2, atol=1e-3)


@gpu
@pytest.mark.parametrize("micro", [6, 4])
@pytest.mark.parametrize("hidden", [1, 5])
def test_graphs_with_unscored_tokens(micro, hidden):
    where = {"device": torch.device("cuda", 0), "n_embd": 32}
    eager = Taking("gpt2ish", micro, **where)
    figures, _ = eager.train(eager.eagerly, hidden=hidden)
    taking = Taking("gpt2ish", micro, capture=True, **where)
    for one, other in zip(figures, taking.train(taking.captured, hidden=hidden)[0], strict=True):
        assert other == pytest.approx(one, rel=1e-3)


@gpu
@pytest.mark.parametrize("name", ["unified_weights", "sacrificial_all:tiny_norms"])
def test_a_shape_that_comes_late_leaves_what_is_derived_alone(name):
    """Its graph is replayed between the beginning and the end of a step, which were recorded before."""
    where = {"device": torch.device("cuda", 0), "n_embd": 32}
    eager = Taking(name, 3, **where)
    figures, weights = eager.train(eager.eagerly, hidden=5, hidden_from=2)
    taking = Taking(name, 3, capture=True, **where)
    of_captured, captured = taking.train(taking.captured, hidden=5, hidden_from=2)
    for one, other in zip(figures, of_captured, strict=True):
        assert other == pytest.approx(one, rel=1e-3)
    for one, other in zip(weights, captured, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-2, atol=1e-3)


@gpu
def test_a_graph_is_chosen_and_kept():
    taking = Taking("gpt2ish", 6, device=torch.device("cuda", 0))
    before = [p.detach().clone() for p in taking.model.parameters()]
    captured, note = choice(taking, "auto")
    assert captured is not None and note["mode"] == "on" and note["difference"] <= 1e-3
    assert all(p.equal(old) for p, old in zip(taking.model.parameters(), before, strict=True))
    assert choice(taking, "auto", resumed=True)[1]["mode"] == "off"
    assert choice(taking, "off")[1]["mode"] == "off"


@gpu
@pytest.mark.parametrize("why", [w for w in FAULTS if w != "in Python"])
def test_a_model_that_can_not_be_captured_trains_on_eagerly(why, monkeypatch, capsys):
    taking = Taking("gpt2ish", 6, device=torch.device("cuda", 0)).with_fault(FAULTS[why])
    captured, note = choice(taking, "auto")
    assert captured is None and note["mode"] == "off" and note["why"] in capsys.readouterr().err
    figures, _ = taking.released()
    assert all(row["loss_sum"] > 0 for row in figures)


@gpu
@pytest.mark.parametrize("why", ["a number", "depends on numbers"])
def test_a_capture_that_fails_leaves_the_gpu_as_it_was(why, monkeypatch):
    """Found only when it is recorded: what comes after it draws random numbers as before."""
    monkeypatch.setattr("lmplay.train.capture_choice.check_repeats", lambda body, device: None)
    taking = Taking("gpt2ish", 6, device=torch.device("cuda", 0)).with_fault(FAULTS[why])
    captured, note = choice(taking, "auto")
    assert captured is None and note["mode"] == "off", note
    figures, _ = taking.released()
    other = Taking("gpt2ish", 6, device=torch.device("cuda", 0))
    expected, _ = other.train(other.eagerly)
    assert [row["loss_sum"] for row in figures] == pytest.approx([row["loss_sum"] for row in expected], rel=1e-4)
