"""A comparison within a budget of time, and from Python with a timeout and a callback."""

import json
import shutil
import threading

import numpy as np
import pytest

import lmplay
from lmplay.cli import compare as command
from lmplay.compare.budget import LENGTHS, Pace, effect_text, lengths_below, plan_runs, read_budget
from lmplay.errors import ModelCrashed, OutOfTime, UserError
from lmplay.runs.folder import only_trainer
from lmplay.runs.run import read_run
from lmplay.stats.power import USUAL_SPREAD, detectable
from lmplay.stats.prior import Prior
from support.small import TINY

MICRO = {
    "set": ["n_layer=1", "n_embd=16", "n_head=2"],
    "context_len": 16,
    "batch_size": 4,
    "warmup_steps": 2,
    "device": "cpu",
    "validation_tokens": 1000,
    "max_steps": 6,
}


def test_times_are_read():
    assert [read_budget(text) for text in ("90m", "90", "1.5h", "600s", " 2H ")] == [5400, 5400, 5400, 600, 7200]
    for wrong in ("", "soon", "-5m", "0", "1d", "nan"):
        with pytest.raises(UserError, match="--budget takes a time"):
            read_budget(wrong)


def cost(arms, there=0, in_plan=10**9):
    """Seconds of the missing runs of two arms of this pace; `there` pairs of the shortest length are there."""

    def seconds_of(tokens, pairs):
        missing = pairs - min(pairs, there) if tokens == LENGTHS[0] else pairs
        return missing * sum(pace.seconds(tokens or in_plan) for pace in arms)

    return seconds_of


@pytest.mark.parametrize("seconds", [300, 600, 5400, 50_000])
def test_the_longest_length_that_allows_three_pairs_then_more_pairs(seconds):
    arms = [Pace(5, 1e-4), Pace(5, 3e-4)]
    lengths = lengths_below(10**9)
    plan = plan_runs(lengths, cost(arms), most=32, left=seconds)
    longer = lengths[lengths.index(plan.tokens) + 1]
    assert cost(arms)(plan.tokens, 3) <= seconds < cost(arms)(longer, 3)
    assert plan.pairs >= 3 and plan.seconds <= seconds < cost(arms)(plan.tokens, plan.pairs + 1)
    assert plan.seconds > 0.6 * seconds  # the list is fine enough to use the time


def test_two_pairs_if_three_do_not_fit_and_none_if_two_do_not():
    arms, shortest = [Pace(10, 1e-3)], lengths_below(LENGTHS[0] + 1)
    two = cost(arms)(LENGTHS[0], 2)
    assert plan_runs(shortest, cost(arms), most=32, left=two).pairs == 2
    with pytest.raises(OutOfTime, match="2 pairs of the shortest runs would take about"):
        plan_runs(shortest, cost(arms), most=32, left=two - 1)
    assert plan_runs(shortest, cost(arms, there=4), most=4, left=0).pairs == 4  # what is there costs nothing
    assert plan_runs(shortest, cost(arms), most=1, left=two).pairs == 1


def test_a_plan_that_fits_as_a_whole_is_trained_as_it_is():
    plan = plan_runs(lengths_below(2_000_000), cost([Pace(1, 1e-6)], in_plan=2_000_000), most=5, left=1000)
    assert (plan.tokens, plan.pairs) == (None, 5)


def test_the_effect_that_would_be_found_is_said_beforehand():
    text = effect_text(3, 0.95, loss=4.0, prior=None)
    share = detectable(USUAL_SPREAD, 3)
    assert f"{100 * share:.2g}% of the loss" in text and f"{4 * share:.2g} nats" in text and "is assumed" in text
    assert f"{100 * (np.exp(share / 0.1) - 1):.2g}% of compute" in text  # dL = 0.1 L d ln C
    assert "9.9e+03% of compute" in effect_text(1, 0.95, loss=None, prior=None)  # one pair finds nothing
    known = effect_text(3, 0.95, loss=4.0, prior=Prior(0.01**2, 20, "9 runs"))
    assert f"{100 * detectable(0.0025, 3, prior_df=20):.2g}% of the loss" in known and "as on 9 runs" in known


@pytest.mark.process
def test_within_a_budget(plans, work, capfd):
    words = [*TINY[2:], "--training-plan", plans["plain"], "--validation-tokens", "1000", "--max-steps", "6"]
    words += ["--exp", "llama2:tiny", "--baseline", "gpt2ish:tiny", "--budget", "400s", "--seeds", "2", "--json", "-"]
    assert command.main([*words, "--no-report", "--dry-run"]) == 0
    planned = json.loads(capfd.readouterr().out)
    assert planned["to_train"] == 4 and planned["seconds"] > 0 and not list(work.glob("gpt_out/*"))
    assert command.main([*words, "--no-report"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["candidates"][0]["seeds"] == [0, 1]
    assert any("2 pairs of runs" in note for note in found["notes"]) and any("80%" in note for note in found["notes"])
    assert not list(work.glob("gpt_out/.pace*"))
    assert command.main([*words, "--no-report", "--max-minutes", "1"]) == 2
    capfd.readouterr()
    assert command.main([*words, "--no-report", "--budget", "0.001s", "--max-steps", "7"]) == 7
    told = json.loads(capfd.readouterr().out)
    assert told["status"] == 7 and told["state"] == "error"


@pytest.mark.process
def test_from_threads_with_a_callback(plans, work):
    """Two comparisons at once, whose baseline is the same run: one trains it, the other waits for it."""
    found, events, errors = {}, [], []

    def compare(name):
        try:
            found[name] = lmplay.run_comparison(
                f"{name}:tiny",
                "gpt2ish:tiny",
                seeds=1,
                training_plan=plans["plain"],
                on_progress=lambda progress: events.append((progress.run, progress.state)),
                **MICRO,
            )
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=compare, args=(name,)) for name in ("llama2", "unified_weights")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert errors == [] and sorted(found) == ["llama2", "unified_weights"]
    told = [one.to_json() for one in found.values()]
    assert told[0]["baseline"]["runs"] == told[1]["baseline"]["runs"]
    assert len(list(work.glob("gpt_out/*/run.json"))) == 3
    for run in ("llama2:tiny, seed 0", "unified_weights:tiny, seed 0", "gpt2ish:tiny, seed 0"):
        assert [state for name, state in events if name == run].count("finished") == 1


@pytest.mark.process
@pytest.mark.thorough
def test_a_run_that_is_only_being_made_elsewhere_is_waited_for(plans, work, capfd):
    """Its folder is locked and empty, as for a moment at the start of another trainer: what is free comes first."""
    base = {"baseline": "gpt2ish:tiny", "seeds": 1, "training_plan": plans["plain"], **MICRO}
    lmplay.run_comparison("llama2:tiny", **base)
    (folder,) = work.glob("gpt_out/gpt2ish*")
    shutil.rmtree(folder)
    folder.mkdir()
    lock, begun = only_trainer(folder), []

    def look(progress):
        begun.append((progress.run, progress.state))
        if progress.run.startswith("unified"):
            lock.release()

    assert lmplay.run_comparison("unified_weights:tiny", on_progress=look, **base).candidates
    assert [run.partition(":")[0] for run, state in begun if state == "begins"] == ["unified_weights", "gpt2ish"]
    assert "another process trains it" in capfd.readouterr().err


@pytest.mark.process
@pytest.mark.thorough
def test_a_timeout_stops_in_the_middle_of_a_run(plans, work):
    long = {**MICRO, "max_steps": 10**6, "validation_interval": 10**5}
    began = []
    with pytest.raises(OutOfTime) as caught:
        lmplay.run_comparison(
            "llama2:tiny", "gpt2ish:tiny", training_plan=plans["plain"], timeout=15, on_progress=began.append, **long
        )
    assert caught.value.result is None and caught.value.status == 7
    (run,) = work.glob("gpt_out/*/run.json")
    assert read_run(run.parent).get("status") == "stopped" and [one.state for one in began] == ["begins", "stopped"]
    with pytest.raises(OutOfTime):
        lmplay.run_comparison("llama2:tiny", "gpt2ish:tiny", training_plan=plans["plain"], timeout=1e-9, **long)


@pytest.mark.process
def test_errors_have_classes(plans, work, experiment):
    experiment("crashes", "class Model(Model):\n    def forward(self, tokens):\n        return 1 / 0\n")
    settings = {"training_plan": plans["plain"], "seeds": 1, **MICRO}
    with pytest.raises(ModelCrashed, match="ZeroDivisionError"):
        lmplay.run_comparison("crashes:tiny", "gpt2ish:tiny", **settings)
    with pytest.raises(UserError, match="no experiment named"):
        lmplay.run_comparison("no_such_idea", "gpt2ish:tiny", **settings)

    class Enough(Exception):
        pass

    def enough(progress):
        raise Enough

    with pytest.raises(Enough):
        lmplay.run_comparison("llama2:tiny", "gpt2ish:tiny", on_progress=enough, **settings)
    with pytest.raises(UserError, match="timeout must be more than 0"):
        lmplay.run_comparison("llama2:tiny", "gpt2ish:tiny", timeout=0, **settings)
